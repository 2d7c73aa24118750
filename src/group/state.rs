//! The life of one group, as decisions: events and `now` in; answers, by ticket, and deadlines out.

mod join;
mod rebalance;
mod sync;

#[cfg(test)]
mod interleaving_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::config::GroupConfig;
use super::error::{CommitError, HeartbeatError, JoinError, MemberError, SyncError};
use super::id::{InstanceId, MemberId};
use super::member::{JoinAnswer, JoinRequest, Leaver, Member, PENDING_BYTES, Speaker, SyncAnswer, Ticket};

/// Where a group stands, by Kafka's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GroupState {
    /// It has no members.
    Empty,
    /// It waits for its members to join.
    PreparingRebalance,
    /// It waits for its leader's assignment.
    CompletingRebalance,
    /// Each member has, or may fetch, its assignment.
    Stable,
    /// It does not exist.
    Dead,
}

impl GroupState {
    /// Kafka's name for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::PreparingRebalance => "PreparingRebalance",
            Self::CompletingRebalance => "CompletingRebalance",
            Self::Stable => "Stable",
            Self::Dead => "Dead",
        }
    }
}

/// An answer to someone who waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// To a join.
    Join(Ticket, Result<JoinAnswer, JoinError>),
    /// To a sync.
    Sync(Ticket, Result<SyncAnswer, SyncError>),
}

/// A group, as told to those who ask about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    /// Where it stands.
    pub state: GroupState,
    /// Its generation; 0 before the first.
    pub generation: i32,
    /// What kind of members it has; empty if it never had any.
    pub protocol_type: String,
    /// The protocol chosen; empty unless a generation is complete or completing.
    pub protocol: String,
    /// Its members, by id.
    pub members: Vec<MemberDescription>,
}

/// A member, as told to those who ask about its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberDescription {
    /// Its id.
    pub member_id: MemberId,
    /// Its static name.
    pub instance_id: Option<InstanceId>,
    /// The client id of its connection.
    pub client_id: String,
    /// The address of its connection.
    pub client_host: String,
    /// Its metadata for the protocol chosen.
    pub metadata: Bytes,
    /// Its assignment.
    pub assignment: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Empty,
    Preparing {
        /// When it goes on with those who have joined.
        deadline: Instant,
        /// Set while an empty group waits for more members than its first.
        gathering: Option<Gathering>,
    },
    Completing,
    Stable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gathering {
    /// It waits no longer than this, however many come.
    until: Instant,
    /// Someone came since the deadline was set.
    newcomer: bool,
}

/// Who went.
#[derive(Clone, Copy, Debug, Default)]
struct Gone {
    members: bool,
    /// Those who were only given an id.
    awaited: bool,
}

/// A group and its members.
#[derive(Debug)]
pub struct Group {
    config: GroupConfig,
    phase: Phase,
    generation: i32,
    /// The generation whose assignment is set: G1 allows one each.
    assigned_generation: i32,
    protocol_type: Option<Arc<str>>,
    protocol: Option<Arc<str>>,
    leader: Option<MemberId>,
    members: BTreeMap<MemberId, Member>,
    instances: BTreeMap<InstanceId, MemberId>,
    /// Were given an id and have until then to join with it.
    pending: BTreeMap<MemberId, Instant>,
    /// Have joined this generation and not fetched their assignment.
    unsynced: BTreeSet<MemberId>,
    sync_deadline: Option<Instant>,
    effects: Vec<Effect>,
}

impl Group {
    /// An empty group.
    #[must_use]
    pub fn new(config: GroupConfig) -> Self {
        Self {
            config,
            phase: Phase::Empty,
            generation: 0,
            assigned_generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            instances: BTreeMap::new(),
            pending: BTreeMap::new(),
            unsynced: BTreeSet::new(),
            sync_deadline: None,
            effects: Vec::new(),
        }
    }

    /// A member lives.
    ///
    /// # Errors
    /// When it is no member of this generation, or has to join again.
    pub fn heartbeat(&mut self, now: Instant, speaker: &Speaker) -> Result<(), HeartbeatError> {
        let id = self.validate(&speaker.member_id, speaker.instance_id.as_deref())?;
        if speaker.generation != self.generation {
            return Err(HeartbeatError::Generation { found: speaker.generation, current: self.generation });
        }
        self.touch(&id, now);
        match self.phase {
            Phase::Preparing { .. } => Err(HeartbeatError::Rebalancing),
            Phase::Empty | Phase::Completing | Phase::Stable => Ok(()),
        }
    }

    /// Members leave; the result of each, in order.
    pub fn leave(&mut self, now: Instant, leavers: &[Leaver]) -> Vec<Result<(), MemberError>> {
        let mut gone = Gone::default();
        let results = leavers.iter().map(|leaver| self.leave_one(leaver, &mut gone)).collect();
        self.after_removal(now, gone);
        self.check();
        results
    }

    fn leave_one(&mut self, leaver: &Leaver, gone: &mut Gone) -> Result<(), MemberError> {
        let id = match (&leaver.member_id, &leaver.instance_id) {
            (None, None) => return Err(MemberError::Unknown),
            (None, Some(instance)) => self.instances.get(instance.as_str()).cloned().ok_or(MemberError::Unknown)?,
            (Some(id), None) if self.pending.remove(id.as_str()).is_some() => {
                gone.awaited = true;
                return Ok(());
            }
            (Some(id), instance) => self.validate(id, instance.as_deref())?,
        };
        self.remove(&id);
        gone.members = true;
        Ok(())
    }

    /// Whether this speaker may commit offsets now (G2).
    ///
    /// A speaker without member, instance and generation commits from outside the group; it may while the group has no
    /// members.
    ///
    /// # Errors
    /// When the speaker is no member of this generation, or the generation is not complete.
    pub fn check_commit(&mut self, now: Instant, speaker: &Speaker) -> Result<(), CommitError> {
        let outside = speaker.generation < 0 && speaker.member_id.is_empty() && speaker.instance_id.is_none();
        if self.phase == Phase::Empty && speaker.generation < 0 {
            return Ok(());
        }
        if outside {
            return Err(CommitError::Member(MemberError::Unknown));
        }
        let id = self.validate(&speaker.member_id, speaker.instance_id.as_deref())?;
        if speaker.generation != self.generation {
            return Err(CommitError::Generation { found: speaker.generation, current: self.generation });
        }
        if self.phase == Phase::Completing {
            return Err(CommitError::Rebalancing);
        }
        self.touch(&id, now);
        Ok(())
    }

    /// The client behind this ticket has gone.
    ///
    /// A member that was never answered does not know that it is one, and goes at once; any other has its session
    /// time-out to come back.
    pub fn abandon(&mut self, now: Instant, ticket: Ticket) {
        let waits = |member: &&mut Member| member.join == Some(ticket) || member.sync == Some(ticket);
        let Some(member) = self.members.values_mut().find(waits) else { return };
        if member.new && member.instance_id.is_none() {
            let id = member.id.clone();
            member.join = None;
            self.remove(&id);
            self.after_removal(now, Gone { members: true, awaited: false });
        } else {
            member.join = None;
            member.sync = None;
            member.new = false;
            member.touch(now);
        }
        self.check();
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) {
        self.expire_members(now);
        if let Phase::Preparing { deadline, gathering } = self.phase
            && deadline <= now
        {
            self.preparing_is_due(now, gathering);
        }
        if self.sync_deadline.is_some_and(|deadline| deadline <= now) {
            self.sync_is_due(now);
        }
        self.check();
    }

    fn expire_members(&mut self, now: Instant) {
        let pending = self.pending.len();
        self.pending.retain(|_, deadline| *deadline > now);
        let dead: Vec<_> = self
            .members
            .values()
            .filter(|member| member.due().is_some_and(|due| due <= now))
            .map(|m| m.id.clone())
            .collect();
        for id in &dead {
            self.remove(id);
        }
        self.after_removal(now, Gone { members: !dead.is_empty(), awaited: self.pending.len() < pending });
    }

    /// When [`Self::tick`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let preparing = if let Phase::Preparing { deadline, .. } = self.phase { Some(deadline) } else { None };
        let members = self.members.values().filter_map(Member::due);
        members.chain(self.pending.values().copied()).chain(preparing).chain(self.sync_deadline).min()
    }

    /// The answers decided on since the last call.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Where it stands.
    #[must_use]
    pub const fn state(&self) -> GroupState {
        match self.phase {
            Phase::Empty => GroupState::Empty,
            Phase::Preparing { .. } => GroupState::PreparingRebalance,
            Phase::Completing => GroupState::CompletingRebalance,
            Phase::Stable => GroupState::Stable,
        }
    }

    /// Its generation; 0 before the first.
    #[must_use]
    pub const fn generation(&self) -> i32 {
        self.generation
    }

    /// How many members it has, those who were only given an id not included.
    #[must_use]
    pub fn member_count(&self) -> usize {
        self.members.len()
    }

    /// What its members take in memory, about, those included who were only given an id.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let pending = self.pending.keys().map(|id| PENDING_BYTES + id.as_str().len());
        pending.chain(self.members.values().map(Member::held_bytes)).sum()
    }

    /// By how much that grows if the group takes this member, or these new words of a member.
    #[must_use]
    pub fn growth_bytes(&self, request: &JoinRequest) -> usize {
        let by_instance = request.instance_id.as_ref().and_then(|instance| self.instances.get(instance));
        let known = by_instance.map(MemberId::as_str).or(request.member_id.as_deref());
        let held = known.and_then(|id| self.members.get(id)).map_or(0, Member::held_bytes);
        request.held_bytes().saturating_sub(held)
    }

    /// Whether nobody is in it or about to be.
    #[must_use]
    pub fn is_vacant(&self) -> bool {
        self.phase == Phase::Empty && self.pending.is_empty()
    }

    /// What kind of members it has, if it ever had any.
    #[must_use]
    pub fn protocol_type(&self) -> Option<&str> {
        self.protocol_type.as_deref()
    }

    /// For those who ask about it.
    #[must_use]
    pub fn describe(&self) -> GroupDescription {
        let settled = matches!(self.phase, Phase::Completing | Phase::Stable);
        let protocol = self.protocol.as_deref().filter(|_| settled).unwrap_or_default();
        let member = |member: &Member| MemberDescription {
            member_id: member.id.clone(),
            instance_id: member.instance_id.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            metadata: member.metadata(protocol),
            assignment: if self.phase == Phase::Stable { member.assignment.clone() } else { Bytes::new() },
        };
        GroupDescription {
            state: self.state(),
            generation: self.generation,
            protocol_type: self.protocol_type.as_deref().unwrap_or_default().to_owned(),
            protocol: protocol.to_owned(),
            members: self.members.values().map(member).collect(),
        }
    }

    /// The member that speaks, by both its names.
    fn validate(&self, member_id: &str, instance_id: Option<&str>) -> Result<MemberId, MemberError> {
        let known = match instance_id {
            Some(instance) => self.instances.get(instance).ok_or(MemberError::Unknown)?,
            None => self.members.get_key_value(member_id).ok_or(MemberError::Unknown)?.0,
        };
        if known.as_str() == member_id { Ok(known.clone()) } else { Err(MemberError::Fenced) }
    }

    fn touch(&mut self, id: &MemberId, now: Instant) {
        if let Some(member) = self.members.get_mut(id) {
            member.touch(now);
        }
    }

    /// Takes a member out and answers what it waits for. The caller follows up with [`Self::after_removal`].
    fn remove(&mut self, id: &MemberId) {
        let Some(member) = self.members.remove(id) else { return };
        if let Some(instance) = &member.instance_id {
            self.instances.remove(instance);
        }
        self.unsynced.remove(id);
        if let Some(ticket) = member.join {
            self.effects.push(Effect::Join(ticket, Err(MemberError::Unknown.into())));
        }
        if let Some(ticket) = member.sync {
            self.effects.push(Effect::Sync(ticket, Err(MemberError::Unknown.into())));
        }
        if self.leader.as_ref() == Some(id) {
            self.elect();
        }
    }

    /// Gives the lead to a member who has joined, else to anyone.
    fn elect(&mut self) {
        let joined = self.members.values().find(|member| member.join.is_some());
        self.leader = joined.or_else(|| self.members.values().next()).map(|member| member.id.clone());
    }

    /// What holds between any two events.
    fn check(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        let preparing = matches!(self.phase, Phase::Preparing { .. });
        let settled = matches!(self.phase, Phase::Completing | Phase::Stable);
        assert!(self.phase != Phase::Empty || self.members.is_empty(), "an empty group has no members");
        assert!(!settled || !self.members.is_empty(), "a generation has members");
        assert_eq!(self.leader.is_some(), !self.members.is_empty(), "members have a leader");
        assert!(self.leader.iter().all(|leader| self.members.contains_key(leader)), "the leader is a member");
        for member in self.members.values() {
            assert!(member.join.is_none() || preparing, "joins wait only while the group prepares");
            assert!(member.sync.is_none() || self.phase == Phase::Completing, "syncs wait only while it completes");
            let protocol = self.protocol.as_deref().filter(|_| settled);
            assert!(protocol.is_none_or(|protocol| member.offers(protocol)), "each member offers the protocol chosen");
            let named = member.instance_id.as_ref().map(|instance| self.instances.get(instance));
            assert!(named.is_none_or(|id| id == Some(&member.id)), "a static name leads to its member");
            assert!(!self.pending.contains_key(&member.id), "a member is not pending");
        }
        assert!(!settled || self.protocol.is_some(), "a generation has a protocol");
        assert!(self.instances.len() <= self.members.len(), "static names have members");
        assert!(self.unsynced.is_empty() || settled, "assignments are awaited only in a generation");
        assert!(self.unsynced.iter().all(|id| self.members.contains_key(id)), "only members await assignments");
        assert!(self.assigned_generation <= self.generation, "G1: no assignment for a generation to come");
        assert!(self.members.len() + self.pending.len() <= self.config.members_max, "the group has its limit");
    }
}
