//! One member of a group, and what members ask and are told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::id::{InstanceId, MemberId};

/// Names one waiting answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A way to assign partitions that a member offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Such as `range`.
    pub name: Arc<str>,
    /// What the member tells the leader: its subscription, as a rule.
    pub metadata: Bytes,
}

/// What a member takes besides what it brings: its place in the tables, and its ids there.
pub(super) const MEMBER_BYTES: usize = 1024;
/// What an id takes that was only given out.
pub(super) const PENDING_BYTES: usize = 512;

/// Length of names and metadata, in bytes.
pub(super) fn metadata_bytes(protocols: &[Protocol]) -> usize {
    protocols.iter().map(|protocol| protocol.name.len() + protocol.metadata.len()).sum()
}

/// A member asks to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRequest {
    /// The id that it was given before; none on the first join.
    pub member_id: Option<String>,
    /// The id that it gets if it needs one.
    pub candidate_id: MemberId,
    /// Its static name.
    pub instance_id: Option<InstanceId>,
    /// The client id of its connection.
    pub client_id: String,
    /// The address of its connection.
    pub client_host: String,
    /// Without a heartbeat for so long, it counts as dead.
    pub session_timeout: Duration,
    /// How long a rebalance waits for it to join again; the session time-out if none is given.
    pub rebalance_timeout: Option<Duration>,
    /// What kind of members the group has, such as `consumer`.
    pub protocol_type: String,
    /// What it offers, best first.
    pub protocols: Vec<Protocol>,
    /// A new member is to be given its id first and to join with it (JoinGroup 4 and later).
    pub id_required: bool,
    /// It understands that it leads and need not assign anew (JoinGroup 9 and later).
    pub may_skip_assignment: bool,
}

/// What a member is told after a join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinAnswer {
    /// The generation it is a member of.
    pub generation: i32,
    /// What kind of members the group has.
    pub protocol_type: Arc<str>,
    /// The protocol chosen.
    pub protocol: Arc<str>,
    /// Who assigns.
    pub leader: MemberId,
    /// The member's own id.
    pub member_id: MemberId,
    /// The leader need not assign: the assignment stands.
    pub skip_assignment: bool,
    /// For the leader: all members.
    pub members: Vec<JoinedMember>,
}

/// What the leader is told of each member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedMember {
    /// Its id.
    pub member_id: MemberId,
    /// Its static name.
    pub instance_id: Option<InstanceId>,
    /// Its metadata for the protocol chosen.
    pub metadata: Bytes,
}

/// Who speaks, and of which generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speaker {
    /// Its id.
    pub member_id: String,
    /// Its static name.
    pub instance_id: Option<String>,
    /// The generation that it believes in; negative for none.
    pub generation: i32,
}

impl JoinRequest {
    /// What a member that says this takes in memory, about.
    pub(super) fn held_bytes(&self) -> usize {
        let names = self.client_id.len() + self.client_host.len() + self.candidate_id.as_str().len();
        MEMBER_BYTES + names + self.protocols.len() * size_of::<Protocol>() + metadata_bytes(&self.protocols)
    }
}

impl SyncRequest {
    /// Of the assignments that it brings.
    pub(super) fn assignment_bytes(&self) -> usize {
        self.assignments.iter().map(|(id, assignment)| id.len() + assignment.len()).sum()
    }
}

/// A member asks for its assignment; the leader brings all assignments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncRequest {
    /// Who.
    pub speaker: Speaker,
    /// The protocol type that it believes in (SyncGroup 5).
    pub protocol_type: Option<String>,
    /// The protocol that it believes in (SyncGroup 5).
    pub protocol: Option<String>,
    /// By member id.
    pub assignments: Vec<(String, Bytes)>,
}

/// What a member is told after a sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncAnswer {
    /// What kind of members the group has.
    pub protocol_type: Arc<str>,
    /// The protocol chosen.
    pub protocol: Arc<str>,
    /// The member's part, as its leader wrote it.
    pub assignment: Bytes,
}

/// One who leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaver {
    /// Its id; none when only the static name is known.
    pub member_id: Option<String>,
    /// Its static name.
    pub instance_id: Option<String>,
}

/// A member, as the group keeps it.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) id: MemberId,
    pub(super) instance_id: Option<InstanceId>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    pub(super) session_timeout: Duration,
    pub(super) rebalance_timeout: Duration,
    pub(super) protocols: Vec<Protocol>,
    pub(super) assignment: Bytes,
    /// Its join that waits.
    pub(super) join: Option<Ticket>,
    /// Its sync that waits.
    pub(super) sync: Option<Ticket>,
    /// When it counts as dead.
    pub(super) deadline: Instant,
    /// It has never been answered.
    pub(super) new: bool,
}

impl Member {
    pub(super) fn new(id: MemberId, request: &JoinRequest, ticket: Ticket, deadline: Instant) -> Self {
        let mut member = Self {
            id,
            instance_id: request.instance_id.clone(),
            client_id: String::new(),
            client_host: String::new(),
            session_timeout: Duration::ZERO,
            rebalance_timeout: Duration::ZERO,
            protocols: Vec::new(),
            assignment: Bytes::new(),
            join: Some(ticket),
            sync: None,
            deadline,
            new: true,
        };
        member.update(request);
        member
    }

    /// Takes over what the member says of itself, copied: it lives on after the request.
    pub(super) fn update(&mut self, request: &JoinRequest) {
        self.client_id.clone_from(&request.client_id);
        self.client_host.clone_from(&request.client_host);
        self.session_timeout = request.session_timeout;
        let given = request.rebalance_timeout.filter(|timeout| !timeout.is_zero());
        self.rebalance_timeout = given.unwrap_or(request.session_timeout);
        let copied = |protocol: &Protocol| Protocol {
            name: Arc::clone(&protocol.name),
            metadata: Bytes::copy_from_slice(&protocol.metadata),
        };
        self.protocols = request.protocols.iter().map(copied).collect();
    }

    pub(super) fn offers(&self, protocol: &str) -> bool {
        self.protocols.iter().any(|offered| &*offered.name == protocol)
    }

    pub(super) fn metadata(&self, protocol: &str) -> Bytes {
        let offered = self.protocols.iter().find(|offered| &*offered.name == protocol);
        offered.map(|offered| offered.metadata.clone()).unwrap_or_default()
    }

    pub(super) fn metadata_bytes(&self) -> usize {
        metadata_bytes(&self.protocols)
    }

    /// What it takes in memory, about.
    pub(super) fn held_bytes(&self) -> usize {
        let names = self.client_id.len() + self.client_host.len() + self.id.as_str().len();
        let protocols = self.protocols.len() * size_of::<Protocol>();
        MEMBER_BYTES + names + protocols + self.metadata_bytes() + self.assignment.len()
    }

    /// By when it must be heard of, if it must: whoever waits for us to answer need not speak.
    pub(super) fn due(&self) -> Option<Instant> {
        let waits = self.join.is_some() || self.sync.is_some();
        (self.new || !waits).then_some(self.deadline)
    }

    /// It was heard of.
    pub(super) fn touch(&mut self, now: Instant) {
        self.deadline = now + self.session_timeout;
    }
}
