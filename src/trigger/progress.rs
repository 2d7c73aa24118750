//! How far a trigger has come in one partition: what is written down, and read back after a restart.
//!
//! Everything below the reading point is finished, except what lies in a hole (a range of offsets that were read and
//! wait for their outcome) and what belongs to a blocked key (everything of that key from its first unfinished offset
//! on). The committed offset is the first of those, or the reading point when there is none; it can only rise (T1: an
//! offset is committed when its record succeeded, was dead-lettered, dropped by policy or filtered out, never before).
//! Records that the filter turns away may lie inside a hole: they are turned away again when it is read again.
//!
//! A window that was tried stands here with its attempts, so that a restart makes the same window again and goes on
//! counting: its records are those in its range that lie in a hole and, where it has a key, that have this key. A
//! record that may be of several belongs to the innermost of its key, or else to the innermost without a key: the last
//! in the list. Others may come to lie between them: another filter lets them in, or what was finished there takes too
//! many bytes to be told apart. So it says how many records it has, a fingerprint of them, and whether another filter is
//! in force than when it was made; and beside the windows stands under which filter all this was written, for whoever
//! reads it under another one. Where what is found cannot be what a window had, the attempts are nobody's, and all of it
//! is delivered as what was not tried. Under its own filter some may be gone, which the log has removed.
//!
//! # Bytes
//! The same bytes stand in the state journal and, on a cluster, as the metadata of a commit (in base64 they stay below
//! its 4,096 characters). Numbers are LEB128 varints of at most ten bytes, in their shortest form; times are
//! milliseconds since 1970.
//!
//! ```text
//! version       u8      7 (1 to 6 were never released)
//! committed     varint  offset
//! reading point varint  distance from committed
//! holes         varint  how many stand before the map; then for each, ascending:
//!   gap         varint    offsets since the end of the hole before, for the first since committed
//!   length      varint    offsets, at least 1
//! map           varint  how many bytes; unless 0:
//!   gap         varint    offsets since the end of the hole before
//!   bits        u8 …      lowest first, one an offset: whether it lies in a hole; the first and one of the last byte are set
//! more holes    varint  how many stand behind the map; then for each as above
//! windows       varint  how many were tried and are not finished; 0 ends this part
//! filter        u32     little-endian, of the filter that was in force
//! base          varint  the earliest first attempt of these windows
//!   first       varint    distance from the first offset of the window before, for the first from committed
//!   length      varint    offsets of its range, at least 1
//!   records     varint    how many it has, 1 to 10,000
//!   flags       u8        1: it has a key; 2: an attempt has begun and has no outcome; 4: its age stands still; 8: it is
//!                         given up; from bit 4 on how the last attempt failed: 0 not yet, 1 failed, 2 rejected,
//!                         3 throttled, 4 unavailable, 5 broken code, 6 crashed, 7 interrupted; bit 7: another filter
//!                         was in force when it was made
//!   key         u64       little-endian hash, with flag 1
//!   fingerprint u16       little-endian, of its offsets
//!   attempts    varint    spent
//!   interrupted varint    attempts that the broker did not survive
//!   first       varint    the first attempt, since base
//!   last        varint    the last attempt, since the first
//!   next        varint    the next attempt, since the last, plus 1; 0 = none is planned
//!   excluded    varint    milliseconds that do not count towards max_age
//!   suspended   varint    since when its age stands still, since the first attempt, with flag 4
//!   reason      u8        why it is given up: 0 attempts, 1 age, 2 rejected, 3 skipped; 4 more: its dead letters are
//!                         begun on a cluster; 8 more: and the records are not those any more; with flag 8
//!   producer    varint    who writes the letters, where they are begun
//!   letters     varint    how many records they are for, 1 to 10,000, where they are begun
//! blocked keys  varint  how many; then for each, by hash ascending:
//!   hash        u64     little-endian
//!   first       varint    distance of its first unfinished offset from committed
//! ```
//! Where many short holes stand close together, as when neighbours finish in any order, a bit for each offset takes
//! less than two numbers for each hole. Which holes the map takes is not free: those for which it saves the most.
//!
//! A blocked key is one marker whatever the number of its records: everything of that key from its first offset is read
//! again later.

use tripline_storage::Offset;

use super::attempt::{AttemptState, ExhaustedReason, LastError};
use super::window::WINDOW_COUNT_MAX;
use crate::function::ErrorClass;

mod codec;

pub use codec::{DecodeError, ENCODED_BYTES_MAX, TooLarge};

pub(super) use codec::{LETTERS_BYTES, varint_bytes};

/// A range of offsets, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first offset.
    pub first: Offset,
    /// The offset after its last.
    pub next: Offset,
}

/// A window that was tried and is not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TriedWindow {
    /// From its first record to behind its last.
    pub span: Span,
    /// How many are its own, 1 to [`WINDOW_COUNT_MAX`]. Of some the range may not be left any more.
    pub records: u32,
    /// The [`fingerprint`] of their offsets.
    pub fingerprint: u16,
    /// Another filter is in force than when it was made.
    pub is_foreign: bool,
    /// The hash of the one key of its records, where it has one.
    pub key: Option<u64>,
    /// Its attempts so far.
    pub attempts: TriedAttempts,
    /// The end of its attempts, if they have come to one: nothing of it is invoked again.
    pub given_up: Option<GivenUp>,
}

/// The end of a window's attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// Why they have come to it.
    pub reason: ExhaustedReason,
    /// Its dead letters, where somebody has begun to write them on a cluster. Without one a verdict in the journal speaks
    /// of them.
    pub letters: Option<Letters>,
}

/// Dead letters on a cluster. Their producer numbers them by their records: whoever takes over asks the cluster how far
/// it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Letters {
    /// Who writes them; not negative.
    pub producer_id: i64,
    /// How many records they are for, 1 to [`WINDOW_COUNT_MAX`].
    pub records: u32,
    /// Whether those are the records that the window has. Else nobody knows which is which, nor so the number of any.
    pub is_whole: bool,
}

/// The attempts of a window, as far as they are written down. Times are milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TriedAttempts {
    /// Attempts spent.
    pub attempts: u32,
    /// Attempts that the broker did not survive.
    pub interrupted: u32,
    /// An attempt has begun and has no outcome.
    pub running: bool,
    /// When the first attempt began.
    pub first_attempt_ms: u64,
    /// When the last attempt began; not before the first.
    pub last_attempt_ms: u64,
    /// When the next one may begin; not before the last.
    pub next_attempt_ms: Option<u64>,
    /// Time that does not count towards `max_age`.
    pub excluded_ms: u64,
    /// Since when time does not count, while it does not; not before the first attempt.
    pub excluded_since_ms: Option<u64>,
    /// How the last attempt that has an outcome failed.
    pub failed: Option<ErrorClass>,
}

/// A key whose records wait, from an offset on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockedKey {
    /// The hash of the key.
    pub hash: u64,
    /// Its first unfinished offset.
    pub first: Offset,
}

/// How far a trigger has come in one partition. A snapshot: [`super::lane`] makes a new one for each change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    reading_point: Offset,
    holes: Vec<Span>,
    windows: Vec<TriedWindow>,
    /// 0 without windows.
    filter: u32,
    blocked_keys: Vec<BlockedKey>,
}

/// The sum of the lowest 16 bits of each offset as the finalizer of SplitMix64 mixes it: in whatever order, the same for
/// the same offsets, and for others rarely.
#[must_use]
pub fn fingerprint(offsets: impl IntoIterator<Item = Offset>) -> u16 {
    let mixed = |offset: Offset| {
        let mut bits = offset.get().unsigned_abs().wrapping_add(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ bits >> 31) as u16
    };
    offsets.into_iter().fold(0, |sum: u16, offset| sum.wrapping_add(mixed(offset)))
}

impl Span {
    /// The range `first..next`; `None` when it is empty.
    #[must_use]
    pub fn new(first: Offset, next: Offset) -> Option<Self> {
        (first < next).then_some(Self { first, next })
    }

    /// How many offsets it spans, at least 1.
    #[must_use]
    pub fn offsets(&self) -> u64 {
        self.next.since(self.first)
    }

    /// Whether `offset` lies in it.
    #[must_use]
    pub fn contains(&self, offset: Offset) -> bool {
        (self.first..self.next).contains(&offset)
    }
}

impl Progress {
    /// Nothing read yet; reading begins at `offset`.
    #[must_use]
    pub const fn start(offset: Offset) -> Self {
        Self { reading_point: offset, holes: Vec::new(), windows: Vec::new(), filter: 0, blocked_keys: Vec::new() }
    }

    /// Progress with these parts. Holes that touch are one.
    ///
    /// # Panics
    /// When they contradict each other: holes ascend below the reading point, windows lie inside what is unfinished and
    /// ascend, keys ascend by hash and begin below the reading point.
    #[must_use]
    pub fn new(
        reading_point: Offset,
        holes: Vec<Span>,
        windows: Vec<TriedWindow>,
        blocked_keys: Vec<BlockedKey>,
    ) -> Self {
        let windows = windows.into_iter().map(|window| TriedWindow { attempts: window.attempts.normal(), ..window });
        let progress =
            Self { reading_point, holes: joined(holes), windows: windows.collect(), filter: 0, blocked_keys };
        assert!(progress.is_consistent(), "the parts of progress agree: {progress:?}");
        progress
    }

    fn is_consistent(&self) -> bool {
        let committed = self.committed();
        let inside = |span: &Span| span.first >= committed && span.first < span.next && span.next <= self.reading_point;
        self.holes.iter().all(inside)
            && self.holes.windows(2).all(|pair| pair[0].next < pair[1].first)
            && self.windows.iter().all(|window| inside(&window.span) && window.is_consistent())
            && self.windows.windows(2).all(|pair| pair[0].span.first <= pair[1].span.first)
            && self.blocked_keys.iter().all(|key| key.first <= self.reading_point)
            && self.blocked_keys.windows(2).all(|pair| pair[0].hash < pair[1].hash)
    }

    /// Everything below is finished; this is what Kafka tools see.
    #[must_use]
    pub fn committed(&self) -> Offset {
        let key = self.blocked_keys.iter().map(|key| key.first).min();
        let hole = self.holes.first().map(|hole| hole.first);
        [hole, key].into_iter().flatten().min().map_or(self.reading_point, |first| first.min(self.reading_point))
    }

    /// The next offset to read for the first time.
    #[must_use]
    pub const fn reading_point(&self) -> Offset {
        self.reading_point
    }

    /// Ranges that wait for their outcome, ascending.
    #[must_use]
    pub fn holes(&self) -> &[Span] {
        &self.holes
    }

    /// Windows that were tried and are not finished, by first offset.
    #[must_use]
    pub fn windows(&self) -> &[TriedWindow] {
        &self.windows
    }

    /// The same, written under the filter with this number: [`LaneSpec::filter`](super::lane::LaneSpec::filter).
    #[must_use]
    pub fn under(self, filter: u32) -> Self {
        let filter = if self.windows.is_empty() { 0 } else { filter };
        Self { filter, ..self }
    }

    /// Under which filter its windows were written; 0 where there is none of them.
    #[must_use]
    pub const fn filter(&self) -> u32 {
        self.filter
    }

    /// Keys that wait, by hash.
    #[must_use]
    pub fn blocked_keys(&self) -> &[BlockedKey] {
        &self.blocked_keys
    }
}

/// The same holes, those that touch made one.
fn joined(mut holes: Vec<Span>) -> Vec<Span> {
    holes.dedup_by(|hole, before| {
        let touches = before.next == hole.first;
        if touches {
            before.next = hole.next;
        }
        touches
    });
    holes
}

impl TriedWindow {
    /// What is known of its dead letters.
    #[must_use]
    pub fn letters(&self) -> Option<Letters> {
        self.given_up.and_then(|given_up| given_up.letters)
    }

    fn is_consistent(&self) -> bool {
        let counts = 1..=WINDOW_COUNT_MAX;
        let are_letters = |letters: Letters| letters.producer_id >= 0 && counts.contains(&letters.records);
        counts.contains(&self.records) && self.letters().is_none_or(are_letters)
    }
}

impl TriedAttempts {
    /// What is kept of a window's attempts; `None` before the first. Times before 1970 are kept as 1970.
    #[must_use]
    pub fn of(state: &AttemptState) -> Option<Self> {
        let kept = |time_ms: i64| u64::try_from(time_ms).unwrap_or(0);
        let first_attempt_ms = state.first_attempt_ms?;
        let tried = Self {
            attempts: state.attempts,
            interrupted: state.interrupted,
            running: state.running,
            first_attempt_ms: kept(first_attempt_ms),
            last_attempt_ms: kept(state.last_attempt_ms.unwrap_or(first_attempt_ms)),
            next_attempt_ms: state.next_attempt_ms.map(kept),
            excluded_ms: state.excluded_ms,
            excluded_since_ms: state.excluded_since_ms.map(kept),
            failed: state.last_error.as_ref().map(|error| error.class),
        };
        Some(tried.normal())
    }

    /// The state that goes on from what was kept; of the last error that is its class.
    #[must_use]
    pub fn to_state(self) -> AttemptState {
        let time = |time_ms: u64| i64::try_from(time_ms).unwrap_or(i64::MAX);
        AttemptState {
            attempts: self.attempts,
            interrupted: self.interrupted,
            running: self.running,
            first_attempt_ms: Some(time(self.first_attempt_ms)),
            last_attempt_ms: Some(time(self.last_attempt_ms)),
            next_attempt_ms: self.next_attempt_ms.map(time),
            excluded_ms: self.excluded_ms,
            excluded_since_ms: self.excluded_since_ms.map(time),
            last_error: self.failed.map(LastError::before_restart),
            ..AttemptState::default()
        }
    }

    /// Nothing happens before the first attempt, and no next one before the last.
    fn normal(self) -> Self {
        let not_before = |time_ms: u64, earliest_ms: u64| time_ms.min(u64::MAX - 1).max(earliest_ms);
        let last_attempt_ms = not_before(self.last_attempt_ms, self.first_attempt_ms);
        Self {
            last_attempt_ms,
            next_attempt_ms: self.next_attempt_ms.map(|time_ms| not_before(time_ms, last_attempt_ms)),
            excluded_since_ms: self.excluded_since_ms.map(|time_ms| not_before(time_ms, self.first_attempt_ms)),
            ..self
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::codec::VERSION;
    use super::*;
    use crate::function::InvocationError;
    use crate::trigger::attempt::class_number;

    fn offset(value: u64) -> Offset {
        Offset::ZERO.checked_add(value).unwrap()
    }

    #[test]
    fn the_committed_offset_is_the_first_that_is_not_finished() {
        let hole = |first, next| Span::new(offset(first), offset(next)).unwrap();
        let progress = |holes: &[Span], keys: &[(u64, u64)]| {
            let keys = keys.iter().map(|&(hash, first)| BlockedKey { hash, first: offset(first) }).collect();
            Progress::new(offset(30), holes.to_vec(), Vec::new(), keys).committed().get()
        };
        assert_eq!(Progress::start(offset(10)).committed().get(), 10);
        assert_eq!(progress(&[], &[]), 30);
        assert_eq!(progress(&[hole(12, 15), hole(20, 30)], &[]), 12);
        assert_eq!(progress(&[hole(12, 15)], &[(7, 13), (9, 4)]), 4);
        assert_eq!(progress(&[], &[(7, 30)]), 30);
    }

    #[test]
    fn attempts_go_on_from_what_was_kept() {
        let state = AttemptState {
            attempts: 3,
            interrupted: 1,
            running: true,
            first_attempt_ms: Some(1000),
            last_attempt_ms: Some(4000),
            next_attempt_ms: Some(5000),
            excluded_ms: 7,
            excluded_since_ms: Some(2000),
            ..AttemptState::default()
        };
        assert_eq!(TriedAttempts::of(&state).map(TriedAttempts::to_state), Some(state.clone()));
        let error = InvocationError::new(ErrorClass::Crashed, "signal-9", "killed");
        let failed = AttemptState { last_error: Some(LastError::of(&error)), ..state };
        let kept = TriedAttempts::of(&failed).map(TriedAttempts::to_state).and_then(|state| state.last_error);
        assert_eq!(kept, Some(LastError::before_restart(ErrorClass::Crashed)));
        assert_eq!(TriedAttempts::of(&AttemptState::default()), None);
        let before_1970 = AttemptState { first_attempt_ms: Some(-5), ..AttemptState::default() };
        assert_eq!(TriedAttempts::of(&before_1970).map(|tried| tried.first_attempt_ms), Some(0));
    }

    #[test]
    #[should_panic(expected = "the parts of progress agree")]
    fn a_hole_beyond_the_reading_point_is_a_mistake_of_ours() {
        let hole = Span::new(offset(9), offset(12)).unwrap();
        let _ = Progress::new(offset(10), vec![hole], Vec::new(), Vec::new());
    }

    prop_compose! {
        fn attempts()(
            counts in any::<(u32, u8)>(), running: bool, first in 0..1u64 << 50, last: u32, next: Option<u32>, excluded_ms: u64,
            since: Option<u16>, failed: u8,
        ) -> TriedAttempts {
            let last_attempt_ms = first + u64::from(last);
            TriedAttempts {
                attempts: counts.0, interrupted: u32::from(counts.1), running, first_attempt_ms: first, last_attempt_ms,
                next_attempt_ms: next.map(|wait| last_attempt_ms + u64::from(wait)), excluded_ms,
                excluded_since_ms: since.map(|wait| first + u64::from(wait)), failed: class_number::class(failed % 8),
            }
        }
    }

    prop_compose! {
        /// Any progress that could be.
        pub(crate) fn any_progress()(
            start in 0..1u64 << 60,
            holes in proptest::collection::vec((0u64..5, 1u64..300), 0..20),
            tried in proptest::collection::vec((any::<prop::sample::Index>(), any::<Option<u64>>(), attempts(), any::<(u32, u16, bool)>()), 0..10),
            keys in proptest::collection::btree_map(any::<u64>(), any::<u16>(), 0..10),
            beyond in 0u64..1000,
            filter: u32,
        ) -> Progress {
            let mut at = start;
            let mut spans = Vec::new();
            for (gap, length) in holes {
                let first = at + gap + u64::from(!spans.is_empty());
                at = first + length;
                spans.push(Span::new(offset(first), offset(at)).unwrap());
            }
            let reading_point = at + beyond;
            let mut windows: Vec<TriedWindow> = Vec::new();
            for (index, key, attempts, (records, fingerprint, is_foreign)) in tried.into_iter().filter(|_| !spans.is_empty()) {
                let span = *index.get(&spans);
                let reason = ExhaustedReason::ALL.get(key.unwrap_or(9) as usize % 7).copied();
                let letters = (records % 3 == 0).then(|| {
                    let records = 1 + records / 3 % WINDOW_COUNT_MAX;
                    Letters { producer_id: i64::from(attempts.attempts) << 20, records, is_whole: is_foreign }
                });
                let given_up = reason.map(|reason| GivenUp { reason, letters });
                let records = 1 + records % WINDOW_COUNT_MAX;
                windows.push(TriedWindow { span, records, fingerprint, is_foreign, key, attempts, given_up });
            }
            windows.sort_by_key(|window| window.span.first);
            windows.dedup_by_key(|window| window.span.first);
            let keys = keys.into_iter().map(|(hash, distance)| {
                BlockedKey { hash, first: offset((start + u64::from(distance)).min(reading_point)) }
            });
            let keys = keys.filter(|key| spans.first().is_none_or(|hole| key.first >= hole.first)).collect();
            Progress::new(offset(reading_point), spans, windows, keys).under(filter)
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(progress in any_progress()) {
            if let Ok(bytes) = progress.encode() {
                prop_assert_eq!(Progress::decode(&bytes), Ok(progress));
            }
        }

        #[test]
        fn any_bytes_decode_or_are_refused_and_what_decodes_encodes_to_the_same(
            bytes in proptest::collection::vec(any::<u8>(), 0..80), version_is_right: bool,
        ) {
            let mut bytes = bytes;
            if version_is_right && !bytes.is_empty() {
                bytes[0] = VERSION;
            }
            if let Ok(progress) = Progress::decode(&bytes) {
                prop_assert_eq!(progress.encode().unwrap(), bytes);
            }
        }
    }
}
