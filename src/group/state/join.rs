//! Joining.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::{Effect, Group, Phase};
use crate::group::error::{JoinError, MemberError, SyncError};
use crate::group::id::{ID_BYTES_MAX, InstanceId, MemberId};
use crate::group::member::{JoinAnswer, JoinRequest, JoinedMember, Member, Ticket, metadata_bytes};

impl Group {
    /// Someone asks to join; the answer comes as an effect, now or later.
    pub fn join(&mut self, now: Instant, ticket: Ticket, request: &JoinRequest) {
        if let Err(error) = self.try_join(now, ticket, request) {
            self.effects.push(Effect::Join(ticket, Err(error)));
        }
        self.check();
    }

    fn try_join(&mut self, now: Instant, ticket: Ticket, request: &JoinRequest) -> Result<(), JoinError> {
        self.check_sizes(request)?;
        let static_member = request.instance_id.as_ref().and_then(|instance| self.instances.get(instance)).cloned();
        let Some(member_id) = request.member_id.as_deref() else {
            return match static_member {
                Some(old) => self.replace_static(now, ticket, request, &old),
                None => self.join_new(now, ticket, request),
            };
        };
        if request.instance_id.is_none()
            && let Some((id, _)) = self.pending.get_key_value(member_id)
        {
            let id = id.clone();
            self.check_fits(request, None)?;
            self.pending.remove(&id);
            self.add(now, ticket, request, id);
            return Ok(());
        }
        let id = self.validate(member_id, request.instance_id.as_ref().map(InstanceId::as_str))?;
        self.check_fits(request, Some(&id))?;
        self.join_known(now, ticket, request, &id);
        Ok(())
    }

    fn join_new(&mut self, now: Instant, ticket: Ticket, request: &JoinRequest) -> Result<(), JoinError> {
        let count = self.members.len() + self.pending.len();
        if count >= self.config.members_max {
            return Err(JoinError::Full(count));
        }
        self.check_fits(request, None)?;
        let id = request.candidate_id.clone();
        debug_assert!(!self.members.contains_key(&id) && !self.pending.contains_key(&id), "a new id is new");
        if request.id_required && request.instance_id.is_none() {
            let awaited = request.session_timeout.min(self.config.pending_timeout_max);
            self.pending.insert(id.clone(), now + awaited);
            return Err(JoinError::MemberIdRequired(id));
        }
        self.add(now, ticket, request, id);
        Ok(())
    }

    fn add(&mut self, now: Instant, ticket: Ticket, request: &JoinRequest, id: MemberId) {
        if self.members.is_empty() {
            self.protocol_type = Some(request.protocol_type.as_str().into());
        }
        let member = Member::new(id.clone(), request, ticket, now + self.config.new_member_timeout);
        if let Some(instance) = &member.instance_id {
            self.instances.insert(instance.clone(), id.clone());
        }
        self.members.insert(id.clone(), member);
        self.leader.get_or_insert(id);
        if let Phase::Preparing { gathering: Some(gathering), .. } = &mut self.phase {
            gathering.newcomer = true;
        }
        self.rebalance(now);
    }

    fn join_known(&mut self, now: Instant, ticket: Ticket, request: &JoinRequest, id: &MemberId) {
        let leads = self.leader.as_ref() == Some(id);
        let same = self.members.get(id).is_some_and(|member| member.protocols == request.protocols);
        match self.phase {
            // It may have missed the answer to its first join: tell it again.
            Phase::Completing if same => self.answer_again(now, ticket, id, leads),
            Phase::Stable if same && !leads => self.answer_again(now, ticket, id, false),
            _ => {
                self.wait(ticket, request, id);
                self.rebalance(now);
            }
        }
    }

    fn answer_again(&mut self, now: Instant, ticket: Ticket, id: &MemberId, leads: bool) {
        self.touch(id, now);
        let members = if leads { self.joined_members() } else { Vec::new() };
        let answer = self.join_answer(id, members);
        self.effects.push(Effect::Join(ticket, Ok(answer)));
    }

    /// Takes over what the member says now and lets its join wait.
    fn wait(&mut self, ticket: Ticket, request: &JoinRequest, id: &MemberId) {
        let member = self.members.get_mut(id).expect("the caller has looked it up");
        member.update(request);
        if let Some(earlier) = member.join.replace(ticket) {
            self.effects.push(Effect::Join(earlier, Err(JoinError::Superseded)));
        }
    }

    /// A static member came back without its id: it is a new process with the old name, and the old process is fenced
    /// off.
    fn replace_static(
        &mut self,
        now: Instant,
        ticket: Ticket,
        request: &JoinRequest,
        old: &MemberId,
    ) -> Result<(), JoinError> {
        self.check_fits(request, Some(old))?;
        let led = self.leader.as_ref() == Some(old);
        self.rename(old, request, now);
        let id = &request.candidate_id;
        self.members.get_mut(id).expect("just renamed").update(request);
        let keeps_protocol = self.protocol.is_some() && self.select_protocol() == self.protocol;
        if self.phase == Phase::Stable && keeps_protocol {
            // It takes over the assignment of the old process; nobody else need know.
            let skips = led && request.may_skip_assignment;
            let members = if skips { self.joined_members() } else { Vec::new() };
            let mut answer = self.join_answer(id, members);
            answer.skip_assignment = skips;
            if led && !skips {
                // It must not take itself for the leader, or it would assign anew.
                answer.leader = old.clone();
            }
            self.effects.push(Effect::Join(ticket, Ok(answer)));
            return Ok(());
        }
        self.members.get_mut(id).expect("just renamed").join = Some(ticket);
        self.rebalance(now);
        Ok(())
    }

    fn rename(&mut self, old: &MemberId, request: &JoinRequest, now: Instant) {
        let id = request.candidate_id.clone();
        let mut member = self.members.remove(old).expect("static names lead to members");
        if let Some(waiting) = member.join.take() {
            self.effects.push(Effect::Join(waiting, Err(JoinError::Member(MemberError::Fenced))));
        }
        if let Some(waiting) = member.sync.take() {
            self.effects.push(Effect::Sync(waiting, Err(SyncError::Member(MemberError::Fenced))));
        }
        member.id = id.clone();
        member.session_timeout = request.session_timeout;
        member.touch(now);
        if let Some(instance) = &member.instance_id {
            self.instances.insert(instance.clone(), id.clone());
        }
        if self.leader.as_ref() == Some(old) {
            self.leader = Some(id.clone());
        }
        if self.unsynced.remove(old) {
            self.unsynced.insert(id.clone());
        }
        self.members.insert(id, member);
    }

    pub(super) fn join_answer(&self, id: &MemberId, members: Vec<JoinedMember>) -> JoinAnswer {
        JoinAnswer {
            generation: self.generation,
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol: self.protocol.clone().unwrap_or_default(),
            leader: self.leader.clone().expect("members have a leader"),
            member_id: id.clone(),
            skip_assignment: false,
            members,
        }
    }

    pub(super) fn joined_members(&self) -> Vec<JoinedMember> {
        let protocol = self.protocol.as_deref().unwrap_or_default();
        let joined = |member: &Member| JoinedMember {
            member_id: member.id.clone(),
            instance_id: member.instance_id.clone(),
            metadata: member.metadata(protocol),
        };
        self.members.values().map(joined).collect()
    }

    /// Each member votes for the first of its protocols that all offer; the most votes win, then the leader's order.
    pub(super) fn select_protocol(&self) -> Option<Arc<str>> {
        let common = self.common_protocols(None);
        let mut votes = BTreeMap::<&str, usize>::new();
        for member in self.members.values() {
            let choice = member.protocols.iter().find(|protocol| common.contains(&*protocol.name))?;
            *votes.entry(&choice.name).or_default() += 1;
        }
        let most = votes.values().copied().max()?;
        let leader = self.members.get(self.leader.as_ref()?)?;
        let won = |name: &str| votes.get(name) == Some(&most);
        let by_leader = leader.protocols.iter().map(|protocol| &*protocol.name).find(|name| won(name));
        by_leader.or_else(|| votes.keys().copied().find(|name| won(name))).map(Arc::from)
    }

    /// What all members but `except` offer. Each offer is looked at once: a group has up to a thousand members with
    /// dozens of offers each, and is locked meanwhile.
    fn common_protocols(&self, except: Option<&MemberId>) -> HashSet<&str> {
        // With the number of members that offer it, and the last of them: one may name the same twice.
        let mut offers = HashMap::<&str, (usize, usize)>::new();
        let mut members = 0;
        for member in self.members.values().filter(|member| Some(&member.id) != except) {
            members += 1;
            for protocol in &member.protocols {
                let (count, last) = offers.entry(&protocol.name).or_default();
                if *last != members {
                    (*count, *last) = (*count + 1, members);
                }
            }
        }
        offers.into_iter().filter(|(_, (count, _))| *count == members).map(|(name, _)| name).collect()
    }

    fn check_sizes(&self, request: &JoinRequest) -> Result<(), JoinError> {
        let config = &self.config;
        let (min, max) = (config.session_timeout_min, config.session_timeout_max);
        if request.session_timeout < min || request.session_timeout > max {
            return Err(JoinError::SessionTimeout { found: request.session_timeout, min, max });
        }
        at_most("bytes of protocol type", request.protocol_type.len(), ID_BYTES_MAX)?;
        at_most("protocols", request.protocols.len(), config.protocols_max)?;
        at_most("bytes of metadata", metadata_bytes(&request.protocols), config.metadata_bytes_max)?;
        Ok(())
    }

    /// Whether the group can take this member, or these new words of a member.
    fn check_fits(&self, request: &JoinRequest, itself: Option<&MemberId>) -> Result<(), JoinError> {
        let others = || self.members.values().filter(|member| Some(&member.id) != itself);
        let alone = others().next().is_none();
        let same_type = alone || self.protocol_type.as_deref() == Some(&request.protocol_type);
        let offered = self.common_protocols(itself);
        let common = request.protocols.iter().any(|protocol| alone || offered.contains(&*protocol.name));
        if request.protocol_type.is_empty() || !same_type || !common {
            return Err(JoinError::InconsistentProtocol);
        }
        let total = metadata_bytes(&request.protocols) + others().map(Member::metadata_bytes).sum::<usize>();
        at_most("bytes of metadata in the group", total, self.config.group_metadata_bytes_max)
    }
}

fn at_most(what: &'static str, found: usize, max: usize) -> Result<(), JoinError> {
    if found > max { Err(JoinError::TooMuch { what, found, max }) } else { Ok(()) }
}
