//! Looking through a range of a partition, in bounded memory and time.

use std::ops::ControlFlow;

use tokio::time::Instant;
use tripline_storage::batch::RecordView as StoredRecord;
use tripline_storage::error::ReadError;
use tripline_storage::{LeaderEpoch, Offset};

use super::{Admission, Gate, RunRange};
use crate::input::EventInput;
use crate::trigger::deliver::{RecordsError, epoch_of, for_each_record};

/// How much of the log is looked at before somebody else has a turn: some milliseconds of work.
const CHUNK_BYTES: usize = 256 << 10;

/// Why a range could not be looked through.
#[derive(Debug, thiserror::Error)]
#[error("partition {partition}: {reason}")]
pub struct ScanError {
    /// Where.
    pub partition: u32,
    /// What stands in the way.
    pub reason: String,
}

/// Shows the records of a range, chunk by chunk, to `visit`, which answers whether it wants more. Answers where it
/// ended: at the end of the range, where `visit` had enough, or where the time was over. What retention or damage took
/// is passed over.
pub(in crate::trigger) async fn for_each_chunk(
    input: &EventInput,
    range: &RunRange,
    deadline: Option<Instant>,
    mut visit: impl FnMut(&StoredRecord<'_>, LeaderEpoch) -> bool + Send,
) -> Result<Offset, ScanError> {
    let failed = |reason: String| ScanError { partition: range.partition, reason };
    let mut at = range.first().max(input.log_start());
    while at < range.next() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
        let outcome = match input.read(at, CHUNK_BYTES).await {
            Ok(outcome) => outcome,
            Err(ReadError::OutOfRange { log_start, .. }) if at < log_start => {
                at = log_start;
                continue;
            }
            Err(ReadError::Damaged { to, .. }) => {
                at = to;
                continue;
            }
            Err(error) => return Err(failed(error.to_string())),
        };
        if outcome.bytes.is_empty() {
            // On a cluster all of what was fetched may have been left out: what aborted transactions wrote.
            if outcome.next <= at {
                break;
            }
            at = outcome.next;
            continue;
        }
        let mut enough = None;
        for_each_record(&outcome.bytes, |record, header| {
            let epoch = epoch_of(header);
            if record.offset() >= range.next() {
                return ControlFlow::Break(());
            }
            if record.offset() >= at && !visit(record, epoch) {
                enough = Some(record.offset().next());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })
        .map_err(|error: RecordsError| failed(error.to_string()))?;
        if let Some(next) = enough {
            return Ok(next);
        }
        at = outcome.next;
        tokio::task::yield_now().await;
    }
    Ok(at.min(range.next()).max(range.first()))
}

/// What a redrive would find.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetterCounts {
    /// Letters that it would take.
    pub taken: u64,
    /// Letters of other triggers, and records that are no letters.
    pub not_ours: u64,
    /// Letters that somebody discarded.
    pub discarded: u64,
    /// Letters that an earlier redrive took.
    pub redriven: u64,
    /// Letters that the pattern turns away.
    pub turned_away: u64,
    /// Letters that were redriven too often.
    pub passed_over: u64,
}

impl LetterCounts {
    pub(super) const fn add(&mut self, admission: Admission) {
        let counter = match admission {
            Admission::Taken => &mut self.taken,
            Admission::NotOurs => &mut self.not_ours,
            Admission::Discarded => &mut self.discarded,
            Admission::Redriven => &mut self.redriven,
            Admission::TurnedAway => &mut self.turned_away,
            Admission::PassedOver => &mut self.passed_over,
        };
        *counter += 1;
    }
}

/// Counts what a redrive would find in a range, until it has taken `max`. Answers where that is, or the time was over.
pub(in crate::trigger) async fn scan_letters(
    input: &EventInput,
    range: &RunRange,
    gate: &Gate,
    max: Option<u64>,
    deadline: Option<Instant>,
    counts: &mut LetterCounts,
    mut taken: impl FnMut(Offset) + Send,
) -> Result<Offset, ScanError> {
    for_each_chunk(input, range, deadline, |record, epoch| {
        let admission = gate.admit(record, input.origin(), epoch);
        counts.add(admission);
        if admission == Admission::Taken {
            taken(record.offset());
        }
        max.is_none_or(|max| counts.taken < max)
    })
    .await
}
