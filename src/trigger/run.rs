//! Runs: a range of records goes through a trigger's function beside its live lanes.
//!
//! A *replay* reads a range of the trigger's input again, through filter, window and function as the live records. A
//! *redrive* reads a range of its dead-letter topic and puts the letters back as the records that they were; the filter
//! let them through already and is not asked again. The range is fixed when a run starts, so that a run ends, and a
//! redrive never reads the letters that it makes (T5).
//!
//! A run has lanes of its own under its own id: what it has finished survives the death of the broker as a live lane's
//! progress does. It follows the trigger's definition, so that a function or a retry policy can be put right while it
//! runs, and shares nothing else with the live lanes: it has its own invocation slots, its own rate and its own state,
//! and it runs while the trigger is paused. It is its process's alone, also where its records are a cluster's.
//!
//! # Which letters a redrive takes
//! Letters stay in their topic until retention or a discard removes them; a log has no other way. What was redriven is
//! therefore known by definition: a letter in the range of an earlier redrive that its [`Gate`] let through is not
//! taken again, unless somebody asks for it. One that was cancelled and gave way took what it had read, besides what
//! its progress had as unfinished ([`Left`]). That needs no note per letter and is exact after any crash. Definitions
//! of redrives are kept for as long as letters in their range are.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tripline_storage::Offset;

use super::service::TriggerCounts;

mod completion;
mod gate;
mod left;
mod request;
mod scan;

pub(super) use completion::Completion;
pub use gate::{Admission, Gate, Redriven};
pub use left::Left;
pub use request::{RangeRequest, RedriveRequest, ReplayRequest};
pub(super) use request::{chosen, none_where_named};
pub use scan::{LetterCounts, ScanError};
pub(super) use scan::{for_each_chunk, scan_letters};

/// How often a letter is redriven unless somebody says otherwise: one that comes back again and again is passed over.
pub const REDRIVES_MAX: u32 = 10;
/// Runs of one trigger that go on at the same time.
pub const RUNNING_MAX: usize = 8;
/// Runs of one trigger that are remembered.
pub const REMEMBERED_MAX: usize = 100;
/// The highest rate, in records per second.
pub const RATE_MAX: u32 = 1_000_000;

/// What a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunKind {
    /// It reads the trigger's input again.
    Replay,
    /// It puts dead letters back.
    Redrive,
}

impl RunKind {
    /// The word used in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Redrive => "redrive",
        }
    }
}

/// A part of one partition: `from..to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRange {
    /// The partition.
    pub partition: u32,
    /// The first offset.
    pub from: i64,
    /// The offset after the last.
    pub to: i64,
}

impl RunRange {
    /// A range; `None` when nothing is in it.
    #[must_use]
    pub fn new(partition: u32, from: Offset, to: Offset) -> Option<Self> {
        (from < to).then_some(Self { partition, from: from.get(), to: to.get() })
    }

    /// Its first offset.
    #[must_use]
    pub fn first(&self) -> Offset {
        Offset::new(self.from).unwrap_or(Offset::ZERO)
    }

    /// The offset after its last.
    #[must_use]
    pub fn next(&self) -> Offset {
        Offset::new(self.to).unwrap_or(Offset::ZERO)
    }

    /// Whether an offset of this partition lies in it.
    #[must_use]
    pub fn contains(&self, partition: u32, offset: Offset) -> bool {
        self.partition == partition && (self.first()..self.next()).contains(&offset)
    }
}

/// A run as the journal keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunDefinition {
    /// What it does.
    pub kind: RunKind,
    /// The topic it reads, by its name when it was made.
    pub topic: String,
    /// At most one of each partition, ascending, none empty.
    pub ranges: Vec<RunRange>,
    /// Which letters, as an event pattern; `None` takes all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Value>,
    /// Records that may begin in a second, besides what the trigger allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// Letters that were redriven so often are passed over; `None` takes them all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redrives_max: Option<u32>,
    /// Whether letters are taken that an earlier redrive took.
    #[serde(default)]
    pub again: bool,
    /// Of a redrive that gave way to another: what it did not take in its ranges, which end where it had read to.
    #[serde(default, skip_serializing_if = "Left::is_empty")]
    pub left: Left,
}

impl RunDefinition {
    /// The range of a partition.
    #[must_use]
    pub fn range(&self, partition: u32) -> Option<&RunRange> {
        self.ranges.iter().find(|range| range.partition == partition)
    }

    /// Whether another redrive took every letter that this one took; below `log_start` of each partition nothing
    /// counts.
    #[must_use]
    pub fn is_covered_by(&self, other: &Self, log_start: impl Fn(u32) -> Offset) -> bool {
        let as_generous = match (self.redrives_max, other.redrives_max) {
            (_, None) => true,
            (Some(own), Some(others)) => own <= others,
            (None, Some(_)) => false,
        };
        let inside = |range: &RunRange| {
            let first = range.first().max(log_start(range.partition));
            first >= range.next()
                || other.range(range.partition).is_some_and(|outer| outer.first() <= first && outer.to >= range.to)
        };
        other.filter.is_none() && other.left.is_empty() && as_generous && self.ranges.iter().all(inside)
    }
}

/// What became of the records of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunCounts {
    /// Records whose invocation succeeded.
    pub delivered: u64,
    /// Records that a filter turned away.
    pub filtered: u64,
    /// Letters that were redriven too often.
    pub passed_over: u64,
    /// Records that became dead letters, again.
    pub dead_lettered: u64,
    /// Records that were given up without a dead-letter topic, debounced or skipped.
    pub dropped: u64,
    /// Records that retention removed before they were read.
    pub expired: u64,
    /// Attempts that succeeded.
    pub attempts_succeeded: u64,
    /// Attempts that did not.
    pub attempts_failed: u64,
}

impl RunCounts {
    /// What was counted before, and what a trigger's counters say now.
    #[must_use]
    pub const fn with(self, counts: &TriggerCounts, passed_over: u64) -> Self {
        Self {
            delivered: self.delivered + counts.delivered,
            filtered: self.filtered + counts.filtered,
            passed_over: self.passed_over + passed_over,
            dead_lettered: self.dead_lettered + counts.dead_lettered,
            dropped: self.dropped + counts.dropped + counts.debounced + counts.skipped,
            expired: self.expired + counts.expired,
            attempts_succeeded: self.attempts_succeeded + counts.attempts_succeeded,
            attempts_failed: self.attempts_failed + counts.attempts_failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::trigger::progress::{Progress, Span};

    fn redrive(ranges: &[(u32, i64, i64)]) -> RunDefinition {
        let ranges = ranges.iter().map(|&(partition, from, to)| RunRange { partition, from, to }).collect();
        RunDefinition {
            kind: RunKind::Redrive,
            topic: "t.dlq".to_owned(),
            ranges,
            filter: None,
            rate: None,
            redrives_max: Some(10),
            again: false,
            left: Left::default(),
        }
    }

    #[test]
    fn a_definition_is_kept_in_these_words() {
        let plain = r#"{"kind":"redrive","topic":"t.dlq","ranges":[{"partition":0,"from":3,"to":9}],"redrives_max":10,"again":false}"#;
        assert_eq!(serde_json::to_string(&redrive(&[(0, 3, 9)])).unwrap(), plain);
        let full = RunDefinition { filter: Some(json!({"a": [1]})), rate: Some(5), ..redrive(&[]) };
        let text = serde_json::to_string(&full).unwrap();
        assert_eq!(serde_json::from_str::<RunDefinition>(&text).unwrap(), full);
    }

    #[test]
    fn a_redrive_is_covered_by_a_wider_one_that_turns_nothing_away() {
        let at = |offset| move |_: u32| Offset::new(offset).unwrap();
        let narrow = redrive(&[(0, 3, 9), (1, 0, 4)]);
        let wide = redrive(&[(0, 3, 9), (1, 0, 5)]);
        assert!(narrow.is_covered_by(&wide, at(0)));
        assert!(!wide.is_covered_by(&narrow, at(0)));
        assert!(wide.is_covered_by(&narrow, at(5)), "of partition 1 nothing is left");
        assert!(narrow.is_covered_by(&redrive(&[(0, 4, 9)]), at(4)), "what is gone does not count");
        assert!(!narrow.is_covered_by(&RunDefinition { filter: Some(json!({})), ..wide.clone() }, at(0)));
        assert!(!RunDefinition { redrives_max: None, ..narrow.clone() }.is_covered_by(&wide, at(0)));
        let offset = |offset| Offset::new(offset).unwrap();
        let hole = Span { first: offset(3), next: offset(4) };
        let mut left = Left::default();
        assert!(left.add(0, &Progress::new(offset(9), vec![hole], Vec::new(), Vec::new())));
        assert!(!narrow.is_covered_by(&RunDefinition { left, ..wide.clone() }, at(0)), "not all of it was taken");
        assert!(narrow.is_covered_by(&RunDefinition { redrives_max: None, ..wide }, at(0)));
    }
}
