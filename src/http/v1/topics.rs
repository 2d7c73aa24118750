//! Topics: list, make, look at, change, delete.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::{Value, json};
use tripline_storage::{Offset, PartitionId};

use super::definitions::{Put, differences, name_in_path, name_matches, trial};
use crate::broker::scrub::ScrubReport;
use crate::broker::{Broker, Topic};
use crate::http::bodies;
use crate::http::extract::{JsonBody, NoBody, NoParameters, Segments};
use crate::http::problem::Problem;
use crate::http::query::{Query, wrong};
use crate::http::rooms::Rooms;
use crate::topic::name::{NAME_BYTES_MAX, TopicName};
use crate::topic::spec::TopicSpec;

/// A name from the path, checked.
pub(crate) fn topic_name(text: &str) -> Result<TopicName, Problem> {
    name_in_path("topic", text, NAME_BYTES_MAX, TopicName::new)
}

pub(crate) fn existing_topic(broker: &Broker, name: &str) -> Result<Arc<Topic>, Problem> {
    let name = topic_name(name)?;
    broker.topic(name.as_str()).ok_or_else(|| Problem::not_found("topic", "unknown-topic", name.as_str()))
}

fn describe(topic: &Topic, scrub: &ScrubReport) -> Value {
    let damaged = |number: u32| {
        let id = PartitionId { topic: topic.id(), partition: number };
        let ranges = scrub.damaged.get(&id)?;
        Some(ranges.iter().map(|range| json!({ "from": range.from.get(), "to": range.to.get() })).collect::<Vec<_>>())
    };
    let partition = |number: u32| match topic.partition(number) {
        Ok(log) => json!({
            "partition": number,
            "log_start": log.log_start().get(),
            "tail": log.tail().get(),
            "flushed": log.flushed().get(),
            "stopped": log.stopped().map(ToString::to_string),
            "damaged": damaged(number).unwrap_or_default(),
        }),
        Err(error) => json!({ "partition": number, "offline": error.to_string() }),
    };
    let partitions: Vec<Value> = (0..topic.partition_count()).map(partition).collect();
    let mut shown = topic.spec().to_json();
    shown["id"] = json!(topic.id());
    shown["internal"] = json!(topic.is_internal());
    shown["offsets"] = json!(partitions);
    shown
}

/// All topics.
#[utoipa::path(get, path = "/v1/topics", tag = "topics", responses((status = 200, description = "Topics by name")))]
pub(crate) async fn list(State(rooms): State<Rooms>, _: NoParameters) -> Result<Json<Value>, Problem> {
    let scrub = rooms.broker.scrub_report();
    let topics: Vec<Value> = rooms.broker.topics().iter().map(|topic| describe(topic, &scrub)).collect();
    Ok(Json(json!({ "topics": topics })))
}

/// One topic with its settings and offsets.
#[utoipa::path(get, path = "/v1/topics/{topic}", tag = "topics", params(("topic" = String, Path, description = "Its name")),
    responses((status = 200, description = "The topic"), (status = 404, description = "Problem details")))]
pub(crate) async fn get(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
) -> Result<Json<Value>, Problem> {
    Ok(Json(describe(&*existing_topic(&rooms.broker, &name)?, &rooms.broker.scrub_report())))
}

/// Make a topic: `{"topic", "partitions", "config"}`.
#[utoipa::path(post, path = "/v1/topics", tag = "topics", request_body = bodies::TopicBody, responses(
    (status = 201, description = "Made"), (status = 409, description = "There is one with this name")))]
pub(crate) async fn create(
    State(rooms): State<Rooms>,
    _: NoParameters,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let spec = TopicSpec::from_json(&body)?;
    let topic = rooms.broker.create_topic(spec).await?;
    Ok((StatusCode::CREATED, Json(describe(&topic, &ScrubReport::default()))).into_response())
}

/// Make a topic, or give one that exists these settings.
#[utoipa::path(put, path = "/v1/topics/{topic}", tag = "topics", request_body = bodies::TopicBody,
    params(("topic" = String, Path, description = "Its name"),
        ("dry_run" = Option<bool>, Query, description = "Only say what would be answered or refused"),
        ("planned" = Option<String>, Query, description = "With dry_run: what will be there by then, such as topic/flights,function/notify")),
    responses((status = 200, description = "As asked for; `changed` says whether anything is different"), (status = 201, description = "Made")))]
pub(crate) async fn put(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    RawQuery(query): RawQuery,
    JsonBody(mut body): JsonBody,
) -> Result<Response, Problem> {
    let trial = trial(query.as_deref())?;
    let name = topic_name(&name)?;
    name_matches(&mut body, "topic", name.as_str())?;
    let spec = TopicSpec::from_json(&body)?;
    let Some(topic) = rooms.broker.topic(name.as_str()) else {
        let done = Put { created: true, changed: true, changes: json!([]), is_trial: trial.is_some() };
        if done.is_trial {
            rooms.broker.check_new_topic(&spec)?;
            return Ok(done.answer(spec.to_json()));
        }
        let topic = rooms.broker.create_topic(spec).await?;
        return Ok(done.answer(describe(&topic, &rooms.broker.scrub_report())));
    };
    if body.get("partitions").is_some() && spec.partitions != topic.partition_count() {
        let detail = format!(
            "topic {name} has {} partitions, found {}: the number of partitions cannot be changed yet",
            topic.partition_count(),
            spec.partitions
        );
        return Err(Problem::new(StatusCode::CONFLICT, "partitions-differ", detail));
    }
    let changed = topic.config() != spec.config;
    let partitions = topic.partition_count();
    let wanted = TopicSpec { partitions, ..spec.clone() }.to_json();
    let changes = differences(Some(&topic.spec().to_json()), &wanted);
    let done = Put { created: false, changed, changes, is_trial: trial.is_some() };
    if done.is_trial {
        return Ok(done.answer(wanted));
    }
    if changed {
        rooms.broker.configure_topic(&topic, spec.config).await?;
    }
    Ok(done.answer(describe(&topic, &rooms.broker.scrub_report())))
}

/// Delete a topic with all its records.
#[utoipa::path(delete, path = "/v1/topics/{topic}", tag = "topics", params(("topic" = String, Path, description = "Its name")),
    responses((status = 204, description = "Gone"), (status = 404, description = "Problem details")))]
pub(crate) async fn delete(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
    _: NoBody,
) -> Result<StatusCode, Problem> {
    let wanted = topic_name(&name)?;
    // By its name: whether it is there already does not matter.
    if wanted.is_internal() {
        let detail = format!("topic {wanted} belongs to the broker and cannot be deleted");
        return Err(Problem::new(StatusCode::FORBIDDEN, "internal-topic", detail));
    }
    let topic = existing_topic(&rooms.broker, &name)?;
    rooms.triggers.delete_topic(&topic).await?;
    Ok(StatusCode::NO_CONTENT)
}

const BEFORE: &str = "an offset, or latest for all records";

/// Delete the records of a partition below an offset.
#[utoipa::path(delete, path = "/v1/topics/{topic}/records", tag = "records", params(
    ("topic" = String, Path, description = "The topic"),
    ("partition" = Option<u32>, Query, description = "Needed when the topic has several"),
    ("before_offset" = String, Query, description = "The first offset to keep, or latest to keep none"),
), responses((status = 200, description = "The first offset that is left"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn delete_records(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    RawQuery(query): RawQuery,
    _: NoBody,
) -> Result<Json<Value>, Problem> {
    let query = Query::parse(query.as_deref(), &["partition", "before_offset"])?;
    let topic = existing_topic(&rooms.broker, &name)?;
    let partition = query.number("partition", 0, u32::MAX)?;
    let partition = match partition {
        Some(partition) => partition,
        None if topic.partition_count() == 1 => 0,
        None => {
            let detail = format!("topic {name} has {} partitions: name one as `partition`", topic.partition_count());
            return Err(Problem::bad_request("partition-missing", detail));
        }
    };
    let before = match query.text("before_offset") {
        Some("latest") => None,
        Some(text) => {
            Some(text.parse().ok().and_then(Offset::new).ok_or_else(|| wrong("before_offset", text, BEFORE))?)
        }
        None => return Err(wrong("before_offset", "", BEFORE)),
    };
    let log_start = rooms.broker.delete_records(&topic, partition, before).await?;
    Ok(Json(json!({ "partition": partition, "log_start": log_start.get() })))
}
