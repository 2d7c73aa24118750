//! Dead letters: records that triggers gave up, with the reason.

use std::collections::{BTreeSet, HashMap};

use axum::Json;
use axum::extract::{RawQuery, State};
use serde_json::{Map, Value, json};
use tripline_storage::Offset;

use super::records_out::start;
use super::topics::existing_topic;
use crate::http::extract::{NoParameters, Segments};
use crate::http::limits::RECORDS_OUT_MAX;
use crate::http::problem::Problem;
use crate::http::query::Query;
use crate::http::reader::{OwnedRecord, read};
use crate::http::record_json::{Encoding, to_json};
use crate::http::rooms::Rooms;
use crate::topic::name::TopicName;
use crate::trigger::dead_letter::HEADER_PREFIX;
use crate::trigger::service::RunError;

const STEP_RECORDS: usize = 1_000;

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

/// The topics to look into: of one trigger, or of all.
fn topics(rooms: &Rooms, trigger: Option<&str>) -> Result<Vec<TopicName>, Problem> {
    let reports = match trigger {
        None => rooms.triggers.list(),
        Some(name) => {
            let report = rooms.triggers.describe(name);
            vec![report.ok_or_else(|| Problem::not_found("trigger", "unknown-trigger", &format!("{name:?}")))?]
        }
    };
    let mut topics: Vec<TopicName> = reports.into_iter().filter_map(|report| report.spec.dead_letter).collect();
    topics.sort();
    topics.dedup();
    Ok(topics)
}

/// Letters that nobody has taken or discarded, by topic and trigger: the first `limit` of each.
async fn open_letters(rooms: &Rooms, trigger: Option<&str>, limit: usize) -> Result<OpenLetters, Problem> {
    let mut open = HashMap::new();
    for report in rooms.triggers.list() {
        let name = report.spec.name.as_str();
        let Some(topic) = report.spec.dead_letter.as_ref().filter(|_| trigger.is_none_or(|wanted| wanted == name))
        else {
            continue;
        };
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
), responses((status = 200, description = "Dead letters"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn list(State(rooms): State<Rooms>, RawQuery(query): RawQuery) -> Result<Json<Value>, Problem> {
    let query = Query::parse(query.as_deref(), &["trigger", "limit", "all"])?;
    let trigger = query.text("trigger");
    let limit = query.number("limit", 1, RECORDS_OUT_MAX)?.unwrap_or(100) as usize;
    let open = if query.flag("all")? { HashMap::new() } else { open_letters(&rooms, trigger, limit).await? };
    let mut letters = Vec::new();
    for name in topics(&rooms, trigger)? {
        let Some(topic) = rooms.broker.topic(name.as_str()) else { continue };
        for partition in topic.partitions() {
            let mut next = partition.log_start();
            while letters.len() < limit && next < partition.tail() {
                let page = read(partition, next, STEP_RECORDS).await?;
                next = page.next;
                let wanted = page.records.iter().filter(|record| {
                    let Some(owner) = record.header("tripline-dlq-trigger") else { return false };
                    let key = (name.to_string(), owner.to_owned());
                    trigger.is_none_or(|trigger| trigger == owner)
                        && open.get(&key).is_none_or(|open| open.contains(&(record.partition, record.offset)))
                });
                letters.extend(wanted.map(|record| describe(&name, record)));
            }
        }
    }
    letters.truncate(limit);
    Ok(Json(json!({ "dead_letters": letters })))
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
    let topic = existing_topic(&rooms.broker, &topic)?;
    let place = format!("{}/{partition}/{offset}", topic.name());
    let missing = || Problem::not_found("dead letter", "unknown-dead-letter", &place);
    let log = topic.partition(partition).ok_or_else(missing)?;
    let from = start(log, &offset.to_string()).await?;
    let page = read(log, from, 1).await?;
    let record =
        page.records.first().filter(|record| record.offset == from && record.header("tripline-dlq-trigger").is_some());
    record.map(|record| Json(describe(topic.name(), record))).ok_or_else(missing)
}
