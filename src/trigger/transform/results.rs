//! What a function that is a step returned.

use serde_json::Value;

use super::output::{OUTPUT_BYTES_MAX, too_large};
use super::{Failure, TransformCode, TransformError};

/// The most events that a function may turn one record into.
pub const RESULTS_MAX: usize = 1_000;

/// The events that the function at `step` made of one record: none for no bytes, `null` and `[]`, one for an object,
/// those of an array; an element that is null is no event, so that a handler may return null for each record that it
/// drops.
///
/// # Errors
/// When it is not JSON, is another kind of value, or exceeds [`OUTPUT_BYTES_MAX`] or [`RESULTS_MAX`].
pub fn parse_function_result(step: usize, returned: &[u8]) -> Result<Vec<Value>, TransformError> {
    events(returned).map_err(|failure| failure.at(step))
}

fn events(returned: &[u8]) -> Result<Vec<Value>, Failure> {
    if returned.len() > OUTPUT_BYTES_MAX {
        return Err(too_large());
    }
    if returned.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let bad = |found: &str| {
        let allowed = "allowed are null, an object (one event) or an array of events";
        Failure::new(TransformCode::BadResult, format!("the function returned {found}; {allowed}"))
    };
    let value = serde_json::from_slice(returned).map_err(|error| bad(&format!("what is not JSON ({error})")))?;
    let mut events = match value {
        Value::Null => Vec::new(),
        Value::Object(_) => vec![value],
        Value::Array(events) => events,
        Value::Bool(_) => return Err(bad("true or false")),
        Value::Number(_) => return Err(bad("a number")),
        Value::String(_) => return Err(bad("a text")),
    };
    events.retain(|event| !event.is_null());
    if events.len() > RESULTS_MAX {
        let message = format!("the function returned {} events; at most {RESULTS_MAX} are allowed", events.len());
        return Err(Failure::new(TransformCode::TooManyEvents, message));
    }
    Ok(events)
}
