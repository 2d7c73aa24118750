//! Dead letters: records that triggers gave up, with the reason.

use axum::Json;
use axum::extract::{RawQuery, State};
use serde_json::{Map, Value, json};

use super::records_out::start;
use super::topics::existing_topic;
use crate::http::extract::Segments;
use crate::http::limits::RECORDS_OUT_MAX;
use crate::http::problem::Problem;
use crate::http::query::Query;
use crate::http::reader::{OwnedRecord, read};
use crate::http::record_json::{Encoding, to_json};
use crate::http::rooms::Rooms;
use crate::topic::name::TopicName;
use crate::trigger::dead_letter::HEADER_PREFIX;

const STEP_RECORDS: usize = 1_000;

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

/// Dead letters, oldest first.
#[utoipa::path(get, path = "/v1/dead-letters", tag = "dead letters", params(
    ("trigger" = Option<String>, Query, description = "Of this trigger; of all when left out"),
    ("limit" = Option<u32>, Query, description = "1 to 10,000, default 100"),
), responses((status = 200, description = "Dead letters"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn list(State(rooms): State<Rooms>, RawQuery(query): RawQuery) -> Result<Json<Value>, Problem> {
    let query = Query::parse(query.as_deref(), &["trigger", "limit"])?;
    let trigger = query.text("trigger");
    let limit = query.number("limit", 1, RECORDS_OUT_MAX)?.unwrap_or(100) as usize;
    let mut letters = Vec::new();
    for name in topics(&rooms, trigger)? {
        let Some(topic) = rooms.broker.topic(name.as_str()) else { continue };
        for partition in topic.partitions() {
            let mut next = partition.log_start();
            while letters.len() < limit && next < partition.tail() {
                let page = read(partition, next, STEP_RECORDS).await?;
                next = page.next;
                let own = page.records.iter().filter(|record| match (trigger, record.header("tripline-dlq-trigger")) {
                    (_, None) => false,
                    (None, Some(_)) => true,
                    (Some(wanted), Some(found)) => wanted == found,
                });
                letters.extend(own.map(|record| describe(&name, record)));
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
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, Problem> {
    Query::parse(query.as_deref(), &[])?;
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
