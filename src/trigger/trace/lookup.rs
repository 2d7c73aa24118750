//! Finds an event, and all there is to tell of it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tripline_storage::batch::RecordView as StoredRecord;
use tripline_storage::error::ReadError;
use tripline_storage::{LeaderEpoch, Offset};
use uuid::Uuid;

use super::record::{Fact, Letters, TraceRecord, key_may_tell_of};
use super::story::{self, EventFacts, History, LetterPlace, Searched, Story, Told, TriggerFacts, WhyNot};
use super::writer::{TRACE_TOPIC, TraceLog};
use crate::broker::{Broker, NoPartition, Topic};
use crate::event::MatchEvent;
use crate::event::trace::TraceContext;
use crate::input::{EventInput, LogInput, Origin};
use crate::topic::name::TopicName;
use crate::trigger::deliver::{RecordsError, epoch_of, for_each_record};
use crate::trigger::key_hash;
use crate::trigger::poller::PollerHandle;
use crate::trigger::runner::Runner;

/// Records of one step from the newest to the oldest.
const STEP_RECORDS: u64 = 4_096;
/// How much of the log is read at a time.
const READ_BYTES: usize = 1 << 20;

/// Which event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The record at a place.
    Place {
        /// The topic.
        topic: TopicName,
        /// Its partition.
        partition: u32,
        /// The offset.
        offset: Offset,
    },
    /// The newest event with an id of its own.
    Id {
        /// The id.
        id: String,
        /// Where to look; in all topics when left out.
        topic: Option<TopicName>,
    },
}

impl Wanted {
    /// Reads `TOPIC/PARTITION/OFFSET`; with a topic, `PARTITION-OFFSET` too; anything else is an event's own id.
    #[must_use]
    pub fn parse(text: &str, topic: Option<TopicName>) -> Self {
        let place = |topic: TopicName, partition: &str, offset: &str| {
            let offset = offset.parse().ok().and_then(Offset::new)?;
            Some(Self::Place { topic, partition: partition.parse().ok()?, offset })
        };
        let parts: Vec<&str> = text.split('/').collect();
        let placed = match (parts.as_slice(), &topic) {
            ([name, partition, offset], None) => {
                TopicName::new(*name).ok().and_then(|topic| place(topic, partition, offset))
            }
            ([id], Some(topic)) => {
                id.split_once('-').and_then(|(partition, offset)| place(topic.clone(), partition, offset))
            }
            _ => None,
        };
        placed.unwrap_or_else(|| Self::Id { id: text.to_owned(), topic })
    }
}

/// How much is looked at before a search ends without having seen everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SearchLimits {
    /// Records. Default 1,000,000.
    pub records: u64,
    /// Bytes of them. Default 512 MiB.
    pub bytes: u64,
    /// Time. Default 5 s.
    pub time: Duration,
}

impl Default for SearchLimits {
    fn default() -> Self {
        Self { records: 1_000_000, bytes: 512 << 20, time: Duration::from_secs(5) }
    }
}

/// Why there is no story.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The topic does not exist.
    #[error("topic {0} does not exist")]
    UnknownTopic(String),
    /// The topic does not exist on this broker, and if it is one of a cluster, nobody here reads that partition of it.
    #[error("topic {topic} does not exist here, and no trigger of this process reads {topic}/{partition} of a cluster")]
    NotRead {
        /// The topic.
        topic: String,
        /// Its partition.
        partition: u32,
    },
    /// The topic has no such partition, or it is offline.
    #[error(transparent)]
    Partition(#[from] NoPartition),
    /// Nothing was produced there yet.
    #[error("{topic}/{partition} ends before offset {tail}: there is nothing at {offset} yet")]
    NotProduced {
        /// The topic.
        topic: String,
        /// Its partition.
        partition: u32,
        /// What was asked for.
        offset: Offset,
        /// One after its last offset.
        tail: Offset,
    },
    /// No event with this id was found.
    #[error("no event with id {id:?} {}", .searched.nowhere())]
    NotFound {
        /// The id.
        id: String,
        /// What was looked at.
        searched: Searched,
    },
    /// The log cannot be read.
    #[error("{0}")]
    Unreadable(String),
}

impl From<RecordsError> for TraceError {
    fn from(error: RecordsError) -> Self {
        Self::Unreadable(error.to_string())
    }
}

impl Searched {
    fn nowhere(&self) -> String {
        let looked = format!("among {} record(s), {} bytes", self.records, self.bytes);
        match &self.bound {
            None => format!("{looked}, which is all there is"),
            Some(bound) => format!(
                "{looked}: the bound on {bound} ended the search; name its topic, a higher limit, or TOPIC/PARTITION/OFFSET"
            ),
        }
    }
}

/// A trigger that reads the event's partition.
pub(in crate::trigger) struct Reader {
    pub(in crate::trigger) runner: Arc<Runner>,
    pub(in crate::trigger) poller: PollerHandle,
    pub(in crate::trigger) input: EventInput,
}

/// Who reads what.
pub(in crate::trigger) trait Readers: Sync {
    /// The triggers that read a partition of this broker, by the id of its topic.
    fn here(&self, topic: Uuid, partition: u32) -> Vec<Reader>;

    /// Those that read a partition of one cluster, by the name of its topic, as far as it is read by this process.
    fn on_cluster(&self, topic: &str, partition: u32) -> Vec<Reader>;
}

/// The story of one event.
pub(in crate::trigger) async fn story(
    broker: &Broker,
    traces: &TraceLog,
    wanted: &Wanted,
    limits: SearchLimits,
    now_ms: i64,
    readers: &impl Readers,
) -> Result<Story, TraceError> {
    let (place, search) = match wanted {
        Wanted::Place { topic, partition, offset } if broker.topic(topic.as_str()).is_none() => {
            let there = readers.on_cluster(topic.as_str(), *partition);
            if let Some(input) = there.first().map(|reader| reader.input.clone()) {
                return told_of(broker, traces, (&input, *offset), &there, (limits, now_ms), None).await;
            }
            // An id of its own may look like a place.
            let id = format!("{topic}/{partition}/{offset}");
            match find(broker, traces, &id, None, limits).await {
                Err(TraceError::NotFound { .. }) => return Err(nobody_reads(topic.as_str(), *partition)),
                found => found?,
            }
        }
        Wanted::Place { topic, partition, offset } => ((topic.to_string(), *partition, *offset), None),
        Wanted::Id { id, topic } => find(broker, traces, id, topic.as_ref(), limits).await?,
    };
    let (name, partition, offset) = place;
    let topic = broker.topic(&name).ok_or_else(|| TraceError::UnknownTopic(name.clone()))?;
    let input = EventInput::Log(input(broker, &topic, partition)?);
    let here = readers.here(topic.id(), partition);
    told_of(broker, traces, (&input, offset), &here, (limits, now_ms), search).await
}

fn nobody_reads(topic: &str, partition: u32) -> TraceError {
    match cfg!(feature = "cluster") {
        true => TraceError::NotRead { topic: topic.to_owned(), partition },
        false => TraceError::UnknownTopic(topic.to_owned()),
    }
}

/// The story of the record at a place.
async fn told_of(
    broker: &Broker,
    traces: &TraceLog,
    (input, offset): (&EventInput, Offset),
    readers: &[Reader],
    (limits, now_ms): (SearchLimits, i64),
    search: Option<Searched>,
) -> Result<Story, TraceError> {
    let origin = input.origin();
    if offset >= input.tail() {
        let tail = input.ask_tail().await.map_err(|error| TraceError::Unreadable(error.to_string()))?;
        if offset >= tail {
            let (topic, partition) = (origin.topic.clone(), origin.partition);
            return Err(TraceError::NotProduced { topic, partition, offset, tail });
        }
    }
    let seen = see(input, offset).await?;
    // Where it stands before what is on record: whatever has left a lane is in the queue of history by then.
    let mut facts = Vec::new();
    for reader in readers {
        facts.push(trigger_facts(reader, offset, &seen).await);
    }
    traces.flush().await;
    let (told, mut history) = history(broker, origin, offset, limits).await?;
    history.dropped = traces.counts().dropped;
    let triggers = story::triggers(facts, &told, offset.get());
    Ok(Story { now_ms, event: seen.facts, triggers, history, search })
}

fn input(broker: &Broker, topic: &Topic, partition: u32) -> Result<LogInput, TraceError> {
    Ok(LogInput::new(broker, topic, partition)?)
}

/// A record as it stands in the log.
struct Seen {
    facts: EventFacts,
    for_matching: Option<MatchEvent>,
    key_hash: u64,
}

async fn see(input: &EventInput, offset: Offset) -> Result<Seen, TraceError> {
    let origin = input.origin();
    let facts = EventFacts {
        topic: origin.topic.clone(),
        partition: origin.partition,
        offset: offset.get(),
        ..EventFacts::default()
    };
    let mut seen = Seen { facts, for_matching: None, key_hash: 0 };
    if offset < input.log_start() {
        seen.facts.gone = Some(format!("retention removed it; the log begins at {}", input.log_start()));
        return Ok(seen);
    }
    let outcome = match input.read(offset, READ_BYTES).await {
        Ok(outcome) => outcome,
        Err(error) => {
            seen.facts.gone = Some(error.to_string());
            return Ok(seen);
        }
    };
    let mut found = false;
    for_each_record(&outcome.bytes, |record, header| {
        let epoch = epoch_of(header);
        if record.offset() < offset {
            return ControlFlow::Continue(());
        }
        if record.offset() == offset {
            found = true;
            seen.take(input, record, epoch);
        }
        ControlFlow::Break(())
    })?;
    if !found {
        seen.facts.gone = Some("compaction removed it, or it is a mark of a transaction".to_owned());
    }
    Ok(seen)
}

impl Seen {
    fn take(&mut self, input: &EventInput, record: &StoredRecord<'_>, epoch: LeaderEpoch) {
        let headers: usize =
            record.headers().map(|header| header.name.len() + header.value.map_or(0, <[u8]>::len)).sum();
        let bytes = record.key().map_or(0, <[u8]>::len) + record.value().map_or(0, <[u8]>::len) + headers;
        let trace = TraceContext::of_record(record.headers().map(|header| (header.name, header.value)), record.value());
        self.key_hash = key_hash(record.key());
        let facts = &mut self.facts;
        facts.size_bytes = bytes as u64;
        facts.timestamp_ms = Some(record.timestamp_ms()).filter(|timestamp_ms| *timestamp_ms >= 0);
        facts.key = record.key().and_then(|key| std::str::from_utf8(key).ok()).map(str::to_owned);
        facts.traceparent = trace.as_ref().map(|trace| trace.parent().to_owned());
        facts.tracestate = trace.and_then(|trace| trace.state().map(str::to_owned));
        input.origin().with_event(record, epoch, |event| {
            let event = event.for_matching();
            let text = |name: &str| event.value[name].as_str().unwrap_or_default().to_owned();
            (facts.id, facts.source, facts.event_type) = (text("id"), text("source"), text("type"));
            self.for_matching = Some(event.clone());
        });
    }
}

async fn trigger_facts(reader: &Reader, offset: Offset, seen: &Seen) -> TriggerFacts {
    let runner = &reader.runner;
    let (spec, (shown, _)) = (runner.spec(), runner.shown());
    let why_not = seen.for_matching.as_ref().map(|event| {
        let reasons = spec.filter.as_ref().map(|filter| filter.explain(event)).unwrap_or_default();
        let why_not = |reason: crate::trigger::filter::TurnedAway| WhyNot {
            alternative: reason.alternative,
            path: reason.path,
            expected: reason.expected,
            found: reason.found,
        };
        reasons.into_iter().map(why_not).collect()
    });
    TriggerFacts {
        id: runner.id,
        trigger: spec.name.to_string(),
        function: spec.function.label().to_owned(),
        state: shown.state.as_str(),
        state_reason: shown.reason,
        why_not,
        standing: reader.poller.stands(runner.id, offset, seen.key_hash).await,
        holds_back: spec.per_key.debounce.is_some() || spec.per_key.singleton.is_some(),
    }
}

/// All that history has of one event, and how far it goes back.
async fn history(
    broker: &Broker,
    origin: &Origin,
    offset: Offset,
    limits: SearchLimits,
) -> Result<(Vec<Told>, History), TraceError> {
    let mut spent = Spent::new(limits);
    let mut history = History { topic: TRACE_TOPIC.to_owned(), ..History::default() };
    let Some(mut backwards) = Backwards::of_traces(broker)? else { return Ok((Vec::new(), history)) };
    let key = format!("{}/{}/", origin.topic, origin.partition);
    let mut records = Vec::new();
    loop {
        let more = backwards.step(&mut spent, |record, _| {
            let since_ms = history.since_ms.unwrap_or(i64::MAX).min(record.timestamp_ms());
            history.since_ms = Some(since_ms);
            if !record.key().is_some_and(|found| key_may_tell_of(found, &key, offset.get())) {
                return;
            }
            let told = record.value().and_then(|value| serde_json::from_slice::<TraceRecord<'static>>(value).ok());
            let told = told.filter(|told| told.subject().topic_id == origin.topic_id);
            records.extend(told.and_then(|told| told.about(offset.get())));
        });
        if !more.await? {
            break;
        }
    }
    history.searched = spent.searched;
    let mut told = Vec::with_capacity(records.len());
    for record in records {
        let letter = match &record {
            Fact::Verdict(verdict) => match &verdict.dead_letters {
                Some(letters) => Some(letter_place(broker, letters, origin, offset).await),
                None => None,
            },
            Fact::Attempt(_) => None,
        };
        told.push((record, letter));
    }
    Ok((told, history))
}

/// Where among a window's dead letters that of one record is, by what it says of itself.
async fn letter_place(broker: &Broker, letters: &Letters<'_>, origin: &Origin, offset: Offset) -> LetterPlace {
    let mut place = LetterPlace { topic: letters.topic.to_string(), partition: letters.partition, offset: None };
    let input = broker.topic(&letters.topic).and_then(|found| LogInput::new(broker, &found, letters.partition).ok());
    let Some(input) = input else { return place };
    let wanted = [
        ("tripline-dlq-topic", origin.topic.clone()),
        ("tripline-dlq-partition", origin.partition.to_string()),
        ("tripline-dlq-offset", offset.to_string()),
    ];
    for (first, last) in letters.offsets.iter() {
        let (Some(first), Some(last)) = (Offset::new(first), Offset::new(last)) else { continue };
        let mut backwards = Backwards { input: input.clone(), upto: last.next(), start: first };
        let mut spent = Spent::new(SearchLimits::default());
        let look = |record: &StoredRecord<'_>, _| {
            let says = |(name, value): &(&str, String)| {
                record.headers().any(|header| {
                    header.name == name.as_bytes() && header.value.is_some_and(|found| found == value.as_bytes())
                })
            };
            if wanted.iter().all(says) {
                place.offset = Some(record.offset().get());
            }
        };
        let mut look = look;
        while let Ok(true) = backwards.step(&mut spent, &mut look).await {}
    }
    place
}

type Place = (String, u32, Offset);

/// The newest event with an id of its own: in history, then in the topics.
async fn find(
    broker: &Broker,
    traces: &TraceLog,
    id: &str,
    topic: Option<&TopicName>,
    limits: SearchLimits,
) -> Result<(Place, Option<Searched>), TraceError> {
    traces.flush().await;
    let mut spent = Spent::new(limits);
    if let Some(place) = find_in_traces(broker, id, topic, &mut spent).await? {
        return Ok((place, Some(spent.searched)));
    }
    let topics = match topic {
        Some(name) => {
            let found = broker.topic(name.as_str());
            vec![found.ok_or_else(|| TraceError::UnknownTopic(name.to_string()))?]
        }
        None => broker.topics().into_iter().filter(|topic| !topic.name().is_internal()).collect(),
    };
    // What history took of the bound is not missing here: it was no more than a first try.
    let mut spent = Spent::new(limits);
    match find_in_topics(broker, id, &topics, &mut spent).await? {
        Some(place) => Ok((place, Some(spent.searched))),
        None => {
            // It may be in what could not be looked through.
            topics.iter().try_for_each(|topic| topic.is_whole())?;
            Err(TraceError::NotFound { id: id.to_owned(), searched: spent.searched })
        }
    }
}

async fn find_in_traces(
    broker: &Broker,
    id: &str,
    topic: Option<&TopicName>,
    spent: &mut Spent,
) -> Result<Option<Place>, TraceError> {
    let Some(mut backwards) = Backwards::of_traces(broker)? else { return Ok(None) };
    let written = serde_json::Value::from(id).to_string();
    let mut newest: Option<Place> = None;
    loop {
        let more = backwards.step(spent, |record, _| {
            let text = record.value().and_then(|value| std::str::from_utf8(value).ok());
            let Some(text) = text.filter(|text| text.contains(&written)) else { return };
            let Ok(TraceRecord::Attempt(told)) = serde_json::from_str::<TraceRecord<'static>>(text) else { return };
            let subject = &told.subject;
            let known = broker.topic(&subject.topic).is_some_and(|found| found.id() == subject.topic_id);
            if !known || topic.is_some_and(|wanted| wanted.as_str() != subject.topic) {
                return;
            }
            let event = told.events.iter().find(|event| event.id.as_deref() == Some(id));
            if let Some(offset) = event.and_then(|event| Offset::new(event.offset)) {
                newest = Some((subject.topic.to_string(), subject.partition, offset));
            }
        });
        if !more.await? || newest.is_some() {
            return Ok(newest);
        }
    }
}

/// From the newest records of all partitions to the oldest, a step of each in turn.
async fn find_in_topics(
    broker: &Broker,
    id: &str,
    topics: &[Arc<Topic>],
    spent: &mut Spent,
) -> Result<Option<Place>, TraceError> {
    let inputs = topics.iter().flat_map(|topic| {
        (0..topic.partition_count()).filter_map(|partition| LogInput::new(broker, topic, partition).ok())
    });
    let mut partitions: Vec<Backwards> = inputs.map(Backwards::new).collect();
    while !partitions.is_empty() {
        let mut left = Vec::new();
        for mut backwards in partitions {
            let input = backwards.input.clone();
            let mut newest = None;
            let more = backwards.step(spent, |record, epoch| {
                // Only headers make a record an event of its own.
                if record.headers().next().is_none() {
                    return;
                }
                let is_it = input.origin().with_event(record, epoch, |event| event.id() == id);
                if is_it {
                    newest = Some(record.offset());
                }
            });
            let more = more.await?;
            if let Some(offset) = newest {
                return Ok(Some((input.origin().topic.clone(), input.origin().partition, offset)));
            }
            if more {
                left.push(backwards);
            }
        }
        partitions = left;
    }
    Ok(None)
}

/// What a search may look at, and has.
struct Spent {
    searched: Searched,
    limits: SearchLimits,
    end: Instant,
}

impl Spent {
    fn new(limits: SearchLimits) -> Self {
        Self { searched: Searched::default(), limits, end: Instant::now() + limits.time }
    }

    fn bound(&self) -> Option<&'static str> {
        if self.searched.records >= self.limits.records {
            return Some("records");
        }
        if self.searched.bytes >= self.limits.bytes {
            return Some("bytes");
        }
        (Instant::now() >= self.end).then_some("time")
    }
}

/// Goes through a partition from its newest records to its oldest.
struct Backwards {
    input: LogInput,
    /// Everything from here on was looked at.
    upto: Offset,
    start: Offset,
}

impl Backwards {
    fn new(input: LogInput) -> Self {
        let (upto, start) = (input.tail(), input.log_start());
        Self { input, upto, start }
    }

    fn of_traces(broker: &Broker) -> Result<Option<Self>, TraceError> {
        let topic = broker.topic(TRACE_TOPIC);
        topic.map(|topic| input(broker, &topic, 0).map(Self::new)).transpose()
    }

    /// Hands over the records of one step, in offset order. `false` when there are no more, or a bound is reached.
    async fn step(
        &mut self,
        spent: &mut Spent,
        mut visit: impl FnMut(&StoredRecord<'_>, LeaderEpoch) + Send,
    ) -> Result<bool, TraceError> {
        if self.upto <= self.start {
            return Ok(false);
        }
        if let Some(bound) = spent.bound() {
            spent.searched.bound = Some(bound.to_owned());
            return Ok(false);
        }
        let step = STEP_RECORDS.min(spent.limits.records - spent.searched.records).min(self.upto.since(self.start));
        let from = Offset::new(self.upto.get() - i64::try_from(step).unwrap_or(0)).unwrap_or(self.start);
        let mut at = from;
        while at < self.upto {
            let outcome = match self.input.read(at, READ_BYTES).await {
                Ok(outcome) if outcome.bytes.is_empty() => break,
                Ok(outcome) => outcome,
                // What is gone or damaged is not found.
                Err(ReadError::OutOfRange { log_start, .. }) if at < log_start => {
                    at = log_start;
                    continue;
                }
                Err(ReadError::Damaged { to, .. }) if to > at => {
                    at = to;
                    continue;
                }
                Err(error) => return Err(TraceError::Unreadable(error.to_string())),
            };
            spent.searched.bytes += outcome.bytes.len() as u64;
            for_each_record(&outcome.bytes, |record, header| {
                let epoch = epoch_of(header);
                if record.offset() >= self.upto {
                    return ControlFlow::Break(());
                }
                if record.offset() >= at {
                    spent.searched.records += 1;
                    visit(record, epoch);
                }
                ControlFlow::Continue(())
            })?;
            at = outcome.next;
        }
        self.upto = from;
        Ok(self.upto > self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_place_when_it_can_be_one() {
        let topic = |name: &str| TopicName::new(name).unwrap();
        let place = |name: &str, partition, offset| Wanted::Place {
            topic: topic(name),
            partition,
            offset: Offset::new(offset).unwrap(),
        };
        let id = |id: &str, topic: Option<TopicName>| Wanted::Id { id: id.to_owned(), topic };
        assert_eq!(Wanted::parse("flights/0/41", None), place("flights", 0, 41));
        assert_eq!(Wanted::parse("3-41", Some(topic("flights"))), place("flights", 3, 41));
        assert_eq!(Wanted::parse("3-41", None), id("3-41", None));
        for own in ["e-17", "a/b", "a/b/c/d", "a b/0/1", "flights/0/-1", "flights/x/1", "/0/1", ""] {
            assert_eq!(Wanted::parse(own, None), id(own, None), "{own}");
        }
        assert_eq!(Wanted::parse("x/0/1", Some(topic("flights"))), id("x/0/1", Some(topic("flights"))));
    }
}
