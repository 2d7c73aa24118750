//! Which instance starts, works or stops when: the decisions of the pool, without processes and without a clock.
//!
//! Events go in, effects come out. Invariants, asserted here:
//! - F1 Instances (from their start until their process is gone) never exceed the quota.
//! - F2 Only an instance whose initializer succeeded gets an invocation.
//! - F3 An instance that reported itself not reusable never gets another one.
//!
//! Invocations wait in the order in which they came; the instance that was used last is used first, so that the others
//! grow idle and go.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::instance::InstanceId;
use super::outcome::InvocationError;
use super::spec::Instances;

/// How many invocations may wait for an instance of one function.
pub(super) const QUEUE_LENGTH_MAX: usize = 10_000;

/// How many bytes of payload may wait.
pub(super) const QUEUE_BYTES_MAX: usize = 256 << 20;

/// The pause after a start that failed or an instance that died unused: doubled each time up to the maximum.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Time since the pool began.
pub(super) type Moment = Duration;

/// Number of an invocation inside the pool.
pub(super) type Ticket = u64;

/// What the loop around the decisions has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Start an instance of the current definition.
    Start(InstanceId),
    /// Hand the invocation to the instance.
    Assign(InstanceId, Ticket),
    /// Let the instance run `pre_stop` and end.
    Stop(InstanceId),
    /// Kill the instance, which has not been ready yet.
    Abort(InstanceId),
    /// Answer the invocation without running it.
    Refuse(Ticket, Refusal),
}

/// Why an invocation did not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Too much is waiting already.
    QueueFull,
    /// No instance can be started.
    NoInstance(InvocationError),
    /// The pool is closing.
    Closing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Idle {
        since: Moment,
    },
    Busy,
    /// Told to stop, dying or dead: counted until it is gone.
    Leaving,
}

#[derive(Clone, Copy, Debug)]
struct Instance {
    generation: u64,
    phase: Phase,
    used: bool,
}

/// Instances by what they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstanceCounts {
    /// The initializer has not returned yet.
    pub starting: usize,
    /// Waiting for work.
    pub idle: usize,
    /// Running an invocation.
    pub busy: usize,
    /// Running `pre_stop`, or being killed.
    pub leaving: usize,
}

/// The decisions of one pool.
#[derive(Debug)]
pub(super) struct PoolState {
    limits: Instances,
    /// Rises with every definition; instances of an older one take no new work.
    generation: u64,
    /// Start one instance although nobody asked, to see whether the code loads.
    probing: bool,
    broken: Option<InvocationError>,
    /// A start failed while others were under way and none of the current definition works: those show whether its code
    /// runs. One after the other could go on so for ever, each judged by the next, so none is added until they have.
    doubted: bool,
    closing: bool,
    failures: u32,
    no_start_before: Moment,
    next_instance: InstanceId,
    instances: BTreeMap<InstanceId, Instance>,
    queue: VecDeque<(Ticket, usize)>,
    queue_bytes: usize,
}

impl PoolState {
    /// An empty pool; with `probing` it starts an instance at its first event although nobody asked.
    pub(super) fn new(limits: Instances, probing: bool) -> Self {
        Self {
            limits,
            generation: 0,
            probing,
            broken: None,
            doubted: false,
            closing: false,
            failures: 0,
            no_start_before: Moment::ZERO,
            next_instance: 1,
            instances: BTreeMap::new(),
            queue: VecDeque::new(),
            queue_bytes: 0,
        }
    }

    /// An invocation with a payload of `bytes` wants to run.
    pub(super) fn submit(&mut self, ticket: Ticket, bytes: usize, now: Moment) -> Vec<Effect> {
        if let Some(refusal) = self.refusal(bytes) {
            return vec![Effect::Refuse(ticket, refusal)];
        }
        self.queue.push_back((ticket, bytes));
        self.queue_bytes += bytes;
        self.decide(now)
    }

    /// The initializer of an instance returned.
    pub(super) fn ready(&mut self, id: InstanceId, now: Moment) -> Vec<Effect> {
        let generation = self.generation;
        let Some(instance) = self.instances.get_mut(&id) else { return Vec::new() };
        if instance.phase == Phase::Starting {
            instance.phase = Phase::Idle { since: now };
            if instance.generation == generation {
                // It runs, whatever another start has shown.
                self.probing = false;
                self.broken = None;
                self.doubted = false;
            }
        }
        self.decide(now)
    }

    /// A start failed; `for_good` if the code itself is to blame, so that trying again would change nothing.
    pub(super) fn start_failed(
        &mut self,
        id: InstanceId,
        error: InvocationError,
        for_good: bool,
        now: Moment,
    ) -> Vec<Effect> {
        let Some(instance) = self.instances.get_mut(&id) else { return Vec::new() };
        instance.phase = Phase::Leaving;
        if instance.generation != self.generation || self.closing {
            return self.decide(now);
        }
        self.back_off(now);
        // While others of the same code work, this start was bad luck: what waits can wait for them. Those that start
        // may yet work.
        let works = self.count(|instance| matches!(instance.phase, Phase::Idle { .. } | Phase::Busy)) > 0;
        if works || self.starting() > 0 {
            self.doubted = !works;
            return self.decide(now);
        }
        let mut effects = self.refuse_all(&Refusal::NoInstance(error.clone()));
        (self.probing, self.doubted) = (false, false);
        if for_good {
            self.broken = Some(error);
        }
        effects.extend(self.decide(now));
        effects
    }

    /// An invocation ended on an instance.
    pub(super) fn finished(&mut self, id: InstanceId, reusable: bool, now: Moment) -> Vec<Effect> {
        let Some(instance) = self.instances.get_mut(&id) else { return Vec::new() };
        assert!(instance.phase == Phase::Busy, "F3: only a busy instance finishes");
        instance.phase = if reusable { Phase::Idle { since: now } } else { Phase::Leaving };
        self.failures = 0;
        self.decide(now)
    }

    /// An instance ended before it began with what it was assigned; `ticket` with its bytes waits again, first in line.
    pub(super) fn returned(&mut self, id: InstanceId, ticket: Option<(Ticket, usize)>, now: Moment) -> Vec<Effect> {
        let Some(instance) = self.instances.get(&id) else { return Vec::new() };
        assert!(instance.phase == Phase::Busy, "F3: only a busy instance gives back");
        self.back_off(now);
        self.leaves(id, ticket, now)
    }

    /// An instance takes no more work, for no fault of its code; `ticket` as in [`PoolState::returned`].
    pub(super) fn leaves(&mut self, id: InstanceId, ticket: Option<(Ticket, usize)>, now: Moment) -> Vec<Effect> {
        let Some(instance) = self.instances.get_mut(&id) else { return Vec::new() };
        instance.phase = Phase::Leaving;
        let Some((ticket, bytes)) = ticket else { return self.decide(now) };
        // Not for want of room: it had its place.
        if let Some(refusal) = self.refusal_of_all() {
            let mut effects = vec![Effect::Refuse(ticket, refusal)];
            effects.extend(self.decide(now));
            return effects;
        }
        self.queue.push_front((ticket, bytes));
        self.queue_bytes += bytes;
        self.decide(now)
    }

    /// The process of an instance is gone.
    pub(super) fn gone(&mut self, id: InstanceId, now: Moment) -> Vec<Effect> {
        if let Some(instance) = self.instances.remove(&id)
            && instance.phase != Phase::Leaving
            && !instance.used
        {
            self.back_off(now);
        }
        self.decide(now)
    }

    /// A new definition takes over; an instance starts at once to see whether its code loads.
    pub(super) fn replace(&mut self, limits: Instances, now: Moment) -> Vec<Effect> {
        self.limits = limits;
        self.generation += 1;
        self.forget_failure();
        self.decide(now)
    }

    /// Tries again what was broken.
    pub(super) fn resume(&mut self, now: Moment) -> Vec<Effect> {
        if self.broken.is_none() {
            return Vec::new();
        }
        self.forget_failure();
        self.decide(now)
    }

    /// Lets instances finish what they hold and stop; nothing starts any more.
    pub(super) fn close(&mut self, now: Moment) -> Vec<Effect> {
        self.closing = true;
        let mut effects = self.refuse_all(&Refusal::Closing);
        effects.extend(self.decide(now));
        effects
    }

    /// Time passed.
    pub(super) fn tick(&mut self, now: Moment) -> Vec<Effect> {
        self.decide(now)
    }

    /// When [`PoolState::tick`] has something to do, if nothing else happens before.
    pub(super) fn next_tick(&self) -> Option<Moment> {
        let start = (self.missing() > 0 && self.room() > 0).then_some(self.no_start_before);
        [start, self.next_idle_end().map(|(_, end)| end)].into_iter().flatten().min()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.instances.is_empty()
    }

    pub(super) fn is_probing(&self) -> bool {
        self.probing
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn broken(&self) -> Option<&InvocationError> {
        self.broken.as_ref()
    }

    pub(super) fn queue_length(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn counts(&self) -> InstanceCounts {
        let mut counts = InstanceCounts::default();
        for instance in self.instances.values() {
            match instance.phase {
                Phase::Starting => counts.starting += 1,
                Phase::Idle { .. } => counts.idle += 1,
                Phase::Busy => counts.busy += 1,
                Phase::Leaving => counts.leaving += 1,
            }
        }
        counts
    }

    fn refusal(&self, bytes: usize) -> Option<Refusal> {
        let is_full = self.queue.len() >= QUEUE_LENGTH_MAX || self.queue_bytes + bytes > QUEUE_BYTES_MAX;
        self.refusal_of_all().or_else(|| is_full.then_some(Refusal::QueueFull))
    }

    /// Why nothing that waits would ever run.
    fn refusal_of_all(&self) -> Option<Refusal> {
        if self.closing {
            return Some(Refusal::Closing);
        }
        self.broken.as_ref().map(|error| Refusal::NoInstance(error.clone()))
    }

    fn decide(&mut self, now: Moment) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.stop_outdated(&mut effects);
        self.assign(&mut effects);
        self.start(now, &mut effects);
        self.stop_idle(now, &mut effects);
        assert!(self.instances.len() <= self.quota_in_force(), "F1: running instances <= quota");
        effects
    }

    /// After the quota was lowered, older instances may still finish what they hold.
    fn quota_in_force(&self) -> usize {
        let finishing = self.instances.values().filter(|instance| instance.generation != self.generation).count();
        (self.limits.max as usize).max(finishing)
    }

    /// Idle instances of an older definition go, and while closing all of them; so do those that are still starting.
    fn stop_outdated(&mut self, effects: &mut Vec<Effect>) {
        for (&id, instance) in &mut self.instances {
            let is_outdated = self.closing || instance.generation != self.generation;
            let effect = match instance.phase {
                Phase::Idle { .. } if is_outdated => Effect::Stop(id),
                Phase::Starting if is_outdated => Effect::Abort(id),
                _ => continue,
            };
            instance.phase = Phase::Leaving;
            effects.push(effect);
        }
    }

    fn assign(&mut self, effects: &mut Vec<Effect>) {
        while !self.queue.is_empty()
            && let Some(id) = self.last_used_idle()
        {
            let (ticket, bytes) = self.queue.pop_front().expect("checked above");
            self.queue_bytes -= bytes;
            let instance = self.instances.get_mut(&id).expect("found above");
            assert!(matches!(instance.phase, Phase::Idle { .. }), "F2, F3: only an idle instance gets work");
            instance.phase = Phase::Busy;
            instance.used = true;
            effects.push(Effect::Assign(id, ticket));
        }
    }

    fn last_used_idle(&self) -> Option<InstanceId> {
        let idle = self.instances.iter().filter_map(|(&id, instance)| match instance.phase {
            Phase::Idle { since } if instance.generation == self.generation => Some((since, id)),
            _ => None,
        });
        idle.max().map(|(_, id)| id)
    }

    fn start(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        if now < self.no_start_before {
            return;
        }
        for _ in 0..self.missing().min(self.room()) {
            let id = self.next_instance;
            self.next_instance += 1;
            self.instances.insert(id, Instance { generation: self.generation, phase: Phase::Starting, used: false });
            effects.push(Effect::Start(id));
        }
    }

    /// How many instances more would be useful: for what waits, for the reserve, for a probe.
    fn missing(&self) -> usize {
        let starting = self.starting();
        if self.closing || self.broken.is_some() || (self.doubted && starting > 0) {
            return 0;
        }
        let live = self.count(|instance| instance.phase != Phase::Leaving);
        let reserved = (self.limits.min as usize).max(usize::from(self.probing));
        self.queue.len().saturating_sub(starting).max(reserved.saturating_sub(live))
    }

    fn starting(&self) -> usize {
        self.count(|instance| instance.phase == Phase::Starting)
    }

    fn room(&self) -> usize {
        (self.limits.max as usize).saturating_sub(self.instances.len())
    }

    /// Instances of the current definition for which `matches` holds.
    fn count(&self, matches: impl Fn(&Instance) -> bool) -> usize {
        self.instances.values().filter(|instance| instance.generation == self.generation && matches(instance)).count()
    }

    fn stop_idle(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        while let Some((id, end)) = self.next_idle_end()
            && end <= now
        {
            self.instances.get_mut(&id).expect("found above").phase = Phase::Leaving;
            effects.push(Effect::Stop(id));
        }
    }

    /// The instance that has been idle for longest and when it has to go, unless it belongs to the reserve.
    fn next_idle_end(&self) -> Option<(InstanceId, Moment)> {
        let live = self.count(|instance| instance.phase != Phase::Leaving);
        if live <= self.limits.min as usize {
            return None;
        }
        let idle = self.instances.iter().filter_map(|(&id, instance)| match instance.phase {
            Phase::Idle { since } => Some((since, id)),
            _ => None,
        });
        idle.min().map(|(since, id)| (id, since + self.limits.idle))
    }

    fn refuse_all(&mut self, refusal: &Refusal) -> Vec<Effect> {
        self.queue_bytes = 0;
        self.queue.drain(..).map(|(ticket, _)| Effect::Refuse(ticket, refusal.clone())).collect()
    }

    fn back_off(&mut self, now: Moment) {
        let pause = BACKOFF_FIRST.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.no_start_before = now + pause;
    }

    fn forget_failure(&mut self) {
        self.broken = None;
        self.doubted = false;
        self.probing = true;
        self.failures = 0;
        self.no_start_before = Moment::ZERO;
    }
}

#[cfg(test)]
mod tests;
