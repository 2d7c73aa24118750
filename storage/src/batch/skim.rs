//! The walk over records in memory that are as most are: a quick look that finds nothing wrong, or leaves it to the
//! walk that says what is ([`super::record`]).
//!
//! It must accept nothing that the other does not. What it leaves alone is only slower: integers of more than four
//! bytes, which are lengths over 128 MiB and timestamps more than 37 hours from the batch's first.

/// What a batch is checked for in each of its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Skimmed {
    pub(super) timestamp_delta_ms: i64,
    pub(super) offset_delta: i32,
}

/// Takes one record from the front of `bytes`. `None` leaves them as they are: the record is unusual or wrong.
#[inline]
pub(super) fn skim(bytes: &mut &[u8]) -> Option<Skimmed> {
    let mut rest = *bytes;
    let length = usize::try_from(integer(&mut rest)?).ok()?;
    let (record, rest) = rest.split_at_checked(length)?;
    let (_attributes, mut fields) = record.split_first()?;
    let fields = &mut fields;
    let timestamp_delta_ms = i64::from(integer(fields)?);
    let offset_delta = integer(fields)?;
    skip_optional(fields)?;
    skip_optional(fields)?;
    for _ in 0..u32::try_from(integer(fields)?).ok()? {
        let name = usize::try_from(integer(fields)?).ok()?;
        skip(fields, name)?;
        skip_optional(fields)?;
    }
    if !fields.is_empty() {
        return None;
    }
    *bytes = rest;
    Some(Skimmed { timestamp_delta_ms, offset_delta })
}

/// A key or a value: its length, −1 for none, and so many bytes.
#[inline]
fn skip_optional(bytes: &mut &[u8]) -> Option<()> {
    match integer(bytes)? {
        -1 => Some(()),
        length => skip(bytes, usize::try_from(length).ok()?),
    }
}

#[inline]
fn skip(bytes: &mut &[u8], count: usize) -> Option<()> {
    *bytes = bytes.get(count..)?;
    Some(())
}

/// A variable-length integer of at most four bytes, see [`super::varint`].
#[inline]
fn integer(bytes: &mut &[u8]) -> Option<i32> {
    let (raw, rest) = match **bytes {
        [a @ ..0x80, ref rest @ ..] => (u32::from(a), rest),
        [a, b @ ..0x80, ref rest @ ..] => (u32::from(a & 0x7f) | u32::from(b) << 7, rest),
        _ => longer_integer(bytes)?,
    };
    *bytes = rest;
    Some((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
}

fn longer_integer(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (bits, rest) = match *bytes {
        [a, b, c @ ..0x80, ref rest @ ..] => ([a, b, c, 0], rest),
        [a, b, c, d @ ..0x80, ref rest @ ..] => ([a, b, c, d], rest),
        _ => return None,
    };
    Some((bits.iter().rev().fold(0, |raw, byte| raw << 7 | u32::from(byte & 0x7f)), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::record::{Input, SliceInput, parse_record};
    use super::super::varint;
    use super::*;

    /// What the other walk says of the record at the front, and how many bytes it takes.
    fn slowly(bytes: &[u8]) -> Option<(Skimmed, usize)> {
        let mut input = SliceInput::new(bytes);
        let record = parse_record(&mut input).ok()?;
        let (timestamp_delta_ms, offset_delta) = (record.timestamp_delta_ms, record.offset_delta);
        Some((Skimmed { timestamp_delta_ms, offset_delta }, input.position()))
    }

    fn quickly(bytes: &[u8]) -> Option<(Skimmed, usize)> {
        let mut rest = bytes;
        skim(&mut rest).map(|skimmed| (skimmed, bytes.len() - rest.len()))
    }

    fn record(timestamp_delta: i64, offset_delta: i32, pieces: &[Option<Vec<u8>>], headers: u8) -> Vec<u8> {
        let mut body = vec![0];
        varint::put_i64(&mut body, timestamp_delta);
        varint::put_i64(&mut body, offset_delta.into());
        let put = |body: &mut Vec<u8>, piece: &Option<Vec<u8>>| {
            varint::put_i64(body, piece.as_ref().map_or(-1, |piece| piece.len() as i64));
            body.extend(piece.iter().flatten());
        };
        pieces.iter().for_each(|piece| put(&mut body, piece));
        varint::put_i64(&mut body, headers.into());
        for _ in 0..headers {
            put(&mut body, &Some(b"name".to_vec()));
            put(&mut body, &pieces[0]);
        }
        let mut bytes = Vec::new();
        varint::put_i64(&mut bytes, body.len() as i64);
        bytes.extend(body);
        bytes
    }

    fn records() -> impl Strategy<Value = Vec<u8>> {
        let piece = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200));
        let small_or_any = prop_oneof![-200_000_000_i64..200_000_000, any::<i64>()];
        (small_or_any, any::<i32>(), proptest::collection::vec(piece, 2), 0..4_u8)
            .prop_map(|(timestamp, offset, pieces, headers)| record(timestamp, offset, &pieces, headers))
    }

    proptest! {
        #[test]
        fn what_is_usual_is_taken_as_the_other_walk_takes_it(bytes in records()) {
            let (slow, quick) = (slowly(&bytes), quickly(&bytes));
            prop_assert!(slow.is_some());
            prop_assert!(quick.is_none() || quick == slow);
            let (skimmed, _) = slow.unwrap();
            let small = skimmed.timestamp_delta_ms.unsigned_abs() < 1 << 27
                && skimmed.offset_delta.unsigned_abs() < 1 << 27;
            prop_assert_eq!(quick.is_some(), small, "four bytes of seven bits, one of them the sign");
        }

        #[test]
        fn nothing_is_taken_that_the_other_walk_refuses(
            mut bytes in records(),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in any::<prop::sample::Index>(),
        ) {
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            for bytes in [&bytes[..], &bytes[..cut.index(bytes.len() + 1)]] {
                if let Some(quick) = quickly(bytes) {
                    prop_assert_eq!(Some(quick), slowly(bytes));
                }
            }
        }
    }
}
