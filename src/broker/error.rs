//! What can go wrong, one enum per operation.

use std::fmt;

use tripline_storage::batch::BatchError;
use tripline_storage::error::{AppendError, FlushError, OpenLogError, OpenStoreError, TrimError};

use super::journal::{JournalError, ReplayError};

/// Why the broker did not start. The data directory is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The data directory cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenStoreError),
    /// A log cannot be opened.
    #[error(transparent)]
    Log(#[from] OpenLogError),
    /// The state journal cannot be read back.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The state journal takes no records.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A topic's settings in the journal are not known to this release.
    #[error("topic {name} in the state journal: {reason}")]
    Topic {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

/// Why there is no log to a partition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPartition {
    /// The topic has no such partition.
    #[error("topic {topic} has partitions 0 to {last}, found {found}")]
    Unknown {
        /// The topic.
        topic: String,
        /// Its last partition.
        last: u32,
        /// What was asked for.
        found: u32,
    },
    /// The disk did not give back what opening it needs, or had no room for it.
    #[error("{topic}/{partition} is offline since the start, and tried again {again}: {reason}")]
    Offline {
        /// The topic.
        topic: String,
        /// Which of its partitions.
        partition: u32,
        /// When.
        again: TriedAgain,
        /// What could not be read or kept, and how.
        reason: String,
    },
}

/// When a partition that is offline is tried again. In order: one that is tried later is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TriedAgain {
    /// When there was room, something else kept it from being opened, such as a want of descriptors: within minutes,
    /// without a start.
    Soon,
    /// There was no room for what has to be kept before its log goes on: as soon as there is, without a start.
    WithRoom,
    /// What a start needs could not be read.
    AtStart,
}

impl fmt::Display for TriedAgain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AtStart => "at the next start",
            Self::WithRoom => "when there is room",
            Self::Soon => "within minutes",
        })
    }
}

/// Why a topic was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateTopicError {
    /// There is one with this name.
    #[error("topic {0} exists already")]
    Exists(String),
    /// Too many partitions in all.
    #[error("{wanted} more partitions would make {total}, allowed are {limit} in all topics together")]
    TooManyPartitions {
        /// Partitions of the new topic.
        wanted: u32,
        /// What that would make.
        total: usize,
        /// The limit.
        limit: usize,
    },
    /// The logs could not be made.
    #[error(transparent)]
    Log(#[from] OpenLogError),
    /// It could not be remembered.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl CreateTopicError {
    /// Whether the topic may be there after the next start all the same.
    pub(super) const fn may_be_remembered(&self) -> bool {
        match self {
            Self::Journal(error) => {
                !matches!(error, JournalError::Append(AppendError::DiskFull | AppendError::NoDescriptors(_)))
            }
            _ => false,
        }
    }
}

/// Why a topic was not deleted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeleteTopicError {
    /// There is none with this name.
    #[error("topic {0} does not exist")]
    Unknown(String),
    /// Something reads or writes it.
    #[error("topic {name} is used by {kind} {user}; delete the {kind} first")]
    InUse {
        /// The topic.
        name: String,
        /// `trigger` or `schedule`.
        kind: &'static str,
        /// The name of the one that uses it.
        user: String,
    },
    /// It could not be remembered.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The files could not be removed; the topic is gone all the same, the files go at the next start.
    #[error("the files of topic {name} could not all be removed: {cause}")]
    Files {
        /// The topic.
        name: String,
        /// How.
        cause: std::io::Error,
    },
}

/// Why a batch was not appended, or not made durable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProduceError {
    /// It is no batch that may be appended.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The log did not take it.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// It was appended but is not known to be on disk.
    #[error(transparent)]
    Flush(#[from] FlushError),
    /// There is no such partition, or it is offline.
    #[error(transparent)]
    Partition(#[from] NoPartition),
    /// The topic belongs to the broker.
    #[error("topic {0} belongs to the broker; it can be read but not written")]
    Internal(String),
    /// A compacted topic could never let go of such a record.
    #[error("record {index} of the batch has no key; topic {topic} is compacted and needs one in every record")]
    WithoutKey {
        /// The topic.
        topic: String,
        /// The first such record's place in the batch, from 0.
        index: u32,
    },
}

/// Why no records were deleted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeleteRecordsError {
    /// There is no such partition, or it is offline.
    #[error(transparent)]
    Partition(#[from] NoPartition),
    /// The topic belongs to the broker.
    #[error("topic {0} belongs to the broker")]
    Internal(String),
    /// The newest record of each key stays in a topic that is only compacted.
    #[error(
        "topic {0} is compacted: records go with a newer one of their key; to delete by offset, set cleanup.policy to compact,delete"
    )]
    Compacted(String),
    /// The log did not do it.
    #[error(transparent)]
    Trim(#[from] TrimError),
}
