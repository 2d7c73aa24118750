//! A compacted log on a simulated disk beside a plain list of what was appended to it.
//!
//! [`Keyed::apply`] does one [`Operation`] on both. What a log may have lost at any moment is what [`Keyed::check_all`]
//! allows: records with a newer one of their key, and tombstones whose time has come.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tripline_storage::batch::{
    BatchBuilder, BatchLimits, BatchOptions, BatchProducer, BatchView, Batches, CheckedBatch, Compression, NewRecord,
};
use tripline_storage::error::{AppendError, CompactError};
use tripline_storage::fs::sim::{Fault, Lie};
use tripline_storage::fs::{Fs as _, SimFs};
use tripline_storage::partition::{CompactionOutcome, RecoveryReport};
use tripline_storage::{CompactionConfig, LogConfig, Offset, Partition, PartitionId, Store, StoreConfig};
use uuid::Uuid;

use crate::faults::Faults;

const TOPIC: Uuid = Uuid::from_u128(0x6b65);
const ID: PartitionId = PartitionId { topic: TOPIC, partition: 0 };
const ROOT: &str = "/srv/tripline";
const START_MS: i64 = 1_700_000_000_000;
/// How long tombstones stay.
pub(crate) const TOMBSTONE_MS: i64 = 10_000;
const WINDOW: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Appends a batch whose records have these keys; a tombstone where the bit of the record's place is set.
    Append {
        keys: [u8; 4],
        tombstones: u8,
        producer: Option<u8>,
        codec: u8,
    },
    /// Sends one of a producer's last batches again, `back` before the last.
    Retry {
        producer: u8,
        back: u8,
    },
    Flush,
    /// Compacts, `after_ms` later.
    Compact {
        after_ms: u16,
    },
    /// Moves the start to the record at `permille` of the log.
    Trim {
        permille: u16,
    },
    /// Removes the files that tell of producers: the log alone has to.
    LoseSnapshots,
    /// Lets all producers be forgotten, as after a day without use.
    Forget,
    Reopen,
    Kill,
    PowerCut {
        seed: u64,
    },
    FailNth {
        after: u8,
        fault: Fault,
    },
    FillDisk,
    Heal,
}

/// A demand that was not met.
#[derive(Debug)]
pub(crate) struct Violation(pub(crate) String);

macro_rules! demand {
    ($holds:expr, $($facts:tt)+) => {
        if !$holds {
            return Err(Violation(format!($($facts)+)));
        }
    };
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: u8,
    pub(crate) value: Option<String>,
    time_ms: i64,
}

#[derive(Clone, Debug)]
struct Appended {
    base: i64,
    records: Vec<Record>,
    producer: Option<(u8, i32)>,
    sent: CheckedBatch,
}

impl Appended {
    fn next(&self) -> i64 {
        self.base + self.records.len() as i64
    }
}

pub(crate) struct Keyed {
    pub(crate) disk: SimFs,
    config: LogConfig,
    keys_bytes: usize,
    store: Option<Store>,
    pub(crate) partition: Option<Arc<Partition>>,
    batches: Vec<Appended>,
    log_start: i64,
    noted_start: i64,
    flushed: i64,
    /// When a tombstone that stood below an offset was compacted for the first time, at the earliest: (offset, time).
    compactions: Vec<(i64, i64)>,
    now_ms: i64,
    sent: u64,
    next_sequence: [i32; 2],
    /// Below, batches are of producers that were forgotten since.
    forgotten_to: i64,
    faults: Faults,
    /// Whether it looks at everything after each compaction, not only after each start.
    pub(crate) looks: bool,
}

impl Drop for Keyed {
    fn drop(&mut self) {
        drop(self.partition.take());
        drop(self.store.take());
    }
}

/// Segments of a few batches, and everything is due at once.
pub(crate) fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 1024,
        index_interval_bytes: 200,
        retention_age: None,
        compaction: Some(CompactionConfig {
            dirty_millionths_min: 0,
            tombstone_age: Duration::from_millis(TOMBSTONE_MS.unsigned_abs()),
            ..CompactionConfig::default()
        }),
        ..LogConfig::default()
    }
}

impl Keyed {
    pub(crate) fn new(config: LogConfig, keys_bytes: usize, lie: Option<Lie>) -> Result<Self, Violation> {
        let mut world = Self::unopened(config, keys_bytes, lie);
        world.open(None)?;
        Ok(world)
    }

    fn unopened(config: LogConfig, keys_bytes: usize, lie: Option<Lie>) -> Self {
        let disk = SimFs::new();
        if let Some(lie) = lie {
            disk.tell(lie);
        }
        Self {
            disk,
            config,
            keys_bytes,
            store: None,
            partition: None,
            batches: Vec::new(),
            log_start: 0,
            noted_start: 0,
            flushed: 0,
            compactions: Vec::new(),
            now_ms: START_MS,
            sent: 0,
            next_sequence: [0; 2],
            forgotten_to: 0,
            faults: Faults::default(),
            looks: false,
        }
    }

    /// Does `script` from an empty disk on, until disk operation `number` is the last of the process or, with a seed,
    /// of the machine; then once more, on what is left.
    pub(crate) fn until_the_end(
        config: LogConfig,
        number: u64,
        seed: Option<u64>,
        script: &[Operation],
    ) -> Result<(), Violation> {
        let mut world = Self::unopened(config, 16 << 10, None);
        world.fail_at(number, Fault::PowerCut);
        let mut ended = world.open(None).is_err();
        for &operation in script {
            ended = ended || world.apply(operation).is_err() || world.disk.operations() >= number;
            if ended {
                break;
            }
        }
        match seed {
            None => world.apply(Operation::Kill)?,
            Some(seed) => world.apply(Operation::PowerCut { seed })?,
        }
        script.iter().try_for_each(|&operation| world.apply(operation))
    }

    pub(crate) fn dir() -> PathBuf {
        Path::new(ROOT).join(format!("topics/{TOPIC}/0"))
    }

    pub(crate) fn partition(&self) -> &Arc<Partition> {
        self.partition.as_ref().expect("between operations the partition is open")
    }

    pub(crate) fn tail(&self) -> i64 {
        self.batches.last().map_or(0, Appended::next)
    }

    pub(crate) fn apply(&mut self, operation: Operation) -> Result<(), Violation> {
        self.pass(7);
        match operation {
            Operation::Append { keys, tombstones, producer, codec } => self.append(keys, tombstones, producer, codec),
            Operation::Retry { producer, back } => self.retry(producer, back),
            Operation::Flush => self.flush(),
            Operation::Compact { after_ms } => {
                self.pass(after_ms.into());
                self.compact().map(|_| ())
            }
            Operation::Trim { permille } => self.trim(permille),
            Operation::LoseSnapshots => self.lose_snapshots(),
            Operation::Forget => {
                self.partition().expire_producers(i64::MAX);
                self.forgotten_to = self.tail();
                Ok(())
            }
            Operation::Reopen => {
                self.store.as_ref().expect("open").close();
                let faulty = self.faults.are_any() || self.partition().stopped().is_some();
                if !faulty {
                    self.flushed = self.tail();
                }
                self.end(self.disk.clone());
                self.open(None)?;
                self.check_all().map(|_| ())
            }
            Operation::Kill => {
                self.end(self.disk.kill());
                self.open(None)?;
                self.check_all().map(|_| ())
            }
            Operation::PowerCut { seed } => {
                self.end(self.disk.crash(seed));
                self.open(Some(self.flushed))?;
                self.check_all().map(|_| ())
            }
            Operation::FailNth { after, fault } => {
                self.fail_at(self.disk.operations() + 1 + u64::from(after), fault);
                Ok(())
            }
            Operation::FillDisk => self.fill_disk(),
            Operation::Heal => {
                self.heal();
                Ok(())
            }
        }
    }

    fn fill_disk(&mut self) -> Result<(), Violation> {
        let before = self.disk.operations();
        if let Err(error) = self.faults.fill(&self.disk, Path::new(ROOT), 0) {
            demand!(self.faults.excuse(&self.disk, before), "free bytes: {error}");
        }
        Ok(())
    }

    fn pass(&mut self, time_ms: i64) {
        self.now_ms += time_ms;
        self.disk.set_now(SystemTime::UNIX_EPOCH + Duration::from_millis(self.now_ms.unsigned_abs()));
    }

    pub(crate) fn fail_at(&mut self, number: u64, fault: Fault) {
        self.faults.plan(&self.disk, number, fault);
    }

    fn heal(&mut self) {
        self.faults.heal(&self.disk);
        if let Some(store) = &self.store {
            store.look_for_room();
        }
    }

    fn excused(&self, before: u64) -> bool {
        let refused = self.store.as_ref().is_some_and(Store::is_disk_full);
        refused || self.faults.excuse(&self.disk, before) || self.partition().stopped().is_some()
    }

    // ---- changing ----------------------------------------------------------------------------------------------

    /// The next batch of a producer is taken, also where it was forgotten and nothing but the log tells of it.
    fn append(&mut self, keys: [u8; 4], tombstones: u8, producer: Option<u8>, codec: u8) -> Result<(), Violation> {
        let producer = producer.map(|id| (id, self.next_sequence[usize::from(id)]));
        let (sent, records) = self.build(keys, tombstones, producer, codec);
        let before = self.disk.operations();
        match self.partition().append(&sent, self.now_ms) {
            Ok(outcome) => {
                demand!(!outcome.duplicate, "a new batch was taken for a repeated one");
                let base = outcome.base_offset.get();
                demand!(base == self.tail(), "appended at {base}, the tail was {}", self.tail());
                if let Some((id, sequence)) = producer {
                    self.next_sequence[usize::from(id)] = sequence + records.len() as i32;
                }
                self.batches.push(Appended { base, records, producer, sent });
            }
            Err(AppendError::Stopped(_) | AppendError::DiskFull) => {
                demand!(self.excused(before), "append failed without a fault");
            }
            Err(other) => return Err(Violation(format!("append: {other}"))),
        }
        Ok(())
    }

    fn build(
        &mut self,
        keys: [u8; 4],
        tombstones: u8,
        producer: Option<(u8, i32)>,
        codec: u8,
    ) -> (CheckedBatch, Vec<Record>) {
        let producer =
            producer.map(|(id, base_sequence)| BatchProducer { id: 900 + i64::from(id), epoch: 0, base_sequence });
        let compression = Compression::ALL[usize::from(codec) % Compression::ALL.len()];
        let mut builder = BatchBuilder::new(BatchOptions { producer, compression, ..BatchOptions::default() });
        let mut records = Vec::new();
        for (place, key) in keys.into_iter().enumerate() {
            self.sent += 1;
            let value = (tombstones >> place & 1 == 0).then(|| format!("{:08}", self.sent).repeat(1 + place * 3));
            let time_ms = START_MS + self.sent.cast_signed() * 10 + (self.sent * 37 % 100).cast_signed();
            builder
                .push(&NewRecord {
                    timestamp_ms: time_ms,
                    key: Some(&[key]),
                    value: value.as_deref().map(str::as_bytes),
                    headers: &[],
                })
                .expect("a small record fits");
            records.push(Record { key, value, time_ms });
        }
        (builder.finish().expect("it has records"), records)
    }

    /// A batch of a producer that did not send the one before.
    pub(crate) fn skipping(&mut self, producer: u8) -> CheckedBatch {
        let next = self.next_sequence[usize::from(producer)];
        self.build([1, 2, 3, 4], 0, Some((producer, next + 4)), 0).0
    }

    /// A repeated batch is answered with its offsets, whatever compaction and recovery made of it.
    fn retry(&mut self, producer: u8, back: u8) -> Result<(), Violation> {
        let mut window = self.batches.iter().rev().filter(|batch| batch.producer.is_some_and(|(id, _)| id == producer));
        let Some(batch) = window.nth(usize::from(back) % WINDOW) else { return Ok(()) };
        if batch.base < self.log_start.max(self.forgotten_to) {
            return Ok(());
        }
        match self.partition().append(&batch.sent, self.now_ms) {
            Ok(again) => {
                let found = (again.duplicate, again.base_offset.get(), again.last_offset.get() + 1);
                demand!(found == (true, batch.base, batch.next()), "retry of {}..: {again:?}", batch.base);
            }
            Err(AppendError::Stopped(_)) if self.partition().stopped().is_some() => {}
            Err(other) => return Err(Violation(format!("retry of {}: {other}", batch.base))),
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Violation> {
        let before = self.disk.operations();
        match self.partition().flush() {
            Ok(flushed) => {
                demand!(flushed.get() == self.tail(), "flushed to {flushed}, the tail is {}", self.tail());
                self.flushed = self.tail();
            }
            Err(error) => demand!(self.excused(before), "flush failed without a fault: {error}"),
        }
        Ok(())
    }

    fn trim(&mut self, permille: u16) -> Result<(), Violation> {
        let to = self.log_start + (self.tail() - self.log_start) * i64::from(permille.min(1_000)) / 1_000;
        let before = self.disk.operations();
        let result = self.partition().trim(Offset::new(to).expect("not negative"));
        self.flushed = self.partition().flushed().get();
        self.log_start = self.partition().log_start().get();
        if let Err(error) = result {
            demand!(self.excused(before), "trimming failed without a fault: {error}");
            self.noted_start = self.noted_start.max(to);
        }
        Ok(())
    }

    fn lose_snapshots(&self) -> Result<(), Violation> {
        let paths = self.disk.paths();
        let snapshots = paths.iter().filter(|path| path.extension().is_some_and(|found| found == "snapshot"));
        for path in snapshots {
            let before = self.disk.operations();
            if let Err(error) = self.disk.remove_file(path) {
                demand!(self.faults.excuse(&self.disk, before), "removing {}: {error}", path.display());
            }
        }
        Ok(())
    }

    /// What a compaction that ended well left is compact and durable, and nothing is gone that should not be.
    pub(crate) fn compact(&mut self) -> Result<Option<CompactionOutcome>, Violation> {
        let before = self.disk.operations();
        let result = self.partition().compact(Some(self.now_ms), None, &|| true);
        // Also one that failed may have gone over some.
        self.compactions.push((self.tail(), self.now_ms));
        let outcome = match result {
            Ok(outcome) => {
                if outcome.is_some() {
                    let flushed = self.partition().flushed().get();
                    demand!(flushed == self.tail(), "flushed to {flushed}, the tail is {}", self.tail());
                    self.flushed = flushed;
                }
                outcome
            }
            Err(error) => {
                demand!(self.excused(before), "compaction failed without a fault: {error}");
                demand!(!matches!(error, CompactError::Interrupted), "nobody interrupted");
                None
            }
        };
        if !self.looks || self.faults.lie_ahead(&self.disk) {
            // A planned fault would come with the look.
            return Ok(outcome);
        }
        let found = self.check_all()?;
        if let Some(outcome) = &outcome {
            demand!(outcome.damaged.is_empty(), "damage on a disk that has none: {outcome:?}");
            self.check_compact(&found, outcome.to.get())?;
        }
        Ok(outcome)
    }

    /// Below `to`, every record is the newest of its key there, and no tombstone is overdue.
    fn check_compact(&self, found: &BTreeMap<i64, Record>, to: i64) -> Result<(), Violation> {
        let mut newest = HashMap::new();
        for (&offset, record) in found.range(..to) {
            if let Some(older) = newest.insert(record.key, offset) {
                return Err(Violation(format!("key {} at {older} and at {offset}, compacted to {to}", record.key)));
            }
        }
        Ok(())
    }

    // ---- looking -----------------------------------------------------------------------------------------------

    /// What is there is what was appended; what is not there may be gone.
    pub(crate) fn check_all(&self) -> Result<BTreeMap<i64, Record>, Violation> {
        let found = self.read_all(1 << 20)?;
        let max_bytes = if self.sent.is_multiple_of(4) { 1 } else { 700 };
        demand!(self.read_all(max_bytes)? == found, "reads of {max_bytes} bytes show something else");
        let appended: BTreeMap<i64, &Record> =
            self.batches.iter().flat_map(|batch| (batch.base..).zip(&batch.records)).collect();
        let mut newest: HashMap<u8, i64> = HashMap::new();
        for (&offset, record) in &appended {
            newest.insert(record.key, offset);
        }
        for (offset, record) in &found {
            demand!(
                appended.get(offset) == Some(&record),
                "at {offset}: {record:?}, appended {:?}",
                appended.get(offset)
            );
            let last = newest[&record.key];
            let came_back =
                record.value.is_some() && last != *offset && last >= self.log_start && !found.contains_key(&last);
            demand!(!came_back, "key {} is back: {offset} is there, {last} is not", record.key);
        }
        for (&offset, record) in appended.range(self.log_start..) {
            if found.contains_key(&offset) || newest[&record.key] > offset {
                continue;
            }
            demand!(record.value.is_none(), "the newest record of key {} at {offset} is gone", record.key);
            let first = self.compactions.iter().find(|(tail, _)| *tail > offset).map(|(_, time_ms)| *time_ms);
            let due = first.is_some_and(|first_ms| first_ms + TOMBSTONE_MS <= self.now_ms);
            demand!(due, "the tombstone at {offset} is gone, first compacted at {first:?}, now {}", self.now_ms);
        }
        self.check_times(&found)?;
        Ok(found)
    }

    fn check_times(&self, found: &BTreeMap<i64, Record>) -> Result<(), Violation> {
        let mut times: Vec<_> = found.values().map(|record| record.time_ms).step_by(3).collect();
        times.push(START_MS);
        for wanted_ms in times {
            let expected = found.iter().find(|(_, record)| record.time_ms >= wanted_ms);
            let expected = expected.map(|(offset, record)| (*offset, record.time_ms));
            let at = self.partition().offset_for_time(wanted_ms).map_err(|error| Violation(error.to_string()))?;
            let at = at.map(|(offset, time_ms)| (offset.get(), time_ms));
            demand!(at == expected, "time {wanted_ms}: found {at:?}, expected {expected:?}");
        }
        Ok(())
    }

    /// All records from the log start on. Batches are whole and dense.
    fn read_all(&self, max_bytes: usize) -> Result<BTreeMap<i64, Record>, Violation> {
        let mut found = BTreeMap::new();
        let mut at = self.log_start;
        while at < self.tail() {
            let from = Offset::new(at).expect("not negative");
            let outcome = self
                .partition()
                .read_blocking(from, max_bytes)
                .map_err(|error| Violation(format!("at {at}: {error}")))?;
            demand!(!outcome.bytes.is_empty(), "nothing at {at}, the tail is {}", self.tail());
            let mut expected = None;
            let (mut leads_on, known) = (true, found.len());
            for view in Batches::of(&outcome.bytes) {
                let view = view.map_err(|error| Violation(format!("at {at}: {error}")))?;
                view.verify_crc().map_err(|error| Violation(format!("at {at}: {error}")))?;
                let base = view.header().base_offset.get();
                demand!(expected.is_none_or(|expected| base == expected), "{base} after {expected:?}");
                leads_on &= expected.is_some() || base <= at;
                expected = Some(view.header().next_offset().get());
                self.take_records(&view, &mut found)?;
            }
            demand!(leads_on || found.len() > known, "asked for {at}, the batches begin behind it and are empty");
            demand!(expected == Some(outcome.next.get()), "goes on at {}, batches end at {expected:?}", outcome.next);
            at = outcome.next.get();
        }
        Ok(found)
    }

    fn take_records(&self, view: &BatchView<'_>, found: &mut BTreeMap<i64, Record>) -> Result<(), Violation> {
        let records = view.records(&BatchLimits::default()).map_err(|error| Violation(error.to_string()))?;
        for record in &records {
            let record = record.map_err(|error| Violation(error.to_string()))?;
            let value = record.value().map(|value| String::from_utf8(value.to_vec()).expect("text was appended"));
            let key = record.key().expect("all have keys")[0];
            let seen = Record { key, value, time_ms: record.timestamp_ms() };
            if record.offset().get() >= self.log_start {
                found.insert(record.offset().get(), seen);
            }
        }
        Ok(())
    }

    // ---- ends and beginnings -----------------------------------------------------------------------------------

    fn end(&mut self, next: SimFs) {
        drop(self.partition.take());
        drop(self.store.take());
        self.disk = next;
        self.heal();
    }

    /// After a power cut, everything from `safe_to` on may be gone.
    fn open(&mut self, safe_to: Option<i64>) -> Result<(), Violation> {
        let (store, partition, report) = open_on(&self.disk, self.config, self.keys_bytes)?;
        demand!(report.damaged.is_empty() && report.alien.is_empty(), "{report:?}");
        let tail = partition.tail().get();
        if let Some(safe_to) = safe_to {
            demand!(tail >= safe_to, "tail {tail} after a power cut, {safe_to} was safe");
            self.forget_from(tail);
        }
        demand!(tail == self.tail(), "tail {tail} after opening, expected {}: {report:?}", self.tail());
        let start = partition.log_start().get();
        let allowed = self.log_start..=self.log_start.max(self.noted_start).min(tail);
        demand!(allowed.contains(&start), "log start {start} after opening, allowed {allowed:?}");
        let left =
            self.disk.paths().into_iter().find(|path| {
                path.extension().is_some_and(|found| found == "clean" || found == "swap" || found == "tmp")
            });
        demand!(left.is_none(), "{left:?} is left");
        (self.log_start, self.noted_start, self.flushed) = (start, start, tail);
        (self.store, self.partition) = (Some(store), Some(partition));
        Ok(())
    }

    fn forget_from(&mut self, tail: i64) {
        self.batches.retain(|batch| batch.next() <= tail);
        self.forgotten_to = self.forgotten_to.min(tail);
        for id in 0..2_u8 {
            let ends = self.batches.iter().filter_map(|batch| {
                let (producer, sequence) = batch.producer?;
                (producer == id).then(|| sequence + batch.records.len() as i32)
            });
            self.next_sequence[usize::from(id)] = ends.max().unwrap_or(0);
        }
    }
}

pub(crate) fn open_on(
    disk: &SimFs,
    config: LogConfig,
    keys_bytes: usize,
) -> Result<(Store, Arc<Partition>, RecoveryReport), Violation> {
    let store_config = StoreConfig {
        flush_interval: Duration::from_secs(3600),
        flush_threads: 1,
        open_segments_max: 2,
        compaction_keys_bytes: keys_bytes,
        reserve_bytes: 0,
        ..StoreConfig::default()
    };
    let store = Store::open(Arc::new(disk.clone()), Path::new(ROOT), store_config, Uuid::from_u128(1))
        .map_err(|error| Violation(format!("store: {error}")))?;
    let (partition, report) =
        store.open_partition(ID, config).map_err(|error| Violation(format!("partition: {error}")))?;
    Ok((store, partition, report))
}
