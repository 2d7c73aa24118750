//! Load and measurements against a running broker: a thin Kafka client with prebuilt batches, so that the broker is
//! what is measured. Loopback only, bounded in count; one line of result each, with the CPU time of broker and client
//! apart.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

mod broker;
mod client;
mod load;
mod pacer;
mod process;
mod recover;
mod start;

/// Why a measurement did not come about.
type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "Examples:
  tripline-bench start --binary target/release/tripline
  tripline-bench recover --binary target/release/tripline --mib 10240 --runs 3
  tripline-bench produce --kafka 127.0.0.1:9092 --topic b --size 1024 --count 1000000 --acks 1 --pid $(pidof tripline)
  tripline-bench consume --kafka 127.0.0.1:9092 --topic b --count 1000000 --pid $(pidof tripline)
  tripline-bench latency --kafka 127.0.0.1:9092 --topic l --rate 2000 --count 20000"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// From exec to the first acknowledged produce on an empty directory, then the memory of the idle broker
    Start(StartArgs),
    /// From exec to the first acknowledged produce on a directory whose broker was killed with so much in it
    Recover(RecoverArgs),
    /// Append records as fast as the broker takes them
    Produce(LoadArgs),
    /// Read records from the first on as fast as the broker gives them
    Consume(LoadArgs),
    /// Time from produce to receipt at a fixed rate, open loop
    Latency(LatencyArgs),
}

#[derive(Args)]
struct StartArgs {
    /// The broker's binary
    #[arg(long)]
    binary: PathBuf,
    /// How often
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
}

#[derive(Args)]
struct RecoverArgs {
    /// The broker's binary
    #[arg(long)]
    binary: PathBuf,
    /// How much is in it, over all partitions; it lies in the directory for temporary files (TMPDIR)
    #[arg(long, default_value_t = 1908, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    mib: u64,
    /// Over how many partitions
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    partitions: u32,
    /// How often it is killed
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
}

#[derive(Args)]
struct LoadArgs {
    /// The broker's Kafka address; loopback only
    #[arg(long)]
    kafka: SocketAddr,
    /// The topic; made if it is missing, partition 0 is used
    #[arg(long)]
    topic: String,
    /// Bytes of a record's value
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    size: u32,
    /// Records in all
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    count: u64,
    /// Bytes of a batch
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1_000..=1_048_000))]
    batch: u32,
    /// Requests in flight
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    in_flight: u32,
    /// Bytes asked for by one fetch; the default is that of Kafka's clients for a partition
    #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(i32).range(1_000..=64 << 20))]
    fetch: i32,
    /// 1 or all
    #[arg(long, default_value = "all", value_parser = ["1", "all"])]
    acks: String,
    /// The broker's process, for its CPU time
    #[arg(long)]
    pid: Option<u32>,
}

#[derive(Args)]
struct LatencyArgs {
    /// The broker's Kafka address; loopback only
    #[arg(long)]
    kafka: SocketAddr,
    /// The topic; made if it is missing, partition 0 is used
    #[arg(long)]
    topic: String,
    /// Bytes of a record's value
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(8..=1_000_000))]
    size: u32,
    /// Records a second
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Records in all
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    count: u32,
    /// 1 or all
    #[arg(long, default_value = "1", value_parser = ["1", "all"])]
    acks: String,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Start(args) => start::run(&args.binary, args.runs),
        Command::Recover(args) => recover::run(&args),
        Command::Produce(args) => check_loopback(args.kafka).and_then(|()| load::produce(&args)),
        Command::Consume(args) => check_loopback(args.kafka).and_then(|()| load::consume(&args)),
        Command::Latency(args) => check_loopback(args.kafka).and_then(|()| load::latency(&args)),
    };
    match result {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Load goes to this machine and nowhere else.
fn check_loopback(address: SocketAddr) -> Result<(), Failure> {
    let loopback = match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    if loopback { Ok(()) } else { Err(format!("--kafka: found {address}, allowed: a loopback address").into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_goes_to_loopback_only() {
        assert!(check_loopback("127.0.0.1:9092".parse().unwrap()).is_ok());
        assert!(check_loopback("[::1]:9092".parse().unwrap()).is_ok());
        assert!(check_loopback("10.0.0.1:9092".parse().unwrap()).is_err());
        assert!(check_loopback("0.0.0.0:9092".parse().unwrap()).is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
