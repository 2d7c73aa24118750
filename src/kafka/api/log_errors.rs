//! What goes wrong in topics and logs, as Kafka's error codes: the one mapping, without a wildcard arm.
//!
//! A code also tells the client whether to try again. What a second try cannot change gets a code that is not
//! retriable; what is wrong with the disk gets KAFKA_STORAGE_ERROR, which is.

use tripline_storage::batch::{BatchError, CodecError};
use tripline_storage::error::{AppendError, FlushError, ReadError, TrimError};
use tripline_storage::producer::SequenceError;

use crate::broker::{CreateTopicError, DeleteRecordsError, DeleteTopicError, NoPartition, ProduceError};
use crate::kafka::error_code::ErrorCode;

/// For whatever is asked of a partition.
#[must_use]
pub const fn partition(error: &NoPartition) -> ErrorCode {
    match error {
        NoPartition::Unknown { .. } => ErrorCode::UnknownTopicOrPartition,
        NoPartition::Offline { .. } => ErrorCode::KafkaStorageError,
    }
}

/// For Produce.
#[must_use]
pub const fn produce(error: &ProduceError) -> ErrorCode {
    match error {
        ProduceError::Batch(error) => batch(error),
        ProduceError::Append(error) => append(error),
        ProduceError::Flush(error) => flush(error),
        ProduceError::Partition(error) => partition(error),
        ProduceError::Internal(_) => ErrorCode::TopicAuthorizationFailed,
        ProduceError::WithoutKey { .. } => ErrorCode::InvalidRecord,
    }
}

/// For DeleteRecords.
#[must_use]
pub const fn delete_records(error: &DeleteRecordsError) -> ErrorCode {
    match error {
        DeleteRecordsError::Partition(error) => partition(error),
        DeleteRecordsError::Internal(_) => ErrorCode::TopicAuthorizationFailed,
        DeleteRecordsError::Compacted(_) => ErrorCode::PolicyViolation,
        DeleteRecordsError::Trim(TrimError::OutOfRange { .. }) => ErrorCode::OffsetOutOfRange,
        DeleteRecordsError::Trim(TrimError::Flush(_) | TrimError::Io(_)) => ErrorCode::KafkaStorageError,
    }
}

/// A batch that is not one. Only a CRC that differs speaks of the way here, and is worth another try.
#[must_use]
pub const fn batch(error: &BatchError) -> ErrorCode {
    match error {
        BatchError::Crc { .. } | BatchError::Truncated { .. } => ErrorCode::CorruptMessage,
        BatchError::UnsupportedMagic { .. } => ErrorCode::UnsupportedForMessageFormat,
        BatchError::TooLarge { .. } | BatchError::Codec(CodecError::OutputTooLarge { .. }) => {
            ErrorCode::MessageTooLarge
        }
        BatchError::TrailingBytes { .. }
        | BatchError::Field { .. }
        | BatchError::Record { .. }
        | BatchError::Codec(CodecError::Damaged { .. } | CodecError::TrailingBytes { .. }) => ErrorCode::InvalidRecord,
    }
}

const fn append(error: &AppendError) -> ErrorCode {
    match error {
        AppendError::Stopped(_) | AppendError::DiskFull | AppendError::NoDescriptors(_) => ErrorCode::KafkaStorageError,
        AppendError::TooLarge { .. } => ErrorCode::MessageTooLarge,
        AppendError::OutOfOffsets => ErrorCode::UnknownServerError,
        AppendError::Sequence(SequenceError::Duplicate { .. }) => ErrorCode::DuplicateSequenceNumber,
        AppendError::Sequence(SequenceError::OutOfOrder { .. }) => ErrorCode::OutOfOrderSequenceNumber,
        AppendError::Sequence(SequenceError::OldEpoch { .. }) => ErrorCode::InvalidProducerEpoch,
    }
}

/// For what waits for the disk.
#[must_use]
pub const fn flush(error: &FlushError) -> ErrorCode {
    match error {
        FlushError::Stopped(_) => ErrorCode::KafkaStorageError,
    }
}

/// For Fetch and ListOffsets. Damage is not retriable: a consumer that tried again would hang where it should tell.
#[must_use]
pub const fn read(error: &ReadError) -> ErrorCode {
    match error {
        ReadError::OutOfRange { .. } => ErrorCode::OffsetOutOfRange,
        ReadError::Damaged { .. } => ErrorCode::CorruptMessage,
        ReadError::Io(_) => ErrorCode::KafkaStorageError,
    }
}

/// For CreateTopics, and Metadata that creates.
#[must_use]
pub const fn create_topic(error: &CreateTopicError) -> ErrorCode {
    match error {
        CreateTopicError::Exists(_) => ErrorCode::TopicAlreadyExists,
        CreateTopicError::TooManyPartitions { .. } => ErrorCode::PolicyViolation,
        CreateTopicError::Log(_) | CreateTopicError::Journal(_) => ErrorCode::KafkaStorageError,
    }
}

/// For DeleteTopics. A topic whose files linger is deleted all the same.
#[must_use]
pub const fn delete_topic(error: &DeleteTopicError) -> ErrorCode {
    match error {
        DeleteTopicError::Unknown(_) => ErrorCode::UnknownTopicOrPartition,
        DeleteTopicError::InUse { .. } => ErrorCode::PolicyViolation,
        DeleteTopicError::Journal(_) => ErrorCode::KafkaStorageError,
        DeleteTopicError::Files { .. } => ErrorCode::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_kafkas() {
        let code = |error: AppendError| produce(&ProduceError::Append(error)).code();
        assert_eq!(code(AppendError::DiskFull), 56);
        assert_eq!(code(AppendError::TooLarge { size_bytes: 2, limit_bytes: 1 }), 10);
        assert_eq!(code(AppendError::OutOfOffsets), -1);
        assert_eq!(code(SequenceError::Duplicate { producer_id: 1, first: 0, last: 0 }.into()), 46);
        assert_eq!(code(SequenceError::OutOfOrder { producer_id: 1, expected: 0, found: 1 }.into()), 45);
        assert_eq!(code(SequenceError::OldEpoch { producer_id: 1, current: 1, found: 0 }.into()), 47);
        assert_eq!(batch(&BatchError::Crc { stored: 1, computed: 2 }).code(), 2);
        assert_eq!(batch(&BatchError::UnsupportedMagic { found: 1 }).code(), 43);
        assert_eq!(batch(&BatchError::TrailingBytes { found_bytes: 1 }).code(), 87);
        assert_eq!(produce(&ProduceError::Internal(String::new())).code(), 29);
        assert_eq!(produce(&ProduceError::WithoutKey { topic: String::new(), index: 0 }).code(), 87);
        assert_eq!(delete_records(&DeleteRecordsError::Compacted(String::new())).code(), 44);
        assert_eq!(create_topic(&CreateTopicError::Exists(String::new())).code(), 36);
        assert_eq!(delete_topic(&DeleteTopicError::Unknown(String::new())).code(), 3);
    }
}
