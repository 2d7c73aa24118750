//! What lanes decided is written down, and begins then.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Message, Poller, Starting};
use crate::broker::record::JournalRecord;
use crate::trigger::invoke::{self, Ended};

/// An append to the journal is full with so many bytes. One lane comes to some hundred kilobytes at most, and a batch
/// may have 32 MiB: whatever many lanes have to say at once, none makes it too large for the others.
const APPEND_BYTES: usize = 1 << 20;

impl Poller {
    /// Notes the lanes whose progress over filtered records is due.
    fn note_filtered(&mut self) {
        if self.note_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.note_at = None;
        for trigger in self.lanes.keys().copied().collect::<Vec<_>>() {
            self.with_lane(trigger, |poller, entry| {
                poller.sync(entry);
                if entry.lane.committed() != entry.noted {
                    poller.changed.insert(trigger);
                }
            });
        }
    }

    /// Writes down what has changed, of all lanes at once; then what was to begin begins.
    pub(super) fn write_down(&mut self) {
        self.note_filtered();
        #[cfg(feature = "cluster")]
        if let Some(group) = self.group.clone() {
            return self.commit(&group);
        }
        let mut changed = std::mem::take(&mut self.changed).into_iter();
        while self.write_some(&mut changed) {}
    }

    /// Writes down some of the lanes that have changed, in one append. Answers whether there were any.
    fn write_some(&mut self, changed: &mut impl Iterator<Item = Uuid>) -> bool {
        let mut records: Vec<JournalRecord> = Vec::new();
        let mut written: Vec<Uuid> = Vec::new();
        let mut size_bytes = 0;
        while size_bytes < APPEND_BYTES
            && let Some(trigger) = changed.next()
        {
            let Some(entry) = self.lanes.get_mut(&trigger) else { continue };
            if entry.is_held_up() {
                self.changed.insert(trigger);
                continue;
            }
            size_bytes += entry.add_records(&mut records);
            written.push(trigger);
        }
        let Some(broker) = written.first().map(|trigger| self.lanes[trigger].runner.broker.clone()) else {
            return false;
        };
        let source = self.input.sources(self.input.tail());
        match broker.journal().append_after(&records, &source, crate::broker::now_ms()) {
            Ok(_) => written.iter().for_each(|trigger| self.begin(*trigger)),
            Err(error) => written.iter().for_each(|trigger| self.not_written(*trigger, &error.to_string())),
        }
        true
    }

    /// What the journal refused is offered to it again in a moment; nothing begins before.
    pub(super) fn not_written(&mut self, trigger: Uuid, reason: &str) {
        self.with_lane(trigger, |poller, entry| {
            entry.cannot_write(reason);
            poller.changed.insert(trigger);
            poller.set_timer(entry);
        });
    }

    /// What was written down of this trigger begins.
    fn begin(&mut self, trigger: Uuid) {
        let Some(entry) = self.lanes.get_mut(&trigger) else { return };
        entry.written();
        let starting = std::mem::take(&mut entry.starting);
        let verdicts = std::mem::take(&mut entry.verdicts);
        // Where nothing goes on they are carried out after the next start.
        if !verdicts.is_empty() && !self.stopping && !entry.runner.is_over() {
            self.with_lane(trigger, |poller, entry| {
                verdicts.into_iter().for_each(|(window, verdict)| poller.carry_out(entry, window, verdict));
            });
        }
        self.begin_windows(trigger, starting);
    }

    pub(super) fn begin_windows(&mut self, trigger: Uuid, starting: Vec<Starting>) {
        #[cfg(feature = "cluster")]
        let starting = self.give_up_known(trigger, starting);
        let Some(entry) = self.lanes.get_mut(&trigger) else { return };
        let shares = entry.shares(&starting);
        for (Starting { window, permit }, share) in starting.into_iter().zip(shares) {
            let work = invoke::Work {
                runner: Arc::clone(&entry.runner),
                spec: Arc::clone(&entry.spec),
                input: entry.input(&self.input).clone(),
                name: entry.lane.name(window),
                nudges: entry.nudges,
                attempt: entry.lane.state(window).attempt_number(),
                interrupted: entry.lane.state(window).interrupted,
                offsets: entry.lane.offsets(window),
                spots: entry.lane.spots(window),
                share,
            };
            let handle = self.handle.clone();
            let running = self.tracker.spawn(async move {
                let ended = AssertUnwindSafe(work.run()).catch_unwind().await;
                let ended = Box::new(ended.unwrap_or_else(|_| Ended::broken()));
                handle.send(Message::Ended(trigger, window, ended, permit));
            });
            entry.runs(window, running);
        }
        entry.complete();
    }
}
