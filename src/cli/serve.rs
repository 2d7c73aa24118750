//! `tripline serve`.

use std::fmt::Write;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::exit;
use std::time::Duration;

use ipnet::IpNet;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use super::failure::Failure;
use super::output::print;
use super::settings::{FileSettings, INTERVAL_ALLOWED, NETWORK_ALLOWED, SCRUB_ALLOWED, parse_interval, parse_network};
use crate::config::units::parse_size;
use crate::server::{Server, ServerConfig, StopReport};

const DEFAULT_DATA: &str = "tripline-data";

/// How the broker runs.
#[derive(Debug, Default, clap::Args)]
#[command(after_help = "\
Examples:
  tripline serve                               Kafka on 127.0.0.1:9092, HTTP on 127.0.0.1:7080
  tripline serve --data /var/lib/tripline
  tripline serve --ephemeral --kafka 127.0.0.1:0 --http 127.0.0.1:0
                                               for a test: any free ports, data gone at exit")]
pub(super) struct ServeArgs {
    /// A file with settings [default: tripline.toml, if it is there].
    #[arg(short = 'c', long = "config", env = "TRIPLINE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data directory; made if it is missing [default: ./tripline-data].
    #[arg(long, env = "TRIPLINE_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where Kafka clients connect; port 0 is any free one [default: 127.0.0.1:9092].
    #[arg(long, env = "TRIPLINE_KAFKA", value_name = "ADDR")]
    kafka: Option<SocketAddr>,
    /// Where HTTP clients connect; port 0 is any free one [default: 127.0.0.1:7080].
    #[arg(long, env = "TRIPLINE_HTTP", value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// What Kafka clients are told to connect to, instead of the address they used.
    #[arg(long, env = "TRIPLINE_KAFKA_ADVERTISED", value_name = "HOST:PORT")]
    kafka_advertised: Option<String>,
    /// Data in a temporary directory that is gone at exit.
    #[arg(long)]
    ephemeral: bool,
    /// Allow addresses that other machines reach, although nobody is asked who he is.
    #[arg(
        long,
        env = "TRIPLINE_INSECURE",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new(),
        hide_possible_values = true,
    )]
    insecure: Option<bool>,
    /// A name by which HTTP clients may call, besides localhost. May be repeated.
    #[arg(long, env = "TRIPLINE_ALLOW_HOST", value_name = "NAME", value_delimiter = ',')]
    allow_host: Vec<String>,
    /// A network or an address, such as 10.0.0.0/8, that functions which are URLs may name although it is private. May
    /// be repeated.
    #[arg(long, env = "TRIPLINE_EGRESS_ALLOW", value_name = "NETWORK", value_delimiter = ',', value_parser = network)]
    egress_allow: Vec<IpNet>,
    /// The python3 that functions run with [default: the first in PATH].
    #[arg(long, env = "TRIPLINE_PYTHON3", value_name = "FILE")]
    python3: Option<PathBuf>,
    /// How fast old segments are read again to find damage, in bytes a second; 0 for not at all [default: 8MiB].
    #[arg(long, env = "TRIPLINE_SCRUB", value_name = "SIZE", value_parser = rate)]
    scrub: Option<u64>,
    /// How often it is looked for records that retention removes [default: 5m].
    #[arg(long, env = "TRIPLINE_RETENTION_INTERVAL", value_name = "TIME", value_parser = interval)]
    retention_interval: Option<Duration>,
    /// How often it is looked for logs to compact [default: 15s].
    #[arg(long, env = "TRIPLINE_COMPACTION_INTERVAL", value_name = "TIME", value_parser = interval)]
    compaction_interval: Option<Duration>,
}

/// Each partition and each connection has files open. The soft limit is low for programs that look at descriptors one
/// by one (`select`); we may have as many as the hard limit says.
fn raise_open_files_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Runs the broker until a signal stops it.
pub(super) async fn run(args: ServeArgs, verbose: bool) -> Result<(), Failure> {
    log_to_stderr(verbose);
    raise_open_files_limit();
    let temporary = args.ephemeral.then(tempfile::tempdir).transpose()?;
    let config = config(args, temporary.as_ref().map(|directory| directory.path().join("data")))?;
    let mut stops = signal(SignalKind::terminate())?;
    let mut hangups = signal(SignalKind::hangup())?;
    let server = Server::start(config).await.map_err(|error| Failure::new(error.to_string()))?;
    // What is printed is for a person who may be there: nobody's going keeps a broker from running, or from stopping as
    // it should.
    let _ = print(&start_text(&server, temporary.is_some()));
    loop {
        tokio::select! {
            // A terminal that is closed may say both.
            biased;
            _ = hangups.recv() => tracing::warn!("SIGHUP changes nothing: settings are read at the start"),
            _ = tokio::signal::ctrl_c() => break,
            _ = stops.recv() => break,
        }
    }
    let _ = print("stopping; once more stops at once");
    tokio::spawn(async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = stops.recv() => {}
        }
        exit(1);
    });
    let StopReport { took, not_on_disk } = server.stop().await;
    if not_on_disk > 0 {
        let detail = format!("{not_on_disk} partitions could not be made durable; the log above says why");
        return Err(Failure::new(detail));
    }
    let _ = print(&format!("stopped in {:.1} s; everything is on disk", took.as_secs_f64()));
    Ok(())
}

fn config(args: ServeArgs, temporary: Option<PathBuf>) -> Result<ServerConfig, Failure> {
    let file = FileSettings::load(args.config.as_deref())?;
    let data = temporary.or(args.data).or(file.data).unwrap_or_else(|| DEFAULT_DATA.into());
    let mut config = ServerConfig::new(data);
    config.kafka = args.kafka.or(file.kafka).unwrap_or(config.kafka);
    config.http = args.http.or(file.http).unwrap_or(config.http);
    config.insecure = args.insecure.or(file.insecure).unwrap_or(false);
    config.allowed_hosts = if args.allow_host.is_empty() { file.allow_host } else { args.allow_host };
    config.egress_allow = if args.egress_allow.is_empty() { file.egress_allow } else { args.egress_allow };
    config.python3 = args.python3.or(file.python3);
    let rate = args.scrub.or(file.scrub).unwrap_or(config.broker.scrub_bytes_per_second);
    config.broker.scrub_bytes_per_second = rate;
    let broker = &mut config.broker;
    let retention_interval = args.retention_interval.or(file.retention_interval);
    broker.retention_interval = retention_interval.unwrap_or(broker.retention_interval);
    let compaction_interval = args.compaction_interval.or(file.compaction_interval);
    broker.compaction_interval = compaction_interval.unwrap_or(broker.compaction_interval);
    let advertised = args.kafka_advertised.or(file.kafka_advertised);
    let advertised =
        advertised.map(|text| text.parse().map_err(|error| Failure::wrong_use(format!("--kafka-advertised: {error}"))));
    config.advertised = advertised.transpose()?;
    #[cfg(feature = "cluster")]
    {
        config.clusters = super::settings::clusters::with_files(file.clusters).map_err(Failure::wrong_use)?;
    }
    Ok(config)
}

fn network(text: &str) -> Result<IpNet, String> {
    parse_network(text).ok_or_else(|| format!("allowed: {NETWORK_ALLOWED}"))
}

fn rate(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|_| format!("allowed: {SCRUB_ALLOWED}"))
}

fn interval(text: &str) -> Result<Duration, String> {
    parse_interval(text).ok_or_else(|| format!("allowed: {INTERVAL_ALLOWED}"))
}

/// Warnings, or more; `TRIPLINE_LOG` says what, as for tracing's filters.
fn log_to_stderr(verbose: bool) {
    let default = if verbose { "tripline=debug,tripline_storage=debug" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("TRIPLINE_LOG").unwrap_or_else(|_| default.into());
    // Colours are for eyes: in a file they would be bytes between the words.
    let is_watched = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(is_watched).with_writer(std::io::stderr);
    // What cannot be written would be said to the same stderr, which panics when it is gone.
    let _ = lines.log_internal_errors(false).try_init();
}

/// What listens where, what was found, and what to try next.
fn start_text(server: &Server, ephemeral: bool) -> String {
    let (info, report) = (&server.rooms().info, server.report());
    let http = server.http_address();
    let mut text = format!("Tripline {} ({})\n", info.version, info.commit);
    let _ = writeln!(text, "  Kafka  {}", server.kafka_address());
    let _ = writeln!(text, "  HTTP   http://{http}");
    let gone = if ephemeral { " (gone at exit)" } else { "" };
    let _ = writeln!(text, "  data   {}{gone}", info.data.display());
    let broker = &report.broker;
    let triggers = server.rooms().triggers.list().len();
    let schedules = server.rooms().schedules.list().len();
    let _ = writeln!(
        text,
        "  found  {} topics, {} partitions, {} records, {} functions, {triggers} triggers, {schedules} schedules in {} ms",
        broker.topics,
        broker.partitions,
        broker.records,
        report.functions,
        broker.took.as_millis()
    );
    for (place, recovery) in &broker.recovered {
        let cut = recovery.cut.as_ref().map_or_else(String::new, |cut| {
            format!(", cut at offset {}: {} ({} bytes in quarantine)", cut.offset, cut.reason, cut.quarantined_bytes)
        });
        let damaged: Vec<String> =
            recovery.damaged.iter().map(|range| format!("{}..{}", range.from, range.to)).collect();
        let damaged = if damaged.is_empty() { String::new() } else { format!(", damaged: {}", damaged.join(" ")) };
        let alien = if recovery.alien.is_empty() {
            String::new()
        } else {
            format!(", not ours and left alone: {}", recovery.alien.join(" "))
        };
        let _ = writeln!(
            text,
            "  recovered {place}: {} bytes above the last flush kept{cut}{damaged}{alien}",
            recovery.rewritten_bytes
        );
    }
    for (place, again, cause) in &broker.offline {
        let _ = writeln!(text, "  offline {place}, tried again {again}: {cause}");
    }
    for line in &broker.commits_set_back {
        let _ = writeln!(text, "  recovered {line}");
    }
    for (name, failure) in &report.functions_failed {
        let _ = writeln!(text, "  function {name} does not run: {failure}");
    }
    for failure in &report.triggers_failed {
        let _ = writeln!(text, "  {failure}");
    }
    for failure in &report.schedules_failed {
        let _ = writeln!(text, "  {failure}");
    }
    let other = if http.port() == 7080 { String::new() } else { format!("TRIPLINE_SERVER=http://{http} ") };
    let _ = writeln!(text, "\nready. Try:  echo hello | {other}tripline produce greetings");
    text
}
