//! Handing out the assignment.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;

use super::{Effect, Group, Phase};
use crate::group::error::{MemberError, SyncError};
use crate::group::id::MemberId;
use crate::group::member::{SyncAnswer, SyncRequest, Ticket};

impl Group {
    /// A member asks for its assignment; the answer comes as an effect, now or when the leader has assigned.
    pub fn sync(&mut self, now: Instant, ticket: Ticket, request: &SyncRequest) {
        if let Err(error) = self.try_sync(now, ticket, request) {
            self.effects.push(Effect::Sync(ticket, Err(error)));
        }
        self.check();
    }

    fn try_sync(&mut self, now: Instant, ticket: Ticket, request: &SyncRequest) -> Result<(), SyncError> {
        let id = self.check_sync(request)?;
        match self.phase {
            Phase::Empty => Err(MemberError::Unknown.into()),
            Phase::Preparing { .. } => Err(SyncError::Rebalancing),
            Phase::Completing => {
                self.wait_for_assignment(ticket, &id);
                if self.leader.as_ref() == Some(&id) {
                    self.assign(now, request);
                }
                Ok(())
            }
            Phase::Stable => {
                self.has_synced(&id);
                self.touch(&id, now);
                self.answer_sync(ticket, &id);
                Ok(())
            }
        }
    }

    fn check_sync(&self, request: &SyncRequest) -> Result<MemberId, SyncError> {
        let speaker = &request.speaker;
        let id = self.validate(&speaker.member_id, speaker.instance_id.as_deref())?;
        if speaker.generation != self.generation {
            return Err(SyncError::Generation { found: speaker.generation, current: self.generation });
        }
        let differs = |said: &Option<String>, is: Option<&str>| said.as_deref().is_some_and(|said| Some(said) != is);
        if differs(&request.protocol_type, self.protocol_type.as_deref())
            || differs(&request.protocol, self.protocol.as_deref())
        {
            return Err(SyncError::InconsistentProtocol);
        }
        let found = request.assignment_bytes();
        let max = self.config.assignment_bytes_max;
        if found > max { Err(SyncError::TooLong { found, max }) } else { Ok(id) }
    }

    fn wait_for_assignment(&mut self, ticket: Ticket, id: &MemberId) {
        self.has_synced(id);
        let member = self.members.get_mut(id).expect("validated");
        if let Some(earlier) = member.sync.replace(ticket) {
            self.effects.push(Effect::Sync(earlier, Err(SyncError::Rebalancing)));
        }
    }

    fn has_synced(&mut self, id: &MemberId) {
        self.unsynced.remove(id);
        if self.unsynced.is_empty() {
            self.sync_deadline = None;
        }
    }

    /// The leader has assigned: the generation is complete. Members that it left out own nothing.
    fn assign(&mut self, now: Instant, request: &SyncRequest) {
        assert!(self.assigned_generation < self.generation, "G1: one assignment per generation");
        self.assigned_generation = self.generation;
        let by_member: BTreeMap<_, _> = request.assignments.iter().map(|(id, part)| (id.as_str(), part)).collect();
        let mut waiting = Vec::new();
        for member in self.members.values_mut() {
            // Copied: it lives on after the leader's request.
            member.assignment =
                by_member.get(member.id.as_str()).map_or_else(Bytes::new, |part| Bytes::copy_from_slice(part));
            if let Some(ticket) = member.sync.take() {
                member.touch(now);
                waiting.push((ticket, member.id.clone()));
            }
        }
        self.phase = Phase::Stable;
        for (ticket, id) in waiting {
            self.answer_sync(ticket, &id);
        }
    }

    fn answer_sync(&mut self, ticket: Ticket, id: &MemberId) {
        let answer = SyncAnswer {
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol: self.protocol.clone().unwrap_or_default(),
            assignment: self.members.get(id).map(|member| member.assignment.clone()).unwrap_or_default(),
        };
        self.effects.push(Effect::Sync(ticket, Ok(answer)));
    }
}
