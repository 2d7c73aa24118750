//! What the lanes of one trigger share: its definition, its switches, its concurrency and its state.

#[cfg(test)]
mod testing;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use event_listener::{Event, EventListener};
use futures_util::FutureExt;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use tripline_storage::Offset;
use uuid::Uuid;

use super::attempt::TargetHealth;
use super::flow::AdaptiveCount;
use super::parcel::Reach;
use super::poller::PollerHandle;
use super::service::{TriggerCounts, TriggerState};
use super::slots::{NoSlot, Slot, Slots};
use super::spec::{FunctionRef, TriggerSpec};
use super::status::{Holds, Outage, Shown, set};
use super::trace::TraceLog;
use crate::broker::{self, Broker};
use crate::function::{ErrorClass, FunctionService, InvocationError, Payload};
use crate::input::Origin;

/// How long to wait before what the disk refused is tried again.
pub(super) const DISK_RETRY: Duration = Duration::from_secs(1);

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
        Instant::now() + Duration::from_millis(wait_ms)
    }

    /// Time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// The trigger ends: what the disk refused is left to the next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the trigger has been stopped")]
pub(super) struct Stopped;

/// The right to begin an attempt, held until its outcome is known.
#[derive(Debug)]
pub(super) struct Permit {
    _slot: Slot,
    /// In an outage.
    _probe: Option<Probe>,
}

/// Why no attempt may begin now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotNow {
    /// The poller is told when that may have changed.
    Told,
    /// Not before this time, ms since 1970.
    Until(i64),
}

/// What an attempt tells that did not reach a function.
#[derive(Debug)]
pub(super) struct NewOutage {
    pub(super) reason: String,
    /// Which of the functions.
    pub(super) of: Reach,
    /// When the attempt began, ms since 1970.
    pub(super) began_ms: i64,
    /// How long the function wants not to be asked.
    pub(super) told: Option<Duration>,
}

/// The one invocation that tries a target in an outage.
#[derive(Debug)]
pub(super) struct Probe {
    runner: Arc<Runner>,
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.runner.probing.store(false, Ordering::Release);
        self.runner.wake();
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) delivered: AtomicU64,
    pub(super) filtered: AtomicU64,
    pub(super) dead_lettered: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) expired: AtomicU64,
    /// Of a redrive: letters that were redriven too often.
    pub(super) passed_over: AtomicU64,
    pub(super) debounced: AtomicU64,
    pub(super) skipped: AtomicU64,
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
            debounced: read(&self.debounced),
            skipped: read(&self.skipped),
            attempts_succeeded: read(&self.attempts_succeeded),
            attempts_failed: read(&self.attempts_failed),
        }
    }
}

/// What holds a trigger, and what is shown of that.
#[derive(Debug)]
struct Held {
    holds: Holds,
    shown: Shown,
    /// Since when it is shown in this state, ms since 1970.
    since_ms: i64,
}

impl Held {
    fn new(holds: Holds, since_ms: i64) -> Self {
        Self { shown: holds.shown(), holds, since_ms }
    }
}

/// One trigger at work.
#[derive(Debug)]
pub(super) struct Runner {
    pub(super) id: Uuid,
    pub(super) broker: Broker,
    pub(super) functions: FunctionService,
    /// Set for a run: what its invocations are called has this in it.
    pub(super) run: Option<Uuid>,
    pub(super) clock: Clock,
    pub(super) slots: Arc<Slots>,
    pub(super) counters: Counters,
    health: Mutex<TargetHealth>,
    pub(super) adaptive: Mutex<Option<AdaptiveCount>>,
    pub(super) traces: TraceLog,
    /// Whether somebody probes a target in an outage.
    probing: AtomicBool,
    /// Those that drive its lanes.
    pollers: Mutex<Vec<PollerHandle>>,
    spec: RwLock<Arc<TriggerSpec>>,
    held: Mutex<Held>,
    /// Notified when the definition or what holds the trigger changes.
    changed: Event,
    /// Rises when a wait for the next attempt has lost its reason.
    nudges: AtomicU64,
}

impl Runner {
    pub(super) fn new(
        id: Uuid,
        spec: TriggerSpec,
        broker: Broker,
        functions: FunctionService,
        clock: Clock,
        traces: TraceLog,
        paused_since_ms: Option<i64>,
    ) -> Self {
        let slots = Arc::new(Slots::new(&spec));
        let adaptive = Mutex::new(adaptive(&spec));
        let holds = Holds { paused: paused_since_ms.is_some(), ..Holds::default() };
        let held = Mutex::new(Held::new(holds, paused_since_ms.unwrap_or_else(|| clock.now_ms())));
        Self {
            id,
            broker,
            functions,
            run: None,
            clock,
            slots,
            counters: Counters::default(),
            health: Mutex::default(),
            adaptive,
            traces,
            probing: AtomicBool::new(false),
            pollers: Mutex::default(),
            spec: RwLock::new(Arc::new(spec)),
            held,
            changed: Event::new(),
            nudges: AtomicU64::new(0),
        }
    }

    /// The same for a run, with at most so many records in a second.
    pub(super) fn of_run(mut self, records_per_second: Option<u32>) -> Self {
        self.run = Some(self.id);
        self.slots.set_pace(records_per_second);
        self
    }

    /// What the invocations of a window are called.
    pub(super) fn invocation_id(&self, origin: &Origin, window: Offset) -> String {
        let name = &self.spec().name;
        super::trace::invocation_id(name.as_str(), (&origin.topic, origin.partition), window.get(), self.run)
    }

    /// The definition in force.
    pub(super) fn spec(&self) -> Arc<TriggerSpec> {
        Arc::clone(&self.spec.read())
    }

    /// A new definition: lanes take it over before their next attempt, and what the old one failed of is forgotten.
    pub(super) fn redefine(&self, spec: TriggerSpec) {
        self.slots.redefine(&spec);
        *self.adaptive.lock() = adaptive(&spec);
        *self.spec.write() = Arc::new(spec);
        self.renew();
    }

    /// There is another target, or the same one under another definition: what was learnt of the old one is forgotten.
    pub(super) fn renew(&self) {
        self.nudge();
        // Behind the nudge: what is said of the old target is not heard any more.
        *self.health.lock() = TargetHealth::default();
    }

    /// There is a new definition, new code, or a person who wants it tried now: what failed before is forgotten, and
    /// waits for a next attempt end.
    pub(super) fn nudge(&self) {
        self.nudges.fetch_add(1, Ordering::Release);
        self.health.lock().outage_over();
        self.change(|holds| set(&mut holds.failed, None) | set(&mut holds.outage, None));
        self.changed.notify(usize::MAX);
        self.wake();
    }

    /// Changes with each nudge.
    pub(super) fn nudges(&self) -> u64 {
        self.nudges.load(Ordering::Acquire)
    }

    /// The class that an error counts as, of an attempt that began under a nudge: one on a target that was tells
    /// nothing of the target that is.
    pub(super) fn class_of(&self, error: &InvocationError, nudges: u64) -> ErrorClass {
        let mut health = self.health.lock();
        if self.nudges() == nudges { health.class_of(error) } else { error.class }
    }

    /// The target took what an attempt brought that began under a nudge.
    pub(super) fn target_answered(&self, nudges: u64) {
        let mut health = self.health.lock();
        if self.nudges() == nudges {
            health.success();
        }
    }

    /// An attempt that began at `began_ms`, under a nudge, did not reach a function.
    pub(super) fn unreachable(&self, outage: NewOutage, nudges: u64, now_ms: i64) {
        let NewOutage { reason, of, began_ms, told } = outage;
        let mut health = self.health.lock();
        if self.nudges() != nudges {
            return;
        }
        let probe_at_ms = health.unreachable(began_ms, now_ms, told);
        drop(health);
        // A nudge counts before it clears what holds the trigger: what is out of date by then is not put in its place.
        self.change(|holds| {
            self.nudges() == nudges && set(&mut holds.outage, Some(Outage { reason, probe_at_ms, of }))
        });
    }

    /// An attempt reached so many of the functions: an outage of one of them is over.
    pub(super) fn reached(&self, reach: Reach) {
        let is_over = |holds: &Holds| holds.outage.as_ref().is_some_and(|outage| outage.of <= reach);
        if self.holds(is_over) {
            self.health.lock().outage_over();
            self.change(|holds| is_over(holds) && set(&mut holds.outage, None));
        }
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
        self.functions.payload(&self.function_name(spec)).unwrap_or_default()
    }

    /// Changes what holds the trigger, and wakes everybody who waits for a change, if `change` answers that it is one.
    pub(super) fn change(&self, change: impl FnOnce(&mut Holds) -> bool) {
        let mut held = self.held.lock();
        if !change(&mut held.holds) {
            return;
        }
        let after = held.holds.shown();
        if after != held.shown {
            let before = std::mem::replace(&mut held.shown, after.clone());
            if before.state != after.state {
                held.since_ms = self.clock.now_ms();
            }
            drop(held);
            let spec = self.spec();
            tracing::info!(trigger = %spec.name, from = before.state.as_str(), to = after.state.as_str(), reason = %after.reason, "trigger state");
        } else {
            drop(held);
        }
        self.changed.notify(usize::MAX);
        self.wake();
    }

    /// Has its lanes looked at.
    pub(super) fn wake(&self) {
        self.pollers.lock().iter().for_each(|poller| poller.wake(self.id));
    }

    /// This poller drives one of its lanes.
    pub(super) fn driven_by(&self, poller: PollerHandle) {
        let mut pollers = self.pollers.lock();
        pollers.retain(|poller| !poller.has_ended());
        if !pollers.iter().any(|known| known.is_same(&poller)) {
            pollers.push(poller);
        }
    }

    /// The right to begin an attempt on a window of `bytes`: a slot, and in an outage the one probe. The probe comes
    /// last, so that nobody gives it back unused: that wakes all who wait for its outcome.
    pub(super) fn permit(self: &Arc<Self>, bytes: u64, now_ms: i64, poller: &PollerHandle) -> Result<Permit, NotNow> {
        let probe_at_ms = self.holds(|holds| holds.outage.as_ref().map(|outage| outage.probe_at_ms));
        if let Some(at_ms) = probe_at_ms.filter(|at_ms| *at_ms > now_ms) {
            self.slots.withdraw(poller, self.id);
            return Err(NotNow::Until(at_ms));
        }
        // Who has the probe wakes all when it is done.
        if probe_at_ms.is_some() && self.probing.load(Ordering::Acquire) {
            self.slots.withdraw(poller, self.id);
            return Err(NotNow::Told);
        }
        let slot = match self.slots.take(bytes, self.clock.elapsed(), poller, self.id) {
            Ok(slot) => slot,
            Err(NoSlot::Busy) => return Err(NotNow::Told),
            Err(NoSlot::After(wait)) => {
                let wait_ms = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX).saturating_add(1);
                return Err(NotNow::Until(now_ms.saturating_add(wait_ms)));
            }
        };
        let probe = match probe_at_ms {
            None => None,
            Some(_) => Some(self.probe().ok_or(NotNow::Told)?),
        };
        Ok(Permit { _slot: slot, _probe: probe })
    }

    /// The right to try the target; one at a time has it.
    fn probe(self: &Arc<Self>) -> Option<Probe> {
        let free = self.probing.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).is_ok();
        free.then(|| Probe { runner: Arc::clone(self) })
    }

    /// Whether time counts towards the age of windows.
    pub(super) fn time_counts(&self) -> bool {
        self.holds(|holds| !holds.paused && !holds.broken && holds.failed.is_none() && holds.outage.is_none())
    }

    pub(super) fn holds<T>(&self, look: impl FnOnce(&Holds) -> T) -> T {
        look(&self.held.lock().holds)
    }

    /// The state to show, and since when.
    pub(super) fn shown(&self) -> (Shown, i64) {
        let held = self.held.lock();
        (held.shown.clone(), held.since_ms)
    }

    /// A lane reads.
    pub(super) fn started(&self) {
        if self.holds(|holds| !holds.started) {
            self.change(|holds| set(&mut holds.started, true));
        }
    }

    /// Whether lanes may read and invoke.
    pub(super) fn may_run(&self) -> bool {
        self.holds(|holds| !holds.paused && !holds.stopped && !holds.broken && holds.failed.is_none())
    }

    /// Whether nothing of it goes on before the broker starts again, or ever.
    pub(super) fn is_over(&self) -> bool {
        self.holds(|holds| holds.stopped || holds.broken)
    }

    /// Shows why a partition cannot go on, and waits a little, or until somebody changes something.
    ///
    /// # Errors
    /// [`Stopped`]: there is nothing to wait for any more.
    pub(super) async fn blocked(&self, partition: &Origin, reason: &str) -> Result<(), Stopped> {
        self.change(|holds| holds.block(partition, reason));
        let (until, nudges) = (Instant::now() + DISK_RETRY, self.nudges());
        loop {
            let changed = self.listen();
            if self.holds(|holds| holds.stopped) {
                return Err(Stopped);
            }
            if self.nudges() != nudges {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep_until(until) => return Ok(()),
                () = changed => {}
            }
        }
    }

    /// What `work` comes to; `None` where it breaks down, which is a bug of ours: the trigger shows that instead of
    /// standing still in silence.
    pub(super) async fn watch<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let done = AssertUnwindSafe(work).catch_unwind().await.ok();
        if done.is_none() {
            self.broke_down();
        }
        done
    }

    /// What worked for it has ended by a bug of ours.
    pub(super) fn broke_down(&self) {
        self.change(|holds| set(&mut holds.broken, true));
    }

    /// Notified when the definition or what holds the trigger changes. Listen first, look then, wait last.
    pub(super) fn listen(&self) -> EventListener {
        self.changed.listen()
    }

    pub(super) fn state(&self) -> TriggerState {
        self.held.lock().shown.state
    }
}

fn adaptive(spec: &TriggerSpec) -> Option<AdaptiveCount> {
    spec.window_latency.map(|latency| AdaptiveCount::new(spec.window.count, latency))
}

/// The name of the function behind a trigger's URL. Not a name that a person can give.
pub(super) fn inline_function(trigger: &str) -> String {
    format!("__trigger.{trigger}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::trigger::poller::Message;

    fn runner(more: serde_json::Value) -> Arc<Runner> {
        let mut definition = json!({"trigger": "t", "input": {"topic": "in"}, "function": "f", "concurrency": 1});
        definition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Runner::for_test(&definition)
    }

    #[tokio::test]
    async fn a_trigger_whose_work_breaks_down_stands_still_and_says_so() {
        let runner = runner(json!({}));
        assert_eq!(runner.watch(async { 7 }).await, Some(7));
        assert!(runner.may_run());
        assert_eq!(runner.watch(async { panic!("a bug of ours") }).await, None::<()>);
        // What nobody works for does not begin anew when a person resumes it.
        runner.nudge();
        assert!(!runner.may_run());
        assert_eq!(runner.state(), TriggerState::Failed);
    }

    #[tokio::test]
    async fn what_an_attempt_on_the_target_that_was_brings_home_says_nothing_of_the_one_that_is() {
        let runner = runner(json!({}));
        let not_found = InvocationError::new(ErrorClass::Failed, "404", "");
        let old = runner.nudges();
        runner.redefine((*runner.spec()).clone());
        let new = runner.nudges();
        // Neither are its 404 counted among those of the new one, nor does its success excuse them.
        (0..9).for_each(|_| assert_eq!(runner.class_of(&not_found, old), ErrorClass::Failed));
        runner.target_answered(old);
        let classes: Vec<ErrorClass> = (0..5).map(|_| runner.class_of(&not_found, new)).collect();
        assert_eq!(classes[..4], [ErrorClass::Failed; 4]);
        assert_eq!(classes[4], ErrorClass::Unavailable);
    }

    #[tokio::test]
    async fn a_target_that_is_another_one_has_not_succeeded_yet() {
        let runner = runner(json!({}));
        let not_found = InvocationError::new(ErrorClass::Failed, "404", "");
        let fifth = || {
            (0..4).for_each(|_| assert_eq!(runner.class_of(&not_found, runner.nudges()), ErrorClass::Failed));
            runner.class_of(&not_found, runner.nudges())
        };
        runner.target_answered(runner.nudges());
        runner.nudge();
        assert_eq!(fifth(), ErrorClass::Failed, "a person who resumes changes no target");
        runner.renew();
        assert_eq!(fifth(), ErrorClass::Unavailable);
    }

    fn in_outage(runner: &Runner) -> i64 {
        let now_ms = runner.clock.now_ms();
        let outage = Outage { reason: "down".to_owned(), probe_at_ms: now_ms, of: Reach::TARGET };
        runner.change(|holds| set(&mut holds.outage, Some(outage)));
        now_ms
    }

    #[tokio::test]
    async fn who_finds_no_slot_for_a_probe_is_not_woken_by_himself() {
        let runner = runner(json!({}));
        let (poller, mut messages) = PollerHandle::for_test();
        let _in_flight = runner.permit(1, runner.clock.now_ms(), &poller).unwrap();
        let now_ms = in_outage(&runner);
        runner.driven_by(poller.clone());
        assert_eq!(runner.permit(1, now_ms, &poller).unwrap_err(), NotNow::Told);
        assert!(messages.try_recv().is_err());
    }

    #[tokio::test]
    async fn who_is_too_early_for_a_probe_is_not_woken_by_himself() {
        let runner = runner(json!({}));
        let (poller, mut messages) = PollerHandle::for_test();
        runner.slots.set_pace(Some(1));
        runner.slots.spend(100, runner.clock.elapsed());
        let now_ms = in_outage(&runner);
        runner.driven_by(poller.clone());
        assert!(
            matches!(runner.permit(1, now_ms, &poller).unwrap_err(), NotNow::Until(at_ms) if at_ms > now_ms + 90_000)
        );
        assert!(messages.try_recv().is_err());
    }

    #[tokio::test]
    async fn one_at_a_time_probes_and_the_others_are_woken_when_it_is_done() {
        let runner = runner(json!({"concurrency": 2}));
        let (poller, mut messages) = PollerHandle::for_test();
        let now_ms = in_outage(&runner);
        runner.driven_by(poller.clone());
        let permit = runner.permit(1, now_ms, &poller).unwrap();
        assert!(permit._probe.is_some());
        assert_eq!(runner.permit(1, now_ms, &poller).unwrap_err(), NotNow::Told);
        assert!(messages.try_recv().is_err());
        drop(permit);
        assert!(matches!(messages.try_recv(), Ok(Message::Wake(_))));
    }
}
