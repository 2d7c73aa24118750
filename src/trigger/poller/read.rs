//! Reading for the lanes of a partition: each chunk once, matched for all that stand there.

use std::cmp::Reverse;
use std::ops::ControlFlow;
use std::time::Duration;

use tokio::time::Instant;
use tripline_storage::batch::RecordView;
use tripline_storage::error::ReadError;
use tripline_storage::partition::ReadOutcome;
use tripline_storage::{LeaderEpoch, Offset};
use uuid::Uuid;

use super::entry::Damage;
use super::{Entry, FILTERED_PROGRESS_EVERY, Poller, RunLane};
#[cfg(feature = "cluster")]
use crate::input::EventInput;
use crate::input::Origin;
use crate::trigger::deliver::{RecordsError, below, epoch_of, for_each_record};
use crate::trigger::filter::{FilterSet, Pattern, Scratch as FilterScratch};
use crate::trigger::key_hash;
use crate::trigger::lane::TAKEN_MAX;
use crate::trigger::run::Admission;
use crate::trigger::runner::{Counters, DISK_RETRY};
use crate::trigger::window::{RecordFacts, Spot};

/// How much of the log is read in a turn: some milliseconds of work.
const CHUNK_BYTES: usize = 256 << 10;

/// Room for so many matching records is kept from chunk to chunk, per lane at the head.
const FACTS_KEPT: usize = 32;

/// What is kept from turn to turn, so that reading allocates nothing in the steady state.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    members: Vec<Member>,
}

/// The filters of all lanes of a partition, matched together.
#[derive(Debug, Default)]
pub(super) struct Filters {
    /// `None` when they are too much for one set: each is matched by itself then.
    set: Option<FilterSet>,
    scratch: FilterScratch,
    /// Lanes have come, gone or changed since the set was made.
    pub(super) changed: bool,
    /// Which member of a chunk has which slot.
    member_of: Vec<Option<usize>>,
    free: Vec<u32>,
    slots: u32,
}

impl Filters {
    /// A number for a lane's filter.
    pub(super) fn take_slot(&mut self) -> u32 {
        self.changed = true;
        self.free.pop().unwrap_or_else(|| {
            self.slots += 1;
            self.slots - 1
        })
    }

    pub(super) fn free_slot(&mut self, slot: u32) {
        self.changed = true;
        self.free.push(slot);
    }

    fn refresh<'a>(&mut self, entries: impl Iterator<Item = &'a Entry>) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let filters: Vec<(u32, &Pattern)> =
            entries.filter_map(|entry| Some((entry.slot, entry.spec.filter.as_ref()?))).collect();
        self.set = match FilterSet::build(filters) {
            Ok(set) => Some(set),
            Err(error) => {
                tracing::warn!(%error, "filters are matched one by one");
                None
            }
        };
        self.member_of = vec![None; self.slots as usize];
    }
}

/// A lane that a chunk is matched for.
#[derive(Debug)]
struct Member {
    trigger: Uuid,
    slot: u32,
    filter: Option<Pattern>,
    needs_keys: bool,
    /// The first offset that it wants.
    from: Offset,
    /// Whether reading has come to that.
    active: bool,
    /// Records that it did not want.
    before: usize,
    /// What matched: at most so many.
    facts: Vec<RecordFacts>,
    room: usize,
    /// Behind the last that there was room for: the offset, and how many records came up to there.
    stopped: Option<(Offset, usize)>,
    /// Of a run: where it ends and what it takes.
    run: Option<RunLane>,
    /// Records that are not the run's, for another reason than a pattern.
    declined: usize,
    /// Among those, letters that were redriven too often.
    passed_over: usize,
}

impl Member {
    fn of(entry: &Entry, from: Offset, room: usize) -> Self {
        Self {
            trigger: entry.id.trigger,
            slot: entry.slot,
            filter: entry.spec.filter.clone(),
            needs_keys: entry.lane.needs_keys(),
            from,
            active: false,
            before: 0,
            facts: Vec::new(),
            room,
            stopped: None,
            run: entry.run.clone(),
            declined: 0,
            passed_over: 0,
        }
    }

    /// Nothing was matched yet.
    fn begin_again(&mut self) {
        self.facts.clear();
        (self.before, self.declined, self.passed_over) = (0, 0, 0);
    }

    /// Takes a matching record, the `seen`th of the chunk. Answers whether that was the last that there was room for.
    fn take(&mut self, facts: RecordFacts, seen: usize) -> bool {
        if self.active && !self.is_behind_end(facts.offset) {
            self.facts.push(facts);
            if self.facts.len() >= self.room {
                self.stopped = Some((facts.offset.next(), seen));
                self.active = false;
                return true;
            }
        }
        false
    }

    /// How far the chunk was matched for it, whose end is `next`, and how many of its `records` came up to there.
    fn matched(&self, next: Offset, records: usize) -> (Offset, usize) {
        self.stopped.unwrap_or((next, records))
    }

    fn is_behind_end(&self, offset: Offset) -> bool {
        self.run.as_ref().is_some_and(|run| offset >= run.until)
    }

    /// A record for a lane without a filter: a run may have a gate in its place.
    fn offer(&mut self, record: &RecordView<'_>, epoch: LeaderEpoch, facts: RecordFacts, seen: usize) -> bool {
        let gate = self.run.as_ref().and_then(|run| Some((run.gate.as_ref()?, run.input.origin())));
        let Some((gate, origin)) = gate.filter(|_| self.active && !self.is_behind_end(facts.offset)) else {
            return self.take(facts, seen);
        };
        match gate.admit(record, origin, epoch) {
            Admission::Taken => return self.take(facts, seen),
            Admission::TurnedAway => {}
            Admission::PassedOver => (self.passed_over, self.declined) = (self.passed_over + 1, self.declined + 1),
            Admission::NotOurs | Admission::Discarded | Admission::Redriven => self.declined += 1,
        }
        false
    }
}

/// Matches the records of whole batches for all members, as far as one of them has room. Answers how many records there were
/// up to there.
fn match_chunk(
    bytes: &[u8],
    origin: &Origin,
    members: &mut [Member],
    filters: &mut Filters,
    now_ms: i64,
) -> Result<usize, RecordsError> {
    let needs_keys = members.iter().any(|member| member.needs_keys);
    filters.member_of.fill(None);
    for (index, member) in members.iter_mut().enumerate() {
        (member.active, member.stopped) = (false, None);
        if member.filter.is_some() {
            filters.member_of[member.slot as usize] = Some(index);
        }
    }
    let unfiltered: Vec<usize> = (0..members.len()).filter(|&index| members[index].filter.is_none()).collect();
    let runs: Vec<usize> = (0..members.len()).filter(|&index| members[index].run.is_some()).collect();
    let all_unfiltered = unfiltered.len() == members.len();
    let mut waiting: Vec<usize> = (0..members.len()).collect();
    waiting.sort_by_key(|&index| Reverse(members[index].from));
    let (mut records, mut stopped) = (0, 0);
    for_each_record(bytes, |record, header| {
        let epoch = epoch_of(header);
        while let Some(&index) = waiting.last().filter(|&&index| members[index].from <= record.offset()) {
            waiting.pop();
            (members[index].active, members[index].before) = (true, records);
        }
        records += 1;
        if waiting.len() == members.len() {
            return ControlFlow::Continue(());
        }
        let facts = facts(record, header.crc, needs_keys, now_ms);
        for &index in &runs {
            members[index].declined += usize::from(members[index].active && members[index].is_behind_end(facts.offset));
        }
        for &index in &unfiltered {
            stopped += usize::from(members[index].offer(record, epoch, facts, records));
        }
        if !all_unfiltered {
            origin.with_event(record, epoch, |event| match &filters.set {
                Some(set) => {
                    let matching = set.matches(event, &mut filters.scratch).iter();
                    let matching = matching.filter_map(|slot| filters.member_of[*slot as usize]);
                    matching.for_each(|index| stopped += usize::from(members[index].take(facts, records)));
                }
                None => {
                    let filtered = members.iter_mut().filter(|member| {
                        member.active && member.filter.as_ref().is_some_and(|filter| filter.matches(event))
                    });
                    filtered.for_each(|member| stopped += usize::from(member.take(facts, records)));
                }
            });
        }
        if stopped == members.len() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    // Whom nothing concerned saw nothing.
    waiting.iter().for_each(|&index| members[index].before = records);
    Ok(records)
}

/// Matches the records of a chunk up to a batch that cannot be read, if there is one. Answers how many there were, and where to
/// read on.
///
/// # Errors
/// The first batch cannot be read.
fn match_readable(
    chunk: &ReadOutcome,
    origin: &Origin,
    members: &mut [Member],
    filters: &mut Filters,
    now_ms: i64,
) -> Result<(usize, Offset), RecordsError> {
    let error = match match_chunk(&chunk.bytes, origin, members, filters, now_ms) {
        Ok(records) => return Ok((records, chunk.next)),
        Err(error) => error,
    };
    let Some(damaged) = error.damaged() else { return Err(error) };
    let whole = below(&chunk.bytes, damaged.start);
    if whole.is_empty() {
        return Err(error);
    }
    members.iter_mut().for_each(Member::begin_again);
    Ok((match_chunk(whole, origin, members, filters, now_ms)?, damaged.start))
}

fn facts(record: &RecordView<'_>, batch_crc: u32, needs_keys: bool, now_ms: i64) -> RecordFacts {
    let age_ms = now_ms.saturating_sub(record.timestamp_ms()).max(0).unsigned_abs();
    let known = record.timestamp_ms() >= 0;
    RecordFacts {
        offset: record.offset(),
        key: if needs_keys { key_hash(record.key()) } else { 0 },
        size_bytes: size_bytes(record),
        age: if known { Duration::from_millis(age_ms) } else { Duration::ZERO },
        spot: Spot::new(batch_crc, record.position()),
    }
}

fn size_bytes(record: &RecordView<'_>) -> u64 {
    let headers: usize = record.headers().map(|header| header.name.len() + header.value.map_or(0, <[u8]>::len)).sum();
    (record.key().map_or(0, <[u8]>::len) + record.value().map_or(0, <[u8]>::len) + headers) as u64
}

impl Poller {
    /// Reads one chunk for the lanes at the head, and one for the next of the others. Answers whether anything was read.
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
            }
        }
    }

    /// What stands in the way at the head stands in everyone's way by himself from now on.
    fn disperse(&mut self, reason: &str, damaged_to: Option<Offset>) {
        for trigger in std::mem::take(&mut self.at_head) {
            let entry = self.lanes.get_mut(&trigger).expect("a member has a lane");
            entry.at_head = None;
            entry.lane.pass(self.head, entry.runner.clock.now_ms());
            entry.damage = damaged_to.map(|to| Damage { to, catch_up: None });
            entry.cannot_read(reason);
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
        if entry.run.is_some() {
            // It reads by itself to its end: what comes at the head is not for it.
            return;
        }
        let redefined = std::mem::take(&mut entry.redefined);
        let trigger = entry.id.trigger;
        let wants = entry.runner.may_run() && entry.reads_again_at.is_none() && entry.lane.catch_up_at().is_none();
        let at = entry.lane.read_at().filter(|_| wants);
        if let Some(index) = entry.at_head {
            if at != Some(self.head) || redefined {
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
        if let Some(entry) = self.at_head.get(index).and_then(|moved| self.lanes.get_mut(moved)) {
            entry.at_head = Some(index);
        }
        self.scratch.members.clear();
        self.members_changed = true;
    }

    /// Whose turn it is to read by itself: by rotation, so that all get on, and every other time the one that is furthest
    /// behind, so that they meet and read together from there.
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
        let other_turn = !entry.catches_up;
        let catch_up = entry
            .lane
            .catch_up_at()
            .filter(|_| other_turn || entry.lane.read_at().is_none_or(|at| at >= entry.end(tail)));
        let Some(from) = catch_up.or_else(|| entry.lane.read_at()) else { return false };
        let now_ms = entry.runner.clock.now_ms();
        let outcome = self.chunk(from).await;
        // What is on its way is still wanted when it is here: the turn has not passed.
        let Some(outcome) = outcome else { return false };
        self.touched.insert(trigger);
        let entry = self.lanes.get_mut(&trigger).expect("it was there a moment ago");
        if entry.lane.catch_up_at().is_some() {
            entry.catches_up = other_turn;
        }
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                self.behind_failed(trigger, from, catch_up.is_some(), &error);
                return true;
            }
        };
        let next = outcome.next;
        let room = if catch_up.is_some() { TAKEN_MAX } else { self.lanes[&trigger].lane.room() };
        let mut members = vec![Member::of(&self.lanes[&trigger], from, room)];
        if catch_up.is_none() {
            let others = self.behind.iter().filter(|other| **other != trigger).filter_map(|other| {
                let entry = self.lanes.get(other).filter(|entry| entry.can_read(tail))?;
                let at = entry.lane.read_at().filter(|at| (from..next).contains(at))?;
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
                    let catch_up = catch_up.is_some().then_some(from);
                    entry.damage = error.damaged().map(|offsets| Damage { to: offsets.end, catch_up });
                    entry.cannot_read(&error.to_string());
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

    fn behind_failed(&mut self, trigger: Uuid, from: Offset, catch_up: bool, error: &ReadError) {
        let entry = self.lanes.get_mut(&trigger).expect("it was there a moment ago");
        let now_ms = entry.runner.clock.now_ms();
        match error {
            ReadError::OutOfRange { log_start, .. } if from < *log_start => {
                if catch_up {
                    // What it has not read at all is counted when it comes to that.
                    let to = entry.lane.position().min(*log_start);
                    entry.expired(from, to);
                    entry.lane.take_spilled(&[], from, to, now_ms);
                } else {
                    let to = entry.end(*log_start);
                    entry.expired(from, to);
                    entry.lane.pass(to, now_ms);
                }
                entry.has_read(catch_up);
                entry.dirty = true;
            }
            ReadError::Damaged { to, .. } => {
                entry.damage = Some(Damage { to: *to, catch_up: catch_up.then_some(from) });
                entry.cannot_read(&error.to_string());
            }
            _ => entry.cannot_read(&error.to_string()),
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
    use tripline_storage::batch::{BatchBuilder, BatchOptions, NewRecord};

    use super::*;

    fn member(from: Offset, room: usize) -> Member {
        Member {
            trigger: Uuid::nil(),
            slot: 0,
            filter: None,
            needs_keys: false,
            from,
            active: false,
            before: 0,
            facts: Vec::new(),
            room,
            stopped: None,
            run: None,
            declined: 0,
            passed_over: 0,
        }
    }

    #[test]
    fn a_chunk_of_many_small_records_is_matched_as_far_as_there_is_room_and_goes_on_behind_that() {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        for _ in 0..1000 {
            let record = NewRecord { timestamp_ms: 1, key: None, value: None, headers: &[] };
            builder.push(&record).unwrap();
        }
        let batch = builder.finish().unwrap();
        let end = Offset::new(1000).unwrap();
        let mut from = Offset::ZERO;
        let mut offsets = Vec::new();
        let mut seen = 0;
        while from < end {
            let mut members = [member(from, 300)];
            let mut filters = Filters::default();
            let records = match_chunk(batch.bytes(), &Origin::for_test(), &mut members, &mut filters, 0).unwrap();
            let (next, up_to) = members[0].matched(end, records);
            assert!(members[0].facts.len() <= 300);
            offsets.extend(members[0].facts.iter().map(|facts| facts.offset.get()));
            seen += up_to - members[0].before;
            from = next;
        }
        assert_eq!(offsets, (0..1000).collect::<Vec<_>>());
        assert_eq!(seen, 1000, "none is counted twice");
    }

    #[test]
    fn who_has_room_goes_on_when_another_has_none() {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        for _ in 0..100 {
            let record = NewRecord { timestamp_ms: 1, key: None, value: None, headers: &[] };
            builder.push(&record).unwrap();
        }
        let batch = builder.finish().unwrap();
        let (end, late) = (Offset::new(100).unwrap(), Offset::new(90).unwrap());
        let mut members = [member(Offset::ZERO, 10), member(Offset::ZERO, 1000), member(late, 1000)];
        let mut filters = Filters::default();
        let records = match_chunk(batch.bytes(), &Origin::for_test(), &mut members, &mut filters, 0).unwrap();
        assert_eq!(members.each_ref().map(|member| member.facts.len()), [10, 100, 10]);
        let matched = members.each_ref().map(|member| member.matched(end, records));
        assert_eq!(matched, [(Offset::new(10).unwrap(), 10), (end, 100), (end, 100)]);
    }
}
