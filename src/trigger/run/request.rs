//! What people ask of a run.

use super::REDRIVES_MAX;
use crate::trigger::filter::Pattern;
use crate::trigger::spec::StartPosition;

/// A part of a topic: `from..to` of one partition or of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeRequest {
    /// Which partition; `None` means all.
    pub partition: Option<u32>,
    /// The first record.
    pub from: StartPosition,
    /// The first record that does not belong to it any more.
    pub to: StartPosition,
}

impl RangeRequest {
    /// Everything that there is.
    pub const ALL: Self = Self { partition: None, from: StartPosition::Earliest, to: StartPosition::Latest };
}

/// A replay to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayRequest {
    /// Which topic; `None` means the only one.
    pub topic: Option<String>,
    /// What to read again; a partition is in at most one of them.
    pub ranges: Vec<RangeRequest>,
    /// Records that may begin in a second, 1–1,000,000; `None` sets no limit besides the trigger's.
    pub rate: Option<u32>,
}

/// A redrive to start, or to look at without starting it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedriveRequest {
    /// Where in the dead-letter topic; a partition is in at most one of them.
    pub ranges: Vec<RangeRequest>,
    /// Which letters. The pattern sees the record as it was, and the reasons among its headers.
    pub filter: Option<Pattern>,
    /// At most so many letters, the oldest first, partition after partition; at least 1.
    pub max: Option<u64>,
    /// Records that may begin in a second, 1–1,000,000; `None` sets no limit besides the trigger's.
    pub rate: Option<u32>,
    /// Letters that were redriven so often are passed over; `None` takes them all the same.
    pub redrives_max: Option<u32>,
    /// Whether letters are taken that an earlier redrive took.
    pub again: bool,
}

impl Default for RedriveRequest {
    /// All letters that no redrive took yet, as fast as the trigger goes, but those that were redriven [`REDRIVES_MAX`]
    /// times.
    fn default() -> Self {
        Self {
            ranges: vec![RangeRequest::ALL],
            filter: None,
            max: None,
            rate: None,
            redrives_max: Some(REDRIVES_MAX),
            again: false,
        }
    }
}
