//! A record as JSON, coming in and going out.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::StatusCode;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::at_most::AtMost;
use super::limits::RECORDS_IN_MAX;
use super::problem::Problem;
use super::reader::OwnedRecord;

/// How much of a wrong value is shown.
const FOUND_CHARACTERS: usize = 80;
/// A value that is nested deeper is shown as a text: readers of JSON have limits, 128 in many, and around it there is
/// the answer.
const NESTING_MAX: usize = 100;
/// Bytes of the headers of one request's records, each with its name: JSON writes that once for many.
const HEADER_BYTES_MAX: usize = 32 << 20;

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

impl IncomingRecords {
    /// The records, each checked.
    pub(crate) fn check(self) -> Result<Vec<IncomingRecord>, Problem> {
        let mut left_bytes = HEADER_BYTES_MAX;
        let records = self.records.items.into_iter().enumerate();
        let checked = records.map(|(index, record)| {
            left_bytes = left_bytes.checked_sub(record.header_name_bytes()).ok_or_else(|| {
                let detail = format!(
                    "records[{index}].headers: with those before it, names of headers take more than {HEADER_BYTES_MAX} bytes, each counted for every value of it"
                );
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "records-too-large", detail)
                    .with("limit_bytes", HEADER_BYTES_MAX)
            })?;
            record.check(index)
        });
        checked.collect()
    }
}

impl WrittenRecord {
    /// What names of headers take in the record, where each value has its own.
    fn header_name_bytes(&self) -> usize {
        let bytes = |(name, values): (&String, &WrittenHeader)| match values {
            WrittenHeader::Many(values) => name.len().saturating_mul(values.len()),
            WrittenHeader::One(_) => name.len(),
        };
        self.headers.iter().map(bytes).fold(0, usize::saturating_add)
    }

    /// Checks it; `index` is its place in the request.
    fn check(self, index: usize) -> Result<IncomingRecord, Problem> {
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

/// A record as it is answered. Its value is handed on as it is and not taken apart: in memory a value of JSON takes a
/// hundred times the bytes that it may be written in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown<'a> {
    pub(crate) record: &'a OwnedRecord,
    pub(crate) encoding: Encoding,
}

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let OwnedRecord { partition, offset, timestamp_ms, key, value, headers } = self.record;
        let is_auto = self.encoding == Encoding::Auto;
        let mut fields = serializer.serialize_map(None)?;
        if !headers.is_empty() {
            fields.serialize_entry("headers", &headers_json(headers))?;
        }
        match key.as_deref().map(|key| (key, std::str::from_utf8(key))) {
            None => {}
            Some((_, Ok(text))) if is_auto => fields.serialize_entry("key", text)?,
            Some((bytes, _)) => fields.serialize_entry("key_base64", &BASE64.encode(bytes))?,
        }
        fields.serialize_entry("offset", &offset.get())?;
        fields.serialize_entry("partition", partition)?;
        fields.serialize_entry("timestamp", timestamp_ms)?;
        match value.as_deref().map(|value| (value, std::str::from_utf8(value))) {
            None => {}
            Some((_, Ok(text))) if is_auto => match json_of(text) {
                Some(json) => fields.serialize_entry("value", &json)?,
                None => fields.serialize_entry("value", text)?,
            },
            Some((bytes, _)) => fields.serialize_entry("value_base64", &BASE64.encode(bytes))?,
        }
        fields.end()
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// A text as JSON on one line, if it is JSON that readers can be expected to read.
fn json_of(text: &str) -> Option<Cow<'_, RawValue>> {
    let mut reader = serde_json::Deserializer::from_str(text);
    Readable { levels_left: NESTING_MAX }.deserialize(&mut reader).ok()?;
    let json: &RawValue = serde_json::from_str(text).ok()?;
    if !json.get().contains(['\n', '\r']) {
        return Some(Cow::Borrowed(json));
    }
    // Within texts of JSON there are none.
    RawValue::from_string(json.get().replace(['\n', '\r'], " ")).ok().map(Cow::Owned)
}

/// Reads all of a value and keeps nothing: refuses what is nested too deep, and numbers that have no place in 64 bits.
struct Readable {
    levels_left: usize,
}

impl Readable {
    fn inner<E: de::Error>(&self) -> Result<Self, E> {
        let levels_left = self.levels_left.checked_sub(1).ok_or_else(|| E::custom("nested too deep"))?;
        Ok(Self { levels_left })
    }
}

impl<'de> DeserializeSeed<'de> for Readable {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Readable {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self.inner()?)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while fields.next_key::<IgnoredAny>()?.is_some() {
            fields.next_value_seed(self.inner()?)?;
        }
        Ok(())
    }
}

/// By name; a name that comes more than once has a list.
fn headers_json(headers: &[(String, Option<Vec<u8>>)]) -> Value {
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
        assert_eq!(headers_json(&record.headers), expected);
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
            serde_json::to_value(Shown { record: &record, encoding }).unwrap()
        };
        assert_eq!(shown(b"[1]", Encoding::Auto)["value"], json!([1]));
        assert_eq!(shown(b"hi", Encoding::Auto)["value"], json!("hi"));
        assert_eq!(shown(b"\xff", Encoding::Auto)["value_base64"], json!("/w=="));
        assert_eq!(
            shown(b"hi", Encoding::Base64),
            json!({"partition": 0, "offset": 0, "timestamp": 7, "key_base64": "aw==", "value_base64": "aGk="})
        );
    }

    #[test]
    fn a_value_of_json_is_shown_as_it_was_written_on_one_line_and_as_a_text_where_it_is_nested_too_deep() {
        let shown = |value: String| {
            let record = OwnedRecord {
                partition: 1,
                offset: Offset::ZERO,
                timestamp_ms: 7,
                key: None,
                value: Some(value.into_bytes()),
                headers: Vec::new(),
            };
            Shown { record: &record, encoding: Encoding::Auto }.to_string()
        };
        let expected = r#"{"offset":0,"partition":1,"timestamp":7,"value":{"b" : 1.50,  "a":[-0e1,"\n"]}}"#;
        assert_eq!(shown(" {\"b\" : 1.50,\r\n\"a\":[-0e1,\"\\n\"]}\n".to_owned()), expected);
        let nested = |deep| format!("{}{}", "[".repeat(deep), "]".repeat(deep));
        assert!(shown(nested(NESTING_MAX)).ends_with(&format!("\"value\":{}}}", nested(NESTING_MAX))));
        let others = ["[", "[\"]\\\"", "[1e999]", "{1:2}", "1 2", ""].map(str::to_owned);
        for text in others.into_iter().chain([nested(NESTING_MAX + 1), nested(1_000_000)]) {
            let value: Value = serde_json::from_str(&shown(text.clone())).unwrap();
            assert_eq!(value["value"], Value::String(text));
        }
    }

    #[test]
    fn names_of_headers_count_for_each_of_their_values() {
        let checked = |text: String| {
            let written: IncomingRecords = serde_json::from_str(&text).unwrap();
            written.check()
        };
        let with = |bytes: usize, values: usize| {
            format!(r#"{{"headers": {{"{}": [{}null]}}}}"#, "n".repeat(bytes), "null,".repeat(values - 1))
        };
        let fits = format!(r#"{{"records": [{}, {}]}}"#, with(1 << 20, 16), with(1 << 20, 16));
        assert_eq!(checked(fits).unwrap()[1].headers.len(), 16);
        for text in [with(1 << 20, 33), format!("{}, {}", with(1 << 20, 16), with(1 << 20, 17))] {
            let problem = checked(format!(r#"{{"records": [{text}]}}"#)).unwrap_err();
            assert_eq!((problem.status, problem.code), (StatusCode::PAYLOAD_TOO_LARGE, "records-too-large"));
        }
        let problem = checked(format!(r#"{{"records": [{}]}}"#, with(1 << 20, 100_000))).unwrap_err();
        assert!(problem.detail.starts_with("records[0].headers: "), "{}", problem.detail);
    }
}
