//! DescribeProducers: the idempotent producers that partitions remember.

use tripline_storage::producer::ProducerDescription;

use crate::kafka::codec::{DescribeProducersRequest, DescribeProducersResponse, StrBytes, describe_producers_response};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::service::{KafkaService, once_each_in, partition_of};

/// Most producers in one answer, of some 40 bytes each. Those of a partition, at most 10,000, are told whole or not.
const PRODUCERS_MAX: usize = 100_000;
/// Of a transaction: there is none. Of a sequence: its epoch has none yet.
const NONE: i32 = -1;

pub(crate) fn answer(service: &KafkaService, request: DescribeProducersRequest) -> DescribeProducersResponse {
    let mut room = PRODUCERS_MAX;
    let asked = request.topics.into_iter().map(|topic| (topic.name, topic.partition_indexes));
    let mut topics = Vec::new();
    for (name, indexes) in once_each_in(asked, |index| *index) {
        let topic = service.broker.topic(&name);
        let mut tell = |index| {
            let topic = topic.as_ref().ok_or(ErrorCode::UnknownTopicOrPartition);
            let producers = match topic.and_then(|topic| partition_of(topic, index)) {
                Ok(partition) => partition.producers(),
                Err(code @ ErrorCode::UnknownTopicOrPartition) => {
                    return failed(service, index, code, "there is no such partition".to_owned());
                }
                Err(code) => return failed(service, index, code, "the partition is offline".to_owned()),
            };
            match room.checked_sub(producers.len()) {
                Some(left) => room = left,
                None => {
                    let reason = format!("more than {PRODUCERS_MAX} producers: ask for fewer partitions at a time");
                    return failed(service, index, ErrorCode::InvalidRequest, reason);
                }
            }
            message!(describe_producers_response::PartitionResponse {
                partition_index: index,
                active_producers: producers.iter().map(told).collect(),
            })
        };
        let partitions = indexes.into_iter().map(&mut tell).collect();
        topics.push(message!(describe_producers_response::TopicResponse { name: name, partitions: partitions }));
    }
    message!(DescribeProducersResponse { topics: topics })
}

fn told(producer: &ProducerDescription) -> describe_producers_response::ProducerState {
    message!(describe_producers_response::ProducerState {
        producer_id: producer.id,
        producer_epoch: producer.epoch.into(),
        last_sequence: producer.last_sequence.unwrap_or(NONE),
        last_timestamp: producer.last_used_ms,
        coordinator_epoch: NONE,
        current_txn_start_offset: NONE.into(),
    })
}

fn failed(
    service: &KafkaService,
    index: i32,
    code: ErrorCode,
    reason: String,
) -> describe_producers_response::PartitionResponse {
    message!(describe_producers_response::PartitionResponse {
        partition_index: index,
        error_code: service.count_error(code),
        error_message: Some(StrBytes::from(reason)),
    })
}
