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
//! too; so a trigger that is far behind holds up nobody. What one of them reads serves all that stand within it, and
//! every other turn is that of the furthest behind: so they meet, and many that catch up cost little more than one.
//!
//! An attempt is in the journal before it begins (T4), in the same append as the outcomes of the turn. While the
//! journal takes nothing, because the disk is full, nothing begins: a start that is not written down is not made.
//!
//! [`handle`] is how others speak to the task, [`entry`] a lane in its hands; [`read`] and [`matching`] bring records
//! to the lanes, [`write`] takes what they decided to the journal and begins it, [`wait`] is all the rest of the time.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tripline_storage::Offset;
use uuid::Uuid;

use super::give_up::{self, HoldUp};
use super::invoke::Ended;
use super::lane::{Carried, WindowId};
use super::runner::{Counters, NotNow, Stopped};
use crate::broker::record::TriggerVerdict;
use crate::function::Payload;
use crate::input::EventInput;

#[cfg(feature = "cluster")]
pub(super) mod cluster;
mod driven;
mod entry;
mod handle;
mod matching;
mod read;
#[cfg(test)]
mod testing;
mod wait;
mod write;

pub(super) use handle::{Message, NewLane, PollerHandle, RunLane};

use driven::Driven;
use entry::{Entry, Running, Starting};

/// Progress over records that the filter turned away is written down after so long at the latest.
const FILTERED_PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Messages handled before anything is read again.
const MESSAGES_PER_TURN: usize = 1024;

/// The task of one partition.
#[derive(Debug)]
pub(super) struct Poller {
    input: EventInput,
    handle: PollerHandle,
    inbox: mpsc::UnboundedReceiver<Message>,
    /// By trigger or run; such ids are our own.
    lanes: FxHashMap<Uuid, Box<Entry>>,
    /// Where the lanes at the head read next.
    head: Offset,
    at_head: Vec<Uuid>,
    /// Lanes at the head with an open window that is filling, by where the head has filled it: nothing else may tell
    /// them.
    filling_at_head: BTreeSet<(Offset, Uuid)>,
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
    filters: matching::Filters,
    /// Attempts and verdicts under way.
    tracker: TaskTracker,
    driven: Driven,
    /// Whose attempts have ended since the last turn, once for each.
    ended: Vec<Uuid>,
    /// When the last turn began that attempts ended before.
    ended_at: Instant,
    /// Turns that wait for no further end: the last wait was in vain.
    unawaited: u32,
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
    let poller = Poller::new(input, tracker);
    let (handle, driven) = (poller.handle.clone(), poller.driven.clone());
    (handle, tokio::spawn(driven.watch(poller.run())))
}

impl Poller {
    fn new(input: EventInput, tracker: TaskTracker) -> Self {
        let (sender, inbox) = mpsc::unbounded_channel();
        let head = input.tail();
        Self {
            input,
            handle: PollerHandle { sender },
            inbox,
            lanes: FxHashMap::default(),
            head,
            at_head: Vec::new(),
            filling_at_head: BTreeSet::new(),
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
            filters: matching::Filters::default(),
            tracker,
            driven: Driven::default(),
            ended: Vec::new(),
            ended_at: Instant::now(),
            unawaited: 0,
            stopping: false,
            #[cfg(feature = "cluster")]
            group: None,
            #[cfg(feature = "cluster")]
            fetch: cluster::Fetch::default(),
        }
    }

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
                // A message that was sent at this moment would keep what it holds for as long as there are handles, and
                // that may be a handle.
                self.inbox.close();
                while self.inbox.recv().await.is_some() {}
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
            Message::Letters(new) => self.letters(new),
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
        self.driven.add(trigger, &new.runner);
        let mut entry = Entry::new(new, carried, self.filters.take_slot());
        // Verdicts invoke nothing, so a pause does not hold them up: their records and their producer may not last.
        while let Some((window, _)) = entry.lane.next_given_up() {
            let first = entry.lane.offsets(window).first().map(|first| first.get());
            let verdict = verdicts.iter().find(|verdict| verdict.offsets.first().copied() == first);
            let Some(verdict) = verdict else { continue };
            self.carry_out(&mut entry, window, (*verdict).clone());
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
        self.write_down_last(trigger);
        let Some(mut entry) = self.lanes.remove(&trigger) else {
            let _ = done.send(());
            return;
        };
        self.driven.remove(trigger);
        entry.runner.slots.withdraw(&self.handle, trigger);
        self.filters.free_slot(entry.slot);
        if let Some(index) = entry.at_head {
            self.leave_head(index);
        }
        self.behind.retain(|other| *other != trigger);
        entry.timer_ms.map(|at_ms| self.timers.remove(&(at_ms, trigger)));
        entry.tasks.values().for_each(Running::abort);
        // One that is writing down a verdict ends behind that; what the trigger remembers next must not come before it.
        self.tracker.spawn(async move {
            for running in std::mem::take(&mut entry.tasks).into_values() {
                let _ = running.task.await;
            }
            // Who waits for that finds nothing that holds on to the broker.
            drop(entry);
            let _ = done.send(());
        });
    }

    /// Nothing begins here any more: others are not to wait for that.
    fn forget_slots(&self) {
        self.lanes.iter().for_each(|(trigger, entry)| entry.runner.slots.withdraw(&self.handle, *trigger));
    }

    fn skip(&mut self, trigger: Uuid) -> usize {
        let Some(entry) = self.lanes.get_mut(&trigger) else { return 0 };
        let now_ms = entry.runner.clock.now_ms();
        let mut skipped = entry.lane.skip();
        for (window, skip) in entry.stuck.drain() {
            // It may have found its way a moment ago.
            skipped += skip.send(()).map_or(0, |()| entry.lane.offsets(window).len());
        }
        skipped += entry.skip_damage(now_ms);
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
                poller.await_filling(entry, tail);
                poller.set_timer(entry);
                if entry.dirty {
                    poller.changed.insert(trigger);
                }
            });
        }
    }

    /// Has a lane at the head looked at again when its open window has seen what it waits for. Where that is, is asked
    /// last: the turn of a throttled key may have come just now.
    fn await_filling(&mut self, entry: &mut Entry, tail: Offset) {
        if entry.at_head.is_some()
            && entry.fills(tail)
            && let Some(to) = entry.fills_to
        {
            self.filling_at_head.insert((to, entry.id.trigger));
        }
    }

    fn advance(&mut self, entry: &mut Entry, tail: Offset) {
        entry.take_over_changes();
        self.filters.changed |= entry.redefined;
        self.give_up(entry);
        if self.stopping {
            return;
        }
        let mut waits = false;
        if entry.runner.may_run() {
            entry.runner.started();
            waits = self.start(entry, tail);
        }
        if !waits {
            entry.runner.slots.withdraw(&self.handle, entry.id.trigger);
        }
        entry.count_withheld();
        entry.show();
        entry.complete();
    }

    /// Windows whose attempts are spent get their verdict: it is written down with the progress that says so, and
    /// carried out then. It invokes nothing, so a pause does not hold it up.
    fn give_up(&self, entry: &mut Entry) {
        #[cfg(feature = "cluster")]
        if let Some(group) = &self.group {
            return self.give_up_there(group, entry);
        }
        entry.take_verdicts();
    }

    fn carry_out(&self, entry: &mut Entry, window: WindowId, verdict: TriggerVerdict) {
        let (handle, trigger) = (self.handle.clone(), entry.id.trigger);
        let hold_up = HoldUp::new(handle.clone(), trigger, window);
        let runner = Arc::clone(&entry.runner);
        let work = give_up::run(Arc::clone(&runner), entry.input(&self.input).clone(), verdict, hold_up);
        let running = self.tracker.spawn(async move {
            handle.send(match runner.watch(work).await {
                Some(Ok(first)) => Message::Settled(trigger, window, first),
                Some(Err(Stopped)) | None => Message::Abandoned(trigger, window),
            });
        });
        entry.runs(window, running);
    }

    /// Takes windows that may start; they begin when that is written down. Answers whether it waits for its turn: it is
    /// told, or has set its timer.
    fn start(&mut self, entry: &mut Entry, tail: Offset) -> bool {
        if entry.writes_again_at.is_some_and(|at| at > Instant::now()) {
            return false;
        }
        loop {
            let now_ms = entry.runner.clock.now_ms();
            let more = entry.fills(tail) && !(entry.at_head.is_some() && self.head_failed);
            let Some(next) = entry.lane.next(more, now_ms) else { return false };
            let permit = match entry.runner.permit(next.size_bytes(), now_ms, &self.handle) {
                Ok(permit) => permit,
                Err(NotNow::Told) => return true,
                Err(NotNow::Until(at_ms)) => {
                    self.look_again(entry, at_ms);
                    return true;
                }
            };
            // One that takes raw bytes takes one record at a time, also of a window that was made for another function.
            let raw = entry.runner.payload(&entry.spec) == Payload::Raw;
            let window = next.start(if raw { 1 } else { usize::MAX }, now_ms);
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
        let obstacles = entry.ahead.into_iter().chain(entry.catch_up.map(|(_, obstacle)| obstacle));
        let again =
            obstacles.map(|obstacle| obstacle.until).chain(entry.writes_again_at).filter(|at| *at > now).map(|at| {
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
}

impl Drop for Poller {
    /// Nothing that it began outlives it, and nobody waits for it.
    fn drop(&mut self) {
        self.forget_slots();
        self.lanes.values().flat_map(|entry| entry.tasks.values()).for_each(Running::abort);
    }
}
