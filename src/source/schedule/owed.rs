//! What is done and the journal does not know yet.

use std::sync::Arc;

use tripline_storage::{Offset, Partition};

use crate::broker::journal::{Journal, JournalError};
use crate::broker::now_ms;
use crate::broker::record::JournalRecord;

/// Records of ticks whose events are in their topics, which the journal has not taken. It has to before it takes
/// anything else that supposes them, such as the intent of the next tick: until then a death is made up for, since the
/// intent of these finds their events again.
#[derive(Debug, Default)]
pub(super) struct Owed {
    records: Vec<JournalRecord>,
    /// Where the events are, and below which offset.
    sources: Vec<(Arc<Partition>, Offset)>,
}

impl Owed {
    /// Remembers this, behind all that was owed before, or else owes it.
    pub(super) fn remember(
        &mut self,
        journal: &Journal,
        records: Vec<JournalRecord>,
        source: (Arc<Partition>, Offset),
    ) {
        if records.is_empty() {
            return;
        }
        self.records.extend(records);
        self.sources.push(source);
        if let Err(error) = self.pay(journal) {
            tracing::warn!(%error, "ticks are done, which could not be remembered; it is tried before the next ones");
        }
    }

    /// Remembers what is owed; in the page cache on return.
    ///
    /// # Errors
    /// [`JournalError`]: it is owed still.
    pub(super) fn pay(&mut self, journal: &Journal) -> Result<(), JournalError> {
        if !self.records.is_empty() {
            journal.append_after(&self.records, &self.sources, now_ms())?;
            *self = Self::default();
        }
        Ok(())
    }
}
