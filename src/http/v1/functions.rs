//! Functions: list, deploy, look at, invoke, delete.

use std::time::Duration;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use uuid::Uuid;

use super::definitions::{Put, differences, name_in_path, name_matches, trial};
use crate::function::registry::RegisterError;
use crate::function::spec::FunctionDefinition;
use crate::function::{FunctionReport, FunctionService, FunctionState, Invocation, Runtime};
use crate::http::bodies;
use crate::http::extract::{JsonBody, NoBody, NoParameters, Segments, Upload, media_type};
use crate::http::problem::Problem;
use crate::http::rooms::Rooms;
use crate::topic::name::{FunctionName, INTERNAL_FUNCTION_PREFIX, NAME_BYTES_MAX};

/// What a deleted function may take to finish.
const REMOVE_GRACE: Duration = Duration::from_secs(5);

pub(crate) fn function_name(text: &str) -> Result<FunctionName, Problem> {
    name_in_path("function", text, NAME_BYTES_MAX, FunctionName::new)
}

/// The name of a function that people change. Those behind the URLs of triggers change with their triggers alone, and
/// may not be taken away from under them.
fn own_name(text: &str) -> Result<FunctionName, Problem> {
    let name = function_name(text)?;
    // By its name: whether it is there already does not matter.
    if name.is_internal() {
        let detail = format!("function {name} belongs to the broker and cannot be deployed or deleted");
        return Err(Problem::new(StatusCode::FORBIDDEN, "internal-function", detail));
    }
    Ok(name)
}

/// Why there is nothing to tell of a function.
pub(crate) fn absent(functions: &FunctionService, name: &str) -> Problem {
    stopping(functions).err().unwrap_or_else(|| Problem::not_found("function", "unknown-function", name))
}

/// Refuses while all functions are stopped: one that is not there then is not unknown.
fn stopping(functions: &FunctionService) -> Result<(), Problem> {
    if functions.is_stopping() {
        return Err(Problem::stopping("the broker stops; ask again when it is back"));
    }
    Ok(())
}

fn describe(report: &FunctionReport) -> Value {
    let instances = &report.status.instances;
    let stats = &report.stats;
    let errors: serde_json::Map<String, Value> =
        stats.errors_by_class().map(|(class, count)| (class.as_str().to_owned(), count.into())).collect();
    let mut shown = json!({
        "function": report.spec.name,
        "internal": report.spec.name.starts_with(INTERNAL_FUNCTION_PREFIX),
        "version": report.version,
        "instances": {
            "starting": instances.starting, "idle": instances.idle, "busy": instances.busy, "leaving": instances.leaving,
        },
        "queued": report.status.queued,
        "counts": { "succeeded": stats.succeeded, "errors": errors, "cold_starts": stats.cold_start.count() },
        "definition": report.spec.to_json(),
    });
    put_state(&mut shown, &report.state);
    shown
}

fn put_state(shown: &mut Value, state: &FunctionState) {
    shown["state"] = match state {
        FunctionState::Ready => json!("Ready"),
        FunctionState::Starting => json!("Starting"),
        FunctionState::Failed(error) => {
            shown["error"] = json!({
                "class": error.class.as_str(), "code": error.code, "message": error.message,
            });
            json!("Failed")
        }
    };
}

/// All functions.
#[utoipa::path(get, path = "/v1/functions", tag = "functions", responses((status = 200, description = "Functions by name")))]
pub(crate) async fn list(State(rooms): State<Rooms>, _: NoParameters) -> Result<Json<Value>, Problem> {
    let functions: Vec<Value> = rooms.functions.service().list().iter().map(describe).collect();
    stopping(rooms.functions.service())?;
    Ok(Json(json!({ "functions": functions })))
}

/// One function: state, instances, counts, definition.
#[utoipa::path(get, path = "/v1/functions/{function}", tag = "functions", params(("function" = String, Path, description = "Its name")),
    responses((status = 200, description = "The function"), (status = 404, description = "Problem details")))]
pub(crate) async fn get(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
) -> Result<Json<Value>, Problem> {
    let name = function_name(&name)?;
    let functions = rooms.functions.service();
    let report = functions.describe(name.as_str()).ok_or_else(|| absent(functions, name.as_str()))?;
    Ok(Json(describe(&report)))
}

/// Deploy a function: its definition, with the code in `code_base64` (a source file or a zip archive).
///
/// Durable when answered. Code that does not load is accepted all the same; `state` is `Failed` then, with the
/// traceback. Without code, the code that is there stays.
#[utoipa::path(put, path = "/v1/functions/{function}", tag = "functions", request_body = bodies::FunctionBody,
    params(("function" = String, Path, description = "Its name"),
        ("dry_run" = Option<bool>, Query, description = "Only say what would be answered or refused"),
        ("planned" = Option<String>, Query, description = "With dry_run: what will be there by then, such as topic/flights,function/notify")),
    responses((status = 200, description = "Deployed again"), (status = 201, description = "Deployed"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn put(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    RawQuery(query): RawQuery,
    JsonBody(mut body): JsonBody,
) -> Result<Response, Problem> {
    let trial = trial(query.as_deref())?;
    let name = own_name(&name)?;
    name_matches(&mut body, "function", name.as_str())?;
    let code = take_code(&mut body)?;
    let definition = FunctionDefinition::from_json(&body)?;
    if definition.code.is_some() && matches!(definition.spec.runtime, Runtime::Python3 { .. }) {
        let detail = "function.code: a path means nothing here; send the file's bytes as `code_base64`";
        return Err(Problem::bad_request("code-path", detail));
    }
    let spec = definition.spec;
    let before = rooms.functions.service().describe(name.as_str());
    let mut changes = differences(before.as_ref().map(|report| report.spec.to_json()).as_ref(), &spec.to_json());
    let has_code = matches!(spec.runtime, Runtime::Python3 { .. });
    let mut answer = json!({ "function": name });
    let (changed, code_differs) = if trial.is_some() {
        let code_differs = rooms.functions.service().check(&spec, code).await?;
        // Code that failed is tried again, also when it is the same.
        let is_as_before = |before: &FunctionReport| {
            *before.spec == spec && !(has_code && matches!(before.state, FunctionState::Failed { .. }))
        };
        (!before.as_ref().is_some_and(is_as_before) || code_differs, code_differs)
    } else {
        let (functions, triggers, function) = (rooms.functions.clone(), rooms.triggers.clone(), name.clone());
        // A client that hangs up while code is loaded does not leave triggers waiting for code that is there.
        let deploy = async move {
            let deployed = functions.deploy(spec, code).await?;
            triggers.function_deployed(function.as_str(), deployed.changed);
            Ok::<_, RegisterError>(deployed)
        };
        let deployed = rooms.broker.to_the_end(deploy).await?;
        answer["version"] = json!(deployed.version);
        put_state(&mut answer, &deployed.state);
        let is_other_version = before.as_ref().is_some_and(|before| before.version != deployed.version);
        let had_code = before.as_ref().is_some_and(|before| matches!(before.spec.runtime, Runtime::Python3 { .. }));
        (deployed.changed, has_code && (is_other_version || !had_code))
    };
    if let (Value::Array(changes), true, Some(before)) = (&mut changes, code_differs, &before) {
        let had_code = matches!(before.spec.runtime, Runtime::Python3 { .. });
        let from = had_code.then(|| format!("version {}", before.version));
        changes.push(json!({ "path": "code", "from": from, "to": "new code" }));
    }
    let done = Put { created: before.is_none(), changed, changes, is_trial: trial.is_some() };
    Ok(done.answer(answer))
}

fn take_code(body: &mut Value) -> Result<Option<Bytes>, Problem> {
    let Some(code) = body.as_object_mut().and_then(|fields| fields.remove("code_base64")) else { return Ok(None) };
    let wrong = || Problem::bad_request("invalid-code", "function.code_base64: allowed is base64 with padding");
    let text = code.as_str().ok_or_else(wrong)?;
    BASE64.decode(text).map(|bytes| Some(bytes.into())).map_err(|_| wrong())
}

/// Delete a function and its code.
#[utoipa::path(delete, path = "/v1/functions/{function}", tag = "functions", params(("function" = String, Path, description = "Its name")),
    responses((status = 204, description = "Gone"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn delete(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
    _: NoBody,
) -> Result<StatusCode, Problem> {
    let name = own_name(&name)?;
    let (triggers, function) = (rooms.triggers.clone(), name.clone());
    let unused = async move { triggers.keep_unused(function.as_str()).await };
    if rooms.functions.remove(name.as_str(), REMOVE_GRACE, unused).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Problem::not_found("function", "unknown-function", name.as_str()))
}

/// Invoke a function and wait for its answer. The body is the event, byte for byte. Never retried.
#[utoipa::path(post, path = "/v1/functions/{function}/invocations", tag = "functions",
    request_body(content = Option<Vec<u8>>, content_type = "*/*", description = "The event"),
    params(("function" = String, Path, description = "Its name")),
    responses((status = 200, description = "The function's answer",
            content((Value = "application/json"), (Vec<u8> = "application/octet-stream"))), (status = "5XX", description = "Problem details with `error_class` and `error_code`")))]
pub(crate) async fn invoke(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
    headers: HeaderMap,
    Upload(body): Upload,
) -> Result<Response, Problem> {
    let name = function_name(&name)?;
    let is_json = media_type(&headers).is_some_and(|found| found == "application/json" || found.ends_with("+json"));
    let invocation = Invocation {
        id: Uuid::new_v4().to_string(),
        attempt: 1,
        payload: body,
        content_type: if is_json { "application/json" } else { "application/octet-stream" },
        record_count: 0,
        trace: None,
    };
    let id = invocation.id.clone();
    let answered = rooms.functions.service().invoke(name.as_str(), invocation).await;
    let mut response = match answered {
        Ok(success) => {
            let json = serde_json::from_slice::<serde::de::IgnoredAny>(&success.body).is_ok();
            let media_type = if json { "application/json" } else { "application/octet-stream" };
            ([(header::CONTENT_TYPE, HeaderValue::from_static(media_type))], success.body).into_response()
        }
        Err(error) => Problem::from(error).with("invocation", id.clone()).into_response(),
    };
    let id = HeaderValue::from_str(&id).expect("a UUID is a header value");
    response.headers_mut().insert("tripline-invocation-id", id);
    Ok(response)
}
