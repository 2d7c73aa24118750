//! From one generation to the next.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Effect, Gathering, Gone, Group, Phase};
use crate::group::error::SyncError;
use crate::group::id::MemberId;

impl Group {
    /// Someone came or changed: prepares the next generation, or goes on with the one in preparation.
    pub(super) fn rebalance(&mut self, now: Instant) {
        match self.phase {
            Phase::Preparing { .. } => self.complete_if_all_joined(now),
            Phase::Empty => self.gather(now),
            Phase::Completing | Phase::Stable => self.prepare(now),
        }
    }

    /// Perhaps someone went. An empty group stays empty, and who was only given an id is missed where it is waited for
    /// alone: a generation that has begun did not count on it.
    pub(super) fn after_removal(&mut self, now: Instant, gone: Gone) {
        match self.phase {
            _ if !(gone.members || gone.awaited) => {}
            Phase::Empty => {}
            // Nobody is left to wait for company, and no generation had begun.
            Phase::Preparing { gathering: Some(_), .. } if self.members.is_empty() => self.phase = Phase::Empty,
            Phase::Preparing { .. } => self.complete_if_all_joined(now),
            Phase::Completing | Phase::Stable if gone.members => self.prepare(now),
            Phase::Completing | Phase::Stable => {}
        }
    }

    /// The first member of an empty group waits a little for others.
    fn gather(&mut self, now: Instant) {
        let delay = self.config.initial_rebalance_delay;
        if delay.is_zero() {
            return self.prepare(now);
        }
        let until = now + self.rebalance_timeout().max(delay);
        self.phase = Phase::Preparing { deadline: now + delay, gathering: Some(Gathering { until, newcomer: false }) };
    }

    /// All members have to join again.
    fn prepare(&mut self, now: Instant) {
        if self.phase == Phase::Completing {
            self.refuse_syncs(now);
        }
        self.unsynced.clear();
        self.sync_deadline = None;
        self.phase = Phase::Preparing { deadline: now + self.rebalance_timeout(), gathering: None };
        self.complete_if_all_joined(now);
    }

    /// Whoever waited has its whole session to hear of it and join again.
    fn refuse_syncs(&mut self, now: Instant) {
        for member in self.members.values_mut() {
            member.assignment = Bytes::new();
            if let Some(ticket) = member.sync.take() {
                member.touch(now);
                self.effects.push(Effect::Sync(ticket, Err(SyncError::Rebalancing)));
            }
        }
    }

    fn complete_if_all_joined(&mut self, now: Instant) {
        let Phase::Preparing { gathering: None, .. } = self.phase else { return };
        let all_joined = self.pending.is_empty() && self.members.values().all(|member| member.join.is_some());
        if all_joined || self.members.is_empty() {
            self.complete(now);
        }
    }

    /// The time to join is up.
    pub(super) fn preparing_is_due(&mut self, now: Instant, gathering: Option<Gathering>) {
        let delay = self.config.initial_rebalance_delay;
        match gathering {
            Some(gathering) if gathering.newcomer && now < gathering.until => {
                let deadline = (now + delay).min(gathering.until);
                self.phase = Phase::Preparing { deadline, gathering: Some(Gathering { newcomer: false, ..gathering }) };
            }
            _ => self.complete(now),
        }
    }

    /// Begins the next generation with those who have joined. Static members who have not are kept until their session
    /// ends.
    fn complete(&mut self, now: Instant) {
        let absent = |member: &super::Member| member.join.is_none() && member.instance_id.is_none();
        let absent: Vec<_> = self.members.values().filter(|member| absent(member)).map(|m| m.id.clone()).collect();
        for id in &absent {
            self.remove(id);
        }
        if self.members.is_empty() {
            self.next_generation();
            self.protocol = None;
            self.phase = Phase::Empty;
            return;
        }
        let joined: Vec<_> =
            self.members.values().filter(|member| member.join.is_some()).map(|m| m.id.clone()).collect();
        if joined.is_empty() {
            self.phase = Phase::Preparing { deadline: now + self.rebalance_timeout(), gathering: None };
            return;
        }
        if self.leader.as_ref().is_none_or(|leader| !joined.contains(leader)) {
            self.elect();
        }
        self.begin_generation(now, &joined);
    }

    fn begin_generation(&mut self, now: Instant, joined: &[MemberId]) {
        self.next_generation();
        self.protocol = self.select_protocol();
        debug_assert!(self.protocol.is_some(), "no member gets in without a protocol that all offer");
        self.phase = Phase::Completing;
        self.unsynced = joined.iter().cloned().collect();
        self.sync_deadline = Some(now + self.rebalance_timeout());
        for id in joined {
            let leads = self.leader.as_ref() == Some(id);
            let members = if leads { self.joined_members() } else { Vec::new() };
            let answer = self.join_answer(id, members);
            let member = self.members.get_mut(id).expect("those who have joined are members");
            member.new = false;
            member.touch(now);
            if let Some(ticket) = member.join.take() {
                self.effects.push(Effect::Join(ticket, Ok(answer)));
            }
        }
    }

    fn next_generation(&mut self) {
        self.generation = self.generation.checked_add(1).expect("a rebalance a second fills 68 years");
    }

    /// Some members have not fetched their assignment in time: they go, and the others share anew.
    pub(super) fn sync_is_due(&mut self, now: Instant) {
        self.sync_deadline = None;
        let late: Vec<_> = std::mem::take(&mut self.unsynced).into_iter().collect();
        for id in &late {
            self.remove(id);
        }
        if !late.is_empty() {
            self.after_removal(now, Gone { members: true, awaited: false });
        }
    }

    /// The longest that any member may take to join again.
    fn rebalance_timeout(&self) -> Duration {
        self.members.values().map(|member| member.rebalance_timeout).max().unwrap_or_default()
    }
}
