//! What an invocation leaves behind: results of functions as records, and a record of the invocation itself.
//!
//! *Results*: what a function returns becomes records of a topic: each element of a list is one, an object or any other
//! value one by itself, `null` and an empty answer none; an answer that is not JSON is one record as it is. An element that
//! is a CloudEvent stands there as one (content type `application/cloudevents+json`), keyed by its `partitionkey`.
//!
//! *Destinations* get one record per window, on success or when it is given up, in the shape of the invocation record of
//! Lambda and Function Compute: `version`, `timestamp`, `requestContext`, `requestPayload` (where the window lies, not its
//! records), `responseContext`, `responsePayload`.
//!
//! Outputs are in their topics before progress passes their window, and durable before that is, so none is lost; a crash
//! between the two repeats the window, and its outputs.

use jiff::Timestamp;
use serde_json::{Value, json};
use tripline_storage::Offset;
use tripline_storage::batch::{BatchBuilder, BatchOptions, CheckedBatch, NewRecord};

use super::attempt::{AttemptState, BATCH_ITEM_FAILURES};
use crate::broker::{Broker, ProduceError, Topic};
use crate::event::trace::TraceContext;
use crate::event::{STRUCTURED_TYPE, time_text};
use crate::topic::name::TopicName;
use crate::topic::partitioner::partition_of_key;

/// Where outputs of a trigger go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destinations {
    /// What functions return.
    pub results: Option<TopicName>,
    /// A record of each window that succeeded.
    pub on_success: Option<TopicName>,
    /// A record of each window that was given up.
    pub on_failure: Option<TopicName>,
}

impl Destinations {
    /// The topics, with the field that names each.
    pub fn topics(&self) -> impl Iterator<Item = (&'static str, &TopicName)> {
        let named = [("results", &self.results), ("on_success", &self.on_success), ("on_failure", &self.on_failure)];
        named.into_iter().filter_map(|(field, topic)| Some((field, topic.as_ref()?)))
    }
}

/// Why outputs are not in their topics.
#[derive(Debug, thiserror::Error)]
pub(super) enum OutputError {
    /// The topic was deleted.
    #[error("the topic {0} of the trigger's destinations does not exist")]
    NoTopic(TopicName),
    /// A result does not fit into a record of the topic: trying again would not change that, invoking again may.
    #[error("a result has {size_bytes} bytes, topic {topic} takes {allowed}")]
    TooLarge {
        /// The topic.
        topic: TopicName,
        /// How large it is.
        size_bytes: usize,
        /// Its `max.message.bytes`.
        allowed: usize,
    },
    /// They could not be appended.
    #[error(transparent)]
    Produce(#[from] ProduceError),
}

/// A record to append.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Output {
    key: Option<String>,
    value: Vec<u8>,
    is_event: bool,
}

/// A window, for the record of its invocation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Invoked<'a> {
    pub(super) id: &'a str,
    pub(super) trigger: &'a str,
    pub(super) function: &'a str,
    pub(super) topic: &'a str,
    pub(super) partition: u32,
    pub(super) offsets: &'a [Offset],
    pub(super) attempts: u32,
    pub(super) now_ms: i64,
    /// The trace of the record, of a window of one: what is left behind belongs to it.
    pub(super) cause: Option<&'a TraceContext>,
}

/// The records that a function's answer amounts to.
fn results(body: &[u8]) -> Vec<Output> {
    let raw = |value: &[u8]| Output { key: None, value: value.to_vec(), is_event: false };
    if body.is_empty() {
        return Vec::new();
    }
    match serde_json::from_slice::<Value>(body) {
        Err(_) => vec![raw(body)],
        Ok(Value::Null) => Vec::new(),
        Ok(Value::Array(elements)) => elements.iter().map(result).collect(),
        // An answer that only tells which records failed is no result.
        Ok(Value::Object(answer)) if answer.len() == 1 && answer.contains_key(BATCH_ITEM_FAILURES) => Vec::new(),
        Ok(value) => vec![result(&value)],
    }
}

fn result(value: &Value) -> Output {
    let text = |name: &str| value.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let is_event =
        text("specversion") == Some("1.0") && ["id", "source", "type"].into_iter().all(|name| text(name).is_some());
    let key = text("partitionkey").filter(|_| is_event).map(str::to_owned);
    Output { key, value: value.to_string().into_bytes(), is_event }
}

fn invocation_record(invoked: &Invoked<'_>, condition: &str, response: &Value, payload: Value) -> Output {
    let time = Timestamp::from_millisecond(invoked.now_ms).map_or_else(|_| String::new(), time_text);
    let record = json!({
        "version": "1.0",
        "timestamp": time,
        "requestContext": {
            "requestId": invoked.id,
            "trigger": invoked.trigger,
            "function": invoked.function,
            "condition": condition,
            "approximateInvokeCount": invoked.attempts,
        },
        "requestPayload": {
            "topic": invoked.topic,
            "partition": invoked.partition,
            "offsets": invoked.offsets.iter().map(|offset| offset.get()).collect::<Vec<_>>(),
        },
        "responseContext": response,
        "responsePayload": payload,
    });
    Output { key: Some(invoked.id.to_owned()), value: record.to_string().into_bytes(), is_event: false }
}

/// Appends what a successful invocation leaves behind.
///
/// # Errors
/// See [`OutputError`]; what was appended before stays.
pub(super) fn succeeded(
    broker: &Broker,
    destinations: &Destinations,
    invoked: &Invoked<'_>,
    body: &[u8],
) -> Result<(), OutputError> {
    if let Some(topic) = &destinations.results {
        append(broker, topic, invoked, &results(body))?;
    }
    if let Some(topic) = &destinations.on_success {
        let payload = serde_json::from_slice(body).unwrap_or_else(|_| String::from_utf8_lossy(body).into());
        let record = invocation_record(invoked, "Success", &json!({ "statusCode": 200 }), payload);
        append(broker, topic, invoked, &[record])?;
    }
    Ok(())
}

/// Appends what a window that is given up leaves behind besides its dead letters.
///
/// # Errors
/// See [`OutputError`].
pub(super) fn given_up(
    broker: &Broker,
    destinations: &Destinations,
    invoked: &Invoked<'_>,
    condition: &str,
    state: &AttemptState,
) -> Result<(), OutputError> {
    let Some(topic) = &destinations.on_failure else { return Ok(()) };
    let error = state.last_error.as_ref();
    let code = error.map_or("", |error| error.code.as_str());
    let response = json!({
        "statusCode": code.parse::<u16>().unwrap_or(500),
        "functionError": error.map_or("", |error| error.class.as_str()),
        "errorType": code,
    });
    let payload = error.map_or_else(String::new, |error| error.message.clone());
    append(broker, topic, invoked, &[invocation_record(invoked, condition, &response, payload.into())])
}

fn append(broker: &Broker, name: &TopicName, invoked: &Invoked<'_>, outputs: &[Output]) -> Result<(), OutputError> {
    let topic = broker.topic(name.as_str()).ok_or_else(|| OutputError::NoTopic(name.clone()))?;
    for (partition, batch) in batches(&topic, name, invoked, outputs)? {
        broker.append_ahead(&topic, partition, batch)?;
    }
    Ok(())
}

fn headers<'a>(invoked: &Invoked<'a>, output: &Output) -> Vec<(&'a [u8], Option<&'a [u8]>)> {
    let content_type = output.is_event.then_some(("content-type", STRUCTURED_TYPE));
    let parent = invoked.cause.map(|cause| ("traceparent", cause.parent()));
    let state = invoked.cause.and_then(|cause| Some(("tracestate", cause.state()?)));
    let headers = [content_type, parent, state].into_iter().flatten();
    headers.map(|(name, value)| (name.as_bytes(), Some(value.as_bytes()))).collect()
}

/// Keyed records where their key belongs, the others where their window comes from: in order either way.
fn batches(
    topic: &Topic,
    name: &TopicName,
    invoked: &Invoked<'_>,
    outputs: &[Output],
) -> Result<Vec<(u32, CheckedBatch)>, OutputError> {
    let allowed = topic.with_config(|config| config.max_message_bytes as usize);
    let mut full = Vec::new();
    let mut open: Vec<(u32, BatchBuilder)> = Vec::new();
    for output in outputs {
        let count = topic.partition_count();
        let partition =
            output.key.as_ref().map_or(invoked.partition % count, |key| partition_of_key(key.as_bytes(), count));
        let headers = headers(invoked, output);
        let record = NewRecord {
            timestamp_ms: invoked.now_ms,
            key: output.key.as_deref().map(str::as_bytes),
            value: Some(&output.value),
            headers: &headers,
        };
        let index = open.iter().position(|(number, _)| *number == partition).unwrap_or_else(|| {
            open.push((partition, BatchBuilder::new(BatchOptions::default())));
            open.len() - 1
        });
        let builder = &mut open[index].1;
        if !builder.is_empty() && builder.size_bytes_with(&record) > allowed {
            full.push((partition, std::mem::replace(builder, BatchBuilder::new(BatchOptions::default()))));
        }
        let size_bytes = open[index].1.size_bytes_with(&record);
        if size_bytes > allowed || open[index].1.push(&record).is_err() {
            return Err(OutputError::TooLarge { topic: name.clone(), size_bytes, allowed });
        }
    }
    let built = full.into_iter().chain(open).map(|(partition, builder)| {
        let size_bytes = builder.size_bytes();
        let batch = builder.finish().map_err(|_| OutputError::TooLarge { topic: name.clone(), size_bytes, allowed })?;
        Ok((partition, batch))
    });
    built.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(body: &str) -> Vec<String> {
        results(body.as_bytes()).into_iter().map(|output| String::from_utf8(output.value).unwrap()).collect()
    }

    #[test]
    fn an_answer_is_as_many_records_as_it_has_elements() {
        for (body, expected) in [
            ("", vec![]),
            ("null", vec![]),
            ("[]", vec![]),
            ("{}", vec!["{}"]),
            ("[1, \"a\", {\"b\": 2}]", vec!["1", "\"a\"", "{\"b\":2}"]),
            ("ok", vec!["ok"]),
            ("{\"batchItemFailures\": []}", vec![]),
            ("{\"batchItemFailures\": [], \"more\": 1}", vec!["{\"batchItemFailures\":[],\"more\":1}"]),
        ] {
            assert_eq!(texts(body), expected, "{body}");
        }
    }

    #[test]
    fn an_event_keeps_its_key_and_its_type() {
        let event = r#"{"specversion":"1.0","id":"1","source":"s","type":"t","partitionkey":"k"}"#;
        let output = &results(event.as_bytes())[0];
        assert_eq!((output.key.as_deref(), output.is_event), (Some("k"), true));
        let other = &results(br#"{"specversion":"1.0","id":"1","partitionkey":"k"}"#)[0];
        assert_eq!((other.key.as_deref(), other.is_event), (None, false));
    }
}
