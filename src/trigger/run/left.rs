//! What a redrive that gave way to another had not finished.

use serde::{Deserialize, Serialize};
use tripline_storage::Offset;

use super::RunRange;
use crate::trigger::key_hash;
use crate::trigger::progress::Progress;

/// Most holes and keys that are remembered of one redrive, of 100 bytes each at most: its definition stays below 1 MiB.
const LEFT_MAX: usize = 10_000;

/// The letters in the ranges of a redrive that it did not take: as its progress had them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// All in these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<RunRange>,
    /// All of these keys, from an offset on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    keys: Vec<LeftKey>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LeftKey {
    partition: u32,
    /// [`key_hash`].
    hash: u64,
    from: i64,
}

impl Left {
    /// Whether there is nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.keys.is_empty()
    }

    /// What progress in a partition says is unfinished below its reading point. Answers whether there is room for it;
    /// nothing is added otherwise. Partitions come in ascending order.
    pub(in crate::trigger) fn add(&mut self, partition: u32, progress: &Progress) -> bool {
        let more = progress.holes().len() + progress.blocked_keys().len();
        if self.ranges.len() + self.keys.len() + more > LEFT_MAX {
            return false;
        }
        let holes = progress.holes().iter().filter_map(|hole| RunRange::new(partition, hole.first, hole.next));
        self.ranges.extend(holes);
        let keys = progress.blocked_keys().iter();
        self.keys.extend(keys.map(|key| LeftKey { partition, hash: key.hash, from: key.first.get() }));
        true
    }

    /// Whether a letter with this key is among them.
    #[must_use]
    pub fn contains(&self, partition: u32, offset: Offset, key: Option<&[u8]>) -> bool {
        let at = self.ranges.partition_point(|range| (range.partition, range.to) <= (partition, offset.get()));
        if self.ranges.get(at).is_some_and(|range| range.contains(partition, offset)) {
            return true;
        }
        if self.keys.is_empty() {
            return false;
        }
        let wanted = (partition, key_hash(key));
        let found = self.keys.binary_search_by_key(&wanted, |left| (left.partition, left.hash));
        found.is_ok_and(|at| self.keys[at].from <= offset.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trigger::progress::{BlockedKey, Span};

    fn at(offset: i64) -> Offset {
        Offset::new(offset).unwrap()
    }

    #[test]
    fn what_progress_leaves_open_is_left_and_nothing_else() {
        let holes = vec![Span { first: at(3), next: at(5) }, Span { first: at(7), next: at(8) }];
        let keys = vec![BlockedKey { hash: key_hash(Some(b"k")), first: at(6) }];
        let mut left = Left::default();
        assert!(left.is_empty() && !left.contains(0, at(3), None));
        assert!(left.add(1, &Progress::new(at(10), holes.clone(), Vec::new(), keys.clone())));
        assert!(left.add(3, &Progress::new(at(10), holes, Vec::new(), keys)));
        assert!(!left.is_empty());
        let found = |partition, key: &[u8]| -> Vec<i64> {
            (0..10).filter(|offset| left.contains(partition, at(*offset), Some(key))).collect()
        };
        assert_eq!(found(1, b"another"), [3, 4, 7]);
        assert_eq!(found(1, b"k"), [3, 4, 6, 7, 8, 9]);
        assert_eq!(found(3, b"k"), [3, 4, 6, 7, 8, 9]);
        for none in [0, 2, 4] {
            assert!(found(none, b"k").is_empty());
        }
        let many = (0..10_000).map(|n| Span { first: at(2 * n), next: at(2 * n + 1) }).collect();
        let before = left.clone();
        assert!(!left.add(4, &Progress::new(at(20_000), many, Vec::new(), Vec::new())), "more than are remembered");
        assert_eq!(left, before);
        let text = serde_json::to_string(&left).unwrap();
        assert_eq!(serde_json::from_str::<Left>(&text).unwrap(), left);
    }
}
