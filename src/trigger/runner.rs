//! What the lanes of one trigger share: its definition, its switches, its concurrency and its state.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use event_listener::{Event, EventListener, IntoNotification};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use uuid::Uuid;

use super::attempt::TargetHealth;
use super::service::{TriggerCounts, TriggerState};
use super::spec::{FunctionRef, TriggerSpec};
use super::status::{Holds, Shown};
use crate::broker::{self, Broker, Topic};
use crate::function::{FunctionService, Payload};

/// The clock of the trigger engine: the wall clock at the start, going at monotonic rate since. A wall clock that jumps
/// neither delays nor doubles what is planned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    started_ms: i64,
    started: Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { started_ms: broker::now_ms(), started: Instant::now() }
    }

    /// Milliseconds since 1970.
    pub(super) fn now_ms(&self) -> i64 {
        self.started_ms.saturating_add(i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX))
    }

    /// The moment `at_ms`; now, for one in the past.
    pub(super) fn instant(&self, at_ms: i64) -> Instant {
        let wait_ms = at_ms.saturating_sub(self.now_ms()).max(0).unsigned_abs();
        Instant::now() + std::time::Duration::from_millis(wait_ms)
    }

    /// Time since the start.
    pub(super) fn elapsed(&self) -> std::time::Duration {
        self.started.elapsed()
    }
}

/// Invocations in flight: at most the trigger's `concurrency`, fewer for a while after the target asked to slow down.
#[derive(Debug)]
pub(super) struct Slots {
    counts: Mutex<SlotCounts>,
    freed: Event,
}

#[derive(Debug)]
struct SlotCounts {
    in_flight: u32,
    limit: u32,
    max: u32,
}

impl Slots {
    fn new(max: u32) -> Self {
        Self { counts: Mutex::new(SlotCounts { in_flight: 0, limit: max, max }), freed: Event::new() }
    }

    /// Waits for a free slot.
    pub(super) async fn take(self: &Arc<Self>) -> Slot {
        loop {
            let listener = self.freed.listen();
            if let Some(slot) = self.try_take() {
                return slot;
            }
            listener.await;
        }
    }

    fn try_take(self: &Arc<Self>) -> Option<Slot> {
        let mut counts = self.counts.lock();
        let free = counts.in_flight < counts.limit;
        counts.in_flight += u32::from(free);
        free.then(|| Slot { slots: Arc::clone(self) })
    }

    /// The target asked to slow down.
    pub(super) fn halve(&self) {
        let mut counts = self.counts.lock();
        counts.limit = (counts.limit / 2).max(1);
    }

    /// An invocation succeeded: one more may run, up to the maximum.
    pub(super) fn grow(&self) {
        let mut counts = self.counts.lock();
        if counts.limit < counts.max {
            counts.limit += 1;
            drop(counts);
            self.freed.notify(1.additional());
        }
    }

    fn set_max(&self, max: u32) {
        let mut counts = self.counts.lock();
        (counts.max, counts.limit) = (max, max);
        drop(counts);
        self.freed.notify(usize::MAX);
    }
}

/// One invocation in flight.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.counts.lock().in_flight -= 1;
        // One more than those who were told before and have not looked yet.
        self.slots.freed.notify(1.additional());
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) delivered: AtomicU64,
    pub(super) filtered: AtomicU64,
    pub(super) dead_lettered: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) attempts_succeeded: AtomicU64,
    pub(super) attempts_failed: AtomicU64,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> TriggerCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TriggerCounts {
            delivered: read(&self.delivered),
            filtered: read(&self.filtered),
            dead_lettered: read(&self.dead_lettered),
            dropped: read(&self.dropped),
            expired: read(&self.expired),
            attempts_succeeded: read(&self.attempts_succeeded),
            attempts_failed: read(&self.attempts_failed),
        }
    }
}

/// One trigger at work.
#[derive(Debug)]
pub(super) struct Runner {
    pub(super) id: Uuid,
    pub(super) topic: Arc<Topic>,
    pub(super) broker: Broker,
    pub(super) functions: FunctionService,
    pub(super) clock: Clock,
    pub(super) slots: Arc<Slots>,
    pub(super) counters: Counters,
    pub(super) health: Mutex<TargetHealth>,
    /// Held by the lane that probes a target in an outage.
    pub(super) probing: Arc<tokio::sync::Mutex<()>>,
    spec: RwLock<Arc<TriggerSpec>>,
    holds: Mutex<(Holds, i64)>,
    /// Notified when the definition or what holds the trigger changes.
    changed: Event,
    /// Rises when a wait for the next attempt has lost its reason.
    nudges: AtomicU64,
}

impl Runner {
    pub(super) fn new(
        id: Uuid,
        spec: TriggerSpec,
        topic: Arc<Topic>,
        broker: Broker,
        functions: FunctionService,
        clock: Clock,
        paused: bool,
    ) -> Self {
        let slots = Arc::new(Slots::new(spec.concurrency));
        let holds = Mutex::new((Holds { paused, ..Holds::default() }, clock.now_ms()));
        Self {
            id,
            topic,
            broker,
            functions,
            clock,
            slots,
            counters: Counters::default(),
            health: Mutex::default(),
            probing: Arc::default(),
            spec: RwLock::new(Arc::new(spec)),
            holds,
            changed: Event::new(),
            nudges: AtomicU64::new(0),
        }
    }

    /// The definition in force.
    pub(super) fn spec(&self) -> Arc<TriggerSpec> {
        Arc::clone(&self.spec.read())
    }

    /// A new definition: lanes take it over before their next attempt, and what the old one failed of is forgotten.
    pub(super) fn redefine(&self, spec: TriggerSpec) {
        self.slots.set_max(spec.concurrency);
        *self.health.lock() = TargetHealth::default();
        *self.spec.write() = Arc::new(spec);
        self.nudge();
    }

    /// There is a new definition, new code, or a person who wants it tried now: what failed before is forgotten, and waits
    /// for a next attempt end.
    pub(super) fn nudge(&self) {
        self.nudges.fetch_add(1, Ordering::Release);
        self.change(|holds| (holds.failed, holds.outage) = (None, None));
        self.changed.notify(usize::MAX);
    }

    /// Changes with each nudge.
    pub(super) fn nudges(&self) -> u64 {
        self.nudges.load(Ordering::Acquire)
    }

    /// What invokes: a registered function's name, or the one made for a URL of this trigger.
    pub(super) fn function_name(&self, spec: &TriggerSpec) -> String {
        match &spec.function {
            FunctionRef::Named(name) => name.to_string(),
            FunctionRef::Http { .. } => inline_function(spec.name.as_str()),
        }
    }

    /// How the function wants its records.
    pub(super) fn payload(&self, spec: &TriggerSpec) -> Payload {
        self.functions.describe(&self.function_name(spec)).map_or(Payload::Events, |function| function.spec.payload)
    }

    /// Changes what holds the trigger, and wakes everybody who waits for a change.
    pub(super) fn change(&self, change: impl FnOnce(&mut Holds)) {
        let (before, after, changed) = {
            let mut held = self.holds.lock();
            let old = held.0.clone();
            change(&mut held.0);
            let (before, after) = (old.shown(), held.0.shown());
            if before.state != after.state {
                held.1 = self.clock.now_ms();
            }
            (before, after, old != held.0)
        };
        if before != after {
            let spec = self.spec();
            tracing::info!(trigger = %spec.name, from = before.state.as_str(), to = after.state.as_str(), reason = %after.reason, "trigger state");
        }
        if changed {
            self.changed.notify(usize::MAX);
        }
    }

    pub(super) fn holds<T>(&self, look: impl FnOnce(&Holds) -> T) -> T {
        look(&self.holds.lock().0)
    }

    /// The state to show, and since when.
    pub(super) fn shown(&self) -> (Shown, i64) {
        let held = self.holds.lock();
        (held.0.shown(), held.1)
    }

    /// Whether lanes may read and invoke.
    pub(super) fn may_run(&self) -> bool {
        self.holds(|holds| !holds.paused && !holds.stopped && holds.failed.is_none())
    }

    /// Notified when the definition or what holds the trigger changes. Listen first, look then, wait last.
    pub(super) fn listen(&self) -> EventListener {
        self.changed.listen()
    }

    pub(super) fn state(&self) -> TriggerState {
        self.shown().0.state
    }
}

/// The name of the function behind a trigger's URL. Not a name that a person can give.
pub(super) fn inline_function(trigger: &str) -> String {
    format!("__trigger.{trigger}")
}
