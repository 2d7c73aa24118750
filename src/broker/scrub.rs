//! The scrubber: a slow second look at what lies on the disk for long, so that damage is known before somebody needs
//! the records. What to read when is decided without a clock or a disk; a thin loop reads.

use std::collections::BTreeMap;
use std::time::Duration;

use tripline_storage::PartitionId;
use tripline_storage::partition::{OffsetRange, Scrub, ScrubSlice};
use tripline_storage::store::STATE_PARTITION;

use super::Broker;

/// A round over all partitions begins so long after the one before began, or when that ends.
pub const ROUND_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
/// How often the loop looks whether something is to be read.
pub const TICK: Duration = Duration::from_secs(1);
/// How much is read before others get the disk.
const SLICE_BYTES: u64 = 1 << 20;
/// Damaged ranges that are remembered for one partition.
const RANGES_MAX: usize = 1_000;

/// How much may be read. What was read beyond the rate, since a batch is read whole, is waited for.
#[derive(Clone, Copy, Debug)]
struct Pace {
    bytes_per_second: u64,
    /// Bytes that may be read now; negative: bytes to wait for.
    budget_bytes: i64,
}

impl Pace {
    const fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, budget_bytes: 0 }
    }

    /// Time has passed: one second's worth is kept at the most, so that a pause is not made up for.
    fn pass(&mut self, elapsed: Duration) {
        let rate = i64::try_from(self.bytes_per_second).unwrap_or(i64::MAX);
        let elapsed_ms = i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX).min(1000);
        let earned = rate.saturating_mul(elapsed_ms) / 1000;
        self.budget_bytes = self.budget_bytes.saturating_add(earned).min(rate);
    }

    /// The next slice's size; `None` when it is to be waited for.
    fn slice_bytes(&self) -> Option<u64> {
        u64::try_from(self.budget_bytes).ok().filter(|&bytes| bytes > 0).map(|bytes| bytes.min(SLICE_BYTES))
    }

    fn spend(&mut self, read_bytes: u64) {
        self.budget_bytes = self.budget_bytes.saturating_sub(i64::try_from(read_bytes).unwrap_or(i64::MAX));
    }
}

/// Which partition is read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Go on with this one.
    Read(PartitionId),
    /// All were read; the next round is not due.
    Rest,
}

/// Rounds over the partitions, in the order of their ids.
#[derive(Clone, Copy, Debug, Default)]
struct Rounds {
    current: Option<PartitionId>,
    /// The last one that was read whole in this round.
    done: Option<PartitionId>,
    /// When the round began, since the scrubber's start; `None` before the first.
    began: Option<Duration>,
    /// All partitions were read in this round.
    is_over: bool,
}

impl Rounds {
    /// `partitions` are those there are, in order; they come and go during a round. `now` is the time since the
    /// scrubber's start.
    fn turn(&mut self, partitions: &[PartitionId], now: Duration) -> Turn {
        if self.is_resting(now) {
            return Turn::Rest;
        }
        if self.began.is_none() || self.is_over {
            *self = Self { began: Some(now), ..Self::default() };
        }
        if let Some(current) = self.current.filter(|current| partitions.contains(current)) {
            return Turn::Read(current);
        }
        let next = partitions.iter().copied().find(|id| self.done.is_none_or(|done| *id > done));
        self.current = next;
        self.is_over = next.is_none();
        next.map_or(Turn::Rest, Turn::Read)
    }

    /// The round is over, and the next one is not due.
    fn is_resting(&self, now: Duration) -> bool {
        let is_due = self.began.is_none_or(|began| now.saturating_sub(began) >= ROUND_INTERVAL);
        self.is_over && !is_due
    }

    fn partition_done(&mut self) {
        self.done = self.current.take();
    }
}

/// What the scrubber has done and found since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Bytes read.
    pub read_bytes: u64,
    /// Rounds over all partitions that ended.
    pub rounds: u64,
    /// Damaged offsets by partition, ascending, as the last look found them.
    pub damaged: BTreeMap<PartitionId, Vec<OffsetRange>>,
}

/// The state of the scrubber; kept in memory only.
#[derive(Debug)]
pub(super) struct Scrubber {
    pace: Pace,
    rounds: Rounds,
    pass: Scrub,
    /// Found in the pass under way.
    found: Vec<OffsetRange>,
    report: ScrubReport,
}

impl Scrubber {
    /// `damaged` is what recovery has seen.
    pub(super) fn new(bytes_per_second: u64, damaged: BTreeMap<PartitionId, Vec<OffsetRange>>) -> Self {
        let report = ScrubReport { damaged, ..ScrubReport::default() };
        let (rounds, pass, found) = (Rounds::default(), Scrub::default(), Vec::new());
        Self { pace: Pace::new(bytes_per_second), rounds, pass, found, report }
    }

    /// Takes note of what a recovery has seen after the start.
    pub(super) fn found(&mut self, id: PartitionId, damaged: Vec<OffsetRange>) {
        if !damaged.is_empty() {
            self.report.damaged.insert(id, damaged);
        }
    }

    /// Takes note of what a slice found.
    fn note(&mut self, id: PartitionId, slice: ScrubSlice) {
        self.pace.spend(slice.read_bytes);
        self.report.read_bytes += slice.read_bytes;
        let known = self.report.damaged.entry(id).or_default();
        for range in slice.damaged {
            if self.found.len() < RANGES_MAX {
                self.found.push(range);
            }
            // Known at once, and not only when the pass ends.
            if known.len() < RANGES_MAX && !known.contains(&range) {
                known.push(range);
                known.sort_unstable_by_key(|range| range.from);
            }
        }
        if slice.is_done {
            *known = std::mem::take(&mut self.found);
            self.rounds.partition_done();
        }
        if self.report.damaged.get(&id).is_some_and(Vec::is_empty) {
            self.report.damaged.remove(&id);
        }
    }
}

impl Broker {
    /// What the scrubber has done and found.
    #[must_use]
    pub fn scrub_report(&self) -> ScrubReport {
        let mut report = self.inner.scrubber.lock().report.clone();
        // What retention took is nobody's damage any more.
        report.damaged.retain(|id, ranges| {
            let log_start = self.inner.store.partition(*id).map(|partition| partition.log_start());
            ranges.retain(|range| log_start.is_some_and(|log_start| range.to > log_start));
            !ranges.is_empty()
        });
        report
    }

    /// The scrubber's turn: reads what its rate allows after `elapsed` since the last turn; `now` is the time since the
    /// broker's start. Blocks on the disk. Damage is told in the log, here and in [`Broker::scrub_report`], and stops
    /// nothing.
    pub fn scrub(&self, elapsed: Duration, now: Duration) {
        if self.inner.config.scrub_bytes_per_second == 0 {
            return;
        }
        let mut scrubber = self.inner.scrubber.lock();
        if scrubber.rounds.is_resting(now) {
            return;
        }
        scrubber.pace.pass(elapsed);
        while let Some(slice_bytes) = scrubber.pace.slice_bytes() {
            let was_over = scrubber.rounds.is_over;
            let turn = scrubber.rounds.turn(&self.partitions_to_scrub(), now);
            let Turn::Read(id) = turn else {
                scrubber.report.rounds += u64::from(!was_over);
                return;
            };
            let Some(partition) = self.inner.store.partition(id) else {
                scrubber.rounds.partition_done();
                continue;
            };
            let mut pass = std::mem::take(&mut scrubber.pass);
            // Readers of the report do not wait for the disk.
            let slice = parking_lot::MutexGuard::unlocked(&mut scrubber, || partition.scrub(&mut pass, slice_bytes));
            for OffsetRange { from, to } in &slice.damaged {
                tracing::error!(partition = %id, %from, %to, "damaged on disk; `tripline verify` tells more");
            }
            scrubber.pass = pass;
            scrubber.note(id, slice);
        }
    }

    /// The state journal first: nothing starts without it.
    fn partitions_to_scrub(&self) -> Vec<PartitionId> {
        let mut ids: Vec<_> = self.inner.store.partitions().iter().map(|partition| partition.id()).collect();
        ids.push(STATE_PARTITION);
        ids.sort_unstable();
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tripline_storage::Offset;
    use uuid::Uuid;

    fn id(number: u32) -> PartitionId {
        PartitionId { topic: Uuid::nil(), partition: number }
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn no_more_is_read_than_the_rate_allows_and_a_pause_is_not_made_up_for() {
        let mut pace = Pace::new(1000);
        assert_eq!(pace.slice_bytes(), None);
        let mut read_bytes = 0;
        for _ in 0..100 {
            pace.pass(Duration::from_millis(100));
            while let Some(slice_bytes) = pace.slice_bytes() {
                // Batches are read whole.
                let slice_bytes = slice_bytes + 70;
                pace.spend(slice_bytes);
                read_bytes += slice_bytes;
            }
        }
        assert!((9_000..=10_170).contains(&read_bytes), "{read_bytes}");
        pace.pass(seconds(10_000));
        assert!(pace.slice_bytes().unwrap() <= 1000);
        pace.spend(10_000_000);
        pace.pass(seconds(1));
        assert_eq!(pace.slice_bytes(), None, "a large batch is waited for");
    }

    #[test]
    fn a_round_reads_each_partition_once_and_the_next_one_waits_for_its_day() {
        let mut rounds = Rounds::default();
        let ids = [id(0), id(1), id(2)];
        for number in 0..3 {
            assert_eq!(rounds.turn(&ids, seconds(5)), Turn::Read(id(number)));
            assert_eq!(rounds.turn(&ids, seconds(6)), Turn::Read(id(number)), "until it is done");
            rounds.partition_done();
        }
        assert_eq!(rounds.turn(&ids, seconds(7)), Turn::Rest);
        assert_eq!(rounds.turn(&ids, seconds(5) + ROUND_INTERVAL - seconds(1)), Turn::Rest);
        assert_eq!(rounds.turn(&ids, seconds(5) + ROUND_INTERVAL), Turn::Read(id(0)));
    }

    #[test]
    fn partitions_may_come_and_go_during_a_round() {
        let mut rounds = Rounds::default();
        assert_eq!(rounds.turn(&[id(1), id(3)], seconds(0)), Turn::Read(id(1)));
        assert_eq!(rounds.turn(&[id(2), id(3)], seconds(0)), Turn::Read(id(2)), "1 is gone, 2 is new");
        rounds.partition_done();
        assert_eq!(rounds.turn(&[id(0)], seconds(0)), Turn::Rest, "0 waits for the next round");
        assert_eq!(rounds.turn(&[], ROUND_INTERVAL), Turn::Rest);
    }

    #[test]
    fn damage_is_known_at_once_and_forgotten_when_a_pass_does_not_find_it_again() {
        let range = |from, to| OffsetRange { from: Offset::new(from).unwrap(), to: Offset::new(to).unwrap() };
        let mut scrubber = Scrubber::new(1, BTreeMap::from([(id(0), vec![range(5, 6)])]));
        scrubber.rounds.turn(&[id(0)], seconds(0));
        let slice = |damaged, is_done| ScrubSlice { read_bytes: 1, damaged, is_done };
        scrubber.note(id(0), slice(vec![range(2, 3)], false));
        assert_eq!(scrubber.report.damaged[&id(0)], [range(2, 3), range(5, 6)]);
        scrubber.note(id(0), slice(Vec::new(), true));
        assert_eq!(scrubber.report.damaged[&id(0)], [range(2, 3)]);
        scrubber.note(id(0), slice(Vec::new(), true));
        assert!(scrubber.report.damaged.is_empty());
        assert_eq!(scrubber.report.read_bytes, 3);
    }
}
