//! ListOffsets: the first, the last, or that of a time.

use std::sync::Arc;

use tripline_storage::batch::BatchView;
use tripline_storage::error::ReadError;
use tripline_storage::{LeaderEpoch, Offset, Partition};

use super::log_errors;
use crate::broker::Broker;
use crate::kafka::codec::{ListOffsetsRequest, ListOffsetsResponse, list_offsets_request, list_offsets_response};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::service::{KafkaService, Shared, once_each_in, partition_of};

/// One after the last offset.
const LATEST: i64 = -1;
/// The first offset.
const EARLIEST: i64 = -2;
/// The offset of the greatest timestamp.
const MAX_TIMESTAMP: i64 = -3;
/// The first offset that is on this node: with nothing elsewhere, the first.
const EARLIEST_LOCAL: i64 = -4;
const MAX_TIMESTAMP_SINCE: i16 = 7;
const EARLIEST_LOCAL_SINCE: i16 = 8;
/// Versions that tell the leader epoch of what was found.
const EPOCH_TOLD_SINCE: i16 = 4;

pub(crate) async fn answer(service: &KafkaService, request: ListOffsetsRequest, version: i16) -> ListOffsetsResponse {
    // To look for a time may read from the disk.
    let asked = request.topics.into_iter().map(|topic| (topic.name, topic.partitions));
    let asked = once_each_in(asked, |partition| partition.partition_index);
    let mut topics = Vec::with_capacity(asked.len());
    for (name, asked) in asked {
        let topic = service.broker.topic(&name);
        let mut partitions = Vec::with_capacity(asked.len());
        for asked in &asked {
            let partition = topic.as_ref().ok_or(ErrorCode::UnknownTopicOrPartition);
            let partition = partition.and_then(|topic| partition_of(topic, asked.partition_index));
            let found = match partition {
                Ok(partition) => find(service, partition, asked, version).await,
                Err(code) => Err(code),
            };
            partitions.push(told(service, asked.partition_index, found));
        }
        topics.push(message!(list_offsets_response::ListOffsetsTopicResponse { name: name, partitions: partitions }));
    }
    message!(ListOffsetsResponse { topics: topics })
}

fn told(
    service: &Shared,
    partition_index: i32,
    found: Result<Found, ErrorCode>,
) -> list_offsets_response::ListOffsetsPartitionResponse {
    let code = found.as_ref().err().copied().unwrap_or(ErrorCode::None);
    let found = found.unwrap_or(Found::NOTHING);
    message!(list_offsets_response::ListOffsetsPartitionResponse {
        partition_index: partition_index,
        error_code: service.count_error(code),
        timestamp: found.timestamp_ms,
        offset: found.offset,
        leader_epoch: found.leader_epoch,
    })
}

#[derive(Clone, Copy)]
struct Found {
    timestamp_ms: i64,
    offset: i64,
    leader_epoch: i32,
}

impl Found {
    const NOTHING: Self = Self { timestamp_ms: -1, offset: -1, leader_epoch: -1 };
}

async fn find(
    service: &Shared,
    partition: &Arc<Partition>,
    asked: &list_offsets_request::ListOffsetsPartition,
    version: i16,
) -> Result<Found, ErrorCode> {
    service.check_epoch(asked.current_leader_epoch)?;
    let read = |error| {
        tracing::debug!(partition = %partition.id(), %error, "an offset was not found");
        log_errors::read(&error)
    };
    let record = match asked.timestamp {
        LATEST => Some((partition.tail(), -1)),
        EARLIEST => Some((partition.log_start(), -1)),
        EARLIEST_LOCAL if version >= EARLIEST_LOCAL_SINCE => Some((partition.log_start(), -1)),
        MAX_TIMESTAMP if version >= MAX_TIMESTAMP_SINCE => of_max_timestamp(partition).await.map_err(read)?,
        timestamp_ms if timestamp_ms >= 0 => Broker::offset_for_time(partition, timestamp_ms).await.map_err(read)?,
        _ => return Err(ErrorCode::UnsupportedVersion),
    };
    let Some((offset, timestamp_ms)) = record else { return Ok(Found::NOTHING) };
    let leader_epoch = if version >= EPOCH_TOLD_SINCE { epoch_at(service, partition, offset).await } else { -1 };
    Ok(Found { timestamp_ms, offset: offset.get(), leader_epoch })
}

/// The epoch under which the record at `offset` was appended; at the tail, the one under which it would be. −1 where
/// its batch cannot be read: the offset is known all the same, and whoever starts there is told of the damage by the
/// fetch.
async fn epoch_at(service: &Shared, partition: &Arc<Partition>, offset: Offset) -> i32 {
    let current = service.broker.leader_epoch().get();
    if offset >= partition.tail() {
        return current;
    }
    match Broker::read(partition, offset, 1).await {
        Ok(outcome) => {
            let batch = BatchView::parse(&outcome.bytes).ok();
            batch.and_then(|(batch, _)| batch.header().leader_epoch).map_or(current, LeaderEpoch::get)
        }
        Err(error) => {
            tracing::debug!(partition = %partition.id(), %error, "an offset is told without its leader epoch");
            -1
        }
    }
}

/// The first record with the greatest timestamp.
///
/// "Is there a record at or after this time" is what the log answers fast, and the greatest timestamp is where the
/// answer changes: steps that double until there is none, then halving between.
async fn of_max_timestamp(partition: &Arc<Partition>) -> Result<Option<(Offset, i64)>, ReadError> {
    let Some(mut best) = Broker::offset_for_time(partition, 0).await? else { return Ok(None) };
    let mut step_ms = 1;
    // No record is as late as `none_from`.
    let mut none_from = loop {
        let from = best.1.saturating_add(step_ms);
        match Broker::offset_for_time(partition, from).await? {
            Some(later) if later.1 > best.1 => best = later,
            _ => break from,
        }
        step_ms = step_ms.saturating_mul(2);
    };
    while none_from > best.1.saturating_add(1) {
        let middle = best.1 + (none_from - best.1) / 2;
        match Broker::offset_for_time(partition, middle).await? {
            Some(later) => best = later,
            None => none_from = middle,
        }
    }
    Ok(Some(best))
}
