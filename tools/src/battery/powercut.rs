//! Power cuts: a file system is shut down under a writer, without its journal or with it, and mounted again.
//!
//! What the kernel had not written then is gone, like the rest of the machine's memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::ledger::{End, Ledger, Taken, now};
use crate::machine::{self, Kind, Mount, text};
use crate::store::{self, Promises, Writing};
use crate::{Failure, Verdict, broker};

/// XFS takes no less than 300 MB.
const DISK_BYTES: u64 = 400 << 20;
/// The broker's topics only grow.
const CYCLES_OF_A_DISK: u64 = 20;
/// How long a writer lives.
const LIFE_MS: std::ops::Range<u64> = 5..500;
/// Each so many cycles the broker is what writes.
const BROKER_EVERY: u64 = 5;
/// Besides the flush interval: the flush itself takes its time on a machine that does other things.
const FLUSH_MARGIN: Duration = Duration::from_millis(450);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Power cuts in all
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    cycles: u64,
    /// Decides when; chosen by chance and printed when it is not given
    #[arg(long)]
    seed: Option<u64>,
    /// The file system; both in turn when it is not given
    #[arg(long)]
    fs: Option<Kind>,
    /// The broker's binary: with it each fifth cycle is one of the broker
    #[arg(long)]
    binary: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<Verdict, Failure> {
    if let Some(lack) = machine::lacks(&["xfs_io", "mkfs.ext4", "mkfs.xfs"], true) {
        return Ok(Verdict::Skipped(format!("power cuts: {lack} (apt-get install xfsprogs e2fsprogs)")));
    }
    machine::stand_apart()?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("cutting the power {} times, seed {seed}", args.cycles);
    let begun = Instant::now();
    let kinds = args.fs.map_or_else(|| vec![Kind::Ext4, Kind::Xfs], |kind| vec![kind]);
    let mut all = Counts::default();
    for (nth, &kind) in kinds.iter().enumerate() {
        let cycles = (args.cycles + nth as u64) / kinds.len() as u64;
        let mut disk = Disk::new(kind, seed, args.binary.as_deref())?;
        for cycle in 0..cycles {
            if cycle > 0 && cycle % CYCLES_OF_A_DISK == 0 {
                disk = Disk::new(kind, seed.wrapping_add(cycle), args.binary.as_deref())?;
            }
            let counts = match disk.cycle(cycle)? {
                Ok(counts) => counts,
                Err(broken) => {
                    let again = format!("tripline-battery powercut --seed {seed} --cycles {}", args.cycles);
                    return Ok(Verdict::Broken(format!("{} cycle {cycle}: {broken}\nagain: {again}", kind.name())));
                }
            };
            all.add(counts);
            if (cycle + 1) % 100 == 0 {
                println!("  {}: {} cycles, {all}", kind.name(), cycle + 1);
            }
        }
    }
    Ok(Verdict::Held(format!(
        "{} power cuts, seed {seed}, in {:.0} s: {all}",
        args.cycles,
        begun.elapsed().as_secs_f64()
    )))
}

#[derive(Clone, Copy, Default)]
struct Counts {
    acks: u64,
    taken: Taken,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.acks += other.acks;
        self.taken = self.taken.max(other.taken);
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Taken { records, age } = self.taken;
        let age_ms = age.as_millis();
        write!(
            f,
            "{} acknowledgements, 0 durable ones lost; of the others a cut took {records} at most, {age_ms} ms old at most",
            self.acks
        )
    }
}

/// A disk with what was promised about it.
struct Disk<'a> {
    image: PathBuf,
    mount: PathBuf,
    random: fastrand::Rng,
    binary: Option<&'a Path>,
    promises: Promises,
    broker_ledgers: BTreeMap<u32, Ledger>,
    // Last, so that it is removed when nothing is mounted in it any more.
    _scratch: tempfile::TempDir,
}

impl<'a> Disk<'a> {
    fn new(kind: Kind, seed: u64, binary: Option<&'a Path>) -> Result<Self, Failure> {
        let scratch = tempfile::tempdir()?;
        let (image, mount) = (scratch.path().join("disk"), scratch.path().join("mount"));
        std::fs::create_dir(&mount)?;
        machine::format(&image, kind, DISK_BYTES, &[])?;
        Ok(Self {
            image,
            mount,
            random: fastrand::Rng::with_seed(seed ^ kind as u64),
            binary,
            promises: Promises::default(),
            broker_ledgers: BTreeMap::new(),
            _scratch: scratch,
        })
    }

    fn cycle(&mut self, number: u64) -> Result<Result<Counts, String>, Failure> {
        let run = number as u32 + 1;
        let life = Duration::from_millis(self.random.u64(LIFE_MS));
        let with_journal = self.random.bool();
        let mounted = Mount::image(&self.image, &self.mount, "")?;
        match self.binary.filter(|_| number % BROKER_EVERY == BROKER_EVERY - 1) {
            Some(binary) => self.cycle_of_broker(mounted, binary, run, life, with_journal),
            None => self.cycle_of_store(mounted, run, life, with_journal),
        }
    }

    fn cycle_of_store(
        &mut self,
        mounted: Mount,
        run: u32,
        life: Duration,
        with_journal: bool,
    ) -> Result<Result<Counts, String>, Failure> {
        let data = mounted.path().join("store");
        let writing = Writing::start(&data, run, self.random.u64(..), &[], &[])?;
        thread::sleep(life);
        let at = cut(&mounted, with_journal)?;
        let said = writing.kill()?;
        mounted.unmount()?;
        let counts = Counts { acks: said.note(&mut self.promises)?, ..Counts::default() };
        let mounted = Mount::image(&self.image, &self.mount, "")?;
        let found = store::read_all(&data)?;
        mounted.unmount()?;
        let end = End::PowerCut { at, flush_within: store::FLUSH_INTERVAL + FLUSH_MARGIN };
        Ok(self.promises.settle(&found, end).map(|taken| Counts { taken, ..counts }))
    }

    fn cycle_of_broker(
        &mut self,
        mounted: Mount,
        binary: &Path,
        run: u32,
        life: Duration,
        with_journal: bool,
    ) -> Result<Result<Counts, String>, Failure> {
        let data = mounted.path().join("broker");
        let broker = broker::Broker::start(binary, &data, &[])?;
        let load = broker::Load::start(&broker, run)?;
        thread::sleep(life);
        let at = cut(&mounted, with_journal)?;
        broker.kill()?;
        let counts = Counts { acks: load.finish(&mut self.broker_ledgers)?, ..Counts::default() };
        mounted.unmount()?;
        let mounted = Mount::image(&self.image, &self.mount, "")?;
        let broker = broker::Broker::start(binary, &data, &[])?;
        let found = broker::read_all(&broker)?;
        broker.kill()?;
        mounted.unmount()?;
        let end = End::PowerCut { at, flush_within: broker::FLUSH_INTERVAL + FLUSH_MARGIN };
        Ok(store::settle(&mut self.broker_ledgers, &found, end).map(|taken| Counts { taken, ..counts }))
    }
}

/// Shuts the file system down; answers when.
fn cut(mounted: &Mount, with_journal: bool) -> Result<Duration, Failure> {
    let at = now();
    let command = if with_journal { "shutdown -f" } else { "shutdown" };
    machine::run("xfs_io", &["-x", "-c", command, text(mounted.path())?])?;
    Ok(at)
}
