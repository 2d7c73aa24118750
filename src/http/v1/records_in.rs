//! Records in: JSON, CloudEvents, or one raw record.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};
use tripline_storage::batch::{BatchBuilder, BatchOptions, BuildError, CheckedBatch, NewRecord};
use tripline_storage::error::AppendError;

use super::topics::topic_name;
use crate::broker::{Acks, Broker, Topic, now_ms};
use crate::event::{BATCH_TYPE, STRUCTURED_TYPE};
use crate::http::at_most::AtMost;
use crate::http::bodies;
use crate::http::cloud_events;
use crate::http::extract::{Segments, Upload, media_type, parse_json, unsupported};
use crate::http::limits::RECORDS_IN_MAX;
use crate::http::problem::Problem;
use crate::http::query::{Query, wrong};
use crate::http::record_json::{IncomingRecord, IncomingRecords};
use crate::http::rooms::Rooms;
use crate::topic::partitioner::partition_of_key;

/// Append records.
///
/// The media type says what the body is: `application/json` is `{"records": [{"key", "value", "headers", "partition",
/// "timestamp"}]}`; CloudEvents come in binary, structured or batch mode; everything else is one raw record.
#[utoipa::path(post, path = "/v1/topics/{topic}/records", tag = "records", request_body(
    description = "One raw record, unless its media type says more: binary CloudEvents have `ce-*` headers",
    content(
        (bodies::RecordsBody = "application/json"),
        (bodies::CloudEventBody = "application/cloudevents+json"),
        (Vec<bodies::CloudEventBody> = "application/cloudevents-batch+json"),
        (Vec<u8> = "*/*"),
    ),
), params(
    ("topic" = String, Path, description = "The topic; made if it is missing and topics may be made so"),
    ("acks" = Option<String>, Query, description = "all (default): on disk; 1: in the page cache; 0: not waited for"),
    ("partition" = Option<u32>, Query, description = "For records that do not name one themselves"),
    ("key" = Option<String>, Query, description = "For a raw record"),
), responses((status = 200, description = "Where the records are"), (status = "4XX", description = "Problem details")))]
pub(crate) async fn append(
    State(rooms): State<Rooms>,
    Segments(topic): Segments<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    Upload(body): Upload,
) -> Result<Response, Problem> {
    let query = Query::parse(query.as_deref(), &["acks", "partition", "key"])?;
    let acks = acks(&query)?;
    let partition = query.number("partition", 0, u32::MAX)?;
    let mut records = incoming(&headers, &body)?;
    for record in &mut records {
        record.partition = record.partition.or(partition);
        if let Some(key) = query.text("key") {
            record.key = record.key.take().or_else(|| Some(key.as_bytes().to_vec()));
        }
    }
    let topic = topic_to_write(&rooms.broker, &topic).await?;
    let positions = append_all(&rooms.broker, &topic, &records, acks).await?;
    rooms.counts.records_in(topic.name().as_str(), records.len() as u64, body.len() as u64);
    Ok((StatusCode::OK, Json(json!({ "records": positions }))).into_response())
}

fn acks(query: &Query) -> Result<Acks, Problem> {
    match query.text("acks") {
        None | Some("all" | "-1") => Ok(Acks::All),
        Some("1") => Ok(Acks::Leader),
        Some("0") => Ok(Acks::None),
        Some(other) => Err(wrong("acks", other, "all, 1 or 0")),
    }
}

async fn topic_to_write(broker: &Broker, name: &str) -> Result<std::sync::Arc<Topic>, Problem> {
    let name = topic_name(name)?;
    // By its name: whether it is there already does not matter.
    if name.is_internal() {
        let detail = format!("topic {name} belongs to the broker; it can be read but not written");
        return Err(Problem::new(StatusCode::FORBIDDEN, "internal-topic", detail));
    }
    let topic = broker.topic_or_create(&name).await?;
    topic.ok_or_else(|| Problem::not_found("topic", "unknown-topic", name.as_str()))
}

/// The records of a request, by its media type.
fn incoming(headers: &HeaderMap, body: &[u8]) -> Result<Vec<IncomingRecord>, Problem> {
    let media_type = media_type(headers);
    match media_type.as_deref() {
        Some(STRUCTURED_TYPE) => Ok(vec![cloud_events::structured(body)?]),
        Some(BATCH_TYPE) => {
            let events = cloud_events::events_of(body)?;
            few_enough(&events)?;
            cloud_events::batched(&events.items)
        }
        _ if cloud_events::is_binary(headers) => Ok(vec![cloud_events::binary(headers, body)?]),
        Some("application/json") => {
            let written: IncomingRecords = parse_json(body)?;
            few_enough(&written.records)?;
            written.check()
        }
        Some(other) if other.starts_with("application/cloudevents") => {
            Err(unsupported(Some(other), &format!("{STRUCTURED_TYPE}, {BATCH_TYPE}, or ce-* headers")))
        }
        // What curl says of anything that it was not told about: nobody means it.
        Some(form @ "application/x-www-form-urlencoded") => Err(unsupported(
            Some(form),
            "application/json, CloudEvents, or any type but this for one raw record; with curl: -H 'content-type: application/json'",
        )),
        Some(_) => Ok(vec![raw(headers, body)]),
        None => Err(unsupported(None, "application/json, CloudEvents, or any other type for one raw record")),
    }
}

fn few_enough<T>(records: &AtMost<RECORDS_IN_MAX, T>) -> Result<(), Problem> {
    if (1..=RECORDS_IN_MAX).contains(&records.found) {
        return Ok(());
    }
    let detail = format!("found {} records, allowed are 1 to {RECORDS_IN_MAX}", records.found);
    Err(Problem::bad_request("invalid-records", detail).with("limit", RECORDS_IN_MAX))
}

fn raw(headers: &HeaderMap, body: &[u8]) -> IncomingRecord {
    let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes().to_vec());
    let headers = vec![("content-type".to_owned(), content_type)];
    IncomingRecord { value: Some(body.to_vec()), headers, ..IncomingRecord::default() }
}

/// Appends all records; none of them if one cannot be for a reason that is known before. Answers their places, in their
/// order.
pub(crate) async fn append_all(
    broker: &Broker,
    topic: &Topic,
    records: &[IncomingRecord],
    acks: Acks,
) -> Result<Vec<Value>, Problem> {
    check_keys(topic, records)?;
    let by_partition = assign(topic, records)?;
    let mut batches = Vec::new();
    for (partition, indexes) in &by_partition {
        for (indexes, batch) in build(topic, records, indexes)? {
            batches.push((*partition, indexes, batch));
        }
    }
    // What is refused is to be refused as a whole, as far as that can be seen.
    for (partition, _, _) in &batches {
        if let Some(cause) = topic.partition(*partition)?.stopped() {
            return Err(AppendError::Stopped(cause.clone()).into());
        }
    }
    let mut positions = vec![Value::Null; records.len()];
    let mut waiting = Vec::with_capacity(batches.len());
    for (partition, indexes, batch) in batches {
        let appended = broker.append(topic, partition, batch).map_err(|error| partly(error.into(), &positions))?;
        for (offset, index) in (appended.outcome.base_offset.get()..).zip(indexes) {
            positions[index] = json!({ "partition": partition, "offset": offset });
        }
        waiting.push(appended);
    }
    for appended in waiting {
        appended.acknowledged(acks).await?;
    }
    Ok(positions)
}

/// What is told where records of a partition cannot be appended, and others were already: which.
fn partly(problem: Problem, positions: &[Value]) -> Problem {
    let appended = positions.iter().filter(|position| !position.is_null()).count();
    if appended == 0 {
        return problem;
    }
    let all = positions.len();
    let detail = format!("{appended} of {all} records are appended, as `records` says; the others: {}", problem.detail);
    Problem { detail, ..problem }.with("records", positions)
}

/// Before anything is appended, and by the record's place in the request.
fn check_keys(topic: &Topic, records: &[IncomingRecord]) -> Result<(), Problem> {
    if !topic.with_config(|config| config.cleanup_policy.compacts()) {
        return Ok(());
    }
    let Some(index) = records.iter().position(|record| record.key.is_none()) else { return Ok(()) };
    let detail = format!(
        "records[{index}] has no key; topic {} is compacted and needs one in every record: name it as `key`",
        topic.name()
    );
    Err(Problem::bad_request("key-missing", detail).with("record", index))
}

/// Which records go to which partition: as told, else by key, else all to one partition that takes records, another one
/// each time.
fn assign(topic: &Topic, records: &[IncomingRecord]) -> Result<BTreeMap<u32, Vec<usize>>, Problem> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let partitions = topic.partition_count();
    let without_key = topic.taking_from(NEXT.fetch_add(1, Ordering::Relaxed) % partitions);
    let mut by_partition = BTreeMap::<u32, Vec<usize>>::new();
    for (index, record) in records.iter().enumerate() {
        let partition = match (record.partition, &record.key) {
            (Some(partition), _) if partition >= partitions => {
                let last = partitions - 1;
                let detail = format!("topic {} has partitions 0 to {last}, found {partition}", topic.name());
                return Err(Problem::new(StatusCode::NOT_FOUND, "unknown-partition", detail));
            }
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_of_key(key, partitions),
            (None, None) => without_key,
        };
        by_partition.entry(partition).or_default().push(index);
    }
    Ok(by_partition)
}

type Built = (Vec<usize>, CheckedBatch);

/// As few batches as the topic's limit allows.
fn build(topic: &Topic, records: &[IncomingRecord], indexes: &[usize]) -> Result<Vec<Built>, Problem> {
    let limit_bytes = topic.with_config(|config| config.max_message_bytes) as usize;
    let now_ms = now_ms();
    let mut built = Vec::new();
    let mut builder = BatchBuilder::new(BatchOptions::default());
    let mut taken = Vec::new();
    for &index in indexes {
        let record = &records[index];
        let headers: Vec<(&[u8], Option<&[u8]>)> =
            record.headers.iter().map(|(name, value)| (name.as_bytes(), value.as_deref())).collect();
        let record = NewRecord {
            timestamp_ms: record.timestamp_ms.unwrap_or(now_ms),
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &headers,
        };
        if !builder.is_empty() && builder.size_bytes_with(&record) > limit_bytes {
            let full = std::mem::replace(&mut builder, BatchBuilder::new(BatchOptions::default()));
            built.push((std::mem::take(&mut taken), full.finish().map_err(refused)?));
        }
        let size_bytes = builder.size_bytes_with(&record);
        if size_bytes > limit_bytes {
            let detail = format!(
                "records[{index}] makes a batch of {size_bytes} bytes; `max.message.bytes` of topic {} allows {limit_bytes}",
                topic.name()
            );
            let problem = Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "records-too-large", detail);
            return Err(problem.with("limit_bytes", limit_bytes));
        }
        builder.push(&record).map_err(refused)?;
        taken.push(index);
    }
    built.push((taken, builder.finish().map_err(refused)?));
    Ok(built)
}

fn refused(error: BuildError) -> Problem {
    Problem::bad_request("invalid-records", error.to_string())
}

#[cfg(test)]
mod tests {
    use tripline_storage::fs::SimFs;
    use tripline_storage::fs::sim::Fault;

    use super::*;
    use crate::broker::BrokerConfig;
    use crate::topic::name::TopicName;
    use crate::topic::spec::{TopicConfig, TopicSpec};

    fn to(partition: u32) -> IncomingRecord {
        IncomingRecord { partition: Some(partition), value: Some(b"v".to_vec()), ..IncomingRecord::default() }
    }

    #[tokio::test]
    async fn records_for_a_stopped_partition_keep_those_for_others_out_as_well() {
        let disk = std::sync::Arc::new(SimFs::new());
        let (broker, _) = Broker::start_on(disk.clone(), BrokerConfig::new("/data")).unwrap();
        let spec = TopicSpec { name: TopicName::new("t").unwrap(), partitions: 2, config: TopicConfig::default() };
        let topic = broker.create_topic(spec).await.unwrap();
        disk.fail_from(disk.operations() + 1, Fault::Eio);
        append_all(&broker, &topic, &[to(1)], Acks::All).await.unwrap_err();
        disk.heal();
        let problem = append_all(&broker, &topic, &[to(0), to(1)], Acks::All).await.unwrap_err();
        assert_eq!(problem.code, "partition-stopped");
        let tail = || topic.partition(0).unwrap().tail().get();
        assert_eq!(tail(), 0, "what is said of the request is true of all of it");
        for appended in 1..=4 {
            let anywhere = IncomingRecord { partition: None, ..to(0) };
            append_all(&broker, &topic, &[anywhere], Acks::Leader).await.unwrap();
            assert_eq!(tail(), appended, "what may go anywhere goes where it is taken");
        }
    }

    #[test]
    fn what_was_appended_before_a_refusal_is_told() {
        let refusal = || Problem::from(AppendError::DiskFull);
        assert_eq!(partly(refusal(), &[Value::Null]), refusal());
        let positions = [json!({ "partition": 0, "offset": 7 }), Value::Null];
        let problem = partly(refusal(), &positions);
        assert!(problem.detail.starts_with("1 of 2 records are appended"), "{}", problem.detail);
        assert_eq!(problem.to_json()["records"], json!(positions));
    }
}
