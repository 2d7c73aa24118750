//! A record as JSON, coming in and going out.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::at_most::AtMost;
use super::limits::RECORDS_IN_MAX;
use super::problem::Problem;
use super::reader::OwnedRecord;

/// How much of a wrong value is shown.
const FOUND_CHARACTERS: usize = 80;

/// A record to append.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IncomingRecord {
    pub(crate) partition: Option<u32>,
    pub(crate) timestamp_ms: Option<i64>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

/// `{"records": […]}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IncomingRecords {
    pub(crate) records: AtMost<RECORDS_IN_MAX, WrittenRecord>,
}

/// A record as it is written in a request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenRecord {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<Box<RawValue>>,
    value_base64: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, WrittenHeader>,
    partition: Option<u32>,
    timestamp: Option<i64>,
}

/// The values of one header name.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum WrittenHeader {
    Many(Vec<WrittenValue>),
    One(WrittenValue),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum WrittenValue {
    Text(String),
    Bytes { base64: String },
    Null(()),
}

impl WrittenRecord {
    /// Checks it; `index` is its place in the request.
    pub(crate) fn check(self, index: usize) -> Result<IncomingRecord, Problem> {
        let wrong = |field: &str, allowed: &str| {
            let detail = format!("records[{index}].{field}: allowed: {allowed}");
            Problem::bad_request("invalid-records", detail)
        };
        let found = |field: &str, found: &str, allowed: &str| {
            let found: String = found.chars().take(FOUND_CHARACTERS).collect();
            let detail = format!("records[{index}].{field}: found {found:?}, allowed: {allowed}");
            Problem::bad_request("invalid-records", detail)
        };
        if self.key.is_some() && self.key_base64.is_some() {
            return Err(wrong("key", "`key` or `key_base64`, not both"));
        }
        if self.value.is_some() && self.value_base64.is_some() {
            return Err(wrong("value", "`value` or `value_base64`, not both"));
        }
        if let Some(timestamp) = self.timestamp.filter(|timestamp| *timestamp < 0) {
            return Err(found("timestamp", &timestamp.to_string(), "milliseconds since 1970"));
        }
        let decode =
            |field: &str, text: String| BASE64.decode(&text).map_err(|_| found(field, &text, "base64 with padding"));
        let key = match self.key_base64 {
            Some(text) => Some(decode("key_base64", text)?),
            None => self.key.map(String::into_bytes),
        };
        let value = match self.value_base64 {
            Some(text) => Some(decode("value_base64", text)?),
            None => self.value.map(|json| json.get().as_bytes().to_vec()),
        };
        let mut headers = Vec::new();
        for (name, values) in self.headers {
            let values = match values {
                WrittenHeader::Many(values) => values,
                WrittenHeader::One(value) => vec![value],
            };
            for value in values {
                let value = match value {
                    WrittenValue::Text(text) => Some(text.into_bytes()),
                    WrittenValue::Bytes { base64 } => Some(decode("headers", base64)?),
                    WrittenValue::Null(()) => None,
                };
                headers.push((name.clone(), value));
            }
        }
        Ok(IncomingRecord { partition: self.partition, timestamp_ms: self.timestamp, key, value, headers })
    }
}

/// How bytes are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// As JSON where they are JSON, else as text where they are UTF-8, else in base64.
    #[default]
    Auto,
    /// In base64, so that nothing is lost.
    Base64,
}

/// A record as it is answered.
pub(crate) fn to_json(record: &OwnedRecord, encoding: Encoding) -> Value {
    let mut shown = json!({
        "partition": record.partition,
        "offset": record.offset.get(),
        "timestamp": record.timestamp_ms,
    });
    let fields = shown.as_object_mut().expect("an object");
    put_key(fields, record.key.as_deref(), encoding);
    put_value(fields, record.value.as_deref(), encoding);
    if !record.headers.is_empty() {
        fields.insert("headers".to_owned(), headers(&record.headers));
    }
    shown
}

fn put_key(fields: &mut Map<String, Value>, key: Option<&[u8]>, encoding: Encoding) {
    let Some(key) = key else { return };
    match std::str::from_utf8(key) {
        Ok(text) if encoding == Encoding::Auto => fields.insert("key".to_owned(), text.into()),
        _ => fields.insert("key_base64".to_owned(), BASE64.encode(key).into()),
    };
}

fn put_value(fields: &mut Map<String, Value>, value: Option<&[u8]>, encoding: Encoding) {
    let Some(value) = value else { return };
    if encoding == Encoding::Auto {
        if let Ok(json) = serde_json::from_slice::<Value>(value) {
            fields.insert("value".to_owned(), json);
            return;
        }
        if let Ok(text) = std::str::from_utf8(value) {
            fields.insert("value".to_owned(), text.into());
            return;
        }
    }
    fields.insert("value_base64".to_owned(), BASE64.encode(value).into());
}

/// By name; a name that comes more than once has a list.
fn headers(headers: &[(String, Option<Vec<u8>>)]) -> Value {
    let mut shown = Map::new();
    for (name, value) in headers {
        let value = match value.as_deref().map(|bytes| (bytes, std::str::from_utf8(bytes))) {
            None => Value::Null,
            Some((_, Ok(text))) => text.into(),
            Some((bytes, Err(_))) => json!({ "base64": BASE64.encode(bytes) }),
        };
        match shown.get_mut(name) {
            None => drop(shown.insert(name.clone(), value)),
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
    Value::Object(shown)
}

#[cfg(test)]
mod tests {
    use tripline_storage::Offset;

    use super::*;

    fn incoming(text: &str) -> Result<IncomingRecord, String> {
        let written: WrittenRecord = serde_json::from_str(text).map_err(|error| error.to_string())?;
        written.check(0).map_err(|problem| problem.detail)
    }

    #[test]
    fn json_values_are_stored_as_they_were_written() {
        let record = incoming(r#"{"key": "k", "value": {"a" : 1.50}, "partition": 2, "timestamp": 5}"#).unwrap();
        assert_eq!(record.value.as_deref(), Some(b"{\"a\" : 1.50}".as_slice()));
        assert_eq!(
            (record.key.as_deref(), record.partition, record.timestamp_ms),
            (Some(b"k".as_slice()), Some(2), Some(5))
        );
        assert_eq!(incoming(r#"{"value": "text"}"#).unwrap().value.unwrap(), b"\"text\"");
        assert_eq!(incoming(r#"{"value_base64": "/wA="}"#).unwrap().value.unwrap(), [0xff, 0]);
        assert_eq!(incoming("{}").unwrap().value, None);
    }

    #[test]
    fn wrong_fields_say_what_is_allowed() {
        assert!(incoming(r#"{"vale": 1}"#).unwrap_err().contains("value_base64"));
        assert!(incoming(r#"{"value": 1, "value_base64": ""}"#).unwrap_err().contains("not both"));
        assert!(incoming(r#"{"key": "", "key_base64": ""}"#).unwrap_err().contains("not both"));
        let base64 = incoming(r#"{"value_base64": "%"}"#).unwrap_err();
        assert_eq!(base64, "records[0].value_base64: found \"%\", allowed: base64 with padding");
        assert!(incoming(r#"{"timestamp": -1}"#).unwrap_err().contains("since 1970"));
        assert!(incoming(r#"{"key": 3}"#).is_err());
    }

    #[test]
    fn headers_keep_their_values_both_ways() {
        let text = r#"{"headers": {"a": "1", "b": ["x", null, {"base64": "/w=="}]}}"#;
        let record = incoming(text).unwrap();
        let expected: Value = serde_json::from_str(r#"{"a": "1", "b": ["x", null, {"base64": "/w=="}]}"#).unwrap();
        assert_eq!(headers(&record.headers), expected);
    }

    #[test]
    fn bytes_are_shown_as_json_text_or_base64() {
        let shown = |value: &[u8], encoding| {
            let record = OwnedRecord {
                partition: 0,
                offset: Offset::ZERO,
                timestamp_ms: 7,
                key: Some(b"k".to_vec()),
                value: Some(value.to_vec()),
                headers: Vec::new(),
            };
            to_json(&record, encoding)
        };
        assert_eq!(shown(b"[1]", Encoding::Auto)["value"], json!([1]));
        assert_eq!(shown(b"hi", Encoding::Auto)["value"], json!("hi"));
        assert_eq!(shown(b"\xff", Encoding::Auto)["value_base64"], json!("/w=="));
        assert_eq!(
            shown(b"hi", Encoding::Base64),
            json!({"partition": 0, "offset": 0, "timestamp": 7, "key_base64": "aw==", "value_base64": "aGk="})
        );
    }
}
