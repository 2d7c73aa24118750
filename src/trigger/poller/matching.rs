//! Which records of a chunk concern which lanes: each record is looked at once for all of them.

use std::cmp::Reverse;
use std::ops::ControlFlow;
use std::time::Duration;

use tripline_storage::batch::RecordView;
use tripline_storage::partition::ReadOutcome;
use tripline_storage::{LeaderEpoch, Offset};
use uuid::Uuid;

use super::{Entry, RunLane};
use crate::input::Origin;
use crate::trigger::deliver::{RecordsError, below, epoch_of, for_each_record};
use crate::trigger::filter::{FilterSet, Pattern, Scratch as FilterScratch};
use crate::trigger::key_hash;
use crate::trigger::run::Admission;
use crate::trigger::window::{RecordFacts, Spot};

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

    pub(super) fn refresh<'a>(&mut self, entries: impl Iterator<Item = &'a Entry>) {
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
pub(super) struct Member {
    pub(super) trigger: Uuid,
    slot: u32,
    filter: Option<Pattern>,
    needs_keys: bool,
    /// The first offset that it wants.
    pub(super) from: Offset,
    /// Whether reading has come to that.
    active: bool,
    /// Records that it did not want.
    pub(super) before: usize,
    /// What matched: at most so many.
    pub(super) facts: Vec<RecordFacts>,
    pub(super) room: usize,
    /// Behind the last that there was room for: the offset, and how many records came up to there.
    stopped: Option<(Offset, usize)>,
    /// Of a run: where it ends and what it takes.
    run: Option<RunLane>,
    /// Records that are not the run's, for another reason than a pattern.
    pub(super) declined: usize,
    /// Among those, letters that were redriven too often.
    pub(super) passed_over: usize,
}

impl Member {
    pub(super) fn of(entry: &Entry, from: Offset, room: usize) -> Self {
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
    pub(super) fn matched(&self, next: Offset, records: usize) -> (Offset, usize) {
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

/// Matches the records of whole batches for all members, as far as one of them has room. Answers how many records there
/// were up to there.
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

/// Matches the records of a chunk up to a batch that cannot be read, if there is one. Answers how many there were, and
/// where to read on.
///
/// # Errors
/// The first batch cannot be read.
pub(super) fn match_readable(
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

#[cfg(test)]
mod tests {
    use tripline_storage::batch::{BatchBuilder, BatchOptions, CheckedBatch, NewRecord};

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

    fn empty_records(count: usize) -> CheckedBatch {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        for _ in 0..count {
            let record = NewRecord { timestamp_ms: 1, key: None, value: None, headers: &[] };
            builder.push(&record).unwrap();
        }
        builder.finish().unwrap()
    }

    #[test]
    fn a_chunk_of_many_small_records_is_matched_as_far_as_there_is_room_and_goes_on_behind_that() {
        let batch = empty_records(1000);
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
        let batch = empty_records(100);
        let (end, late) = (Offset::new(100).unwrap(), Offset::new(90).unwrap());
        let mut members = [member(Offset::ZERO, 10), member(Offset::ZERO, 1000), member(late, 1000)];
        let mut filters = Filters::default();
        let records = match_chunk(batch.bytes(), &Origin::for_test(), &mut members, &mut filters, 0).unwrap();
        assert_eq!(members.each_ref().map(|member| member.facts.len()), [10, 100, 10]);
        let matched = members.each_ref().map(|member| member.matched(end, records));
        assert_eq!(matched, [(Offset::new(10).unwrap(), 10), (end, 100), (end, 100)]);
    }
}
