//! What people ask of a run.

use super::REDRIVES_MAX;
use crate::trigger::filter::Pattern;
use crate::trigger::service::RunError;
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

/// The request that means each partition of a topic, in their order; `None` where none does.
///
/// # Errors
/// [`RunError::Partition`]: a partition is meant twice, or is not there.
pub(in crate::trigger) fn chosen(
    topic: &str,
    partition_count: u32,
    asked: &[RangeRequest],
) -> Result<Vec<Option<RangeRequest>>, RunError> {
    let last = partition_count.saturating_sub(1);
    let wrong = |found| RunError::Partition { topic: topic.to_owned(), last, found };
    let mut chosen: Vec<Option<RangeRequest>> = vec![None; partition_count as usize];
    for request in asked {
        let partitions = request.partition.map_or(0..=last, |partition| partition..=partition);
        for partition in partitions {
            let place = chosen.get_mut(partition as usize).ok_or_else(|| wrong(partition))?;
            if place.replace(*request).is_some() {
                return Err(wrong(partition));
            }
        }
    }
    Ok(chosen)
}

/// Of requests of which none means a record: where nothing is, nothing is to be done; but who names an offset means a
/// record.
///
/// # Errors
/// [`RunError::Empty`].
pub(in crate::trigger) fn none_where_named(topic: &str, asked: &[RangeRequest]) -> Result<(), RunError> {
    let names_offset = |request: &RangeRequest| {
        [request.from, request.to].iter().any(|position| matches!(position, StartPosition::Offset(_)))
    };
    if asked.iter().any(names_offset) { Err(RunError::Empty { topic: topic.to_owned() }) } else { Ok(()) }
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
