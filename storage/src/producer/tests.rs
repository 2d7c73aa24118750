//! The rules one by one, and all of them against a model that remembers everything.

use proptest::prelude::*;

use super::*;
use crate::batch::{BatchBuilder, BatchOptions, NewRecord, TransactionResult};

const LIMITS: ProducerLimits = ProducerLimits { producers_max: 4, expiry_ms: 1000 };

/// The header of a batch with `count` records, without building the records.
fn header(id: i64, epoch: i16, base_sequence: i32, count: u32) -> BatchHeader {
    let producer = BatchProducer { id, epoch, base_sequence };
    let mut builder = BatchBuilder::new(BatchOptions { producer: Some(producer), ..BatchOptions::default() });
    builder.push(&NewRecord { timestamp_ms: 7, ..NewRecord::default() }).unwrap();
    let count = i32::try_from(count).unwrap();
    BatchHeader { last_offset_delta: count - 1, record_count: count, ..*builder.finish().unwrap().header() }
}

fn offset(value: i64) -> Offset {
    Offset::new(value).unwrap()
}

/// Batches of ten records of producer 1 from `first`, at offsets equal to their sequences.
fn with_batches(first: i32, count: i32) -> Producers {
    let mut producers = Producers::new(LIMITS);
    for base in (0..count).map(|index| first + index * 10) {
        let header = header(1, 0, base, 10);
        assert_eq!(producers.check(&header), Ok(Verdict::Append));
        producers.record(&header, offset(i64::from(base)), 0);
    }
    producers
}

fn duplicate(base: i64, last: i64) -> Result<Verdict, SequenceError> {
    Ok(Verdict::Duplicate { base_offset: offset(base), last_offset: offset(last), timestamp_ms: 7 })
}

fn out_of_order(expected: i32, found: i32) -> Result<Verdict, SequenceError> {
    Err(SequenceError::OutOfOrder { producer_id: 1, expected, found })
}

#[test]
fn a_batch_without_a_producer_is_always_new() {
    let mut producers = Producers::new(LIMITS);
    let header = header(-1, 0, 0, 1);
    producers.record(&header, offset(0), 0);
    assert_eq!(producers.check(&header), Ok(Verdict::Append));
    assert!(producers.is_empty());
}

#[test]
fn each_of_the_last_five_batches_is_a_duplicate_at_its_first_offset() {
    let producers = with_batches(0, 7);
    for base in [20, 30, 40, 50, 60] {
        assert_eq!(producers.check(&header(1, 0, base, 10)), duplicate(i64::from(base), i64::from(base) + 9));
    }
}

#[test]
fn an_older_batch_is_a_duplicate_without_an_offset() {
    let producers = with_batches(0, 7);
    for (base, count) in [(0, 10), (10, 10), (3, 4), (0, 20)] {
        let last = base + i32::try_from(count).unwrap() - 1;
        let expected = Err(SequenceError::Duplicate { producer_id: 1, first: base, last });
        assert_eq!(producers.check(&header(1, 0, base, count)), expected);
    }
}

#[test]
fn a_batch_that_covers_other_sequences_than_the_one_it_repeats_is_out_of_order() {
    let producers = with_batches(0, 7);
    for (base, count) in [(60, 9), (60, 11), (61, 9), (50, 20), (15, 10), (0, 100), (20, 5)] {
        assert_eq!(producers.check(&header(1, 0, base, count)), out_of_order(70, base), "{base} {count}");
    }
}

#[test]
fn a_gap_is_out_of_order() {
    let producers = with_batches(0, 2);
    for found in [21, 30, i32::MAX] {
        assert_eq!(producers.check(&header(1, 0, found, 1)), out_of_order(20, found));
    }
}

#[test]
fn an_unknown_producer_may_start_anywhere() {
    for first in [0, 1, 77, i32::MAX] {
        assert_eq!(Producers::new(LIMITS).check(&header(1, 3, first, 5)), Ok(Verdict::Append));
    }
}

#[test]
fn what_came_before_the_first_accepted_batch_is_a_gap_and_not_a_success() {
    for batches in [1, 7] {
        let producers = with_batches(100, batches);
        let expected = 100 + batches * 10;
        for (base, count) in [(90, 10), (0, 5), (95, 10)] {
            assert_eq!(producers.check(&header(1, 0, base, count)), out_of_order(expected, base));
        }
    }
}

#[test]
fn sequences_wrap_from_the_largest_to_zero() {
    let mut producers = Producers::new(LIMITS);
    for (at, first) in [(0, i32::MAX - 4), (10, 5), (20, 15)] {
        let header = header(1, 0, first, 10);
        assert_eq!(producers.check(&header), Ok(Verdict::Append));
        producers.record(&header, offset(at), 0);
    }
    assert_eq!(producers.check(&header(1, 0, i32::MAX - 4, 10)), duplicate(0, 9));
    assert_eq!(producers.check(&header(1, 0, 25, 1)), Ok(Verdict::Append));
    assert_eq!(producers.check(&header(1, 0, i32::MAX, 1)), out_of_order(25, i32::MAX));
}

#[test]
fn a_batch_that_ends_at_the_largest_sequence_is_followed_by_zero() {
    let mut producers = Producers::new(LIMITS);
    producers.record(&header(1, 0, i32::MAX, 1), offset(0), 0);
    assert_eq!(producers.check(&header(1, 0, 0, 1)), Ok(Verdict::Append));
}

#[test]
fn a_higher_epoch_starts_at_zero_and_closes_the_lower_one() {
    let mut producers = with_batches(0, 2);
    assert_eq!(producers.check(&header(1, 1, 20, 1)), out_of_order(0, 20));
    let first = header(1, 1, 0, 3);
    assert_eq!(producers.check(&first), Ok(Verdict::Append));
    producers.record(&first, offset(20), 0);
    let expected = Err(SequenceError::OldEpoch { producer_id: 1, current: 1, found: 0 });
    assert_eq!(producers.check(&header(1, 0, 20, 1)), expected);
    assert_eq!(producers.check(&header(1, 0, 0, 10)), expected);
    assert_eq!(producers.check(&first), duplicate(20, 22));
    assert_eq!(producers.check(&header(1, 1, 3, 1)), Ok(Verdict::Append));
}

#[test]
fn a_control_batch_raises_the_epoch_and_takes_no_sequence() {
    let mut producers = with_batches(0, 2);
    let end = |epoch| *BatchBuilder::transaction_end(1, epoch, TransactionResult::Abort, 0, 9).header();
    assert_eq!(producers.check(&end(0)), Ok(Verdict::Append));
    producers.record(&end(0), offset(20), 0);
    assert_eq!(producers.check(&header(1, 0, 20, 1)), Ok(Verdict::Append));
    producers.record(&end(1), offset(21), 0);
    assert_eq!(producers.check(&header(1, 1, 20, 1)), out_of_order(0, 20));
    assert_eq!(producers.check(&header(1, 1, 0, 1)), Ok(Verdict::Append));
    let expected = Err(SequenceError::OldEpoch { producer_id: 1, current: 1, found: 0 });
    assert_eq!(producers.check(&end(0)), expected);
}

#[test]
fn the_longest_unused_producer_gives_way_to_a_new_one() {
    let mut producers = Producers::new(LIMITS);
    for (id, now_ms) in [(1, 10), (2, 11), (3, 12), (4, 13), (1, 14), (5, 15)] {
        let sequence = if (id, now_ms) == (1, 14) { 1 } else { 0 };
        producers.record(&header(id, 0, sequence, 1), offset(now_ms), now_ms);
    }
    assert_eq!(producers.len(), 4);
    assert_eq!(producers.check(&header(2, 0, 77, 1)), Ok(Verdict::Append), "2 is not known any more");
    assert_eq!(producers.check(&header(1, 0, 77, 1)), out_of_order(2, 77));
}

/// As in a log that is read back: its batches were all appended when its file was last written.
#[test]
fn where_time_tells_nothing_the_place_in_the_log_tells_who_gives_way() {
    let used = [9, 1, 2, 3, 9, 4, 5, 0];
    for times_ms in [[7; 8], [0, 1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0], [90, 91, 92, 0, 1, 2, 3, 4]] {
        let mut producers = Producers::new(LIMITS);
        let mut next_sequence = [0; 10];
        for ((at, id), now_ms) in (0..).zip(used).zip(times_ms) {
            let sequence = &mut next_sequence[usize::try_from(id).unwrap()];
            producers.record(&header(id, 0, *sequence, 1), offset(at), now_ms);
            *sequence += 1;
            assert!(producers.get(id).is_some(), "{id} is forgotten at once: {times_ms:?}");
        }
        let kept: Vec<_> = producers.describe().iter().map(|producer| producer.id).collect();
        assert_eq!(kept, [0, 4, 5, 9], "{times_ms:?}");
        let read = Producers::decode_snapshot(&producers.encode_snapshot(offset(8)), LIMITS).unwrap().producers;
        for mut producers in [producers, read] {
            producers.record(&header(6, 0, 0, 1), offset(8), 0);
            assert!(producers.get(9).is_none() && producers.len() == 4, "{times_ms:?}");
        }
    }
}

#[test]
fn producers_expire_by_last_use_and_not_by_first() {
    let mut producers = Producers::new(LIMITS);
    producers.record(&header(1, 0, 0, 1), offset(0), 0);
    producers.record(&header(2, 0, 0, 1), offset(1), 0);
    producers.record(&header(1, 0, 1, 1), offset(2), 500);
    assert_eq!(producers.expire(1000), 0);
    assert_eq!(producers.expire(1001), 1);
    assert_eq!(producers.len(), 1);
    assert_eq!(producers.expire(1501), 1);
    assert!(producers.is_empty());
    assert_eq!(producers.expire(i64::MAX), 0);
}

#[test]
fn a_clock_that_goes_back_makes_no_producer_older() {
    let mut producers = Producers::new(LIMITS);
    producers.record(&header(1, 0, 0, 1), offset(0), 5000);
    producers.record(&header(1, 0, 1, 1), offset(1), 10);
    assert_eq!(producers.expire(5000), 0);
    assert_eq!(producers.expire(i64::MIN), 0);
    assert_eq!(producers.len(), 1);
}

#[test]
fn nobody_expires_before_those_who_were_last_used_earlier_in_the_log() {
    let mut producers = Producers::new(LIMITS);
    producers.record(&header(1, 0, 0, 1), offset(0), 5000);
    producers.record(&header(2, 0, 0, 1), offset(1), 10);
    assert_eq!(producers.expire(6000), 0, "2 was used after 1, whatever the clock said");
    assert_eq!(producers.expire(6001), 2);
}

#[test]
fn a_log_with_a_gap_in_its_sequences_is_taken_as_it_is() {
    let mut producers = with_batches(0, 3);
    producers.record(&header(1, 0, 500, 10), offset(500), 0);
    assert_eq!(producers.check(&header(1, 0, 510, 1)), Ok(Verdict::Append));
    assert_eq!(producers.check(&header(1, 0, 500, 10)), duplicate(500, 509));
    assert_eq!(producers.check(&header(1, 0, 20, 10)), out_of_order(510, 20));
}

/// What compaction leaves where batches are gone.
fn filler() -> BatchHeader {
    BatchHeader { producer_id: -1, producer_epoch: -1, base_sequence: -1, record_count: 0, ..header(1, 0, 0, 1) }
}

#[test]
fn behind_a_hole_in_the_log_a_producer_may_have_gone_on() {
    let mut holes = [with_batches(0, 3), with_batches(0, 3)];
    holes[0].record_hole(offset(60));
    holes[1].record(&filler(), offset(59), 0);
    for mut producers in holes {
        let in_snapshot = producers.encode_snapshot(offset(60));
        assert_eq!(Producers::decode_snapshot(&in_snapshot, LIMITS).unwrap().producers, producers);
        for (epoch, first) in [(0, 30), (0, 31), (0, 50), (0, i32::MAX / 3), (1, 0), (1, 40)] {
            assert_eq!(producers.check(&header(1, epoch, first, 10)), Ok(Verdict::Append), "{epoch} {first}");
        }
        for base in [0, 10, 20] {
            assert_eq!(producers.check(&header(1, 0, base, 10)), duplicate(i64::from(base), i64::from(base) + 9));
        }
        for (first, count) in [(29, 1), (25, 10), (20, 20), (i32::MAX, 1)] {
            assert_eq!(producers.check(&header(1, 0, first, count)), out_of_order(30, first));
        }
        // Its next batch ends the doubt.
        producers.record(&header(1, 0, 50, 10), offset(60), 0);
        assert_eq!(producers.check(&header(1, 0, 61, 10)), out_of_order(60, 61));
        assert_eq!(producers.check(&header(1, 1, 1, 10)), out_of_order(0, 1));
        assert_eq!(producers.check(&header(1, 0, 20, 10)), out_of_order(60, 20));
        assert_eq!(producers.check(&header(1, 0, 50, 10)), duplicate(60, 69));
    }
}

#[test]
fn a_producer_that_has_no_gap_over_a_hole_did_not_go_on_there() {
    let mut producers = with_batches(0, 6);
    producers.record_hole(offset(70));
    producers.record(&header(1, 0, 60, 10), offset(70), 0);
    assert_eq!(producers.check(&header(1, 0, 71, 1)), out_of_order(70, 71));
    assert_eq!(producers.check(&header(1, 0, 30, 10)), duplicate(30, 39));
    let before_window = SequenceError::Duplicate { producer_id: 1, first: 10, last: 19 };
    assert_eq!(producers.check(&header(1, 0, 10, 10)), Err(before_window));
}

#[test]
fn a_hole_is_behind_those_only_that_were_used_before_it() {
    let mut producers = Producers::new(LIMITS);
    for id in 1..=4 {
        producers.record(&header(id, 0, 0, 1), offset(id), 0);
        if id == 2 {
            producers.record_hole(offset(3));
        }
    }
    let may_skip = |producers: &Producers| [1, 2, 3, 4].map(|id| producers.check(&header(id, 0, 5, 1)).is_ok());
    assert_eq!(may_skip(&producers), [true, true, false, false]);
    producers.record(&header(1, 0, 1, 1), offset(5), 0);
    assert_eq!(may_skip(&producers), [false, true, false, false]);
    producers.record_hole(offset(7));
    assert_eq!(may_skip(&producers), [true; 4]);
}

mod snapshots {
    use super::*;

    #[test]
    fn a_snapshot_is_laid_out_by_byte() {
        let mut producers = Producers::new(LIMITS);
        producers.record(&header(0x0102, 3, 4, 2), offset(0x10), 0x99);
        #[rustfmt::skip]
        let expected = [
            b'T', b'L', b'P', b'R', b'O', b'D', b'U', b'C',
            1, 0, 0, 0,
            1, 0, 0, 0,
            0x12, 0, 0, 0, 0, 0, 0, 0,
            0x02, 0x01, 0, 0, 0, 0, 0, 0,
            0x99, 0, 0, 0, 0, 0, 0, 0,
            2, 0, 0, 0,
            3, 0,
            1, 0,
            4, 0, 0, 0,
            5, 0, 0, 0,
            0x10, 0, 0, 0, 0, 0, 0, 0,
            0x11, 0, 0, 0, 0, 0, 0, 0,
            7, 0, 0, 0, 0, 0, 0, 0,
            0x33, 0x9d, 0x33, 0xce,
        ];
        let encoded = producers.encode_snapshot(offset(0x12));
        assert_eq!(encoded, expected);
        let decoded = Producers::decode_snapshot(&encoded, LIMITS).unwrap();
        assert_eq!(decoded, Snapshot { next_offset: offset(0x12), producers });
    }

    #[test]
    fn no_producers_are_a_snapshot_too() {
        let encoded = Producers::new(LIMITS).encode_snapshot(Offset::ZERO);
        assert_eq!(encoded.len(), 28);
        let decoded = Producers::decode_snapshot(&encoded, LIMITS).unwrap();
        assert!(decoded.producers.is_empty());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let encoded = with_batches(0, 7).encode_snapshot(offset(70));
        for at in 0..encoded.len() {
            assert!(Producers::decode_snapshot(&encoded[..at], LIMITS).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut flipped = encoded.clone();
                flipped[at] ^= 1 << bit;
                assert!(Producers::decode_snapshot(&flipped, LIMITS).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn fields_that_are_never_written_are_refused_by_name_although_the_checksum_fits() {
        let encoded = with_batches(0, 1).encode_snapshot(offset(10));
        let cases: [(usize, &[u8], &str); 9] = [
            (16, &[0, 0, 0, 0, 0, 0, 0, 0x80], "next offset"),
            (24, &[0, 0, 0, 0, 0, 0, 0, 0x80], "producer id"),
            (40, &[1, 0, 0, 0x40], "known sequences"),
            (44, &[0, 0x80], "epoch"),
            (46, &[6], "batch count"),
            (47, &[1], "the byte after the batch count"),
            (48, &[0, 0, 0, 0x80], "first sequence"),
            (56, &[10], "last offset"),
            (64, &[10], "last offset"),
        ];
        for (at, patch, name) in cases {
            let error = Producers::decode_snapshot(&patched(&encoded, at, patch), LIMITS).unwrap_err();
            assert!(matches!(error, SnapshotError::Field { field, .. } if field == name), "{name}: {error}");
        }
        for (count, expected) in [
            (0u32, SnapshotError::LeftOver { found_bytes: 56 }),
            (2, SnapshotError::EndsEarly { field: "producer id" }),
            (u32::MAX, SnapshotError::EndsEarly { field: "producer id" }),
        ] {
            let bytes = patched(&encoded, 12, &count.to_le_bytes());
            assert_eq!(Producers::decode_snapshot(&bytes, LIMITS), Err(expected));
        }
        let bytes = patched(&encoded, 8, &[2]);
        assert_eq!(Producers::decode_snapshot(&bytes, LIMITS), Err(SnapshotError::Version { found: 2 }));
        assert_eq!(Producers::decode_snapshot(b"TLPRODUX", LIMITS), Err(SnapshotError::Magic));
    }

    fn patched(encoded: &[u8], at: usize, patch: &[u8]) -> Vec<u8> {
        let mut bytes = encoded.to_vec();
        bytes[at..at + patch.len()].copy_from_slice(patch);
        let covered = bytes.len() - 4;
        let crc = crc32fast::hash(&bytes[..covered]);
        bytes[covered..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn a_snapshot_with_more_producers_than_allowed_keeps_the_last_used() {
        let mut producers = Producers::new(ProducerLimits { producers_max: 10, ..LIMITS });
        for id in (0..10).rev() {
            producers.record(&header(id, 0, 0, 1), offset(10 - id), 100 - id);
        }
        let decoded = Producers::decode_snapshot(&producers.encode_snapshot(offset(11)), LIMITS).unwrap();
        assert_eq!(decoded.producers.len(), 4);
        assert_eq!(
            decoded.producers.check(&header(3, 0, 5, 1)),
            Err(SequenceError::OutOfOrder { producer_id: 3, expected: 1, found: 5 })
        );
        assert_eq!(decoded.producers.check(&header(4, 0, 5, 1)), Ok(Verdict::Append));
    }
}

/// What a client may do. Sequences are relative to what the model knows.
#[derive(Clone, Copy, Debug)]
enum Operation {
    /// The next batch in order.
    Next { id: i64, count: u32 },
    /// The batch that was appended `back` batches ago, again.
    Repeat { id: i64, back: usize },
    /// A batch at any place around the end.
    Around { id: i64, shift: i64, count: u32 },
    /// The first batch of the next epoch, at this sequence.
    NextEpoch { id: i64, sequence: i32 },
    /// A batch of the epoch before.
    OldEpoch { id: i64 },
    /// Write and read a snapshot.
    Restart,
    /// Let time pass and expire.
    Wait { millis: i64 },
}

fn operation() -> impl Strategy<Value = Operation> {
    let id = 0..6i64;
    let count = 1..6u32;
    prop_oneof![
        8 => (id.clone(), count.clone()).prop_map(|(id, count)| Operation::Next { id, count }),
        4 => (id.clone(), 0..9usize).prop_map(|(id, back)| Operation::Repeat { id, back }),
        4 => (id.clone(), -40..8i64, count).prop_map(|(id, shift, count)| Operation::Around { id, shift, count }),
        1 => (id.clone(), prop_oneof![Just(0), 0..3i32]).prop_map(|(id, sequence)| Operation::NextEpoch { id, sequence }),
        1 => id.prop_map(|id| Operation::OldEpoch { id }),
        1 => Just(Operation::Restart),
        1 => (0..1500i64).prop_map(|millis| Operation::Wait { millis }),
    ]
}

/// Every batch of a producer's epoch, by sequences that never wrap.
#[derive(Clone, Debug)]
struct ModelProducer {
    epoch: i16,
    last_used_ms: i64,
    batches: Vec<(u64, u64, i64)>,
}

struct Model {
    producers: std::collections::BTreeMap<i64, ModelProducer>,
    next_offset: i64,
    now_ms: i64,
}

/// Where unknown producers start: close enough to the end of the sequences to wrap.
const START: u64 = (1 << 31) - 12;

fn wrapped(sequence: u64) -> i32 {
    i32::try_from(sequence % (1 << 31)).unwrap()
}

impl Model {
    fn end(&self, id: i64) -> u64 {
        self.producers.get(&id).and_then(|p| p.batches.last()).map_or(START, |(_, last, _)| last + 1)
    }

    fn expected(&self, id: i64, epoch: i16, first: u64, count: u64) -> &'static str {
        let Some(producer) = self.producers.get(&id) else { return "append" };
        let (from, last) = (producer.batches[0].0, first + count - 1);
        let window = &producer.batches[producer.batches.len().saturating_sub(WINDOW_BATCHES)..];
        if epoch != producer.epoch {
            return if epoch < producer.epoch {
                "old epoch"
            } else if wrapped(first) == 0 {
                "append"
            } else {
                "out of order"
            };
        }
        if first == self.end(id) {
            "append"
        } else if window.iter().any(|batch| (batch.0, batch.1) == (first, last)) {
            "repeat"
        } else if first >= from && last < window[0].0 {
            "duplicate"
        } else {
            "out of order"
        }
    }

    fn append(&mut self, id: i64, epoch: i16, first: u64, count: u64) {
        let fresh = ModelProducer { epoch, last_used_ms: 0, batches: Vec::new() };
        let producer = self.producers.entry(id).or_insert_with(|| fresh.clone());
        if producer.epoch != epoch {
            *producer = fresh;
        }
        producer.last_used_ms = self.now_ms;
        producer.batches.push((first, first + count - 1, self.next_offset));
        self.next_offset += i64::try_from(count).unwrap();
        if self.producers.len() > LIMITS.producers_max {
            let (_, oldest) = self.producers.iter().map(|(id, p)| (p.batches.last().unwrap().2, *id)).min().unwrap();
            self.producers.remove(&oldest);
        }
    }
}

struct Pair {
    real: Producers,
    model: Model,
}

impl Pair {
    fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Next { id, count } => self.send(id, self.epoch(id), self.model.end(id), u64::from(count)),
            Operation::Repeat { id, back } => {
                let batches = self.model.producers.get(&id).map_or(&[][..], |p| &p.batches);
                let Some((first, last, _)) = batches.iter().rev().nth(back).copied() else { return };
                self.send(id, self.epoch(id), first, last - first + 1);
            }
            Operation::Around { id, shift, count } => {
                let Some(first) = self.model.end(id).checked_add_signed(shift) else { return };
                self.send(id, self.epoch(id), first, u64::from(count));
            }
            // A whole round of the sequences later, so that the model's never fall.
            Operation::NextEpoch { id, sequence } => {
                self.send(id, self.epoch(id) + 1, (1 << 31) + u64::from(sequence.unsigned_abs()), 2);
            }
            Operation::OldEpoch { id } => {
                if let Some(older) = self.epoch(id).checked_sub(1).filter(|epoch| *epoch >= 0) {
                    self.send(id, older, self.model.end(id), 1);
                }
            }
            Operation::Restart => {
                let next_offset = offset(self.model.next_offset);
                let snapshot = Producers::decode_snapshot(&self.real.encode_snapshot(next_offset), LIMITS).unwrap();
                assert_eq!(snapshot.next_offset, next_offset);
                assert_eq!(snapshot.producers, self.real);
                self.real = snapshot.producers;
            }
            Operation::Wait { millis } => {
                self.model.now_ms += millis;
                let oldest_ms = self.model.now_ms - LIMITS.expiry_ms;
                self.model.producers.retain(|_, producer| producer.last_used_ms >= oldest_ms);
                self.real.expire(self.model.now_ms);
            }
        }
        assert_eq!(self.real.len(), self.model.producers.len());
    }

    fn epoch(&self, id: i64) -> i16 {
        self.model.producers.get(&id).map_or(0, |producer| producer.epoch)
    }

    fn send(&mut self, id: i64, epoch: i16, first: u64, count: u64) {
        let header = header(id, epoch, wrapped(first), u32::try_from(count).unwrap());
        let verdict = self.real.check(&header);
        let expected = self.model.expected(id, epoch, first, count);
        let told = match verdict {
            Ok(Verdict::Append) => "append",
            Ok(Verdict::Duplicate { base_offset, last_offset, .. }) => {
                let batches = &self.model.producers[&id].batches;
                let batch = batches.iter().rev().find(|batch| batch.0 == first).unwrap();
                assert_eq!((base_offset.get(), last_offset.get()), (batch.2, batch.2 + (batch.1 - batch.0) as i64));
                "repeat"
            }
            Err(SequenceError::Duplicate { .. }) => "duplicate",
            Err(SequenceError::OutOfOrder { .. }) => "out of order",
            Err(SequenceError::OldEpoch { .. }) => "old epoch",
        };
        assert_eq!(told, expected, "producer {id}, epoch {epoch}, sequences {first} and {count} on");
        if verdict == Ok(Verdict::Append) {
            self.real.record(&header, offset(self.model.next_offset), self.model.now_ms);
            self.model.append(id, epoch, first, count);
        }
    }
}

proptest! {
    #[test]
    fn verdicts_agree_with_a_model_that_forgets_no_batch(operations in prop::collection::vec(operation(), 1..120)) {
        let producers = std::collections::BTreeMap::new();
        let mut pair = Pair { real: Producers::new(LIMITS), model: Model { producers, next_offset: 0, now_ms: 0 } };
        for operation in operations {
            pair.apply(operation);
        }
    }
}

/// What becomes of a log and of the memory of who wrote it.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A client sends its next batch.
    Send {
        id: usize,
        count: u32,
    },
    /// It does under a new epoch.
    SendAnew {
        id: usize,
        count: u32,
    },
    /// Time passes, and who was silent is forgotten.
    Wait {
        millis: i64,
    },
    /// Batches of which nothing is needed go, where a bit says so, but for those that may be sent again.
    Compact {
        gone: u64,
    },
    Snapshot,
    /// The log is read from a snapshot on, or from the beginning.
    Restart {
        snapshot: usize,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let (id, count) = (0..6usize, 1..4u32);
    prop_oneof![
        12 => (id.clone(), count.clone()).prop_map(|(id, count)| Event::Send { id, count }),
        1 => (id, count).prop_map(|(id, count)| Event::SendAnew { id, count }),
        1 => (0..1500i64).prop_map(|millis| Event::Wait { millis }),
        2 => any::<u64>().prop_map(|gone| Event::Compact { gone }),
        1 => Just(Event::Snapshot),
        2 => (0..4usize).prop_map(|snapshot| Event::Restart { snapshot }),
    ]
}

/// Clients that send each batch behind the one before, whatever is forgotten meanwhile.
struct Lives {
    producers: Producers,
    /// Those of a process that was never restarted.
    witness: Producers,
    log: Vec<(BatchHeader, Offset)>,
    snapshots: Vec<(usize, Vec<u8>)>,
    clients: [Vec<(BatchHeader, Offset)>; 6],
    next_offset: i64,
    now_ms: i64,
}

impl Lives {
    fn apply(&mut self, event: Event) {
        match event {
            Event::Send { id, count } => self.send(id, self.next_batch(id, count)),
            Event::SendAnew { id, count } => {
                let epoch = self.clients[id].last().map_or(0, |(last, _)| last.producer_epoch + 1);
                self.send(id, header(id as i64, epoch, 0, count));
            }
            Event::Wait { millis } => {
                self.now_ms += millis;
                self.producers.expire(self.now_ms);
                self.witness.expire(self.now_ms);
            }
            Event::Compact { gone } => {
                let remembered = self.producers.remembered_batches();
                for (number, (header, base)) in self.log.iter_mut().enumerate() {
                    if gone >> (number % 64) & 1 == 1 && !remembered.contains(&(header.producer_id, *base)) {
                        *header = BatchHeader { last_offset_delta: header.last_offset_delta, ..filler() };
                    }
                }
            }
            Event::Snapshot => {
                let bytes = self.producers.encode_snapshot(offset(self.next_offset));
                self.snapshots.push((self.log.len(), bytes));
            }
            Event::Restart { snapshot } => self.restart(snapshot),
        }
    }

    fn next_batch(&self, id: usize, count: u32) -> BatchHeader {
        let (epoch, sequence) = self.clients[id]
            .last()
            .map_or((0, 0), |(last, _)| (last.producer_epoch, sequence_after(last_sequence(last), 1)));
        header(id as i64, epoch, sequence, count)
    }

    fn send(&mut self, id: usize, batch: BatchHeader) {
        assert_eq!(self.producers.check(&batch), Ok(Verdict::Append), "client {id} goes on");
        let base = offset(self.next_offset);
        self.producers.record(&batch, base, self.now_ms);
        self.witness.record(&batch, base, self.now_ms);
        self.log.push((batch, base));
        self.clients[id].push((batch, base));
        self.next_offset += i64::from(batch.last_offset_delta) + 1;
    }

    /// What the witness knows is known. Nobody is refused, and nothing taken for what it is not.
    fn restart(&mut self, snapshot: usize) {
        let nothing = || (0, Producers::new(LIMITS));
        let read =
            |(from, bytes): &(usize, Vec<u8>)| (*from, Producers::decode_snapshot(bytes, LIMITS).unwrap().producers);
        let (from, mut producers) = self.snapshots.get(snapshot).map_or_else(nothing, read);
        for (header, base) in &self.log[from..] {
            producers.record(header, *base, self.now_ms);
        }
        let is_whole = self.log.iter().all(|(header, _)| header.record_count > 0);
        for (id, sent) in self.clients.iter().enumerate() {
            let next = self.next_batch(id, 2);
            assert_eq!(producers.check(&next), Ok(Verdict::Append), "client {id} goes on after a restart");
            for (batch, base) in sent.iter().rev().take(WINDOW_BATCHES) {
                let (before, after) = (self.witness.check(batch), producers.check(batch));
                let own = matches!(after, Ok(Verdict::Duplicate { base_offset, .. }) if base_offset == *base);
                let worse = matches!(before, Ok(Verdict::Duplicate { .. })) && before != after;
                let wrong = matches!(after, Ok(Verdict::Duplicate { .. })) && !own;
                assert!(!worse && !wrong, "client {id} repeats {batch:?}: {before:?}, then {after:?}");
            }
            let skipping = BatchHeader { base_sequence: sequence_after(next.base_sequence, 2), ..next };
            let refused = self.witness.check(&skipping);
            if is_whole && refused.is_err() {
                assert_eq!(producers.check(&skipping), refused, "client {id} skips a batch");
            }
        }
        self.producers = producers;
    }
}

proptest! {
    #[test]
    fn a_log_that_is_read_back_answers_as_its_writer_did(events in prop::collection::vec(event(), 1..160)) {
        let (producers, witness) = (Producers::new(LIMITS), Producers::new(LIMITS));
        let clients = std::array::from_fn(|_| Vec::new());
        let (log, snapshots) = (Vec::new(), Vec::new());
        let mut lives = Lives { producers, witness, log, snapshots, clients, next_offset: 0, now_ms: 0 };
        for event in events {
            lives.apply(event);
        }
        lives.apply(Event::Restart { snapshot: usize::MAX });
    }
}
