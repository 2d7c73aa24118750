//! The instances of one python3 function: the loop around [`PoolState`].

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::frame::PAYLOAD_BYTES_MAX;
use super::instance::{
    Assignment, Definition, InstanceHost, InstanceId, InstanceTask, InvocationResult, Order, Report, interrupted,
    queue_full,
};
use super::invoker::{Invoker, InvokerStatus};
use super::outcome::{ErrorClass, Invocation, InvocationError};
use super::pool_state::{Effect, Moment, PoolState, Refusal, Ticket};
use super::stats::Stats;

/// How long killed instances get to be gone, beyond the deadline of a stop.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// How often an invocation may meet an instance that dies before it begins.
const RETURNS_MAX: u8 = 3;

/// What the first start of a definition showed.
pub(super) type ProbeResult = Result<(), InvocationError>;

/// The handle of a pool; the pool ends when [`Invoker::stop`] was called, or at once when all handles are gone.
#[derive(Debug)]
pub(super) struct Pool {
    messages: mpsc::UnboundedSender<Message>,
    status: watch::Receiver<InvokerStatus>,
    stats: Arc<Stats>,
    cancel: CancellationToken,
}

enum Message {
    Invoke(Invocation, oneshot::Sender<InvocationResult>, Instant),
    Replace(Arc<Definition>, oneshot::Sender<ProbeResult>),
    Resume,
    Close,
    Report(InstanceId, Report),
}

impl Pool {
    /// Starts the pool; its reserved instances start at once.
    pub(super) fn start(definition: Arc<Definition>, host: Arc<InstanceHost>, stats: Arc<Stats>) -> Self {
        Self::start_with(definition, host, stats, None)
    }

    /// Starts the pool and one instance at once; what came of it is received.
    pub(super) fn start_probed(
        definition: Arc<Definition>,
        host: Arc<InstanceHost>,
        stats: Arc<Stats>,
    ) -> (Self, oneshot::Receiver<ProbeResult>) {
        let (answer, shown) = oneshot::channel();
        (Self::start_with(definition, host, stats, Some(answer)), shown)
    }

    fn start_with(
        definition: Arc<Definition>,
        host: Arc<InstanceHost>,
        stats: Arc<Stats>,
        probe: Option<oneshot::Sender<ProbeResult>>,
    ) -> Self {
        let (messages, inbox) = mpsc::unbounded_channel();
        let (publish, status) = watch::channel(InvokerStatus::default());
        let cancel = CancellationToken::new();
        let pool = PoolLoop {
            state: PoolState::new(definition.spec.instances, probe.is_some()),
            begun: Instant::now(),
            definition,
            host,
            stats: Arc::clone(&stats),
            reports: messages.downgrade(),
            publish,
            cancel: cancel.clone(),
            instances: HashMap::new(),
            waiting: HashMap::new(),
            next_ticket: 0,
            probe: probe.map(|answer| (0, answer)),
        };
        tokio::spawn(pool.run(inbox));
        Self { messages, status, stats, cancel }
    }

    /// Lets `definition` take over. An instance is started at once, and what came of it is received; a probe that
    /// another definition overtakes is never answered.
    pub(super) fn replace(&self, definition: Arc<Definition>) -> oneshot::Receiver<ProbeResult> {
        let (answer, shown) = oneshot::channel();
        let _ = self.messages.send(Message::Replace(definition, answer));
        shown
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Invoker for Pool {
    fn invoke(&self, invocation: Invocation) -> BoxFuture<'_, InvocationResult> {
        async move {
            if invocation.payload.len() > PAYLOAD_BYTES_MAX {
                self.stats.count(Some(ErrorClass::Rejected));
                return Err(InvocationError::payload_too_large(invocation.payload.len()));
            }
            let (outcome, result) = oneshot::channel();
            // A pool that has ended drops it, which answers below.
            let _ = self.messages.send(Message::Invoke(invocation, outcome, Instant::now()));
            result.await.unwrap_or_else(|_| Err(interrupted()))
        }
        .boxed()
    }

    fn status(&self) -> watch::Receiver<InvokerStatus> {
        self.status.clone()
    }

    fn resume(&self) {
        let _ = self.messages.send(Message::Resume);
    }

    fn stop(&self, deadline: Instant) -> BoxFuture<'_, ()> {
        async move {
            let _ = self.messages.send(Message::Close);
            let mut status = self.status.clone();
            if timeout_at(deadline, status.wait_for(|status| status.stopped)).await.is_err() {
                self.cancel.cancel();
                let _ = timeout_at(Instant::now() + KILL_GRACE, status.wait_for(|status| status.stopped)).await;
            }
        }
        .boxed()
    }
}

/// An instance as the pool holds it.
struct Member {
    orders: mpsc::Sender<Order>,
    abort: CancellationToken,
    version: u64,
}

struct PoolLoop {
    state: PoolState,
    begun: Instant,
    definition: Arc<Definition>,
    host: Arc<InstanceHost>,
    stats: Arc<Stats>,
    /// Weak, so that the loop ends when the handles are gone.
    reports: mpsc::WeakUnboundedSender<Message>,
    publish: watch::Sender<InvokerStatus>,
    cancel: CancellationToken,
    instances: HashMap<InstanceId, Member>,
    /// Invocations that wait for an instance.
    waiting: HashMap<Ticket, Assignment>,
    next_ticket: Ticket,
    probe: Option<(u64, oneshot::Sender<ProbeResult>)>,
}

impl PoolLoop {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Message>) {
        let effects = self.state.tick(self.now());
        self.act(effects);
        let mut closing = false;
        while !(closing && self.state.is_empty()) {
            let wake = self.state.next_tick().map_or_else(|| self.begun + FAR, |moment| self.begun + moment);
            let message = tokio::select! {
                message = inbox.recv() => message,
                () = sleep_until(wake) => {
                    let effects = self.state.tick(self.now());
                    self.act(effects);
                    continue;
                }
            };
            let Some(message) = message else { break };
            closing |= matches!(message, Message::Close);
            self.handle(message);
        }
        self.publish.send_modify(|status| *status = InvokerStatus { stopped: true, ..InvokerStatus::default() });
    }

    fn now(&self) -> Moment {
        self.begun.elapsed()
    }

    fn handle(&mut self, message: Message) {
        let now = self.now();
        let effects = match message {
            Message::Invoke(invocation, outcome, since) => {
                let ticket = self.next_ticket;
                self.next_ticket += 1;
                let bytes = invocation.payload.len();
                self.waiting.insert(ticket, Assignment { ticket, invocation, outcome, since, returned: 0 });
                self.state.submit(ticket, bytes, now)
            }
            Message::Replace(definition, probe) => {
                self.definition = definition;
                let effects = self.state.replace(self.definition.spec.instances, now);
                self.probe = Some((self.state.generation(), probe));
                effects
            }
            Message::Resume => self.state.resume(now),
            Message::Close => self.state.close(now),
            Message::Report(id, report) => self.take_report(id, report, now),
        };
        self.act(effects);
    }

    fn take_report(&mut self, id: InstanceId, report: Report, now: Moment) -> Vec<Effect> {
        match report {
            Report::Ready { start, facts } => {
                self.stats.cold_start.observe(start);
                self.stats.initializer.observe(Duration::from_micros(facts.initialize_us));
                let effects = self.state.ready(id, now);
                self.answer_probe(Ok(()));
                effects
            }
            Report::StartFailed(error) => {
                self.stats.starts_failed.fetch_add(1, Relaxed);
                let for_good = error.class == ErrorClass::BrokenCode;
                let effects = self.state.start_failed(id, error.clone(), for_good, now);
                self.answer_probe(Err(error));
                effects
            }
            Report::Finished { reusable, duration, error } => {
                self.stats.run.observe(duration);
                self.stats.count(error);
                self.state.finished(id, reusable, now)
            }
            Report::Returned(assignment) => self.take_back(id, *assignment, now),
            Report::Leaving(assignment) => {
                let ticket = assignment.map(|assignment| self.wait_again(*assignment));
                self.state.leaves(id, ticket, now)
            }
            Report::Gone => {
                if let Some(member) = self.instances.remove(&id)
                    && member.version != self.definition.code.version()
                {
                    self.prune();
                }
                self.state.gone(id, now)
            }
        }
    }

    /// Tells whoever waits for the current definition's first start, once the state says that it is over.
    fn answer_probe(&mut self, result: ProbeResult) {
        let is_over =
            |(generation, _): &mut (u64, _)| *generation == self.state.generation() && !self.state.is_probing();
        if let Some((_, answer)) = self.probe.take_if(is_over) {
            let _ = answer.send(result);
        }
    }

    /// The instance died before it began with the invocation, which therefore waits again, first in line.
    fn take_back(&mut self, id: InstanceId, mut assignment: Assignment, now: Moment) -> Vec<Effect> {
        assignment.returned += 1;
        if assignment.returned > RETURNS_MAX {
            let message = "instances keep dying before they take an invocation";
            self.answer(assignment, InvocationError::new(ErrorClass::Unavailable, "instance-died", message));
            return self.state.returned(id, None, now);
        }
        let ticket = self.wait_again(assignment);
        self.state.returned(id, Some(ticket), now)
    }

    fn wait_again(&mut self, assignment: Assignment) -> (Ticket, usize) {
        let ticket = (assignment.ticket, assignment.invocation.payload.len());
        self.waiting.insert(assignment.ticket, assignment);
        ticket
    }

    /// What was outdated may have held the last lease on its code.
    fn prune(&self) {
        let (store, name) = (Arc::clone(&self.host.code_store), self.definition.spec.name.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = store.prune(&name) {
                tracing::warn!(function = name, %error, "old code stays on disk");
            }
        });
    }

    fn act(&mut self, effects: Vec<Effect>) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Start(id) => self.start(id),
                Effect::Assign(id, ticket) => effects.extend(self.assign(id, ticket)),
                Effect::Stop(id) => drop(self.order(id, Order::Stop)),
                Effect::Abort(id) => self.abort(id),
                Effect::Refuse(ticket, refusal) => self.refuse(ticket, refusal),
            }
        }
        self.publish_status();
    }

    fn start(&mut self, id: InstanceId) {
        // One place: an instance holds one order at a time.
        let (orders, inbox) = mpsc::channel(1);
        let abort = self.cancel.child_token();
        let reports = self.reports.clone();
        let task = InstanceTask {
            id,
            definition: Arc::clone(&self.definition),
            host: Arc::clone(&self.host),
            orders: inbox,
            report: Box::new(move |report| {
                if let Some(reports) = reports.upgrade() {
                    let _ = reports.send(Message::Report(id, report));
                }
            }),
            cancel: abort.clone(),
        };
        tokio::spawn(task.run());
        self.instances.insert(id, Member { orders, abort, version: self.definition.code.version() });
    }

    fn assign(&mut self, id: InstanceId, ticket: Ticket) -> Vec<Effect> {
        let assignment = self.waiting.remove(&ticket).expect("a ticket waits until it is assigned");
        if assignment.outcome.is_closed() {
            // Nobody waits any more and nothing has begun: the instance goes on with the next.
            return self.state.finished(id, true, self.now());
        }
        self.stats.queue_wait.observe(assignment.since.elapsed());
        match self.order(id, Order::Invoke(Box::new(assignment))) {
            Err(Order::Invoke(assignment)) => self.take_back(id, *assignment, self.now()),
            _ => Vec::new(),
        }
    }

    /// Gives the order back if the instance has ended and takes none any more.
    fn order(&self, id: InstanceId, order: Order) -> Result<(), Order> {
        let Some(member) = self.instances.get(&id) else { return Err(order) };
        member.orders.try_send(order).map_err(|error| match error {
            TrySendError::Closed(order) | TrySendError::Full(order) => order,
        })
    }

    fn abort(&self, id: InstanceId) {
        if let Some(member) = self.instances.get(&id) {
            member.abort.cancel();
        }
    }

    fn refuse(&mut self, ticket: Ticket, refusal: Refusal) {
        let assignment = self.waiting.remove(&ticket).expect("a ticket waits until it is refused");
        let error = match refusal {
            Refusal::NoInstance(error) => error,
            Refusal::Closing => interrupted(),
            Refusal::QueueFull => queue_full(),
        };
        self.answer(assignment, error);
    }

    fn answer(&self, assignment: Assignment, error: InvocationError) {
        self.stats.count(Some(error.class));
        let _ = assignment.outcome.send(Err(error));
    }

    fn publish_status(&self) {
        let status = InvokerStatus {
            instances: self.state.counts(),
            queued: self.state.queue_length(),
            broken: self.state.broken().cloned(),
            stopped: false,
        };
        self.publish.send_if_modified(|published| {
            let changed = *published != status;
            *published = status;
            changed
        });
    }
}

/// A wake-up that never comes.
const FAR: Duration = Duration::from_secs(3600 * 24 * 365);
