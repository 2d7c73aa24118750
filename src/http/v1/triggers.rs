//! Triggers: list, define, look at, pause, resume, skip, reset, delete.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use super::definitions::{Put, differences, name_in_path, name_matches, trial};
use crate::http::bodies;
use crate::http::extract::{JsonBody, NoBody, NoParameters, Segments};
use crate::http::problem::Problem;
use crate::http::query::Query;
use crate::http::rooms::Rooms;
use crate::topic::name::{TRIGGER_NAME_BYTES_MAX, TriggerName};
use crate::trigger::service::{LaneChoice, LaneReport, TriggerReport};
use crate::trigger::spec::TriggerSpec;

pub(crate) fn trigger_name(text: &str) -> Result<TriggerName, Problem> {
    name_in_path("trigger", text, TRIGGER_NAME_BYTES_MAX, TriggerName::new)
}

fn describe(report: &TriggerReport) -> Value {
    let counts = &report.counts;
    let lag: u64 = report.lanes.iter().map(LaneReport::lag).sum();
    let lanes: Vec<Value> = report.lanes.iter().map(describe_lane).collect();
    json!({
        "trigger": report.spec.name,
        "id": report.id,
        "state": report.state.as_str(),
        "reason": report.reason,
        "since_ms": report.since_ms,
        "ends_when": report.ends_when,
        "lag": lag,
        "lanes": lanes,
        "offline": report.offline,
        "counts": {
            "delivered": counts.delivered,
            "filtered": counts.filtered,
            "dead_lettered": counts.dead_lettered,
            "dropped": counts.dropped,
            "expired": counts.expired,
            "debounced": counts.debounced,
            "skipped": counts.skipped,
            "attempts_succeeded": counts.attempts_succeeded,
            "attempts_failed": counts.attempts_failed,
        },
        "definition": report.spec.to_json(),
    })
}

pub(crate) fn describe_lane(lane: &LaneReport) -> Value {
    json!({
        "topic": lane.topic,
        "partition": lane.partition,
        "committed": lane.committed.get(),
        "tail": lane.tail.get(),
        "lag": lane.lag(),
        "in_flight_records": lane.in_flight_records,
        "attempts": lane.attempts,
        "next_attempt_ms": lane.next_attempt_ms,
        "last_error": lane.last_error,
        "blocked_keys": lane.blocked_keys,
        "full": lane.full,
    })
}

fn described(rooms: &Rooms, name: &str) -> Result<Value, Problem> {
    let name = trigger_name(name)?;
    let report = rooms.triggers.describe(name.as_str());
    let runs = rooms.triggers.runs(name.as_str()).unwrap_or_default();
    let with_runs = |report: &TriggerReport| {
        let mut shown = describe(report);
        shown["runs"] = runs.iter().map(|run| super::runs::describe(name.as_str(), run)).collect();
        shown
    };
    report
        .map(|report| with_runs(&report))
        .ok_or_else(|| Problem::not_found("trigger", "unknown-trigger", name.as_str()))
}

/// All triggers.
#[utoipa::path(get, path = "/v1/triggers", tag = "triggers", responses((status = 200, description = "Triggers by name")))]
pub(crate) async fn list(State(rooms): State<Rooms>, _: NoParameters) -> Result<Json<Value>, Problem> {
    let mut reports = rooms.triggers.list();
    reports.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    let triggers: Vec<Value> = reports.iter().map(describe).collect();
    Ok(Json(json!({ "triggers": triggers })))
}

/// One trigger: state, progress, counts, definition.
#[utoipa::path(get, path = "/v1/triggers/{trigger}", tag = "triggers", params(("trigger" = String, Path, description = "Its name")),
    responses((status = 200, description = "The trigger"), (status = 404, description = "Problem details")))]
pub(crate) async fn get(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
) -> Result<Json<Value>, Problem> {
    described(&rooms, &name).map(Json)
}

/// Define a trigger, or change it and keep its progress.
#[utoipa::path(put, path = "/v1/triggers/{trigger}", tag = "triggers", request_body = bodies::TriggerBody,
    params(("trigger" = String, Path, description = "Its name"),
        ("dry_run" = Option<bool>, Query, description = "Only say what would be answered or refused"),
        ("planned" = Option<String>, Query, description = "With dry_run: what will be there by then, such as topic/flights,function/notify")),
    responses((status = 200, description = "As asked for"), (status = 201, description = "Made"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn put(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    RawQuery(query): RawQuery,
    JsonBody(mut body): JsonBody,
) -> Result<Response, Problem> {
    let trial = trial(query.as_deref())?;
    let name = trigger_name(&name)?;
    name_matches(&mut body, "trigger", name.as_str())?;
    let spec = TriggerSpec::from_json(&body)?;
    let before = rooms.triggers.describe(name.as_str()).map(|report| report.spec.to_json());
    let changes = differences(before.as_ref(), &spec.to_json());
    let applied = match &trial {
        Some(planned) => rooms.triggers.check(&spec, planned).await?,
        None => rooms.triggers.apply(spec).await?,
    };
    let done = Put { created: applied.created, changed: applied.changed, changes, is_trial: trial.is_some() };
    Ok(done.answer(json!({ "trigger": name, "warnings": applied.warnings })))
}

/// Stop invoking until it is resumed; progress is kept.
#[utoipa::path(post, path = "/v1/triggers/{trigger}/pause", tag = "triggers", params(("trigger" = String, Path, description = "Its name")),
    responses((status = 200, description = "The trigger"), (status = 404, description = "Problem details")))]
pub(crate) async fn pause(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
    _: NoBody,
) -> Result<Json<Value>, Problem> {
    let name = trigger_name(&name)?;
    rooms.triggers.pause(name.as_str()).await?;
    described(&rooms, name.as_str()).map(Json)
}

/// Go on after a pause, or after what made it fail was put right.
#[utoipa::path(post, path = "/v1/triggers/{trigger}/resume", tag = "triggers", params(("trigger" = String, Path, description = "Its name")),
    responses((status = 200, description = "The trigger"), (status = 404, description = "Problem details")))]
pub(crate) async fn resume(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
    _: NoBody,
) -> Result<Json<Value>, Problem> {
    let name = trigger_name(&name)?;
    rooms.triggers.resume(name.as_str()).await?;
    described(&rooms, name.as_str()).map(Json)
}

/// Give up what a trigger waits to try again, and pass over damaged ranges: the records become dead letters, or are
/// dropped.
#[utoipa::path(post, path = "/v1/triggers/{trigger}/skip", tag = "triggers",
    params(("trigger" = String, Path, description = "Its name"), ("topic" = Option<String>, Query, description = "Of this topic; of all when left out"),
        ("partition" = Option<u32>, Query, description = "Of this partition; of all when left out")),
    responses((status = 200, description = "How many records that were"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn skip(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    RawQuery(query): RawQuery,
    _: NoBody,
) -> Result<Json<Value>, Problem> {
    let query = Query::parse(query.as_deref(), &["topic", "partition"])?;
    let name = trigger_name(&name)?;
    let choice = LaneChoice { topic: query.text("topic"), partition: query.number("partition", 0, u32::MAX)? };
    let skipped = rooms.triggers.skip(name.as_str(), choice).await?;
    Ok(Json(json!({ "trigger": name, "skipped": skipped })))
}

/// Set a paused trigger to another position: `{"to": …, "topic": …, "partition": …}`, of all partitions when none is
/// named.
#[utoipa::path(post, path = "/v1/triggers/{trigger}/reset", tag = "triggers", request_body = bodies::ResetBody, params(("trigger" = String, Path, description = "Its name")),
    responses((status = 200, description = "The offsets that it meant"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn reset(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, Problem> {
    let name = trigger_name(&name)?;
    let (topic, partition, to) = super::run_requests::reset(&body)?;
    let choice = LaneChoice { topic: topic.as_deref(), partition };
    let offsets = rooms.triggers.reset_to(name.as_str(), choice, to).await?;
    let offset = |(topic, partition, offset): &(String, u32, tripline_storage::Offset)| json!({ "topic": topic, "partition": partition, "offset": offset.get() });
    Ok(Json(json!({ "trigger": name, "offsets": offsets.iter().map(offset).collect::<Vec<_>>() })))
}

/// Delete a trigger and its progress; its topics stay.
#[utoipa::path(delete, path = "/v1/triggers/{trigger}", tag = "triggers", params(("trigger" = String, Path, description = "Its name")),
    responses((status = 204, description = "Gone"), (status = 404, description = "Problem details")))]
pub(crate) async fn delete(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
    _: NoBody,
) -> Result<StatusCode, Problem> {
    let name = trigger_name(&name)?;
    if rooms.triggers.remove(name.as_str()).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Problem::not_found("trigger", "unknown-trigger", name.as_str()))
}
