//! The battery of the storage promises: what nothing that goes wrong may break, tried out. Each command prints its
//! seed, and what it found; it fails when a promise was broken, and says SKIP when the machine has not what it needs.

use std::fmt;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod blockreplay;
mod broker;
#[allow(dead_code, reason = "the load generator uses the rest")]
#[path = "../client.rs"]
mod client;
mod compact;
mod deliver;
#[path = "../../../storage/tests/common/faults.rs"]
mod faults;
mod keyed;
#[path = "../../../storage/tests/common/keyed_runs.rs"]
mod keyed_runs;
#[path = "../../../storage/tests/common/keyed_world.rs"]
mod keyed_world;
mod kill;
#[path = "../../../tests/lanes/sim.rs"]
mod lane_sim;
mod lanes;
mod ledger;
mod machine;
mod plants;
mod powercut;
mod realdisk;
#[path = "../../../storage/tests/common/runs.rs"]
mod runs;
#[path = "../../../storage/tests/common/seeded.rs"]
mod seeded;
mod seeds;
mod simulate;
mod store;
mod syscall;
#[path = "../../../storage/tests/common/world.rs"]
mod world;

/// Why a battery could not be run. A broken promise is a [`Verdict`].
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What a battery found.
enum Verdict {
    /// Everything held; what was done, in one line.
    Held(String),
    /// A promise was broken: how, and how to see it again.
    Broken(String),
    /// The machine has not what it needs.
    Skipped(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held(what) => write!(f, "held: {what}"),
            Self::Broken(what) => write!(f, "BROKEN: {what}"),
            Self::Skipped(why) => write!(f, "SKIP: {why}"),
        }
    }
}

#[derive(Parser)]
#[command(
    name = "tripline-battery",
    version,
    about,
    after_help = "Examples:
  tripline-battery simulate --seeds 100000
  tripline-battery simulate --seed 7
  tripline-battery compact --seeds 100000
  tripline-battery lanes --seeds 100000
  tripline-battery lanes --seed 7
  tripline-battery kill --cycles 50 --binary target/release/tripline
  tripline-battery deliver --kills 20 --binary target/release/tripline
  tripline-battery powercut --cycles 50 --seed 1 --binary target/release/tripline
  tripline-battery syscall --binary target/release/tripline
  tripline-battery syscall --stride 4
  tripline-battery blockreplay --states 100 --seed 1
  tripline-battery realdisk --binary target/release/tripline
  tripline-battery plants"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Random operations, faults and ends of a log on a simulated disk, compared with a plain list
    Simulate(simulate::Args),
    /// The same of a compacted log, which keeps of each key the newest record
    Compact(compact::Args),
    /// Random streams, outcomes and crashes of a trigger's lane in simulated time, compared with a plain list
    Lanes(lanes::Args),
    /// kill -9 of the broker at random moments under load
    Kill(kill::Args),
    /// kill -9 of the broker while its triggers deliver to a target that fails in every way
    Deliver(deliver::Args),
    /// Power cuts by file-system shutdown under a writer and under the broker
    Powercut(powercut::Args),
    /// States that a disk may be in after a power cut, put together from its recorded writes
    Blockreplay(blockreplay::Args),
    /// Faults planted in a copy of the source, each of which must be noticed
    Plants(plants::Args),
    /// A disk that fills up, fails a sync, has bad sectors, under the broker
    Realdisk(realdisk::Args),
    /// Death at and failure of each system call that changes the disk, in the storage crate and the broker
    Syscall(syscall::Args),
    /// Writes to a data directory and tells what it is promised; the others start this
    #[command(hide = true)]
    Write(store::WriteArgs),
}

fn main() -> ExitCode {
    let verdict = match Cli::parse().command {
        Command::Simulate(args) => simulate::run(&args),
        Command::Compact(args) => compact::run(&args),
        Command::Lanes(args) => lanes::run(&args),
        Command::Kill(args) => kill::run(&args),
        Command::Deliver(args) => deliver::run(&args),
        Command::Powercut(args) => powercut::run(&args),
        Command::Blockreplay(args) => blockreplay::run(&args),
        Command::Realdisk(args) => realdisk::run(&args),
        Command::Plants(args) => plants::run(&args),
        Command::Syscall(args) => syscall::run(&args),
        Command::Write(args) => store::write(&args),
    };
    match verdict {
        Ok(verdict @ Verdict::Broken(_)) => {
            eprintln!("{verdict}");
            ExitCode::FAILURE
        }
        Ok(verdict) => {
            println!("{verdict}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
