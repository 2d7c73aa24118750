//! What the kernel of this machine does when a disk fills up, fails a write-back, or cannot be read, and what the
//! broker makes of it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::broker::{self, Broker};
use crate::client::Client;
use crate::ledger::{Ack, End, Ledger, Level, Stamp, now};
use crate::machine::{self, Kind, Mount};
use crate::{Failure, Verdict};

const TOPIC: &str = "disk";
/// Kafka's KAFKA_STORAGE_ERROR, which clients try again, and CORRUPT_MESSAGE.
const STORAGE_ERROR: i16 = 56;
const CORRUPT: i16 = 2;
/// Bytes of a record, and records of a batch: some hundred KB.
const FILL: usize = 100_000;
const RECORDS: u64 = 4;
const SEGMENT_BYTES: u32 = 1 << 20;
/// More batches than any disk here takes.
const BATCHES_MAX: u64 = 1_000;
/// Longer than service takes to return.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The broker's binary
    #[arg(long)]
    binary: PathBuf,
    /// This case alone
    #[arg(long)]
    case: Option<Case>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Case {
    /// A small disk fills up, and has room again
    Full,
    /// A sync fails, and the one after it would not
    FailedSync,
    /// Sectors of flushed segments can't be read
    BadSectors,
}

/// What was seen, or the promise that was broken.
type Seen = Result<String, String>;

pub(crate) fn run(args: &Args) -> Result<Verdict, Failure> {
    if let Some(lack) = machine::lacks(&["mkfs.ext4", "mount"], true) {
        return Ok(Verdict::Skipped(format!("failing disks: {lack}")));
    }
    let binary = args.binary.canonicalize().map_err(|cause| format!("--binary {}: {cause}", args.binary.display()))?;
    machine::stand_apart()?;
    let cases = args.case.map_or_else(|| vec![Case::Full, Case::FailedSync, Case::BadSectors], |case| vec![case]);
    let mut told = Vec::new();
    for case in cases {
        let seen = match case {
            Case::Full => full(&binary)?,
            Case::FailedSync => failed_sync(&binary)?,
            Case::BadSectors => bad_sectors(&binary)?,
        };
        match seen {
            Ok(seen) => told.push(seen),
            Err(broken) => return Ok(Verdict::Broken(format!("{case:?}: {broken}"))),
        }
    }
    Ok(Verdict::Held(told.join("; ")))
}

macro_rules! demand {
    ($holds:expr, $($facts:tt)+) => {
        if !$holds {
            return Ok(Err(format!($($facts)+)));
        }
    };
}

/// A producer that waits for the disk, and what it was promised.
struct Producer {
    client: Client,
    next: Stamp,
    ledger: Ledger,
}

impl Producer {
    fn new(kafka: SocketAddr) -> Result<Self, Failure> {
        let mut client = Client::connect(kafka)?;
        broker::create_topic(&mut client, TOPIC, SEGMENT_BYTES)?;
        Ok(Self { client, next: Stamp { run: 1, number: 0 }, ledger: Ledger::default() })
    }

    /// Kafka's error code when it is refused.
    fn produce(&mut self) -> Result<Result<(), i16>, Failure> {
        let records = broker::batch(self.next, RECORDS, FILL)?;
        Ok(broker::produce(&mut self.client, TOPIC, -1, records)?.map(|base| {
            let (first, level, at) = (self.next, Level::Durable, now());
            self.ledger.note(Ack { partition: 0, base, count: RECORDS, first, level, at, recorded_bytes: 0 });
            self.next.number += RECORDS;
        }))
    }

    /// Until it is refused; the code.
    fn produce_until_refused(&mut self) -> Result<i16, Failure> {
        for _ in 0..BATCHES_MAX {
            if let Err(code) = self.produce()? {
                return Ok(code);
            }
        }
        Err("a small disk takes everything".into())
    }

    /// Whether what is served now is what was promised.
    fn compare(&mut self) -> Result<Result<(), String>, Failure> {
        let found = broker::read_topic(&mut self.client, TOPIC)?.unwrap_or_default();
        Ok(self.ledger.check(&found, End::Killed).map(drop))
    }
}

/// Produce is refused with an error that clients try again, what is there is served, and service returns without a
/// start.
fn full(binary: &Path) -> Result<Seen, Failure> {
    let scratch = tempfile::tempdir()?;
    let mounted = Mount::memory(scratch.path(), 48 << 20)?;
    let other = mounted.path().join("of somebody else");
    File::create(&other)?.write_all(&vec![7; 24 << 20])?;
    let data = mounted.path().join("data");
    let mut broker = Broker::start(binary, &data, &[])?;
    let mut producer = Producer::new(broker.kafka)?;
    let code = producer.produce_until_refused()?;
    demand!(code == STORAGE_ERROR, "refused with {code} instead of {STORAGE_ERROR}");
    if let Err(broken) = producer.compare()? {
        return Ok(Err(format!("while the disk is full: {broken}")));
    }
    demand!(broker.lives()?, "the broker died of a full disk");
    let kept = producer.ledger.acks().len();
    fs::remove_file(&other)?;
    let begun = Instant::now();
    while let Err(code) = producer.produce()? {
        demand!(begun.elapsed() < PATIENCE, "{PATIENCE:?} after there is room: still {code}");
        thread::sleep(Duration::from_millis(5));
    }
    let back_ms = begun.elapsed().as_millis();
    broker.kill()?;
    let broker = Broker::start(binary, &data, &[])?;
    producer.client = Client::connect(broker.kafka)?;
    if let Err(broken) = producer.compare()? {
        return Ok(Err(format!("after a start: {broken}")));
    }
    broker.kill()?;
    mounted.unmount()?;
    Ok(Ok(format!(
        "full disk: refused with {code} after {kept} batches, served again {back_ms} ms after there was room"
    )))
}

/// A file system without a journal on a file that can't grow: a write-back fails, and the kernel says so once.
fn failed_sync(binary: &Path) -> Result<Seen, Failure> {
    let scratch = tempfile::tempdir()?;
    let below = scratch.path().join("below");
    fs::create_dir(&below)?;
    let small = Mount::memory(&below, 24 << 20)?;
    let (image, at) = (below.join("disk"), scratch.path().join("mount"));
    fs::create_dir(&at)?;
    machine::format(&image, Kind::Ext4, 128 << 20, &["-O", "^has_journal"])?;
    let mounted = Mount::image(&image, &at, "errors=continue")?;
    let mut broker = Broker::start(binary, &mounted.path().join("data"), &[])?;
    let mut producer = Producer::new(broker.kafka)?;
    let code = producer.produce_until_refused()?;
    demand!(code == STORAGE_ERROR, "refused with {code} instead of {STORAGE_ERROR}");
    // Here a log that synced again would be told that all is well.
    let says_well = second_sync_succeeds(&mounted.path().join("probe"))?;
    for again in 1..=5 {
        let produced = producer.produce()?;
        demand!(produced == Err(STORAGE_ERROR), "try {again} after a failed sync: {produced:?}");
    }
    demand!(broker.lives()?, "the broker died of a failed sync");
    let kept = producer.ledger.acks().len();
    broker.kill()?;
    mounted.unmount()?;
    small.unmount()?;
    let kernel = if says_well { "a second sync answers well" } else { "a second sync fails, too" };
    Ok(Ok(format!("failed sync: refused with {code} after {kept} batches and ever after ({kernel} here)")))
}

/// What the kernel says of a file whose sync failed when it is synced again.
fn second_sync_succeeds(path: &Path) -> Result<bool, Failure> {
    let mut file = File::create(path)?;
    for _ in 0..100 {
        let wrote = file.write_all(&vec![7; 1 << 20]);
        if wrote.is_err() || file.sync_data().is_err() {
            return Ok(file.sync_data().is_ok());
        }
    }
    Err("a disk that can't grow takes everything".into())
}

/// A read through a map would raise SIGBUS; it is answered with an error, and everything else goes on.
fn bad_sectors(binary: &Path) -> Result<Seen, Failure> {
    let scratch = tempfile::tempdir()?;
    let (image, at) = (scratch.path().join("disk"), scratch.path().join("mount"));
    fs::create_dir(&at)?;
    machine::format(&image, Kind::Ext4, 64 << 20, &["-O", "^has_journal"])?;
    let mounted = Mount::image(&image, &at, "errors=continue")?;
    let data = mounted.path().join("data");
    let mut broker = Broker::start(binary, &data, &[])?;
    let mut producer = Producer::new(broker.kafka)?;
    for _ in 0..60 {
        if let Err(code) = producer.produce()? {
            return Ok(Err(format!("a good disk refuses with {code}")));
        }
    }
    let logs = logs_below(&data)?;
    // Nothing of it stays in memory, and what is beyond the end of the file below can't be read.
    for log in &logs {
        rustix::fs::fadvise(File::open(log)?, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    OpenOptions::new().write(true).open(&image)?.set_len(16 << 20)?;
    let (mut served, mut refused) = (0, 0);
    for ack in producer.ledger.acks() {
        match broker::fetch(&mut producer.client, TOPIC, ack.base)? {
            Ok(bytes) => {
                let first = crate::store::stamps(&bytes)?.first().copied();
                demand!(first == Some((ack.base, ack.first)), "wrong bytes at {}: {first:?}", ack.base);
                served += 1;
            }
            Err(STORAGE_ERROR | CORRUPT) => refused += 1,
            Err(code) => return Ok(Err(format!("a sector that can't be read is answered with {code}"))),
        }
        demand!(broker.lives()?, "the broker died of a bad sector");
    }
    demand!(refused > 0, "all {served} batches were served: no sector was bad");
    demand!(served > 0, "none of {refused} batches was served");
    broker.kill()?;
    mounted.unmount()?;
    Ok(Ok(format!("bad sectors: {served} batches served, {refused} answered with an error, the broker lives")))
}

fn logs_below(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|extension| extension == "log") {
                found.push(path);
            }
        }
    }
    Ok(found)
}
