//! A compacted partition: what it may forget, and what of each key it must keep.
//!
//! A record's number says its key, and whether it deletes that. Compaction may remove a record when a newer one of its
//! key is there, and one that deletes at any time after it was compacted once. So of each key the newest record that
//! was promised is there, or one behind it; never an older one alone, for that is one that was deleted or replaced.

use std::collections::BTreeMap;

use crate::ledger::{Ack, End, Stamp};

const KEYS: u64 = 5;
/// No multiple of the number of keys: in time each key is deleted.
const DELETES_EVERY: u64 = 7;

/// The key of a record.
pub(crate) const fn key(stamp: Stamp) -> u64 {
    stamp.number % KEYS
}

/// Whether it deletes its key.
pub(crate) const fn deletes(stamp: Stamp) -> bool {
    stamp.number % DELETES_EVERY == DELETES_EVERY - 1
}

/// A record as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) offset: i64,
    pub(crate) key: u64,
    /// `None` when it deletes.
    pub(crate) stamp: Option<Stamp>,
}

impl Record {
    /// What the record with this stamp is at `offset`.
    fn of(offset: i64, stamp: Stamp) -> Self {
        Self { offset, key: key(stamp), stamp: (!deletes(stamp)).then_some(stamp) }
    }
}

/// What was promised of the keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyedLedger {
    acks: Vec<Ack>,
    /// The newest record of each key that was served after a start, and so is safe.
    served: BTreeMap<u64, Record>,
}

impl KeyedLedger {
    pub(crate) fn note(&mut self, ack: Ack) {
        self.acks.push(ack);
    }

    pub(crate) fn count(&self) -> usize {
        self.acks.len()
    }

    fn acknowledged<'a>(&'a self, which: impl Fn(&Ack) -> bool + 'a) -> impl Iterator<Item = Record> + 'a {
        self.acks.iter().filter(move |ack| which(ack)).flat_map(|ack| {
            (0..ack.count).map(|nth| {
                let stamp = Stamp { number: ack.first.number + nth, ..ack.first };
                Record::of(ack.base + nth.cast_signed(), stamp)
            })
        })
    }

    /// Compares `found`, in the order of the log, with what is due; goes on from there.
    pub(crate) fn settle(&mut self, found: &[Record], end: End) -> Result<(), String> {
        if let Some(pair) = found.windows(2).find(|pair| pair[0].offset >= pair[1].offset) {
            return Err(format!("out of order: {:?} behind {:?}", pair[1], pair[0]));
        }
        let known: BTreeMap<i64, Record> = self.acknowledged(|_| true).map(|record| (record.offset, record)).collect();
        if let Some(other) = found.iter().find(|other| known.get(&other.offset).is_some_and(|known| known != *other)) {
            return Err(format!("{other:?} where {:?} was acknowledged", known.get(&other.offset)));
        }
        let mut due = std::mem::take(&mut self.served);
        let promised = self.acknowledged(|ack| end.makes_due(ack));
        promised.for_each(|record| keep_newest(&mut due, record));
        let mut newest = BTreeMap::new();
        found.iter().for_each(|&record| keep_newest(&mut newest, record));
        for (key, due) in &due {
            match newest.get(key) {
                Some(newest) if newest.offset > due.offset || newest == due => {}
                None if due.stamp.is_none() => {}
                other => return Err(format!("the newest record of key {key} must be {due:?} and is {other:?}")),
            }
        }
        // One that deletes and is gone is remembered: what it deleted must not come back.
        newest.into_values().for_each(|record| keep_newest(&mut due, record));
        self.served = due;
        self.acks.clear();
        Ok(())
    }
}

fn keep_newest(records: &mut BTreeMap<u64, Record>, record: Record) {
    let newest = records.entry(record.key).or_insert(record);
    if newest.offset <= record.offset {
        *newest = record;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ledger::Level;

    fn record(offset: i64) -> Record {
        Record::of(offset, Stamp { run: 1, number: offset.cast_unsigned() })
    }

    /// Records 0..`count` were acknowledged at their offsets.
    fn ledger(count: u64) -> KeyedLedger {
        let first = Stamp { run: 1, number: 0 };
        let (level, at) = (Level::Durable, Duration::from_secs(1));
        KeyedLedger {
            acks: vec![Ack { partition: 3, base: 0, count, first, level, at, recorded_bytes: 0 }],
            ..KeyedLedger::default()
        }
    }

    /// Numbers 6 and 13 delete keys 1 and 3.
    #[test]
    fn older_records_may_go_and_what_deletes_may_go_with_them() {
        for found in [(0..15).collect::<Vec<_>>(), vec![10, 11, 12, 13, 14], vec![10, 11, 12, 14]] {
            let found: Vec<_> = found.into_iter().map(record).collect();
            assert_eq!(ledger(15).settle(&found, End::Killed), Ok(()));
        }
    }

    #[test]
    fn a_lost_newest_record_and_one_that_comes_back_are_found() {
        for found in [vec![10, 11, 13, 14], vec![7, 10, 11, 13, 14], vec![8, 10, 11, 12, 14], vec![11, 10, 12, 13, 14]]
        {
            let found: Vec<_> = found.into_iter().map(record).collect();
            assert!(ledger(15).settle(&found, End::Killed).is_err(), "{found:?}");
        }
        let mut ledger = ledger(15);
        let found: Vec<_> = [10, 11, 12, 14].map(record).into();
        ledger.settle(&found, End::Killed).unwrap();
        let back: Vec<_> = [8, 10, 11, 12, 14].map(record).into();
        assert!(ledger.settle(&back, End::Killed).is_err(), "deleted before an earlier start");
    }

    #[test]
    fn another_record_at_an_acknowledged_offset_is_found() {
        let mut found: Vec<_> = (0..15).map(record).collect();
        found[10] = Record { offset: 10, ..record(5) };
        assert!(ledger(15).settle(&found, End::Killed).is_err());
    }
}
