//! Instructions that the hot paths take, counted by valgrind: the same on every run, whatever else the machine does.
//!
//! `cargo bench -p tripline-storage --bench instructions` compares with `benches/instructions.txt` and fails where a
//! path takes over 5 % more; `-- --write` writes what it found there. Numbers of another compiler or of a processor for
//! which valgrind shows other instructions are not comparable: then it says SKIP. What the kernel does is not counted.
//! Each path runs in a process of its own with two counts of rounds, so that setting up and ending cancel out.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use tripline_storage::batch::{
    BatchBuilder, BatchLimits, BatchOptions, CheckedBatch, Compression, NewRecord, Validation,
};
use tripline_storage::fs::OsFs;
use tripline_storage::partition::ReadStart;
use tripline_storage::{LogConfig, Offset, Partition, PartitionId, Store, StoreConfig};
use uuid::Uuid;

const NOW_MS: i64 = 1_700_000_000_000;
/// More than this over what is written down fails, in percent. The same code built in another directory differs by up
/// to two.
const WORSE_MAX_PERCENT: f64 = 5.0;
/// Less than this below is worth writing down.
const BETTER_MIN_PERCENT: f64 = 3.0;
/// Rounds of the shorter run; the longer one has three times as many.
const ROUNDS: u64 = 400;

/// Runs a path so often.
type Path = fn(u64);

const PATHS: [(&str, Path); 8] = [
    ("build 16 x 1 KiB", |rounds| repeat(rounds, || black_box(batch(1 << 10, 16, Compression::None)))),
    ("check 16 x 1 KiB", |rounds| check(rounds, &batch(1 << 10, 16, Compression::None))),
    ("check 1000 x 1 KiB", |rounds| check(rounds, &batch(1 << 10, 1000, Compression::None))),
    ("check 160 x 100 B", |rounds| check(rounds, &batch(100, 160, Compression::None))),
    ("check 160 x 100 B, lz4", |rounds| check(rounds, &batch(100, 160, Compression::Lz4))),
    ("append 16 x 1 KiB", |rounds| append(rounds, &batch(1 << 10, 16, Compression::None))),
    ("append 1 x 100 B", |rounds| append(rounds, &batch(100, 1, Compression::None))),
    ("hot read of 64 KiB in batches of 16 KiB", hot_read),
];

fn repeat<T>(rounds: u64, mut work: impl FnMut() -> T) {
    for _ in 0..rounds {
        black_box(work());
    }
}

fn batch(value_bytes: usize, records: usize, compression: Compression) -> CheckedBatch {
    let mut random = fastrand::Rng::with_seed(7);
    let mut builder = BatchBuilder::new(BatchOptions { compression, ..BatchOptions::default() });
    for _ in 0..records {
        // Letters, so that there is something to compress.
        let value: Vec<u8> = std::iter::repeat_with(|| random.u8(b'a'..b'e')).take(value_bytes).collect();
        builder.push(&NewRecord { timestamp_ms: NOW_MS, value: Some(&value), ..NewRecord::default() }).unwrap();
    }
    builder.finish().unwrap()
}

fn check(rounds: u64, batch: &CheckedBatch) {
    let (bytes, limits) = (batch.bytes().clone(), BatchLimits::default());
    repeat(rounds, || CheckedBatch::check(bytes.clone(), &limits, Validation::Records).unwrap());
}

fn partition(dir: &tempfile::TempDir) -> (Store, Arc<Partition>) {
    let config = StoreConfig { flush_interval: Duration::from_secs(3600), reserve_bytes: 0, ..StoreConfig::default() };
    let store = Store::open(Arc::new(OsFs), dir.path(), config, Uuid::from_u128(1)).unwrap();
    let id = PartitionId { topic: Uuid::from_u128(7), partition: 0 };
    let (partition, _) = store.open_partition(id, LogConfig::default()).unwrap();
    (store, partition)
}

fn append(rounds: u64, batch: &CheckedBatch) {
    let dir = tempfile::tempdir().unwrap();
    let (_store, partition) = partition(&dir);
    repeat(rounds, || partition.append(batch, NOW_MS).unwrap());
}

fn hot_read(rounds: u64) {
    let dir = tempfile::tempdir().unwrap();
    let (_store, partition) = partition(&dir);
    let batch = batch(1 << 10, 16, Compression::None);
    repeat(100, || partition.append(&batch, NOW_MS).unwrap());
    let from = Offset::new(40 * 16).unwrap();
    repeat(rounds, || match partition.read(from, 64 << 10).unwrap() {
        ReadStart::Ready(outcome) => assert!(!outcome.bytes.is_empty()),
        ReadStart::Cold(_) => unreachable!("all of it was appended by this process"),
    });
}

/// What the numbers depend on besides the code: the compiler, and the instructions that libraries choose by.
fn conditions() -> String {
    let compiler = Command::new("rustc").arg("--version").output().unwrap().stdout;
    let compiler = String::from_utf8(compiler).unwrap();
    // As the program sees them under valgrind.
    let features = under_valgrind(&["--features"]).0;
    format!("{}, {}", compiler.split(" (").next().unwrap_or_default(), features.trim())
}

#[cfg(target_arch = "x86_64")]
fn features() -> String {
    let features = [
        ("sse4.2", is_x86_feature_detected!("sse4.2")),
        ("pclmulqdq", is_x86_feature_detected!("pclmulqdq")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
    ];
    let found = features.iter().filter(|(_, found)| *found).map(|(name, _)| *name);
    std::iter::once("x86_64").chain(found).collect::<Vec<_>>().join(" ")
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> String {
    std::env::consts::ARCH.to_owned()
}

/// Runs this program; answers what it printed and what valgrind reported.
fn under_valgrind(args: &[&str]) -> (String, String) {
    let run = Command::new("valgrind")
        .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(args)
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success(), "{args:?}: {report}");
    (String::from_utf8(run.stdout).unwrap(), report)
}

/// Instructions of this program running one path so often.
fn count(path: &str, rounds: u64) -> u64 {
    let report = under_valgrind(&["--path", path, &rounds.to_string()]).1;
    let line = report.lines().find_map(|line| line.split_once("I   refs:")).unwrap_or_else(|| panic!("{report}")).1;
    line.replace(',', "").trim().parse().unwrap()
}

fn written_file() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt"))
}

/// Under which conditions, and how many.
fn written() -> (String, BTreeMap<String, u64>) {
    let text = std::fs::read_to_string(written_file()).unwrap();
    let conditions = text.lines().find_map(|line| line.strip_prefix("# counted with ")).unwrap_or_default().to_owned();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let numbers = lines.map(|line| line.rsplit_once(": ").unwrap());
    (conditions, numbers.map(|(path, n)| (path.to_owned(), n.parse().unwrap())).collect())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, path, rounds] = args.as_slice()
        && flag == "--path"
    {
        let (_, run) = PATHS.iter().find(|(name, _)| name == path).unwrap();
        run(rounds.parse().unwrap());
        return ExitCode::SUCCESS;
    }
    if args == ["--features"] {
        println!("{}", features());
        return ExitCode::SUCCESS;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("SKIP: instructions of the hot paths: valgrind is not installed");
        return ExitCode::SUCCESS;
    }
    let conditions = conditions();
    let write = args.iter().any(|arg| arg == "--write");
    let (written_with, written) = written();
    if !write && written_with != conditions {
        println!("SKIP: instructions of the hot paths: counted with {written_with}, this is {conditions}");
        return ExitCode::SUCCESS;
    }
    let found = PATHS.map(|(path, _)| (path, (count(path, ROUNDS * 3) - count(path, ROUNDS)) / (ROUNDS * 2)));
    if write {
        let mut text = format!(
            "# Instructions a round; written by `cargo bench -p tripline-storage --bench instructions -- --write`.\n# counted with {conditions}\n"
        );
        found.iter().for_each(|(path, n)| text += &format!("{path}: {n}\n"));
        std::fs::write(written_file(), text).unwrap();
        return ExitCode::SUCCESS;
    }
    let mut worse = false;
    for (path, n) in found {
        let Some(&before) = written.get(path) else {
            println!("{path:<45} {n:>10}   not written down: run with --write");
            worse = true;
            continue;
        };
        let percent = (n as f64 / before as f64 - 1.0) * 100.0;
        let verdict = match percent {
            percent if percent > WORSE_MAX_PERCENT => "WORSE",
            percent if percent < -BETTER_MIN_PERCENT => "better: write it down with --write",
            _ => "as before",
        };
        println!("{path:<45} {n:>10}   {percent:+.1} % {verdict}");
        worse |= percent > WORSE_MAX_PERCENT;
    }
    if worse { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
