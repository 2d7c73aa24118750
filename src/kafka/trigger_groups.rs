//! Groups that belong to triggers, as Kafka's tools see them.

use futures_util::future::BoxFuture;
use tripline_storage::Offset;
use uuid::Uuid;

use crate::trigger::service::{ResetTriggerError, TriggerService, TriggerState};

/// Kafka's name for what the members of such a group are.
pub const PROTOCOL_TYPE: &str = "trigger";
/// The one member of such a group while its trigger runs.
pub const MEMBER_ID: &str = "tripline";

/// An offset of one partition: topic, partition, the next offset to read.
pub type PartitionOffset = (Uuid, u32, Offset);

/// Why offsets of a trigger were not reset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResetError {
    /// There is no such trigger.
    #[error("there is no such trigger")]
    Unknown,
    /// It runs; only a paused trigger may be reset.
    #[error("the trigger is not paused")]
    Running,
    /// It could not be remembered.
    #[error("{0}")]
    Failed(String),
}

/// The triggers, as far as groups show them. Names are the triggers' own, without the prefix of the group.
pub trait TriggerGroups: Send + Sync + 'static {
    /// All triggers.
    fn names(&self) -> Vec<String>;

    /// Where the trigger stands, by partition; `None` if there is no such trigger.
    fn committed(&self, name: &str) -> Option<Vec<PartitionOffset>>;

    /// Whether the trigger is paused; `None` if there is no such trigger.
    fn paused(&self, name: &str) -> Option<bool>;

    /// Sets a paused trigger to other offsets. Durable when the future ends.
    fn reset<'a>(&'a self, name: &'a str, offsets: Vec<PartitionOffset>) -> BoxFuture<'a, Result<(), ResetError>>;

    /// A trigger that reads or writes this topic, so that the topic may not be deleted.
    fn user_of_topic(&self, topic: &str) -> Option<String>;
}

/// No triggers at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTriggers;

impl TriggerGroups for NoTriggers {
    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn committed(&self, _: &str) -> Option<Vec<PartitionOffset>> {
        None
    }

    fn paused(&self, _: &str) -> Option<bool> {
        None
    }

    fn reset<'a>(&'a self, _: &'a str, _: Vec<PartitionOffset>) -> BoxFuture<'a, Result<(), ResetError>> {
        Box::pin(async { Err(ResetError::Unknown) })
    }

    fn user_of_topic(&self, _: &str) -> Option<String> {
        None
    }
}

impl TriggerGroups for TriggerService {
    fn names(&self) -> Vec<String> {
        self.list().into_iter().map(|report| report.spec.name.to_string()).collect()
    }

    fn committed(&self, name: &str) -> Option<Vec<PartitionOffset>> {
        let (topic, report) = (self.topic_of(name)?, self.describe(name)?);
        Some(report.lanes.iter().map(|lane| (topic, lane.partition, lane.committed)).collect())
    }

    fn paused(&self, name: &str) -> Option<bool> {
        self.describe(name).map(|report| report.state == TriggerState::Paused)
    }

    fn reset<'a>(&'a self, name: &'a str, offsets: Vec<PartitionOffset>) -> BoxFuture<'a, Result<(), ResetError>> {
        Box::pin(async move {
            let topic = self.topic_of(name).ok_or(ResetError::Unknown)?;
            if offsets.iter().any(|(id, _, _)| *id != topic) {
                return Err(ResetError::Failed("the trigger does not read that topic".to_owned()));
            }
            let offsets: Vec<(u32, Offset)> = offsets.into_iter().map(|(_, partition, at)| (partition, at)).collect();
            Self::reset(self, name, &offsets).await.map_err(|error| match error {
                ResetTriggerError::Unknown(_) => ResetError::Unknown,
                ResetTriggerError::NotPaused(_) => ResetError::Running,
                other => ResetError::Failed(other.to_string()),
            })
        })
    }

    fn user_of_topic(&self, topic: &str) -> Option<String> {
        self.using_topic(topic)
    }
}
