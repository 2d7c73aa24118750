//! Dead letters: records that triggers gave up, with the reason.

use std::collections::{BTreeSet, HashMap};

use axum::Json;
use axum::extract::{RawQuery, State};
use serde_json::{Map, Value, json};
use tripline_storage::Offset;
use tripline_storage::error::ReadError;

use super::records_out::start;
use super::topics::existing_topic;
use crate::http::extract::{NoParameters, Segments};
use crate::http::limits::RECORDS_OUT_MAX;
use crate::http::problem::Problem;
use crate::http::query::Query;
use crate::http::reader::{OwnedRecord, read, read_input};
use crate::http::record_json::{Encoding, to_json};
use crate::http::rooms::Rooms;
use crate::topic::name::{TopicName, TriggerName};
use crate::trigger::dead_letter::HEADER_PREFIX;
use crate::trigger::service::{RunError, TriggerReport};

const STEP_RECORDS: usize = 1_000;
/// Says whose letter it is.
const TRIGGER_HEADER: &str = "tripline-dlq-trigger";

/// By topic and trigger: partition and offset of letters.
type OpenLetters = HashMap<(String, String), BTreeSet<(u32, Offset)>>;

/// A dead letter: where it is, the record without our headers, and why it is here.
fn describe(topic: &TopicName, record: &OwnedRecord) -> Value {
    let mut reason = Map::new();
    let mut original = record.clone();
    original.headers.retain(|(name, _)| !name.starts_with(HEADER_PREFIX));
    for (name, value) in &record.headers {
        if let Some(name) = name.strip_prefix(HEADER_PREFIX) {
            let text = String::from_utf8_lossy(value.as_deref().unwrap_or_default()).into_owned();
            reason.insert(name.to_owned(), text.into());
        }
    }
    json!({
        "topic": topic,
        "partition": record.partition,
        "offset": record.offset.get(),
        "reason": reason,
        "record": to_json(&original, Encoding::Auto),
    })
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
), responses((status = 200, description = "Dead letters; in `unknown`, triggers whose cluster does not tell theirs, and why"),
    (status = "4XX", description = "Problem details")))]
pub(crate) async fn list(State(rooms): State<Rooms>, RawQuery(query): RawQuery) -> Result<Json<Value>, Problem> {
    let query = Query::parse(query.as_deref(), &["trigger", "limit", "all"])?;
    let trigger = query.text("trigger");
    let limit = query.number("limit", 1, RECORDS_OUT_MAX)?.unwrap_or(100) as usize;
    let all = query.flag("all")?;
    let (here, on_clusters) = wanted(&rooms, trigger)?;
    let open = if all { HashMap::new() } else { open_letters(&rooms, &here, limit).await? };
    let mut letters = Vec::new();
    for name in topics(&here) {
        let Some(topic) = rooms.broker.topic(name.as_str()) else { continue };
        for partition in topic.partitions() {
            let mut next = partition.log_start();
            while letters.len() < limit && next < partition.tail() {
                let page = read(partition, next, STEP_RECORDS).await?;
                next = page.next;
                let wanted = page.records.iter().filter(|record| {
                    let Some(owner) = record.header(TRIGGER_HEADER) else { return false };
                    let key = (name.to_string(), owner.to_owned());
                    trigger.is_none_or(|trigger| trigger == owner)
                        && open.get(&key).is_none_or(|open| open.contains(&(record.partition, record.offset)))
                });
                letters.extend(wanted.map(|record| describe(name, record)));
            }
        }
    }
    let mut unknown = Vec::new();
    for report in &on_clusters {
        let (name, topic) = (report.spec.name.as_str(), report.spec.dead_letter.as_ref());
        let Some(topic) = topic.filter(|_| letters.len() < limit) else { continue };
        match letters_on_cluster(&rooms, name, topic, limit - letters.len(), all).await {
            Ok(found) => letters.extend(found),
            Err(problem) if trigger.is_some() => return Err(problem),
            // Those of all others are shown.
            Err(problem) => unknown.push(json!({ "trigger": name, "reason": problem.detail })),
        }
    }
    letters.truncate(limit);
    Ok(Json(json!({ "dead_letters": letters, "unknown": unknown })))
}

/// The first `limit` letters of a trigger on a cluster, which are there too.
async fn letters_on_cluster(
    rooms: &Rooms,
    name: &str,
    topic: &TopicName,
    limit: usize,
    all: bool,
) -> Result<Vec<Value>, Problem> {
    let open = if all { None } else { Some(rooms.triggers.open_letters(name, limit).await?) };
    let mut letters = Vec::new();
    for partition in 0.. {
        if letters.len() >= limit {
            break;
        }
        let Some(input) = rooms.triggers.letter_partition(name, partition).await? else { break };
        let mut next = input.log_start();
        while letters.len() < limit && next < input.tail() {
            let page = read_input(&input, next, STEP_RECORDS).await.map_err(of_cluster)?;
            if page.next <= next {
                break;
            }
            next = page.next;
            let wanted = page.records.iter().filter(|record| {
                record.header(TRIGGER_HEADER) == Some(name)
                    && open.as_ref().is_none_or(|open| open.contains(&(record.partition, record.offset)))
            });
            letters.extend(wanted.map(|record| describe(topic, record)));
        }
    }
    Ok(letters)
}

/// One dead letter.
#[utoipa::path(get, path = "/v1/dead-letters/{topic}/{partition}/{offset}", tag = "dead letters", params(
    ("topic" = String, Path, description = "The dead-letter topic"),
    ("partition" = u32, Path, description = "Its partition"),
    ("offset" = u64, Path, description = "Its offset"),
), responses((status = 200, description = "The dead letter"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn get(
    State(rooms): State<Rooms>,
    Segments((topic, partition, offset)): Segments<(String, u32, u64)>,
    _: NoParameters,
) -> Result<Json<Value>, Problem> {
    let place = format!("{topic}/{partition}/{offset}");
    let missing = || Problem::not_found("dead letter", "unknown-dead-letter", &place);
    let is_letter = |record: &&OwnedRecord, at: Offset| record.offset == at && record.header(TRIGGER_HEADER).is_some();
    if rooms.broker.topic(&topic).is_none()
        && let Some((trigger, topic)) = on_cluster(&rooms, &topic)
    {
        let at = i64::try_from(offset).ok().and_then(Offset::new).ok_or_else(missing)?;
        let input = rooms.triggers.letter_partition(trigger.as_str(), partition).await?.ok_or_else(missing)?;
        if !(input.log_start()..input.tail()).contains(&at) {
            return Err(missing());
        }
        let page = read_input(&input, at, 1).await.map_err(of_cluster)?;
        let record = page.records.first().filter(|record| is_letter(record, at));
        return record.map(|record| Json(describe(&topic, record))).ok_or_else(missing);
    }
    let topic = existing_topic(&rooms.broker, &topic)?;
    let log = topic.partition(partition).ok_or_else(missing)?;
    let from = start(log, &offset.to_string()).await?;
    let page = read(log, from, 1).await?;
    let record = page.records.first().filter(|record| is_letter(record, from));
    record.map(|record| Json(describe(topic.name(), record))).ok_or_else(missing)
}

fn of_cluster(error: ReadError) -> Problem {
    Problem::from(error).of_cluster()
}

/// A trigger on a cluster that keeps its letters in a topic of this name there.
fn on_cluster(rooms: &Rooms, topic: &str) -> Option<(TriggerName, TopicName)> {
    let there = rooms.triggers.list().into_iter().filter(|report| report.spec.input.cluster.is_some());
    there
        .filter_map(|report| Some((report.spec.name.clone(), report.spec.dead_letter?)))
        .find(|(_, name)| name.as_str() == topic)
}
