//! kill -9 of the broker while its triggers deliver, in all three orders at once, to a target that fails in every way.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use tripline_storage::batch::{BatchBuilder, BatchOptions, NewRecord};

use crate::broker::{self, Broker};
use crate::client::Client;
use crate::ledger::now;
use crate::store::for_each_record;
use crate::{Failure, Verdict};

mod target;
mod verify;

use target::Target;
use verify::{History, Letter, Order, Place, Seen};

const TOPIC: &str = "events";
const PARTITIONS: u32 = 4;
const KEYS: u64 = 24;
/// One record of so many fails whatever is done; one of so many concerns no trigger.
const POISON_EVERY: u64 = 150;
const UNWANTED_EVERY: u64 = 5;
/// Records of a produce request, and the pause behind it: more than the target takes with all its failures, at times.
const BATCH_RECORDS: std::ops::RangeInclusive<u64> = 1..=6;
const PRODUCE_EVERY: Duration = Duration::from_millis(8);
const TIMEOUT_MS: i64 = 500;
/// How long a broker lives behind its start.
const LIFE_MS: std::ops::Range<u64> = 50..1500;
/// Without kills, all is delivered within this.
const DRAINED_WITHIN: Duration = Duration::from_secs(120);
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// acks=all.
const ALL: i16 = -1;

/// A trigger of each order. Names are paths of the target.
const TRIGGERS: [Trigger; 3] = [
    Trigger { name: "partition", order: Order::Partition, concurrency: 4, count: 7, bisect: true },
    Trigger { name: "key", order: Order::Key, concurrency: 8, count: 3, bisect: false },
    Trigger { name: "none", order: Order::None, concurrency: 6, count: 5, bisect: false },
];

struct Trigger {
    name: &'static str,
    order: Order,
    concurrency: usize,
    count: u32,
    bisect: bool,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The broker's binary
    #[arg(long)]
    binary: PathBuf,
    /// Kills in all
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    kills: u64,
    /// Decides when, what is produced and how the target fails; chosen by chance and printed when it is not given
    #[arg(long)]
    seed: Option<u64>,
    /// Keep the data directory and the broker's log here, a directory that does not exist yet
    #[arg(long)]
    keep: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<Verdict, Failure> {
    let binary = args.binary.canonicalize().map_err(|cause| format!("--binary {}: {cause}", args.binary.display()))?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("delivering through {} kills, seed {seed}", args.kills);
    let begun = Instant::now();
    let scratch = tempfile::tempdir()?;
    let again = format!("tripline-battery deliver --seed {seed} --kills {} --binary {}", args.kills, binary.display());
    let found = World::start(&binary, scratch.path(), seed).and_then(|world| world.run(args.kills));
    if let Some(keep) = &args.keep {
        let kept = scratch.keep();
        if let Err(cause) = fs::rename(&kept, keep) {
            eprintln!("--keep {}: {cause}; all is in {}", keep.display(), kept.display());
        }
    }
    // Also what ends it before its verdict, such as a dead letter that says nothing of its record.
    let found = found.map_err(|error| format!("{error}\nagain: {again}"))?;
    let took = begun.elapsed().as_secs_f64();
    Ok(match found {
        Ok(seen) => Verdict::Held(format!("{} kills, seed {seed}, in {took:.0} s: {seen}", args.kills)),
        Err(broken) => Verdict::Broken(format!("{broken}\nagain: {again}")),
    })
}

/// A directory, the brokers that follow each other on it, and their target.
struct World {
    binary: PathBuf,
    scratch: PathBuf,
    target: Target,
    random: fastrand::Rng,
    kills_ms: Vec<i64>,
}

impl World {
    fn start(binary: &Path, scratch: &Path, seed: u64) -> Result<Self, Failure> {
        let target = Target::start(seed, &TRIGGERS.map(|trigger| trigger.name))?;
        let random = fastrand::Rng::with_seed(seed);
        Ok(Self { binary: binary.to_owned(), scratch: scratch.to_owned(), target, random, kills_ms: Vec::new() })
    }

    fn run(mut self, kills: u64) -> Result<Result<String, String>, Failure> {
        let broker = self.broker()?;
        let definitions = self.scratch.join("app.yaml");
        fs::write(&definitions, definitions_for(self.target.address))?;
        self.tripline(&broker, &["apply", "-f", &definitions.display().to_string()])?;
        broker.kill()?;
        self.died()?;
        for _ in 0..kills {
            let broker = self.broker()?;
            let load = produce_until_end(broker.kafka, self.random.fork());
            thread::sleep(Duration::from_millis(self.random.u64(LIFE_MS)));
            broker.kill()?;
            self.died()?;
            load.join().map_err(|_| "a producer broke down")?;
        }
        let broker = self.broker()?;
        if let Err(stuck) = self.drain(&broker)? {
            return Ok(Err(stuck));
        }
        let outcome = self.check(&broker)?;
        let begun = Instant::now();
        if !broker.stop()? || begun.elapsed() > ENDS_WITHIN {
            return Ok(Err(format!("the broker did not end well within {ENDS_WITHIN:?}")));
        }
        Ok(outcome.and_then(|seen| self.check_log().map(|()| seen)))
    }

    fn broker(&self) -> Result<Broker, Failure> {
        Broker::start_logged(&self.binary, &self.scratch.join("data"), &self.scratch.join("broker.log"))
    }

    fn died(&mut self) -> Result<(), Failure> {
        self.kills_ms.push(now().as_millis() as i64);
        self.target.broker_died()
    }

    fn tripline(&self, broker: &Broker, arguments: &[&str]) -> Result<String, Failure> {
        let output = Command::new(&self.binary)
            .args(arguments)
            .env("TRIPLINE_SERVER", &broker.http)
            .current_dir(&self.scratch)
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            return Err(format!("tripline {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Waits until every trigger has finished all there is.
    fn drain(&self, broker: &Broker) -> Result<Result<(), String>, Failure> {
        let begun = Instant::now();
        for trigger in &TRIGGERS {
            loop {
                let described = self.tripline(broker, &["trigger", "describe", trigger.name, "--json"])?;
                let described: Value = serde_json::from_str(&described)?;
                if described["lag"] == 0 {
                    break;
                }
                if begun.elapsed() > DRAINED_WITHIN {
                    return Ok(Err(format!("trigger {} does not come to an end: {described:#}", trigger.name)));
                }
                thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(Ok(()))
    }

    fn check(&self, broker: &Broker) -> Result<Result<String, String>, Failure> {
        let mut client = Client::connect(broker.kafka)?;
        let mut wanted = std::collections::BTreeMap::new();
        for_each(&mut client, TOPIC, |place, record| {
            let value: Value = serde_json::from_slice(record.value().unwrap_or_default())?;
            if value["wanted"] == true {
                wanted.insert(place, String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned());
            }
            Ok(())
        })?;
        let mut told = Vec::new();
        for (index, trigger) in TRIGGERS.iter().enumerate() {
            let mut letters = Vec::new();
            for_each(&mut client, &dead_letters_of(trigger.name), |_, record| {
                letters.push(letter(record)?);
                Ok(())
            })?;
            let history = History {
                order: trigger.order,
                concurrency: trigger.concurrency,
                bisect: trigger.bisect,
                timeout_ms: TIMEOUT_MS,
                wanted: wanted.clone(),
                calls: self.target.calls(index),
                letters,
                kills_ms: self.kills_ms.clone(),
            };
            match history.check() {
                Ok(seen) => told.push(format!("{}: {seen}", trigger.name)),
                Err(broken) => return Ok(Err(format!("order {}: {broken}", trigger.name))),
            }
        }
        Ok(Ok(told.join("; ")))
    }

    /// The broker found no fault with itself.
    fn check_log(&self) -> Result<(), String> {
        let log = fs::read_to_string(self.scratch.join("broker.log")).map_err(|error| error.to_string())?;
        let bad = |line: &&str| line.contains("panicked") || line.contains("broke down") || line.contains(" ERROR ");
        log.lines().find(bad).map_or(Ok(()), |line| Err(format!("the broker logged: {line}")))
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { records, calls, letters, repeats, repeats_max } = self;
        write!(f, "{records} records in {calls} attempts, {letters} dead letters, ")?;
        write!(f, "{repeats} windows again, at most {repeats_max} after a kill")
    }
}

fn dead_letters_of(trigger: &str) -> String {
    format!("{trigger}.dead")
}

fn definitions_for(target: SocketAddr) -> String {
    let mut text = format!("topic: {TOPIC}\npartitions: {PARTITIONS}\n");
    for Trigger { name, concurrency, count, bisect, .. } in &TRIGGERS {
        let dead = dead_letters_of(name);
        text.push_str(&format!(
            "---
function: to-{name}
runtime: http
url: http://{target}/{name}
timeout: {TIMEOUT_MS}ms
instances: {{ max: 32 }}
---
trigger: {name}
input: {{ topic: {TOPIC}, start: earliest }}
filter: {{ data: {{ wanted: [ true ] }} }}
window: {{ count: {count} }}
order: {name}
concurrency: {concurrency}
bisect: {bisect}
function: to-{name}
retry: {{ initial: 20ms, factor: 2, max_interval: 200ms, max_attempts: 5, jitter: full }}
dead_letter: {{ topic: {dead} }}
"
        ));
    }
    text
}

/// Produces to all partitions, one request at a time, until the broker is gone.
fn produce_until_end(kafka: SocketAddr, mut random: fastrand::Rng) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut produce = || -> Result<(), Failure> {
            let mut client = Client::connect(kafka)?;
            loop {
                let partition = random.u32(..PARTITIONS);
                let mut builder = BatchBuilder::new(BatchOptions::default());
                for _ in 0..random.u64(BATCH_RECORDS) {
                    let key = format!("k{}", random.u64(..KEYS / u64::from(PARTITIONS)));
                    let (wanted, poison) = (random.u64(..UNWANTED_EVERY) > 0, random.u64(..POISON_EVERY) == 0);
                    let value = serde_json::json!({ "wanted": wanted, "poison": poison }).to_string();
                    let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
                    let timestamp_ms = now().as_millis() as i64;
                    builder.push(&NewRecord { timestamp_ms, key, value, headers: &[] })?;
                }
                let records = builder.finish()?.bytes().clone();
                let base = broker::produce_to(&mut client, TOPIC, partition.cast_signed(), ALL, records)?;
                base.map_err(|code| format!("error {code}"))?;
                thread::sleep(PRODUCE_EVERY);
            }
        };
        // It ends when the broker does.
        let _ = produce();
    })
}

type Record<'a> = tripline_storage::batch::RecordView<'a>;

/// All records of a topic.
fn for_each(
    client: &mut Client,
    topic: &str,
    mut visit: impl FnMut(Place, &Record<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for partition in 0..PARTITIONS {
        let mut at = 0;
        loop {
            let fetched = broker::fetch_from(client, topic, partition.cast_signed(), at)?;
            let fetched = fetched.map_err(|code| format!("fetch of {topic} {partition} at {at}: error {code}"))?;
            if fetched.is_empty() {
                break;
            }
            for_each_record(&fetched, |record| {
                if record.offset().get() >= at {
                    visit((partition, record.offset().get()), record)?;
                    at = record.offset().get() + 1;
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

fn letter(record: &Record<'_>) -> Result<Letter, Failure> {
    let header = |name: &str| -> Result<String, Failure> {
        let found = record.headers().find(|header| header.name == name.as_bytes());
        let value = found.and_then(|header| header.value).ok_or_else(|| format!("a dead letter without {name}"))?;
        Ok(String::from_utf8(value.to_vec())?)
    };
    let place = (header("tripline-dlq-partition")?.parse()?, header("tripline-dlq-offset")?.parse()?);
    let last_attempt: jiff::Timestamp = header("tripline-dlq-last-attempt")?.parse()?;
    Ok(Letter { place, written_ms: record.timestamp_ms(), last_attempt_ms: last_attempt.as_millisecond() })
}
