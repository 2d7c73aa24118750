//! How far a trigger has come in one partition.
//!
//! Everything below the reading point is finished, except the holes: ranges of offsets that were read and wait for their outcome. The
//! committed offset is where the first hole begins, or the reading point when there is none, so it can only rise (T1: an offset is
//! committed when its record succeeded, was dead-lettered, dropped by policy or filtered out, never before).
//!
//! # Bytes
//! The same bytes stand in the state journal and, on a cluster, as the metadata of a commit (in base64 they stay below its 4,096
//! characters). Numbers are LEB128 varints of at most ten bytes, in their shortest form; times are milliseconds since 1970.
//!
//! ```text
//! version       u8      1
//! committed     varint  offset
//! reading point varint  distance from committed
//! holes         varint  how many; then for each, ascending:
//!   gap         varint    finished offsets since the end of the hole before (the first begins at committed: always 0)
//!   length      varint    offsets, at least 1
//!   flags       u8        0: never tried; 1: these numbers follow
//!     attempts      varint  spent
//!     interrupted   varint  attempts that the broker did not survive
//!     first attempt varint  time
//!     next attempt  varint  time since the first attempt, plus 1; 0 = none is planned
//!     excluded      varint  milliseconds that do not count towards max_age
//! blocked keys  varint  how many; then for each, by hash ascending:
//!   hash        u64     little-endian
//!   first       varint    distance of its first unfinished offset from committed
//! ```
//! A blocked key is one marker whatever the number of its records: everything of that key from its first offset is read again later.

use std::collections::BTreeMap;

use tripline_storage::Offset;

use super::attempt::AttemptState;

mod codec;

pub use codec::{DecodeError, ENCODED_BYTES_MAX, TooLarge};

/// Attempts of a hole, as far as they are journalled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoleAttempts {
    /// Attempts spent.
    pub attempts: u32,
    /// Attempts that the broker did not survive.
    pub interrupted: u32,
    /// When the first attempt began, in milliseconds since 1970, not before 1970.
    pub first_attempt_ms: Option<u64>,
    /// When the next one may begin; only with a first attempt, and not before it.
    pub next_attempt_ms: Option<u64>,
    /// Time that does not count towards `max_age`.
    pub excluded_ms: u64,
}

/// A range of offsets that were read and are not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// Its first offset.
    pub first: Offset,
    /// The offset after its last.
    pub next: Offset,
    /// Its attempts so far.
    pub attempts: HoleAttempts,
}

/// Why progress cannot be changed as asked: a mistake of the caller, who then stops the lane instead of committing something untrue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgressError {
    /// The range is empty or upside down.
    #[error("the range {first}..{next} has no offsets")]
    EmptyRange {
        /// Its first offset.
        first: Offset,
        /// The offset after its last.
        next: Offset,
    },
    /// A window begins below what was already read.
    #[error("a window at {first} begins below the reading point {reading_point}")]
    BehindReadingPoint {
        /// Where the window begins.
        first: Offset,
        /// How far was read.
        reading_point: Offset,
    },
    /// The range is not inside one hole.
    #[error("{first}..{next} is not waiting for an outcome")]
    NoSuchHole {
        /// Its first offset.
        first: Offset,
        /// The offset after its last.
        next: Offset,
    },
}

/// How far a trigger has come in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    reading_point: Offset,
    /// By first offset; they do not overlap and lie below the reading point.
    holes: BTreeMap<Offset, (Offset, HoleAttempts)>,
    /// First unfinished offset by key hash.
    blocked_keys: BTreeMap<u64, Offset>,
}

impl Progress {
    /// Nothing read yet; reading begins at `offset`.
    #[must_use]
    pub const fn start(offset: Offset) -> Self {
        Self { reading_point: offset, holes: BTreeMap::new(), blocked_keys: BTreeMap::new() }
    }

    /// Everything below is finished; this is what Kafka tools see.
    #[must_use]
    pub fn committed(&self) -> Offset {
        let hole = self.holes.keys().next().copied();
        let key = self.blocked_keys.values().min().copied();
        [Some(self.reading_point), hole, key].into_iter().flatten().min().unwrap_or(self.reading_point)
    }

    /// The next offset to read.
    #[must_use]
    pub const fn reading_point(&self) -> Offset {
        self.reading_point
    }

    /// Ranges that wait for their outcome, ascending.
    pub fn holes(&self) -> impl Iterator<Item = Hole> + '_ {
        self.holes.iter().map(|(&first, &(next, attempts))| Hole { first, next, attempts })
    }

    /// Keys that are blocked, with their first unfinished offset, by hash.
    pub fn blocked_keys(&self) -> impl Iterator<Item = (u64, Offset)> + '_ {
        self.blocked_keys.iter().map(|(&hash, &first)| (hash, first))
    }

    /// Notes that everything up to `next` was read and needs no outcome (filtered out, expired, a gap in the log). Does nothing when that is
    /// not ahead of the reading point.
    pub fn pass(&mut self, next: Offset) {
        self.reading_point = self.reading_point.max(next);
    }

    /// Notes that a window over `first..next` waits for its outcome; whatever lies between the reading point and `first` needs none.
    ///
    /// # Errors
    /// When the range is empty or begins below the reading point; nothing has changed then.
    pub fn open(&mut self, first: Offset, next: Offset) -> Result<(), ProgressError> {
        check_range(first, next)?;
        if first < self.reading_point {
            return Err(ProgressError::BehindReadingPoint { first, reading_point: self.reading_point });
        }
        self.holes.insert(first, (next, HoleAttempts::default()));
        self.reading_point = next;
        Ok(())
    }

    /// Notes that `first..next`, a hole or a part of one, is finished. What is left of the hole keeps its attempts.
    ///
    /// # Errors
    /// When the range is not inside one hole; nothing has changed then.
    pub fn finish(&mut self, first: Offset, next: Offset) -> Result<(), ProgressError> {
        let (hole_first, hole_next, attempts) = self.hole_around(first, next)?;
        let before = self.committed();
        self.holes.remove(&hole_first);
        if hole_first < first {
            self.holes.insert(hole_first, (first, attempts));
        }
        if next < hole_next {
            self.holes.insert(next, (hole_next, attempts));
        }
        assert!(self.committed() >= before, "T1: the committed offset only rises");
        Ok(())
    }

    /// Notes the attempts of the hole that begins at `first`.
    ///
    /// # Errors
    /// When no hole begins there.
    pub fn set_attempts(&mut self, first: Offset, attempts: HoleAttempts) -> Result<(), ProgressError> {
        let hole = self.holes.get_mut(&first);
        let (_, kept) = hole.ok_or_else(|| ProgressError::NoSuchHole { first, next: first.next() })?;
        *kept = attempts.normal();
        Ok(())
    }

    /// Replaces `first..next` inside a hole by a marker: everything of the key from `first` on waits, and is read again later.
    ///
    /// # Errors
    /// When the range is not inside one hole; nothing has changed then.
    pub fn block_key(&mut self, hash: u64, first: Offset, next: Offset) -> Result<(), ProgressError> {
        self.hole_around(first, next)?;
        let marker = self.blocked_keys.entry(hash).or_insert(first);
        *marker = first.min(*marker);
        self.finish(first, next)
    }

    /// Notes that a blocked key is finished up to `next`, or altogether.
    pub fn unblock_key(&mut self, hash: u64, next: Option<Offset>) {
        match (self.blocked_keys.get_mut(&hash), next) {
            (Some(marker), Some(next)) => *marker = next.max(*marker),
            (Some(_), None) => {
                self.blocked_keys.remove(&hash);
            }
            (None, _) => {}
        }
    }

    fn hole_around(&self, first: Offset, next: Offset) -> Result<(Offset, Offset, HoleAttempts), ProgressError> {
        check_range(first, next)?;
        let hole = self.holes.range(..=first).next_back();
        match hole {
            Some((&hole_first, &(hole_next, attempts))) if next <= hole_next => Ok((hole_first, hole_next, attempts)),
            _ => Err(ProgressError::NoSuchHole { first, next }),
        }
    }
}

impl HoleAttempts {
    /// What is kept of a window's attempts. Times before 1970 are kept as 1970.
    #[must_use]
    pub fn of(state: &AttemptState) -> Self {
        let kept = |time_ms: i64| u64::try_from(time_ms).unwrap_or(0);
        let AttemptState { attempts, interrupted, excluded_ms, .. } = *state;
        let first_attempt_ms = state.first_attempt_ms.map(kept);
        let next_attempt_ms = state.next_attempt_ms.map(kept);
        Self { attempts, interrupted, first_attempt_ms, next_attempt_ms, excluded_ms }.normal()
    }

    /// The state that goes on from what was kept; the last error and a running attempt are not part of it.
    #[must_use]
    pub fn to_state(self) -> AttemptState {
        let time = |time_ms: u64| i64::try_from(time_ms).unwrap_or(i64::MAX);
        AttemptState {
            attempts: self.attempts,
            interrupted: self.interrupted,
            first_attempt_ms: self.first_attempt_ms.map(time),
            next_attempt_ms: self.next_attempt_ms.map(time),
            excluded_ms: self.excluded_ms,
            ..AttemptState::default()
        }
    }

    /// Without a first attempt there is nothing else to keep but the counts, and nothing is planned before it.
    fn normal(self) -> Self {
        match self.first_attempt_ms {
            None => Self { next_attempt_ms: None, excluded_ms: 0, interrupted: 0, attempts: 0, first_attempt_ms: None },
            Some(first_ms) => {
                let next_attempt_ms = self.next_attempt_ms.map(|next_ms| next_ms.min(u64::MAX - 1).max(first_ms));
                Self { next_attempt_ms, ..self }
            }
        }
    }
}

fn check_range(first: Offset, next: Offset) -> Result<(), ProgressError> {
    if next <= first { Err(ProgressError::EmptyRange { first, next }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn offset(value: i64) -> Offset {
        Offset::new(value).unwrap()
    }

    fn ranges(progress: &Progress) -> Vec<(i64, i64)> {
        progress.holes().map(|hole| (hole.first.get(), hole.next.get())).collect()
    }

    #[test]
    fn the_committed_offset_waits_for_the_first_hole() {
        let mut progress = Progress::start(offset(10));
        progress.open(offset(12), offset(15)).unwrap();
        progress.open(offset(15), offset(20)).unwrap();
        assert_eq!((progress.committed().get(), progress.reading_point().get()), (12, 20));
        progress.finish(offset(15), offset(20)).unwrap();
        assert_eq!(progress.committed().get(), 12);
        progress.finish(offset(12), offset(15)).unwrap();
        assert_eq!(progress.committed().get(), 20);
        progress.pass(offset(30));
        progress.pass(offset(5));
        assert_eq!(progress.committed().get(), 30);
    }

    #[test]
    fn a_part_of_a_hole_can_finish_and_the_rest_keeps_its_attempts() {
        let mut progress = Progress::start(Offset::ZERO);
        progress.open(Offset::ZERO, offset(10)).unwrap();
        let attempts = HoleAttempts { attempts: 2, first_attempt_ms: Some(5), ..HoleAttempts::default() };
        progress.set_attempts(Offset::ZERO, attempts).unwrap();
        progress.finish(offset(3), offset(5)).unwrap();
        assert_eq!(ranges(&progress), [(0, 3), (5, 10)]);
        assert!(progress.holes().all(|hole| hole.attempts == attempts));
        progress.finish(Offset::ZERO, offset(3)).unwrap();
        assert_eq!(progress.committed().get(), 5);
    }

    #[test]
    fn what_was_never_read_cannot_finish() {
        let mut progress = Progress::start(offset(5));
        progress.open(offset(5), offset(8)).unwrap();
        let unchanged = progress.clone();
        for (first, next) in [(4, 6), (7, 9), (8, 9), (0, 1)] {
            let (first, next) = (offset(first), offset(next));
            assert_eq!(progress.finish(first, next), Err(ProgressError::NoSuchHole { first, next }));
        }
        let (first, next) = (offset(6), offset(6));
        assert_eq!(progress.finish(first, next), Err(ProgressError::EmptyRange { first, next }));
        let behind = ProgressError::BehindReadingPoint { first: offset(7), reading_point: offset(8) };
        assert_eq!(progress.open(offset(7), offset(9)), Err(behind));
        assert!(progress.set_attempts(offset(6), HoleAttempts::default()).is_err());
        assert_eq!(progress, unchanged);
    }

    #[test]
    fn a_blocked_key_is_one_marker_and_holds_the_committed_offset() {
        let mut progress = Progress::start(Offset::ZERO);
        progress.open(Offset::ZERO, offset(10)).unwrap();
        progress.block_key(99, offset(4), offset(5)).unwrap();
        progress.block_key(99, offset(2), offset(3)).unwrap();
        assert_eq!(progress.blocked_keys().collect::<Vec<_>>(), [(99, offset(2))]);
        for (first, next) in ranges(&progress) {
            progress.finish(offset(first), offset(next)).unwrap();
        }
        assert_eq!(progress.committed().get(), 2);
        progress.unblock_key(99, Some(offset(4)));
        assert_eq!(progress.committed().get(), 4);
        progress.unblock_key(99, None);
        assert_eq!(progress.committed().get(), 10);
        assert!(progress.block_key(99, offset(20), offset(21)).is_err());
    }

    #[test]
    fn attempts_go_on_from_what_was_kept() {
        let state = AttemptState {
            attempts: 3,
            interrupted: 1,
            first_attempt_ms: Some(1000),
            next_attempt_ms: Some(5000),
            excluded_ms: 7,
            ..AttemptState::default()
        };
        assert_eq!(HoleAttempts::of(&state).to_state(), state);
        assert_eq!(HoleAttempts::of(&AttemptState::default()).to_state(), AttemptState::default());
        let before_1970 = AttemptState { first_attempt_ms: Some(-5), ..AttemptState::default() };
        assert_eq!(HoleAttempts::of(&before_1970).first_attempt_ms, Some(0));
    }

    /// Finishes, or tries to, ranges chosen by the numbers; a set of single offsets is the model.
    fn run(steps: &[(u8, u8, u8)]) -> (Progress, BTreeSet<i64>) {
        let mut progress = Progress::start(Offset::ZERO);
        let mut unfinished = BTreeSet::new();
        for &(action, skip, length) in steps {
            let reading = progress.reading_point().get();
            let (skip, length) = (i64::from(skip % 8), i64::from(length % 8) + 1);
            match action % 3 {
                0 => {
                    let first = reading + skip;
                    progress.open(offset(first), offset(first + length)).unwrap();
                    unfinished.extend(first..first + length);
                }
                1 => progress.pass(offset(reading + skip)),
                _ => {
                    let first = reading - skip * 4;
                    let range = first..first + length;
                    let allowed = first >= 0 && range.clone().all(|offset| unfinished.contains(&offset));
                    let done = first >= 0 && progress.finish(offset(first), offset(range.end)).is_ok();
                    assert!(!done || allowed, "only what waits can finish");
                    if done {
                        unfinished.retain(|offset| !range.contains(offset));
                    }
                }
            }
        }
        (progress, unfinished)
    }

    proptest! {
        #[test]
        fn progress_agrees_with_a_set_of_unfinished_offsets(steps in proptest::collection::vec(any::<(u8, u8, u8)>(), 0..60)) {
            let mut committed = Offset::ZERO;
            for length in 0..=steps.len() {
                let (progress, unfinished) = run(&steps[..length]);
                let expected = unfinished.first().copied().unwrap_or_else(|| progress.reading_point().get());
                prop_assert_eq!(progress.committed().get(), expected);
                prop_assert!(progress.committed() >= committed, "it only rises");
                committed = progress.committed();
                let held: BTreeSet<i64> = ranges(&progress).into_iter().flat_map(|(first, next)| first..next).collect();
                prop_assert_eq!(held, unfinished);
            }
        }

        #[test]
        fn what_is_encoded_decodes_to_the_same(
            steps in proptest::collection::vec(any::<(u8, u8, u8)>(), 0..60),
            attempts: (u32, u32, Option<u64>, Option<u64>, u64), keys in proptest::collection::btree_map(any::<u64>(), any::<u8>(), 0..5),
        ) {
            let (mut progress, _) = run(&steps);
            let holes: Vec<Hole> = progress.holes().collect();
            for hole in &holes {
                let (attempts, interrupted, first_attempt_ms, next_attempt_ms, excluded_ms) = attempts;
                let attempts = HoleAttempts { attempts, interrupted, first_attempt_ms, next_attempt_ms, excluded_ms };
                progress.set_attempts(hole.first, attempts).unwrap();
            }
            if let Some(hole) = holes.last() {
                for hash in keys.keys() {
                    progress.blocked_keys.insert(*hash, hole.first);
                }
            }
            if let Ok(bytes) = progress.encode() {
                prop_assert_eq!(Progress::decode(&bytes), Ok(progress));
            }
        }

        #[test]
        fn any_bytes_decode_or_are_refused_and_what_decodes_encodes_to_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..80), version_is_right: bool) {
            let mut bytes = bytes;
            if version_is_right && !bytes.is_empty() {
                bytes[0] = 1;
            }
            if let Ok(progress) = Progress::decode(&bytes) {
                prop_assert_eq!(progress.encode().unwrap(), bytes);
            }
        }
    }
}
