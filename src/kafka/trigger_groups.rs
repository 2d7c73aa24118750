//! Groups that belong to triggers, as Kafka's tools see them. Names are the triggers' own, without the prefix of the
//! group.

use tripline_storage::Offset;
use uuid::Uuid;

use crate::broker::NoPartition;

use crate::group::id::GroupId;
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
    /// One of the partitions is offline.
    #[error("{0}")]
    Offline(NoPartition),
    /// It could not be remembered.
    #[error("{0}")]
    Failed(String),
}

/// The trigger that a group belongs to. The name alone is free: of a trigger that runs elsewhere and reads topics of
/// this broker as of a cluster, the group is one like any other here.
pub(crate) fn owner<'g>(triggers: &TriggerService, group: &'g GroupId) -> Option<&'g str> {
    group.trigger().filter(|name| triggers.is_here(name))
}

/// Whether a trigger is paused; `None` if there is no such trigger.
pub(crate) fn paused(triggers: &TriggerService, name: &str) -> Option<bool> {
    triggers.describe(name).map(|report| report.state == TriggerState::Paused)
}

/// Sets a paused trigger to other offsets. Durable on return.
pub(crate) async fn reset(
    triggers: &TriggerService,
    name: &str,
    offsets: Vec<PartitionOffset>,
) -> Result<(), ResetError> {
    triggers.reset(name, &offsets).await.map_err(|error| match error {
        ResetTriggerError::Unknown(_) => ResetError::Unknown,
        ResetTriggerError::NotPaused(_) => ResetError::Running,
        ResetTriggerError::Partition(error) => ResetError::Offline(error),
        other => ResetError::Failed(other.to_string()),
    })
}
