//! Why something was not done to a trigger.

use tripline_storage::Offset;

use crate::broker::CreateTopicError;
use crate::broker::journal::JournalError;
use crate::function::DeployError;

/// Why a definition was not applied. Nothing has changed then, but a missing dead-letter topic may have been made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyTriggerError {
    /// The topic it reads does not exist, and topics are not made by themselves.
    #[error("trigger.input.topic: topic {0} does not exist; create it first")]
    UnknownTopic(String),
    /// The function does not exist.
    #[error("trigger.function: function {0} does not exist; apply it first")]
    UnknownFunction(String),
    /// A function that is a transform step does not exist.
    #[error("trigger.transform: function {0} does not exist; apply it first")]
    UnknownStep(String),
    /// The function cannot take what the trigger hands it.
    #[error("{0}")]
    Unfit(String),
    /// An existing trigger reads another topic: its progress would mean nothing there.
    #[error("trigger.input.topic: found {found}, the trigger reads {current}; delete it first, or choose another name")]
    OtherTopic {
        /// In the new definition.
        found: String,
        /// What it reads.
        current: String,
    },
    /// An existing trigger reads from somewhere else: its progress would mean nothing there.
    #[error(
        "trigger.input.cluster: an existing trigger does not move between this broker and a cluster; delete it first, or choose another name"
    )]
    OtherPlace,
    /// The cluster did not do what was asked.
    #[error("trigger.input.cluster: {0}")]
    Cluster(String),
    /// A topic could not be made.
    #[error(transparent)]
    Topic(#[from] CreateTopicError),
    /// The function behind a URL is refused.
    #[error("trigger.function.http.url: {0}")]
    Deploy(#[from] DeployError),
    /// The start position could not be looked up.
    #[error("trigger.input.start: {0}")]
    Start(#[from] tripline_storage::error::ReadError),
    /// It could not be remembered.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What is remembered of it does not read back.
    #[error("{0}")]
    Lane(String),
}

/// Why a trigger was not paused or resumed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TriggerError {
    /// There is none with this name.
    #[error("trigger {0} does not exist")]
    Unknown(String),
    /// It could not be remembered.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Why a trigger was not set to other offsets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResetTriggerError {
    /// There is none with this name.
    #[error("trigger {0} does not exist")]
    Unknown(String),
    /// It runs: its next commit would overwrite the reset.
    #[error("trigger {0} is not paused; pause it first")]
    NotPaused(String),
    /// It has no such partition, or the partition no such offset.
    #[error("partition {partition} of trigger {name} has offsets {log_start} to {tail}, found {found}")]
    Offset {
        /// The trigger.
        name: String,
        /// The partition.
        partition: u32,
        /// What was asked for.
        found: Offset,
        /// The first offset that there is.
        log_start: Offset,
        /// One after the last.
        tail: Offset,
    },
    /// It could not be remembered.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What is remembered of it does not read back.
    #[error("{0}")]
    Lane(String),
}

/// Why the triggers of the journal could not be started.
#[derive(Debug, thiserror::Error)]
#[error("trigger {name} in the state journal: {reason}")]
pub struct RestoreTriggerError {
    /// Its name.
    pub name: String,
    /// What is wrong.
    pub reason: String,
}
