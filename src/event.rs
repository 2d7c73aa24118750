//! A record seen as a CloudEvents 1.0 event: what filters match and functions receive.
//!
//! A record that is an event by the Kafka protocol binding (`ce_*` headers, or content type `application/cloudevents+json`) is that event.
//! Every other record is wrapped: `specversion`, `id` = `<partition>-<offset>`, `source` = `/<cluster id>/<topic id>/<leader epoch>`,
//! `type` = `tripline.record`, `time` = its timestamp, `subject` = its topic, `partitionkey` = its key where that is text, and `data` = its
//! value as JSON, else as text, else in base64 as `data_base64`. Id and source together never name two records.
//!
//! Filters see six names more, which are never sent to a function: `topic`, `partition`, `offset`, `timestamp` (milliseconds), `key` and
//! `headers` (an object; a name that comes more than once has an array). Bytes that are not UTF-8 stand there in base64. These names hide
//! extension attributes of the same name.

use std::borrow::Cow;
use std::cell::OnceCell;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde_json::{Map, Value};
use tripline_storage::{LeaderEpoch, Offset};
use uuid::Uuid;

mod json;

/// The `type` of a record that is no event of its own.
pub const RECORD_TYPE: &str = "tripline.record";
/// Media type of one event in JSON.
pub const STRUCTURED_TYPE: &str = "application/cloudevents+json";
/// Media type of a JSON array of events.
pub const BATCH_TYPE: &str = "application/cloudevents-batch+json";

const REQUIRED: [&str; 4] = ["specversion", "id", "source", "type"];

/// A header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its value; `None` is null.
    pub value: Option<&'a [u8]>,
}

/// A record and where it stands, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// The cluster's id.
    pub cluster_id: &'a str,
    /// The topic's id.
    pub topic_id: Uuid,
    /// The leader epoch of the record's batch.
    pub leader_epoch: LeaderEpoch,
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: Offset,
    /// Milliseconds since 1970; negative for none.
    pub timestamp_ms: i64,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// The headers, in their order.
    pub headers: &'a [Header<'a>],
}

/// A record as an event. Building one reads the value once; JSON values are built when first asked for.
#[derive(Debug)]
pub struct EventView<'a> {
    record: RecordView<'a>,
    form: Form<'a>,
    for_matching: OnceCell<MatchEvent>,
}

/// An event as filters see it.
#[derive(Clone, Debug, PartialEq)]
pub struct MatchEvent {
    /// A JSON object.
    pub value: Value,
    /// Whether a key anywhere in it has a dot, so that `a.b` may be found in two ways.
    pub has_dotted_keys: bool,
    /// Whether the payload is JSON, or there is none. Otherwise only patterns that need no payload match.
    pub has_json_payload: bool,
}

impl MatchEvent {
    /// A JSON value taken as an event, whatever it holds.
    #[must_use]
    pub fn new(value: Value) -> Self {
        Self { has_dotted_keys: json::has_dotted_keys(&value), value, has_json_payload: true }
    }
}

#[derive(Debug)]
enum Form<'a> {
    /// The value is the event.
    Structured { raw: &'a [u8], event: Map<String, Value> },
    /// Attributes from headers, data from the value.
    Binary { attributes: Vec<(&'a str, &'a str)>, data: Data<'a> },
    /// Not an event of its own.
    Wrapped { data: Data<'a> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Data<'a> {
    None,
    /// One JSON value without white space around it.
    Json(&'a [u8]),
    Text(&'a str),
    Bytes(&'a [u8]),
}

impl<'a> EventView<'a> {
    /// Sees a record as an event.
    #[must_use]
    pub fn new(record: RecordView<'a>) -> Self {
        Self { form: Form::of(&record), record, for_matching: OnceCell::new() }
    }

    /// The record.
    #[must_use]
    pub const fn record(&self) -> &RecordView<'a> {
        &self.record
    }

    /// The event's `id`.
    #[must_use]
    pub fn id(&self) -> Cow<'_, str> {
        match &self.form {
            Form::Structured { event, .. } => {
                Cow::Borrowed(event.get("id").and_then(Value::as_str).unwrap_or_default())
            }
            Form::Binary { attributes, .. } => Cow::Borrowed(attribute(attributes, "id").unwrap_or_default()),
            Form::Wrapped { .. } => Cow::Owned(self.wrapped_id()),
        }
    }

    /// Whether the payload is JSON, or there is none.
    #[must_use]
    pub const fn has_json_payload(&self) -> bool {
        match &self.form {
            Form::Structured { .. } => true,
            Form::Binary { data, .. } | Form::Wrapped { data } => matches!(data, Data::None | Data::Json(_)),
        }
    }

    /// The event as a JSON object, as a function receives it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut event = Map::new();
        match &self.form {
            Form::Structured { event, .. } => return Value::Object(event.clone()),
            Form::Binary { attributes, data } => {
                event.extend(attributes.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))));
                data.insert_into(&mut event);
            }
            Form::Wrapped { data } => {
                self.wrapped_attributes(|name, value| {
                    event.insert(name.to_owned(), Value::from(value));
                });
                data.insert_into(&mut event);
            }
        }
        Value::Object(event)
    }

    /// Writes what [`EventView::to_json`] returns; JSON payloads are copied as they are, not parsed again.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let mut writer = json::ObjectWriter::begin(out);
        match &self.form {
            Form::Structured { raw, .. } => return writer.replace_with(raw),
            Form::Binary { attributes, data } => {
                for (name, value) in attributes {
                    writer.text(name, value);
                }
                data.write_to(&mut writer);
            }
            Form::Wrapped { data } => {
                self.wrapped_attributes(|name, value| writer.text(name, value));
                data.write_to(&mut writer);
            }
        }
        writer.end();
    }

    /// The event as filters see it, built once.
    #[must_use]
    pub fn for_matching(&self) -> &MatchEvent {
        self.for_matching.get_or_init(|| {
            let mut value = self.to_json();
            if let Value::Object(event) = &mut value {
                self.insert_record_facts(event);
            }
            MatchEvent { has_json_payload: self.has_json_payload(), ..MatchEvent::new(value) }
        })
    }

    fn wrapped_id(&self) -> String {
        format!("{}-{}", self.record.partition, self.record.offset)
    }

    fn wrapped_attributes(&self, mut attribute: impl FnMut(&str, &str)) {
        let record = &self.record;
        attribute("specversion", "1.0");
        attribute("id", &self.wrapped_id());
        attribute("source", &format!("/{}/{}/{}", record.cluster_id, record.topic_id, record.leader_epoch));
        attribute("type", RECORD_TYPE);
        if let Some(time) = record.timestamp() {
            attribute("time", &time_text(time));
        }
        attribute("subject", record.topic);
        if let Some(key) = record.key.and_then(|key| std::str::from_utf8(key).ok()) {
            attribute("partitionkey", key);
        }
    }

    fn insert_record_facts(&self, event: &mut Map<String, Value>) {
        let record = &self.record;
        event.insert("topic".to_owned(), record.topic.into());
        event.insert("partition".to_owned(), record.partition.into());
        event.insert("offset".to_owned(), record.offset.get().into());
        if record.timestamp_ms >= 0 {
            event.insert("timestamp".to_owned(), record.timestamp_ms.into());
        }
        event.insert("key".to_owned(), text_or_base64(record.key));
        let mut headers = Map::new();
        for header in record.headers {
            let value = text_or_base64(header.value);
            match headers.get_mut(header.name) {
                None => {
                    headers.insert(header.name.to_owned(), value);
                }
                Some(Value::Array(values)) => values.push(value),
                Some(first) => *first = Value::Array(vec![first.take(), value]),
            }
        }
        event.insert("headers".to_owned(), Value::Object(headers));
    }
}

impl RecordView<'_> {
    fn timestamp(&self) -> Option<Timestamp> {
        (self.timestamp_ms >= 0).then(|| Timestamp::from_millisecond(self.timestamp_ms).ok()).flatten()
    }
}

impl<'a> Form<'a> {
    fn of(record: &RecordView<'a>) -> Self {
        let content_type = text_header(record.headers, |name| name.eq_ignore_ascii_case("content-type"));
        if content_type.is_some_and(is_structured)
            && let Some(form) = record.value.and_then(Self::structured)
        {
            return form;
        }
        if let Some(attributes) = binary_attributes(record.headers, content_type) {
            return Self::Binary { attributes, data: Data::of(record.value, content_type) };
        }
        Self::Wrapped { data: Data::of(record.value, None) }
    }

    fn structured(value: &'a [u8]) -> Option<Self> {
        let Ok(Value::Object(event)) = serde_json::from_slice(value) else { return None };
        let text = |name: &&str| event.get(*name).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
        let is_event = REQUIRED.iter().all(text) && event["specversion"] == "1.0";
        is_event.then(|| Self::Structured { raw: value.trim_ascii(), event })
    }
}

impl<'a> Data<'a> {
    fn of(value: Option<&'a [u8]>, content_type: Option<&str>) -> Self {
        let Some(value) = value else { return Self::None };
        if content_type.is_none_or(is_json) && json::is_json(value) {
            return Self::Json(value.trim_ascii());
        }
        std::str::from_utf8(value).map_or(Self::Bytes(value), Self::Text)
    }

    fn insert_into(self, event: &mut Map<String, Value>) {
        let (name, value) = match self {
            Self::None => return,
            Self::Json(raw) => ("data", serde_json::from_slice(raw).unwrap_or(Value::Null)),
            Self::Text(text) => ("data", Value::from(text)),
            Self::Bytes(bytes) => ("data_base64", Value::from(BASE64.encode(bytes))),
        };
        event.insert(name.to_owned(), value);
    }

    fn write_to(self, writer: &mut json::ObjectWriter<'_>) {
        match self {
            Self::None => {}
            Self::Json(raw) => writer.raw("data", raw),
            Self::Text(text) => writer.text("data", text),
            Self::Bytes(bytes) => writer.text("data_base64", &BASE64.encode(bytes)),
        }
    }
}

/// RFC 3339 in UTC with milliseconds, as every time that we write.
#[must_use]
pub fn time_text(time: Timestamp) -> String {
    format!("{time:.3}")
}

/// Attributes of an event in binary mode, the required ones first; `None` when one of those is missing.
fn binary_attributes<'a>(headers: &[Header<'a>], content_type: Option<&'a str>) -> Option<Vec<(&'a str, &'a str)>> {
    if !headers.iter().any(|header| header.name.starts_with("ce_")) {
        return None;
    }
    let mut attributes = Vec::new();
    for name in REQUIRED {
        let value = text_header(headers, |header| header.strip_prefix("ce_") == Some(name))?;
        attributes.push((name, value));
    }
    if attributes.iter().any(|(_, value)| value.is_empty()) || attribute(&attributes, "specversion") != Some("1.0") {
        return None;
    }
    for header in headers {
        let Some(name) = header.name.strip_prefix("ce_").filter(|name| is_attribute_name(name)) else { continue };
        let value = header.value.and_then(|value| std::str::from_utf8(value).ok());
        if let (None, Some(value)) = (attribute(&attributes, name), value) {
            attributes.push((name, value));
        }
    }
    attributes.extend(content_type.map(|content_type| ("datacontenttype", content_type)));
    Some(attributes)
}

fn attribute<'a>(attributes: &[(&str, &'a str)], wanted: &str) -> Option<&'a str> {
    attributes.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value)
}

/// Lower-case letters and digits; not the names that come from elsewhere.
fn is_attribute_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    !name.is_empty() && name.bytes().all(allowed) && name != "data" && name != "datacontenttype"
}

fn text_header<'a>(headers: &[Header<'a>], wanted: impl Fn(&str) -> bool) -> Option<&'a str> {
    let header = headers.iter().find(|header| wanted(header.name))?;
    header.value.and_then(|value| std::str::from_utf8(value).ok())
}

fn media_type(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn is_structured(content_type: &str) -> bool {
    media_type(content_type) == STRUCTURED_TYPE
}

fn is_json(content_type: &str) -> bool {
    let media_type = media_type(content_type);
    media_type.ends_with("/json") || media_type.ends_with("+json")
}

fn text_or_base64(bytes: Option<&[u8]>) -> Value {
    match bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| bytes)) {
        None => Value::Null,
        Some(Ok(text)) => text.into(),
        Some(Err(bytes)) => BASE64.encode(bytes).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn record<'a>(value: Option<&'a [u8]>, headers: &'a [Header<'a>]) -> RecordView<'a> {
        RecordView {
            topic: "flights",
            cluster_id: "c1",
            topic_id: Uuid::from_u128(7),
            leader_epoch: LeaderEpoch::new(3).unwrap(),
            partition: 2,
            offset: Offset::new(41).unwrap(),
            timestamp_ms: 1_700_000_000_123,
            key: Some(b"LH400"),
            value,
            headers,
        }
    }

    fn header<'a>(name: &'a str, value: &'a str) -> Header<'a> {
        Header { name, value: Some(value.as_bytes()) }
    }

    /// The written event, after checking that both ways of making it agree.
    fn written(record: RecordView<'_>) -> String {
        let event = EventView::new(record);
        let mut out = Vec::new();
        event.write_json(&mut out);
        assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), event.to_json());
        assert_eq!(event.to_json()["id"], event.id().as_ref());
        String::from_utf8(out).unwrap()
    }

    const WRAPPED: &str = r#"{"specversion":"1.0","id":"2-41","source":"/c1/00000000-0000-0000-0000-000000000007/3","type":"tripline.record","time":"2023-11-14T22:13:20.123Z","subject":"flights","partitionkey":"LH400""#;

    #[test]
    fn a_record_is_wrapped_and_its_json_is_copied_as_it_is() {
        let value = b" {\"a\" : 1.50}\n";
        assert_eq!(written(record(Some(value), &[])), format!("{WRAPPED},\"data\":{{\"a\" : 1.50}}}}"));
    }

    #[test]
    fn text_bytes_and_nothing_are_wrapped_each_in_its_way() {
        let data = |value| written(record(value, &[])).strip_prefix(WRAPPED).unwrap().to_owned();
        assert_eq!(data(Some(b"a \"b\"\n".as_slice())), r#","data":"a \"b\"\n"}"#);
        assert_eq!(data(Some(b"".as_slice())), r#","data":""}"#);
        assert_eq!(data(Some(b"\xff\x00".as_slice())), r#","data_base64":"/wA="}"#);
        assert_eq!(data(None), "}");
    }

    #[test]
    fn a_record_without_time_or_with_a_binary_key_leaves_them_out() {
        let plain = RecordView { timestamp_ms: -1, key: Some(b"\xff"), ..record(Some(b"1"), &[]) };
        let event = EventView::new(plain).to_json();
        assert_eq!((event.get("time"), event.get("partitionkey")), (None, None));
    }

    #[test]
    fn what_a_json_reader_refuses_is_text() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        for value in [&deep, "1e999", "\"\\ud800\"", "{\"a\":1} x", "{\"a\":}"] {
            let event = EventView::new(record(Some(value.as_bytes()), &[]));
            assert!(!event.has_json_payload(), "{value}");
            assert_eq!(event.to_json()["data"], *value);
            written(record(Some(value.as_bytes()), &[]));
        }
    }

    #[test]
    fn ce_headers_make_the_record_that_event() {
        let headers = [
            header("ce_type", "late"),
            header("ce_source", "/airport"),
            header("other", "x"),
            header("ce_id", "e1"),
            header("ce_specversion", "1.0"),
            header("ce_Bad-Name", "x"),
            header("ce_subject", "LH400"),
            header("ce_id", "second"),
            header("content-type", "application/vnd.x+json; charset=utf-8"),
        ];
        let expected = r#"{"specversion":"1.0","id":"e1","source":"/airport","type":"late","subject":"LH400","datacontenttype":"application/vnd.x+json; charset=utf-8","data":[1]}"#;
        assert_eq!(written(record(Some(b"[1]"), &headers)), expected);
    }

    #[test]
    fn the_content_type_decides_whether_data_of_an_event_is_json() {
        let with = |content_type| {
            let mut headers = [("ce_id", "1"), ("ce_source", "s"), ("ce_type", "t"), ("ce_specversion", "1.0")]
                .map(|(name, value)| header(name, value))
                .to_vec();
            headers.push(header("Content-Type", content_type));
            EventView::new(record(Some(b"12"), &headers)).to_json()["data"].clone()
        };
        assert_eq!(
            (with("text/plain"), with("application/json"), with("TEXT/JSON")),
            (json!("12"), json!(12), json!(12))
        );
    }

    #[test]
    fn a_structured_event_is_taken_as_it_stands() {
        let value = b" {\"specversion\":\"1.0\",\"id\":\"e\",\"source\":\"s\",\"type\":\"t\",\"n\":1.0} ";
        let headers = [header("content-type", "application/cloudevents+json; charset=utf-8")];
        assert_eq!(written(record(Some(value), &headers)).as_bytes(), value.trim_ascii());
    }

    #[test]
    fn what_only_looks_like_an_event_is_wrapped() {
        let structured = [header("content-type", STRUCTURED_TYPE)];
        for value in [
            "not json",
            "[]",
            r#"{"specversion":"0.3","id":"e","source":"s","type":"t"}"#,
            r#"{"specversion":"1.0","id":"","source":"s","type":"t"}"#,
            r#"{"specversion":"1.0","id":7,"source":"s","type":"t"}"#,
        ] {
            let event = EventView::new(record(Some(value.as_bytes()), &structured));
            assert_eq!(event.to_json()["type"], RECORD_TYPE, "{value}");
        }
        let incomplete = [header("ce_id", "1"), header("ce_source", "s"), header("ce_specversion", "1.0")];
        assert_eq!(EventView::new(record(None, &incomplete)).to_json()["type"], RECORD_TYPE);
        let broken = [Header { name: "ce_id", value: Some(b"\xff") }, header("ce_type", "t")];
        assert_eq!(EventView::new(record(None, &broken)).to_json()["type"], RECORD_TYPE);
    }

    #[test]
    fn filters_see_the_place_the_key_and_the_headers_too() {
        let headers = [
            header("trace.id", "t1"),
            header("tag", "a"),
            Header { name: "tag", value: None },
            Header { name: "tag", value: Some(b"\xff") },
        ];
        let event = EventView::new(record(Some(b"{}"), &headers));
        let seen = event.for_matching();
        assert!(seen.has_dotted_keys && seen.has_json_payload);
        let facts = json!({
            "topic": "flights", "partition": 2, "offset": 41, "timestamp": 1_700_000_000_123_i64, "key": "LH400",
            "headers": {"trace.id": "t1", "tag": ["a", null, "/w=="]},
        });
        for (name, value) in facts.as_object().unwrap() {
            assert_eq!(&seen.value[name], value);
            assert_eq!(event.to_json().get(name), None, "{name} is not sent");
        }
        assert_eq!(seen.value["data"], json!({}));
    }

    proptest! {
        #[test]
        fn both_ways_of_making_an_event_agree_for_any_bytes(value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)), text in ".{0,20}") {
            written(record(value.as_deref(), &[]));
            written(record(Some(text.as_bytes()), &[]));
        }

        #[test]
        fn json_is_whatever_the_json_reader_takes(text in "[\\[\\]{}\":,0-9eE+.\\\\u a-f-]{0,12}") {
            prop_assert_eq!(json::is_json(text.as_bytes()), serde_json::from_str::<Value>(&text).is_ok());
        }
    }
}
