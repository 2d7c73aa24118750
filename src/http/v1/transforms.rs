//! Trying a transform.

use axum::Json;
use http::StatusCode;
use serde_json::{Value, json};

use crate::config::fields::read;
use crate::http::bodies;
use crate::http::extract::{JsonBody, NoParameters};
use crate::http::problem::Problem;
use crate::trigger::transform::{Origin, Stage, Transform};

/// Try a transform on an event: `{"transform": …, "event": …}`.
///
/// `events` has what it gives. Functions are not invoked: when a step is one, `events` has what it would get, and
/// `next` names it.
#[utoipa::path(post, path = "/v1/transforms/test", tag = "transforms", request_body = bodies::TransformTestBody, responses(
    (status = 200, description = "`events`, and in `next` the function that would get them if a step is one"),
    (status = 400, description = "The transform is not valid: where and why"),
    (status = 422, description = "The transform fails for this event: `step`, from 0, and why")))]
pub(crate) async fn test(_: NoParameters, JsonBody(body): JsonBody) -> Result<Json<Value>, Problem> {
    let (transform, event) = read(&body, "test", |fields| {
        if fields.value("transform").is_none() {
            fields.wrong("transform", "a transform, such as {jsonpath: $.data}");
        }
        let transform = Transform::field(fields, "transform");
        let event = fields.value("event");
        if event.is_none() {
            fields.wrong("event", "a JSON value");
        }
        Some((transform?, event?.clone()))
    })?;
    let origin = Origin::Written(&event);
    let mut stages = transform.stages().iter();
    let (given, next) = match stages.next() {
        Some(Stage::Pure(chain)) => (chain.apply(&origin, None).map_err(failed)?, stages.next()),
        first => (origin.event(), first),
    };
    let mut answer = json!({ "events": [given] });
    if let Some(Stage::Function { name, step }) = next {
        answer["next"] = json!({ "step": step, "function": name });
    }
    Ok(Json(answer))
}

fn failed(error: crate::trigger::transform::TransformError) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.code.as_str(), error.to_string())
        .with("step", error.step)
        .with("reason", error.message)
}
