//! Variable-length integers: seven bits a byte, least significant first, zigzag for the sign.

/// The longest encoding of 32 bits.
pub(super) const VARINT_BYTES_MAX: usize = 5;
/// The longest encoding of 64 bits.
pub(super) const VARLONG_BYTES_MAX: usize = 10;

/// What a variable-length integer can be wrong in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VarintFault {
    /// The bytes ended inside it.
    EndsEarly,
    /// It has more bits than the type.
    TooLong,
}

/// Reads up to 32 bits from `next`.
#[inline]
pub(super) fn read_i32(next: impl FnMut() -> Option<u8>) -> Result<i32, VarintFault> {
    let raw = read_bits::<VARINT_BYTES_MAX, 32>(next)?;
    let raw = u32::try_from(raw).map_err(|_| VarintFault::TooLong)?;
    Ok((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
}

/// Reads up to 64 bits from `next`.
#[inline]
pub(super) fn read_i64(next: impl FnMut() -> Option<u8>) -> Result<i64, VarintFault> {
    let raw = read_bits::<VARLONG_BYTES_MAX, 64>(next)?;
    Ok((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
}

#[inline]
fn read_bits<const BYTES_MAX: usize, const BITS: u32>(
    mut next: impl FnMut() -> Option<u8>,
) -> Result<u64, VarintFault> {
    let mut raw = 0u64;
    for index in 0..BYTES_MAX {
        let byte = next().ok_or(VarintFault::EndsEarly)?;
        let shift = 7 * index as u32;
        let bits = u64::from(byte & 0x7f);
        if BITS - shift < 7 && bits >> (BITS - shift) != 0 {
            return Err(VarintFault::TooLong);
        }
        raw |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(raw);
        }
    }
    Err(VarintFault::TooLong)
}

/// Appends `value` as at most ten bytes; a value of 32 bits takes at most five and reads as either type.
pub(super) fn put_i64(out: &mut Vec<u8>, value: i64) {
    let mut raw = zigzag(value);
    while raw >= 0x80 {
        out.push(raw as u8 | 0x80);
        raw >>= 7;
    }
    out.push(raw as u8);
}

/// How many bytes `value` takes.
pub(super) const fn size_bytes(value: i64) -> usize {
    let bits = u64::BITS - (zigzag(value) | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn from_slice(bytes: &[u8]) -> impl FnMut() -> Option<u8> {
        let mut bytes = bytes.iter().copied();
        move || bytes.next()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_and_has_the_size_that_was_told(value: i64, short: i32) {
            let mut out = Vec::new();
            put_i64(&mut out, value);
            prop_assert_eq!(out.len(), size_bytes(value));
            prop_assert_eq!(read_i64(from_slice(&out)), Ok(value));
            out.clear();
            put_i64(&mut out, i64::from(short));
            prop_assert!(out.len() <= VARINT_BYTES_MAX);
            prop_assert_eq!(read_i32(from_slice(&out)), Ok(short));
        }
    }

    #[test]
    fn known_values_have_known_bytes() {
        for (value, bytes) in [
            (0i64, &[0u8][..]),
            (-1, &[1]),
            (1, &[2]),
            (63, &[0x7e]),
            (64, &[0x80, 1]),
            (i64::from(i32::MAX), &[0xfe, 0xff, 0xff, 0xff, 0x0f]),
            (i64::from(i32::MIN), &[0xff, 0xff, 0xff, 0xff, 0x0f]),
            (i64::MIN, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        ] {
            let mut out = Vec::new();
            put_i64(&mut out, value);
            assert_eq!(out, bytes);
            assert_eq!(read_i64(from_slice(bytes)), Ok(value));
        }
    }

    #[test]
    fn an_integer_with_too_many_bits_or_bytes_is_refused() {
        assert_eq!(read_i32(from_slice(&[0xff, 0xff, 0xff, 0xff, 0x10])), Err(VarintFault::TooLong));
        assert_eq!(read_i32(from_slice(&[0x80; 6])), Err(VarintFault::TooLong));
        assert_eq!(read_i64(from_slice(&[0x80; 11])), Err(VarintFault::TooLong));
        let mut bytes = [0xff; 10];
        bytes[9] = 2;
        assert_eq!(read_i64(from_slice(&bytes)), Err(VarintFault::TooLong));
    }

    #[test]
    fn an_integer_that_ends_early_says_so() {
        assert_eq!(read_i32(from_slice(&[])), Err(VarintFault::EndsEarly));
        assert_eq!(read_i64(from_slice(&[0x80, 0x80])), Err(VarintFault::EndsEarly));
    }
}
