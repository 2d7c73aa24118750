//! A transform and an event, both from a stranger. Nothing may panic or hang; what is written is JSON within the limit.
//!
//! An input is two texts with a zero byte between them: a transform as JSON, and an event as JSON or as text.

use serde_json::Value;
use tripline::trigger::transform::{OUTPUT_BYTES_MAX, Origin, Stage, Transform, parse_function_result};

/// Does one input.
pub(crate) fn run(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let (source, event) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    drop(parse_function_result(0, event));
    let Ok(source) = serde_json::from_slice(source) else { return };
    let event = serde_json::from_slice(event).unwrap_or_else(|_| Value::from(String::from_utf8_lossy(event)));
    let Ok(transform) = Transform::parse(&source) else { return };
    for stage in transform.stages() {
        let Stage::Pure(chain) = stage else { continue };
        let mut out = Vec::new();
        match chain.write_json(&Origin::Written(&event), Some(&event), &mut out) {
            Ok(()) => {
                assert!(out.len() <= OUTPUT_BYTES_MAX);
                let read = serde_json::from_slice::<Value>(&out);
                // Only depth can make it unreadable.
                assert!(read.is_ok() || read.is_err_and(|error| error.to_string().starts_with("recursion limit")));
            }
            Err(_) => assert!(out.is_empty()),
        }
    }
}
