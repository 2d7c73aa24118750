//! A data directory on a real disk: a process that writes to it through the storage crate and tells what it was
//! promised, and the look at what is there afterwards.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use event_listener::Listener;
use tripline_storage::batch::{BatchBuilder, BatchLimits, BatchOptions, Batches, NewRecord, RecordView};
use tripline_storage::fs::OsFs;
use tripline_storage::partition::AppendOutcome;
use tripline_storage::{CompactionConfig, LogConfig, Offset, Partition, PartitionId, Store, StoreConfig};
use uuid::Uuid;

use crate::keyed::{self, KeyedLedger};
use crate::ledger::{Ack, End, Found, Ledger, Level, Stamp, Taken, now};
use crate::{Failure, Verdict};

const TOPIC: Uuid = Uuid::from_u128(0x7471);
/// Partition 0 is written to with a wait for the disk, 1 without, 2 with both, and it loses its oldest segments.
const PARTITIONS: u32 = 3;
/// This one is compacted.
const KEYED: u32 = 3;
/// What a partition keeps of earlier runs.
const KEPT_FROM_RUNS_BYTES: u64 = 4 << 20;
/// What partition 2 keeps.
const KEPT_BYTES: u64 = 48 << 10;
/// How long what nobody waits for may stay unflushed.
pub(crate) const FLUSH_INTERVAL: Duration = Duration::from_millis(50);

fn config() -> LogConfig {
    LogConfig { segment_bytes: 16 << 10, index_interval_bytes: 1024, retention_age: None, ..LogConfig::default() }
}

/// So that each compaction that is asked for has something to do, and what deletes may go with the next one.
fn keyed_config() -> LogConfig {
    let compaction =
        CompactionConfig { dirty_millionths_min: 0, tombstone_age: Duration::ZERO, ..CompactionConfig::default() };
    LogConfig { compaction: Some(compaction), ..config() }
}

fn open_store(data: &Path, flush_interval: Duration, flush_threads: usize) -> Result<Store, Failure> {
    let config = StoreConfig { flush_interval, flush_threads, ..StoreConfig::default() };
    Ok(Store::open(Arc::new(OsFs), data, config, Uuid::from_u128(1))?)
}

fn open_partition(store: &Store, partition: u32) -> Result<Arc<Partition>, Failure> {
    let id = PartitionId { topic: TOPIC, partition };
    let config = if partition == KEYED { keyed_config() } else { config() };
    let (opened, report) = store.open_partition(id, config)?;
    if !report.damaged.is_empty() || !report.alien.is_empty() {
        return Err(format!("damage or alien names on a disk that has none: {report:?}").into());
    }
    Ok(opened)
}

// ---- reading -------------------------------------------------------------------------------------------------------

/// Opens the directory as the next start does, and reads all.
pub(crate) fn read_all(data: &Path) -> Result<FoundStore, Failure> {
    let store = open_store(data, Duration::from_secs(3600), 1)?;
    let dense = (0..PARTITIONS).map(|number| read_partition(&*open_partition(&store, number)?));
    Ok(FoundStore { dense: dense.collect::<Result<_, _>>()?, keyed: read_keyed(&*open_partition(&store, KEYED)?)? })
}

/// All that is in a directory.
#[derive(Debug)]
pub(crate) struct FoundStore {
    dense: Vec<Found>,
    keyed: Vec<keyed::Record>,
}

/// What the writers of a directory were promised.
#[derive(Clone, Debug, Default)]
pub(crate) struct Promises {
    dense: BTreeMap<u32, Ledger>,
    keyed: KeyedLedger,
}

impl Promises {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.dense.values().map(|ledger| ledger.acks().len()).sum::<usize>() + self.keyed.count()
    }

    /// Checks all partitions and goes on from what was found.
    pub(crate) fn settle(&mut self, found: &FoundStore, end: End) -> Result<Taken, String> {
        self.keyed.settle(&found.keyed, end).map_err(|broken| format!("compacted partition: {broken}"))?;
        settle(&mut self.dense, &found.dense, end)
    }
}

fn read_keyed(partition: &Partition) -> Result<Vec<keyed::Record>, Failure> {
    let (mut found, mut at) = (Vec::new(), partition.log_start());
    while at < partition.tail() {
        let outcome = partition.read_blocking(at, 1 << 20)?;
        for record in keyed_records(&outcome.bytes)? {
            if record.offset >= at.get() {
                found.push(record);
            }
        }
        at = outcome.next;
    }
    Ok(found)
}

/// The records of a compacted topic in batches.
pub(crate) fn keyed_records(bytes: &[u8]) -> Result<Vec<keyed::Record>, Failure> {
    let mut found = Vec::new();
    for_each_record(bytes, |record| {
        let key = record.key().and_then(|key| std::str::from_utf8(key).ok()?.parse().ok());
        let stamp = match record.value() {
            Some(value) => Some(Stamp::parse(value).ok_or("a record that nobody wrote")?),
            None => None,
        };
        let key = key.ok_or("a key that nobody wrote")?;
        found.push(keyed::Record { offset: record.offset().get(), key, stamp });
        Ok(())
    })?;
    Ok(found)
}

/// Hands the records of whole batches to `visit`, batch by batch as their checksums were found right.
pub(crate) fn for_each_record(
    bytes: &[u8],
    mut visit: impl FnMut(&RecordView<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for view in Batches::of(bytes) {
        let view = view?;
        view.verify_crc()?;
        for record in &view.records(&BatchLimits::default())? {
            visit(&record?)?;
        }
    }
    Ok(())
}

fn read_partition(partition: &Partition) -> Result<Found, Failure> {
    let mut found = Found { log_start: partition.log_start().get(), records: Vec::new() };
    let mut at = partition.log_start();
    while at < partition.tail() {
        let outcome = partition.read_blocking(at, 1 << 20)?;
        for (offset, stamp) in stamps(&outcome.bytes)? {
            if offset < at.get() {
                continue;
            }
            if offset != found.tail() {
                return Err(format!("offset {offset} where {} was expected", found.tail()).into());
            }
            found.records.push(stamp);
        }
        at = outcome.next;
    }
    Ok(found)
}

/// Offsets and stamps of the records in batches.
pub(crate) fn stamps(bytes: &[u8]) -> Result<Vec<(i64, Stamp)>, Failure> {
    let mut found = Vec::new();
    for_each_record(bytes, |record| {
        let stamp = record.value().and_then(Stamp::parse).ok_or("a record that nobody wrote")?;
        found.push((record.offset().get(), stamp));
        Ok(())
    })?;
    Ok(found)
}

/// Checks all partitions and goes on from what was found.
pub(crate) fn settle(ledgers: &mut BTreeMap<u32, Ledger>, found: &[Found], end: End) -> Result<Taken, String> {
    let mut most = Taken::default();
    for (number, found) in (0..).zip(found) {
        let ledger = ledgers.entry(number).or_default();
        let taken = ledger.check(found, end).map_err(|broken| format!("partition {number}: {broken}"))?;
        most = most.max(taken);
        ledger.settle(found);
    }
    Ok(most)
}

// ---- writing -------------------------------------------------------------------------------------------------------

/// What a writing process is told.
#[derive(clap::Args)]
pub(crate) struct WriteArgs {
    /// The data directory
    #[arg(long)]
    data: PathBuf,
    /// Which run of a writer this is
    #[arg(long)]
    run: u32,
    #[arg(long)]
    seed: u64,
    /// The recorded log of the disk, whose length goes with each answer
    #[arg(long)]
    recorded: Option<PathBuf>,
    /// Do a fixed sequence once, on one thread, instead of writing on until the end
    #[arg(long)]
    script: bool,
}

/// Writes until it is killed or the disk refuses.
pub(crate) fn write(args: &WriteArgs) -> Result<Verdict, Failure> {
    if args.script {
        return write_script(args);
    }
    let store = open_store(&args.data, FLUSH_INTERVAL, 2)?;
    let mut writers = Vec::new();
    for number in 0..=KEYED {
        let seed = args.seed.wrapping_mul(PARTITIONS.into()).wrapping_add(number.into());
        writers.push(Writer {
            partition: open_partition(&store, number)?,
            number,
            next: Stamp { run: args.run, number: 0 },
            random: fastrand::Rng::with_seed(seed),
            recorded: args.recorded.clone(),
        });
    }
    say("ready");
    thread::scope(|scope| {
        for writer in &mut writers {
            scope.spawn(move || {
                if let Err(error) = writer.go_on() {
                    say(&format!("refused {} {error}", writer.number));
                }
            });
        }
    });
    Ok(Verdict::Held("the disk refused".to_owned()))
}

/// A fixed sequence in which each kind of file is made, synced, replaced and removed: appends, rolls, group commits,
/// one retention, compactions of one segment and of several and of what deletes, a clean end.
fn write_script(args: &WriteArgs) -> Result<Verdict, Failure> {
    let store = open_store(&args.data, Duration::from_secs(3600), 1)?;
    let mut writers = Vec::new();
    for number in 0..=KEYED {
        writers.push(Writer {
            partition: open_partition(&store, number)?,
            number,
            next: Stamp { run: args.run, number: 0 },
            random: fastrand::Rng::with_seed(args.seed),
            recorded: None,
        });
    }
    say("ready");
    let [durable, written, trimmed, keyed] = writers.as_mut_slice() else { return Err("four partitions".into()) };
    for _ in 0..3 {
        durable.append(3, 300, true)?;
        written.append(2, 6_000, false)?;
        trimmed.append(2, 7_000, false)?;
    }
    durable.append(1, 15_000, true)?;
    trimmed.append(1, 12_000, true)?;
    trimmed.trim(20 << 10)?;
    trimmed.append(1, 100, true)?;
    for rounds in [3, 4, 2] {
        for nth in 1..=rounds {
            keyed.append(2, 7_000, nth == rounds)?;
        }
        keyed.compact()?;
    }
    store.close();
    Ok(Verdict::Held("the script is done".to_owned()))
}

struct Writer {
    partition: Arc<Partition>,
    number: u32,
    next: Stamp,
    random: fastrand::Rng,
    recorded: Option<PathBuf>,
}

impl Writer {
    fn go_on(&mut self) -> Result<(), Failure> {
        if self.number == KEYED {
            return self.go_on_compacting();
        }
        // Runs are many and disks small.
        self.trim(KEPT_FROM_RUNS_BYTES)?;
        self.partition.set_config(config());
        for n in 1_u64.. {
            let wait = match self.number {
                0 => true,
                1 => false,
                _ => n.is_multiple_of(8),
            };
            let (records, fill) = (self.random.u64(1..=4), self.random.usize(0..300));
            self.append(records, fill, wait)?;
            if self.number == 2 && n.is_multiple_of(40) {
                self.trim(KEPT_BYTES)?;
            }
            if !wait {
                // The other partitions want the disk, too.
                thread::sleep(Duration::from_micros(300));
            }
        }
        Ok(())
    }

    fn go_on_compacting(&mut self) -> Result<(), Failure> {
        for n in 1_u64.. {
            let (records, fill) = (self.random.u64(1..=4), self.random.usize(0..2_000));
            self.append(records, fill, n.is_multiple_of(4))?;
            if n.is_multiple_of(16) {
                self.compact()?;
            }
            thread::sleep(Duration::from_micros(300));
        }
        Ok(())
    }

    fn compact(&self) -> Result<(), Failure> {
        self.partition.compact(Some(now().as_millis() as i64), None, &|| true)?;
        Ok(())
    }

    fn append(&mut self, records: u64, fill: usize, wait: bool) -> Result<(), Failure> {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        let first = self.next;
        for _ in 0..records {
            let timestamp_ms = now().as_millis() as i64;
            let is_keyed = self.number == KEYED;
            let key = is_keyed.then(|| keyed::key(self.next).to_string());
            let value = (!is_keyed || !keyed::deletes(self.next)).then(|| self.next.value(fill));
            let (key, value) = (key.as_ref().map(String::as_bytes), value.as_ref().map(String::as_bytes));
            builder.push(&NewRecord { timestamp_ms, key, value, ..NewRecord::default() })?;
            self.next.number += 1;
        }
        let outcome = self.partition.append(&builder.finish()?, now().as_millis() as i64)?;
        self.tell(&outcome, first, Level::Written);
        if wait {
            wait_for_disk(&self.partition, outcome.last_offset.next())?;
            self.tell(&outcome, first, Level::Durable);
        }
        Ok(())
    }

    /// Announces what it will remove: it may be killed before it can tell what it did.
    fn trim(&self, keep_bytes: u64) -> Result<(), Failure> {
        say(&format!("trimming {} {}", self.number, self.partition.tail()));
        self.partition.set_config(LogConfig { retention_bytes: Some(keep_bytes), ..config() });
        self.partition.enforce_retention(None, None)?;
        Ok(())
    }

    fn tell(&self, outcome: &AppendOutcome, first: Stamp, level: Level) {
        let recorded = self.recorded.as_ref().and_then(|path| std::fs::metadata(path).ok());
        let ack = Ack {
            partition: self.number,
            base: outcome.base_offset.get(),
            count: outcome.last_offset.next().since(outcome.base_offset),
            first,
            level,
            at: now(),
            recorded_bytes: recorded.map_or(0, |metadata| metadata.len()),
        };
        say(&ack.to_string());
    }
}

fn wait_for_disk(partition: &Arc<Partition>, offset: Offset) -> Result<(), Failure> {
    loop {
        let listener = partition.listen_flush();
        partition.request_flush();
        if partition.flushed() >= offset {
            return Ok(());
        }
        if let Some(stopped) = partition.stopped() {
            return Err(stopped.to_string().into());
        }
        listener.wait();
    }
}

/// One write to the pipe: what was said is said, whatever comes next. Without anybody to tell, nothing more is done.
fn say(line: &str) {
    if std::io::stdout().lock().write_all(format!("{line}\n").as_bytes()).is_err() {
        std::process::exit(1);
    }
}

// ---- a writing process, from outside -------------------------------------------------------------------------------

/// A process that writes, and what it has said.
pub(crate) struct Writing {
    child: Child,
    lines: JoinHandle<Vec<String>>,
}

impl Writing {
    /// Starts a writer on `data`, under the program and arguments of `wrapper` when there are any.
    pub(crate) fn start(data: &Path, run: u32, seed: u64, more: &[&str], wrapper: &[String]) -> Result<Self, Failure> {
        let own = std::env::current_exe()?;
        let mut command = match wrapper.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(own);
                command
            }
            None => Command::new(own),
        };
        command.arg("write").arg("--data").arg(data);
        command.args(["--run", &run.to_string(), "--seed", &seed.to_string()]).args(more);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let output = child.stdout.take().ok_or("a writer without output")?;
        let lines = thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).collect());
        Ok(Self { child, lines })
    }

    /// Kills it.
    pub(crate) fn kill(mut self) -> Result<Said, Failure> {
        self.child.kill()?;
        self.finish()
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self) -> Result<Said, Failure> {
        let lines = self.lines.join().map_err(|_| "the reader of a writer broke down")?;
        let status = self.child.wait()?;
        let mut complaint = String::new();
        if let Some(mut errors) = self.child.stderr.take() {
            std::io::Read::read_to_string(&mut errors, &mut complaint)?;
        }
        Ok(Said { lines, ended_well: status.success(), complaint })
    }
}

/// All that a writer said.
pub(crate) struct Said {
    pub(crate) lines: Vec<String>,
    pub(crate) ended_well: bool,
    pub(crate) complaint: String,
}

impl Said {
    /// Notes its acknowledgements and removals; how many acknowledgements there were.
    pub(crate) fn note(&self, promises: &mut Promises) -> Result<u64, Failure> {
        let mut acks = 0;
        for line in &self.lines {
            if line.starts_with("ack ") {
                let ack: Ack = line.parse()?;
                match ack.partition {
                    KEYED => promises.keyed.note(ack),
                    number => promises.dense.entry(number).or_default().note(ack),
                }
                acks += 1;
            } else if let Some(trim) = line.strip_prefix("trimming ") {
                let (partition, to) = trim.split_once(' ').ok_or("a short line")?;
                let ledger = promises.dense.entry(partition.parse()?).or_default();
                ledger.trimmed_max = ledger.trimmed_max.max(to.parse()?);
            }
        }
        Ok(acks)
    }
}
