//! Runs of a trigger over a range: replays, redrives of dead letters, and dry runs.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use super::run_requests as requests;
use super::triggers::{describe_lane, trigger_name};
use crate::http::bodies;
use crate::http::extract::{JsonBody, NoBody, NoParameters, Segments};
use crate::http::problem::Problem;
use crate::http::rooms::Rooms;
use crate::trigger::dry_run::{DryRunReport, Sample};
use crate::trigger::run::RunRange;
use crate::trigger::service::{RedrivePreview, RunLaneReport, RunReport};
use crate::trigger::transform::Shown;

/// How long a redrive is looked at that is not started.
const PREVIEW: Duration = Duration::from_secs(30);

/// A run, with or without its partitions.
pub(crate) fn describe(trigger: &str, report: &RunReport) -> Value {
    let counts = &report.counts;
    let definition = &report.definition;
    json!({
        "run": report.id,
        "trigger": trigger,
        "kind": definition.kind.as_str(),
        "topic": definition.topic,
        "state": report.phase.as_str(),
        "reason": report.reason,
        "ends_when": report.ends_when,
        "created_ms": report.created_ms,
        "since_ms": report.since_ms,
        "total": report.total(),
        "lag": report.lag(),
        "filter": definition.filter,
        "rate": definition.rate,
        "max_redrives": definition.redrives_max,
        "again": definition.again,
        "lanes": report.lanes.iter().map(lane).collect::<Vec<_>>(),
        "counts": {
            "delivered": counts.delivered,
            "filtered": counts.filtered,
            "passed_over": counts.passed_over,
            "dead_lettered": counts.dead_lettered,
            "dropped": counts.dropped,
            "expired": counts.expired,
            "attempts_succeeded": counts.attempts_succeeded,
            "attempts_failed": counts.attempts_failed,
        },
    })
}

fn lane(lane: &RunLaneReport) -> Value {
    let mut shown = describe_lane(&lane.lane);
    shown["from"] = json!(lane.range.from);
    shown["to"] = json!(lane.range.to);
    if let Value::Object(fields) = &mut shown {
        fields.remove("tail");
    }
    shown
}

fn run_id(text: &str) -> Result<Uuid, Problem> {
    let wrong =
        || Problem::bad_request("invalid-path", format!("found run {text:?}, allowed: the id of a run, a UUID"));
    text.parse().map_err(|_| wrong())
}

fn described(rooms: &Rooms, trigger: &str, run: Uuid) -> Result<Value, Problem> {
    let report = rooms.triggers.describe_run(trigger, run);
    let missing = || Problem::not_found("run", "unknown-run", &format!("{run} of trigger {trigger}"));
    report.map(|report| describe(trigger, &report)).ok_or_else(missing)
}

fn started(rooms: &Rooms, trigger: &str, run: Uuid) -> Result<Response, Problem> {
    Ok((StatusCode::CREATED, Json(described(rooms, trigger, run)?)).into_response())
}

/// The runs of a trigger that are remembered, the oldest first.
#[utoipa::path(get, path = "/v1/triggers/{trigger}/runs", tag = "runs", params(("trigger" = String, Path, description = "Its name")),
    responses((status = 200, description = "Runs"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn list(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
) -> Result<Json<Value>, Problem> {
    let name = trigger_name(&name)?;
    let runs = rooms.triggers.runs(name.as_str());
    let runs = runs.ok_or_else(|| Problem::not_found("trigger", "unknown-trigger", name.as_str()))?;
    let runs: Vec<Value> = runs.iter().map(|report| describe(name.as_str(), report)).collect();
    Ok(Json(json!({ "runs": runs })))
}

/// One run.
#[utoipa::path(get, path = "/v1/triggers/{trigger}/runs/{run}", tag = "runs",
    params(("trigger" = String, Path, description = "The trigger"), ("run" = String, Path, description = "The run's id")),
    responses((status = 200, description = "The run"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn get(
    State(rooms): State<Rooms>,
    Segments((name, run)): Segments<(String, String)>,
    _: NoParameters,
) -> Result<Json<Value>, Problem> {
    described(&rooms, trigger_name(&name)?.as_str(), run_id(&run)?).map(Json)
}

/// Stop a run; what it has finished stays finished.
#[utoipa::path(post, path = "/v1/triggers/{trigger}/runs/{run}/cancel", tag = "runs",
    params(("trigger" = String, Path, description = "The trigger"), ("run" = String, Path, description = "The run's id")),
    responses((status = 200, description = "The run"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn cancel(
    State(rooms): State<Rooms>,
    Segments((name, run)): Segments<(String, String)>,
    _: NoParameters,
    _: NoBody,
) -> Result<Json<Value>, Problem> {
    let (name, run) = (trigger_name(&name)?, run_id(&run)?);
    rooms.triggers.cancel_run(name.as_str(), run).await?;
    described(&rooms, name.as_str(), run).map(Json)
}

/// Go on with a cancelled run, or have one that waits try again at once.
#[utoipa::path(post, path = "/v1/triggers/{trigger}/runs/{run}/resume", tag = "runs",
    params(("trigger" = String, Path, description = "The trigger"), ("run" = String, Path, description = "The run's id")),
    responses((status = 200, description = "The run"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn resume(
    State(rooms): State<Rooms>,
    Segments((name, run)): Segments<(String, String)>,
    _: NoParameters,
    _: NoBody,
) -> Result<Json<Value>, Problem> {
    let (name, run) = (trigger_name(&name)?, run_id(&run)?);
    rooms.triggers.resume_run(name.as_str(), run).await?;
    described(&rooms, name.as_str(), run).map(Json)
}

/// Give up what a run waits to try again: its records become dead letters, or are dropped.
#[utoipa::path(post, path = "/v1/triggers/{trigger}/runs/{run}/skip", tag = "runs",
    params(("trigger" = String, Path, description = "The trigger"), ("run" = String, Path, description = "The run's id")),
    responses((status = 200, description = "How many records that were"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn skip(
    State(rooms): State<Rooms>,
    Segments((name, run)): Segments<(String, String)>,
    _: NoParameters,
    _: NoBody,
) -> Result<Json<Value>, Problem> {
    let (name, run) = (trigger_name(&name)?, run_id(&run)?);
    let skipped = rooms.triggers.skip_in_run(name.as_str(), run).await?;
    Ok(Json(json!({ "trigger": name, "run": run, "skipped": skipped })))
}

/// Have a range of a trigger's input go through it again, beside its live run: `{"topic", "partition", "from", "to",
/// "rate"}`, or several `ranges`. The topic may be left out where the trigger reads one.
#[utoipa::path(post, path = "/v1/triggers/{trigger}/replays", tag = "runs", request_body = bodies::ReplayBody, params(("trigger" = String, Path, description = "Its name")),
    responses((status = 201, description = "The run"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn replay(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let name = trigger_name(&name)?;
    let run = rooms.triggers.replay(name.as_str(), requests::replay(&body)?).await?;
    started(&rooms, name.as_str(), run)
}

/// Put dead letters of a trigger back through it, or with `dry_run` tell what that would do.
///
/// `{"partition", "from", "to", "ranges", "filter", "max", "rate", "max_redrives", "force", "again", "dry_run"}`, each
/// of which may be left out. The filter sees the records as they were, and the reasons among their headers.
#[utoipa::path(post, path = "/v1/triggers/{trigger}/redrives", tag = "dead letters", request_body = bodies::RedriveBody, params(("trigger" = String, Path, description = "Its name")),
    responses((status = 201, description = "The run"), (status = 200, description = "What a run would find"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn redrive(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let name = trigger_name(&name)?;
    let (request, dry_run) = requests::redrive(&body)?;
    if dry_run {
        let preview = rooms.triggers.preview_redrive(name.as_str(), &request, PREVIEW).await?;
        return Ok(Json(preview_json(name.as_str(), &preview)).into_response());
    }
    let run = rooms.triggers.redrive(name.as_str(), request).await?;
    started(&rooms, name.as_str(), run)
}

fn preview_json(trigger: &str, preview: &RedrivePreview) -> Value {
    let counts = &preview.counts;
    let place = |(partition, offset): &(u32, tripline_storage::Offset)| json!({ "topic": preview.topic, "partition": partition, "offset": offset.get() });
    json!({
        "trigger": trigger,
        "topic": preview.topic,
        "dry_run": true,
        "complete": preview.is_complete,
        "ranges": preview.ranges,
        "counts": {
            "taken": counts.taken,
            "filtered": counts.turned_away,
            "passed_over": counts.passed_over,
            "redriven": counts.redriven,
            "discarded": counts.discarded,
            "not_ours": counts.not_ours,
        },
        "first": preview.first.iter().map(place).collect::<Vec<_>>(),
    })
}

/// Let dead letters of a trigger go: all below `to`, in one `partition` or in all.
///
/// They are not listed and not redriven any more. Where the records below are nothing but letters of this trigger, and
/// no trigger reads them, they are deleted too.
#[utoipa::path(post, path = "/v1/triggers/{trigger}/discards", tag = "dead letters", request_body = bodies::DiscardBody, params(("trigger" = String, Path, description = "Its name")),
    responses((status = 200, description = "What was discarded"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn discard(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, Problem> {
    let name = trigger_name(&name)?;
    let discarded = rooms.triggers.discard(name.as_str(), &requests::discard(&body)?).await?;
    let letters: u64 = discarded.iter().map(|discarded| discarded.letters).sum();
    let partitions: Vec<Value> = discarded
        .iter()
        .map(|discarded| {
            json!({ "partition": discarded.partition, "below": discarded.below.get(), "letters": discarded.letters, "deleted": discarded.deleted })
        })
        .collect();
    Ok(Json(json!({ "trigger": name, "letters": letters, "partitions": partitions })))
}

/// What a trigger's filter and transform would do with a range of its input: counts and samples; nothing is invoked.
///
/// `{"topic", "partition", "from", "to", "ranges", "pattern", "samples", "time"}`, each of which may be left out, the
/// topic where the trigger reads one. What does not fit into `time` goes on at `next` of each range. Of an event of more
/// than 64 KiB a sample shows null, as of such a result, whose size is `transformed_bytes` then.
#[utoipa::path(post, path = "/v1/triggers/{trigger}/dry-run", tag = "triggers", request_body = bodies::DryRunBody, params(("trigger" = String, Path, description = "Its name")),
    responses((status = 200, description = "Counts and samples"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn dry_run(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, Problem> {
    let name = trigger_name(&name)?;
    let report = rooms.triggers.dry_run(name.as_str(), &requests::dry_run(&body)?).await?;
    Ok(Json(dry_run_json(name.as_str(), &report)))
}

fn dry_run_json(trigger: &str, report: &DryRunReport) -> Value {
    let range = |(range, next): &(RunRange, tripline_storage::Offset)| json!({ "partition": range.partition, "from": range.from, "to": range.to, "next": next.get() });
    let clause = |clause: &crate::trigger::dry_run::ClauseCount| json!({ "path": clause.path, "expected": clause.expected, "events": clause.events });
    let failure = |(partition, offset, reason): &(u32, tripline_storage::Offset, String)| json!({ "partition": partition, "offset": offset.get(), "reason": reason });
    json!({
        "trigger": trigger,
        "complete": report.is_complete(),
        "ranges": report.ranges.iter().map(range).collect::<Vec<_>>(),
        "matched": report.matched,
        "turned_away": report.turned_away,
        "transform_failed": report.transform_failed,
        "transform_failures": report.transform_failures.iter().map(failure).collect::<Vec<_>>(),
        "clauses": report.clauses.iter().map(clause).collect::<Vec<_>>(),
        "matched_samples": report.matched_samples.iter().map(sample).collect::<Vec<_>>(),
        "turned_away_samples": report.turned_away_samples.iter().map(sample).collect::<Vec<_>>(),
    })
}

fn sample(sample: &Sample) -> Value {
    let mut shown = json!({ "partition": sample.partition, "offset": sample.offset.get(), "event": sample.event });
    if !sample.turned_away.is_empty() {
        shown["explain"] = json!(sample.turned_away);
    }
    match &sample.transformed {
        Some(Ok(Shown::Whole(value))) => shown["transformed"] = value.clone(),
        Some(Ok(Shown::TooLarge { size_bytes })) => {
            shown["transformed"] = Value::Null;
            shown["transformed_bytes"] = json!(size_bytes);
        }
        Some(Err(reason)) => shown["transform_error"] = json!(reason),
        None => {}
    }
    shown
}
