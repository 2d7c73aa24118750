//! Empty batches in place of records that are not there.
//!
//! So the batches of a log stay dense, and readers go over them as over any other: Kafka's own compaction leaves such batches.

use std::ops::Range;

use crate::batch::header::{ATTRIBUTES_AT, Attributes, BATCH_LENGTH_MIN, HEADER_BYTES, NO_TIMESTAMP_MS};
use crate::batch::{BatchHeader, Compression, crc32c};
use crate::offset::{LeaderEpoch, Offset};

/// The most offsets that one empty batch stands for.
const SPAN_MAX: u64 = 1 << 31;

/// Empty batches of no producer in place of `offsets`, one behind the other; nearly always one.
pub(crate) fn fillers(offsets: Range<Offset>, epoch: LeaderEpoch) -> Vec<[u8; HEADER_BYTES]> {
    let mut from = offsets.start;
    let mut fillers = Vec::new();
    while from < offsets.end {
        let span = offsets.end.since(from).min(SPAN_MAX);
        let mut header = BatchHeader {
            base_offset: from,
            batch_length: BATCH_LENGTH_MIN,
            leader_epoch: Some(epoch),
            crc: 0,
            attributes: Attributes::new(Compression::None),
            last_offset_delta: i32::try_from(span - 1).expect("spans are that long at the most"),
            base_timestamp_ms: NO_TIMESTAMP_MS,
            max_timestamp_ms: NO_TIMESTAMP_MS,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            record_count: 0,
        };
        header.crc = crc32c(&header.encode()[ATTRIBUTES_AT..]);
        from = header.next_offset();
        fillers.push(header.encode());
    }
    fillers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchLimits, BatchView};

    #[test]
    fn fillers_are_whole_batches_without_records_that_span_the_offsets() {
        let epoch = LeaderEpoch::new(3).unwrap();
        for (from, to, count) in [(5, 6, 1), (5, 105, 1), (0, (1 << 31) + 7, 2), (9, 9, 0)] {
            let (from, to) = (Offset::new(from).unwrap(), Offset::new(to).unwrap());
            let fillers = fillers(from..to, epoch);
            assert_eq!(fillers.len(), count);
            let mut next = from;
            for bytes in &fillers {
                let (view, rest) = BatchView::parse(bytes).unwrap();
                view.verify_crc().unwrap();
                assert!(rest.is_empty() && view.header().base_offset == next);
                assert_eq!(view.records(&BatchLimits::default()).unwrap().iter().count(), 0);
                assert_eq!(view.header().leader_epoch, Some(epoch));
                next = view.header().next_offset();
            }
            assert_eq!(next, to);
        }
    }
}
