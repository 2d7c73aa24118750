//! What became of ticks that were begun before the broker died: are their events in their topics?

use std::collections::HashMap;
use std::sync::Arc;

use tripline_storage::batch::{BatchLimits, Batches, RecordView};
use tripline_storage::error::ReadError;
use tripline_storage::{Offset, Partition};
use uuid::Uuid;

use super::tick::{ID_HEADER, SOURCE_HEADER};
use crate::broker::Broker;

/// How much of a log is read at a time.
const READ_BYTES: usize = 1 << 20;

/// An event that is looked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    /// Its `ce_id`.
    pub(super) id: String,
    /// Its `ce_source`.
    pub(super) source: String,
}

/// Which of the wanted events a partition has at `from` or later. One pass, however many are wanted.
///
/// # Errors
/// The disk does not answer.
pub(super) async fn find(
    log: &Arc<Partition>,
    from: Offset,
    mut wanted: HashMap<Wanted, Uuid>,
) -> Result<Vec<Uuid>, ReadError> {
    let mut found = Vec::new();
    let mut at = from.max(log.log_start());
    while !wanted.is_empty() && at < log.tail() {
        let outcome = match Broker::read(log, at, READ_BYTES).await {
            Ok(outcome) => outcome,
            // What is damaged is gone; what lies behind it is not.
            Err(ReadError::Damaged { to, .. }) if to > at => {
                at = to;
                continue;
            }
            Err(error) => return Err(error),
        };
        if outcome.next <= at {
            break;
        }
        for_each_record(&outcome.bytes, |record| {
            if let Some(id) = event_of(record).and_then(|event| wanted.remove(&event)) {
                found.push(id);
            }
        });
        at = outcome.next;
    }
    Ok(found)
}

/// Batches that do not unpack were not written here: ticks are not compressed.
fn for_each_record(bytes: &[u8], mut visit: impl FnMut(&RecordView<'_>)) {
    for view in Batches::of(bytes).map_while(Result::ok) {
        if let Ok(records) = view.records(&BatchLimits::default()) {
            records.iter().map_while(Result::ok).for_each(|record| visit(&record));
        }
    }
}

fn event_of(record: &RecordView<'_>) -> Option<Wanted> {
    let text = |name: &str| {
        let header = record.headers().find(|header| header.name == name.as_bytes())?;
        std::str::from_utf8(header.value?).ok().map(str::to_owned)
    };
    Some(Wanted { id: text(ID_HEADER)?, source: text(SOURCE_HEADER)? })
}
