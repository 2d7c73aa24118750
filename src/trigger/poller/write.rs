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

    /// What was counted of a lane that goes is in its progress, too: who goes on with it makes and counts it no second
    /// time.
    pub(super) fn write_down_last(&mut self, trigger: Uuid) {
        #[cfg(feature = "cluster")]
        if self.group.is_some() {
            return;
        }
        let differs = self.with_lane(trigger, |poller, entry| {
            poller.sync(entry);
            // Windows that would begin with it are those of a write that was refused.
            entry.starting.is_empty() && (entry.dirty || entry.lane.committed() != entry.noted)
        });
        if differs == Some(true) {
            self.changed.insert(trigger);
            self.write_down();
        }
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
            entry.hold_back();
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

    /// Begins windows whose start is written down. Where somebody paused the trigger meanwhile they wait, and that is
    /// written down as well.
    pub(super) fn begin_windows(&mut self, trigger: Uuid, starting: Vec<Starting>) {
        let Some(entry) = self.lanes.get_mut(&trigger) else { return };
        if !starting.is_empty() && !entry.runner.may_run() {
            entry.postpone(starting);
            // Which writes it down in a turn that follows at once.
            self.touched.insert(trigger);
            return;
        }
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio_util::task::TaskTracker;
    use tripline_storage::Offset;
    use tripline_storage::batch::Batches;
    use tripline_storage::fs::sim::Fault;

    use super::super::entry::Entry;
    use super::super::testing::World;
    use super::*;
    use crate::broker::record::{LettersGo, TriggerVerdict};
    use crate::broker::state::LaneState;
    use crate::function::{ErrorClass, InvocationError};
    use crate::trigger::lane::{Outcome, WindowId};
    use crate::trigger::progress::Progress;
    use crate::trigger::status::set;

    impl World {
        /// A lane whose only record went through an attempt that came to this, which is not written down yet.
        fn add_ended(&mut self, outcome: Outcome) -> &mut Entry {
            let entry = self.add_with_record();
            let now_ms = entry.runner.clock.now_ms();
            let window = entry.lane.start_next(false, usize::MAX, now_ms).unwrap();
            let nudges = entry.nudges;
            entry.ended(window, Ended::answered(outcome), nudges);
            entry
        }

        /// A lane whose only record was refused for good, which is not written down yet.
        fn add_refused(&mut self) {
            let refused = InvocationError::new(ErrorClass::Rejected, "code", "message");
            let entry = self.add_ended(Outcome::failed([Offset::ZERO], refused));
            entry.take_verdicts();
            assert_eq!(entry.verdicts.len(), 1);
            self.poller.changed.insert(Uuid::from_u128(1));
        }

        /// How many batches the journal's file has.
        fn appends(&self) -> usize {
            let is_journal = |path: &PathBuf| {
                path.components().any(|part| part.as_os_str() == "state")
                    && path.extension().is_some_and(|is| is == "log")
            };
            let journal = self.disk.paths().into_iter().find(is_journal).unwrap();
            Batches::of(&self.disk.read_image(&journal).unwrap()).take_while(Result::is_ok).count()
        }
    }

    #[tokio::test]
    async fn a_verdict_that_the_journal_refuses_waits_for_it() {
        let mut world = World::new().await;
        world.add_refused();
        world.disk.fail_from(world.disk.operations() + 1, Fault::Enospc);
        world.poller.write_down();
        assert!(world.remembered(1).verdicts.is_empty() && world.entry(1).tasks.is_empty());
        assert_eq!((world.entry(1).verdicts.len(), world.blocks()), (1, 1), "it is kept, and the trigger says why");
        world.disk.heal();
        world.poller.write_down();
        assert!(world.remembered(1).verdicts.is_empty(), "tried again in a moment, not at once");
        world.entry(1).writes_again_at = Some(Instant::now());
        world.poller.write_down();
        assert_eq!((world.remembered(1).verdicts.len(), world.blocks()), (1, 0));
        assert_eq!((world.entry(1).verdicts.len(), world.entry(1).tasks.len()), (0, 1), "it is carried out");
    }

    #[tokio::test]
    async fn a_window_whose_start_the_journal_refused_does_not_begin_while_its_trigger_is_paused() {
        let mut world = World::new().await;
        world.add_with_record();
        world.poller.advance_touched();
        world.disk.fail_from(world.disk.operations() + 1, Fault::Enospc);
        world.poller.write_down();
        assert_eq!((world.entry(1).starting.len(), world.entry(1).tasks.len()), (1, 0), "it waits for the journal");
        world.runner.change(|holds| set(&mut holds.paused, true));
        world.disk.heal();
        world.entry(1).writes_again_at = Some(Instant::now());
        world.poller.write_down();
        assert_eq!((world.entry(1).starting.len(), world.entry(1).tasks.len()), (0, 0), "nothing begins in a pause");
        let progress = Progress::decode(&world.remembered(1).progress.unwrap()).unwrap();
        let attempts = progress.windows()[0].attempts;
        assert_eq!((attempts.running, attempts.attempts), (false, 0), "no attempt was made");
        // It begins when somebody resumes it, with its first attempt.
        world.runner.change(|holds| set(&mut holds.paused, false));
        world.poller.receive(Message::Wake(Uuid::from_u128(1)));
        world.poller.advance_touched();
        world.poller.write_down();
        let entry = world.entry(1);
        let window = *entry.tasks.keys().next().expect("it begins");
        assert_eq!(entry.lane.state(window).attempt_number(), 1);
    }

    #[tokio::test]
    async fn a_pause_while_a_start_is_written_down_holds_it_back_and_is_written_down_next() {
        let mut world = World::new().await;
        world.add_with_record();
        world.poller.advance_touched();
        let starting = std::mem::take(&mut world.entry(1).starting);
        assert_eq!(starting.len(), 1);
        world.poller.write_down();
        world.runner.change(|holds| set(&mut holds.paused, true));
        let is_running = |world: &World| {
            Progress::decode(&world.remembered(1).progress.unwrap()).unwrap().windows()[0].attempts.running
        };
        assert!(is_running(&world));
        world.poller.begin_windows(Uuid::from_u128(1), starting);
        assert!(world.entry(1).tasks.is_empty());
        world.poller.advance_touched();
        world.poller.write_down();
        assert!(!is_running(&world), "a start that stays in the journal counts as interrupted at the next");
    }

    #[tokio::test]
    async fn what_has_ended_of_a_lane_that_goes_is_not_made_again() {
        let mut world = World::new().await;
        // Both in one turn.
        world.add_ended(Outcome::done());
        let (done, removed) = tokio::sync::oneshot::channel();
        world.poller.receive(Message::Remove(Uuid::from_u128(1), done));
        removed.await.unwrap();
        let progress = Progress::decode(&world.remembered(1).progress.unwrap()).unwrap();
        assert_eq!(progress.committed(), Offset::ZERO.next());
    }

    #[tokio::test]
    async fn a_pause_that_the_broker_does_not_survive_does_not_count_towards_the_age() {
        let mut world = World::new().await;
        world.add_ended(Outcome::failed([Offset::ZERO], InvocationError::new(ErrorClass::Failed, "500", "")));
        world.poller.changed.insert(Uuid::from_u128(1));
        world.poller.write_down();
        let stands_still = |world: &mut World, paused| {
            world.runner.change(|holds| set(&mut holds.paused, paused));
            world.poller.receive(Message::Wake(Uuid::from_u128(1)));
            world.poller.advance_touched();
            world.poller.write_down();
            let progress = Progress::decode(&world.remembered(1).progress.unwrap()).unwrap();
            progress.windows()[0].attempts.excluded_since_ms.is_some()
        };
        assert!(stands_still(&mut world, true));
        assert!(!stands_still(&mut world, false));
    }

    #[tokio::test]
    async fn a_verdict_that_is_written_down_at_the_end_is_carried_out_after_the_next_start() {
        let mut world = World::new().await;
        world.add_refused();
        world.poller.stopping = true;
        world.poller.write_down();
        assert!(world.entry(1).tasks.is_empty() && world.poller.is_at_rest());
        let remembered = world.remembered(1);
        assert_eq!(remembered.verdicts.len(), 1);
        world.poller = Poller::new(World::input(&world.runner, &world.topic), TaskTracker::new());
        let entry = world.add(1, remembered);
        assert_eq!(entry.tasks.len(), 1);
        assert!(entry.lane.start_next(false, usize::MAX, i64::MAX / 2).is_none(), "its record is not invoked again");
    }

    #[tokio::test]
    async fn what_many_lanes_have_to_say_goes_in_appends_of_a_bounded_size() {
        const LANES: u128 = 5;
        const OFFSETS: i64 = 50_000;
        let mut world = World::new().await;
        // So that nothing is carried out.
        world.poller.stopping = true;
        for number in 1..=LANES {
            let lane = world.lane_id(number);
            let verdict = TriggerVerdict {
                lane,
                first: 0,
                next: OFFSETS,
                offsets: (0..OFFSETS).collect(),
                reason: "attempts".to_owned(),
                function: "f".to_owned(),
                attempts: Vec::new(),
                dead_letters: LettersGo::Nowhere,
            };
            world.add(number, LaneState::default()).verdicts.push((WindowId::for_test(1), verdict));
            world.poller.changed.insert(lane.trigger);
        }
        let before = world.appends();
        world.poller.write_down();
        // 400 kB each: the first is full with three, the second has the others.
        assert_eq!(world.appends() - before, 2);
        for number in 1..=LANES {
            assert_eq!(world.remembered(number).verdicts[&0].offsets.len(), 50_000, "lane {number}");
        }
    }
}
