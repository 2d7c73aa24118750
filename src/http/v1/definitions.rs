//! What the resources that people define have in common: topics, functions, triggers and schedules.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::{Value, json};

use crate::config::changes::changes;
use crate::config::planned::Planned;
use crate::http::problem::Problem;
use crate::http::query::{Query, wrong};
use crate::topic::name::{NameError, allowed_name};

const PLANNED: &str = "names such as topic/flights,function/notify, together with dry_run=true";
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

/// How a definition is put: `None` does it, a trial only says what doing it would answer.
pub(super) fn trial(query: Option<&str>) -> Result<Option<Planned>, Problem> {
    let query = Query::parse(query, &["dry_run", "planned"])?;
    let planned = query.text("planned");
    let is_trial = query.flag("dry_run")?;
    match (is_trial, planned, planned.map_or_else(|| Some(Planned::default()), Planned::parse)) {
        (true, _, Some(planned)) => Ok(Some(planned)),
        (false, None, _) => Ok(None),
        (_, found, _) => Err(wrong("planned", found.unwrap_or_default(), PLANNED)),
    }
}

/// What is different, for the answer; nothing where nothing was before.
pub(super) fn differences(before: Option<&Value>, after: &Value) -> Value {
    before.map_or_else(|| json!([]), |before| json!(changes(before, after)))
}

/// What putting a definition did, or of a trial would do.
pub(super) struct Put {
    /// There was none with this name.
    pub(super) created: bool,
    /// It differs from what was there.
    pub(super) changed: bool,
    /// Where it differs: [`differences`].
    pub(super) changes: Value,
    /// Nothing was done.
    pub(super) is_trial: bool,
}

impl Put {
    /// The answer, with what the resource has to say besides.
    pub(super) fn answer(self, mut besides: Value) -> Response {
        besides["created"] = json!(self.created);
        besides["changed"] = json!(self.changed);
        besides["changes"] = self.changes;
        besides["dry_run"] = json!(self.is_trial);
        let status = if self.created && !self.is_trial { StatusCode::CREATED } else { StatusCode::OK };
        (status, Json(besides)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_is_asked_for_and_only_a_trial_plans() {
        assert_eq!(trial(None).unwrap(), None);
        assert_eq!(trial(Some("dry_run=false")).unwrap(), None);
        assert_eq!(trial(Some("dry_run=true")).unwrap(), Some(Planned::default()));
        assert!(trial(Some("dry_run=true&planned=function/f")).unwrap().unwrap().has_function("f"));
        for wrong in ["planned=function/f", "dry_run=true&planned=f"] {
            assert!(trial(Some(wrong)).unwrap_err().detail.contains("topic/flights"), "{wrong}");
        }
        assert!(trial(Some("dryrun=true")).unwrap_err().detail.contains("did you mean `dry_run`?"));
    }
}
