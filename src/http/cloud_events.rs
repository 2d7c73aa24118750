//! CloudEvents 1.0 over HTTP, stored as the Kafka protocol binding has them.
//!
//! Binary: `ce-*` headers become `ce_*` record headers, the body is the value. Structured: the body is the value, with
//! content type `application/cloudevents+json`. Batched: each event of the array is stored as a structured one.
//! An event's `partitionkey` is the record's key.

use std::borrow::Cow;

use http::{HeaderMap, header};
use percent_encoding::percent_decode_str;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::at_most::AtMost;
use super::limits::RECORDS_IN_MAX;
use super::problem::Problem;
use super::record_json::IncomingRecord;
use crate::event::STRUCTURED_TYPE;

const REQUIRED: [&str; 4] = ["specversion", "id", "source", "type"];

/// Whether the request is an event in binary mode.
#[must_use]
pub fn is_binary(headers: &HeaderMap) -> bool {
    headers.contains_key("ce-specversion") || headers.contains_key("ce-type")
}

/// The record of an event in binary mode.
pub(crate) fn binary(headers: &HeaderMap, body: &[u8]) -> Result<IncomingRecord, Problem> {
    let mut record = IncomingRecord { value: Some(body.to_vec()), ..IncomingRecord::default() };
    for (name, value) in headers {
        let Some(attribute) = name.as_str().strip_prefix("ce-") else { continue };
        let text = value.to_str().ok().and_then(unquoted);
        let text = text.and_then(|text| Some(percent_decode_str(&text).decode_utf8().ok()?.into_owned()));
        let Some(text) = text else {
            return Err(invalid(format!("header ce-{attribute} is not percent-encoded UTF-8, or ends within quotes")));
        };
        if !is_attribute_name(attribute) {
            return Err(invalid(format!(
                "header ce-{attribute}: attribute names have lower-case letters and digits only"
            )));
        }
        if attribute == "partitionkey" {
            record.key = Some(text.as_bytes().to_vec());
        }
        record.headers.push((format!("ce_{attribute}"), Some(text.as_bytes().to_vec())));
    }
    for required in REQUIRED {
        let value = record.headers.iter().find(|(name, _)| name.strip_prefix("ce_") == Some(required));
        check_required(
            required,
            value.and_then(|(_, value)| std::str::from_utf8(value.as_deref()?).ok()),
            "header ce-",
        )?;
    }
    if let Some(content_type) = headers.get(header::CONTENT_TYPE) {
        record.headers.push(("content-type".to_owned(), Some(content_type.as_bytes().to_vec())));
    }
    Ok(record)
}

/// A header's value without the quotes that it may be written in, as section 3.1.3.2 of the HTTP protocol binding has a
/// receiver read what older senders write; `None` where they do not end with it.
fn unquoted(value: &str) -> Option<Cow<'_, str>> {
    let Some(quoted) = value.strip_prefix('"') else { return Some(value.into()) };
    let mut text = String::with_capacity(quoted.len());
    let mut rest = quoted.chars();
    loop {
        match rest.next()? {
            '"' => return rest.next().is_none().then_some(text.into()),
            '\\' => text.push(rest.next()?),
            other => text.push(other),
        }
    }
}

/// What is looked at of an event in structured mode; the rest may be of any size, and is not taken apart.
#[derive(Deserialize)]
struct Written<'a> {
    #[serde(borrow, default)]
    specversion: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    source: Option<&'a RawValue>,
    #[serde(borrow, default)]
    r#type: Option<&'a RawValue>,
    #[serde(borrow, default)]
    partitionkey: Option<&'a RawValue>,
    #[serde(default)]
    data: Present,
    #[serde(default)]
    data_base64: Present,
}

/// Whether a field is there, `null` included.
#[derive(Clone, Copy, Default)]
struct Present(bool);

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|IgnoredAny| Self(true))
    }
}

/// The record of one event in structured mode.
pub(crate) fn structured(body: &[u8]) -> Result<IncomingRecord, Problem> {
    // Fields by name: a list of them would be read in their order.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(invalid("the body: allowed: one event, an object".to_owned()));
    }
    // What is passed over is not looked at otherwise.
    let body_text = std::str::from_utf8(body).map_err(|error| invalid(format!("the body: {error}")))?;
    let event: Written<'_> = serde_json::from_str(body_text).map_err(|error| invalid(format!("the body: {error}")))?;
    let text = |json: Option<&RawValue>| json.and_then(|json| serde_json::from_str::<String>(json.get()).ok());
    let found = [event.specversion, event.id, event.source, event.r#type];
    for (required, found) in REQUIRED.into_iter().zip(found) {
        check_required(required, text(found).as_deref(), "")?;
    }
    if event.data.0 && event.data_base64.0 {
        return Err(invalid("an event has `data` or `data_base64`, not both".to_owned()));
    }
    let key = text(event.partitionkey).map(String::into_bytes);
    let headers = vec![("content-type".to_owned(), Some(STRUCTURED_TYPE.as_bytes().to_vec()))];
    Ok(IncomingRecord { key, value: Some(body.to_vec()), headers, ..IncomingRecord::default() })
}

/// The events of a JSON array.
pub(crate) fn events_of(body: &[u8]) -> Result<AtMost<RECORDS_IN_MAX, Box<RawValue>>, Problem> {
    serde_json::from_slice(body).map_err(|error| invalid(format!("the body: {error}")))
}

/// The records of a batch of events.
pub(crate) fn batched(events: &[Box<RawValue>]) -> Result<Vec<IncomingRecord>, Problem> {
    let record = |(index, event): (usize, &RawValue)| {
        structured(event.get().as_bytes())
            .map_err(|problem| Problem { detail: format!("event {index}: {}", problem.detail), ..problem })
    };
    events.iter().map(AsRef::as_ref).enumerate().map(record).collect()
}

fn check_required(name: &str, value: Option<&str>, prefix: &str) -> Result<(), Problem> {
    match value {
        Some("1.0") if name == "specversion" => Ok(()),
        Some(other) if name == "specversion" => {
            Err(invalid(format!("{prefix}specversion: found {other:?}, allowed: 1.0")))
        }
        Some(text) if !text.is_empty() => Ok(()),
        _ => Err(invalid(format!("{prefix}{name}: found nothing, allowed: a text that is not empty"))),
    }
}

fn is_attribute_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

fn invalid(detail: String) -> Problem {
    Problem::bad_request("invalid-cloudevent", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    const BINARY: [(&str, &str); 4] =
        [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t")];

    #[test]
    fn binary_attributes_become_record_headers() {
        let mut pairs = BINARY.to_vec();
        pairs.extend([
            ("ce-subject", "caf%C3%A9"),
            ("ce-note", r#""a \"b\" %C3%A9""#),
            ("ce-partitionkey", "k"),
            ("content-type", "text/plain"),
        ]);
        let record = binary(&headers(&pairs), b"x").unwrap();
        let header =
            |name: &str| record.headers.iter().find(|(known, _)| known == name).and_then(|(_, value)| value.clone());
        assert_eq!(header("ce_subject").unwrap(), "café".as_bytes());
        assert_eq!(header("ce_note").unwrap(), "a \"b\" é".as_bytes());
        assert_eq!(header("content-type").unwrap(), b"text/plain");
        assert_eq!((record.key, record.value), (Some(b"k".to_vec()), Some(b"x".to_vec())));
    }

    #[test]
    fn events_without_what_is_required_are_refused() {
        for missing in 0..4 {
            let mut pairs = BINARY.to_vec();
            let (name, _) = pairs.remove(missing);
            assert!(binary(&headers(&pairs), b"").unwrap_err().detail.contains(name));
        }
        let mut pairs = BINARY.to_vec();
        pairs[0].1 = "0.3";
        assert!(binary(&headers(&pairs), b"").unwrap_err().detail.contains("allowed: 1.0"));
        assert!(structured(br#"{"specversion":"1.0","id":"1","source":"s"}"#).unwrap_err().detail.starts_with("type"));
        assert!(structured(b"[]").is_err());
        let both = br#"{"specversion":"1.0","id":"1","source":"s","type":"t","data":1,"data_base64":""}"#;
        assert!(structured(both).unwrap_err().detail.contains("not both"));
    }

    #[test]
    fn quotes_around_a_header_do_not_belong_to_it() {
        for (value, text) in [("a", "a"), (r#"a"b"#, r#"a"b"#), (r#""""#, ""), (r#""a b""#, "a b"), (r#""\\""#, r"\")] {
            assert_eq!(unquoted(value).as_deref(), Some(text), "{value}");
        }
        for value in [r#"""#, r#""a"#, r#""a\""#, r#""a"b"#] {
            assert_eq!(unquoted(value), None, "{value}");
        }
    }

    #[test]
    fn an_event_in_structured_mode_is_kept_as_it_is_and_only_its_attributes_are_looked_at() {
        let event = |more: &str| format!(r#"{{"specversion":"1.0","id":"\u0061","source":"s","type":"t"{more}}}"#);
        let deep = format!(r#", "data": {}{}, "extension": [1e999]"#, "[".repeat(100_000), "]".repeat(100_000));
        for more in ["", r#", "data": null"#, r#", "partitionkey": 3"#, &deep] {
            let record = structured(event(more).as_bytes()).unwrap();
            assert_eq!((record.value, record.key), (Some(event(more).into_bytes()), None));
        }
        assert_eq!(structured(event(r#", "partitionkey": "é\n""#).as_bytes()).unwrap().key.unwrap(), "é\n".as_bytes());
        let not_utf8 = [event("").trim_end_matches('}').as_bytes(), b", \"data\": \"\xff\"}"].concat();
        assert!(structured(&not_utf8).is_err());
        for (more, said) in [
            (r#", "data": null, "data_base64": """#, "not both"),
            (r#", "id": "2""#, "duplicate field `id`"),
            (r#", "data": [}"#, "the body: "),
        ] {
            let detail = structured(event(more).as_bytes()).err().unwrap().detail;
            assert!(detail.contains(said), "{detail}");
        }
        for (body, said) in [
            (r#"["1.0", "a", "s", "t"]"#, "the body: allowed: one event"),
            (r#"{"specversion": 1}"#, "specversion: found nothing"),
        ] {
            let detail = structured(body.as_bytes()).err().unwrap().detail;
            assert!(detail.contains(said), "{detail}");
        }
    }

    #[test]
    fn a_batch_is_its_events_and_names_the_wrong_one() {
        let batched = |body: &[u8]| batched(&events_of(body)?.items);
        let body = br#"[{"specversion":"1.0","id":"1","source":"s","type":"t","partitionkey":"p"},{"id":"2"}]"#;
        assert!(batched(body).unwrap_err().detail.starts_with("event 1: specversion"));
        let records =
            batched(br#"[{"specversion":"1.0","id":"1","source":"s","type":"t","partitionkey":"p"}]"#).unwrap();
        assert_eq!((records.len(), records[0].key.as_deref()), (1, Some(b"p".as_slice())));
        assert!(batched(b"{}").is_err());
    }
}
