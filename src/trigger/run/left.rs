//! What a redrive that gave way to another had not finished.

use serde::{Deserialize, Serialize};
use tripline_storage::Offset;

use super::RunRange;
use crate::trigger::key_hash;
use crate::trigger::progress::Progress;

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

    /// What progress in a partition says is unfinished below its reading point.
    pub(in crate::trigger) fn add(&mut self, partition: u32, progress: &Progress) {
        let holes = progress.holes().iter().filter_map(|hole| RunRange::new(partition, hole.first, hole.next));
        self.ranges.extend(holes);
        let keys = progress.blocked_keys().iter();
        self.keys.extend(keys.map(|key| LeftKey { partition, hash: key.hash, from: key.first.get() }));
    }

    /// Whether a letter with this key is among them.
    #[must_use]
    pub fn contains(&self, partition: u32, offset: Offset, key: Option<&[u8]>) -> bool {
        if self.ranges.iter().any(|range| range.contains(partition, offset)) {
            return true;
        }
        if self.keys.is_empty() {
            return false;
        }
        let hash = key_hash(key);
        self.keys.iter().any(|left| left.hash == hash && left.partition == partition && left.from <= offset.get())
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
        left.add(1, &Progress::new(at(10), holes, Vec::new(), keys));
        assert!(!left.is_empty());
        let found = |partition, key: &[u8]| -> Vec<i64> {
            (0..10).filter(|offset| left.contains(partition, at(*offset), Some(key))).collect()
        };
        assert_eq!(found(1, b"another"), [3, 4, 7]);
        assert_eq!(found(1, b"k"), [3, 4, 6, 7, 8, 9]);
        assert!(found(0, b"k").is_empty());
        let text = serde_json::to_string(&left).unwrap();
        assert_eq!(serde_json::from_str::<Left>(&text).unwrap(), left);
    }
}
