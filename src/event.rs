//! A record seen as a CloudEvents 1.0 event: what filters match and functions receive.
//!
//! A record that is an event by the Kafka protocol binding (`ce_*` headers, or content type
//! `application/cloudevents+json`) is that event. Every other record is wrapped: `specversion`, `id` =
//! `<partition>-<offset>`, `source` = `/<cluster id>/<topic id>/<leader epoch>`, `type` = `tripline.record`, `time` =
//! its timestamp, `subject` = its topic, `partitionkey` = its key where that is text, and `data` = its value as JSON,
//! else as text, else in base64 as `data_base64`. Id and source together never name two records.
//!
//! Filters see six names more, which are never sent to a function: `topic`, `partition`, `offset`, `timestamp`
//! (milliseconds), `key` and `headers` (an object; a name that comes more than once has an array). Bytes that are not
//! UTF-8 stand there in base64. These names hide extension attributes of the same name.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde_json::{Map, Value};
use tripline_storage::{LeaderEpoch, Offset};
use uuid::Uuid;

mod json;
pub(crate) mod scan;
mod structured;
pub mod trace;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

/// The `type` of a record that is no event of its own.
pub const RECORD_TYPE: &str = "tripline.record";
/// Media type of one event in JSON.
pub const STRUCTURED_TYPE: &str = "application/cloudevents+json";
/// Media type of a JSON array of events.
pub const BATCH_TYPE: &str = "application/cloudevents-batch+json";

const REQUIRED: [&str; 4] = ["specversion", "id", "source", "type"];
/// The attributes of a record that is no event of its own, in the order in which they are written.
pub(crate) const WRAPPED_NAMES: [&str; 7] = ["specversion", "id", "source", "type", "time", "subject", "partitionkey"];

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

/// A record as an event. Building one looks at the headers only, unless the value may be an event by itself; the value
/// is read when it is first asked for, and so are JSON values built.
#[derive(Debug)]
pub struct EventView<'a> {
    record: RecordView<'a>,
    form: Form<'a>,
    /// A kind, not the payload itself: a cell with a borrow inside would tie the view's lifetime to one exact region.
    payload: OnceCell<PayloadKind>,
    for_matching: OnceCell<Box<MatchEvent>>,
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

/// Attributes by name, the required ones first.
type Attributes<'a> = Vec<(&'a str, &'a str)>;

#[derive(Debug)]
enum Form<'a> {
    /// The value is the event.
    Structured { raw: &'a str, id: Cow<'a, str> },
    /// Attributes from headers, data from the value.
    Binary { attributes: Attributes<'a>, content_type: Option<&'a str> },
    /// Not an event of its own.
    Wrapped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Data<'a> {
    None,
    /// One JSON value without white space around it.
    Json(&'a [u8]),
    Text(&'a str),
    Bytes(&'a [u8]),
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PayloadKind {
    Json,
    Text,
    Bytes,
}

/// What filters read in one pass: where attributes are, and what may be JSON.
pub(crate) enum Parts<'e, 'a> {
    /// All of the event, an object.
    Structured(&'a str),
    /// Attributes, and the payload.
    Binary(&'e [(&'a str, &'a str)], PayloadText<'a>),
    /// Attributes are those of [`EventView::wrapped_attribute`]; and the payload.
    Wrapped(PayloadText<'a>),
}

/// A payload before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PayloadText<'a> {
    None,
    /// A text that is JSON, or is not.
    Unread(&'a str),
    NotJson,
}

impl<'a> EventView<'a> {
    /// Sees a record as an event.
    #[must_use]
    pub fn new(record: RecordView<'a>) -> Self {
        Self { form: Form::of(&record), record, payload: OnceCell::new(), for_matching: OnceCell::new() }
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
            Form::Structured { id, .. } => Cow::Borrowed(id),
            Form::Binary { attributes, .. } => Cow::Borrowed(attribute(attributes, "id").unwrap_or_default()),
            Form::Wrapped => Cow::Owned(self.wrapped_id()),
        }
    }

    /// Whether the payload is JSON, or there is none.
    #[must_use]
    pub fn has_json_payload(&self) -> bool {
        matches!(self.form, Form::Structured { .. }) || matches!(self.data(), Data::None | Data::Json(_))
    }

    /// What a filter reads, which judges itself whether the payload is JSON.
    pub(crate) fn parts(&self) -> Parts<'_, 'a> {
        match &self.form {
            Form::Structured { raw, .. } => Parts::Structured(raw),
            Form::Binary { attributes, .. } => Parts::Binary(attributes, self.payload_text()),
            Form::Wrapped => Parts::Wrapped(self.payload_text()),
        }
    }

    fn payload_text(&self) -> PayloadText<'a> {
        let Some(value) = self.record.value else { return PayloadText::None };
        let text = if self.may_have_json() { std::str::from_utf8(value).ok() } else { None };
        text.map_or(PayloadText::NotJson, PayloadText::Unread)
    }

    fn may_have_json(&self) -> bool {
        match &self.form {
            Form::Structured { .. } | Form::Wrapped => true,
            Form::Binary { content_type, .. } => content_type.is_none_or(is_json),
        }
    }

    /// The payload, read when first asked for. That of a structured event is inside.
    fn data(&self) -> Data<'a> {
        let Some(value) = self.record.value else { return Data::None };
        match self.payload.get_or_init(|| PayloadKind::of(value, self.may_have_json())) {
            PayloadKind::Json => Data::Json(value.trim_ascii()),
            PayloadKind::Text => std::str::from_utf8(value).map_or(Data::Bytes(value), Data::Text),
            PayloadKind::Bytes => Data::Bytes(value),
        }
    }

    /// The event as a JSON object, as a function receives it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut event = Map::new();
        match &self.form {
            Form::Structured { raw, .. } => return serde_json::from_str(raw).unwrap_or_default(),
            Form::Binary { attributes, .. } => {
                event.extend(attributes.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))));
            }
            Form::Wrapped => self.wrapped_attributes(|name, value| {
                event.insert(name.to_owned(), Value::from(value));
            }),
        }
        self.data().insert_into(&mut event);
        Value::Object(event)
    }

    /// Writes what [`EventView::to_json`] returns; JSON payloads are copied as they are, not parsed again.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let mut writer = json::ObjectWriter::begin(out);
        match &self.form {
            Form::Structured { raw, .. } => return writer.replace_with(raw.as_bytes()),
            Form::Binary { attributes, .. } => {
                for (name, value) in attributes.iter() {
                    writer.text(name, value);
                }
            }
            Form::Wrapped => self.wrapped_attributes(|name, value| writer.text(name, value)),
        }
        self.data().write_to(&mut writer);
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
            Box::new(MatchEvent { has_json_payload: self.has_json_payload(), ..MatchEvent::new(value) })
        })
    }

    fn wrapped_id(&self) -> String {
        format!("{}-{}", self.record.partition, self.record.offset)
    }

    fn wrapped_attributes(&self, mut attribute: impl FnMut(&str, &str)) {
        let mut text = String::new();
        for name in WRAPPED_NAMES {
            text.clear();
            if self.wrapped_attribute(name, &mut text) {
                attribute(name, &text);
            }
        }
    }

    /// Appends to `out` what a record that is no event of its own has as this attribute: one of [`WRAPPED_NAMES`].
    /// `false` when it has none.
    pub(crate) fn wrapped_attribute(&self, name: &str, out: &mut String) -> bool {
        let record = &self.record;
        let written = match name {
            "specversion" => out.write_str("1.0"),
            "id" => write!(out, "{}-{}", record.partition, record.offset),
            "source" => write!(out, "/{}/{}/{}", record.cluster_id, record.topic_id, record.leader_epoch),
            "type" => out.write_str(RECORD_TYPE),
            "time" => match record.timestamp() {
                Some(time) => write!(out, "{time:.3}"),
                None => return false,
            },
            "subject" => out.write_str(record.topic),
            "partitionkey" => match record.key.and_then(|key| std::str::from_utf8(key).ok()) {
                Some(key) => out.write_str(key),
                None => return false,
            },
            _ => return false,
        };
        written.is_ok()
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
        if record.headers.is_empty() {
            return Self::Wrapped;
        }
        let content_type = text_header(record.headers, |name| name.eq_ignore_ascii_case("content-type"));
        if content_type.is_some_and(is_structured)
            && let Some((raw, id)) = record.value.and_then(structured::event)
        {
            return Self::Structured { raw, id };
        }
        binary_attributes(record.headers, content_type)
            .map_or(Self::Wrapped, |attributes| Self::Binary { attributes, content_type })
    }
}

impl PayloadKind {
    fn of(value: &[u8], may_be_json: bool) -> Self {
        match std::str::from_utf8(value) {
            Err(_) => Self::Bytes,
            Ok(text) if may_be_json && scan::is_json(text) => Self::Json,
            Ok(_) => Self::Text,
        }
    }
}

impl Data<'_> {
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
fn binary_attributes<'a>(headers: &[Header<'a>], content_type: Option<&'a str>) -> Option<Attributes<'a>> {
    if !headers.iter().any(|header| header.name.starts_with("ce_")) {
        return None;
    }
    let mut attributes = Attributes::new();
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

fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

fn is_structured(content_type: &str) -> bool {
    media_type(content_type).eq_ignore_ascii_case(STRUCTURED_TYPE)
}

fn is_json(content_type: &str) -> bool {
    let media_type = media_type(content_type).as_bytes();
    let is_json = |end: &[u8; 5]| matches!(end[0], b'/' | b'+') && end[1..].eq_ignore_ascii_case(b"json");
    media_type.last_chunk().is_some_and(is_json)
}

/// Bytes as text, in base64 where they are none; `None` is null.
fn text_or_base64(bytes: Option<&[u8]>) -> Value {
    match bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| bytes)) {
        None => Value::Null,
        Some(Ok(text)) => text.into(),
        Some(Err(bytes)) => BASE64.encode(bytes).into(),
    }
}
