//! Death at, or failure of, exactly the N-th call to the system that changes the disk, for each N of a scripted run.
//!
//! strace counts calls of one kind and thread: the N-th is that of the first thread that gets there. Every kind and
//! every N up to what a thread was seen to reach is tried. The script of the storage crate runs on one thread, with one
//! that flushes, so there that is every call.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::broker::{self, Broker, TOPICS};
use crate::client::Client;
use crate::keyed::KeyedLedger;
use crate::ledger::{Ack, End, Ledger, Level, Stamp, now};
use crate::store::{self, Promises, Writing};
use crate::{Failure, Verdict, machine};

/// What changes a disk. Not `write`: files are written by position, and what else is written to, such as the runtime's
/// own wake-up calls, never fails.
const CALLS: [&str; 13] = [
    "pwritev",
    "pwrite64",
    "fdatasync",
    "fsync",
    "fallocate",
    "ftruncate",
    "rename",
    "renameat2",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "linkat",
];
/// A group whose offsets the broker's script commits.
const GROUP: &str = "battery";
/// A topic of which retention removes the oldest segments, and one that is compacted.
const KEPT: &str = "kept";
const KEYED: &str = "keyed";
/// Of the first one's ledger.
const KEPT_PARTITION: u32 = 2;
/// Retention and compaction run while the script does.
const HOUSEKEEPING: [&str; 3] = ["env", "TRIPLINE_RETENTION_INTERVAL=20ms", "TRIPLINE_COMPACTION_INTERVAL=20ms"];
/// How long the script waits for both; a fault may have ended either.
const HOUSEKEEPING_TIMEOUT: Duration = Duration::from_secs(1);
/// So small that nearly each batch of the script begins a segment.
const SEGMENT_BYTES: u32 = 2048;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The broker's binary; without it the storage crate alone is killed
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Try every so manieth call only, from one on that the seed chooses
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    stride: u64,
    /// Chooses the first call of a stride, and what is written; chosen by chance and printed when it is not given
    #[arg(long)]
    seed: Option<u64>,
    /// What happens at the call; everything, one after the other, when it is not given
    #[arg(long)]
    fault: Option<Fault>,
    /// Try this call alone, as printed by a run that failed: pwritev:3
    #[arg(long, requires = "fault")]
    only: Option<String>,
}

/// What happens at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Fault {
    /// The process is killed before it
    Kill,
    /// It answers an I/O error and does nothing
    Eio,
    /// It answers that the disk is full and does nothing
    Enospc,
    /// It answers that it was interrupted and does nothing
    Eintr,
}

impl Fault {
    const ALL: [Self; 4] = [Self::Kill, Self::Eio, Self::Enospc, Self::Eintr];

    const fn injected(self) -> &'static str {
        match self {
            Self::Kill => "signal=KILL",
            Self::Eio => "error=EIO",
            Self::Enospc => "error=ENOSPC",
            Self::Eintr => "error=EINTR",
        }
    }

    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// The `number`-th call of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Point {
    call: String,
    number: u64,
}

impl Point {
    /// strace, to put before a command.
    fn wrapper(&self, fault: Fault) -> Vec<String> {
        let inject = format!("inject={}:{}:when={}", self.call, fault.injected(), self.number);
        strace(&self.call, &["-o", "/dev/null", "-e", &inject])
    }
}

fn strace(calls: &str, more: &[&str]) -> Vec<String> {
    let trace = format!("trace={calls}");
    let mut words = vec!["strace", "-f", "-qq", "-e", &trace];
    words.extend(more);
    words.into_iter().map(str::to_owned).collect()
}

pub(crate) fn run(args: &Args) -> Result<Verdict, Failure> {
    if let Some(lack) = machine::lacks(&["strace"], false) {
        return Ok(Verdict::Skipped(format!("faults at each system call: {lack} (apt-get install strace)")));
    }
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let every = if args.stride == 1 { String::new() } else { format!(", every {}. only", args.stride) };
    println!("trying each call that changes the disk{every}, seed {seed}");
    let faults = args.fault.map_or_else(|| Fault::ALL.to_vec(), |fault| vec![fault]);
    let store = Target::Store { seed };
    let targets = std::iter::once(store).chain(args.binary.as_deref().map(|binary| Target::Broker { binary }));
    let mut told = Vec::new();
    for target in targets {
        let points = match &args.only {
            Some(only) => vec![parse_point(only)?],
            None => target.points()?,
        };
        for &fault in &faults {
            match try_all(args, seed, &target, &points, fault)? {
                Ok(line) => {
                    println!("  {line}");
                    told.push(line);
                }
                Err(broken) => return Ok(Verdict::Broken(broken)),
            }
        }
    }
    Ok(Verdict::Held(format!("stride {}, seed {seed}; {}", args.stride, told.join("; "))))
}

fn try_all(
    args: &Args,
    seed: u64,
    target: &Target<'_>,
    points: &[Point],
    fault: Fault,
) -> Result<Result<String, String>, Failure> {
    let begun = Instant::now();
    let stride = usize::try_from(args.stride)?;
    let first = usize::try_from(seed % args.stride)?;
    let (mut tried, mut felt) = (0_u64, 0_u64);
    for point in points.iter().skip(first).step_by(stride) {
        tried += 1;
        match target.try_at(point, fault)? {
            Ok(ended_early) => felt += u64::from(ended_early),
            Err(broken) => {
                let (name, at) = (fault.name(), format!("{}:{}", point.call, point.number));
                let binary =
                    args.binary.as_ref().map_or_else(String::new, |path| format!(" --binary {}", path.display()));
                let again = format!("tripline-battery syscall --seed {seed} --fault {name} --only {at}{binary}");
                return Ok(Err(format!("{}, {name} at {at}: {broken}\nagain: {again}", target.name())));
            }
        }
    }
    let took = begun.elapsed().as_secs_f64();
    let (target, name) = (target.name(), fault.name());
    Ok(Ok(format!("{target} {name}: {tried} of {} calls, {felt} ended the run early, {took:.0} s", points.len())))
}

fn parse_point(text: &str) -> Result<Point, Failure> {
    let (call, number) = text.split_once(':').ok_or_else(|| format!("--only: found {text:?}, allowed: CALL:NUMBER"))?;
    Ok(Point { call: call.to_owned(), number: number.parse()? })
}

/// What is killed.
enum Target<'a> {
    Store { seed: u64 },
    Broker { binary: &'a Path },
}

impl Target<'_> {
    const fn name(&self) -> &'static str {
        match self {
            Self::Store { .. } => "storage",
            Self::Broker { .. } => "broker",
        }
    }

    /// The calls of a run that nobody kills, as far as they can be told apart.
    fn points(&self) -> Result<Vec<Point>, Failure> {
        let scratch = machine::memory_scratch()?;
        let trace = scratch.path().join("trace");
        let wrapper = strace(&CALLS.join(","), &["-o", machine::text(&trace)?]);
        let data = scratch.path().join("data");
        match self {
            Self::Store { seed } => {
                let said = Writing::start(&data, 1, *seed, &["--script"], &wrapper)?.finish()?;
                if !said.ended_well {
                    return Err(format!("the script fails by itself: {}", said.complaint).into());
                }
            }
            Self::Broker { binary } => {
                let mut script = Script::default();
                let ended_well = script.run(binary, &data, &wrapper)?;
                if !ended_well {
                    return Err(format!("the script fails by itself: {}", script.complaint).into());
                }
                if !script.is_kept {
                    return Err("neither retention nor compaction came within the script".into());
                }
            }
        }
        Ok(points_of(&std::fs::read_to_string(trace)?))
    }

    /// Runs the script with `fault` at `point`, and compares. Answers whether it did not come to its end.
    fn try_at(&self, point: &Point, fault: Fault) -> Result<Result<bool, String>, Failure> {
        let scratch = machine::memory_scratch()?;
        let data = scratch.path().join("data");
        match self {
            Self::Store { seed } => try_store(&point.wrapper(fault), &data, *seed),
            Self::Broker { binary } => try_broker(&point.wrapper(fault), &data, binary),
        }
    }
}

/// From lines such as `1234 pwritev(5, …`: for each kind of call as many points as one thread made such calls.
fn points_of(trace: &str) -> Vec<Point> {
    let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for line in trace.lines().filter(|line| !line.contains(" resumed>")) {
        let mut words = line.split_whitespace();
        if let (Some(thread), Some(call)) = (words.next(), words.next())
            && let Some((call, _)) = call.split_once('(')
        {
            *counts.entry((call, thread)).or_default() += 1;
        }
    }
    let mut most: BTreeMap<&str, u64> = BTreeMap::new();
    for ((call, _), count) in counts {
        let most = most.entry(call).or_default();
        *most = count.max(*most);
    }
    let of_call = |(call, most): (&str, u64)| {
        let call = call.to_owned();
        (1..=most).map(move |number| Point { call: call.clone(), number }).collect::<Vec<_>>()
    };
    most.into_iter().flat_map(of_call).collect()
}

fn try_store(wrapper: &[String], data: &Path, seed: u64) -> Result<Result<bool, String>, Failure> {
    let mut promises = Promises::default();
    let said = Writing::start(data, 1, seed, &["--script"], wrapper)?.finish()?;
    said.note(&mut promises)?;
    let ended_early = !said.ended_well;
    // What the next start finds, and what the one after it finds on top of another run.
    for run in 2..=3 {
        let found = match store::read_all(data) {
            Ok(found) => found,
            Err(error) => return Ok(Err(format!("start {run}: {error}"))),
        };
        if let Err(broken) = promises.settle(&found, End::Killed) {
            return Ok(Err(format!("start {run}: {broken}")));
        }
        let said = Writing::start(data, run, seed, &["--script"], &[])?.finish()?;
        if !said.ended_well {
            return Ok(Err(format!("run {run} after it fails: {}", said.complaint)));
        }
        said.note(&mut promises)?;
    }
    Ok(Ok(ended_early))
}

fn try_broker(wrapper: &[String], data: &Path, binary: &Path) -> Result<Result<bool, String>, Failure> {
    let mut script = Script::default();
    let ended_early = !script.run(binary, data, wrapper)?;
    let Some(broker) = Broker::try_start(binary, data, &[])? else {
        return Ok(Err("the broker does not start again".to_owned()));
    };
    let mut client = Client::connect(broker.kafka)?;
    let mut found = broker::read_all(&broker)?;
    found.push(broker::read_topic(&mut client, KEPT)?.unwrap_or_default());
    if let Err(broken) = store::settle(&mut script.ledgers, &found, End::Killed) {
        return Ok(Err(broken));
    }
    if let Err(broken) = script.keyed.settle(&broker::read_keyed(&mut client, KEYED)?, End::Killed) {
        return Ok(Err(format!("{KEYED}: {broken}")));
    }
    for ((topic, _), found) in TOPICS.iter().zip(&found) {
        let committed = broker::committed(&mut client, GROUP, topic)?;
        let promised = script.committed.get(topic).copied().unwrap_or(-1);
        if committed < promised || committed > found.tail() {
            let tail = found.tail();
            return Ok(Err(format!("{topic}: committed {committed}, {promised} was acknowledged, the tail is {tail}")));
        }
    }
    // It goes on.
    let (topic, acks) = TOPICS[0];
    broker::create_topic(&mut client, topic, SEGMENT_BYTES)?;
    let records = broker::batch(Stamp { run: 2, number: 0 }, 1, 10)?;
    match broker::produce(&mut client, topic, acks, records)? {
        Ok(base) if base == found[0].tail() => {}
        other => return Ok(Err(format!("produced behind {}: {other:?}", found[0].tail()))),
    }
    broker.kill()?;
    Ok(Ok(ended_early))
}

/// A fixed sequence of requests, and what was answered.
#[derive(Default)]
struct Script {
    ledgers: BTreeMap<u32, Ledger>,
    keyed: KeyedLedger,
    committed: BTreeMap<&'static str, i64>,
    next: [u64; 2],
    /// Whether retention and compaction were seen.
    is_kept: bool,
    /// What ended it early.
    complaint: String,
}

impl Script {
    /// Runs a broker under `wrapper` and the script against it. Answers whether both came to their end.
    fn run(&mut self, binary: &Path, data: &Path, wrapper: &[String]) -> Result<bool, Failure> {
        let wrapper: Vec<_> = wrapper.iter().cloned().chain(HOUSEKEEPING.map(str::to_owned)).collect();
        let Some(broker) = Broker::try_start(binary, data, &wrapper)? else { return Ok(false) };
        let result = self.requests(&broker).inspect_err(|error| self.complaint = error.to_string());
        let ended_well = broker.stop()?;
        Ok(result.is_ok() && ended_well)
    }

    fn requests(&mut self, broker: &Broker) -> Result<(), Failure> {
        let mut client = Client::connect(broker.kafka)?;
        for (topic, _) in TOPICS {
            broker::create_topic(&mut client, topic, SEGMENT_BYTES)?;
        }
        for round in 0..4 {
            for topic in [0, 1, 0] {
                self.produce(&mut client, topic, 2)?;
            }
            self.commit(&mut client, usize::from(round % 2 == 1))?;
        }
        self.keep_house(&mut client)
    }

    /// Fills a topic that loses its oldest segments and one that is compacted, and waits until both has happened.
    fn keep_house(&mut self, client: &mut Client) -> Result<(), Failure> {
        let segment_bytes = ("segment.bytes", &*SEGMENT_BYTES.to_string());
        client.create_topic(KEPT, 1, &[segment_bytes, ("retention.bytes", "4096")])?;
        let compact = [("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0"), ("delete.retention.ms", "0")];
        client.create_topic(KEYED, 1, &[&[segment_bytes], &compact[..]].concat())?;
        for number in (0..16).step_by(2) {
            let first = Stamp { run: 1, number };
            let ack = |base, partition| {
                let (level, at) = (Level::Durable, now());
                Ack { partition, base, count: 2, first, level, at, recorded_bytes: 0 }
            };
            // What is not the newest batch may be gone.
            let ledger = self.ledgers.entry(KEPT_PARTITION).or_default();
            ledger.trimmed_max = number.cast_signed();
            let base = broker::produce(client, KEPT, -1, broker::batch(first, 2, 600)?)?;
            ledger.note(ack(base.map_err(|code| format!("{KEPT}: error {code}"))?, KEPT_PARTITION));
            let base = broker::produce(client, KEYED, -1, broker::keyed_batch(first, 2, 600)?)?;
            self.keyed.note(ack(base.map_err(|code| format!("{KEYED}: error {code}"))?, 0));
        }
        let begun = Instant::now();
        while !self.is_kept && begun.elapsed() < HOUSEKEEPING_TIMEOUT {
            thread::sleep(Duration::from_millis(5));
            let is_compacted = broker::read_keyed(client, KEYED)?.len() < 12;
            self.is_kept = is_compacted && broker::log_start(client, KEPT)? > 0;
        }
        Ok(())
    }

    fn produce(&mut self, client: &mut Client, topic: usize, count: u64) -> Result<(), Failure> {
        let (name, acks) = TOPICS[topic];
        let first = Stamp { run: 1, number: self.next[topic] };
        let base = broker::produce(client, name, acks, broker::batch(first, count, 400)?)?;
        let base = base.map_err(|code| format!("error {code}"))?;
        self.next[topic] += count;
        let level = if acks == 1 { Level::Written } else { Level::Durable };
        let partition = topic as u32;
        let ack = Ack { partition, base, count, first, level, at: now(), recorded_bytes: 0 };
        self.ledgers.entry(partition).or_default().note(ack);
        Ok(())
    }

    fn commit(&mut self, client: &mut Client, topic: usize) -> Result<(), Failure> {
        let (name, _) = TOPICS[topic];
        let offset = self.next[topic].cast_signed();
        broker::commit(client, GROUP, name, offset)?;
        self.committed.insert(name, offset);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_counted_by_kind_and_thread() {
        let trace = "1 pwritev(3, x) = 1\n1 pwritev(3, <unfinished ...>\n2 pwritev(4, x) = 1\n1 <... pwritev resumed>) = 1\n2 fdatasync(4) = 0\n1 +++ exited +++\n";
        let points: Vec<_> = points_of(trace).iter().map(|point| format!("{}:{}", point.call, point.number)).collect();
        assert_eq!(points, ["fdatasync:1", "pwritev:1", "pwritev:2"]);
    }

    #[test]
    fn a_point_is_read_as_it_is_printed() {
        assert_eq!(parse_point("pwritev:3").unwrap(), Point { call: "pwritev".to_owned(), number: 3 });
        assert!(parse_point("pwritev").is_err());
    }
}
