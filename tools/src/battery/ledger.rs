//! What writers were promised, and whether a log keeps it.
//!
//! Each record says which run of a writer it is from and which of its records it is. A run numbers the records of a
//! partition 0, 1, 2 … and sends each once, in order.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Which record of which run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp {
    pub(crate) run: u32,
    pub(crate) number: u64,
}

impl Stamp {
    pub(crate) fn value(self, fill: usize) -> String {
        format!("{} {} {}", self.run, self.number, "x".repeat(fill))
    }

    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(value).ok()?.split(' ');
        Some(Self { run: words.next()?.parse().ok()?, number: words.next()?.parse().ok()? })
    }
}

/// How safe a record was said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// It survives the death of the process.
    Written,
    /// It survives the loss of power.
    Durable,
}

/// An answer that a writer got, as a line of its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) partition: u32,
    /// Offset of the first record.
    pub(crate) base: i64,
    pub(crate) count: u64,
    pub(crate) first: Stamp,
    pub(crate) level: Level,
    /// When the answer came, since 1970.
    pub(crate) at: Duration,
    /// How long the recorded log of the disk was by then, in bytes; 0 when there is none.
    pub(crate) recorded_bytes: u64,
}

impl fmt::Display for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, base, count, first, level, at, recorded_bytes } = self;
        let level = if *level == Level::Durable { "durable" } else { "written" };
        let at_us = at.as_micros();
        write!(f, "ack {partition} {base} {count} {} {} {level} {at_us} {recorded_bytes}", first.run, first.number)
    }
}

impl FromStr for Ack {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split(' ').skip(1);
        let mut word = || words.next().ok_or_else(|| format!("a short line: {line:?}"));
        let number = |word: &str| word.parse::<u64>().map_err(|error| format!("{word:?} in {line:?}: {error}"));
        let partition = number(word()?)? as u32;
        let base = number(word()?)?.cast_signed();
        let count = number(word()?)?;
        let first = Stamp { run: number(word()?)? as u32, number: number(word()?)? };
        let level = if word()? == "durable" { Level::Durable } else { Level::Written };
        let at = Duration::from_micros(number(word()?)?);
        Ok(Self { partition, base, count, first, level, at, recorded_bytes: number(word()?)? })
    }
}

/// Now, since 1970.
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// What became of the writer's machine, and so which promises are due.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// The process died: everything is due.
    Killed,
    /// The power went at this time; what was written is due when it was at least this long before. Answers that came
    /// later are none: a machine without power gives no answers. (A file system that is shut down goes on to answer.
    /// ext4 even answers a sync well that was under way, and forgets which blocks it had written.)
    PowerCut { at: Duration, flush_within: Duration },
    /// The disk stopped when its recorded log had this length.
    Recorded { bytes: u64 },
}

impl End {
    pub(crate) fn makes_due(self, ack: &Ack) -> bool {
        match self {
            Self::Killed => true,
            Self::PowerCut { at, flush_within } => {
                ack.at + if ack.level == Level::Durable { Duration::ZERO } else { flush_within } <= at
            }
            Self::Recorded { bytes } => ack.level == Level::Durable && ack.recorded_bytes <= bytes,
        }
    }
}

/// A partition as it was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) log_start: i64,
    /// From the log start on, without gaps.
    pub(crate) records: Vec<Stamp>,
}

impl Found {
    pub(crate) fn tail(&self) -> i64 {
        self.log_start + self.records.len() as i64
    }

    fn at(&self, offset: i64) -> Option<Stamp> {
        self.records.get(usize::try_from(offset - self.log_start).ok()?).copied()
    }
}

/// All that a partition's writers were promised.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    acks: Vec<Ack>,
    /// What was served after a start, and so is safe.
    seen: BTreeMap<i64, Stamp>,
    /// Nothing from here on may be missing at the beginning.
    pub(crate) trimmed_max: i64,
}

/// What a power cut took, within what it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) records: u64,
    /// How long before the cut the oldest of them was written.
    pub(crate) age: Duration,
}

impl Taken {
    pub(crate) fn max(self, other: Self) -> Self {
        Self { records: self.records.max(other.records), age: self.age.max(other.age) }
    }
}

impl Ledger {
    pub(crate) fn note(&mut self, ack: Ack) {
        self.acks.push(ack);
    }

    pub(crate) fn acks(&self) -> &[Ack] {
        &self.acks
    }

    /// Compares; answers what was taken that had been promised to the process only.
    pub(crate) fn check(&mut self, found: &Found, end: End) -> Result<Taken, String> {
        if found.log_start > self.trimmed_max {
            return Err(format!(
                "the log starts at {}, nothing from {} on was removed",
                found.log_start, self.trimmed_max
            ));
        }
        in_order(found)?;
        for (&offset, &stamp) in self.seen.range(found.log_start..) {
            if found.at(offset) != Some(stamp) {
                return Err(format!("{offset} was {stamp:?} after an earlier start and is {:?}", found.at(offset)));
            }
        }
        let mut taken = Taken::default();
        for ack in &self.acks {
            for nth in 0..ack.count {
                let offset = ack.base + nth.cast_signed();
                let stamp = Stamp { number: ack.first.number + nth, ..ack.first };
                match found.at(offset) {
                    _ if offset < found.log_start => {}
                    Some(other) if other == stamp => {}
                    other if end.makes_due(ack) => {
                        return Err(format!("{offset} was acknowledged as {stamp:?} and is {other:?}: {ack}, {end:?}"));
                    }
                    _ => {
                        let End::PowerCut { at, .. } = end else { continue };
                        // What came behind the cut was not taken by it.
                        let Some(age) = at.checked_sub(ack.at) else { continue };
                        taken = Taken { records: taken.records + 1, age: taken.age.max(age) };
                    }
                }
            }
        }
        Ok(taken)
    }

    /// After a check: what was found stays, what was taken is forgotten.
    pub(crate) fn settle(&mut self, found: &Found) {
        self.acks.clear();
        self.seen = (found.log_start..).zip(found.records.iter().copied()).collect();
        self.trimmed_max = self.trimmed_max.max(found.log_start);
    }
}

/// Runs follow each other, and the records of a run each other, from its first one on.
fn in_order(found: &Found) -> Result<(), String> {
    for (at, pair) in found.records.windows(2).enumerate() {
        let [before, after] = [pair[0], pair[1]];
        let goes_on = after.run == before.run && after.number == before.number + 1;
        let begins = after.run > before.run && after.number == 0;
        if !goes_on && !begins {
            let offset = found.log_start + at as i64 + 1;
            return Err(format!("a hole or a record out of order at {offset}: {after:?} behind {before:?}"));
        }
    }
    match found.records.first() {
        Some(first) if found.log_start == 0 && first.number != 0 => Err(format!("the first record is {first:?}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: End = End::PowerCut { at: Duration::from_secs(10), flush_within: Duration::from_secs(1) };

    fn stamps(run: u32, numbers: std::ops::Range<u64>) -> Vec<Stamp> {
        numbers.map(|number| Stamp { run, number }).collect()
    }

    fn ack(base: i64, count: u64, number: u64, level: Level, at_s: u64) -> Ack {
        let first = Stamp { run: 1, number };
        Ack { partition: 0, base, count, first, level, at: Duration::from_secs(at_s), recorded_bytes: 100 }
    }

    fn ledger(acks: &[Ack]) -> Ledger {
        Ledger { acks: acks.to_vec(), ..Ledger::default() }
    }

    #[test]
    fn an_ack_is_read_back_from_its_line() {
        for level in [Level::Written, Level::Durable] {
            let ack = ack(7, 3, 4, level, 5);
            assert_eq!(ack.to_string().parse(), Ok(ack));
        }
        assert!("ack 1 2".parse::<Ack>().is_err());
    }

    #[test]
    fn what_is_due_must_be_there_and_what_is_not_is_counted() {
        let found = Found { log_start: 0, records: stamps(1, 0..5) };
        let kept = ack(3, 2, 3, Level::Durable, 9);
        assert_eq!(ledger(&[kept]).check(&found, END), Ok(Taken::default()));
        let lost = ack(4, 2, 4, Level::Durable, 9);
        assert!(ledger(&[lost]).check(&found, END).unwrap_err().contains("5 was acknowledged"));
        let late = Ack { at: Duration::from_millis(9_500), level: Level::Written, ..lost };
        let taken = Taken { records: 1, age: Duration::from_millis(500) };
        assert_eq!(ledger(&[late]).check(&found, END), Ok(taken));
        let early = Ack { level: Level::Written, ..lost };
        assert!(ledger(&[early]).check(&found, END).is_err());
        assert!(ledger(&[late]).check(&found, End::Killed).is_err());
        assert!(ledger(&[lost]).check(&found, End::Recorded { bytes: 99 }).is_ok());
        assert!(ledger(&[lost]).check(&found, End::Recorded { bytes: 100 }).is_err());
    }

    #[test]
    fn another_record_at_an_acknowledged_offset_is_a_broken_promise() {
        let found = Found { log_start: 0, records: [stamps(1, 0..2), stamps(2, 0..3)].concat() };
        assert!(ledger(&[ack(2, 1, 2, Level::Durable, 1)]).check(&found, END).is_err());
    }

    #[test]
    fn holes_repeats_and_missing_beginnings_are_found() {
        let of = |log_start, records: Vec<Stamp>| Found { log_start, records };
        let hole = [stamps(1, 0..2), stamps(1, 3..5)].concat();
        let twice = [stamps(1, 0..2), stamps(1, 1..3)].concat();
        let run_without_beginning = [stamps(1, 0..2), stamps(2, 1..3)].concat();
        for records in [hole, twice, run_without_beginning, stamps(1, 1..3)] {
            assert!(ledger(&[]).check(&of(0, records), END).is_err());
        }
        assert!(ledger(&[]).check(&of(3, stamps(1, 3..5)), END).unwrap_err().contains("starts at 3"));
        let mut trimmed = Ledger { trimmed_max: 3, ..Ledger::default() };
        assert!(trimmed.check(&of(3, stamps(1, 3..5)), END).is_ok());
    }

    #[test]
    fn what_was_served_once_stays() {
        let mut ledger = ledger(&[]);
        ledger.settle(&Found { log_start: 0, records: stamps(1, 0..3) });
        assert!(ledger.check(&Found { log_start: 0, records: stamps(1, 0..2) }, END).is_err());
        assert!(ledger.check(&Found { log_start: 0, records: stamps(1, 0..4) }, END).is_ok());
    }
}
