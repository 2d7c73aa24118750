//! Seeded simulation: the runs of `storage/tests/model.rs`, many of them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use tripline_storage::fs::sim::Lie;

use crate::runs::{self, Image};
use crate::{Failure, Verdict};

/// Every so many seeds one is run again, and must leave the same bytes.
const SAMPLE: u64 = 500;
/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many seeds
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first seed; chosen by chance and printed when it is not given
    #[arg(long)]
    from: Option<u64>,
    /// Run this seed alone and tell what it does
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Threads; the number of cores when it is not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: Option<u32>,
    /// Plant a fault: syncs of these only claim to have been done
    #[arg(long)]
    lie: Option<PlantedLie>,
}

/// A sync that a broken log would forget.
#[derive(Clone, Copy, ValueEnum)]
enum PlantedLie {
    /// Those of segments
    Logs,
    /// Those of seals, snapshots, FORMAT and EPOCH
    SideFiles,
    /// Those of the log start
    Checkpoints,
    /// Those of directories
    Directories,
}

impl From<PlantedLie> for Lie {
    fn from(lie: PlantedLie) -> Self {
        match lie {
            PlantedLie::Logs => Self::FileSyncs("log"),
            PlantedLie::SideFiles => Self::FileSyncs("tmp"),
            PlantedLie::Checkpoints => Self::FileSyncs("flushed"),
            PlantedLie::Directories => Self::DirSyncs,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<Verdict, Failure> {
    if let Some(seed) = args.seed {
        return Ok(match runs::run(seed, args.lie.map(Lie::from)) {
            Ok(image) => {
                Verdict::Held(format!("seed {seed} leaves {} files, digest {:016x}", image.len(), digest(&image)))
            }
            Err(failure) => Verdict::Broken(failure),
        });
    }
    let from = args.from.unwrap_or_else(|| fastrand::u64(..1 << 53));
    println!("simulating {} seeds from {from}", args.seeds);
    let begun = Instant::now();
    let threads = args.threads.map_or_else(cores, |threads| threads as usize);
    let all = Runs { from, seeds: args.seeds, lie: args.lie, ..Runs::default() };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| all.work());
        }
        all.tell_progress(begun);
    });
    if let Some(failure) = all.failure.into_inner().map_err(|_| "a thread broke down")? {
        return Ok(Verdict::Broken(failure));
    }
    Ok(Verdict::Held(format!(
        "{} seeds from {from}, {} operations each, {} of them run twice, in {:.1} s on {threads} threads; digest {:016x}",
        args.seeds,
        runs::OPERATIONS,
        args.seeds.div_ceil(SAMPLE),
        begun.elapsed().as_secs_f64(),
        all.digest.into_inner(),
    )))
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The seeds of one command, shared by its threads.
#[derive(Default)]
struct Runs {
    from: u64,
    seeds: u64,
    lie: Option<PlantedLie>,
    next: AtomicU64,
    done: AtomicU64,
    /// Sum over the digests of all runs: the same for the same seeds, whatever the threads.
    digest: AtomicU64,
    failed: AtomicBool,
    failure: Mutex<Option<String>>,
}

impl Runs {
    fn work(&self) {
        while !self.failed.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.seeds {
                return;
            }
            let seed = self.from.wrapping_add(number);
            match self.run_one(seed, number.is_multiple_of(SAMPLE)) {
                Ok(digest) => {
                    self.digest.fetch_add(digest, Ordering::Relaxed);
                    self.done.fetch_add(1, Ordering::Relaxed);
                }
                Err(failure) => self.fail(seed, &failure),
            }
        }
    }

    fn run_one(&self, seed: u64, twice: bool) -> Result<u64, String> {
        let lie = self.lie.map(Lie::from);
        let found = digest(&runs::run(seed, lie)?);
        if twice && digest(&runs::run(seed, lie)?) != found {
            return Err(format!("seed {seed} left other bytes when it was run again"));
        }
        Ok(found)
    }

    fn fail(&self, seed: u64, failure: &str) {
        self.failed.store(true, Ordering::Relaxed);
        let name = self.lie.as_ref().and_then(ValueEnum::to_possible_value);
        let lie = name.map_or_else(String::new, |name| format!(" --lie {}", name.get_name()));
        let text = format!("{failure}\nagain: tripline-battery simulate --seed {seed}{lie}");
        self.failure.lock().expect("nothing panics while it is held").get_or_insert(text);
    }

    fn tell_progress(&self, begun: Instant) {
        let mut told = Instant::now();
        while !self.failed.load(Ordering::Relaxed) && self.done.load(Ordering::Relaxed) < self.seeds {
            thread::sleep(Duration::from_millis(20));
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                println!(
                    "  {} of {} after {:.0} s",
                    self.done.load(Ordering::Relaxed),
                    self.seeds,
                    begun.elapsed().as_secs_f64()
                );
            }
        }
    }
}

/// CRC-32 over names and bytes, spread over 64 bits so that a sum of many says something.
fn digest(image: &Image) -> u64 {
    let mut hasher = crc32fast::Hasher::new();
    for (path, bytes) in image {
        hasher.update(path.as_os_str().as_encoded_bytes());
        hasher.update(bytes);
    }
    u64::from(hasher.finalize()).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
