//! DeleteRecords: moves the start of partitions.

use tripline_storage::Offset;

use super::log_errors;
use crate::broker::DeleteRecordsError;
use crate::kafka::codec::{
    DeleteRecordsRequest, DeleteRecordsResponse, StrBytes, delete_records_request, delete_records_response,
};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::service::{KafkaService, Shared};

/// Everything that there is.
const HIGH_WATERMARK: i64 = -1;

pub(crate) async fn answer(service: &KafkaService, request: DeleteRecordsRequest) -> DeleteRecordsResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for asked in request.topics {
        let mut partitions = Vec::with_capacity(asked.partitions.len());
        for partition in &asked.partitions {
            let deleted = delete(service, &asked.name, partition).await;
            partitions.push(message!(delete_records_response::DeleteRecordsPartitionResult {
                partition_index: partition.partition_index,
                low_watermark: deleted.map_or(-1, Offset::get),
                error_code: service.count_error(deleted.err().unwrap_or(ErrorCode::None)),
            }));
        }
        topics.push(message!(delete_records_response::DeleteRecordsTopicResult {
            name: asked.name,
            partitions: partitions,
        }));
    }
    message!(DeleteRecordsResponse { topics: topics })
}

async fn delete(
    service: &Shared,
    name: &StrBytes,
    asked: &delete_records_request::DeleteRecordsPartition,
) -> Result<Offset, ErrorCode> {
    let topic = service.broker.topic(name).ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let partition = u32::try_from(asked.partition_index).map_err(|_| ErrorCode::UnknownTopicOrPartition)?;
    let before = match asked.offset {
        HIGH_WATERMARK => None,
        offset => Some(Offset::new(offset).ok_or(ErrorCode::OffsetOutOfRange)?),
    };
    service.broker.delete_records(&topic, partition, before).await.map_err(|error: DeleteRecordsError| {
        tracing::debug!(topic = %topic.name(), partition, %error, "no records were deleted");
        log_errors::delete_records(&error)
    })
}
