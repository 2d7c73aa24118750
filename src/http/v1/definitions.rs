//! What the resources that people define have in common: topics, functions, triggers and schedules.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::{Value, json};

use crate::http::problem::Problem;
use crate::topic::name::{NameError, allowed_name};

/// How much of a wrong name is shown: a path may be long.
const SHOWN_CHARACTERS: usize = 80;

/// A name from the path, of at most `bytes_max`, as `check` takes it.
pub(super) fn name_in_path<N>(
    kind: &'static str,
    text: &str,
    bytes_max: usize,
    check: impl FnOnce(String) -> Result<N, NameError>,
) -> Result<N, Problem> {
    check(text.to_owned()).map_err(|reason| {
        let shown: String = text.chars().take(SHOWN_CHARACTERS).collect();
        let detail = format!("{kind} name {shown:?}: {reason}; allowed: {}", allowed_name(bytes_max));
        Problem::bad_request("invalid-name", detail)
    })
}

/// A definition may leave out its name, which stands in the path; if it has one, it is that.
pub(super) fn name_matches(body: &mut Value, kind: &'static str, name: &str) -> Result<(), Problem> {
    let Value::Object(fields) = body else { return Ok(()) };
    let written = fields.entry(kind).or_insert_with(|| name.into());
    if written == name {
        return Ok(());
    }
    let detail = format!("{kind}: found {written}, allowed: {name:?}, which stands in the path");
    Err(Problem::bad_request("name-differs", detail))
}

/// What putting a definition did.
#[derive(Clone, Copy)]
pub(super) struct Put {
    /// There was none with this name.
    pub(super) created: bool,
    /// It differs from what was there.
    pub(super) changed: bool,
}

impl Put {
    /// The answer, with what the resource has to say besides.
    pub(super) fn answer(self, mut besides: Value) -> Response {
        besides["created"] = json!(self.created);
        besides["changed"] = json!(self.changed);
        let status = if self.created { StatusCode::CREATED } else { StatusCode::OK };
        (status, Json(besides)).into_response()
    }
}
