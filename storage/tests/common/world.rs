//! A store on a simulated disk beside a plain list of what must be in it.
//!
//! [`World::apply`] does one [`Operation`] on both and compares. What it demands is listed at [`World::check`] and at
//! each operation; a demand that is not met is an `Err` with the facts, so that a test can also demand that it is *not*
//! met.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tripline_storage::batch::{BatchBuilder, BatchOptions, BatchProducer, CheckedBatch, NewRecord};
use tripline_storage::error::{AppendError, ReadError};
use tripline_storage::fs::sim::{Fault, Lie};
use tripline_storage::fs::{Fs, SimFs};
use tripline_storage::partition::{ReadOutcome, ReadStart};
use tripline_storage::{LeaderEpoch, LogConfig, Offset, Partition, PartitionId, Store, StoreConfig};
use uuid::Uuid;

use crate::faults::Faults;

pub(crate) const TOPIC: Uuid = Uuid::from_u128(0x7471);
const ID: PartitionId = PartitionId { topic: TOPIC, partition: 0 };
const ROOT: &str = "/srv/tripline";
const START_MS: i64 = 1_700_000_000_000;
/// How many batches of a producer may be retried: its window.
const WINDOW: usize = 5;

/// What happens to a partition and the machine below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Appends a batch of `records` records with values of `value_bytes` bytes, by idempotent producer `producer`.
    Append {
        records: u8,
        value_bytes: u16,
        producer: Option<u8>,
    },
    /// Sends one of a producer's last batches again, `back` before the last.
    Retry {
        producer: u8,
        back: u8,
    },
    Flush,
    /// Lets size and, when `by_age`, age remove segments; nothing from `held` records below the tail on goes.
    Retention {
        keep_bytes: u16,
        by_age: bool,
        held: Option<u8>,
    },
    /// Moves the start to the record at `permille` of the log.
    Trim {
        permille: u16,
    },
    /// Reads on from the record at `permille` of the log to its tail.
    Read {
        permille: u16,
        max_bytes: u16,
    },
    /// Looks for a time near that of the record at `permille` of the log.
    TimeLookup {
        permille: u16,
    },
    /// Closes and opens again.
    Reopen,
    /// The process dies.
    Kill,
    /// The machine loses power.
    PowerCut {
        seed: u64,
    },
    /// The disk operation that comes `after` so many others fails.
    FailNth {
        after: u8,
        fault: Fault,
    },
    /// Nothing but `room_bytes` is free from now on.
    FillDisk {
        room_bytes: u32,
    },
    /// There is room again, and no fault is planned.
    Heal,
}

/// A demand that was not met.
#[derive(Debug)]
pub(crate) struct Violation(pub(crate) String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! demand {
    ($holds:expr, $($facts:tt)+) => {
        if !$holds {
            return Err(Violation(format!($($facts)+)));
        }
    };
}

/// A batch that was appended.
#[derive(Clone, Debug)]
pub(crate) struct Appended {
    pub(crate) base: i64,
    times_ms: Vec<i64>,
    pub(crate) stored: Vec<u8>,
    producer: Option<(u8, i32)>,
    sent: CheckedBatch,
}

impl Appended {
    pub(crate) fn next(&self) -> i64 {
        self.base + self.times_ms.len() as i64
    }
}

pub(crate) struct World {
    pub(crate) disk: SimFs,
    config: LogConfig,
    store: Option<Store>,
    partition: Option<Arc<Partition>>,
    /// All that must be there, oldest first.
    pub(crate) batches: Vec<Appended>,
    log_start: i64,
    /// The log start that no crash takes back.
    kept_start: i64,
    /// The log start that a failed retention may have noted without moving it.
    noted_start: i64,
    flushed: i64,
    epoch: LeaderEpoch,
    stopped: bool,
    faults: Faults,
    /// Whether a fault may have kept a flush from noting how far it came.
    unnoted: bool,
    /// Whether a fault may have left half a batch behind the tail since the partition was opened.
    torn: bool,
    now_ms: i64,
    sent: u64,
    next_sequence: [i32; 2],
}

impl Drop for World {
    fn drop(&mut self) {
        // Nothing is to be written by a thread of a world that is gone.
        drop(self.partition.take());
        drop(self.store.take());
    }
}

impl World {
    pub(crate) fn new(config: LogConfig, lie: Option<Lie>) -> Result<Self, Violation> {
        let mut world = Self::unopened(config, lie);
        world.open()?;
        Ok(world)
    }

    fn unopened(config: LogConfig, lie: Option<Lie>) -> Self {
        let disk = SimFs::new();
        if let Some(lie) = lie {
            disk.tell(lie);
        }
        Self {
            disk,
            config,
            store: None,
            partition: None,
            batches: Vec::new(),
            log_start: 0,
            kept_start: 0,
            noted_start: 0,
            flushed: 0,
            epoch: LeaderEpoch::NONE,
            stopped: false,
            faults: Faults::default(),
            unnoted: false,
            torn: false,
            now_ms: START_MS,
            sent: 0,
            next_sequence: [0; 2],
        }
    }

    /// Does the operations of `script` from an empty disk on, until disk operation `number` is the last of the process
    /// or, with a seed, of the machine. What was promised until then must hold afterwards.
    pub(crate) fn until_the_end(
        config: LogConfig,
        number: u64,
        seed: Option<u64>,
        script: &[Operation],
    ) -> Result<(), Violation> {
        let mut world = Self::unopened(config, None);
        world.fail_at(number, Fault::PowerCut);
        let mut ended = world.open().is_err();
        for &operation in script {
            // What fails at the last operation, and is told to nobody, is judged after the restart.
            ended = ended || world.apply(operation).is_err() || world.disk.operations() >= number;
            if ended {
                break;
            }
        }
        let next = seed.map_or_else(|| world.disk.kill(), |seed| world.disk.crash(seed));
        world.end(next);
        world.torn = true;
        world.open_expecting(|world, tail| {
            let floor = if seed.is_some() { world.flushed.max(world.kept_start) } else { world.tail() };
            demand!(tail >= floor, "tail {tail}, {floor} was safe");
            world.forget_from(tail);
            Ok(())
        })?;
        world.check_all()?;
        // And on: what a process left half done must not harm the next one, nor what that one promises.
        script[..4].iter().try_for_each(|&operation| world.apply(operation))?;
        world.apply(Operation::Flush)?;
        world.power_cut(number)
    }

    /// The partition's directory.
    pub(crate) fn dir() -> std::path::PathBuf {
        Path::new(ROOT).join(format!("topics/{TOPIC}/0"))
    }

    pub(crate) fn root() -> &'static Path {
        Path::new(ROOT)
    }

    pub(crate) fn tail(&self) -> i64 {
        self.batches.last().map_or(0, Appended::next)
    }

    pub(crate) fn log_start(&self) -> i64 {
        self.log_start
    }

    /// Does `operation` and compares afterwards.
    pub(crate) fn apply(&mut self, operation: Operation) -> Result<(), Violation> {
        self.now_ms += 7;
        self.disk.set_now(SystemTime::UNIX_EPOCH + Duration::from_millis(self.now_ms.unsigned_abs()));
        match operation {
            Operation::Append { records, value_bytes, producer } => self.append(records, value_bytes, producer)?,
            Operation::Retry { producer, back } => self.retry(producer, back)?,
            Operation::Flush => self.flush()?,
            Operation::Retention { keep_bytes, by_age, held } => self.retention(keep_bytes, by_age, held)?,
            Operation::Trim { permille } => self.trim(permille)?,
            Operation::Read { permille, max_bytes } => self.read(permille, max_bytes.into())?,
            Operation::TimeLookup { permille } => self.look_up(permille)?,
            Operation::Reopen => self.reopen()?,
            Operation::Kill => self.kill()?,
            Operation::PowerCut { seed } => self.power_cut(seed)?,
            Operation::FailNth { after, fault } => self.fail_at(self.disk.operations() + 1 + u64::from(after), fault),
            Operation::FillDisk { room_bytes } => self.fill_disk(room_bytes)?,
            Operation::Heal => self.heal(),
        }
        self.check()
    }

    /// Lets the disk operation `number` fail.
    pub(crate) fn fail_at(&mut self, number: u64, fault: Fault) {
        self.faults.plan(&self.disk, number, fault);
    }

    /// What holds at every moment: tail, start and flushed offset are those of the model, and in order; a partition
    /// that stopped says so.
    fn check(&self) -> Result<(), Violation> {
        let partition = self.partition();
        let found = (partition.log_start().get(), partition.flushed().get(), partition.tail().get());
        let expected = (self.log_start, self.flushed, self.tail());
        demand!(found == expected, "start, flushed, tail are {found:?}, expected {expected:?}");
        demand!(found.0 <= found.2 && found.1 <= found.2, "start and flushed beyond the tail: {found:?}");
        demand!(partition.stopped().is_some() == self.stopped, "stopped: {:?}", partition.stopped());
        Ok(())
    }

    /// All that must be there is, byte for byte and once, whatever the size of the reads.
    pub(crate) fn check_all(&self) -> Result<(), Violation> {
        for max_bytes in [1, 1_500, 1 << 20] {
            self.read_to_tail(self.log_start, max_bytes)?;
        }
        Ok(())
    }

    fn partition(&self) -> &Arc<Partition> {
        self.partition.as_ref().expect("between operations the partition is open")
    }

    /// Whether the disk has an excuse for an error that came since `before`.
    fn may_fail(&self, before: u64) -> bool {
        self.faults.excuse(&self.disk, before)
    }

    // ---- appending ---------------------------------------------------------------------------------------------

    fn append(&mut self, records: u8, value_bytes: u16, producer: Option<u8>) -> Result<(), Violation> {
        let producer = producer.map(|id| (id, self.next_sequence[usize::from(id)]));
        let (sent, times_ms) = self.build(records, value_bytes, producer);
        let before = self.disk.operations();
        // Since an append met a full disk, until somebody has looked again.
        let refused = self.store.as_ref().is_some_and(Store::is_disk_full);
        match self.partition().append(&sent, self.now_ms) {
            Ok(outcome) => {
                demand!(!self.stopped, "a partition that stopped appended");
                demand!(!outcome.duplicate, "a new batch was taken for a repeated one");
                let base = outcome.base_offset.get();
                demand!(base == self.tail(), "appended at {base}, the tail was {}", self.tail());
                let stored = sent.appended_bytes(outcome.base_offset, self.epoch).to_vec();
                self.batches.push(Appended { base, times_ms, stored, producer, sent });
                if let Some((id, sequence)) = producer {
                    self.next_sequence[usize::from(id)] = sequence + i32::from(records);
                }
            }
            Err(AppendError::Stopped(_)) if self.stopped => {}
            Err(AppendError::Stopped(stopped)) => {
                demand!(self.may_fail(before), "stopped without a fault: {stopped}");
                (self.stopped, self.torn) = (true, true);
            }
            Err(AppendError::DiskFull) => {
                demand!(refused || self.may_fail(before), "the disk is not full");
                self.torn = true;
            }
            Err(other) => return Err(Violation(format!("append: {other}"))),
        }
        Ok(())
    }

    fn build(&mut self, records: u8, value_bytes: u16, producer: Option<(u8, i32)>) -> (CheckedBatch, Vec<i64>) {
        let producer =
            producer.map(|(id, base_sequence)| BatchProducer { id: 900 + i64::from(id), epoch: 0, base_sequence });
        let mut builder = BatchBuilder::new(BatchOptions { producer, ..BatchOptions::default() });
        let mut times_ms = Vec::new();
        for _ in 0..records {
            self.sent += 1;
            // Clients' clocks disagree: times go up and down by less than 100.
            let timestamp_ms = START_MS + self.sent.cast_signed() * 10 + (self.sent * 37 % 100).cast_signed();
            let value = format!("{:08}", self.sent).repeat(usize::from(value_bytes) / 8 + 1);
            builder
                .push(&NewRecord { timestamp_ms, value: Some(value.as_bytes()), ..NewRecord::default() })
                .expect("a record of a few KiB fits");
            times_ms.push(timestamp_ms);
        }
        (builder.finish().expect("it has records"), times_ms)
    }

    /// A repeated batch that is still in the log is answered with its offsets and not appended.
    fn retry(&mut self, producer: u8, back: u8) -> Result<(), Violation> {
        let mut window = self.batches.iter().rev().filter(|batch| batch.producer.is_some_and(|(id, _)| id == producer));
        let Some(batch) = window.nth(usize::from(back) % WINDOW) else { return Ok(()) };
        if batch.base < self.log_start {
            return Ok(());
        }
        match self.partition().append(&batch.sent, self.now_ms) {
            Ok(again) => {
                let found = (again.duplicate, again.base_offset.get(), again.last_offset.get() + 1);
                demand!(found == (true, batch.base, batch.next()), "retry of {}..: {again:?}", batch.base);
            }
            Err(AppendError::Stopped(_)) if self.stopped => {}
            Err(other) => return Err(Violation(format!("retry of {}: {other}", batch.base))),
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Violation> {
        let before = self.disk.operations();
        match self.partition().flush() {
            Ok(flushed) => {
                demand!(!self.stopped, "a partition that stopped flushed");
                demand!(flushed.get() == self.tail(), "flushed to {flushed}, the tail is {}", self.tail());
                self.flushed = self.tail();
                self.unnoted |= self.may_fail(before);
                // What it left undone after the data was safe stops it for what comes.
                if self.may_fail(before) {
                    self.stopped = self.partition().stopped().is_some();
                }
            }
            Err(_) if self.stopped => {}
            Err(error) => {
                demand!(self.may_fail(before), "flush failed without a fault: {error}");
                self.stopped = true;
            }
        }
        Ok(())
    }

    // ---- retention ---------------------------------------------------------------------------------------------

    /// The start is where it was asked for, also inside a batch; what lies below was made durable first.
    fn trim(&mut self, permille: u16) -> Result<(), Violation> {
        let to = self.at_permille(permille);
        let (before, old) = (self.disk.operations(), self.log_start);
        let result = self.partition().trim(Offset::new(to).expect("not negative"));
        let partition = self.partition();
        let (start, flushed) = (partition.log_start().get(), partition.flushed().get());
        demand!(start == to || (start == old && result.is_err()), "the log starts at {start}, asked for was {to}");
        demand!(flushed == self.flushed || flushed == self.tail(), "flushed to {flushed}");
        (self.log_start, self.kept_start, self.flushed) = (start, start, flushed);
        self.unnoted |= self.may_fail(before);
        match result {
            Ok(answer) => demand!(answer.get() == start, "answered {answer}, the log starts at {start}"),
            Err(error) => {
                demand!(self.stopped || self.may_fail(before), "trimming failed without a fault: {error}");
                self.noted_start = to;
            }
        }
        self.stopped |= self.may_fail(before) && self.partition().stopped().is_some();
        Ok(())
    }

    /// The start moves to the base of a batch, never back, never beyond what is held, and never past what size and age
    /// ask for.
    fn retention(&mut self, keep_bytes: u16, by_age: bool, held: Option<u8>) -> Result<(), Violation> {
        let retention_age = by_age.then(|| Duration::from_millis(300));
        self.partition().set_config(LogConfig {
            retention_bytes: Some(keep_bytes.into()),
            retention_age,
            ..self.config
        });
        let hold = held.map(|held| Offset::new((self.tail() - i64::from(held)).max(0)).expect("not negative"));
        let (before, old) = (self.disk.operations(), self.log_start);
        let result = self.partition().enforce_retention(Some(self.now_ms), hold);
        let start = self.partition().log_start().get();
        demand!(start >= old, "the log start went from {old} back to {start}");
        let at_batch = start == old || start == self.tail() || self.batches.iter().any(|batch| batch.base == start);
        demand!(at_batch, "the log starts at {start}, inside a batch");
        if let Some(hold) = hold {
            demand!(start <= old.max(hold.get()), "{hold} was held, the log starts at {start}");
        }
        let kept: usize = self.batches.iter().filter(|batch| batch.base >= start).map(|batch| batch.stored.len()).sum();
        demand!(start == old || by_age || kept >= usize::from(keep_bytes), "{kept} of {keep_bytes} bytes are left");
        // What was moved stays moved, also when the files could not be removed.
        (self.log_start, self.kept_start) = (start, start);
        match result {
            Ok(answer) => demand!(answer.get() == start, "answered {answer}, the log starts at {start}"),
            Err(error) => {
                demand!(self.may_fail(before), "retention failed without a fault: {error}");
                self.stopped = self.partition().stopped().is_some();
                self.noted_start = hold.map_or_else(|| self.tail(), Offset::get);
            }
        }
        Ok(())
    }

    // ---- reading -----------------------------------------------------------------------------------------------

    fn at_permille(&self, permille: u16) -> i64 {
        let len = self.tail() - self.log_start;
        self.log_start + len * i64::from(permille.min(1_000)) / 1_000
    }

    fn read(&self, permille: u16, max_bytes: usize) -> Result<(), Violation> {
        self.read_to_tail(self.at_permille(permille), max_bytes)
    }

    fn read_to_tail(&self, from: i64, max_bytes: usize) -> Result<(), Violation> {
        let mut at = from;
        while at < self.tail() {
            let before = self.disk.operations();
            let outcome = match self.read_once(at, max_bytes) {
                Ok(outcome) => outcome,
                Err(ReadError::Io(_)) if self.may_fail(before) => return Ok(()),
                Err(other) => return Err(Violation(format!("read at {at}: {other}"))),
            };
            at = self.compare(at, max_bytes, &outcome)?;
        }
        let at_tail = self.read_once(at, max_bytes).map_err(|error| Violation(format!("read at the tail: {error}")))?;
        demand!(at_tail.bytes.is_empty(), "bytes behind the tail");
        let beyond = self.read_once(self.tail() + 1, max_bytes);
        demand!(matches!(beyond, Err(ReadError::OutOfRange { .. })), "beyond the tail: {beyond:?}");
        if self.log_start > 0 {
            let below = self.read_once(self.log_start - 1, max_bytes);
            demand!(matches!(below, Err(ReadError::OutOfRange { .. })), "below the start: {below:?}");
        }
        Ok(())
    }

    /// A read as the broker does it: at once where that goes, else where blocking is fine.
    fn read_once(&self, at: i64, max_bytes: usize) -> Result<ReadOutcome, ReadError> {
        let at = Offset::new(at).expect("not negative");
        match self.partition().read(at, max_bytes)? {
            ReadStart::Ready(outcome) => Ok(outcome),
            ReadStart::Cold(cold) => cold.run(),
        }
    }

    /// Whole batches from the one that holds `at` on, as many as fit, and where to go on behind them.
    fn compare(&self, at: i64, max_bytes: usize, outcome: &ReadOutcome) -> Result<i64, Violation> {
        let first = self.batches.partition_point(|batch| batch.next() <= at);
        let mut rest = &outcome.bytes[..];
        let mut next = at;
        for (number, batch) in self.batches[first..].iter().enumerate() {
            if rest.is_empty() && number > 0 {
                break;
            }
            let Some(behind) = rest.strip_prefix(&batch.stored[..]) else {
                return Err(Violation(format!("wrong bytes at {} (read at {at})", batch.base)));
            };
            (rest, next) = (behind, batch.next());
        }
        demand!(rest.is_empty(), "{} bytes too many (read at {at})", rest.len());
        demand!(outcome.next.get() == next, "read at {at} goes on at {}, expected {next}", outcome.next);
        let one_batch = self.batches[first].stored.len() == outcome.bytes.len();
        demand!(outcome.bytes.len() <= max_bytes || one_batch, "{} bytes for {max_bytes}", outcome.bytes.len());
        Ok(next)
    }

    /// The first record of the log that is not older.
    fn look_up(&self, permille: u16) -> Result<(), Violation> {
        let records = || self.batches.iter().flat_map(|batch| (batch.base..).zip(&batch.times_ms));
        let near = self.at_permille(permille);
        let time_ms = records().find(|(offset, _)| *offset == near).map_or(START_MS, |(_, time_ms)| *time_ms);
        for wanted_ms in [time_ms, time_ms + 1, time_ms + 5_000] {
            let expected = records().find(|(offset, time_ms)| *offset >= self.log_start && **time_ms >= wanted_ms);
            let before = self.disk.operations();
            match self.partition().offset_for_time(wanted_ms) {
                Ok(found) => {
                    let found = found.map(|(offset, time_ms)| (offset.get(), time_ms));
                    let expected = expected.map(|(offset, time_ms)| (offset, *time_ms));
                    demand!(found == expected, "time {wanted_ms}: found {found:?}, expected {expected:?}");
                }
                Err(ReadError::Io(_)) if self.may_fail(before) => {}
                Err(other) => return Err(Violation(format!("time {wanted_ms}: {other}"))),
            }
        }
        Ok(())
    }

    // ---- ends and beginnings -----------------------------------------------------------------------------------

    /// A close loses nothing, and what was closed without a fault needs no repair.
    fn reopen(&mut self) -> Result<(), Violation> {
        let before = self.disk.operations();
        self.store.as_ref().expect("open").close();
        let faulty = self.may_fail(before);
        let clean = !faulty && !self.stopped && !self.unnoted;
        self.end(self.disk.clone());
        if !faulty && !self.stopped {
            self.flushed = self.tail();
        }
        let repaired = self.open()?;
        demand!(!(clean && repaired), "closed cleanly, yet repaired");
        self.check_all()
    }

    /// Nothing that was appended is lost.
    fn kill(&mut self) -> Result<(), Violation> {
        let next = self.disk.kill();
        self.end(next);
        self.open()?;
        self.check_all()
    }

    /// All below the flushed offset is there, and of the rest a prefix of whole batches.
    pub(crate) fn power_cut(&mut self, seed: u64) -> Result<(), Violation> {
        let next = self.disk.crash(seed);
        self.end(next);
        self.torn = true;
        self.open_expecting(|world, tail| {
            let floor = world.flushed.max(world.kept_start);
            demand!(tail >= floor, "tail {tail} after a power cut, {floor} was safe");
            world.forget_from(tail);
            Ok(())
        })?;
        self.check_all()
    }

    /// What a power cut took.
    fn forget_from(&mut self, tail: i64) {
        self.batches.retain(|batch| batch.next() <= tail);
        // It is sent again, so the producers go on where the log ends.
        for id in 0..2_u8 {
            let ends = self.batches.iter().filter_map(|batch| {
                let (producer, sequence) = batch.producer?;
                (producer == id).then(|| sequence + batch.times_ms.len() as i32)
            });
            self.next_sequence[usize::from(id)] = ends.max().unwrap_or(0);
        }
    }

    /// The process is gone; what it held open is, too.
    fn end(&mut self, next: SimFs) {
        drop(self.partition.take());
        drop(self.store.take());
        self.disk = next;
        self.heal();
    }

    fn open(&mut self) -> Result<bool, Violation> {
        self.open_expecting(|_, _| Ok(()))
    }

    /// Opens store and partition and compares with what `expect` leaves of the model. Answers whether recovery had
    /// something to do.
    fn open_expecting(
        &mut self,
        expect: impl FnOnce(&mut Self, i64) -> Result<(), Violation>,
    ) -> Result<bool, Violation> {
        let config = StoreConfig {
            flush_interval: Duration::from_secs(3600),
            flush_threads: 1,
            open_segments_max: 2,
            reserve_bytes: 3 << 12,
            ..StoreConfig::default()
        };
        let fs: Arc<dyn Fs> = Arc::new(self.disk.clone());
        let store = Store::open(fs, Path::new(ROOT), config, Uuid::from_u128(1))
            .map_err(|error| Violation(format!("store: {error}")))?;
        demand!(store.leader_epoch() > self.epoch, "epoch {} after {}", store.leader_epoch(), self.epoch);
        self.epoch = store.leader_epoch();
        let (partition, report) =
            store.open_partition(ID, self.config).map_err(|error| Violation(format!("partition: {error}")))?;
        demand!(report.damaged.is_empty(), "damage on a disk that has none: {report:?}");
        demand!(report.alien.is_empty(), "alien names: {report:?}");
        demand!(report.cut.is_none() || self.torn, "cut although nothing was torn: {report:?}");
        demand!(report.tail == partition.tail(), "report {report:?}, tail {}", partition.tail());
        let tail = partition.tail().get();
        expect(self, tail)?;
        demand!(tail == self.tail(), "tail {tail} after opening, expected {}: {report:?}", self.tail());
        let start = partition.log_start().get();
        let allowed = self.kept_start..=self.log_start.max(self.noted_start).min(tail);
        demand!(allowed.contains(&start), "log start {start} after opening, allowed {allowed:?}");
        demand!(partition.flushed() == partition.tail(), "flushed {} of {tail}", partition.flushed());
        (self.log_start, self.kept_start, self.noted_start, self.flushed) = (start, start, start, tail);
        (self.stopped, self.unnoted, self.torn) = (false, false, false);
        self.store = Some(store);
        self.partition = Some(partition);
        Ok(!report.is_clean())
    }

    // ---- the disk ----------------------------------------------------------------------------------------------

    fn fill_disk(&mut self, room_bytes: u32) -> Result<(), Violation> {
        let before = self.disk.operations();
        if let Err(error) = self.faults.fill(&self.disk, Path::new(ROOT), room_bytes.into()) {
            demand!(self.may_fail(before), "free bytes: {error}");
        }
        Ok(())
    }

    fn heal(&mut self) {
        self.faults.heal(&self.disk);
        if let Some(store) = &self.store {
            store.look_for_room();
        }
    }
}
