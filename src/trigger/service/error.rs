//! Why something was not done to a trigger.

use tripline_storage::Offset;

use crate::broker::journal::JournalError;
use crate::broker::{CreateTopicError, NoPartition};
use crate::config::fields::nearest;
use crate::function::DeployError;

/// Why a definition was not applied. Nothing has changed then, but a missing dead-letter topic may have been made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyTriggerError {
    /// The topic it reads does not exist, and topics are not made by themselves.
    #[error("trigger.input.{field}: topic {topic} does not exist; create it first")]
    UnknownTopic {
        /// Where it is named.
        field: &'static str,
        /// The topic.
        topic: String,
    },
    /// The function does not exist.
    #[error("trigger.function: function {0} does not exist; apply it first")]
    UnknownFunction(String),
    /// A function that is a transform step does not exist.
    #[error("trigger.transform: function {0} does not exist; apply it first")]
    UnknownStep(String),
    /// The function cannot take what the trigger hands it.
    #[error("{0}")]
    Unfit(String),
    /// The broker stops: what was waiting for its turn is not done any more.
    #[error("the broker stops; apply it again when it is back")]
    Stopping,
    /// An existing trigger would read none of its topics any more: all its progress would be lost.
    #[error(
        "trigger.input.{field}: found {found}, the trigger reads {current}; delete it first, or choose another name"
    )]
    OtherTopic {
        /// Where the new definition says what it reads.
        field: &'static str,
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
    /// The settings of the process name no such cluster.
    #[error("{0}")]
    UnknownCluster(UnknownCluster),
    /// The cluster did not do what was asked.
    #[error("trigger.input.cluster: {0}")]
    Cluster(String),
    /// A topic could not be made.
    #[error(transparent)]
    Topic(#[from] CreateTopicError),
    /// The function behind a URL is refused.
    #[error("trigger.function.http.url: {0}")]
    Deploy(#[from] DeployError),
    /// A partition that it would start in is offline.
    #[error("trigger.input: {0}")]
    Partition(#[from] NoPartition),
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

/// A cluster that the settings of the process do not name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("trigger.input.cluster.name: found {name:?}, allowed: {allowed}{suggestion}", allowed = self.allowed(), suggestion = self.suggestion())]
pub struct UnknownCluster {
    /// What the definition says.
    pub name: String,
    /// The names that there are.
    pub known: Vec<String>,
}

impl UnknownCluster {
    fn allowed(&self) -> String {
        if self.known.is_empty() {
            return "no name: this process has no [clusters.NAME] in its settings".to_owned();
        }
        format!("{} (as [clusters.NAME] in the settings of this process)", self.known.join(", "))
    }

    fn suggestion(&self) -> String {
        let near = nearest(&self.name, self.known.iter().map(String::as_str));
        near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
    }
}

/// Why it is not clear which partitions of a trigger are meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    /// It does not read this topic.
    #[error("topic: found {found}, trigger {trigger} reads {reads}")]
    OtherTopic {
        /// The trigger.
        trigger: String,
        /// What was asked for.
        found: String,
        /// What it reads.
        reads: String,
    },
    /// It reads several, and none is named.
    #[error("topic: found nothing, trigger {trigger} reads several topics; name one of {reads}")]
    SeveralTopics {
        /// The trigger.
        trigger: String,
        /// What it reads.
        reads: String,
    },
    /// It does not read this partition.
    #[error("partition: found {found}, trigger {trigger} reads 0 to {last} of topic {topic}")]
    OtherPartition {
        /// The trigger.
        trigger: String,
        /// The topic.
        topic: String,
        /// What was asked for.
        found: u32,
        /// The last that it reads.
        last: u32,
    },
    /// The partition is offline.
    #[error(transparent)]
    Partition(#[from] NoPartition),
    /// No topic matches its pattern yet.
    #[error("trigger {0} reads no topic yet")]
    NoTopicYet(String),
}

/// Why a trigger was not paused, resumed or made to skip.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TriggerError {
    /// There is none with this name.
    #[error("trigger {0} does not exist")]
    Unknown(String),
    /// It is not clear which of its topics is meant.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
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
    #[error("partition {topic}/{partition} of trigger {name} has offsets {log_start} to {tail}, found {found}")]
    Offset {
        /// The trigger.
        name: String,
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// What was asked for.
        found: Offset,
        /// The first offset that there is.
        log_start: Offset,
        /// One after the last.
        tail: Offset,
    },
    /// No partition has this offset.
    #[error("to: found {found}, no partition that trigger {name} reads goes beyond {tail}")]
    Beyond {
        /// The trigger.
        name: String,
        /// What was asked for.
        found: Offset,
        /// One after the last offset that any of them has.
        tail: Offset,
    },
    /// The partition is offline.
    #[error(transparent)]
    Partition(#[from] NoPartition),
    /// It does not read this topic.
    #[error("trigger {0} does not read that topic")]
    OtherTopic(String),
    /// It is not clear which of its topics is meant.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    /// Others are members of its group on a cluster: what they commit would overwrite the reset.
    #[error(
        "group trigger.{0} has other members: stop the processes that run the trigger besides this one, or delete it \
         there; a member that was killed stays for its session_timeout"
    )]
    Members(String),
    /// The commit was not answered, or in part.
    #[error("trigger.input.cluster: {0}; some of the offsets may be set: reset it again")]
    Unclear(String),
    /// It is not what it was when the offsets were looked up.
    #[error("trigger {0} changed meanwhile: try again")]
    Changed(String),
    /// The cluster did not do what was asked.
    #[error("trigger.input.cluster: {0}")]
    Cluster(String),
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
