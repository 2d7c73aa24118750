//! Puts history into its topic, behind the back of whoever makes it.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tripline_storage::Offset;
use tripline_storage::batch::{BatchBuilder, BatchOptions, NewRecord};
use uuid::Uuid;

use super::ranges::Ranges;
use super::record::{AttemptRecord, EventRecord, Follows, Letters, Subject, TraceRecord, VerdictRecord};
use crate::broker::{Broker, Topic};
use crate::event::trace::TraceContext;
use crate::input::EventInput;
use crate::topic::name::TopicName;
use crate::topic::spec::TopicConfig;
use crate::trigger::attempt::{AttemptState, LastError, Step};
use crate::trigger::spec::TriggerSpec;

/// The topic.
pub const TRACE_TOPIC: &str = "__tripline.traces";
/// Records that wait to be appended, and what they may take in memory.
const WAITING_MAX: usize = 16_384;
const WAITING_BYTES_MAX: usize = 16 << 20;
/// Records are gathered for so long, so that a batch has many of them.
const GATHER: Duration = Duration::from_millis(50);
/// Records taken at a time.
const TAKEN_MAX: usize = 1_024;
const BATCH_BYTES: usize = 256 << 10;
/// The log speaks of dropped records at most so often.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How long history is kept, and how many bytes of it.
const RETENTION_MS: u64 = 7 * 24 * 3600 * 1000;
const RETENTION_BYTES: u64 = 256 << 20;
const SEGMENT_BYTES: u32 = 16 << 20;
/// Events of one attempt that are named.
const EVENTS_MAX: usize = 100;
/// The longest id of an event that is kept, in bytes.
const ID_BYTES_MAX: usize = 256;

/// Events of an attempt that have an id of their own or belong to a trace: the first [`EVENTS_MAX`] of them.
#[derive(Debug, Default)]
pub(in crate::trigger) struct TracedEvents {
    events: Vec<EventRecord>,
    left_out: u32,
    contexts: Vec<(Offset, TraceContext)>,
}

impl TracedEvents {
    /// An event: its id, where that is its own, and its place in a trace.
    pub(in crate::trigger) fn note(&mut self, offset: Offset, id: Option<&str>, context: Option<&TraceContext>) {
        let id = id.filter(|id| id.len() <= ID_BYTES_MAX);
        if id.is_none() && context.is_none() {
            return;
        }
        if self.events.len() >= EVENTS_MAX {
            self.left_out += 1;
            return;
        }
        let traceparent = context.map(|context| context.parent().to_owned());
        self.events.push(EventRecord { offset: offset.get(), id: id.map(str::to_owned), traceparent });
        self.contexts.extend(context.map(|context| (offset, context.clone())));
    }

    /// The trace that the record at `offset` belongs to.
    pub(in crate::trigger) fn context(&self, offset: Offset) -> Option<&TraceContext> {
        self.contexts.iter().find(|(of, _)| *of == offset).map(|(_, context)| context)
    }
}

/// An attempt that was made.
#[derive(Debug)]
pub(in crate::trigger) struct Made {
    pub(in crate::trigger) spec: Arc<TriggerSpec>,
    pub(in crate::trigger) trigger: Uuid,
    pub(in crate::trigger) run: Option<Uuid>,
    pub(in crate::trigger) input: EventInput,
    pub(in crate::trigger) window: String,
    pub(in crate::trigger) attempt: u32,
    pub(in crate::trigger) interrupted: u32,
    pub(in crate::trigger) began_ms: i64,
    pub(in crate::trigger) took: Duration,
    pub(in crate::trigger) offsets: Ranges,
    pub(in crate::trigger) failed: Ranges,
    pub(in crate::trigger) rejected: Ranges,
    pub(in crate::trigger) error: Option<LastError>,
    pub(in crate::trigger) traceparent: Option<String>,
    pub(in crate::trigger) events: TracedEvents,
}

/// A verdict that was carried out.
#[derive(Debug)]
pub(in crate::trigger) struct Settled {
    pub(in crate::trigger) spec: Arc<TriggerSpec>,
    pub(in crate::trigger) trigger: Uuid,
    pub(in crate::trigger) run: Option<Uuid>,
    pub(in crate::trigger) input: EventInput,
    pub(in crate::trigger) offsets: Ranges,
    pub(in crate::trigger) reason: String,
    pub(in crate::trigger) state: AttemptState,
    pub(in crate::trigger) at_ms: i64,
    /// Topic, partition and offsets of the dead letters.
    pub(in crate::trigger) letters: Option<(String, u32, Ranges)>,
}

#[derive(Debug)]
enum Entry {
    Made(Box<Made>, Option<Step>),
    Settled(Box<Settled>),
}

#[derive(Debug)]
enum Message {
    /// With what it takes in memory.
    Entry(Entry, usize),
    /// Answered when everything before it is in the topic.
    Flush(oneshot::Sender<()>),
    Stop,
}

/// What became of history since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceCounts {
    /// Records that were appended.
    pub written: u64,
    /// Records that were dropped: they came faster than the disk took them, or it took none.
    pub dropped: u64,
}

#[derive(Debug, Default)]
struct Counters {
    waiting_bytes: AtomicUsize,
    written: AtomicU64,
    dropped: AtomicU64,
}

/// Where history is handed over. Clones lead to the same writer.
#[derive(Clone, Debug)]
pub(in crate::trigger) struct TraceLog {
    sender: mpsc::Sender<Message>,
    counters: Arc<Counters>,
}

impl TraceLog {
    /// Starts a writer.
    pub(in crate::trigger) fn start(broker: Broker) -> (Self, tokio::task::JoinHandle<()>) {
        let (sender, inbox) = mpsc::channel(WAITING_MAX);
        let counters = Arc::<Counters>::default();
        let writer = Writer { inbox, counters: Arc::clone(&counters), broker, builder: None, told: (0, None) };
        (Self { sender, counters }, tokio::spawn(writer.run()))
    }

    /// An attempt has ended, and this follows; nothing that is known, when the broker stops.
    pub(in crate::trigger) fn attempt(&self, made: Box<Made>, step: Option<Step>) {
        let events = made.events.events.iter().map(|event| 128 + event.id.as_ref().map_or(0, String::len));
        let size_bytes = 1024
            + made.error.as_ref().map_or(0, |error| error.message.len())
            + [&made.offsets, &made.failed, &made.rejected].map(Ranges::size_bytes).iter().sum::<usize>()
            + events.sum::<usize>();
        self.hand_over(Entry::Made(made, step), size_bytes);
    }

    /// A verdict was carried out.
    pub(in crate::trigger) fn verdict(&self, settled: Box<Settled>) {
        let size_bytes = 2048 + settled.offsets.size_bytes();
        self.hand_over(Entry::Settled(settled), size_bytes);
    }

    fn hand_over(&self, entry: Entry, size_bytes: usize) {
        let fits = self.counters.waiting_bytes.fetch_add(size_bytes, Relaxed) + size_bytes <= WAITING_BYTES_MAX;
        if !fits || self.sender.try_send(Message::Entry(entry, size_bytes)).is_err() {
            self.counters.waiting_bytes.fetch_sub(size_bytes, Relaxed);
            self.counters.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Waits until everything that was handed over is in the topic, or dropped.
    pub(in crate::trigger) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.sender.send(Message::Flush(done)).await.is_ok() {
            let _ = flushed.await;
        }
    }

    /// Ends the writer when it has written what it has.
    pub(in crate::trigger) async fn stop(&self) {
        let _ = self.sender.send(Message::Stop).await;
    }

    pub(in crate::trigger) fn counts(&self) -> TraceCounts {
        TraceCounts { written: self.counters.written.load(Relaxed), dropped: self.counters.dropped.load(Relaxed) }
    }
}

struct Writer {
    inbox: mpsc::Receiver<Message>,
    counters: Arc<Counters>,
    broker: Broker,
    /// The batch that is filling.
    builder: Option<BatchBuilder>,
    /// How many dropped records the log speaks of, and since when.
    told: (u64, Option<Instant>),
}

impl Writer {
    async fn run(mut self) {
        let mut messages = Vec::new();
        while self.inbox.recv_many(&mut messages, TAKEN_MAX).await > 0 {
            if messages.len() < TAKEN_MAX && messages.iter().all(|message| matches!(message, Message::Entry(..))) {
                self.gather(&mut messages).await;
            }
            let is_entry = |message: &Message| matches!(message, Message::Entry(..));
            // Nobody needs the topic before there is history.
            let topic = if messages.iter().any(is_entry) { self.topic().await } else { None };
            let mut flushed = Vec::new();
            let mut stop = false;
            for message in messages.drain(..) {
                match message {
                    Message::Entry(entry, size_bytes) => {
                        self.push(topic.as_deref(), &entry);
                        self.counters.waiting_bytes.fetch_sub(size_bytes, Relaxed);
                    }
                    Message::Flush(done) => flushed.push(done),
                    Message::Stop => stop = true,
                }
            }
            self.append(topic.as_deref());
            for done in flushed {
                // Who asked may have gone.
                let _ = done.send(());
            }
            self.tell_dropped();
            if stop {
                return;
            }
        }
    }

    /// Says that history is missing, and how much, not at every record.
    fn tell_dropped(&mut self) {
        let dropped = self.counters.dropped.load(Relaxed);
        let (told, at) = self.told;
        if dropped == told || at.is_some_and(|at| at.elapsed() < TELL_EVERY) {
            return;
        }
        tracing::warn!(
            dropped = dropped - told,
            "history of events was dropped: it comes faster than the log takes it"
        );
        self.told = (dropped, Some(Instant::now()));
    }

    /// The topic, made if it is missing.
    async fn topic(&self) -> Option<Arc<Topic>> {
        let name = TopicName::new(TRACE_TOPIC).expect("a good name");
        let config = TopicConfig {
            retention_ms: Some(RETENTION_MS),
            retention_bytes: Some(RETENTION_BYTES),
            segment_bytes: SEGMENT_BYTES,
            ..TopicConfig::default()
        };
        let topic = self.broker.internal_topic(&name, config).await;
        topic.inspect_err(|error| tracing::warn!(%error, "history of events is dropped: there is no topic for it")).ok()
    }

    /// Waits a little for more, unless somebody waits for what is there.
    async fn gather(&mut self, messages: &mut Vec<Message>) {
        let end = Instant::now() + GATHER;
        while messages.len() < TAKEN_MAX {
            match tokio::time::timeout_at(end, self.inbox.recv()).await {
                Ok(Some(message)) => {
                    let waited_for = !matches!(message, Message::Entry(..));
                    messages.push(message);
                    if waited_for {
                        return;
                    }
                }
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn push(&mut self, topic: Option<&Topic>, entry: &Entry) {
        let (record, at_ms) = match entry {
            Entry::Made(made, step) => (TraceRecord::Attempt(made.record(*step)), made.began_ms),
            Entry::Settled(settled) => (TraceRecord::Verdict(settled.record()), settled.at_ms),
        };
        let value = serde_json::to_vec(&record).expect("text and numbers are JSON");
        let key = record.key();
        let record = NewRecord { timestamp_ms: at_ms, key: Some(key.as_bytes()), value: Some(&value), headers: &[] };
        if self.builder.as_ref().is_some_and(|builder| builder.size_bytes_with(&record) > BATCH_BYTES) {
            self.append(topic);
        }
        let builder = self.builder.get_or_insert_with(|| BatchBuilder::new(BatchOptions::default()));
        if let Err(error) = builder.push(&record) {
            tracing::debug!(%error, "a record of an event's history was not kept");
            self.counters.dropped.fetch_add(1, Relaxed);
        }
    }

    fn append(&mut self, topic: Option<&Topic>) {
        let Some(builder) = self.builder.take().filter(|builder| !builder.is_empty()) else { return };
        let records = u64::from(builder.record_count());
        let appended = topic.zip(builder.finish().ok()).map(|(topic, batch)| self.broker.append(topic, 0, batch));
        let counter = if let Some(Ok(_)) = appended { &self.counters.written } else { &self.counters.dropped };
        counter.fetch_add(records, Relaxed);
    }
}

fn subject<'a>(
    spec: &'a TriggerSpec,
    (trigger, run): (Uuid, Option<Uuid>),
    input: &'a EventInput,
    offsets: &'a Ranges,
) -> Subject<'a> {
    let origin = input.origin();
    Subject {
        trigger: spec.name.as_str().into(),
        trigger_id: trigger,
        run,
        function: spec.function.label().into(),
        topic: origin.topic.as_str().into(),
        topic_id: origin.topic_id,
        partition: origin.partition,
        offsets: Cow::Borrowed(offsets),
    }
}

fn error_parts(error: Option<&LastError>) -> (Cow<'_, str>, Cow<'_, str>, Cow<'_, str>) {
    let Some(error) = error else { return Default::default() };
    (error.class.as_str().into(), error.code.as_str().into(), error.message.as_str().into())
}

impl Made {
    fn record(&self, step: Option<Step>) -> AttemptRecord<'_> {
        let (class, code, message) = error_parts(self.error.as_ref());
        AttemptRecord {
            subject: subject(&self.spec, (self.trigger, self.run), &self.input, &self.offsets),
            window: self.window.as_str().into(),
            attempt: self.attempt,
            interrupted: self.interrupted,
            began_ms: self.began_ms,
            took_us: u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX),
            outcome: if self.error.is_some() { class } else { "success".into() },
            code,
            message,
            failed: Cow::Borrowed(&self.failed),
            rejected: Cow::Borrowed(&self.rejected),
            follows: step.and_then(Follows::of),
            traceparent: self.traceparent.as_deref().map(Cow::Borrowed),
            events: Cow::Borrowed(&self.events.events),
            events_left_out: self.events.left_out,
        }
    }
}

impl Settled {
    fn record(&self) -> VerdictRecord<'_> {
        let (outcome, code, message) = error_parts(self.state.last_error.as_ref());
        VerdictRecord {
            subject: subject(&self.spec, (self.trigger, self.run), &self.input, &self.offsets),
            reason: self.reason.as_str().into(),
            attempts: self.state.attempts,
            at_ms: self.at_ms,
            outcome,
            code,
            message,
            dead_letters: self.letters.as_ref().map(|(topic, partition, offsets)| Letters {
                topic: topic.as_str().into(),
                partition: *partition,
                offsets: Cow::Borrowed(offsets),
            }),
        }
    }
}
