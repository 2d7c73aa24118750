//! What goes wrong in groups, as Kafka's error codes: the one mapping.

use crate::group::error::{CommitError, DeleteError, HeartbeatError, JoinError, MemberError, SyncError};
use crate::kafka::error_code::ErrorCode;

/// For each answer that names a member.
#[must_use]
pub const fn member(error: MemberError) -> ErrorCode {
    match error {
        MemberError::Unknown => ErrorCode::UnknownMemberId,
        MemberError::Fenced => ErrorCode::FencedInstanceId,
    }
}

/// For JoinGroup. [`JoinError::MemberIdRequired`] also carries the member id of the response.
#[must_use]
pub const fn join(error: &JoinError) -> ErrorCode {
    match error {
        JoinError::Reserved => ErrorCode::GroupAuthorizationFailed,
        JoinError::SessionTimeout { .. } => ErrorCode::InvalidSessionTimeout,
        JoinError::MemberIdRequired(_) => ErrorCode::MemberIdRequired,
        JoinError::Member(error) => member(*error),
        JoinError::InconsistentProtocol => ErrorCode::InconsistentGroupProtocol,
        JoinError::Full(_) => ErrorCode::GroupMaxSizeReached,
        JoinError::TooMuch { .. } => ErrorCode::InvalidRequest,
        JoinError::Superseded => ErrorCode::RebalanceInProgress,
        JoinError::TooManyGroups(_) | JoinError::NoRoom { .. } => ErrorCode::CoordinatorNotAvailable,
    }
}

/// For SyncGroup.
#[must_use]
pub const fn sync(error: &SyncError) -> ErrorCode {
    match error {
        SyncError::Member(error) => member(*error),
        SyncError::Generation { .. } => ErrorCode::IllegalGeneration,
        SyncError::InconsistentProtocol => ErrorCode::InconsistentGroupProtocol,
        SyncError::Rebalancing => ErrorCode::RebalanceInProgress,
        SyncError::TooLong { .. } => ErrorCode::InvalidRequest,
        SyncError::NoRoom { .. } => ErrorCode::CoordinatorNotAvailable,
    }
}

/// For Heartbeat.
#[must_use]
pub const fn heartbeat(error: HeartbeatError) -> ErrorCode {
    match error {
        HeartbeatError::Member(error) => member(error),
        HeartbeatError::Generation { .. } => ErrorCode::IllegalGeneration,
        HeartbeatError::Rebalancing => ErrorCode::RebalanceInProgress,
    }
}

/// For OffsetCommit.
///
/// Members are forgotten at a restart: whoever commits as one in a group that is not there has to join again, and
/// UNKNOWN_MEMBER_ID says so. GROUP_ID_NOT_FOUND, which Kafka answers there, is fatal to its Java client.
#[must_use]
pub const fn commit(error: CommitError) -> ErrorCode {
    match error {
        CommitError::Reserved => ErrorCode::GroupAuthorizationFailed,
        CommitError::Member(error) => member(error),
        CommitError::NoSuchGroup => ErrorCode::UnknownMemberId,
        CommitError::Generation { .. } => ErrorCode::IllegalGeneration,
        CommitError::Rebalancing => ErrorCode::RebalanceInProgress,
        CommitError::TooManyGroups(_) => ErrorCode::CoordinatorNotAvailable,
    }
}

/// For DeleteGroups.
#[must_use]
pub const fn delete(error: DeleteError) -> ErrorCode {
    match error {
        DeleteError::Reserved => ErrorCode::GroupAuthorizationFailed,
        DeleteError::NotEmpty(_) => ErrorCode::NonEmptyGroup,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::id::MemberId;

    #[test]
    fn the_codes_are_kafkas() {
        assert_eq!(join(&JoinError::Reserved).code(), 30);
        assert_eq!(join(&JoinError::MemberIdRequired(MemberId::new("a", 1))).code(), 79);
        assert_eq!(join(&JoinError::Member(MemberError::Fenced)).code(), 82);
        assert_eq!(join(&JoinError::InconsistentProtocol).code(), 23);
        assert_eq!(join(&JoinError::Full(1)).code(), 81);
        assert_eq!(sync(&SyncError::Rebalancing).code(), 27);
        assert_eq!(sync(&SyncError::Member(MemberError::Unknown)).code(), 25);
        assert_eq!(heartbeat(HeartbeatError::Generation { found: 1, current: 2 }).code(), 22);
        assert_eq!(commit(CommitError::Generation { found: 1, current: 2 }).code(), 22);
        assert_eq!(commit(CommitError::NoSuchGroup).code(), 25);
        assert_eq!(delete(DeleteError::NotEmpty(2)).code(), 68);
    }
}
