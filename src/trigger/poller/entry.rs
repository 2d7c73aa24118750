//! A trigger's lane in the hands of its poller: what it waits for besides its own decisions.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tripline_storage::Offset;

use super::{NewLane, RunLane};
use crate::broker::record::{JournalRecord, LaneId, TriggerProgress, TriggerSettled, TriggerVerdict};
use crate::function::{ErrorClass, InvocationError};
use crate::input::EventInput;
use crate::trigger::attempt::Step;
use crate::trigger::give_up;
use crate::trigger::invoke::Ended;
use crate::trigger::lane::{Carried, Lane, WindowId};
use crate::trigger::lane_status::LaneStatus;
use crate::trigger::progress::Progress;
use crate::trigger::runner::{Counters, DISK_RETRY, NewOutage, Permit, Runner};
use crate::trigger::share::{self, Group, Share};
use crate::trigger::spec::TriggerSpec;
use crate::trigger::status::set;

/// A trigger's lane at work.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) runner: Arc<Runner>,
    pub(super) spec: Arc<TriggerSpec>,
    pub(super) id: LaneId,
    pub(super) lane: Lane,
    pub(super) status: Arc<LaneStatus>,
    /// Its place among the lanes at the head; its own position may be behind, as nothing matched since.
    pub(super) at_head: Option<usize>,
    /// It did not take all of the last chunk at the head: what follows it reads by itself.
    pub(super) held_up: bool,
    /// Up to where an open window without an interval waits for records to fill it: what was there when it was first
    /// seen. However fast more comes, it goes when that was read.
    pub(super) fills_to: Option<Offset>,
    /// Records that had been read at the head when it was last looked at.
    pub(super) seen_records: u64,
    /// It read for its spilled keys the last time.
    pub(super) catches_up: bool,
    /// Progress differs from what was written down.
    pub(super) dirty: bool,
    /// The committed offset that was written down last.
    pub(super) noted: Offset,
    /// Records that matched since it was last looked at.
    pub(super) matched_at_head: usize,
    /// Verdicts that were carried out and are not written down as settled.
    pub(super) settled: Vec<i64>,
    /// Verdicts that are carried out when they are written down.
    pub(super) verdicts: Vec<(WindowId, TriggerVerdict)>,
    /// Windows that begin when their start is written down.
    pub(super) starting: Vec<Starting>,
    pub(super) tasks: FxHashMap<WindowId, Running>,
    /// Verdicts that cannot be carried out for now, and who to tell that a person skips them.
    pub(super) stuck: FxHashMap<WindowId, oneshot::Sender<()>>,
    /// What stands in the way of reading on; what is in hand goes on meanwhile.
    pub(super) ahead: Option<Obstacle>,
    /// What stands in the way of reading again for spilled keys, from this offset on; all else goes on meanwhile.
    pub(super) catch_up: Option<(Offset, Obstacle)>,
    /// What could not be written down is tried again then; nothing begins before.
    pub(super) writes_again_at: Option<Instant>,
    pub(super) nudges: u64,
    pub(super) in_outage: bool,
    /// Its filter's number in the partition's set.
    pub(super) slot: u32,
    /// Its definition changed since it was placed.
    pub(super) redefined: bool,
    /// The deadline that stands among the timers.
    pub(super) timer_ms: Option<i64>,
    /// Set for a lane of a run.
    pub(super) run: Option<RunLane>,
    /// Its run was told that it has come to its end.
    pub(super) completed: bool,
    #[cfg(feature = "cluster")]
    pub(super) kept: super::cluster::Kept,
}

/// What cannot be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Obstacle {
    /// It is tried again then.
    pub(super) until: Instant,
    /// One after the last of damaged records, which a person may skip.
    pub(super) damaged_to: Option<Offset>,
}

impl Obstacle {
    pub(super) fn new(damaged_to: Option<Offset>) -> Self {
        Self { until: Instant::now() + DISK_RETRY, damaged_to }
    }

    fn may_be_tried(&self) -> bool {
        self.until <= Instant::now()
    }
}

#[derive(Debug)]
pub(super) struct Starting {
    pub(super) window: WindowId,
    pub(super) permit: Permit,
}

/// An attempt or a verdict under way.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) task: JoinHandle<()>,
    /// The nudge that it began under: what it says of code and target is out of date after the next.
    pub(super) nudges: u64,
}

impl Running {
    pub(super) fn abort(&self) {
        self.task.abort();
    }
}

impl Entry {
    pub(super) fn new(new: NewLane, carried: Vec<Carried>, slot: u32) -> Self {
        let NewLane { runner, id, progress, status, run, .. } = new;
        // Before the definition: what is newer than it says must not count as known.
        let nudges = runner.nudges();
        let spec = runner.spec();
        let lane = Lane::restore(spec.lane(), &progress, carried);
        Self {
            noted: progress.committed(),
            nudges,
            runner,
            spec,
            id,
            lane,
            status,
            at_head: None,
            held_up: false,
            fills_to: None,
            seen_records: 0,
            catches_up: false,
            dirty: false,
            matched_at_head: 0,
            settled: Vec::new(),
            verdicts: Vec::new(),
            starting: Vec::new(),
            tasks: FxHashMap::default(),
            stuck: FxHashMap::default(),
            ahead: None,
            catch_up: None,
            writes_again_at: None,
            in_outage: false,
            slot,
            redefined: false,
            timer_ms: None,
            run,
            completed: false,
            #[cfg(feature = "cluster")]
            kept: super::cluster::Kept::default(),
        }
    }

    /// This works on a window from now on.
    pub(super) fn runs(&mut self, window: WindowId, task: JoinHandle<()>) {
        self.tasks.insert(window, Running { task, nudges: self.nudges });
    }

    /// Whether what could not be written is not to be tried again yet.
    pub(super) fn is_held_up(&self) -> bool {
        self.writes_again_at.is_some_and(|at| at > Instant::now())
    }

    /// Whether it has something to read by itself.
    pub(super) fn can_read(&self, tail: Offset) -> bool {
        self.runner.may_run() && (self.reads_on_at(tail).is_some() || self.catches_up_at().is_some())
    }

    /// Where it reads on, if it can now.
    pub(super) fn reads_on_at(&self, tail: Offset) -> Option<Offset> {
        let at = self.lane.read_at().filter(|at| *at < self.end(tail));
        at.filter(|_| self.ahead.is_none_or(|obstacle| obstacle.may_be_tried()))
    }

    /// Where it reads again for spilled keys, if it can now.
    pub(super) fn catches_up_at(&self) -> Option<Offset> {
        self.lane.catch_up_at().filter(|_| self.catch_up.is_none_or(|(_, obstacle)| obstacle.may_be_tried()))
    }

    /// `offset`, or the end of the run's range where that is before it.
    pub(super) fn end(&self, offset: Offset) -> Offset {
        self.run.as_ref().map_or(offset, |run| run.until.min(offset))
    }

    /// Whether there is something to read for which an open window waits.
    pub(super) fn fills(&mut self, tail: Offset) -> bool {
        self.fills_to = self.lane.waits_for_more().then(|| self.fills_to.unwrap_or_else(|| self.end(tail)));
        let to = self.fills_to.unwrap_or_else(|| self.end(tail));
        self.ahead.is_none() && self.lane.read_at().is_some_and(|at| at < to)
    }

    /// The partition as its attempts see it.
    pub(super) fn input<'a>(&'a self, shared: &'a EventInput) -> &'a EventInput {
        self.run.as_ref().map_or(shared, |run| &run.input)
    }

    /// Which of the windows that begin are read together.
    pub(super) fn shares(&self, starting: &[Starting]) -> Vec<Option<Share>> {
        if starting.len() < 2 || self.spec.transform.functions().next().is_some() {
            return vec![None; starting.len()];
        }
        let mut shares = Vec::with_capacity(starting.len());
        let (mut group, mut records) = (Vec::new(), 0);
        for Starting { window, .. } in starting {
            let wanted: share::Records = self.lane.offsets(*window).into_iter().zip(self.lane.spots(*window)).collect();
            if records + wanted.len() > share::RECORDS_MAX {
                shares.extend(Group::of(std::mem::take(&mut group)).map(Some));
                records = 0;
            }
            records += wanted.len();
            group.push(wanted);
        }
        shares.extend(Group::of(group).map(Some));
        shares
    }

    /// Tells its run when everything of its range is finished and written down.
    pub(super) fn complete(&mut self) {
        let Some(run) = self.run.as_ref().filter(|_| !self.completed) else { return };
        let nothing_left = self.lane.position() >= run.until
            && self.lane.is_idle()
            && self.tasks.is_empty()
            && self.starting.is_empty()
            && self.settled.is_empty();
        if nothing_left && !self.dirty && self.noted == self.lane.committed() {
            self.completed = true;
            run.completion.lane_done();
        }
    }

    /// A new definition, new code, a person who resumes, the end of an outage.
    pub(super) fn take_over_changes(&mut self) {
        let now_ms = self.runner.clock.now_ms();
        // Before the definition: each comes with a nudge of its own, which may be on its way.
        let nudges = self.runner.nudges();
        let spec = self.runner.spec();
        if !Arc::ptr_eq(&spec, &self.spec) {
            let placeholder = Lane::restore(spec.lane(), &Progress::start(Offset::ZERO), Vec::new());
            let lane = std::mem::replace(&mut self.lane, placeholder);
            self.lane = lane.redefine(spec.lane(), now_ms);
            self.spec = spec;
            self.dirty = true;
            self.redefined = true;
            // What cannot be read is met again if it is read at all.
            (self.ahead, self.catch_up) = (None, None);
            self.unblock();
        }
        if nudges != self.nudges {
            self.nudges = nudges;
            let now = Instant::now();
            let obstacles = self.ahead.iter_mut().chain(self.catch_up.as_mut().map(|(_, obstacle)| obstacle));
            obstacles.for_each(|obstacle| obstacle.until = now);
            // What is shown of them ends when it went well.
            self.writes_again_at.iter_mut().for_each(|at| *at = now);
            self.lane.wake(false, now_ms);
        }
        let in_outage = self.runner.holds(|holds| holds.outage.is_some());
        if self.in_outage && !in_outage {
            self.lane.wake(true, now_ms);
        }
        self.in_outage = in_outage;
        self.dirty |= self.lane.suspend(!self.runner.time_counts(), now_ms);
        if let Some(adaptive) = &*self.runner.adaptive.lock() {
            self.lane.set_count(adaptive.count());
        }
    }

    /// What came of an attempt that began under a nudge: the lane decides, the trigger learns.
    pub(super) fn ended(&mut self, window: WindowId, ended: Ended, nudges: u64) {
        let runner = Arc::clone(&self.runner);
        let now_ms = runner.clock.now_ms();
        let Ended { outcome, delivered, expired, took, reach, made } = ended;
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(reason) => {
                // Its records cannot be read: that says nothing about the function. Nobody is to take it for
                // interrupted.
                self.show_blocked(&reason);
                self.dirty = true;
                return self.lane.postpone(window, now_ms.saturating_add(1000));
            }
        };
        let stopped = runner.holds(|holds| holds.stopped);
        if stopped && outcome.error.as_ref().is_some_and(|error| error.class == ErrorClass::Interrupted) {
            // It is done again after the next start, and counted as interrupted then.
            made.into_iter().for_each(|made| runner.traces.attempt(made, None));
            return;
        }
        let holds_all =
            |error: &InvocationError| matches!(error.class, ErrorClass::BrokenCode | ErrorClass::Unavailable);
        let is_stale = nudges != runner.nudges();
        if is_stale && outcome.error.as_ref().is_some_and(holds_all) {
            // Of the code or the target that was: there is a reason to try at once.
            let again = Step::RetryAt { at_ms: now_ms, attempt: self.lane.state(window).attempt_number() };
            made.into_iter().for_each(|made| runner.traces.attempt(made, Some(again)));
            self.dirty = true;
            return self.lane.postpone(window, now_ms);
        }
        Counters::add(&runner.counters.delivered, delivered);
        Counters::add(&runner.counters.expired, expired);
        let succeeded = outcome.error.is_none();
        let counter = if succeeded { &runner.counters.attempts_succeeded } else { &runner.counters.attempts_failed };
        Counters::add(counter, 1);
        let message = outcome.error.as_ref().map(|error| error.message.clone()).unwrap_or_default();
        let told = outcome.error.as_ref().and_then(|error| error.retry_after);
        let timed_out = outcome.error.as_ref().is_some_and(|error| error.code == "timeout");
        // Whatever follows for its window.
        let throttled = outcome.error.as_ref().is_some_and(|error| error.class == ErrorClass::Throttled);
        let step = self.lane.end(window, outcome, now_ms, fastrand::u64(..));
        made.into_iter().for_each(|made| runner.traces.attempt(made, Some(step)));
        self.dirty = true;
        if let Some(adaptive) = &mut *runner.adaptive.lock() {
            match step {
                Step::Done => {
                    if let Some(took) = took {
                        adaptive.succeeded(u32::try_from(delivered).unwrap_or(u32::MAX), took);
                    }
                }
                _ if throttled || timed_out => adaptive.throttled(),
                _ => {}
            }
            self.lane.set_count(adaptive.count());
        }
        if throttled {
            runner.slots.halve();
        }
        // A nudge counts before it clears what holds the trigger: what is out of date by then is not put in its place.
        let is_current = |runner: &Runner| nudges == runner.nudges();
        match step {
            Step::Done => {
                if took.is_some() {
                    runner.slots.grow(self.id.trigger);
                }
                self.unblock();
            }
            Step::Outage { .. } => {
                // It may be over, by the success of another, before anybody looks.
                self.in_outage = true;
                let began_ms = self.lane.state(window).last_attempt_ms.unwrap_or(now_ms);
                return runner.unreachable(NewOutage { reason: message, of: reach, began_ms, told }, nudges, now_ms);
            }
            Step::BrokenCode => {
                runner.change(|holds| is_current(&runner) && set(&mut holds.failed, Some(message)));
                return;
            }
            Step::Blocked { .. } => self.show_blocked(&message),
            Step::RetryAt { .. } | Step::Throttled { .. } | Step::Exhausted { .. } => {}
        }
        // An attempt whose records were all dropped on the way asked nobody behind that.
        if !is_stale {
            runner.reached(reach);
        }
    }

    /// What cannot be read is tried again in a moment; `catch_up`: from there on, for spilled keys.
    pub(super) fn cannot_read(&mut self, catch_up: Option<Offset>, damaged_to: Option<Offset>, reason: &str) {
        let obstacle = Obstacle::new(damaged_to);
        match catch_up {
            None => self.ahead = Some(obstacle),
            Some(from) => self.catch_up = Some((from, obstacle)),
        }
        self.show_blocked(reason);
    }

    /// What cannot be written down is tried again in a moment.
    pub(super) fn cannot_write(&mut self, reason: &str) {
        self.writes_again_at = Some(Instant::now() + DISK_RETRY);
        self.show_blocked(reason);
    }

    /// Reading went well; `catch_up`: for spilled keys.
    pub(super) fn has_read(&mut self, catch_up: bool) {
        let over = if catch_up { self.catch_up.take().is_some() } else { self.ahead.take().is_some() };
        if over {
            self.unblock();
        }
    }

    /// A person gives up what is damaged and stands in the way. Answers how many records that are, at most.
    pub(super) fn skip_damage(&mut self, now_ms: i64) -> usize {
        let records = |from: Offset, to: Offset| usize::try_from(to.get().saturating_sub(from.get())).unwrap_or(0);
        let mut skipped = 0;
        // What was read up to here is counted on the other way.
        let position = self.lane.position();
        if let Some(damaged_to) = self.ahead.and_then(|obstacle| obstacle.damaged_to) {
            let to = self.end(damaged_to);
            skipped += records(position, to);
            self.lane.pass(to, now_ms);
            self.ahead = None;
        }
        if let Some((from, damaged_to)) = self.catch_up.and_then(|(from, obstacle)| Some((from, obstacle.damaged_to?)))
        {
            let to = self.end(damaged_to);
            skipped += records(from, to.min(position));
            self.lane.take_spilled(&[], from, to, now_ms);
            self.catch_up = None;
        }
        if skipped > 0 {
            self.unblock();
        }
        skipped
    }

    pub(super) fn show_blocked(&self, reason: &str) {
        self.runner.change(|holds| holds.block(self.status.origin(), reason));
    }

    /// Something that held it up is over; it is shown as blocked for as long as something else does.
    pub(super) fn unblock(&self) {
        let place = (self.id.topic, self.id.partition);
        // For a key that waits for an hour nothing is read again meanwhile: what may be well by then is not shown.
        let catch_up_is_damaged = self.catch_up.is_some_and(|(_, obstacle)| obstacle.damaged_to.is_some());
        if self.ahead.is_some() || catch_up_is_damaged || self.writes_again_at.is_some() {
            return;
        }
        // Usually none is: the windows are not looked through for each that succeeds.
        if self.runner.holds(|holds| holds.blocked.contains_key(&place)) && self.lane.blocked().is_none() {
            self.runner.change(|holds| holds.blocked.remove(&place).is_some());
        }
    }

    /// Windows whose attempts are spent get their verdict.
    pub(super) fn take_verdicts(&mut self) {
        while let Some((window, reason)) = self.lane.next_given_up() {
            let (offsets, state) = (self.lane.offsets(window), self.lane.state(window));
            let records = (self.lane.name(window), offsets.as_slice());
            let verdict = give_up::verdict(self.id, self.spec.function.label(), records, state, reason);
            self.verdicts.push((window, verdict));
            self.dirty = true;
        }
    }

    /// What is to be written down: progress, and verdicts that are new. Answers how many bytes that takes, about.
    pub(super) fn add_records(&mut self, records: &mut Vec<JournalRecord>) -> usize {
        let progress = self.lane.encoded_progress();
        let verdict_bytes = |verdict: &TriggerVerdict| {
            verdict.offsets.len() * size_of::<i64>() + verdict.attempts.len() + verdict.function.len()
        };
        let size_bytes =
            progress.len() + self.verdicts.iter().map(|(_, verdict)| verdict_bytes(verdict)).sum::<usize>();
        records.push(if self.settled.is_empty() {
            TriggerProgress { lane: self.id, progress }.into()
        } else {
            TriggerSettled { lane: self.id, progress, verdicts: self.settled.clone() }.into()
        });
        records.extend(self.verdicts.iter().map(|(_, verdict)| verdict.clone().into()));
        size_bytes
    }

    /// Windows that are to begin when this is written down do not, where somebody paused the trigger meanwhile.
    pub(super) fn hold_back(&mut self) {
        if !self.runner.may_run() {
            let starting = std::mem::take(&mut self.starting);
            self.postpone(starting);
        }
    }

    /// These attempts are not made after all: their windows begin when they may.
    pub(super) fn postpone(&mut self, starting: Vec<Starting>) {
        let now_ms = self.runner.clock.now_ms();
        self.dirty |= !starting.is_empty();
        starting.iter().for_each(|starting| self.lane.postpone(starting.window, now_ms));
    }

    pub(super) fn written(&mut self) {
        self.dirty = false;
        self.settled.clear();
        self.noted = self.lane.committed();
        if self.writes_again_at.take().is_some() {
            self.unblock();
        }
        self.status.show(&self.lane, self.noted);
    }

    pub(super) fn count_withheld(&mut self) {
        let withheld = self.lane.take_withheld();
        Counters::add(&self.runner.counters.debounced, withheld.debounced);
        Counters::add(&self.runner.counters.skipped, withheld.skipped);
    }

    pub(super) fn show(&self) {
        self.status.show(&self.lane, self.lane.committed());
        // Also of a window that failed beside others of its attempt, or before a restart.
        if let Some(reason) = self.lane.blocked()
            && !self.runner.holds(|holds| holds.blocked.contains_key(&(self.id.topic, self.id.partition)))
        {
            self.show_blocked(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::broker::state::LaneState;
    use crate::input::LogInput;
    use crate::topic::name::TopicName;
    use crate::topic::spec::{TopicConfig, TopicSpec};
    use crate::trigger::lane::Outcome;
    use crate::trigger::parcel::Reach;
    use crate::trigger::status::Outage;
    use crate::trigger::window::{RecordFacts, Spot};

    /// A lane with one record, on a topic that exists.
    async fn entry() -> Entry {
        let mut entry = entry_of(json!({"retry": {"initial": "10s"}})).await;
        take(&mut entry, 0..1);
        entry
    }

    /// Records of one key.
    fn take(entry: &mut Entry, offsets: std::ops::Range<i64>) {
        let fact = |offset: i64| {
            let (offset, spot) = (Offset::new(offset).unwrap(), Spot::UNKNOWN);
            RecordFacts { offset, key: 0, size_bytes: 1, age: Duration::ZERO, spot }
        };
        let (facts, next): (Vec<RecordFacts>, _) = (offsets.clone().map(fact).collect(), Offset::new(offsets.end));
        entry.lane.take(&facts, next.unwrap(), entry.runner.clock.now_ms());
    }

    async fn entry_of(more: serde_json::Value) -> Entry {
        entry_from(more, Progress::start(Offset::ZERO)).await
    }

    /// A lane that goes on from there, of a trigger that was just started.
    async fn entry_from(more: serde_json::Value, progress: Progress) -> Entry {
        let mut definition = json!({"trigger": "t", "input": {"topic": "in"}, "function": "f", "concurrency": 8});
        definition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let runner = Runner::for_test(&definition);
        let name = TopicName::new("in").unwrap();
        let topic = TopicSpec { name, partitions: 1, config: TopicConfig::default() };
        let topic = runner.broker.create_topic(topic).await.unwrap();
        let input = EventInput::Log(LogInput::new(&runner.broker, &topic, 0).unwrap());
        let new = NewLane {
            id: LaneId { trigger: Uuid::from_u128(1), topic: topic.id(), partition: 0 },
            progress,
            remembered: LaneState::default(),
            status: Arc::new(LaneStatus::new(input, Offset::ZERO, None)),
            runner,
            run: None,
            #[cfg(feature = "cluster")]
            group: None,
        };
        Entry::new(new, Vec::new(), 0)
    }

    /// Starts the attempt whose turn it is, as written down.
    fn start(entry: &mut Entry) -> Option<WindowId> {
        let window = entry.lane.start_next(false, usize::MAX, entry.runner.clock.now_ms());
        entry.dirty = false;
        window
    }

    fn outage_of(of: Reach) -> Outage {
        Outage { reason: "down".to_owned(), probe_at_ms: 0, of }
    }

    fn failed(class: ErrorClass) -> Ended {
        let outcome = Outcome::failed([Offset::ZERO], InvocationError::new(class, "code", "message"));
        Ended::answered(outcome)
    }

    #[tokio::test]
    async fn an_attempt_whose_records_cannot_be_read_is_written_down_as_not_made() {
        let mut entry = entry().await;
        let window = start(&mut entry).unwrap();
        assert!(entry.lane.state(window).running);
        let nudges = entry.nudges;
        entry.ended(window, Ended::broken(), nudges);
        assert!(!entry.lane.state(window).running);
        assert!(entry.dirty, "a start that stays in the journal counts as interrupted at the next");
    }

    #[tokio::test]
    async fn what_an_attempt_says_of_code_and_target_that_were_replaced_holds_up_nothing() {
        for class in [ErrorClass::BrokenCode, ErrorClass::Unavailable] {
            let mut entry = entry().await;
            let window = start(&mut entry).unwrap();
            let nudges = entry.nudges;
            entry.runner.redefine((*entry.spec).clone());
            entry.ended(window, failed(class), nudges);
            entry.take_over_changes();
            assert!(entry.runner.holds(|holds| holds.failed.is_none() && holds.outage.is_none()), "{class:?}");
            let again = start(&mut entry).expect("it may start at once");
            assert_eq!(entry.lane.state(again).attempts, 0);
            // What the new one says counts.
            let nudges = entry.nudges;
            entry.ended(again, failed(class), nudges);
            assert!(entry.runner.holds(|holds| holds.failed.is_some() || holds.outage.is_some()), "{class:?}");
        }
    }

    #[tokio::test]
    async fn a_success_of_the_target_that_was_does_not_end_the_outage_of_the_one_that_is() {
        let mut entry = entry().await;
        let window = start(&mut entry).unwrap();
        let nudges = entry.nudges;
        entry.runner.redefine((*entry.spec).clone());
        entry.runner.change(|holds| set(&mut holds.outage, Some(outage_of(Reach::TARGET))));
        entry.ended(window, Ended::answered(Outcome::done()), nudges);
        assert!(entry.runner.holds(|holds| holds.outage.is_some()));
        assert!(entry.lane.is_idle(), "its record is done all the same");
    }

    #[tokio::test]
    async fn a_window_says_nothing_about_a_function_that_it_did_not_ask() {
        let step = Reach::NONE.next();
        // How far it came, whose outage it is, and whether that is over.
        let cases = [
            (Reach::NONE, Reach::TARGET, false),
            (step, Reach::TARGET, false),
            (Reach::TARGET, Reach::TARGET, true),
            (Reach::NONE, step, false),
            (step, step, true),
            (step, step.next(), false),
            (Reach::TARGET, step.next(), true),
        ];
        for (reach, of, is_over) in cases {
            let mut entry = entry().await;
            entry.runner.change(|holds| set(&mut holds.outage, Some(outage_of(of))));
            let window = start(&mut entry).unwrap();
            let nudges = entry.nudges;
            let took = (reach > Reach::NONE).then_some(Duration::ZERO);
            entry.ended(window, Ended { took, reach, ..Ended::unasked(Outcome::done()) }, nudges);
            assert_eq!(entry.runner.holds(|holds| holds.outage.is_none()), is_over, "{reach:?} of {of:?}");
        }
    }

    #[tokio::test]
    async fn probes_of_one_outage_wait_longer_and_longer_whichever_windows_they_are_made_with() {
        let mut entry = entry_of(json!({"order": "none", "window": {"count": 1}})).await;
        take(&mut entry, 0..9);
        let nudges = entry.nudges;
        let mut probe_at_ms = entry.runner.clock.now_ms();
        let mut fail_next = |entry: &mut Entry, wait_ms: i64| {
            // A window that was never tried.
            let window = entry.lane.start_next(false, usize::MAX, probe_at_ms).unwrap();
            let down = InvocationError::new(ErrorClass::Unavailable, "connect", "refused");
            let failed = entry.lane.offsets(window);
            let before_ms = entry.runner.clock.now_ms();
            entry.ended(window, Ended::answered(Outcome::failed(failed, down)), nudges);
            let after_ms = entry.runner.clock.now_ms();
            probe_at_ms = entry.runner.holds(|holds| holds.outage.as_ref().unwrap().probe_at_ms);
            let expected = before_ms + wait_ms..=after_ms + wait_ms;
            assert!(expected.contains(&probe_at_ms), "{probe_at_ms} ms, not in {expected:?}");
        };
        for wait_ms in [1_000, 2_000, 4_000, 8_000] {
            fail_next(&mut entry, wait_ms);
        }
        entry.runner.reached(Reach::TARGET);
        // An outage of its own.
        fail_next(&mut entry, 1_000);
    }

    /// One that reads again for a key of which it could not keep all, from the first offset on, and on from the other.
    async fn entry_with_a_spilled_key() -> (Entry, Offset, Offset) {
        let mut entry = entry_of(json!({"order": "key", "window": {"count": 1}, "limits": {"records": 100}})).await;
        take(&mut entry, 0..90);
        while entry.lane.catch_up_at().is_none() {
            let window = start(&mut entry).unwrap();
            let nudges = entry.nudges;
            entry.ended(window, Ended::answered(Outcome::done()), nudges);
        }
        let (again, on) = (entry.lane.catch_up_at().unwrap(), entry.lane.read_at().unwrap());
        assert!(again < on);
        (entry, again, on)
    }

    #[tokio::test]
    async fn what_cannot_be_read_again_holds_up_nothing_that_is_new() {
        let (mut entry, again, on) = entry_with_a_spilled_key().await;
        let (damaged_to, tail) = (again.checked_add(3), on.checked_add(1000).unwrap());
        assert_eq!((entry.reads_on_at(tail), entry.catches_up_at()), (Some(on), Some(again)));
        entry.cannot_read(Some(again), damaged_to, "damaged");
        assert_eq!((entry.reads_on_at(tail), entry.catches_up_at()), (Some(on), None));
        assert!(entry.can_read(tail) && entry.fills(tail));
        entry.has_read(false);
        assert_eq!(entry.catches_up_at(), None, "to read on says nothing of it");
        entry.unblock();
        let is_blocked = |entry: &Entry| entry.runner.holds(|holds| !holds.blocked.is_empty());
        assert!(is_blocked(&entry));
        // The other way round.
        entry.cannot_read(None, None, "the disk does not answer");
        assert!(!entry.can_read(tail) && !entry.fills(tail));
        entry.runner.nudge();
        entry.take_over_changes();
        assert_eq!((entry.reads_on_at(tail), entry.catches_up_at()), (Some(on), Some(again)), "both are tried at once");
        // What is not damaged is not given up, and still in the way.
        let now_ms = entry.runner.clock.now_ms();
        assert_eq!(entry.skip_damage(now_ms), 3);
        assert_eq!((entry.lane.read_at(), entry.lane.catch_up_at()), (Some(on), damaged_to));
        assert!(entry.ahead.is_some() && entry.catch_up.is_none() && is_blocked(&entry));
    }

    #[tokio::test]
    async fn damage_on_both_ways_is_skipped_at_once() {
        let (mut entry, again, on) = entry_with_a_spilled_key().await;
        entry.cannot_read(Some(again), again.checked_add(3), "damaged");
        entry.cannot_read(None, on.checked_add(4), "damaged");
        entry.has_read(true);
        assert!(entry.catch_up.is_none() && entry.ahead.is_some());
        entry.cannot_read(Some(again), again.checked_add(3), "damaged");
        let now_ms = entry.runner.clock.now_ms();
        assert_eq!(entry.skip_damage(now_ms), 3 + 4);
        assert_eq!((entry.lane.read_at(), entry.lane.catch_up_at()), (on.checked_add(4), again.checked_add(3)));
        assert_eq!(entry.skip_damage(now_ms), 0);
    }

    #[tokio::test]
    async fn one_damaged_batch_in_the_way_of_both_is_counted_once() {
        let (mut entry, again, on) = entry_with_a_spilled_key().await;
        let damaged_to = on.checked_add(4);
        entry.cannot_read(Some(again), damaged_to, "damaged");
        entry.cannot_read(None, damaged_to, "damaged");
        let now_ms = entry.runner.clock.now_ms();
        assert_eq!(entry.skip_damage(now_ms) as u64, on.since(again) + 4);
        assert_eq!((entry.lane.read_at(), entry.lane.catch_up_at()), (damaged_to, None));
    }

    /// Why its partition is shown as blocked.
    fn shown_blocked(entry: &Entry) -> Option<String> {
        let (shown, _) = entry.runner.shown();
        (shown.state == crate::trigger::service::TriggerState::Blocked).then_some(shown.reason)
    }

    #[tokio::test]
    async fn a_record_that_is_refused_beside_others_and_not_given_up_is_shown_until_it_is_finished() {
        let intolerant = json!({"errors_tolerance": "none", "order": "none", "window": {"count": 2}});
        let mut entry = entry_of(intolerant).await;
        take(&mut entry, 0..4);
        let (window, other) = (start(&mut entry).unwrap(), start(&mut entry).unwrap());
        let refusal = InvocationError::new(ErrorClass::Rejected, "transform-failed", "$.data.x finds nothing");
        let outcome = Outcome { rejected: [(Offset::ZERO, refusal)].into(), ..Outcome::default() };
        let nudges = entry.nudges;
        entry.ended(window, Ended::unasked(outcome), nudges);
        entry.show();
        assert_eq!(shown_blocked(&entry).unwrap(), "partition in/0: $.data.x finds nothing");
        entry.ended(other, Ended::answered(Outcome::done()), nudges);
        assert!(shown_blocked(&entry).is_some(), "another one that succeeds says nothing of it");
        // A person who wants it tried now.
        entry.runner.nudge();
        entry.take_over_changes();
        let again = start(&mut entry).unwrap();
        let nudges = entry.nudges;
        entry.ended(again, Ended::answered(Outcome::done()), nudges);
        entry.show();
        assert_eq!(shown_blocked(&entry), None);
    }

    #[tokio::test]
    async fn a_window_that_was_blocked_before_a_restart_is_blocked_behind_it() {
        for (class, max_attempts) in [(ErrorClass::Failed, 1), (ErrorClass::Rejected, 9), (ErrorClass::Failed, 9)] {
            let retry = json!({"max_attempts": max_attempts, "max_interval": "1h"});
            let intolerant = json!({"errors_tolerance": "none", "retry": retry});
            let mut entry = entry_of(intolerant.clone()).await;
            take(&mut entry, 0..1);
            let window = start(&mut entry).unwrap();
            let nudges = entry.nudges;
            entry.ended(window, failed(class), nudges);
            let is_blocked = shown_blocked(&entry).is_some();
            assert_eq!(is_blocked, class == ErrorClass::Rejected || max_attempts == 1);
            let progress = Progress::decode(&entry.lane.encoded_progress()).unwrap();
            let mut entry = entry_from(intolerant, progress).await;
            take(&mut entry, 0..1);
            entry.show();
            assert_eq!(shown_blocked(&entry).is_some(), is_blocked, "{class:?}, {max_attempts}");
            // Somebody skips it.
            entry.lane.skip();
            let (window, _) = entry.lane.next_given_up().unwrap();
            entry.lane.settle(window, entry.runner.clock.now_ms());
            entry.unblock();
            assert_eq!(shown_blocked(&entry), None);
        }
    }

    #[tokio::test]
    async fn a_definition_that_tolerates_errors_leaves_no_window_blocked() {
        let mut entry = entry_of(json!({"errors_tolerance": "none"})).await;
        take(&mut entry, 0..1);
        let window = start(&mut entry).unwrap();
        let nudges = entry.nudges;
        entry.ended(window, failed(ErrorClass::Rejected), nudges);
        assert!(shown_blocked(&entry).is_some());
        let mut spec = (*entry.runner.spec()).clone();
        entry.runner.redefine(spec.clone());
        entry.take_over_changes();
        assert!(shown_blocked(&entry).is_some(), "it has not succeeded yet");
        spec.errors_tolerance = crate::trigger::attempt::ErrorsTolerance::All;
        entry.runner.redefine(spec);
        entry.take_over_changes();
        assert_eq!(shown_blocked(&entry), None);
    }

    #[tokio::test]
    async fn a_write_that_goes_well_after_a_nudge_is_not_shown_as_blocked() {
        let mut entry = entry().await;
        entry.cannot_write("the disk is full");
        entry.runner.nudge();
        entry.take_over_changes();
        assert!(!entry.is_held_up(), "it is tried at once");
        entry.written();
        assert!(entry.runner.holds(|holds| holds.blocked.is_empty()));
    }

    #[tokio::test]
    async fn a_new_definition_forgets_what_stood_in_the_way_of_the_old_one() {
        let (mut entry, again, on) = entry_with_a_spilled_key().await;
        entry.cannot_read(Some(again), again.checked_add(3), "damaged");
        let mut spec = (*entry.runner.spec()).clone();
        spec.order = crate::trigger::spec::Order::Partition;
        entry.runner.redefine(spec);
        entry.take_over_changes();
        assert!(entry.catch_up.is_none() && entry.runner.holds(|holds| holds.blocked.is_empty()));
        assert!(entry.can_read(on.checked_add(1).unwrap()));
    }
}
