//! Produce: appends in the order of the requests, waits for the disk behind them.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};
use tripline_storage::batch::{BatchError, BatchHeader};

use crate::broker::{Acks, Appended, ProduceError, Topic};
use crate::kafka::api::log_errors;
use crate::kafka::codec::{
    ProduceRequest, ProduceResponse, RequestHeader, StrBytes, Uuid, produce_request, produce_response,
};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::handler::{Answer, Response};
use crate::kafka::service::{KafkaService, Shared, partition_of, respond};

/// Versions that name topics by id.
const TOPIC_ID_SINCE: i16 = 13;
/// Appends of one request run at one go for about so long; then other tasks have their turn. Time and not bytes: what
/// a batch costs is decided by what it unpacks to.
const TURN_MAX: Duration = Duration::from_millis(1);
/// The longest that a client waits for the disk, whatever it says.
const TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// What became of one partition's batch.
struct Produced {
    partition: i32,
    result: Result<Appended, Refusal>,
}

struct ProducedTopic {
    name: StrBytes,
    id: Uuid,
    partitions: Vec<Produced>,
}

/// Why a batch was not appended.
struct Refusal {
    code: ErrorCode,
    /// Borrowed where it says the same of each of many partitions.
    reason: Cow<'static, str>,
    /// The record that is wrong, by its place in the batch.
    record: Option<i32>,
}

impl Refusal {
    fn new(code: ErrorCode, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { code, reason: reason.into(), record: None }
    }
}

pub(crate) async fn begin(service: &KafkaService, header: RequestHeader, request: ProduceRequest) -> Answer {
    let Some(acks) = acks(request.acks) else {
        let reason = format!("acks is {}, allowed are -1, 0 and 1", request.acks);
        let topics = refuse_all(request, ErrorCode::InvalidRequiredAcks, reason);
        return Answer::Now(finish(service, &header, topics));
    };
    if request.transactional_id.is_some() {
        let topics = refuse_all(request, ErrorCode::TransactionalIdAuthorizationFailed, "there are no transactions");
        return answer_now(service, acks, &header, topics);
    }
    let timeout = Duration::from_millis(request.timeout_ms.max(0).unsigned_abs().into()).min(TIMEOUT_MAX);
    let topics = append_all(service, header.api_version, request).await;
    if acks == Acks::All {
        let deadline = Instant::now() + timeout;
        let service = service.clone();
        return Answer::Later(
            async move {
                let topics = wait_all(topics, deadline).await;
                finish(&service, &header, topics)
            }
            .boxed(),
        );
    }
    answer_now(service, acks, &header, topics)
}

fn answer_now(service: &KafkaService, acks: Acks, header: &RequestHeader, topics: Vec<ProducedTopic>) -> Answer {
    if acks != Acks::None {
        return Answer::Now(finish(service, header, topics));
    }
    let mut results = topics.iter().flat_map(|topic| &topic.partitions);
    // Whoever asks for no answer learns of a failure only so, as with Kafka.
    Answer::Now(match results.find_map(|produced| produced.result.as_ref().err()) {
        Some(refusal) => {
            tracing::warn!(reason = %refusal.reason, "a batch without acknowledgement was refused");
            service.count_error(refusal.code);
            Response::Close("produce with acks=0 failed")
        }
        None => Response::Silence,
    })
}

const fn acks(acks: i16) -> Option<Acks> {
    match acks {
        0 => Some(Acks::None),
        1 => Some(Acks::Leader),
        -1 => Some(Acks::All),
        _ => None,
    }
}

fn refuse_all(request: ProduceRequest, code: ErrorCode, reason: impl Into<Cow<'static, str>>) -> Vec<ProducedTopic> {
    let reason = reason.into();
    let refuse = |partition: produce_request::PartitionProduceData| Produced {
        partition: partition.index,
        result: Err(Refusal::new(code, reason.clone())),
    };
    let topics = request.topic_data.into_iter();
    topics
        .map(|topic| ProducedTopic {
            name: topic.name,
            id: topic.topic_id,
            partitions: topic.partition_data.into_iter().map(refuse).collect(),
        })
        .collect()
}

async fn append_all(service: &Shared, version: i16, request: ProduceRequest) -> Vec<ProducedTopic> {
    let mut topics = Vec::with_capacity(request.topic_data.len());
    let mut turn = Instant::now();
    for data in request.topic_data {
        let topic = if version >= TOPIC_ID_SINCE {
            service.topic_by_id(data.topic_id).ok_or(ErrorCode::UnknownTopicId)
        } else {
            service.broker.topic(&data.name).ok_or(ErrorCode::UnknownTopicOrPartition)
        };
        let mut partitions = Vec::with_capacity(data.partition_data.len());
        for partition in data.partition_data {
            let records = partition.records.unwrap_or_default();
            let result = match &topic {
                Ok(topic) => append(service, topic, partition.index, records),
                Err(code) => Err(Refusal::new(*code, "there is no such topic")),
            };
            partitions.push(Produced { partition: partition.index, result });
            if turn.elapsed() >= TURN_MAX {
                tokio::task::yield_now().await;
                turn = Instant::now();
            }
        }
        topics.push(ProducedTopic { name: data.name, id: data.topic_id, partitions });
    }
    topics
}

fn append(service: &Shared, topic: &Topic, partition: i32, records: Bytes) -> Result<Appended, Refusal> {
    if let Err(code @ ErrorCode::UnknownTopicOrPartition) = partition_of(topic, partition) {
        let last = topic.partition_count() - 1;
        return Err(Refusal::new(code, format!("partition is {partition}, allowed are 0 to {last}")));
    }
    if records.is_empty() {
        return Err(Refusal::new(ErrorCode::InvalidRecord, "there is no record batch"));
    }
    if BatchHeader::parse(&records).is_ok_and(|header| header.attributes.is_transactional()) {
        let reason = "the batch belongs to a transaction; there are no transactions";
        return Err(Refusal::new(ErrorCode::TransactionalIdAuthorizationFailed, reason));
    }
    service.broker.append_client_batch(topic, partition.unsigned_abs(), records).map_err(|error| {
        tracing::debug!(topic = %topic.name(), partition, %error, "a batch was refused");
        Refusal { record: wrong_record(&error), ..Refusal::new(log_errors::produce(&error), error.to_string()) }
    })
}

/// The record that a batch was refused for, where there is one.
fn wrong_record(error: &ProduceError) -> Option<i32> {
    let index = match error {
        ProduceError::WithoutKey { index, .. } | ProduceError::Batch(BatchError::Record { index, .. }) => *index,
        _ => return None,
    };
    i32::try_from(index).ok()
}

async fn wait_all(mut topics: Vec<ProducedTopic>, deadline: Instant) -> Vec<ProducedTopic> {
    let produced = topics.iter_mut().flat_map(|topic| &mut topic.partitions);
    join_all(produced.map(|produced| wait(&mut produced.result, deadline))).await;
    topics
}

async fn wait(result: &mut Result<Appended, Refusal>, deadline: Instant) {
    let Ok(appended) = result else { return };
    let refusal = match timeout_at(deadline, appended.acknowledged(Acks::All)).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => Refusal::new(log_errors::flush(&error), error.to_string()),
        Err(_) => {
            Refusal::new(ErrorCode::RequestTimedOut, "appended, but not on disk within the time that the client allows")
        }
    };
    *result = Err(refusal);
}

fn finish(service: &KafkaService, header: &RequestHeader, topics: Vec<ProducedTopic>) -> Response {
    let by_id = header.api_version >= TOPIC_ID_SINCE;
    let responses = topics.into_iter().map(|topic| {
        let partition_responses = topic.partitions.into_iter().map(|produced| partition(service, produced)).collect();
        message!(produce_response::TopicProduceResponse {
            name: if by_id { StrBytes::default() } else { topic.name },
            topic_id: if by_id { topic.id } else { Uuid::ZERO },
            partition_responses: partition_responses,
        })
    });
    respond(header, &message!(ProduceResponse { responses: responses.collect() }))
}

fn partition(service: &Shared, produced: Produced) -> produce_response::PartitionProduceResponse {
    let index = produced.partition;
    match produced.result {
        Ok(appended) => message!(produce_response::PartitionProduceResponse {
            index: index,
            base_offset: appended.outcome.base_offset.get(),
            log_append_time_ms: appended.append_time_ms.unwrap_or(-1),
            log_start_offset: appended.outcome.log_start.get(),
        }),
        Err(refusal) => message!(produce_response::PartitionProduceResponse {
            index: index,
            error_code: service.count_error(refusal.code),
            base_offset: -1,
            log_append_time_ms: -1,
            log_start_offset: -1,
            record_errors: refusal.record.map(|index| record_error(index, &refusal.reason)).into_iter().collect(),
            error_message: Some(StrBytes::from(&*refusal.reason)),
        }),
    }
}

fn record_error(batch_index: i32, reason: &str) -> produce_response::BatchIndexAndErrorMessage {
    message!(produce_response::BatchIndexAndErrorMessage {
        batch_index: batch_index,
        batch_index_error_message: Some(StrBytes::from(reason)),
    })
}
