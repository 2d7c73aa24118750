//! kill -9 of the broker at random moments under load.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::broker::{self, Broker, Load};
use crate::ledger::{End, Ledger};
use crate::{Failure, Verdict, store};

/// How long a broker lives behind its start.
const LIFE_MS: std::ops::Range<u64> = 0..300;
/// All is read after each kill, and topics only grow.
const CYCLES_OF_A_DIRECTORY: u64 = 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The broker's binary
    #[arg(long)]
    binary: PathBuf,
    /// Kills in all
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    cycles: u64,
    /// Decides when; chosen by chance and printed when it is not given
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) fn run(args: &Args) -> Result<Verdict, Failure> {
    let binary = args.binary.canonicalize().map_err(|cause| format!("--binary {}: {cause}", args.binary.display()))?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("killing {} times, seed {seed}", args.cycles);
    let begun = Instant::now();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut acks = 0;
    let mut done = 0;
    while done < args.cycles {
        let cycles = CYCLES_OF_A_DIRECTORY.min(args.cycles - done);
        match kill_again_and_again(&binary, cycles, &mut random)? {
            Ok(more) => acks += more,
            Err(broken) => {
                let again = format!("tripline-battery kill --seed {seed} --cycles {}", args.cycles);
                return Ok(Verdict::Broken(format!("{broken}\nagain: {again} --binary {}", binary.display())));
            }
        }
        done += cycles;
        if done.is_multiple_of(500) {
            println!("  {done} kills, {acks} acknowledgements, none lost");
        }
    }
    let took = begun.elapsed().as_secs_f64();
    Ok(Verdict::Held(format!("{done} kills, seed {seed}, in {took:.0} s: {acks} acknowledgements, none lost")))
}

/// Kills brokers that follow each other on one directory; how much was acknowledged.
fn kill_again_and_again(
    binary: &Path,
    cycles: u64,
    random: &mut fastrand::Rng,
) -> Result<Result<u64, String>, Failure> {
    let scratch = tempfile::tempdir()?;
    let data = scratch.path().join("data");
    let mut ledgers: BTreeMap<u32, Ledger> = BTreeMap::new();
    let mut acks = 0;
    for cycle in 0..cycles {
        let broker = Broker::start(binary, &data, &[])?;
        let load = Load::start(&broker, cycle as u32 + 1)?;
        thread::sleep(Duration::from_millis(random.u64(LIFE_MS)));
        broker.kill()?;
        acks += load.finish(&mut ledgers)?;
        let broker = Broker::start(binary, &data, &[])?;
        let found = broker::read_all(&broker)?;
        if let Err(broken) = store::settle(&mut ledgers, &found, End::Killed) {
            return Ok(Err(format!("kill {cycle} of a directory: {broken}")));
        }
        broker.kill()?;
    }
    Ok(Ok(acks))
}
