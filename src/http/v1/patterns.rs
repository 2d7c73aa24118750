//! Trying an event pattern.

use axum::Json;
use serde_json::{Value, json};

use crate::config::fields::read;
use crate::event::MatchEvent;
use crate::http::bodies;
use crate::http::extract::{JsonBody, NoParameters};
use crate::http::problem::Problem;
use crate::trigger::filter::Pattern;

/// A pattern of a request.
pub(crate) fn checked(pattern: &Value) -> Result<Pattern, Problem> {
    Pattern::parse(pattern).map_err(|error| {
        Problem::bad_request("invalid-pattern", error.to_string()).with("path", error.path).with("reason", error.reason)
    })
}

/// Try a pattern on an event: `{"pattern": …, "event": …}`.
#[utoipa::path(post, path = "/v1/patterns/test", tag = "patterns", request_body = bodies::PatternTestBody, responses(
    (status = 200, description = "`matches`, and in `explain` what turned the event away"), (status = 400, description = "The pattern is not valid: where and why")))]
pub(crate) async fn test(_: NoParameters, JsonBody(body): JsonBody) -> Result<Json<Value>, Problem> {
    let (pattern, event) = read(&body, "test", |fields| {
        let (pattern, event) = (fields.value("pattern"), fields.value("event"));
        if pattern.is_none() {
            fields.wrong("pattern", "an event pattern, an object");
        }
        if event.is_none() {
            fields.wrong("event", "a JSON value");
        }
        Some((pattern?.clone(), event?.clone()))
    })?;
    let pattern = checked(&pattern)?;
    let event = MatchEvent::new(event);
    let matches = pattern.matches_json(&event);
    Ok(Json(json!({ "matches": matches, "explain": pattern.explain(&event) })))
}
