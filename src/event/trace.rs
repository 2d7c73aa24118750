//! W3C trace context: which trace a record belongs to, carried from its headers to whatever it causes.
//!
//! It stands in the headers `traceparent` and `tracestate`, else in `ce_traceparent` and `ce_tracestate`, else in the
//! attributes of an event in structured mode. The plain header comes first: it is the hop that appended the record,
//! while the event's own attribute may tell where the event began. One that is not valid counts as none, and none is
//! made up.

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::is_structured;

/// The longest `tracestate` that is carried, in bytes; a longer one is left out.
pub const TRACESTATE_BYTES_MAX: usize = 512;
/// The longest `traceparent` that is carried; version 00 has 55 bytes.
pub const TRACEPARENT_BYTES_MAX: usize = 128;

const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";

/// A place in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    parent: String,
    state: Option<String>,
}

/// The attributes of an event in structured mode that matter here.
#[derive(Deserialize)]
struct Attributes {
    traceparent: Option<Value>,
    tracestate: Option<Value>,
}

impl TraceContext {
    /// The context of a record: what its headers say, or the event that it is.
    pub fn of_record<'h>(
        headers: impl Iterator<Item = (&'h [u8], Option<&'h [u8]>)> + Clone,
        value: Option<&[u8]>,
    ) -> Option<Self> {
        let find = |wanted: &str| {
            let mut named = headers.clone().filter(|(name, _)| name.eq_ignore_ascii_case(wanted.as_bytes()));
            named.next().and_then(|(_, value)| std::str::from_utf8(value?).ok())
        };
        // Most records have no headers, or none of these.
        headers.clone().next()?;
        let from = |parent: &str, state: &str| Self::parse(find(parent)?, find(state));
        from(PARENT, STATE)
            .or_else(|| from("ce_traceparent", "ce_tracestate"))
            .or_else(|| Self::of_structured(value.filter(|_| find("content-type").is_some_and(is_structured))?))
    }

    fn of_structured(event: &[u8]) -> Option<Self> {
        let attributes: Attributes = serde_json::from_slice(event).ok()?;
        Self::parse(attributes.traceparent?.as_str()?, attributes.tracestate.as_ref().and_then(Value::as_str))
    }

    /// Checks a `traceparent`; a `tracestate` that is not valid is left out.
    #[must_use]
    pub fn parse(parent: &str, state: Option<&str>) -> Option<Self> {
        let parent = parent.trim();
        let mut parts = parent.splitn(5, '-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let known = version != "ff" && (version != "00" || parts.next().is_none());
        let valid = is_hex(version, 2)
            && known
            && is_hex(trace, 32)
            && is_hex(span, 16)
            && is_hex(flags, 2)
            && [trace, span].into_iter().all(|id| id.bytes().any(|digit| digit != b'0'))
            && parent.len() <= TRACEPARENT_BYTES_MAX
            && parent.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        let state = state.map(str::trim).filter(|state| {
            let printable = state.bytes().all(|byte| (b' '..=b'~').contains(&byte));
            !state.is_empty() && state.len() <= TRACESTATE_BYTES_MAX && printable
        });
        valid.then(|| Self { parent: parent.to_owned(), state: state.map(str::to_owned) })
    }

    /// The `traceparent`.
    #[must_use]
    pub fn parent(&self) -> &str {
        &self.parent
    }

    /// The `tracestate`.
    #[must_use]
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// The id of the trace: 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> &str {
        self.parent.get(3..35).unwrap_or_default()
    }

    /// A span of its own below this one, in the same trace. `span` is random; 0, which no span may have, becomes 1.
    #[must_use]
    pub fn child(&self, span: u64) -> Self {
        let flags = self.parent.get(53..55).unwrap_or("00");
        let parent = format!("00-{}-{:016x}-{flags}", self.trace_id(), span.max(1));
        Self { parent, state: self.state.clone() }
    }

    /// Gives an event its attributes `traceparent` and `tracestate`, unless it has a `traceparent` of its own.
    pub fn add_to(&self, event: &mut Map<String, Value>) {
        if event.contains_key(PARENT) {
            return;
        }
        event.insert(PARENT.to_owned(), self.parent.as_str().into());
        match &self.state {
            Some(state) => event.insert(STATE.to_owned(), state.as_str().into()),
            None => event.remove(STATE),
        };
    }

    /// [`TraceContext::add_to`], for an event that is written down: a JSON object that takes all of `written` from
    /// `begin` on.
    pub fn add_to_written(&self, written: &mut Vec<u8>, begin: usize) {
        let event = std::str::from_utf8(&written[begin..]).unwrap_or_default();
        // Only an event that speaks of such a thing is read; one with a state alone is written anew.
        if event.contains("\"trace") || !event.ends_with('}') {
            if let Ok(Value::Object(mut event)) = serde_json::from_str(event) {
                self.add_to(&mut event);
                let text = Value::Object(event).to_string();
                written.truncate(begin);
                written.extend_from_slice(text.as_bytes());
            }
            return;
        }
        let is_empty = event[1..event.len() - 1].trim().is_empty();
        let mut attributes = String::new();
        for (name, value) in [(PARENT, Some(self.parent())), (STATE, self.state())] {
            if let Some(value) = value {
                let separator = if is_empty && attributes.is_empty() { "" } else { "," };
                let _ = write!(attributes, "{separator}\"{name}\":{}", Value::from(value));
            }
        }
        written.pop();
        written.extend_from_slice(attributes.as_bytes());
        written.push(b'}');
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const PARENT_OF_ALL: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const OTHER: &str = "00-11111111111111111111111111111111-2222222222222222-00";

    fn of(headers: &[(&str, &str)], value: &str) -> Option<TraceContext> {
        let headers = headers.iter().map(|(name, value)| (name.as_bytes(), Some(value.as_bytes())));
        TraceContext::of_record(headers, Some(value.as_bytes()))
    }

    #[test]
    fn the_header_comes_before_the_attribute_and_the_attribute_before_nothing() {
        let both = [("ce_traceparent", OTHER), ("Traceparent", PARENT_OF_ALL), ("tracestate", "a=1")];
        let found = of(&both, "").unwrap();
        assert_eq!((found.parent(), found.state()), (PARENT_OF_ALL, Some("a=1")));
        assert_eq!(of(&both[..1], "").unwrap().parent(), OTHER);
        let event = json!({ "traceparent": OTHER, "tracestate": "b=2" }).to_string();
        let structured = [("content-type", "application/cloudevents+json; charset=utf-8")];
        let found = of(&structured, &event).unwrap();
        assert_eq!((found.parent(), found.state()), (OTHER, Some("b=2")));
        assert_eq!(of(&[("content-type", "application/json")], &event), None, "that is data");
        assert_eq!(of(&[], &event), None);
        assert_eq!(of(&[("traceparent", "nonsense"), ("ce_traceparent", OTHER)], "").unwrap().parent(), OTHER);
    }

    #[test]
    fn what_the_standard_refuses_is_no_context() {
        for wrong in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
            "0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(wrong, None), None, "{wrong}");
        }
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes";
        assert_eq!(TraceContext::parse(later, None).unwrap().parent(), later);
        let endless = format!("{later}{}", "x".repeat(TRACEPARENT_BYTES_MAX));
        assert_eq!(TraceContext::parse(&endless, None), None);
    }

    #[test]
    fn a_state_that_is_too_long_or_not_printable_is_left_out() {
        let long = "x".repeat(TRACESTATE_BYTES_MAX + 1);
        for state in ["", long.as_str(), "a=\u{7}", "ä"] {
            assert_eq!(TraceContext::parse(PARENT_OF_ALL, Some(state)).unwrap().state(), None);
        }
        assert!(TraceContext::parse(PARENT_OF_ALL, Some(&long[1..])).unwrap().state().is_some());
    }

    #[test]
    fn a_child_is_in_the_same_trace_with_the_same_flags() {
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more";
        let child = TraceContext::parse(later, Some("a=1")).unwrap().child(0xabc);
        assert_eq!(child.parent(), "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000abc-01");
        assert_eq!(child.state(), Some("a=1"));
        assert!(TraceContext::parse(child.child(0).parent(), None).is_some(), "no span is 0");
    }

    #[test]
    fn an_event_keeps_a_context_of_its_own() {
        let context = TraceContext::parse(PARENT_OF_ALL, None).unwrap();
        let mut written = format!("[{}", json!({ "traceparent": OTHER, "tracestate": "b=2" })).into_bytes();
        context.add_to_written(&mut written, 1);
        let event: Value = serde_json::from_slice(&written[1..]).unwrap();
        assert_eq!(event, json!({ "traceparent": OTHER, "tracestate": "b=2" }));
        let mut written = b"{ }".to_vec();
        context.add_to_written(&mut written, 0);
        assert_eq!(serde_json::from_slice::<Value>(&written).unwrap(), json!({ "traceparent": PARENT_OF_ALL }));
    }

    proptest! {
        #[test]
        fn both_ways_of_adding_it_agree(
            data in "[a-z\"{}\\\\]{0,20}", own in any::<bool>(), inside in any::<bool>(), stated in any::<bool>(), alone in any::<bool>(),
        ) {
            let context = TraceContext::parse(PARENT_OF_ALL, stated.then_some("a=\"1\"")).unwrap();
            let mut event = json!({ "id": data });
            if own { event["traceparent"] = OTHER.into(); }
            if alone { event["tracestate"] = "alone".into(); }
            if inside { event["data"] = json!({ "traceparent": data }); }
            let mut written = b"[".to_vec();
            written.extend(event.to_string().bytes());
            context.add_to_written(&mut written, 1);
            context.add_to(event.as_object_mut().unwrap());
            prop_assert_eq!(serde_json::from_slice::<Value>(&written[1..]).unwrap(), event);
        }
    }
}
