//! Dead letters: records that triggers gave up, with the reason.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use axum::Json;
use axum::extract::{RawQuery, State};
use futures_util::future::join_all;
use http::StatusCode;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use tokio::time::timeout;
use tripline_storage::Offset;
use tripline_storage::error::ReadError;

use super::records_out::start;
use super::topics::existing_topic;
use crate::broker::NoPartition;
use crate::http::extract::Segments;
use crate::http::limits::{READ_BYTES_MAX, RECORDS_OUT_MAX};
use crate::http::problem::Problem;
use crate::http::query::Query;
use crate::http::reader::{OwnedRecord, read, read_input};
use crate::http::record_json::{Encoding, Shown};
use crate::http::rooms::Rooms;
use crate::topic::name::{TopicName, TriggerName};
use crate::trigger::dead_letter::HEADER_PREFIX;
use crate::trigger::service::{RunError, TriggerReport};

const STEP_RECORDS: usize = 1_000;
/// How long a list waits for a cluster.
const PATIENCE: Duration = Duration::from_secs(30);
/// Says whose letter it is.
const TRIGGER_HEADER: &str = "tripline-dlq-trigger";

/// By topic and trigger: partition and offset of letters.
type OpenLetters = HashMap<(String, String), BTreeSet<(u32, Offset)>>;

/// A dead letter: where it is, the record without our headers, and why it is here.
#[derive(Serialize)]
pub(crate) struct Letter {
    offset: i64,
    partition: u32,
    reason: BTreeMap<String, String>,
    #[serde(serialize_with = "shown")]
    record: OwnedRecord,
    topic: TopicName,
}

fn shown<S: Serializer>(record: &OwnedRecord, serializer: S) -> Result<S::Ok, S::Error> {
    Shown { record, encoding: Encoding::Auto }.serialize(serializer)
}

impl Letter {
    fn new(topic: &TopicName, record: &OwnedRecord) -> Self {
        let mut record = record.clone();
        let ours = record.headers.iter().filter_map(|(name, value)| {
            let text = String::from_utf8_lossy(value.as_deref().unwrap_or_default()).into_owned();
            Some((name.strip_prefix(HEADER_PREFIX)?.to_owned(), text))
        });
        let reason = ours.collect();
        record.headers.retain(|(name, _)| !name.starts_with(HEADER_PREFIX));
        Self { offset: record.offset.get(), partition: record.partition, reason, record, topic: topic.clone() }
    }
}

/// Letters, whether there are no more, and of which triggers they are not known.
#[derive(Serialize)]
pub(crate) struct LetterPage {
    complete: bool,
    dead_letters: Vec<Letter>,
    unknown: Vec<Value>,
}

/// The triggers whose letters are wanted, one or all: those on topics of this broker, and those on clusters.
fn wanted(rooms: &Rooms, trigger: Option<&str>) -> Result<(Vec<TriggerReport>, Vec<TriggerReport>), Problem> {
    let reports = match trigger {
        None => rooms.triggers.list(),
        Some(name) => {
            let report = rooms.triggers.describe(name);
            vec![report.ok_or_else(|| Problem::not_found("trigger", "unknown-trigger", &format!("{name:?}")))?]
        }
    };
    Ok(reports.into_iter().partition(|report| report.spec.input.cluster.is_none()))
}

/// The topics of their letters.
fn topics(reports: &[TriggerReport]) -> BTreeSet<&TopicName> {
    reports.iter().filter_map(|report| report.spec.dead_letter.as_ref()).collect()
}

/// Letters that nobody has taken or discarded, by topic and trigger: the first `limit` of each.
async fn open_letters(rooms: &Rooms, reports: &[TriggerReport], limit: usize) -> Result<OpenLetters, Problem> {
    let mut open = HashMap::new();
    for report in reports {
        let name = report.spec.name.as_str();
        let Some(topic) = report.spec.dead_letter.as_ref() else { continue };
        match rooms.triggers.open_letters(name, limit).await {
            Ok(letters) => open.insert((topic.to_string(), name.to_owned()), letters),
            // Deleted a moment ago, or its topic: whatever is there is shown.
            Err(RunError::UnknownTrigger(_) | RunError::NoDeadLetters(_)) => continue,
            Err(error) => return Err(error.into()),
        };
    }
    Ok(open)
}

/// Dead letters that nobody has redriven or discarded, oldest first.
#[utoipa::path(get, path = "/v1/dead-letters", tag = "dead letters", params(
    ("trigger" = Option<String>, Query, description = "Of this trigger; of all when left out"),
    ("limit" = Option<u32>, Query, description = "1 to 10,000, default 100"),
    ("all" = Option<bool>, Query, description = "Also those that were redriven or discarded, while their topic has them"),
), responses((status = 200, description = "Dead letters, 8 MiB at most; `complete` says whether there may be more; in `unknown`, triggers whose cluster does not tell theirs, and why"),
    (status = "4XX", description = "Problem details")))]
pub(crate) async fn list(State(rooms): State<Rooms>, RawQuery(query): RawQuery) -> Result<Json<LetterPage>, Problem> {
    let query = Query::parse(query.as_deref(), &["trigger", "limit", "all"])?;
    let trigger = query.text("trigger");
    let limit = query.number("limit", 1, RECORDS_OUT_MAX)?.unwrap_or(100) as usize;
    let all = query.flag("all")?;
    let (here, on_clusters) = wanted(&rooms, trigger)?;
    let open = if all { HashMap::new() } else { open_letters(&rooms, &here, limit).await? };
    let mut page = Letters { found: Vec::new(), limit, left_bytes: READ_BYTES_MAX };
    for name in topics(&here) {
        let Some(topic) = rooms.broker.topic(name.as_str()) else { continue };
        topic.is_whole()?;
        for (_, partition) in topic.partitions() {
            let mut next = partition.log_start();
            while !page.is_full() && next < partition.tail() {
                let read = read(partition, next, STEP_RECORDS).await?;
                next = read.next;
                let wanted = read.records.iter().filter(|record| {
                    let Some(owner) = record.header(TRIGGER_HEADER) else { return false };
                    let key = (name.to_string(), owner.to_owned());
                    trigger.is_none_or(|trigger| trigger == owner)
                        && open.get(&key).is_none_or(|open| open.contains(&(record.partition, record.offset)))
                });
                wanted.for_each(|record| page.take(name, record));
            }
        }
    }
    let mut unknown = Vec::new();
    if let (Some(_), [only]) = (trigger, on_clusters.as_slice()) {
        page.extend(letters_on_cluster(&rooms, only, page.rest(), all).await?);
    } else if !page.is_full() {
        // Those of all others are shown.
        let asked = on_clusters.iter().map(|report| letters_in_time(&rooms, report, page.rest(), all));
        let told = join_all(asked).await;
        for (report, told) in on_clusters.iter().zip(told) {
            match told {
                Ok(found) => page.extend(found),
                Err(problem) => unknown.push(json!({ "trigger": report.spec.name, "reason": problem.detail })),
            }
        }
    }
    let complete = !page.is_full();
    Ok(Json(LetterPage { complete, dead_letters: page.found, unknown }))
}

/// Letters of an answer: so many at most, and beyond the first as long as there is room for their bytes.
struct Letters {
    found: Vec<Letter>,
    limit: usize,
    left_bytes: usize,
}

impl Letters {
    const fn is_full(&self) -> bool {
        self.found.len() >= self.limit || self.left_bytes == 0
    }

    /// As many as are missing here.
    const fn rest(&self) -> Self {
        let limit = self.limit.saturating_sub(self.found.len());
        Self { found: Vec::new(), limit, left_bytes: self.left_bytes }
    }

    fn take(&mut self, topic: &TopicName, record: &OwnedRecord) {
        if !self.is_full() {
            self.found.push(Letter::new(topic, record));
            self.left_bytes = self.left_bytes.saturating_sub(record.size_bytes());
        }
    }

    fn extend(&mut self, others: Self) {
        self.found.extend(others.found);
        self.found.truncate(self.limit);
        self.left_bytes = self.left_bytes.min(others.left_bytes);
    }
}

/// As [`letters_on_cluster`], within a time that somebody waits for a list of all.
async fn letters_in_time(rooms: &Rooms, report: &TriggerReport, page: Letters, all: bool) -> Result<Letters, Problem> {
    let told = timeout(PATIENCE, letters_on_cluster(rooms, report, page, all)).await;
    told.unwrap_or_else(|_| {
        let seconds = PATIENCE.as_secs();
        let late = format!("its cluster did not tell its letters within {seconds} s: ask for those of this trigger");
        Err(Problem::new(StatusCode::BAD_GATEWAY, "cluster", late))
    })
}

/// The first letters of a trigger on a cluster, which are there too, as many as `page` has room for.
async fn letters_on_cluster(
    rooms: &Rooms,
    report: &TriggerReport,
    mut page: Letters,
    all: bool,
) -> Result<Letters, Problem> {
    let name = report.spec.name.as_str();
    let Some(topic) = &report.spec.dead_letter else { return Ok(page) };
    let open = if all { None } else { Some(rooms.triggers.open_letters(name, page.limit).await?) };
    let wanted = open.as_ref().map_or(page.limit, BTreeSet::len);
    let there = rooms.triggers.letter_topic(name).await?;
    for partition in 0..there.partition_count() {
        if page.found.len() >= wanted || page.is_full() {
            break;
        }
        let input = there.partition(partition).await?;
        let mut next = input.log_start();
        while page.found.len() < wanted && !page.is_full() && next < input.tail() {
            let read = read_input(&input, next, STEP_RECORDS).await.map_err(of_cluster)?;
            if read.next <= next {
                break;
            }
            next = read.next;
            let taken = read.records.iter().filter(|record| {
                record.header(TRIGGER_HEADER) == Some(name)
                    && open.as_ref().is_none_or(|open| open.contains(&(record.partition, record.offset)))
            });
            taken.for_each(|record| page.take(topic, record));
        }
    }
    Ok(page)
}

/// One dead letter.
#[utoipa::path(get, path = "/v1/dead-letters/{topic}/{partition}/{offset}", tag = "dead letters", params(
    ("topic" = String, Path, description = "The dead-letter topic"),
    ("partition" = u32, Path, description = "Its partition"),
    ("offset" = u64, Path, description = "Its offset"),
    ("trigger" = Option<String>, Query, description = "Whose letter it is; needed where a topic of that name is on a cluster and elsewhere too"),
), responses((status = 200, description = "The dead letter"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn get(
    State(rooms): State<Rooms>,
    Segments((topic, partition, offset)): Segments<(String, u32, u64)>,
    RawQuery(query): RawQuery,
) -> Result<Json<Letter>, Problem> {
    let query = Query::parse(query.as_deref(), &["trigger"])?;
    let place = format!("{topic}/{partition}/{offset}");
    let missing = || Problem::not_found("dead letter", "unknown-dead-letter", &place);
    let wanted = query.text("trigger");
    let is_letter = |record: &&OwnedRecord, at: Offset| {
        let owner = record.header(TRIGGER_HEADER);
        record.offset == at && owner.is_some() && (wanted.is_none() || owner == wanted)
    };
    if let Some((trigger, topic)) = on_cluster(&rooms, &topic, wanted)? {
        let at = i64::try_from(offset).ok().and_then(Offset::new).ok_or_else(missing)?;
        let there = rooms.triggers.letter_topic(trigger.as_str()).await?;
        if partition >= there.partition_count() {
            return Err(missing());
        }
        let input = there.partition(partition).await?;
        if !(input.log_start()..input.tail()).contains(&at) {
            return Err(missing());
        }
        let page = read_input(&input, at, 1).await.map_err(of_cluster)?;
        let record = page.records.first().filter(|record| is_letter(record, at));
        return record.map(|record| Json(Letter::new(&topic, record))).ok_or_else(missing);
    }
    let topic = existing_topic(&rooms.broker, &topic)?;
    let log = topic.partition(partition).map_err(|error| match error {
        NoPartition::Unknown { .. } => missing(),
        error @ NoPartition::Offline { .. } => error.into(),
    })?;
    let from = start(log, &offset.to_string()).await?;
    let page = read(log, from, 1).await?;
    let record = page.records.first().filter(|record| is_letter(record, from));
    record.map(|record| Json(Letter::new(topic.name(), record))).ok_or_else(missing)
}

fn of_cluster(error: ReadError) -> Problem {
    Problem::from(error).of_cluster()
}

/// A trigger on a cluster that keeps its letters in a topic of this name there: the one that is meant, or the only one.
/// `None`: a topic of this broker is meant.
fn on_cluster(rooms: &Rooms, topic: &str, trigger: Option<&str>) -> Result<Option<(TriggerName, TopicName)>, Problem> {
    let keeps = |report: &TriggerReport| {
        report.spec.input.cluster.is_some()
            && report.spec.dead_letter.as_ref().is_some_and(|name| name.as_str() == topic)
            && trigger.is_none_or(|trigger| report.spec.name.as_str() == trigger)
    };
    let candidates: Vec<TriggerReport> = rooms.triggers.list().into_iter().filter(keeps).collect();
    let Some(first) = candidates.first() else { return Ok(None) };
    let is_here = trigger.is_none() && rooms.broker.topic(topic).is_some();
    let cluster = |report: &TriggerReport| report.spec.input.cluster.as_ref().map(|address| address.brokers.clone());
    if is_here || candidates.iter().any(|other| cluster(other) != cluster(first)) {
        let detail =
            format!("there are several topics {topic}: say whose letter it is, as trigger={}", first.spec.name);
        return Err(Problem::new(StatusCode::CONFLICT, "ambiguous-dead-letter", detail));
    }
    Ok(first.spec.dead_letter.clone().map(|letters| (first.spec.name.clone(), letters)))
}
