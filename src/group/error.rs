//! Why a request to a group fails, one enum per request.

use std::time::Duration;

use thiserror::Error;

use super::id::MemberId;

/// Why a member cannot be known.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum MemberError {
    /// The group has no such member.
    #[error("the group has no such member")]
    Unknown,
    /// Another member has taken over the instance id.
    #[error("another member has taken over this instance id")]
    Fenced,
}

/// Why a join fails.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum JoinError {
    /// The group belongs to a trigger.
    #[error("the group belongs to a trigger and takes no other members")]
    Reserved,
    /// The session time-out is out of bounds.
    #[error("session time-out {found:?}: {min:?} to {max:?} are allowed")]
    SessionTimeout {
        /// As asked for.
        found: Duration,
        /// Shortest allowed.
        min: Duration,
        /// Longest allowed.
        max: Duration,
    },
    /// The member is to join again under this id.
    #[error("join again as {0}")]
    MemberIdRequired(MemberId),
    /// No such member, or its instance id was taken over.
    #[error("{0}")]
    Member(#[from] MemberError),
    /// The member offers no protocol that all others have, or another protocol type.
    #[error("no protocol in common with the other members")]
    InconsistentProtocol,
    /// The group has as many members as it may.
    #[error("the group has {0} members, the most allowed")]
    Full(usize),
    /// Something is longer than allowed.
    #[error("{what}: {found}, at most {max} are allowed")]
    TooMuch {
        /// What.
        what: &'static str,
        /// How much of it.
        found: usize,
        /// How much is allowed.
        max: usize,
    },
    /// The same member asked again, and the later request stands.
    #[error("a later join of the same member took the place of this one")]
    Superseded,
    /// As many groups as may be kept all have members.
    #[error("there are {0} groups with members, the most allowed")]
    TooManyGroups(usize),
    /// All groups together hold as much as they may.
    #[error("all groups would hold {found} bytes together, at most {max} are allowed")]
    NoRoom {
        /// With this one.
        found: usize,
        /// The most allowed.
        max: usize,
    },
}

/// Why a sync fails.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SyncError {
    /// No such member, or its instance id was taken over.
    #[error("{0}")]
    Member(#[from] MemberError),
    /// The generation is not the current one.
    #[error("generation {found}, the group is at {current}")]
    Generation {
        /// As sent.
        found: i32,
        /// Of the group.
        current: i32,
    },
    /// The protocol is not the one chosen.
    #[error("another protocol than the one chosen")]
    InconsistentProtocol,
    /// The group is rebalancing: join again.
    #[error("the group is rebalancing")]
    Rebalancing,
    /// The assignment is longer than allowed.
    #[error("assignment of {found} bytes: at most {max} are allowed")]
    TooLong {
        /// Its length.
        found: usize,
        /// The longest allowed.
        max: usize,
    },
    /// All groups together hold as much as they may.
    #[error("all groups would hold {found} bytes together, at most {max} are allowed")]
    NoRoom {
        /// With this assignment.
        found: usize,
        /// The most allowed.
        max: usize,
    },
}

/// Why a heartbeat fails.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum HeartbeatError {
    /// No such member, or its instance id was taken over.
    #[error("{0}")]
    Member(#[from] MemberError),
    /// The generation is not the current one.
    #[error("generation {found}, the group is at {current}")]
    Generation {
        /// As sent.
        found: i32,
        /// Of the group.
        current: i32,
    },
    /// The group is rebalancing: join again.
    #[error("the group is rebalancing")]
    Rebalancing,
}

/// Why a commit is refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum CommitError {
    /// The group belongs to a trigger.
    #[error("the group belongs to a trigger")]
    Reserved,
    /// No such member, or its instance id was taken over.
    #[error("{0}")]
    Member(#[from] MemberError),
    /// The generation is not the current one.
    #[error("generation {found}, the group is at {current}")]
    Generation {
        /// As sent.
        found: i32,
        /// Of the group.
        current: i32,
    },
    /// There is no such group, and the commit names a member of it.
    #[error("there is no such group")]
    NoSuchGroup,
    /// The next generation is there and the member has not seen its assignment yet.
    #[error("the group is rebalancing")]
    Rebalancing,
    /// As many groups as may be kept all have members.
    #[error("there are {0} groups with members, the most allowed")]
    TooManyGroups(usize),
}

/// Why a group cannot be deleted.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum DeleteError {
    /// It belongs to a trigger.
    #[error("the group belongs to a trigger")]
    Reserved,
    /// It has members.
    #[error("the group has {0} members")]
    NotEmpty(usize),
}
