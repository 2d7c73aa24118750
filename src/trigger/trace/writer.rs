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
use super::record::{
    AttemptRecord, EventRecord, Follows, Letters, SUCCESS, Subject, Success, SuccessesRecord, TraceRecord,
    VerdictRecord,
};
use crate::broker::{Broker, Topic};
use crate::event::trace::TraceContext;
use crate::input::{EventInput, Origin};
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
/// Windows that share a record.
const SUCCESSES_MAX: usize = 100;
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
    /// What the window is called: the first offset that it had.
    pub(in crate::trigger) name: Offset,
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
    /// Attempts and verdicts of which the topic tells.
    pub written: u64,
    /// Those that were dropped: they came faster than the disk took them, or it took none.
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
        let writer = Writer {
            inbox,
            counters: Arc::clone(&counters),
            broker,
            builder: None,
            told_of: 0,
            successes: Vec::new(),
            value: Vec::new(),
            told: (0, None),
        };
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
    /// Of how many attempts and verdicts it tells.
    told_of: u64,
    /// Attempts of which there is little to tell, until they are put together.
    successes: Vec<(Success, Box<Made>)>,
    /// Room for a record's value.
    value: Vec<u8>,
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
                        self.take(topic.as_deref(), entry);
                        self.counters.waiting_bytes.fetch_sub(size_bytes, Relaxed);
                    }
                    Message::Flush(done) => flushed.push(done),
                    Message::Stop => stop = true,
                }
            }
            self.push_successes(topic.as_deref());
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

    fn take(&mut self, topic: Option<&Topic>, entry: Entry) {
        match entry {
            Entry::Made(made, step) => match made.as_success().filter(|_| step == Some(Step::Done)) {
                Some(success) => self.successes.push((success, made)),
                None => self.push(topic, &TraceRecord::Attempt(made.record(step)), (made.began_ms, 1)),
            },
            Entry::Settled(settled) => self.push(topic, &TraceRecord::Verdict(settled.record()), (settled.at_ms, 1)),
        }
    }

    /// Puts those of one lane and definition together.
    fn push_successes(&mut self, topic: Option<&Topic>) {
        let mut successes = std::mem::take(&mut self.successes);
        let lane = |made: &Made| (made.trigger, made.run, Arc::as_ptr(&made.spec));
        successes.sort_by(|(one_window, one), (other_window, other)| {
            let lanes = lane(one).cmp(&lane(other));
            let places = || place(one.input.origin()).cmp(&place(other.input.origin()));
            lanes.then_with(places).then_with(|| one_window.first.cmp(&other_window.first))
        });
        let is_same = |one: &Made, other: &Made| {
            lane(one) == lane(other) && place(one.input.origin()) == place(other.input.origin())
        };
        for of_lane in successes.chunk_by(|(_, one), (_, other)| is_same(one, other)) {
            for windows in apart(of_lane.iter().map(|(window, _)| *window)) {
                self.push_windows(topic, &of_lane[0].1, windows);
            }
        }
        // Its room is used again.
        successes.clear();
        self.successes = successes;
    }

    /// Windows of the lane and definition of `made`.
    fn push_windows(&mut self, topic: Option<&Topic>, made: &Made, windows: Vec<Success>) {
        let mut offsets = Ranges::default();
        windows.iter().for_each(|window| offsets.extend(window.first, window.last));
        let subject = subject(&made.spec, (made.trigger, made.run), &made.input, &offsets);
        let at_ms = windows.iter().map(|window| window.began_ms).min().unwrap_or_default();
        let count = windows.len() as u64;
        self.push(topic, &TraceRecord::Successes(SuccessesRecord { subject, windows: windows.into() }), (at_ms, count));
    }

    /// Of a time, and of so many attempts or verdicts.
    fn push(&mut self, topic: Option<&Topic>, record: &TraceRecord<'_>, (at_ms, count): (i64, u64)) {
        self.value.clear();
        serde_json::to_writer(&mut self.value, record).expect("text and numbers are JSON");
        let value = std::mem::take(&mut self.value);
        let key = record.key();
        let record = NewRecord { timestamp_ms: at_ms, key: Some(key.as_bytes()), value: Some(&value), headers: &[] };
        if self.builder.as_ref().is_some_and(|builder| builder.size_bytes_with(&record) > BATCH_BYTES) {
            self.append(topic);
        }
        let builder = self.builder.get_or_insert_with(|| BatchBuilder::new(BatchOptions::default()));
        match builder.push(&record) {
            Ok(_) => self.told_of += count,
            Err(error) => {
                tracing::debug!(%error, "a record of an event's history was not kept");
                self.counters.dropped.fetch_add(count, Relaxed);
            }
        }
        self.value = value;
    }

    fn append(&mut self, topic: Option<&Topic>) {
        let Some(builder) = self.builder.take().filter(|builder| !builder.is_empty()) else { return };
        let told_of = std::mem::take(&mut self.told_of);
        let appended = topic.zip(builder.finish().ok()).map(|(topic, batch)| self.broker.append(topic, 0, batch));
        let counter = if let Some(Ok(_)) = appended { &self.counters.written } else { &self.counters.dropped };
        counter.fetch_add(told_of, Relaxed);
    }
}

/// The partition. By name too: there are clusters whose topics have no ids.
fn place(origin: &Origin) -> (Uuid, u32, &str) {
    (origin.topic_id, origin.partition, &origin.topic)
}

/// Windows in the order of their first offsets, as lists of which none has a record twice, as after a reset.
fn apart(windows: impl Iterator<Item = Success>) -> Vec<Vec<Success>> {
    let mut lists: Vec<Vec<Success>> = Vec::new();
    for window in windows {
        let fits = |list: &Vec<Success>| {
            list.len() < SUCCESSES_MAX && list.last().is_none_or(|before| before.last < window.first)
        };
        match lists.last_mut().filter(|list| fits(list)) {
            Some(list) => list.push(window),
            None => lists.push(vec![window]),
        }
    }
    lists
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
    /// All there is to tell of it, if it succeeded at the first attempt and is called by its records, which lie side by
    /// side and are no events of their own.
    fn as_success(&self) -> Option<Success> {
        let (first, last) = self.offsets.only()?;
        let says_more = self.error.is_some()
            || (self.attempt, self.interrupted) != (1, 0)
            || !(self.failed.is_empty() && self.rejected.is_empty())
            || self.traceparent.is_some()
            || !self.events.events.is_empty();
        (!says_more && self.name.get() == first).then(|| Success {
            first,
            last,
            began_ms: self.began_ms,
            took_us: self.took_us(),
        })
    }

    fn took_us(&self) -> u64 {
        u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX)
    }

    fn record(&self, step: Option<Step>) -> AttemptRecord<'_> {
        let (class, code, message) = error_parts(self.error.as_ref());
        let subject = subject(&self.spec, (self.trigger, self.run), &self.input, &self.offsets);
        AttemptRecord {
            window: subject.invocation_id(self.name.get()).into(),
            subject,
            attempt: self.attempt,
            interrupted: self.interrupted,
            began_ms: self.began_ms,
            took_us: self.took_us(),
            outcome: if self.error.is_some() { class } else { SUCCESS.into() },
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;
    use tripline_storage::batch::{BatchLimits, Batches};

    use super::*;
    use crate::input::LogInput;
    use crate::topic::spec::TopicSpec;
    use crate::trigger::runner::Runner;

    #[tokio::test]
    async fn windows_of_a_run_of_another_definition_and_of_another_partition_keep_to_themselves() {
        let defined = |function: &str| json!({"trigger": "t", "input": {"topic": "in"}, "function": function});
        let (runner, changed) = (Runner::for_test(&defined("f")), Runner::for_test(&defined("g")));
        let name = TopicName::new("in").unwrap();
        let spec = TopicSpec { name, partitions: 2, config: TopicConfig::default() };
        let topic = runner.broker.create_topic(spec).await.unwrap();
        let (log, writer) = TraceLog::start(runner.broker.clone());
        let (run, lives) = (Some(Uuid::from_u128(7)), None);
        for (offset, spec, run, partition) in [
            (0, runner.spec(), lives, 0),
            (1, runner.spec(), run, 0),
            (2, changed.spec(), lives, 0),
            (3, runner.spec(), lives, 1),
            (4, runner.spec(), lives, 0),
        ] {
            let made = Made {
                spec,
                trigger: runner.id,
                run,
                input: EventInput::Log(LogInput::new(&runner.broker, &topic, partition).unwrap()),
                name: Offset::new(offset).unwrap(),
                attempt: 1,
                interrupted: 0,
                began_ms: 1_700_000_000_000,
                took: Duration::from_millis(1),
                offsets: Ranges::of([Offset::new(offset).unwrap()]),
                failed: Ranges::default(),
                rejected: Ranges::default(),
                error: None,
                traceparent: None,
                events: TracedEvents::default(),
            };
            log.attempt(Box::new(made), Some(Step::Done));
        }
        log.stop().await;
        writer.await.unwrap();
        assert_eq!(log.counts(), TraceCounts { written: 5, dropped: 0 });

        let traces = runner.broker.topic(TRACE_TOPIC).unwrap();
        let read = traces.partition(0).unwrap().read_blocking(Offset::ZERO, 1 << 20).unwrap();
        let mut told = Vec::new();
        for view in Batches::of(&read.bytes).map_while(Result::ok) {
            for record in &view.records(&BatchLimits::default()).unwrap() {
                let value: serde_json::Value = serde_json::from_slice(record.unwrap().value().unwrap()).unwrap();
                let firsts: Vec<i64> =
                    value["windows"].as_array().unwrap().iter().map(|window| window[0].as_i64().unwrap()).collect();
                let whose = (value["run"].is_string(), value["function"].as_str().unwrap().to_owned());
                told.push((value["partition"].as_u64().unwrap(), whose, firsts));
            }
        }
        told.sort();
        let of =
            |partition, run, function: &str, firsts: &[i64]| (partition, (run, function.to_owned()), firsts.to_vec());
        let expected =
            [of(0, false, "f", &[0, 4]), of(0, false, "g", &[2]), of(0, true, "f", &[1]), of(1, false, "f", &[3])];
        assert_eq!(told, expected);
    }

    #[test]
    fn partitions_of_topics_without_ids_are_told_apart() {
        let mut one = Origin::for_test();
        one.topic_id = Uuid::nil();
        let mut other = one.clone();
        other.topic = "other".to_owned();
        assert_ne!(place(&one), place(&other));
        assert_eq!(place(&one), place(&one.clone()));
    }

    proptest! {
        #[test]
        fn windows_are_put_together_where_none_has_a_record_of_another(
            mut windows in proptest::collection::vec((0i64..200, 0i64..4), 0..300),
        ) {
            windows.sort_unstable();
            let windows: Vec<Success> =
                windows.into_iter().map(|(first, more)| (first, first + more, 0, 0).into()).collect();
            let lists = apart(windows.iter().copied());
            prop_assert_eq!(lists.concat(), windows);
            for list in lists {
                prop_assert!((1..=SUCCESSES_MAX).contains(&list.len()));
                prop_assert!(list.is_sorted_by(|one, next| one.last < next.first));
            }
        }
    }
}
