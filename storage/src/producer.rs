//! What one partition remembers of its idempotent producers, so that a retry is appended once.
//!
//! Per producer id: the epoch, the last five batches and when it was last used. Five, because that is how many requests
//! a producer may have in flight: any of them may be retried. [`Producers::check`] decides about a batch and changes
//! nothing; [`Producers::record`] is told what was appended, now or in an earlier life that is being read back from the
//! log.
//!
//! Sequences count records, from 0 at each new epoch, and go from 2³¹ − 1 back to 0. What a batch is answered:
//!
//! | the batch | the answer |
//! |---|---|
//! | names no producer | append |
//! | its producer is not known (evicted, or the log does not say) | append, whatever its sequence |
//! | has a higher epoch | append if it starts at 0, else [`SequenceError::OutOfOrder`] |
//! | has a lower epoch | [`SequenceError::OldEpoch`] |
//! | starts where the last one ended | append |
//! | is one of the last five | [`Verdict::Duplicate`] with its offsets |
//! | lies before those, and all of it is known to be appended | [`SequenceError::Duplicate`] |
//! | lies ahead, or has a higher epoch, and the log may lack what came before it | append |
//! | anything else | [`SequenceError::OutOfOrder`] |
//!
//! "Known to be appended" matters: producers take the answer "duplicate" for success. After a producer was forgotten,
//! its batches may arrive again in any order; one from before the first that was accepted is a gap, not a duplicate.
//!
//! "The log may lack" is for a log that is read back and has a hole: damage, or an empty batch in the place of those
//! that a compaction removed, which keeps the last ones only of who is remembered. What stood there may have been of
//! anybody who stands in front of it, and a producer that was forgotten then and goes on now must not be told of a gap
//! that only the log has. What is remembered of it still tells its repeated batches, and its next batch ends the doubt.

mod replay;
mod snapshot;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};

use smallvec::SmallVec;

pub(crate) use self::replay::Replay;
use crate::batch::{BatchHeader, BatchProducer};
use crate::offset::Offset;

pub use snapshot::{SNAPSHOT_MAGIC, SNAPSHOT_VERSION, Snapshot, SnapshotError};

/// How many batches of a producer are remembered: the requests that an idempotent producer may have in flight.
pub const WINDOW_BATCHES: usize = 5;

/// Sequences are 31 bits wide.
const SEQUENCE_MASK: u32 = i32::MAX.cast_unsigned();
/// Half of the sequences: what is further ahead than this lies behind.
const SEQUENCE_HALF: u32 = 1 << 30;

/// Bounds on what a partition remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerLimits {
    /// How many producers, at least 1; the one whose last batch stands first in the log is forgotten first. Default
    /// 10,000, which take about 3 MiB.
    pub producers_max: usize,
    /// After how long without use a producer is forgotten, in milliseconds. Default one day, Kafka's
    /// `producer.id.expiration.ms`.
    pub expiry_ms: i64,
}

impl Default for ProducerLimits {
    fn default() -> Self {
        Self { producers_max: 10_000, expiry_ms: 24 * 60 * 60 * 1000 }
    }
}

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is new: append it, then call [`Producers::record`].
    Append,
    /// It was appended before: answer as then.
    Duplicate {
        /// The offset that its first record has.
        base_offset: Offset,
        /// The offset that its last record has.
        last_offset: Offset,
        /// Its greatest timestamp as appended, in milliseconds since 1970.
        timestamp_ms: i64,
    },
}

/// Why a batch must not be appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SequenceError {
    /// It was appended, so long ago that its offset is forgotten. Kafka's `DUPLICATE_SEQUENCE_NUMBER`.
    #[error("producer {producer_id}: the batch with sequences {first} to {last} was appended before")]
    Duplicate {
        /// The producer.
        producer_id: i64,
        /// The batch's first sequence.
        first: i32,
        /// The batch's last sequence.
        last: i32,
    },
    /// Sequences are missing before it, or it covers others than the batch that it repeats. Kafka's
    /// `OUT_OF_ORDER_SEQUENCE_NUMBER`.
    #[error("producer {producer_id}: the batch starts at sequence {found}, expected is {expected}")]
    OutOfOrder {
        /// The producer.
        producer_id: i64,
        /// The sequence that would follow.
        expected: i32,
        /// The batch's first sequence.
        found: i32,
    },
    /// A newer instance of the producer has been seen. Kafka's `INVALID_PRODUCER_EPOCH`.
    #[error("producer {producer_id}: epoch is {found}, current is {current}")]
    OldEpoch {
        /// The producer.
        producer_id: i64,
        /// The epoch of the newest instance.
        current: i16,
        /// The batch's epoch.
        found: i16,
    },
}

/// A batch that a producer may send again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct WindowBatch {
    first_sequence: i32,
    last_sequence: i32,
    base_offset: Offset,
    last_offset: Offset,
    timestamp_ms: i64,
}

/// One producer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Producer {
    epoch: i16,
    last_used_ms: i64,
    /// Where its last batch ends.
    last_used_at: Offset,
    /// How many sequences up to the last one are known to be appended without a gap, saturating at half of all. None
    /// although there are batches: others may have followed that the log does not have any more.
    known_sequences: u32,
    /// The last batches of this epoch, oldest first. Empty after an epoch that only a control batch has named.
    window: SmallVec<[WindowBatch; WINDOW_BATCHES]>,
}

impl Producer {
    fn new(epoch: i16) -> Self {
        let (last_used_ms, last_used_at) = (i64::MIN, Offset::ZERO);
        Self { epoch, last_used_ms, last_used_at, known_sequences: 0, window: SmallVec::new() }
    }

    fn describe(&self, id: i64) -> ProducerDescription {
        let last = self.window.last();
        ProducerDescription {
            id,
            epoch: self.epoch,
            last_used_ms: self.last_used_ms,
            last_sequence: last.map(|batch| batch.last_sequence),
            last_offset: last.map(|batch| batch.last_offset),
        }
    }

    fn expected_sequence(&self) -> i32 {
        self.window.last().map_or(0, |batch| sequence_after(batch.last_sequence, 1))
    }

    /// Whether batches of it may have followed the last one that is remembered.
    fn may_have_gone_on(&self) -> bool {
        self.known_sequences == 0 && !self.window.is_empty()
    }

    fn check(&self, producer: BatchProducer, last_sequence: i32) -> Result<Verdict, SequenceError> {
        let BatchProducer { id: producer_id, epoch, base_sequence: first } = producer;
        if epoch < self.epoch {
            return Err(SequenceError::OldEpoch { producer_id, current: self.epoch, found: epoch });
        }
        let expected = if epoch > self.epoch { 0 } else { self.expected_sequence() };
        if first == expected || (epoch > self.epoch && self.may_have_gone_on()) {
            return Ok(Verdict::Append);
        }
        if epoch > self.epoch {
            return Err(SequenceError::OutOfOrder { producer_id, expected, found: first });
        }
        self.check_repeated(producer_id, first, last_sequence)
    }

    fn check_repeated(&self, producer_id: i64, first: i32, last: i32) -> Result<Verdict, SequenceError> {
        if let Some(batch) = self.window.iter().find(|b| b.first_sequence == first && b.last_sequence == last) {
            let WindowBatch { base_offset, last_offset, timestamp_ms, .. } = *batch;
            return Ok(Verdict::Duplicate { base_offset, last_offset, timestamp_ms });
        }
        if self.may_have_gone_on() && sequence_distance(self.expected_sequence(), first) < SEQUENCE_HALF {
            return Ok(Verdict::Append);
        }
        if self.was_appended_before_window(first, last) {
            return Err(SequenceError::Duplicate { producer_id, first, last });
        }
        Err(SequenceError::OutOfOrder { producer_id, expected: self.expected_sequence(), found: first })
    }

    /// Distances are measured back from the end; what is known spans half of the sequences at most, so they are
    /// unambiguous.
    fn was_appended_before_window(&self, first: i32, last: i32) -> bool {
        let Some(oldest) = self.window.first() else { return false };
        let from_end = |sequence| sequence_distance(sequence, self.expected_sequence());
        let is_known = from_end(first) <= self.known_sequences && from_end(last) <= from_end(first);
        is_known && from_end(last) > from_end(oldest.first_sequence)
    }

    fn record(&mut self, producer: BatchProducer, batch: WindowBatch) {
        if producer.epoch != self.epoch {
            *self = self.at_epoch(producer.epoch);
        }
        let follows = self.window.last().is_some_and(|_| batch.first_sequence == self.expected_sequence());
        if !follows {
            self.window.clear();
            self.known_sequences = 0;
        }
        if let Some(oldest) = self.window.first() {
            // It did not go on unseen, so nothing is missing in the window.
            let in_window = sequence_distance(oldest.first_sequence, batch.first_sequence);
            self.known_sequences = self.known_sequences.max(in_window);
        }
        if self.window.len() == WINDOW_BATCHES {
            self.window.remove(0);
        }
        let count = sequence_distance(batch.first_sequence, batch.last_sequence) + 1;
        self.known_sequences = self.known_sequences.saturating_add(count).min(SEQUENCE_HALF);
        self.window.push(batch);
    }

    fn record_control(&mut self, epoch: i16) {
        if epoch > self.epoch {
            *self = self.at_epoch(epoch);
        }
    }

    fn at_epoch(&self, epoch: i16) -> Self {
        Self { last_used_ms: self.last_used_ms, last_used_at: self.last_used_at, ..Self::new(epoch) }
    }
}

/// The idempotent producers of one partition.
#[derive(Clone, Debug)]
pub struct Producers {
    limits: ProducerLimits,
    by_id: HashMap<i64, Producer>,
    /// The same producers by where in the log they were last used. By place and not by time: a log that is read back
    /// has but one time for all the batches of a file, and those who are forgotten because there are too many must be
    /// the same ones as when it was written. Who was forgotten for being silent may be remembered again.
    by_use: BTreeSet<(Offset, i64)>,
    /// Where the last hole in the log ends.
    hole_to: Offset,
}

/// A producer as it is remembered, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerDescription {
    /// Its id.
    pub id: i64,
    /// The epoch of its newest instance.
    pub epoch: i16,
    /// When it was last used, ms since 1970.
    pub last_used_ms: i64,
    /// The sequence of its last record; `None` before the first of its epoch.
    pub last_sequence: Option<i32>,
    /// The offset of its last record; `None` before the first of its epoch.
    pub last_offset: Option<Offset>,
}

impl Producers {
    /// All of them, by rising id.
    #[must_use]
    pub fn describe(&self) -> Vec<ProducerDescription> {
        let mut described: Vec<_> = self.by_id.iter().map(|(&id, producer)| producer.describe(id)).collect();
        described.sort_unstable_by_key(|producer| producer.id);
        described
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, id: i64) -> Option<ProducerDescription> {
        self.by_id.get(&id).map(|producer| producer.describe(id))
    }

    /// Remembers nothing yet.
    #[must_use]
    pub fn new(limits: ProducerLimits) -> Self {
        assert!(limits.producers_max >= 1, "a partition remembers at least the producer that writes");
        Self { limits, by_id: HashMap::new(), by_use: BTreeSet::new(), hole_to: Offset::ZERO }
    }

    /// How many producers are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether no producer is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Decides about a batch that is to be appended next. Changes nothing.
    ///
    /// # Errors
    /// [`SequenceError`] when it must not be appended.
    pub fn check(&self, header: &BatchHeader) -> Result<Verdict, SequenceError> {
        let Some(producer) = header.producer() else { return Ok(Verdict::Append) };
        let Some(known) = self.by_id.get(&producer.id) else { return Ok(Verdict::Append) };
        if header.attributes.is_control() {
            return check_control(known, producer);
        }
        known.check(producer, last_sequence(header))
    }

    /// Remembers a batch that stands in the log at `base_offset`, whatever its sequence: the log is the truth. `now_ms`
    /// is the time of its append; a clock that went back counts as standing still.
    ///
    /// An empty batch of no producer is a hole: see [`Producers::record_hole`].
    pub fn record(&mut self, header: &BatchHeader, base_offset: Offset, now_ms: i64) {
        let batch = window_batch(header, base_offset);
        let Some(producer) = header.producer() else {
            if header.record_count == 0 {
                self.record_hole(batch.last_offset.next());
            }
            return;
        };
        let known = self.by_id.entry(producer.id).or_insert_with(|| Producer::new(producer.epoch));
        self.by_use.remove(&(known.last_used_at, producer.id));
        known.last_used_ms = known.last_used_ms.max(now_ms);
        known.last_used_at = batch.last_offset;
        self.by_use.insert((known.last_used_at, producer.id));
        if header.attributes.is_control() {
            known.record_control(producer.epoch);
        } else {
            known.record(producer, batch);
        }
        self.evict();
    }

    /// What stood in the log between the batch that was recorded last and offset `to` is not told any more. Any
    /// producer may have gone on there.
    pub fn record_hole(&mut self, to: Offset) {
        // Of those that were not used since the hole before, it is known already.
        for (_, id) in self.by_use.range((self.hole_to, i64::MIN)..) {
            if let Some(producer) = self.by_id.get_mut(id) {
                producer.known_sequences = 0;
            }
        }
        self.hole_to = to;
    }

    /// The batches that may be sent again, by producer and base offset. Compaction leaves at least their headers, so
    /// that a log that is read back knows them.
    #[must_use]
    pub fn remembered_batches(&self) -> HashSet<(i64, Offset)> {
        let batches = |(&id, producer): (&i64, &Producer)| {
            producer.window.iter().map(|batch| (id, batch.base_offset)).collect::<SmallVec<[_; WINDOW_BATCHES]>>()
        };
        self.by_id.iter().flat_map(batches).collect()
    }

    /// Forgets the producers that were last used longer ago than `expiry_ms`, and returns how many. None before those
    /// whose last batch stands earlier in the log: where a clock went back, they wait for them.
    pub fn expire(&mut self, now_ms: i64) -> usize {
        let oldest_kept_ms = now_ms.saturating_sub(self.limits.expiry_ms);
        let before = self.len();
        while let Some(&(_, id)) = self.by_use.first() {
            if self.by_id[&id].last_used_ms >= oldest_kept_ms {
                break;
            }
            self.forget_first();
        }
        before - self.len()
    }

    /// Forgets all producers, as before they are read again from a log that was cut.
    pub fn clear(&mut self) {
        self.by_id.clear();
        self.by_use.clear();
        self.hole_to = Offset::ZERO;
    }

    fn evict(&mut self) {
        while self.by_id.len() > self.limits.producers_max {
            self.forget_first();
        }
        debug_assert_eq!(self.by_id.len(), self.by_use.len());
    }

    fn forget_first(&mut self) {
        let (_, id) = self.by_use.pop_first().expect("every producer has its last use in the set");
        self.by_id.remove(&id);
    }
}

impl PartialEq for Producers {
    /// Compares what is remembered, not the limits.
    fn eq(&self, other: &Self) -> bool {
        self.by_id == other.by_id
    }
}

/// Control batches carry no sequence: only the epoch counts.
const fn check_control(known: &Producer, producer: BatchProducer) -> Result<Verdict, SequenceError> {
    if producer.epoch < known.epoch {
        let BatchProducer { id: producer_id, epoch: found, .. } = producer;
        return Err(SequenceError::OldEpoch { producer_id, current: known.epoch, found });
    }
    Ok(Verdict::Append)
}

fn window_batch(header: &BatchHeader, base_offset: Offset) -> WindowBatch {
    let span = u64::from(header.last_offset_delta.unsigned_abs());
    WindowBatch {
        first_sequence: header.base_sequence,
        last_sequence: last_sequence(header),
        base_offset,
        last_offset: base_offset.checked_add(span).expect("the batch stands in the log, which ends before 2^63"),
        timestamp_ms: header.max_timestamp_ms,
    }
}

/// The sequence of a batch's last record. Counts offsets, not records: compaction leaves gaps, but keeps the sequences.
fn last_sequence(header: &BatchHeader) -> i32 {
    sequence_after(header.base_sequence, header.last_offset_delta.unsigned_abs())
}

fn sequence_after(sequence: i32, count: u32) -> i32 {
    (sequence.cast_unsigned().wrapping_add(count) & SEQUENCE_MASK).cast_signed()
}

/// How many steps lead from one sequence up to the other.
fn sequence_distance(from: i32, to: i32) -> u32 {
    to.cast_unsigned().wrapping_sub(from.cast_unsigned()) & SEQUENCE_MASK
}
