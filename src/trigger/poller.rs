//! Drives the lanes of one topic partition: reads for all triggers at once, starts attempts, writes progress down.
//!
//! One task per partition owns the lanes of every trigger that reads it; nothing of a lane is shared or locked. What
//! happens elsewhere (an attempt ends, a slot is free, a definition changes) comes as a message. A turn of the task:
//!
//! ```text
//! messages, timers ─▶ lanes decide ─▶ one journal append for all of them ─▶ attempts begin
//!          ▲                                                                   │
//!          └── one chunk of the log, read once and matched for all ◀───────────┘
//! ```
//! Triggers that have read everything stand together at the *head*: a new chunk is read once for all of them, and only
//! those that something matches are touched. The others read by themselves, a chunk each in turn, until they are there
//! too; so a trigger that is far behind holds up nobody. What one of them reads serves all that stand within it, and every
//! other turn is that of the furthest behind: so they meet, and many that catch up cost little more than one.
//!
//! An attempt is in the journal before it begins (T4), in the same append as the outcomes of the turn. While the journal
//! takes nothing, because the disk is full, nothing begins: a start that is not written down is not made.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tripline_storage::Offset;
#[cfg(feature = "cluster")]
use tripline_storage::{error::ReadError, partition::ReadOutcome};
use uuid::Uuid;

use super::give_up::{self, HoldUp};
use super::invoke::{self, Ended};
use super::lane::{Carried, Standing, WindowId};
use super::lane_status::LaneStatus;
use super::progress::Progress;
use super::run::{Completion, Gate};
use super::runner::{Counters, NotNow, Permit, Runner, Stopped};
use super::status::set;
use crate::broker::record::{JournalRecord, LaneId};
use crate::broker::state::LaneState;
use crate::function::Payload;
use crate::input::EventInput;

#[cfg(feature = "cluster")]
pub(super) mod cluster;
mod entry;
mod read;

use entry::{Entry, Running, Starting};

/// Progress over records that the filter turned away is written down after so long at the latest.
const FILTERED_PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Messages handled before anything is read again.
const MESSAGES_PER_TURN: usize = 1024;

/// Attempts end often when the last one before was so short a time ago.
const ENDS_OFTEN: Duration = Duration::from_micros(200);
/// How long the end of an attempt waits for others at most; a millisecond is the grain of timers.
const ENDED_WAIT: Duration = Duration::from_millis(1);
/// That many in a turn are enough.
const ENDED_PER_TURN_MAX: usize = 32;

/// Sends messages to a poller. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub(super) struct PollerHandle {
    sender: mpsc::UnboundedSender<Message>,
}

#[derive(Debug)]
pub(super) enum Message {
    /// Drive a lane of this trigger.
    Add(Box<NewLane>),
    /// Let go of a trigger's lane at once, attempts included; answered when nothing of them runs any more.
    Remove(Uuid, oneshot::Sender<()>),
    /// Something about this trigger may have changed.
    Wake(Uuid),
    /// An attempt has ended.
    Ended(Uuid, WindowId, Box<Ended>, Permit),
    /// A verdict was carried out; the first offset of its range.
    Settled(Uuid, WindowId, i64),
    /// The broker stops before a verdict could be carried out: the next start goes on with it.
    Abandoned(Uuid, WindowId),
    /// A verdict cannot be carried out for now; its task is told when a person skips it.
    HeldUp(Uuid, WindowId, oneshot::Sender<()>),
    /// Give up what a trigger's lane waits to try again, and pass over a damaged range; answered with how many records.
    Skip(Uuid, oneshot::Sender<usize>),
    /// A commit to the group is answered.
    #[cfg(feature = "cluster")]
    Committed(Uuid, Result<(), crate::input::cluster::CommitError>),
    /// A verdict that the group is to know.
    #[cfg(feature = "cluster")]
    Verdict(cluster::NewVerdict),
    /// What lies at an offset of a cluster's partition, or why it could not be read.
    #[cfg(feature = "cluster")]
    Fetched(Offset, Box<Result<ReadOutcome, ReadError>>),
    /// Where a trigger's lane has the record at an offset, with this hash of its key; nothing where it has no lane here.
    Stands(Uuid, Offset, u64, oneshot::Sender<Standing>),
    /// Start nothing more; end when nothing is in flight.
    Stop,
}

/// A lane to drive.
#[derive(Debug)]
pub(super) struct NewLane {
    pub(super) runner: Arc<Runner>,
    pub(super) id: LaneId,
    pub(super) progress: Progress,
    pub(super) remembered: LaneState,
    pub(super) status: Arc<LaneStatus>,
    /// Set for a lane of a run, which ends.
    pub(super) run: Option<RunLane>,
    #[cfg(feature = "cluster")]
    pub(super) kept: cluster::Kept,
    #[cfg(feature = "cluster")]
    pub(super) group: Option<cluster::GroupPlace>,
}

/// What a lane of a run has besides.
#[derive(Clone, Debug)]
pub(super) struct RunLane {
    /// Nothing from here on is taken.
    pub(super) until: Offset,
    /// Which records are taken; `None` leaves that to the trigger's filter.
    pub(super) gate: Option<Arc<Gate>>,
    /// The partition as its attempts see it: dead letters as the records that they were.
    pub(super) input: EventInput,
    /// Told when everything is finished and written down.
    pub(super) completion: Arc<Completion>,
}

impl PollerHandle {
    /// A handle to nothing but the messages sent to it.
    #[cfg(test)]
    pub(super) fn for_test() -> (Self, mpsc::UnboundedReceiver<Message>) {
        let (sender, messages) = mpsc::unbounded_channel();
        (Self { sender }, messages)
    }

    pub(super) fn wake(&self, trigger: Uuid) {
        self.send(Message::Wake(trigger));
    }

    /// A poller that has ended needs no messages.
    pub(super) fn send(&self, message: Message) {
        let _ = self.sender.send(message);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.sender.is_closed()
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.sender.same_channel(&other.sender)
    }

    /// Lets go of a trigger's lane, and waits for that.
    pub(super) async fn remove(&self, trigger: Uuid) {
        let (done, removed) = oneshot::channel();
        self.send(Message::Remove(trigger, done));
        // One that has ended has no lanes.
        let _ = removed.await;
    }

    /// The same of all these pollers; none waits for another.
    pub(super) async fn remove_from_all(pollers: &[Self], trigger: Uuid) {
        join_all(pollers.iter().map(|poller| poller.remove(trigger))).await;
    }

    /// Where a trigger's lane has the record at `offset`; `None` when there is no such lane.
    pub(super) async fn stands(&self, trigger: Uuid, offset: Offset, key: u64) -> Option<Standing> {
        let (answer, standing) = oneshot::channel();
        self.send(Message::Stands(trigger, offset, key, answer));
        standing.await.ok()
    }

    /// Skips what a trigger's lane waits for; answers how many records that were.
    pub(super) async fn skip(&self, trigger: Uuid) -> usize {
        let (done, skipped) = oneshot::channel();
        self.send(Message::Skip(trigger, done));
        skipped.await.unwrap_or(0)
    }
}

/// The task of one partition.
#[derive(Debug)]
pub(super) struct Poller {
    input: EventInput,
    handle: PollerHandle,
    inbox: mpsc::UnboundedReceiver<Message>,
    lanes: HashMap<Uuid, Box<Entry>>,
    /// Where the lanes at the head read next.
    head: Offset,
    at_head: Vec<Uuid>,
    /// Records read at the head so far.
    head_records: u64,
    /// Since the members of the scratch were made, others stand at the head.
    members_changed: bool,
    /// Lanes that read by themselves, in turn.
    behind: VecDeque<Uuid>,
    /// The one that is furthest behind was the last to read.
    furthest_turn: bool,
    /// Lanes to look at in this turn.
    touched: BTreeSet<Uuid>,
    /// Lanes whose progress is to be written down.
    changed: BTreeSet<Uuid>,
    /// The deadline of each lane that has one.
    timers: BTreeSet<(i64, Uuid)>,
    /// When progress over filtered records is written down.
    note_at: Option<Instant>,
    /// Nothing is read before this, after the log could not be read.
    head_retry_at: Option<Instant>,
    /// And those at the head show why.
    head_failed: bool,
    scratch: read::Scratch,
    filters: read::Filters,
    /// Attempts and verdicts under way.
    tracker: TaskTracker,
    /// Whose lanes these are, for the case that this task breaks down.
    runners: Arc<Mutex<HashMap<Uuid, Weak<Runner>>>>,
    /// Whose attempts have ended since the last turn, once for each.
    ended: Vec<Uuid>,
    /// When the last turn began that attempts ended before.
    ended_at: Instant,
    stopping: bool,
    /// Where progress is committed, instead of being written to the journal: as its one lane says.
    #[cfg(feature = "cluster")]
    group: Option<cluster::GroupPlace>,
    /// A chunk on its way from there.
    #[cfg(feature = "cluster")]
    fetch: cluster::Fetch,
}

/// Starts the task for one partition; what it begins is a task of `tracker`.
pub(super) fn spawn(input: EventInput, tracker: TaskTracker) -> (PollerHandle, tokio::task::JoinHandle<()>) {
    let (sender, inbox) = mpsc::unbounded_channel();
    let handle = PollerHandle { sender };
    let head = input.tail();
    let poller = Poller {
        input,
        handle: handle.clone(),
        inbox,
        lanes: HashMap::new(),
        head,
        at_head: Vec::new(),
        head_records: 0,
        members_changed: false,
        behind: VecDeque::new(),
        furthest_turn: false,
        touched: BTreeSet::new(),
        changed: BTreeSet::new(),
        timers: BTreeSet::new(),
        note_at: None,
        head_retry_at: None,
        head_failed: false,
        scratch: read::Scratch::default(),
        filters: read::Filters::default(),
        tracker,
        runners: Arc::default(),
        ended: Vec::new(),
        ended_at: Instant::now(),
        stopping: false,
        #[cfg(feature = "cluster")]
        group: None,
        #[cfg(feature = "cluster")]
        fetch: cluster::Fetch::default(),
    };
    let runners = Arc::clone(&poller.runners);
    let task = tokio::spawn(async move {
        // A bug of ours: its triggers show it instead of standing still in silence.
        if AssertUnwindSafe(poller.run()).catch_unwind().await.is_err() {
            let broken = "a partition's worker broke down; restart the broker, and report this";
            let runners: Vec<Arc<Runner>> = runners.lock().values().filter_map(Weak::upgrade).collect();
            runners.iter().for_each(|runner| runner.change(|holds| set(&mut holds.failed, Some(broken.to_owned()))));
        }
    });
    (handle, task)
}

impl Poller {
    async fn run(mut self) {
        loop {
            for _ in 0..MESSAGES_PER_TURN {
                let Ok(message) = self.inbox.try_recv() else { break };
                self.receive(message);
            }
            self.await_ended().await;
            self.fire_timers();
            let read = self.read_turn().await;
            self.advance_touched();
            self.write_down();
            if self.stopping && self.is_at_rest() {
                return;
            }
            if read {
                tokio::task::yield_now().await;
            } else if self.touched.is_empty() {
                self.wait().await;
            }
        }
    }

    fn is_at_rest(&self) -> bool {
        #[cfg(feature = "cluster")]
        if !self.is_committed() {
            return false;
        }
        self.lanes.values().all(|entry| entry.tasks.is_empty() && entry.starting.is_empty())
    }

    #[cfg(not(feature = "cluster"))]
    const fn is_fetching(&self) -> bool {
        false
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Add(new) => self.add(*new),
            Message::Remove(trigger, done) => self.remove(trigger, done),
            Message::Wake(trigger) => self.wake(trigger),
            // Whoever waits for the slot or for the probe's outcome is woken when the outcome is known.
            Message::Ended(trigger, window, ended, _permit) => self.ended(trigger, window, *ended),
            Message::Settled(trigger, window, first) => self.settled(trigger, window, first),
            Message::Abandoned(trigger, window) => self.abandoned(trigger, window),
            Message::HeldUp(trigger, window, skip) => {
                let entry = self.lanes.get_mut(&trigger).filter(|entry| entry.tasks.contains_key(&window));
                entry.map(|entry| entry.stuck.insert(window, skip));
            }
            Message::Skip(trigger, done) => {
                let _ = done.send(self.skip(trigger));
            }
            #[cfg(feature = "cluster")]
            Message::Committed(trigger, result) => self.committed(trigger, result),
            #[cfg(feature = "cluster")]
            Message::Verdict(new) => self.verdict(new),
            #[cfg(feature = "cluster")]
            Message::Fetched(from, outcome) => self.fetch = cluster::Fetch::Here(from, *outcome),
            Message::Stop => {
                self.stopping = true;
                self.forget_slots();
                // Records that were filtered out need not be looked at again.
                self.note_at = self.note_at.map(|_| Instant::now());
            }
            Message::Stands(trigger, offset, key, answer) => {
                self.with_lane(trigger, |poller, entry| {
                    poller.sync(entry);
                    let _ = answer.send(entry.lane.stands(offset, key));
                });
            }
        }
    }

    fn add(&mut self, mut new: NewLane) {
        #[cfg(feature = "cluster")]
        self.group.clone_from(&new.group);
        let trigger = new.id.trigger;
        let remembered = std::mem::take(&mut new.remembered);
        let verdicts: Vec<_> = remembered.verdicts.values().collect();
        let carried = verdicts.iter().filter_map(|verdict| give_up::carried(verdict)).collect::<Vec<Carried>>();
        new.runner.driven_by(self.handle.clone());
        self.runners.lock().insert(trigger, Arc::downgrade(&new.runner));
        let mut entry = Entry::new(new, carried, self.filters.take_slot());
        // Verdicts invoke nothing, so a pause does not hold them up: their records and their producer may not last.
        while let Some((window, _)) = entry.lane.next_given_up() {
            let name = entry.lane.name(window);
            let verdict = verdicts.iter().find(|verdict| verdict.offsets.first() == Some(&name.get()));
            let Some(verdict) = verdict else { continue };
            self.carry_out(&mut entry, window, give_up::Task::Known((*verdict).clone()));
        }
        // Also the window count that applies: its first chunk is read before it is looked at.
        entry.take_over_changes();
        self.lanes.insert(trigger, Box::new(entry));
        self.behind.push_back(trigger);
        self.touched.insert(trigger);
    }

    /// A new definition is in force before anything more is read.
    fn wake(&mut self, trigger: Uuid) {
        let woken = self.with_lane(trigger, |poller, entry| {
            poller.sync(entry);
            entry.take_over_changes();
            poller.filters.changed |= entry.redefined;
            poller.place(entry);
        });
        woken.map(|()| self.touched.insert(trigger));
    }

    /// Lets `act` have the poller and one of its lanes. However it returns, the lane is where it was.
    fn with_lane<T>(&mut self, trigger: Uuid, act: impl FnOnce(&mut Self, &mut Entry) -> T) -> Option<T> {
        let mut entry = self.lanes.remove(&trigger)?;
        let done = act(self, &mut entry);
        self.lanes.insert(trigger, entry);
        Some(done)
    }

    fn remove(&mut self, trigger: Uuid, done: oneshot::Sender<()>) {
        let Some(mut entry) = self.lanes.remove(&trigger) else {
            let _ = done.send(());
            return;
        };
        self.runners.lock().remove(&trigger);
        entry.runner.slots.forget(&self.handle, trigger);
        self.filters.free_slot(entry.slot);
        if let Some(index) = entry.at_head {
            self.leave_head(index);
        }
        self.behind.retain(|other| *other != trigger);
        entry.timer_ms.map(|at_ms| self.timers.remove(&(at_ms, trigger)));
        entry.tasks.values().for_each(Running::abort);
        // One that is writing down a verdict ends behind that; what the trigger remembers next must not come before it.
        tokio::spawn(async move {
            for running in std::mem::take(&mut entry.tasks).into_values() {
                let _ = running.task.await;
            }
            let _ = done.send(());
        });
    }

    /// Nothing begins here any more: others are not to wait for that.
    fn forget_slots(&self) {
        self.lanes.iter().for_each(|(trigger, entry)| entry.runner.slots.forget(&self.handle, *trigger));
    }

    fn skip(&mut self, trigger: Uuid) -> usize {
        let Some(entry) = self.lanes.get_mut(&trigger) else { return 0 };
        let now_ms = entry.runner.clock.now_ms();
        let mut skipped = entry.lane.skip();
        for (window, skip) in entry.stuck.drain() {
            // It may have found its way a moment ago.
            skipped += skip.send(()).map_or(0, |()| entry.lane.offsets(window).len());
        }
        if let Some(damage) = entry.damage.take() {
            let (from, to) = (damage.catch_up.unwrap_or_else(|| entry.lane.position()), entry.end(damage.to));
            skipped += usize::try_from(to.get().saturating_sub(from.get())).unwrap_or(0);
            match damage.catch_up {
                Some(from) => entry.lane.take_spilled(&[], from, to, now_ms),
                None => entry.lane.pass(to, now_ms),
            }
            entry.reads_again_at = None;
            entry.unblock();
        }
        entry.dirty = true;
        self.touched.insert(trigger);
        skipped
    }

    fn ended(&mut self, trigger: Uuid, window: WindowId, ended: Ended) {
        let Some(entry) = self.lanes.get_mut(&trigger) else { return };
        let Some(running) = entry.tasks.remove(&window) else { return };
        self.ended.push(trigger);
        self.touched.insert(trigger);
        entry.ended(window, ended, running.nudges);
    }

    fn settled(&mut self, trigger: Uuid, window: WindowId, first: i64) {
        let Some(entry) = self.lanes.get_mut(&trigger) else { return };
        entry.tasks.remove(&window);
        entry.stuck.remove(&window);
        entry.lane.settle(window, entry.runner.clock.now_ms());
        entry.settled.push(first);
        entry.dirty = true;
        entry.blocked.remove(&window);
        entry.unblock();
        self.touched.insert(trigger);
    }

    fn abandoned(&mut self, trigger: Uuid, window: WindowId) {
        if let Some(entry) = self.lanes.get_mut(&trigger) {
            entry.tasks.remove(&window);
            entry.stuck.remove(&window);
        }
    }

    /// Notes the lanes whose time has come.
    fn fire_timers(&mut self) {
        while let Some(&(at_ms, trigger)) = self.timers.first() {
            let entry = self.lanes.get_mut(&trigger).expect("a lane that goes takes its timer along");
            if at_ms > entry.runner.clock.now_ms() {
                return;
            }
            entry.timer_ms = None;
            self.timers.pop_first();
            self.touched.insert(trigger);
        }
    }

    /// Every touched lane decides what follows.
    fn advance_touched(&mut self) {
        let tail = self.input.tail();
        for trigger in std::mem::take(&mut self.touched) {
            self.with_lane(trigger, |poller, entry| {
                poller.sync(entry);
                poller.advance(entry, tail);
                poller.place(entry);
                poller.set_timer(entry);
                if entry.dirty {
                    poller.changed.insert(trigger);
                }
            });
        }
    }

    fn advance(&mut self, entry: &mut Entry, tail: Offset) {
        entry.take_over_changes();
        self.filters.changed |= entry.redefined;
        if self.stopping {
            return;
        }
        if entry.runner.may_run() {
            entry.runner.started();
            self.give_up(entry);
            self.start(entry, tail);
        }
        entry.runner.slots.pass_on(&self.handle, entry.id.trigger);
        entry.count_withheld();
        entry.show();
        entry.complete();
    }

    /// Windows whose attempts are spent get their verdict.
    fn give_up(&mut self, entry: &mut Entry) {
        while let Some((window, reason)) = entry.lane.next_given_up() {
            let task = give_up::Task::Decide {
                offsets: entry.lane.offsets(window),
                state: entry.lane.state(window).clone(),
                reason,
            };
            self.carry_out(entry, window, task);
        }
    }

    fn carry_out(&self, entry: &mut Entry, window: WindowId, task: give_up::Task) {
        #[cfg(feature = "cluster")]
        if let Some(group) = &self.group {
            return self.carry_out_there(group, entry, window, task);
        }
        let (handle, trigger) = (self.handle.clone(), entry.id.trigger);
        let hold_up = HoldUp::new(handle.clone(), trigger, window);
        let work = give_up::run(Arc::clone(&entry.runner), entry.input(&self.input).clone(), entry.id, task, hold_up);
        let running = self.tracker.spawn(async move {
            handle.send(match work.await {
                Ok(first) => Message::Settled(trigger, window, first),
                Err(Stopped) => Message::Abandoned(trigger, window),
            });
        });
        entry.runs(window, running);
    }

    /// Takes windows that may start; they begin when that is written down.
    fn start(&mut self, entry: &mut Entry, tail: Offset) {
        if entry.writes_again_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        loop {
            let now_ms = entry.runner.clock.now_ms();
            let more = entry.lane.read_at().is_some_and(|at| at < entry.end(tail));
            let Some(size_bytes) = entry.lane.next_size_bytes(more, now_ms) else { return };
            let permit = match entry.runner.permit(size_bytes, now_ms, &self.handle) {
                Ok(permit) => permit,
                Err(NotNow::Told) => return,
                Err(NotNow::Until(at_ms)) => return self.look_again(entry, at_ms),
            };
            // One that takes raw bytes takes one record at a time, also of a window that was made for another function.
            let raw = entry.runner.payload(&entry.spec) == Payload::Raw;
            let Some(window) = entry.lane.start(more, if raw { 1 } else { usize::MAX }, now_ms) else { return };
            if entry.run.is_some() {
                entry.runner.slots.spend(entry.lane.offsets(window).len(), entry.runner.clock.elapsed());
            }
            entry.dirty = true;
            entry.starting.push(Starting { window, permit });
        }
    }

    /// Has a lane looked at again at a time of which it knows nothing.
    fn look_again(&mut self, entry: &mut Entry, at_ms: i64) {
        if entry.timer_ms.is_none_or(|timer_ms| timer_ms > at_ms) {
            let trigger = entry.id.trigger;
            let before = entry.timer_ms.replace(at_ms);
            before.map(|before_ms| self.timers.remove(&(before_ms, trigger)));
            self.timers.insert((at_ms, trigger));
        }
    }

    fn set_timer(&mut self, entry: &mut Entry) {
        let deadline_ms = entry.lane.deadline_ms().filter(|_| entry.runner.may_run());
        let now = Instant::now();
        // A millisecond is the grain of timers: the moment has come when they fire.
        let again = entry.reads_again_at.into_iter().chain(entry.writes_again_at).filter(|at| *at > now).map(|at| {
            let wait_ms = i64::try_from((at - now).as_millis()).unwrap_or(i64::MAX).saturating_add(1);
            entry.runner.clock.now_ms().saturating_add(wait_ms)
        });
        if let Some(at_ms) = again.chain(deadline_ms).min() {
            self.look_again(entry, at_ms);
        }
    }

    /// A lane at the head catches up with what was read there and did not concern it.
    fn sync(&self, entry: &mut Entry) {
        if entry.at_head.is_none() {
            return;
        }
        // One that is held up stands where it stopped, and leaves the head.
        if !entry.held_up {
            entry.lane.pass(self.head, entry.runner.clock.now_ms());
        }
        let seen = self.head_records - entry.seen_records;
        let matched = std::mem::take(&mut entry.matched_at_head);
        Counters::add(
            &entry.runner.counters.filtered,
            usize::try_from(seen).unwrap_or(usize::MAX).saturating_sub(matched),
        );
        entry.seen_records = self.head_records;
    }

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
    fn write_down(&mut self) {
        self.note_filtered();
        #[cfg(feature = "cluster")]
        if let Some(group) = self.group.clone() {
            return self.commit(&group);
        }
        let mut records: Vec<JournalRecord> = Vec::new();
        let mut written: Vec<Uuid> = Vec::new();
        for trigger in std::mem::take(&mut self.changed) {
            let Some(entry) = self.lanes.get_mut(&trigger) else { continue };
            if entry.is_held_up() {
                self.changed.insert(trigger);
                continue;
            }
            records.push(entry.record());
            written.push(trigger);
        }
        let Some(broker) = written.first().map(|trigger| self.lanes[trigger].runner.broker.clone()) else { return };
        let source = self.input.sources(self.input.tail());
        match broker.journal().append_after(&records, &source, crate::broker::now_ms()) {
            Ok(_) => written.iter().for_each(|trigger| self.begin(*trigger)),
            Err(error) => written.iter().for_each(|trigger| self.not_written(*trigger, &error.to_string())),
        }
    }

    /// What the journal refused is offered to it again in a moment; nothing begins before.
    fn not_written(&mut self, trigger: Uuid, reason: &str) {
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
        self.begin_windows(trigger, starting);
    }

    fn begin_windows(&mut self, trigger: Uuid, starting: Vec<Starting>) {
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

    /// Waits for more attempts to end where they end one upon the other, unless they are long in coming or something else
    /// happens. A turn costs about as much for one that has ended as for many, its journal append foremost: so a quarter of
    /// those in flight share a turn.
    async fn await_ended(&mut self) {
        if self.ended.is_empty() {
            return;
        }
        let often = self.ended_at.elapsed() < ENDS_OFTEN;
        let in_flight = self.ended.iter().filter_map(|trigger| Some(self.lanes.get(trigger)?.tasks.len())).max();
        let wanted = (in_flight.unwrap_or(0) / 4).min(ENDED_PER_TURN_MAX);
        if often && self.ended.len() < wanted {
            self.await_more(wanted).await;
        }
        self.ended.clear();
        self.ended_at = Instant::now();
    }

    async fn await_more(&mut self, wanted: usize) {
        let appended = self.input.listen();
        if !self.at_head.is_empty() && self.head < self.input.tail() {
            return;
        }
        let mut enough = std::pin::pin!(async {
            tokio::select! {
                () = appended => {}
                () = tokio::time::sleep(ENDED_WAIT) => {}
            }
        });
        while self.ended.len() < wanted {
            let message = tokio::select! {
                biased;
                message = self.inbox.recv() => message,
                () = &mut enough => return,
            };
            let Some(message) = message else { return self.stopping = true };
            // A slot that is free again wakes the lane that waits for it.
            let goes_on = matches!(message, Message::Ended(..) | Message::Wake(_));
            self.receive(message);
            if !goes_on {
                return;
            }
        }
    }

    /// Waits for a message, a timer, or records.
    async fn wait(&mut self) {
        let appended = self.input.listen();
        let tail = self.input.tail();
        let wants = |at: Offset| at < tail;
        if !self.stopping
            && self.head_retry_at.is_none()
            && !self.is_fetching()
            && ((!self.at_head.is_empty() && wants(self.head))
                || self.behind.iter().any(|trigger| self.lanes.get(trigger).is_some_and(|entry| entry.can_read(tail))))
        {
            return;
        }
        let listens = !self.at_head.is_empty() || !self.behind.is_empty();
        let timer = self
            .timers
            .first()
            .and_then(|(at_ms, trigger)| self.lanes.get(trigger).map(|entry| entry.runner.clock.instant(*at_ms)));
        let until = timer.into_iter().chain(self.note_at).chain(self.head_retry_at).min();
        let stopped = tokio::select! {
            message = self.inbox.recv() => match message {
                Some(message) => {
                    self.receive(message);
                    false
                }
                None => true,
            },
            () = appended, if listens => false,
            () = sleep_until_some(until) => false,
        };
        self.stopping |= stopped;
    }
}

impl Drop for Poller {
    /// Nothing that it began outlives it, and nobody waits for it.
    fn drop(&mut self) {
        self.forget_slots();
        self.lanes.values().flat_map(|entry| entry.tasks.values()).for_each(Running::abort);
    }
}

async fn sleep_until_some(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
