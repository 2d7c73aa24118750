//! Reading for the lanes of a partition: each chunk once, matched for all that stand there.

use tokio::time::Instant;
use tripline_storage::Offset;
use tripline_storage::error::ReadError;
use tripline_storage::partition::ReadOutcome;
use uuid::Uuid;

use super::entry::Obstacle;
use super::matching::{Member, match_readable};
use super::{Entry, FILTERED_PROGRESS_EVERY, Poller};
#[cfg(feature = "cluster")]
use crate::input::EventInput;
use crate::trigger::lane::TAKEN_MAX;
use crate::trigger::runner::{Counters, DISK_RETRY};
use crate::trigger::window::RecordFacts;

/// How much of the log is read in a turn: some milliseconds of work.
const CHUNK_BYTES: usize = 256 << 10;

/// Room for so many matching records is kept from chunk to chunk, per lane at the head.
const FACTS_KEPT: usize = 32;

/// What is kept from turn to turn, so that reading allocates nothing in the steady state.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    members: Vec<Member>,
}

impl Poller {
    /// Reads one chunk for the lanes at the head, and one for the next of the others. Answers whether anything was
    /// read.
    pub(super) async fn read_turn(&mut self) -> bool {
        if self.stopping || self.is_fetching() {
            return false;
        }
        if self.head_retry_at.is_some_and(|at| at <= Instant::now()) {
            self.head_retry_at = None;
        }
        let at_head = !self.at_head.is_empty() && self.head_retry_at.is_none() && self.head < self.input.tail();
        let has_read = at_head && self.read_at_head().await;
        self.read_behind().await || has_read
    }

    /// The chunk from `from` on; `None`: it comes from a cluster, and a message tells when it is here.
    async fn chunk(&mut self, from: Offset) -> Option<Result<ReadOutcome, ReadError>> {
        #[cfg(feature = "cluster")]
        if matches!(self.input, EventInput::Cluster(_)) {
            return self.fetched(from, CHUNK_BYTES);
        }
        Some(self.input.read(from, CHUNK_BYTES).await)
    }

    /// Answers whether there was anything to act on.
    async fn read_at_head(&mut self) -> bool {
        let Some(outcome) = self.chunk(self.head).await else { return false };
        match outcome {
            Ok(outcome) => self.match_at_head(&outcome),
            Err(error) => self.head_failed(&error),
        }
        while let Some((_, trigger)) = self.filling_at_head.first().copied().filter(|(to, _)| *to <= self.head) {
            self.filling_at_head.pop_first();
            self.touched.insert(trigger);
        }
        true
    }

    fn match_at_head(&mut self, outcome: &ReadOutcome) {
        let from = self.head;
        let Some(now_ms) = self.at_head.first().map(|trigger| self.lanes[trigger].runner.clock.now_ms()) else {
            return;
        };
        let mut members = std::mem::take(&mut self.scratch.members);
        if members.is_empty() {
            members.extend(self.at_head.iter().map(|trigger| Member::of(&self.lanes[trigger], from, 0)));
        }
        for member in &mut members {
            (member.from, member.room) = (from, self.lanes[&member.trigger].lane.room());
        }
        if std::mem::take(&mut self.head_failed) {
            self.at_head.iter().for_each(|trigger| self.lanes[trigger].unblock());
        }
        self.filters.refresh(self.lanes.values().map(|entry| &**entry));
        match match_readable(outcome, self.input.origin(), &mut members, &mut self.filters, now_ms) {
            Ok((records, next)) => {
                self.head = next;
                self.head_records += records as u64;
                for member in &mut members {
                    if member.facts.is_empty() {
                        continue;
                    }
                    self.touched.insert(member.trigger);
                    let entry = self.lanes.get_mut(&member.trigger).expect("a member has a lane");
                    entry.matched_at_head += member.facts.len();
                    let (to, seen) = member.matched(next, records);
                    // It counts as not read here what it reads by itself.
                    entry.seen_records += (records - seen) as u64;
                    entry.take(&mut member.facts, from, to);
                    entry.held_up = entry.lane.position() < next;
                }
                self.note_at.get_or_insert_with(|| Instant::now() + FILTERED_PROGRESS_EVERY);
            }
            Err(error) => {
                let reason = error.to_string();
                self.disperse(&reason, error.damaged().map(|offsets| offsets.end));
            }
        }
        if self.scratch.members.is_empty() && !self.members_changed {
            self.scratch.members = members;
        }
        self.members_changed = false;
        self.gather();
    }

    fn head_failed(&mut self, error: &ReadError) {
        match error {
            ReadError::OutOfRange { log_start, .. } if self.head < *log_start => {
                for trigger in &self.at_head {
                    self.lanes[trigger].expired(self.head, *log_start);
                }
                self.head = *log_start;
            }
            ReadError::Damaged { to, .. } => self.disperse(&error.to_string(), Some(*to)),
            _ => {
                tracing::warn!(topic = self.input.origin().topic, partition = self.input.origin().partition, %error, "triggers cannot read");
                self.head_retry_at = Some(Instant::now() + DISK_RETRY);
                self.head_failed = true;
                for trigger in self.at_head.clone() {
                    self.lanes[&trigger].show_blocked(&error.to_string());
                }
                // Windows that wait for what comes next go on without it.
                self.touched.extend(std::mem::take(&mut self.filling_at_head).into_iter().map(|(_, trigger)| trigger));
            }
        }
    }

    /// What stands in the way at the head stands in everyone's way by himself from now on.
    fn disperse(&mut self, reason: &str, damaged_to: Option<Offset>) {
        for trigger in std::mem::take(&mut self.at_head) {
            let entry = self.lanes.get_mut(&trigger).expect("a member has a lane");
            entry.at_head = None;
            entry.lane.pass(self.head, entry.runner.clock.now_ms());
            entry.cannot_read(None, damaged_to, reason);
            self.behind.push_back(trigger);
            self.touched.insert(trigger);
        }
        self.members_changed = true;
        self.scratch.members.clear();
    }

    /// Those that read by themselves and stand where the head stands now join it.
    fn gather(&mut self) {
        if self.head < self.input.tail() || self.behind.is_empty() {
            return;
        }
        let there = |entry: &Entry| entry.run.is_none() && entry.lane.read_at() == Some(self.head);
        let joining = self.behind.iter().filter(|trigger| self.lanes.get(trigger).is_some_and(|entry| there(entry)));
        self.touched.extend(joining.copied().collect::<Vec<_>>());
    }

    /// Puts a lane to the head, or takes it away from there.
    pub(super) fn place(&mut self, entry: &mut Entry) {
        let redefined = std::mem::take(&mut entry.redefined);
        if entry.run.is_some() {
            // It reads by itself to its end: what comes at the head is not for it.
            return;
        }
        let trigger = entry.id.trigger;
        let wants = entry.runner.may_run() && entry.ahead.is_none() && entry.lane.catch_up_at().is_none();
        let at = entry.lane.read_at().filter(|_| wants);
        if let Some(index) = entry.at_head {
            if at != Some(self.head) || redefined {
                if self.head_failed {
                    // It reads by itself, and shows until then why it could not.
                    entry.ahead.get_or_insert_with(|| Obstacle::new(None));
                }
                entry.at_head = None;
                self.leave_head(index);
                self.behind.push_back(trigger);
            }
            return;
        }
        let tail = self.input.tail();
        let Some(at) = at.filter(|at| *at >= tail) else { return };
        if self.at_head.is_empty() {
            self.head = at;
        }
        if self.head == at {
            entry.at_head = Some(self.at_head.len());
            (entry.held_up, entry.seen_records) = (false, self.head_records);
            self.at_head.push(trigger);
            self.behind.retain(|other| *other != trigger);
            self.scratch.members.clear();
            self.members_changed = true;
        }
    }

    /// The lane at this index of the head is gone.
    pub(super) fn leave_head(&mut self, index: usize) {
        self.at_head.swap_remove(index);
        if self.at_head.is_empty() {
            (self.head_failed, self.head_retry_at) = (false, None);
        }
        if let Some(entry) = self.at_head.get(index).and_then(|moved| self.lanes.get_mut(moved)) {
            entry.at_head = Some(index);
        }
        self.scratch.members.clear();
        self.members_changed = true;
    }

    /// Whose turn it is to read by itself: by rotation, so that all get on, and every other time the one that is
    /// furthest behind, so that they meet and read together from there.
    fn next_behind(&mut self, tail: Offset) -> Option<Uuid> {
        self.furthest_turn = !self.furthest_turn;
        let can_read = |trigger: &Uuid| self.lanes.get(trigger).filter(|entry| entry.can_read(tail));
        let index = if self.furthest_turn {
            let ready = self.behind.iter().enumerate();
            let ready = ready.filter_map(|(index, trigger)| Some((can_read(trigger)?.lane.position(), index)));
            ready.min().map(|(_, index)| index)
        } else {
            self.behind.iter().position(|trigger| can_read(trigger).is_some())
        };
        self.behind.remove(index?)
    }

    /// Reads one chunk for the next lane that reads by itself, and for those that stand within it.
    async fn read_behind(&mut self) -> bool {
        let tail = self.input.tail();
        let Some(trigger) = self.next_behind(tail) else { return false };
        self.behind.push_back(trigger);
        let entry = &self.lanes[&trigger];
        let (on, again) = (entry.reads_on_at(tail), entry.catches_up_at());
        // Where it could do both it does them in turn.
        let catch_up = again.filter(|_| !entry.catches_up || on.is_none());
        let Some(from) = catch_up.or(on) else { return false };
        let now_ms = entry.runner.clock.now_ms();
        let outcome = self.chunk(from).await;
        // What is on its way is wanted when it is here: the turn has not passed, unless what stood in the way of the
        // other one is tried again by then.
        let Some(outcome) = outcome else { return false };
        self.touched.insert(trigger);
        let entry = self.lanes.get_mut(&trigger).expect("it was there a moment ago");
        entry.catches_up = catch_up.is_some();
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                self.behind_failed(trigger, from, catch_up, &error);
                return true;
            }
        };
        let next = outcome.next;
        let room = if catch_up.is_some() { TAKEN_MAX } else { self.lanes[&trigger].lane.room() };
        let mut members = vec![Member::of(&self.lanes[&trigger], from, room)];
        if catch_up.is_none() {
            let others = self.behind.iter().filter(|other| **other != trigger).filter_map(|other| {
                let entry = self.lanes.get(other).filter(|entry| entry.runner.may_run())?;
                let at = entry.reads_on_at(tail).filter(|at| (from..next).contains(at))?;
                Some(Member::of(entry, at, entry.lane.room()))
            });
            members.extend(others);
        }
        self.filters.refresh(self.lanes.values().map(|entry| &**entry));
        let matched = match_readable(&outcome, self.input.origin(), &mut members, &mut self.filters, now_ms);
        let (records, next) = *matched.as_ref().unwrap_or(&(0, next));
        for member in &mut members {
            let entry = self.lanes.get_mut(&member.trigger).expect("a member has a lane");
            self.touched.insert(member.trigger);
            if let Err(error) = &matched {
                // Others that stand further on come to it by themselves.
                if member.trigger == trigger {
                    let damaged_to = error.damaged().map(|offsets| offsets.end);
                    entry.cannot_read(catch_up, damaged_to, &error.to_string());
                }
                continue;
            }
            if member.from >= next {
                continue;
            }
            entry.has_read(catch_up.is_some());
            let (next, seen) = member.matched(next, records);
            if catch_up.is_some() {
                entry.lane.take_spilled(&member.facts, from, next, now_ms);
                entry.dirty = true;
                continue;
            }
            Counters::add(&entry.runner.counters.filtered, seen - member.before - member.facts.len() - member.declined);
            Counters::add(&entry.runner.counters.passed_over, member.passed_over);
            let at = member.from;
            entry.take(&mut member.facts, at, next);
        }
        self.note_at.get_or_insert_with(|| Instant::now() + FILTERED_PROGRESS_EVERY);
        true
    }

    fn behind_failed(&mut self, trigger: Uuid, from: Offset, catch_up: Option<Offset>, error: &ReadError) {
        let entry = self.lanes.get_mut(&trigger).expect("it was there a moment ago");
        let now_ms = entry.runner.clock.now_ms();
        match error {
            ReadError::OutOfRange { log_start, .. } if from < *log_start => {
                if catch_up.is_some() {
                    // What it has not read at all is counted when it comes to that.
                    let to = entry.lane.position().min(*log_start);
                    entry.expired(from, to);
                    entry.lane.take_spilled(&[], from, to, now_ms);
                } else {
                    let to = entry.end(*log_start);
                    entry.expired(from, to);
                    entry.lane.pass(to, now_ms);
                }
                entry.has_read(catch_up.is_some());
                entry.dirty = true;
            }
            ReadError::Damaged { to, .. } => entry.cannot_read(catch_up, Some(*to), &error.to_string()),
            _ => entry.cannot_read(catch_up, None, &error.to_string()),
        }
    }
}

impl Entry {
    fn take(&mut self, facts: &mut Vec<RecordFacts>, from: Offset, next: Offset) {
        let (now_ms, next) = (self.runner.clock.now_ms(), self.end(next));
        self.lane.pass(from, now_ms);
        self.lane.take(facts, next, now_ms);
        facts.clear();
        facts.shrink_to(FACTS_KEPT);
        self.dirty |= !self.lane.is_idle();
    }

    /// Records in this range are gone, which it had not read, or was to read again: all of them at most.
    fn expired(&self, from: Offset, to: Offset) {
        let (trigger, partition) = (&self.spec.name, self.id.partition);
        let records_max = usize::try_from(to.since(from)).unwrap_or(usize::MAX);
        tracing::warn!(%trigger, partition, %from, %to, records_max, "records expired before they were read");
        Counters::add(&self.runner.counters.expired, records_max);
    }
}

#[cfg(test)]
mod tests {
    use tripline_storage::fs::sim::Fault;

    use super::super::testing::World;
    use super::*;
    use crate::broker::state::LaneState;
    use crate::trigger::status::set;

    #[tokio::test]
    async fn a_lane_that_leaves_a_head_which_cannot_be_read_shows_that_until_it_has_read() {
        let trigger = Uuid::from_u128(1);
        let mut world = World::new().await;
        world.add(1, LaneState::default());
        assert!(world.poller.read_turn().await);
        world.poller.advance_touched();
        assert!(world.entry(1).at_head.is_some());
        world.append();
        world.disk.fail_from(world.disk.operations() + 1, Fault::Eio);
        world.poller.read_turn().await;
        assert!(world.poller.head_failed && world.blocks() == 1);
        // Somebody pauses it, and has the disk repaired.
        world.runner.change(|holds| set(&mut holds.paused, true));
        world.poller.wake(trigger);
        assert!(world.entry(1).at_head.is_none() && !world.poller.head_failed);
        world.disk.heal();
        world.runner.change(|holds| set(&mut holds.paused, false));
        world.runner.nudge();
        world.poller.wake(trigger);
        assert_eq!(world.blocks(), 1, "nothing was read yet");
        assert!(world.poller.read_turn().await);
        assert_eq!(world.blocks(), 0);
    }
}
