//! The battery of the storage promises: what nothing that goes wrong may break, tried out. Each command prints its seed,
//! and what it found; it fails when a promise was broken, and says SKIP when the machine has not what it needs.

use std::fmt;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[path = "../../../storage/tests/common/runs.rs"]
mod runs;
mod simulate;
#[path = "../../../storage/tests/common/world.rs"]
mod world;

/// Why a battery could not be run. A broken promise is a [`Verdict`].
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What a battery found.
#[allow(dead_code)]
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
  tripline-battery simulate --seed 7"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Random operations, faults and ends of a log on a simulated disk, compared with a plain list
    Simulate(simulate::Args),
}

fn main() -> ExitCode {
    let verdict = match Cli::parse().command {
        Command::Simulate(args) => simulate::run(&args),
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
