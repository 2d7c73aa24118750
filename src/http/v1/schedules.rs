//! Schedules: list, define, look at, pause, resume, delete, and what comes next.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::definitions::{Put, differences, name_in_path, name_matches, trial};
use crate::event::time_text;
use crate::http::bodies;
use crate::http::extract::{JsonBody, NoBody, NoParameters, Segments};
use crate::http::problem::Problem;
use crate::http::query::Query;
use crate::http::rooms::Rooms;
use crate::source::schedule::service::{NEXT_TICKS_MAX, ScheduleReport};
use crate::source::schedule::spec::ScheduleSpec;
use crate::source::schedule::tick::Tick;
use crate::topic::name::{NAME_BYTES_MAX, ScheduleName};

/// Ticks that are listed when nobody says how many.
const NEXT_TICKS_DEFAULT: u32 = 5;

fn schedule_name(text: &str) -> Result<ScheduleName, Problem> {
    name_in_path("schedule", text, NAME_BYTES_MAX, ScheduleName::new)
}

fn unknown(name: &ScheduleName) -> Problem {
    Problem::not_found("schedule", "unknown-schedule", name.as_str())
}

fn describe(report: &ScheduleReport) -> Value {
    let counts = &report.counts;
    let time = |tick: Tick| tick.time_text();
    json!({
        "schedule": report.spec.name,
        "id": report.id,
        "state": report.state.as_str(),
        "reason": report.reason,
        "created_ms": report.created_ms,
        "topic": report.spec.topic,
        "partition": report.partition,
        "last_tick": report.last.map(time),
        "next_tick": report.next.map(|(tick, _)| time(tick)),
        "counts": {
            "fired": counts.fired,
            "skipped": counts.skipped,
            "failed": counts.failed,
            "last_late_ms": counts.last_late_ms,
        },
        "definition": report.spec.to_json(),
    })
}

fn described(rooms: &Rooms, name: &ScheduleName) -> Result<Json<Value>, Problem> {
    rooms.schedules.describe(name.as_str()).map(|report| Json(describe(&report))).ok_or_else(|| unknown(name))
}

/// All schedules.
#[utoipa::path(get, path = "/v1/schedules", tag = "schedules", responses((status = 200, description = "Schedules by name")))]
pub(crate) async fn list(State(rooms): State<Rooms>, _: NoParameters) -> Result<Json<Value>, Problem> {
    let schedules: Vec<Value> = rooms.schedules.list().iter().map(describe).collect();
    Ok(Json(json!({ "schedules": schedules })))
}

/// One schedule: state, last and next tick, counts, definition.
#[utoipa::path(get, path = "/v1/schedules/{schedule}", tag = "schedules", params(("schedule" = String, Path, description = "Its name")),
    responses((status = 200, description = "The schedule"), (status = 404, description = "Problem details")))]
pub(crate) async fn get(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
) -> Result<Json<Value>, Problem> {
    described(&rooms, &schedule_name(&name)?)
}

/// Define a schedule, or change it; what it has done stays done.
#[utoipa::path(put, path = "/v1/schedules/{schedule}", tag = "schedules", request_body = bodies::ScheduleBody,
    params(("schedule" = String, Path, description = "Its name"),
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
    let name = schedule_name(&name)?;
    name_matches(&mut body, "schedule", name.as_str())?;
    let spec = ScheduleSpec::from_json(&body)?;
    let before = rooms.schedules.describe(name.as_str()).map(|report| report.spec.to_json());
    let changes = differences(before.as_ref(), &spec.to_json());
    let applied = match &trial {
        Some(planned) => rooms.schedules.check(&spec, planned)?,
        None => rooms.schedules.apply(spec).await?,
    };
    let done = Put { created: applied.created, changed: applied.changed, changes, is_trial: trial.is_some() };
    Ok(done.answer(json!({ "schedule": name, "warnings": applied.warnings })))
}

/// Do no more ticks until it is resumed.
#[utoipa::path(post, path = "/v1/schedules/{schedule}/pause", tag = "schedules", params(("schedule" = String, Path, description = "Its name")),
    responses((status = 200, description = "The schedule"), (status = 404, description = "Problem details")))]
pub(crate) async fn pause(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
    _: NoBody,
) -> Result<Json<Value>, Problem> {
    let name = schedule_name(&name)?;
    rooms.schedules.pause(name.as_str()).await?;
    described(&rooms, &name)
}

/// Go on with the next tick; those of the pause are not made up for.
#[utoipa::path(post, path = "/v1/schedules/{schedule}/resume", tag = "schedules", params(("schedule" = String, Path, description = "Its name")),
    responses((status = 200, description = "The schedule"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn resume(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
    _: NoBody,
) -> Result<Json<Value>, Problem> {
    let name = schedule_name(&name)?;
    rooms.schedules.resume(name.as_str()).await?;
    described(&rooms, &name)
}

/// Delete a schedule; its topic stays.
#[utoipa::path(delete, path = "/v1/schedules/{schedule}", tag = "schedules", params(("schedule" = String, Path, description = "Its name")),
    responses((status = 204, description = "Gone"), (status = 404, description = "Problem details")))]
pub(crate) async fn delete(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
    _: NoBody,
) -> Result<StatusCode, Problem> {
    let name = schedule_name(&name)?;
    if rooms.schedules.remove(name.as_str()).await? { Ok(StatusCode::NO_CONTENT) } else { Err(unknown(&name)) }
}

/// The next ticks, as if it ran.
#[utoipa::path(get, path = "/v1/schedules/{schedule}/next", tag = "schedules", params(
    ("schedule" = String, Path, description = "Its name"),
    ("count" = Option<u32>, Query, description = "How many: 1 to 100, default 5"),
), responses((status = 200, description = "Ticks in UTC and by the schedule's clock"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn next(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, Problem> {
    let query = Query::parse(query.as_deref(), &["count"])?;
    let count = query.number("count", 1, NEXT_TICKS_MAX)?.unwrap_or(NEXT_TICKS_DEFAULT);
    let name = schedule_name(&name)?;
    let report = rooms.schedules.describe(name.as_str()).ok_or_else(|| unknown(&name))?;
    let ticks = rooms.schedules.next_ticks(name.as_str(), count).ok_or_else(|| unknown(&name))?;
    let ticks: Vec<Value> = ticks.into_iter().map(|(tick, fire_ms)| show(&report.spec, tick, fire_ms)).collect();
    Ok(Json(json!({ "schedule": name, "state": report.state.as_str(), "ticks": ticks })))
}

fn show(spec: &ScheduleSpec, tick: Tick, fire_ms: i64) -> Value {
    let zone = &spec.timing.zone;
    let local = Timestamp::from_second(tick.unix_s()).map(|time| time.to_zoned(zone.clone()));
    let local = local.map_or_else(|_| tick.time_text(), |time| time.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string());
    let fires = Timestamp::from_millisecond(fire_ms).map_or_else(|_| tick.time_text(), time_text);
    json!({ "tick": tick.time_text(), "local": local, "fires": fires })
}
