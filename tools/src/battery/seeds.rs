//! Many seeds of one simulation, on all cores.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::seeded::Image;
use crate::{Failure, Verdict};

/// Every so many seeds one is run again, and must do the same.
const SAMPLE: u64 = 500;
/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);

/// Which seeds, and how.
#[derive(clap::Args)]
pub(crate) struct Seeds {
    /// How many seeds
    #[arg(id = "seeds", long, value_name = "SEEDS", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// The first seed; chosen by chance and printed when it is not given
    #[arg(long)]
    from: Option<u64>,
    /// Run this seed alone and tell what it does
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    pub(crate) seed: Option<u64>,
    /// Threads; the number of cores when it is not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: Option<u32>,
}

impl Verdict {
    /// About one run of a simulated disk.
    pub(crate) fn of_image(seed: u64, result: Result<Image, String>) -> Self {
        match result {
            Ok(image) => {
                Self::Held(format!("seed {seed} leaves {} files, digest {:016x}", image.len(), digest(&image)))
            }
            Err(failure) => Self::Broken(failure),
        }
    }
}

impl Seeds {
    /// Runs them all. `run` answers a digest of what a seed did; `again` names the command that does a seed again.
    pub(crate) fn run(
        &self,
        what: &str,
        again: impl Fn(u64) -> String + Sync,
        run: impl Fn(u64) -> Result<u64, String> + Sync,
    ) -> Result<Verdict, Failure> {
        let from = self.from.unwrap_or_else(|| fastrand::u64(..1 << 53));
        println!("simulating {} seeds from {from}", self.count);
        let begun = Instant::now();
        let threads = self.threads.map_or_else(cores, |threads| threads as usize);
        let all = Runs { from, count: self.count, ..Runs::new(&run, &again) };
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
            "{} seeds from {from}, {what}, {} of them run twice, in {:.1} s on {threads} threads; digest {:016x}",
            self.count,
            self.count.div_ceil(SAMPLE),
            begun.elapsed().as_secs_f64(),
            all.digest.into_inner(),
        )))
    }
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The seeds of one command, shared by its threads.
struct Runs<'a> {
    from: u64,
    count: u64,
    run: &'a (dyn Fn(u64) -> Result<u64, String> + Sync),
    again: &'a (dyn Fn(u64) -> String + Sync),
    next: AtomicU64,
    done: AtomicU64,
    /// Sum over the digests of all runs: the same for the same seeds, whatever the threads.
    digest: AtomicU64,
    failed: AtomicBool,
    failure: Mutex<Option<String>>,
}

impl<'a> Runs<'a> {
    fn new(run: &'a (dyn Fn(u64) -> Result<u64, String> + Sync), again: &'a (dyn Fn(u64) -> String + Sync)) -> Self {
        Self {
            from: 0,
            count: 0,
            run,
            again,
            next: AtomicU64::new(0),
            done: AtomicU64::new(0),
            digest: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    fn work(&self) {
        while !self.failed.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.count {
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
        let found = (self.run)(seed)?;
        if twice && (self.run)(seed)? != found {
            return Err(format!("seed {seed} did something else when it was run again"));
        }
        Ok(found)
    }

    fn fail(&self, seed: u64, failure: &str) {
        self.failed.store(true, Ordering::Relaxed);
        let text = format!("{failure}\nagain: {}", (self.again)(seed));
        self.failure.lock().expect("nothing panics while it is held").get_or_insert(text);
    }

    fn tell_progress(&self, begun: Instant) {
        let mut told = Instant::now();
        while !self.failed.load(Ordering::Relaxed) && self.done.load(Ordering::Relaxed) < self.count {
            thread::sleep(Duration::from_millis(20));
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                let (done, seconds) = (self.done.load(Ordering::Relaxed), begun.elapsed().as_secs_f64());
                println!("  {done} of {} after {seconds:.0} s", self.count);
            }
        }
    }
}

/// CRC-32 over names and bytes, spread over 64 bits so that a sum of many says something.
pub(crate) fn digest(image: &Image) -> u64 {
    let mut hasher = crc32fast::Hasher::new();
    for (path, bytes) in image {
        hasher.update(path.as_os_str().as_encoded_bytes());
        hasher.update(bytes);
    }
    u64::from(hasher.finalize()).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
