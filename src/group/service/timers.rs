//! One task that lets time pass for all groups.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::{Shared, Slot, SlotState, now};
use crate::group::id::GroupId;

/// When to look at which group again.
///
/// A deadline that moves away stays where it is until it comes: then the group is looked at, nothing is due, and the
/// new one is noted. So the many heartbeats that only move deadlines away never come here.
#[derive(Default)]
pub(super) struct Deadlines {
    ordered: Mutex<BTreeMap<(Instant, GroupId), Arc<Slot>>>,
    /// The first deadline has changed to an earlier one.
    earlier: Notify,
}

impl Deadlines {
    /// Notes what the group needs next, if it is earlier than what is noted.
    pub(super) fn schedule(&self, slot: &Arc<Slot>, state: &mut SlotState) {
        let Some(next) = state.group.next_deadline() else { return };
        if state.scheduled.is_some_and(|scheduled| scheduled <= next) {
            return;
        }
        let mut ordered = self.ordered.lock();
        if let Some(scheduled) = state.scheduled.replace(next) {
            ordered.remove(&(scheduled, slot.id.clone()));
        }
        let first = ordered.first_key_value().map(|((first, _), _)| *first);
        ordered.insert((next, slot.id.clone()), Arc::clone(slot));
        drop(ordered);
        if first.is_none_or(|first| next < first) {
            self.earlier.notify_one();
        }
    }

    /// Notes nothing for this group any more.
    pub(super) fn cancel(&self, slot: &Arc<Slot>, state: &mut SlotState) {
        if let Some(scheduled) = state.scheduled.take() {
            self.ordered.lock().remove(&(scheduled, slot.id.clone()));
        }
    }

    fn first(&self) -> Option<Instant> {
        self.ordered.lock().first_key_value().map(|((first, _), _)| *first)
    }

    fn take_due(&self, now: Instant) -> Option<Arc<Slot>> {
        let mut ordered = self.ordered.lock();
        let first = ordered.first_entry().filter(|first| first.key().0 <= now)?;
        Some(first.remove())
    }
}

/// Lets time pass for the groups of one service.
pub struct Timers {
    shared: Arc<Shared>,
}

impl Timers {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        loop {
            while let Some(slot) = self.shared.deadlines.take_due(now()) {
                self.shared.tick(&slot, now());
            }
            let first = self.shared.deadlines.first();
            let next = async {
                match first {
                    Some(first) => sleep_until(first.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = next => {}
                () = self.shared.deadlines.earlier.notified() => {}
                () = shutdown.cancelled() => return,
            }
        }
    }
}
