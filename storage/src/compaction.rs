//! What compaction decides: whether a log is due, how far it goes, which records stay. Pure: facts in, decisions out.
//!
//! Of the records with one key only the newest has to stay. A *dirty* part of the log, behind what was compacted
//! before, is read for its keys; then everything from the log's start to the end of that part is written again without
//! the records that have a newer one in there. A tombstone, a record without a value, stays longer: readers that have
//! seen what it deletes must find it. When it is first compacted, its batch gets a delete horizon (in Kafka's place,
//! the base timestamp, so that it follows the records through every later compaction and any tool can see it); from
//! then on all that it deletes is gone, and after the horizon it may go itself.
//!
//! Records without a key replace nothing and are replaced by nothing: they stay. A compacted topic takes none, but one
//! that was not always compacted may have some.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

use crate::cleaned::Cleaned;
use crate::config::CompactionConfig;
use crate::limits::MERGED_SEGMENTS_MAX;
use crate::offset::Offset;
use crate::retention::is_older;

/// What compaction looks at in a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFill {
    /// First offset.
    pub base: Offset,
    /// One after its last offset.
    pub next: Offset,
    /// Length in bytes.
    pub len_bytes: u64,
    /// When its first batch was appended, ms since 1970, broker time.
    pub first_append_ms: i64,
    /// When its last batch was appended, ms since 1970, broker time.
    pub last_append_ms: i64,
}

/// Why a log is compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Enough of it was never compacted.
    Dirty,
    /// Something of it was not compacted for too long.
    Lag,
    /// Tombstones have been there for long enough.
    Tombstones,
}

/// How many of the `sealed` segments, oldest first, take part: those that were appended to long enough ago.
///
/// Without a clock that is believed, only a lag of zero is known to be over.
#[must_use]
pub fn settled(sealed: &[SegmentFill], config: &CompactionConfig, now_ms: Option<i64>) -> usize {
    let is_settled = |segment: &&SegmentFill| match now_ms {
        Some(now_ms) => is_older(segment.last_append_ms, now_ms, config.lag_min) || config.lag_min.is_zero(),
        None => config.lag_min.is_zero(),
    };
    sealed.iter().take_while(is_settled).count()
}

/// Whether the log of the settled segments is due.
pub(crate) fn due(
    settled: &[SegmentFill],
    cleaned: &Cleaned,
    config: &CompactionConfig,
    now_ms: Option<i64>,
) -> Option<Due> {
    let first_dirty = settled.partition_point(|segment| segment.next <= cleaned.to);
    let (clean, dirty) = settled.split_at(first_dirty);
    let bytes = |segments: &[SegmentFill]| segments.iter().map(|segment| u128::from(segment.len_bytes)).sum::<u128>();
    let (clean_bytes, dirty_bytes) = (bytes(clean), bytes(dirty));
    let threshold = (clean_bytes + dirty_bytes) * u128::from(config.dirty_millionths_min);
    if dirty_bytes > 0 && dirty_bytes * u128::from(CompactionConfig::MILLIONTHS) >= threshold {
        return Some(Due::Dirty);
    }
    let now_ms = now_ms?;
    let waits =
        dirty.first().zip(config.lag_max).is_some_and(|(first, age)| is_older(first.first_append_ms, now_ms, age));
    if waits {
        return Some(Due::Lag);
    }
    (!settled.is_empty() && cleaned.next_horizon_ms <= now_ms).then_some(Due::Tombstones)
}

/// How many of the first segments become one: so that what is left of many is not kept in as many files, of which there
/// would be more for ever. At least one; as many as have no more than `segment_bytes` before they are compacted, and
/// offsets that an index can count; and no more than may be open together.
#[must_use]
pub fn merged(segments: &[SegmentFill], segment_bytes: u64) -> usize {
    let Some(first) = segments.first() else { return 0 };
    let (mut total_bytes, mut next) = (0, first.base);
    let fits = |segment: &&SegmentFill| {
        total_bytes += segment.len_bytes;
        // Offsets that were lost with the end of a segment stay lost: nothing is written in their place.
        let adjoins = segment.base == next;
        next = segment.next;
        adjoins && total_bytes <= segment_bytes && segment.next.since(first.base) <= u64::from(u32::MAX)
    };
    segments.iter().take_while(fits).take(MERGED_SEGMENTS_MAX).count().max(1)
}

/// The newest offset of each key of the dirty part, in bounded memory.
///
/// Keys are told apart by 128 bits: two SipHashes whose secrets are new for every compaction. So nobody can make two
/// keys that are taken for one, and by chance that does not happen.
#[derive(Debug)]
pub struct KeyMap {
    secrets: [RandomState; 2],
    newest: HashMap<[u64; 2], Offset, BuildHasherDefault<AsHashed>>,
    keys_max: usize,
}

/// What one key costs in the table: the hash, the offset and a byte of the table's own.
const KEY_BYTES: usize = size_of::<([u64; 2], Offset)>() + 1;

impl KeyMap {
    /// An empty map that takes at most `limit_bytes`, and no more than `keys` keys need.
    #[must_use]
    pub fn new(limit_bytes: usize, keys: u64) -> Self {
        // A table has a power of two of places and fills seven of eight.
        let places = (limit_bytes / KEY_BYTES + 1).next_power_of_two() / 2;
        let keys_max = (places / 8 * 7).max(1);
        let expected = usize::try_from(keys).unwrap_or(usize::MAX).min(keys_max);
        let newest = HashMap::with_capacity_and_hasher(expected, BuildHasherDefault::default());
        Self { secrets: [RandomState::new(), RandomState::new()], newest, keys_max }
    }

    /// Remembers that `key` was appended at `offset`; offsets only grow. Answers whether there was room.
    #[must_use]
    pub fn note(&mut self, key: &[u8], offset: Offset) -> bool {
        let hash = self.hash(key);
        if self.newest.len() == self.keys_max && !self.newest.contains_key(&hash) {
            return false;
        }
        self.newest.insert(hash, offset);
        true
    }

    /// Whether `key` was appended behind `offset`.
    #[must_use]
    pub fn has_newer(&self, key: &[u8], offset: Offset) -> bool {
        !self.newest.is_empty() && self.newest.get(&self.hash(key)).is_some_and(|&newest| newest > offset)
    }

    /// How many keys it knows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.newest.len()
    }

    /// Whether it knows none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.newest.is_empty()
    }

    fn hash(&self, key: &[u8]) -> [u64; 2] {
        [self.secrets[0].hash_one(key), self.secrets[1].hash_one(key)]
    }
}

/// The keys of the table are hashes already.
#[derive(Debug, Default)]
pub struct AsHashed(u64);

impl Hasher for AsHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_ne_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 ^= word;
    }

    fn write_usize(&mut self, _len: usize) {}
}

/// A record, as far as its fate depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its offset.
    pub offset: Offset,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Whether it has no value.
    pub is_tombstone: bool,
}

/// What decides about the records of one batch.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The keys of the dirty part.
    pub keys: &'a KeyMap,
    /// Nothing below is needed.
    pub log_start: Offset,
    /// Whether the batch's delete horizon has passed.
    pub tombstones_go: bool,
}

impl Rules<'_> {
    /// Whether the record stays.
    #[must_use]
    pub fn keeps(&self, record: &Candidate<'_>) -> bool {
        let Some(key) = record.key else { return record.offset >= self.log_start };
        let expired = record.is_tombstone && self.tombstones_go;
        record.offset >= self.log_start && !expired && !self.keys.has_newer(key, record.offset)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(offset: i64) -> Offset {
        Offset::new(offset).unwrap()
    }

    /// Segments of ten offsets and 100 bytes, appended to at 1,000 ms, 2,000 ms ...
    fn segments(count: i64) -> Vec<SegmentFill> {
        let segment = |n: i64| SegmentFill {
            base: at(n * 10),
            next: at(n * 10 + 10),
            len_bytes: 100,
            first_append_ms: n * 1_000 + 1_000,
            last_append_ms: n * 1_000 + 1_900,
        };
        (0..count).map(segment).collect()
    }

    fn cleaned_to(to: i64) -> Cleaned {
        Cleaned { to: at(to), ..Cleaned::NOTHING }
    }

    #[test]
    fn what_was_appended_lately_takes_no_part() {
        let config = CompactionConfig { lag_min: Duration::from_secs(1), ..CompactionConfig::default() };
        let settled_at = |now_ms| settled(&segments(4), &config, now_ms);
        assert_eq!([Some(2_899), Some(2_900), Some(3_900), Some(99_000), None].map(settled_at), [0, 1, 2, 4, 0]);
        let none = CompactionConfig::default();
        // Also where the clock went back behind the appends.
        assert_eq!([Some(0), None].map(|now_ms| settled(&segments(4), &none, now_ms)), [4, 4]);
    }

    #[test]
    fn no_more_segments_become_one_than_may_be_open_together() {
        assert_eq!([1, 127, 128, 1_000].map(|count| merged(&segments(count), u64::MAX)), [1, 127, 128, 128]);
    }

    #[test]
    fn a_log_is_due_when_enough_of_it_is_dirty() {
        let due_at = |cleaned, millionths| {
            let config = CompactionConfig { dirty_millionths_min: millionths, ..CompactionConfig::default() };
            due(&segments(4), &cleaned_to(cleaned), &config, None)
        };
        assert_eq!(due_at(0, 1_000_000), Some(Due::Dirty));
        assert_eq!(
            [20, 21, 29, 30].map(|cleaned| due_at(cleaned, 500_000)),
            [Some(Due::Dirty); 3].into_iter().chain([None]).collect::<Vec<_>>()[..]
        );
        assert_eq!(due_at(30, 250_000), Some(Due::Dirty));
        assert_eq!(due_at(40, 0), None, "nothing is dirty");
    }

    #[test]
    fn a_log_is_due_when_something_waits_for_too_long() {
        let config = CompactionConfig { lag_max: Some(Duration::from_secs(10)), ..CompactionConfig::default() };
        let due_at = |now_ms| due(&segments(4), &cleaned_to(30), &config, now_ms);
        assert_eq!([None, Some(13_999), Some(14_000)].map(due_at), [None, None, Some(Due::Lag)]);
        assert_eq!(due(&segments(4), &cleaned_to(40), &config, Some(i64::MAX - 1)), None, "nothing is dirty");
    }

    #[test]
    fn a_log_is_due_when_a_tombstone_s_time_has_come() {
        let cleaned = Cleaned { to: at(40), next_horizon_ms: 5_000 };
        let due_at = |now_ms| due(&segments(4), &cleaned, &CompactionConfig::default(), now_ms);
        assert_eq!([None, Some(4_999), Some(5_000)].map(due_at), [None, None, Some(Due::Tombstones)]);
        assert_eq!(due(&[], &cleaned, &CompactionConfig::default(), Some(5_000)), None);
    }

    #[test]
    fn neighbours_become_one_as_far_as_they_fit() {
        let mut segments = segments(4);
        assert_eq!([0, 99, 100, 250, 300, 1_000].map(|bytes| merged(&segments, bytes)), [1, 1, 1, 2, 3, 4]);
        assert_eq!(merged(&[], 100), 0);
        segments[2].next = at(1 << 33);
        assert_eq!(merged(&segments, 1_000), 2, "an index counts offsets in 32 bits");
        segments[1].base = at(11);
        assert_eq!(merged(&segments, 1_000), 1, "an offset is lost between them");
    }

    #[test]
    fn a_map_knows_the_newest_offset_of_each_key_until_it_is_full() {
        let mut keys = KeyMap::new(16 * KEY_BYTES, 1_000);
        for round in 0..3 {
            for key in 0..14u8 {
                assert!(keys.note(&[key], at(round * 100 + i64::from(key))), "{key}");
            }
        }
        assert_eq!(keys.len(), 14);
        assert!(!keys.note(b"one more", at(400)));
        assert!(keys.note(&[3], at(401)), "a key that is known needs no room");
        assert!(keys.has_newer(&[3], at(400)) && !keys.has_newer(&[3], at(401)));
        assert!(keys.has_newer(&[4], at(203)) && !keys.has_newer(&[4], at(204)));
        assert!(!keys.has_newer(b"one more", at(0)));
    }

    #[test]
    fn a_map_keeps_within_its_bytes() {
        for limit_bytes in [4 << 10, 100_000, 16 << 20] {
            let keys = KeyMap::new(limit_bytes, u64::MAX);
            // A table of n places can be filled to 7/8.
            let places = keys.newest.capacity() / 7 * 8;
            assert!(
                places * KEY_BYTES <= limit_bytes && places * KEY_BYTES * 2 > limit_bytes,
                "{limit_bytes}: {places}"
            );
        }
        assert!(KeyMap::new(16 << 20, 10).newest.capacity() < 100);
    }

    #[test]
    fn the_newest_record_of_a_key_stays_and_a_tombstone_until_its_time() {
        let mut keys = KeyMap::new(1 << 16, 10);
        assert!(keys.note(b"a", at(7)) && keys.note(b"b", at(5)));
        let stays = |offset, key: Option<&[u8]>, is_tombstone, tombstones_go| {
            let rules = Rules { keys: &keys, log_start: at(3), tombstones_go };
            rules.keeps(&Candidate { offset: at(offset), key, is_tombstone })
        };
        assert!(!stays(6, Some(b"a"), false, false), "7 is newer");
        assert!(stays(7, Some(b"a"), false, false) && stays(9, Some(b"a"), false, false));
        assert!(!stays(4, Some(b"b"), true, false), "a tombstone with a newer record");
        assert!(stays(5, Some(b"b"), true, false) && !stays(5, Some(b"b"), true, true));
        assert!(stays(3, Some(b"c"), false, true), "nothing is newer, and it has a value");
        assert!(stays(3, None, true, true), "no key, no fate");
        assert!(!stays(2, Some(b"c"), false, false) && !stays(2, None, false, false), "below the log start");
    }
}
