//! What an invocation leaves behind: results of functions as records, and a record of the invocation itself.
//!
//! *Results*: what a function returns becomes records of a topic: each element of a list is one, an object or any other
//! value one by itself, `null` and an empty answer none; an answer that is not JSON is one record as it is. Elements
//! keep the text that they have in the answer, so that no number loses digits. An element that is a CloudEvent stands
//! there as one (content type `application/cloudevents+json`), keyed by its `partitionkey`.
//!
//! *Destinations* get one record per window, on success or when it is given up, in the shape of the invocation record
//! of Lambda and Function Compute: `version`, `timestamp`, `requestContext`, `requestPayload` (where the window lies,
//! not its records), `responseContext`, `responsePayload`.
//!
//! Outputs are in their topics before progress passes their window, and durable before that is, so none is lost; a
//! crash between the two repeats the window, and its outputs. What records they are, and in which batches, is decided
//! here; the `Outlet` is the one way to their topics, which are the cluster's where the trigger reads a cluster.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tripline_storage::Offset;
use tripline_storage::batch::{BatchBuilder, BatchOptions, CheckedBatch, NewRecord};

use super::attempt::{AttemptState, BATCH_ITEM_FAILURES};
use crate::event::scan::is_json;
use crate::event::trace::TraceContext;
use crate::event::{STRUCTURED_TYPE, time_text};
use crate::topic::name::TopicName;
use crate::topic::partitioner::partition_of_key;

mod outlet;

pub(super) use outlet::{Outlet, OutputError};

use outlet::Takes;

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

/// A record to append.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Output {
    key: Option<String>,
    value: Vec<u8>,
    is_event: bool,
    /// Which of the results it is, from 1.
    place: usize,
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
    let raw = |value: &[u8]| Output { key: None, value: value.to_vec(), is_event: false, place: 1 };
    if body.is_empty() {
        return Vec::new();
    }
    let Some(answer) = read(body) else { return vec![raw(body)] };
    match answer.get() {
        "null" => Vec::new(),
        list if list.starts_with('[') => {
            let elements: Vec<&RawValue> = serde_json::from_str(list).expect("it was read a moment ago");
            (1..).zip(elements).map(|(place, value)| result(value, place)).collect()
        }
        object if object.starts_with('{') && tells_failures_alone(object) => Vec::new(),
        _ => vec![result(answer, 1)],
    }
}

/// An answer as JSON. What our own reader refuses (halves of surrogate pairs, numbers beyond all doubles, depth) is
/// none: whoever reads the record would refuse it too.
fn read(body: &[u8]) -> Option<&RawValue> {
    is_json(std::str::from_utf8(body).ok()?).then(|| serde_json::from_slice(body).ok())?
}

/// Whether an answer only tells which records failed: that is no result.
fn tells_failures_alone(object: &str) -> bool {
    members(object).is_some_and(|members| members.len() == 1 && members.contains_key(BATCH_ITEM_FAILURES))
}

/// The members of an object, of a name that is there twice the last.
fn members(object: &str) -> Option<BTreeMap<String, &RawValue>> {
    serde_json::from_str(object).ok()
}

fn result(value: &RawValue, place: usize) -> Output {
    let members = members(value.get()).unwrap_or_default();
    let text = |name: &str| {
        let text = members.get(name).and_then(|text| serde_json::from_str::<String>(text.get()).ok());
        text.filter(|text| !text.is_empty())
    };
    let is_event = text("specversion").as_deref() == Some("1.0")
        && ["id", "source", "type"].into_iter().all(|name| text(name).is_some());
    let key = text("partitionkey").filter(|_| is_event);
    Output { key, value: value.get().as_bytes().to_vec(), is_event, place }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InvocationRecord<'a, P> {
    version: &'static str,
    timestamp: String,
    request_context: RequestContext<'a>,
    request_payload: RequestPayload<'a>,
    response_context: &'a Value,
    response_payload: P,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RequestContext<'a> {
    request_id: &'a str,
    trigger: &'a str,
    function: &'a str,
    condition: &'a str,
    approximate_invoke_count: u32,
}

#[derive(Serialize)]
struct RequestPayload<'a> {
    topic: &'a str,
    partition: u32,
    offsets: Vec<i64>,
}

fn invocation_record(
    invoked: &Invoked<'_>,
    condition: &str,
    response_context: &Value,
    response_payload: impl Serialize,
) -> Output {
    let record = InvocationRecord {
        version: "1.0",
        timestamp: Timestamp::from_millisecond(invoked.now_ms).map_or_else(|_| String::new(), time_text),
        request_context: RequestContext {
            request_id: invoked.id,
            trigger: invoked.trigger,
            function: invoked.function,
            condition,
            approximate_invoke_count: invoked.attempts,
        },
        request_payload: RequestPayload {
            topic: invoked.topic,
            partition: invoked.partition,
            offsets: invoked.offsets.iter().map(|offset| offset.get()).collect(),
        },
        response_context,
        response_payload,
    };
    let value = serde_json::to_vec(&record).expect("texts and numbers");
    Output { key: Some(invoked.id.to_owned()), value, is_event: false, place: 1 }
}

/// Records that a window leaves behind, as far as they are not in their topics yet.
#[derive(Debug)]
pub(super) struct Outputs {
    topics: VecDeque<OfTopic>,
}

#[derive(Debug)]
struct OfTopic {
    name: TopicName,
    /// Those in no batch yet: it is not known what the topic takes.
    uncut: Vec<Output>,
    /// What is not appended yet.
    batches: VecDeque<Cut>,
}

/// Records of one partition as they are appended.
#[derive(Debug)]
struct Cut {
    partition: u32,
    batch: CheckedBatch,
    records: Vec<Output>,
}

impl Outputs {
    /// What a successful invocation leaves behind.
    pub(super) fn of_success(destinations: &Destinations, invoked: &Invoked<'_>, body: &[u8]) -> Self {
        let returned = destinations.results.iter().map(|topic| (topic, results(body)));
        let record = |topic| {
            let context = json!({ "statusCode": 200 });
            let record = read(body).map(|answer| invocation_record(invoked, "Success", &context, answer));
            // One level deeper it may be too deep.
            let record = record.filter(|record| std::str::from_utf8(&record.value).is_ok_and(is_json));
            let as_text = || invocation_record(invoked, "Success", &context, String::from_utf8_lossy(body));
            (topic, vec![record.unwrap_or_else(as_text)])
        };
        Self::new(returned.chain(destinations.on_success.iter().map(record)))
    }

    /// What a window that is given up leaves behind besides its dead letters.
    pub(super) fn of_failure(
        destinations: &Destinations,
        invoked: &Invoked<'_>,
        condition: &str,
        state: &AttemptState,
    ) -> Self {
        let record = |topic| {
            let error = state.last_error.as_ref();
            let code = error.map_or("", |error| error.code.as_str());
            let response = json!({
                "statusCode": code.parse::<u16>().unwrap_or(500),
                "functionError": error.map_or("", |error| error.class.as_str()),
                "errorType": code,
            });
            let payload = error.map_or_else(String::new, |error| error.message.clone());
            (topic, vec![invocation_record(invoked, condition, &response, payload)])
        };
        Self::new(destinations.on_failure.iter().map(record))
    }

    fn new<'a>(outputs: impl Iterator<Item = (&'a TopicName, Vec<Output>)>) -> Self {
        let of_topic =
            |(name, uncut): (&TopicName, Vec<_>)| OfTopic { name: name.clone(), uncut, batches: VecDeque::new() };
        Self { topics: outputs.map(of_topic).collect() }
    }

    /// Appends what is not in its topic yet. All is cut into batches before the first is appended: an attempt that
    /// fails because its topic does not take one record leaves nothing behind. After an error it may be called again,
    /// and repeats nothing that is there.
    ///
    /// # Errors
    /// See [`OutputError`].
    pub(super) async fn leave(&mut self, outlet: &Outlet<'_>, invoked: &Invoked<'_>) -> Result<(), OutputError> {
        for topic in self.topics.iter_mut().filter(|topic| !topic.is_left()) {
            let takes = outlet.takes(&topic.name).await?;
            topic.cut(takes, invoked)?;
        }
        for topic in &mut self.topics {
            while let Some(next) = topic.batches.front_mut() {
                outlet.append(&topic.name, next.partition, &mut next.batch).await?;
                topic.batches.pop_front();
            }
        }
        Ok(())
    }
}

impl OfTopic {
    /// Nothing of it is to be appended any more.
    fn is_left(&self) -> bool {
        self.uncut.is_empty() && self.batches.is_empty()
    }

    /// Cuts what is not appended into batches, also anew: the topic may be another by now, or have other settings.
    fn cut(&mut self, takes: Takes, invoked: &Invoked<'_>) -> Result<(), OutputError> {
        let fits = |cut: &Cut| {
            cut.partition < takes.partition_count
                && cut.batch.size_bytes() <= takes.max_message_bytes
                && (!takes.needs_keys || cut.records.iter().all(|record| record.key.is_some()))
        };
        if self.uncut.is_empty() && self.batches.iter().all(fits) {
            return Ok(());
        }
        let cut = std::mem::take(&mut self.batches).into_iter().flat_map(|cut| cut.records);
        let left: Vec<Output> = cut.chain(std::mem::take(&mut self.uncut)).collect();
        self.batches = batches(&self.name, takes, invoked, left)?;
        Ok(())
    }
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
    name: &TopicName,
    takes: Takes,
    invoked: &Invoked<'_>,
    outputs: Vec<Output>,
) -> Result<VecDeque<Cut>, OutputError> {
    let Takes { partition_count: count, max_message_bytes: allowed, needs_keys } = takes;
    let mut full = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    for output in outputs {
        if needs_keys && output.key.is_none() {
            return Err(OutputError::WithoutKey { topic: name.clone(), place: output.place });
        }
        let partition =
            output.key.as_ref().map_or(invoked.partition % count, |key| partition_of_key(key.as_bytes(), count));
        let headers = headers(invoked, &output);
        let record = NewRecord {
            timestamp_ms: invoked.now_ms,
            key: output.key.as_deref().map(str::as_bytes),
            value: Some(&output.value),
            headers: &headers,
        };
        let index = open.iter().position(|open| open.partition == partition).unwrap_or_else(|| {
            open.push(Open::new(partition));
            open.len() - 1
        });
        let batch = &mut open[index];
        if !batch.builder.is_empty() && batch.builder.size_bytes_with(&record) > allowed {
            full.push(std::mem::replace(batch, Open::new(partition)));
        }
        let size_bytes = batch.builder.size_bytes_with(&record);
        if size_bytes > allowed || batch.builder.push(&record).is_err() {
            return Err(OutputError::TooLarge { topic: name.clone(), size_bytes, allowed });
        }
        batch.records.push(output);
    }
    let built = full.into_iter().chain(open).map(|Open { partition, builder, records }| {
        let size_bytes = builder.size_bytes();
        let batch = builder.finish().map_err(|_| OutputError::TooLarge { topic: name.clone(), size_bytes, allowed })?;
        Ok(Cut { partition, batch, records })
    });
    built.collect()
}

/// A batch that takes more.
struct Open {
    partition: u32,
    builder: BatchBuilder,
    records: Vec<Output>,
}

impl Open {
    fn new(partition: u32) -> Self {
        Self { partition, builder: BatchBuilder::new(BatchOptions::default()), records: Vec::new() }
    }
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
            ("[1, \"a\", {\"b\": 2}]", vec!["1", "\"a\"", "{\"b\": 2}"]),
            (" [ 123456789012345678901, 1.10 , null, [1]]\n", vec!["123456789012345678901", "1.10", "null", "[1]"]),
            (" {\"b\":0.12345678901234567890,\"a\":2}\n", vec!["{\"b\":0.12345678901234567890,\"a\":2}"]),
            ("ok", vec!["ok"]),
            ("[\"\\ud800\", 1]", vec!["[\"\\ud800\", 1]"]),
            ("[1e999]", vec!["[1e999]"]),
            ("{\"batchItemFailures\": []}", vec![]),
            ("{\"batchItemFailures\": [], \"more\": 1}", vec!["{\"batchItemFailures\": [], \"more\": 1}"]),
        ] {
            assert_eq!(texts(body), expected, "{body}");
        }
    }

    const INVOKED: Invoked<'_> = Invoked {
        id: "t/in/4/0",
        trigger: "t",
        function: "f",
        topic: "in",
        partition: 4,
        offsets: &[Offset::ZERO],
        attempts: 1,
        now_ms: 5,
        cause: None,
    };

    /// The partition of each batch, and what its records are.
    fn cut(takes: Takes, outputs: &[Output]) -> Result<Vec<(u32, Vec<String>)>, OutputError> {
        let value = |record: &tripline_storage::batch::RecordView<'_>| {
            String::from_utf8(record.value().unwrap_or_default().to_vec()).unwrap()
        };
        let batches = batches(&TopicName::new("out").unwrap(), takes, &INVOKED, outputs.to_vec())?;
        let of_batch = |Cut { partition, batch, .. }: Cut| {
            assert!(batch.size_bytes() <= takes.max_message_bytes);
            let set = batch.view().records(&tripline_storage::batch::BatchLimits::default()).unwrap();
            (partition, set.iter().map(|record| value(&record.unwrap())).collect())
        };
        Ok(batches.into_iter().map(of_batch).collect())
    }

    fn output(key: Option<&str>, value: &str) -> Output {
        Output { key: key.map(str::to_owned), value: value.into(), is_event: false, place: 1 }
    }

    #[test]
    fn keyed_records_go_where_their_key_belongs_and_others_where_their_window_comes_from() {
        let takes = Takes { partition_count: 3, max_message_bytes: 1000, needs_keys: false };
        let outputs = [output(None, "a"), output(Some("k"), "b"), output(None, "c"), output(Some("k"), "d")];
        let keyed = partition_of_key(b"k", 3);
        assert_ne!(keyed, 4 % 3, "else this test says nothing");
        let expected = [(4 % 3, vec!["a".to_owned(), "c".to_owned()]), (keyed, vec!["b".to_owned(), "d".to_owned()])];
        assert_eq!(cut(takes, &outputs).unwrap(), expected);
    }

    #[test]
    fn batches_stay_below_what_the_topic_takes_and_one_record_that_does_not_fit_is_refused() {
        let value = "v".repeat(100);
        let outputs = vec![output(None, &value); 5];
        let takes = Takes { partition_count: 1, max_message_bytes: 300, needs_keys: false };
        let counts: Vec<usize> = cut(takes, &outputs).unwrap().into_iter().map(|(_, records)| records.len()).collect();
        assert_eq!(counts, [2, 2, 1]);
        let takes = Takes { max_message_bytes: 150, ..takes };
        let refused = cut(takes, &outputs).unwrap_err();
        assert!(matches!(refused, OutputError::TooLarge { size_bytes: 151.., allowed: 150, .. }), "{refused}");
    }

    #[test]
    fn a_compacted_topic_takes_results_with_a_key_alone_and_the_refusal_says_which_has_none() {
        let event = r#"{"specversion":"1.0","id":"1","source":"s","type":"t","partitionkey":"k"}"#;
        let takes = Takes { partition_count: 1, max_message_bytes: 1000, needs_keys: true };
        assert_eq!(cut(takes, &results(format!("[{event},{event}]").as_bytes())).unwrap().len(), 1);
        let refused = cut(takes, &results(format!("[{event},7]").as_bytes())).unwrap_err();
        assert!(refused.to_string().starts_with("result 2 has no key"), "{refused}");
        assert!(refused.to_string().contains("topic out is compacted"), "{refused}");
    }

    #[test]
    fn what_is_cut_anew_is_what_is_not_appended() {
        let values = ["a", "b", "c"].map(|value| value.repeat(100));
        let uncut = values.iter().map(|value| output(None, value)).collect();
        let mut topic = OfTopic { name: TopicName::new("out").unwrap(), uncut, batches: VecDeque::new() };
        let takes = Takes { partition_count: 3, max_message_bytes: 300, needs_keys: false };
        topic.cut(takes, &INVOKED).unwrap();
        let appended = topic.batches.pop_front().unwrap();
        assert_eq!((appended.partition, appended.records.len()), (4 % 3, 2));
        // The same again changes nothing, fewer partitions do.
        topic.cut(takes, &INVOKED).unwrap();
        assert_eq!(topic.batches[0].partition, 1);
        topic.cut(Takes { partition_count: 1, ..takes }, &INVOKED).unwrap();
        let left: Vec<_> = topic.batches.iter().map(|cut| (cut.partition, cut.records.clone())).collect();
        assert_eq!(left, [(0, vec![output(None, &values[2])])]);
        // A topic that is compacted by now takes no record without a key.
        let compacted = Takes { partition_count: 1, needs_keys: true, ..takes };
        let refused = topic.cut(compacted, &INVOKED).unwrap_err();
        assert_eq!(refused.fails_attempt(), Some("result-without-key"), "{refused}");
        topic.batches.clear();
        assert!(topic.is_left());
    }

    #[test]
    fn what_is_told_of_a_success_has_the_answer_as_it_was() {
        let destinations =
            Destinations { on_success: Some(TopicName::new("told").unwrap()), ..Destinations::default() };
        for (body, payload) in [
            ("{\"b\":123456789012345678901,\"a\":1.10}", "{\"b\":123456789012345678901,\"a\":1.10}"),
            ("", "\"\""),
            ("1e999", "\"1e999\""),
            ("no \"json\"", "\"no \\\"json\\\"\""),
        ] {
            let outputs = Outputs::of_success(&destinations, &INVOKED, body.as_bytes());
            let told = String::from_utf8(outputs.topics[0].uncut[0].value.clone()).unwrap();
            let expected = format!(
                concat!(
                    "{{\"version\":\"1.0\",\"timestamp\":\"1970-01-01T00:00:00.005Z\",\"requestContext\":{{",
                    "\"requestId\":\"t/in/4/0\",\"trigger\":\"t\",\"function\":\"f\",\"condition\":\"Success\",",
                    "\"approximateInvokeCount\":1}},\"requestPayload\":{{\"topic\":\"in\",\"partition\":4,",
                    "\"offsets\":[0]}},\"responseContext\":{{\"statusCode\":200}},\"responsePayload\":{}}}"
                ),
                payload
            );
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn an_event_keeps_its_key_and_its_type() {
        let event = r#"{"specversion":"1.0","id":"1","source":"s","type":"t","partitionkey":"k"}"#;
        let output = &results(event.as_bytes())[0];
        assert_eq!((output.key.as_deref(), output.is_event), (Some("k"), true));
        for other in [
            r#"{"specversion":"1.0","id":"1","partitionkey":"k"}"#,
            r#"{"specversion":"1.0","id":1,"source":"s","type":"t","partitionkey":"k"}"#,
            r#"{"specversion":"1.0","id":"","source":"s","type":"t","partitionkey":"k"}"#,
            r#"[["1.0","1","s","t","k"]]"#,
        ] {
            let other = &results(other.as_bytes())[0];
            assert_eq!((other.key.as_deref(), other.is_event), (None, false));
        }
        let twice = r#"{"specversion":"1.0","id":"0","id":"1","source":"s","type":"t","partitionkey":"k"}"#;
        assert_eq!(results(twice.as_bytes())[0].key.as_deref(), Some("k"));
        let numbered = r#"{"specversion":"1.0","id":"1","source":"s","type":"t","partitionkey":7}"#;
        let numbered = &results(numbered.as_bytes())[0];
        assert_eq!((numbered.key.as_deref(), numbered.is_event), (None, true));
    }
}
