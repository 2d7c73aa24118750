//! Which batches of a fetch a reader of decided records sees.

use std::collections::HashSet;

use bytes::{Bytes, BytesMut};
use tripline_storage::Offset;
use tripline_storage::batch::{BatchError, BatchLimits, BatchView};

/// What is left of fetched bytes.
#[derive(Debug)]
pub(super) struct Kept {
    /// Whole batches, those of aborted transactions left out.
    pub(super) bytes: Bytes,
    /// Behind the last whole batch that was there; `None` when there was none.
    pub(super) next: Option<Offset>,
}

/// Why fetched bytes are no batches.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// A batch is not what its producer hashed.
    Damaged {
        /// Its first offset.
        from: Offset,
        /// Behind its last.
        to: Offset,
    },
    /// Something else stands there.
    Foreign(BatchError),
}

/// Whole batches of `bytes`, without those of the transactions that `aborted` (producer id, first offset) names. A
/// broker cuts an answer wherever it is full: what stands at its end may be half a batch. Ends before a batch that is
/// damaged, or says so if that is the first.
pub(super) fn keep_decided(bytes: &Bytes, aborted: &[(i64, i64)]) -> Result<Kept, Broken> {
    let mut waiting = aborted.to_vec();
    waiting.sort_by_key(|(_, first)| std::cmp::Reverse(*first));
    let mut open: HashSet<i64> = HashSet::new();
    let mut pieces: Vec<std::ops::Range<usize>> = Vec::new();
    let (mut at, mut next) = (0, None);
    while at < bytes.len() {
        let view = match BatchView::parse(&bytes[at..]) {
            Ok((view, _)) => view,
            Err(BatchError::Truncated { .. }) => break,
            Err(error) if next.is_none() => return Err(Broken::Foreign(error)),
            Err(_) => break,
        };
        let header = *view.header();
        if view.verify_crc().is_err() {
            if next.is_none() {
                return Err(Broken::Damaged { from: header.base_offset, to: header.next_offset() });
            }
            break;
        }
        while let Some((producer, _)) = waiting.pop_if(|(_, first)| *first <= header.last_offset().get()) {
            open.insert(producer);
        }
        let end = at + view.bytes().len();
        let producer = header.producer().map(|producer| producer.id);
        let of_aborted = producer.is_some_and(|producer| open.contains(&producer));
        if let Some(producer) = producer.filter(|_| header.attributes.is_control() && is_abort(&view)) {
            open.remove(&producer);
        }
        if header.attributes.is_control() || !header.attributes.is_transactional() || !of_aborted {
            match pieces.last_mut().filter(|piece| piece.end == at) {
                Some(piece) => piece.end = end,
                None => pieces.push(at..end),
            }
        }
        (at, next) = (end, Some(header.next_offset()));
    }
    let bytes = match pieces.as_slice() {
        [] => Bytes::new(),
        [whole] => bytes.slice(whole.clone()),
        pieces => {
            let mut joined = BytesMut::with_capacity(pieces.iter().map(ExactSizeIterator::len).sum());
            pieces.iter().for_each(|piece| joined.extend_from_slice(&bytes[piece.clone()]));
            joined.freeze()
        }
    };
    Ok(Kept { bytes, next })
}

/// The key of a control record is its version and its type, two bytes each; type 0 is an abort.
fn is_abort(view: &BatchView<'_>) -> bool {
    let Ok(records) = view.records(&BatchLimits::default()) else { return false };
    let first = records.iter().next().and_then(Result::ok);
    first.and_then(|record| record.key()).is_some_and(|key| key.get(2..4) == Some(&[0, 0]))
}

#[cfg(test)]
mod tests {
    use tripline_storage::LeaderEpoch;
    use tripline_storage::batch::{BatchBuilder, BatchOptions, BatchProducer, NewRecord, TransactionResult};

    use super::*;

    fn offset(value: i64) -> Offset {
        Offset::new(value).unwrap()
    }

    fn batch(at: i64, producer: Option<i64>) -> Bytes {
        let producer = producer.map(|id| BatchProducer { id, epoch: 0, base_sequence: 0 });
        let mut builder =
            BatchBuilder::new(BatchOptions { producer, transactional: producer.is_some(), ..BatchOptions::default() });
        builder.push(&NewRecord { timestamp_ms: 1, key: None, value: Some(b"v"), headers: &[] }).unwrap();
        builder.finish().unwrap().appended_bytes(offset(at), LeaderEpoch::new(1).unwrap())
    }

    fn marker(at: i64, id: i64, result: TransactionResult) -> Bytes {
        BatchBuilder::transaction_end(id, 0, result, 0, 1).appended_bytes(offset(at), LeaderEpoch::new(1).unwrap())
    }

    fn joined(parts: &[Bytes]) -> Bytes {
        parts.concat().into()
    }

    #[test]
    fn records_of_aborted_transactions_are_left_out_and_markers_stay() {
        let (aborted, later) = (batch(1, Some(7)), batch(3, Some(7)));
        let parts = [batch(0, None), aborted.clone(), marker(2, 7, TransactionResult::Abort), later, batch(4, Some(8))];
        let kept = keep_decided(&joined(&parts), &[(7, 1)]).unwrap();
        assert_eq!(
            kept.bytes,
            joined(&[&parts[..1], &parts[2..]].concat()),
            "the same producer's next transaction stays"
        );
        assert_eq!(kept.next, Some(offset(5)));
        assert_eq!(keep_decided(&joined(&parts), &[]).unwrap().bytes, joined(&parts));
        let only = keep_decided(&aborted, &[(7, 0)]).unwrap();
        assert_eq!((only.bytes.len(), only.next), (0, Some(offset(2))), "read on behind what is left out");
    }

    #[test]
    fn half_a_batch_at_the_end_is_left_to_the_next_fetch() {
        let parts = joined(&[batch(0, None), batch(1, None)]);
        let first = batch(0, None).len();
        for cut in first..parts.len() {
            let kept = keep_decided(&parts.slice(..cut), &[]).unwrap();
            assert_eq!((kept.bytes.len(), kept.next), (first, Some(offset(1))), "cut at {cut}");
        }
        assert_eq!(keep_decided(&parts.slice(..first - 1), &[]).unwrap().next, None);
    }

    #[test]
    fn a_damaged_batch_is_named_when_it_is_its_turn() {
        let mut bytes = joined(&[batch(0, None), batch(1, None)]).to_vec();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let first = batch(0, None).len();
        let bytes = Bytes::from(bytes);
        assert_eq!(keep_decided(&bytes, &[]).unwrap().next, Some(offset(1)));
        let damaged = keep_decided(&bytes.slice(first..), &[]).unwrap_err();
        assert_eq!(damaged, Broken::Damaged { from: offset(1), to: offset(2) });
        let mut old = batch(0, None).to_vec();
        old[16] = 1;
        assert!(matches!(keep_decided(&old.into(), &[]), Err(Broken::Foreign(BatchError::UnsupportedMagic { .. }))));
    }
}
