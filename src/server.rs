//! The broker as one process: all rooms, started in order and stopped in reverse.
//!
//! ```text
//! start: data directory ─▶ functions ─▶ triggers ─▶ schedules ─▶ listeners ─▶ ready
//! stop:  not ready ─▶ schedules ─▶ triggers ─▶ functions ─▶ listeners ─▶ everything on disk
//! ```

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::broker::scrub::TICK;
use crate::broker::{Broker, BrokerConfig, StartError, StartReport, late};
use crate::function::log_topic;
use crate::function::registry::{FunctionRegistry, RestoreFailure};
use crate::function::{FunctionOptions, FunctionService, Home, Launcher};
use crate::group::config::GroupConfig;
use crate::group::expiry::OffsetExpiry;
use crate::group::service::GroupService;
use crate::http::{AllowedHosts, BrokerInfo, HttpLimits, Listener, Readiness, Rooms, router};
#[cfg(feature = "cluster")]
use crate::input::cluster::Clusters;
use crate::kafka::Kafka;
use crate::kafka::advertised::{Advertised, HostPort};
use crate::kafka::listener::ListenerConfig;
use crate::source::schedule::clock::Clock;
use crate::source::schedule::service::{RestoreScheduleError, ScheduleService};
use crate::trigger::service::{RestoreTriggerError, TriggerService};

/// The release.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit it was built from, or `unknown`.
pub const COMMIT: &str = env!("TRIPLINE_COMMIT");
/// How long a graceful stop takes at most.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// What invocations get of that to finish.
const INVOCATION_GRACE: Duration = Duration::from_secs(3);
/// What the log of the functions gets of that to end.
const LOG_GRACE: Duration = Duration::from_secs(1);
/// What instances get of that to say good-bye.
const INSTANCE_GRACE: Duration = Duration::from_secs(2);

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Data directory and topics.
    pub broker: BrokerConfig,
    /// Where Kafka clients connect; port 0 is any free one.
    pub kafka: SocketAddr,
    /// Where HTTP clients connect; port 0 is any free one.
    pub http: SocketAddr,
    /// What Kafka clients are told instead of the address that they used.
    pub advertised: Option<HostPort>,
    /// Whether addresses that are not loopback are allowed although nobody is asked who he is.
    pub insecure: bool,
    /// Names by which HTTP clients may call, besides localhost and the listener's own address.
    pub allowed_hosts: Vec<String>,
    /// Networks in which URLs of functions may lie although they are private.
    pub egress_allow: Vec<ipnet::IpNet>,
    /// What one HTTP client may ask for.
    pub http_limits: HttpLimits,
    /// The `python3` to use; by default the first one in `PATH`.
    pub python3: Option<PathBuf>,
    /// The program that becomes the process of an instance; by default this one.
    pub launcher: Option<PathBuf>,
    /// Clusters that definitions may name; by default none.
    #[cfg(feature = "cluster")]
    pub clusters: Clusters,
    /// What schedules go by; by default the clock of this machine.
    pub schedule_clock: Clock,
}

impl ServerConfig {
    /// The defaults: Kafka on 127.0.0.1:9092, HTTP on 127.0.0.1:7080, data in `data`.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            broker: BrokerConfig::new(data),
            kafka: SocketAddr::from(([127, 0, 0, 1], 9092)),
            http: SocketAddr::from(([127, 0, 0, 1], 7080)),
            advertised: None,
            insecure: false,
            allowed_hosts: Vec::new(),
            egress_allow: Vec::new(),
            http_limits: HttpLimits::default(),
            python3: None,
            launcher: None,
            #[cfg(feature = "cluster")]
            clusters: Clusters::default(),
            schedule_clock: Clock::default(),
        }
    }
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// An address is open to the network.
    #[error(
        "{flag} {address} can be reached from other machines, and nobody is asked who he is; use 127.0.0.1, or say --insecure"
    )]
    NotLoopback {
        /// The flag that named it.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {cause}{holder}; choose another with {flag} ADDR (port 0 = any free one)", holder = .holder.as_deref().map_or_else(String::new, |holder| format!(" by {holder}")))]
    Bind {
        /// The flag that named it.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        cause: io::Error,
        /// The process that has it, if it can be seen.
        holder: Option<String>,
    },
    /// The broker did not start.
    #[error(transparent)]
    Broker(#[from] StartError),
    /// Functions cannot run.
    #[error("functions cannot run: {0}")]
    Functions(io::Error),
    /// A socket does not answer.
    #[error("a listener did not start: {0}")]
    Listener(io::Error),
}

/// How a server has stopped.
#[derive(Clone, Copy, Debug)]
pub struct StopReport {
    /// How long it took.
    pub took: Duration,
    /// Partitions that could not be made durable.
    pub not_on_disk: usize,
}

/// A running server.
pub struct Server {
    rooms: Rooms,
    listener: Listener,
    kafka: JoinHandle<()>,
    kafka_address: SocketAddr,
    stop: CancellationToken,
    /// Work beside the requests: scrubber, housekeeping, compaction, partitions that wait for room.
    tasks: [JoinHandle<()>; 4],
    function_log: JoinHandle<()>,
    report: ServerReport,
}

/// What a start found.
#[derive(Debug)]
pub struct ServerReport {
    /// Topics and records.
    pub broker: StartReport,
    /// Functions that are remembered.
    pub functions: usize,
    /// Those of them that do not run, and why.
    pub functions_failed: Vec<(String, RestoreFailure)>,
    /// Triggers that are remembered and do not run, and why.
    pub triggers_failed: Vec<RestoreTriggerError>,
    /// Schedules that are remembered and do not run, and why.
    pub schedules_failed: Vec<RestoreScheduleError>,
}

impl Server {
    /// Starts everything. Work is taken when this returns.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub async fn start(config: ServerConfig) -> Result<Self, ServerError> {
        let http_socket = bind("--http", config.http, config.insecure).await?;
        let kafka_socket = bind("--kafka", config.kafka, config.insecure).await?;
        let http_address = http_socket.local_addr().map_err(ServerError::Listener)?;
        let kafka_address = kafka_socket.local_addr().map_err(ServerError::Listener)?;
        let (broker, broker_report) = start_broker(config.broker.clone()).await?;
        let (functions, function_log) = start_functions(&broker, &config, &[http_address, kafka_address]).await?;
        let (remembered, functions_failed) = functions.restore();
        let (triggers, triggers_failed) = start_triggers(&broker, &functions, &config);
        let (schedules, schedules_failed) = ScheduleService::start(broker.clone(), config.schedule_clock.clone()).await;
        let (groups, timers) = GroupService::new(GroupConfig::default());
        let stop = CancellationToken::new();
        tokio::spawn(timers.run(stop.clone()));
        let kafka = Kafka {
            broker: broker.clone(),
            groups: groups.clone(),
            triggers: triggers.clone(),
            advertised: Arc::new(Advertised::detect(config.advertised.clone())),
            metrics: Arc::default(),
            listener: ListenerConfig { io_threads: cores(), ..ListenerConfig::default() },
        };
        let info = BrokerInfo {
            version: VERSION,
            commit: COMMIT,
            data: config.broker.data.clone(),
            kafka_address: Some(kafka_address),
            http_address,
        };
        let rooms = Rooms {
            broker: broker.clone(),
            functions,
            triggers,
            schedules,
            groups,
            readiness: Readiness::default(),
            info: Arc::new(info),
            counts: Arc::default(),
        };
        let hosts = AllowedHosts::new(http_address, &config.allowed_hosts);
        let router = router(rooms.clone(), config.http_limits);
        let listener =
            Listener::serve(http_socket, router, hosts, config.http_limits).map_err(ServerError::Listener)?;
        let kafka = tokio::spawn(kafka.serve(kafka_socket, stop.clone()));
        rooms.readiness.set(true);
        let scrubbing = tokio::spawn(scrub(broker.clone()));
        let housekeeping = tokio::spawn(keep_house(broker.clone(), rooms.triggers.clone(), rooms.groups.clone()));
        let compaction = tokio::spawn(keep_compact(broker.clone(), rooms.triggers.clone()));
        let late = tokio::spawn(keep_open_late(broker, rooms.triggers.clone(), rooms.schedules.clone()));
        let tasks = [scrubbing, housekeeping, compaction, late];
        let report = ServerReport {
            broker: broker_report,
            functions: remembered,
            functions_failed,
            triggers_failed,
            schedules_failed,
        };
        Ok(Self { rooms, listener, kafka, kafka_address, stop, tasks, function_log, report })
    }

    /// What the API works with.
    #[must_use]
    pub const fn rooms(&self) -> &Rooms {
        &self.rooms
    }

    /// What the start found.
    #[must_use]
    pub const fn report(&self) -> &ServerReport {
        &self.report
    }

    /// Where HTTP clients connect.
    #[must_use]
    pub const fn http_address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Where Kafka clients connect.
    #[must_use]
    pub const fn kafka_address(&self) -> SocketAddr {
        self.kafka_address
    }

    /// Stops gracefully, within [`STOP_TIMEOUT`]: open windows are given back, functions finish or are interrupted, all
    /// that was appended is on disk.
    pub async fn stop(mut self) -> StopReport {
        let started = Instant::now();
        self.rooms.readiness.set(false);
        self.rooms.functions.end_changes();
        self.rooms.broker.end_housekeeping();
        self.tasks.iter().for_each(JoinHandle::abort);
        let stopping = async {
            self.rooms.schedules.shutdown().await;
            self.rooms.triggers.shutdown(INVOCATION_GRACE).await;
            self.rooms.functions.shutdown(INSTANCE_GRACE).await;
            self.stop.cancel();
            self.listener.stop().await;
            if let Err(error) = (&mut self.kafka).await {
                tracing::warn!(%error, "the Kafka listener failed");
            }
            // Nobody asks for more; what clients asked for before they were cut off is done.
            self.rooms.broker.changes_ended().await;
        };
        if tokio::time::timeout(STOP_TIMEOUT, stopping).await.is_err() {
            tracing::warn!("not everything stopped in time");
        }
        // The last handle to the functions ends their log; what they printed is appended before the broker closes.
        let broker = self.rooms.broker.clone();
        drop(self.rooms);
        for task in self.tasks {
            let _ = task.await;
        }
        if tokio::time::timeout(LOG_GRACE, self.function_log).await.is_err() {
            tracing::warn!("the last lines of functions may be missing in their log");
        }
        let closed = tokio::task::spawn_blocking(move || broker.close()).await;
        let not_on_disk = closed.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()));
        StopReport { took: started.elapsed(), not_on_disk }
    }
}

async fn bind(flag: &'static str, address: SocketAddr, insecure: bool) -> Result<TcpListener, ServerError> {
    if !insecure && !address.ip().is_loopback() {
        return Err(ServerError::NotLoopback { flag, address });
    }
    TcpListener::bind(address).await.map_err(|cause| {
        let holder = (cause.kind() == io::ErrorKind::AddrInUse).then(|| holder_of(address.port())).flatten();
        ServerError::Bind { flag, address, cause, holder }
    })
}

async fn start_broker(config: BrokerConfig) -> Result<(Broker, StartReport), ServerError> {
    let started = tokio::task::spawn_blocking(move || Broker::start(config)).await;
    Ok(started.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))?)
}

#[cfg(feature = "cluster")]
fn start_triggers(
    broker: &Broker,
    functions: &FunctionRegistry,
    config: &ServerConfig,
) -> (TriggerService, Vec<RestoreTriggerError>) {
    TriggerService::start_with_clusters(broker.clone(), functions.service().clone(), config.clusters.clone())
}

#[cfg(not(feature = "cluster"))]
fn start_triggers(
    broker: &Broker,
    functions: &FunctionRegistry,
    _: &ServerConfig,
) -> (TriggerService, Vec<RestoreTriggerError>) {
    TriggerService::start(broker.clone(), functions.service().clone())
}

async fn start_functions(
    broker: &Broker,
    config: &ServerConfig,
    own_listeners: &[SocketAddr],
) -> Result<(FunctionRegistry, JoinHandle<()>), ServerError> {
    let (log_sink, log_writer) = log_topic::channel();
    let mut options = FunctionOptions::new(config.broker.data.join("functions")).map_err(ServerError::Functions)?;
    options.python3.clone_from(&config.python3);
    options.log_sink = log_sink;
    options.egress.allow_loopback = own_listeners.iter().all(|address| address.ip().is_loopback());
    options.egress.own_listeners = own_listeners.to_vec();
    options.egress.allow.clone_from(&config.egress_allow);
    options.home = Some(Home::new(broker.cluster_id(), &config.broker.data).map_err(ServerError::Functions)?);
    if let Some(launcher) = &config.launcher {
        options.launcher = Launcher::Program(launcher.clone());
    }
    let service = FunctionService::new(options).map_err(ServerError::Functions)?;
    let left_over = service.end_left_over().await;
    if left_over > 0 {
        tracing::warn!(processes = left_over, "functions of a broker that was killed had left them behind: killed");
    }
    let function_log = tokio::spawn(log_writer.run(broker.clone()));
    Ok((FunctionRegistry::new(broker.clone(), service), function_log))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

async fn keep_house(broker: Broker, triggers: TriggerService, groups: GroupService) {
    let interval = broker.config().retention_interval;
    let mut expiry = OffsetExpiry::new(broker.clone(), groups);
    loop {
        tokio::time::sleep(interval).await;
        let (broker, holds) = (broker.clone(), triggers.holds());
        let round = tokio::task::spawn_blocking(move || broker.housekeeping(&holds));
        if let Err(error) = round.await {
            tracing::error!(%error, "housekeeping failed");
        }
        expiry.round(Instant::now());
    }
}

async fn scrub(broker: Broker) {
    if broker.config().scrub_bytes_per_second == 0 {
        return;
    }
    let started = Instant::now();
    let mut last = started;
    loop {
        tokio::time::sleep(TICK).await;
        let (elapsed, now) = (last.elapsed(), started.elapsed());
        last = Instant::now();
        let turn = broker.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || turn.scrub(elapsed, now)).await {
            tracing::error!(%error, "scrubbing failed");
        }
    }
}

/// Beside the rest: a long compaction delays no retention.
async fn keep_compact(broker: Broker, triggers: TriggerService) {
    let interval = broker.config().compaction_interval;
    loop {
        tokio::time::sleep(interval).await;
        let (broker, holds) = (broker.clone(), triggers.holds());
        let round = tokio::task::spawn_blocking(move || broker.compact(&holds));
        if let Err(error) = round.await {
            tracing::error!(%error, "compaction failed");
        }
    }
}

/// [`open_late`], and says so when it panics.
async fn keep_open_late(broker: Broker, triggers: TriggerService, schedules: ScheduleService) {
    if AssertUnwindSafe(open_late(broker, triggers, schedules)).catch_unwind().await.is_err() {
        tracing::error!("partitions that wait for room are opened no more; restart the broker, and report this");
    }
}

/// Has partitions that had no room at the start opened when there is some, and served with all that reads them.
async fn open_late(broker: Broker, triggers: TriggerService, schedules: ScheduleService) {
    let started = Instant::now();
    while broker.waits_for_room() {
        tokio::time::sleep(late::TICK).await;
        let (looking, now) = (broker.clone(), started.elapsed());
        let opened = match tokio::task::spawn_blocking(move || looking.open_late(now)).await {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!(%error, "partitions that wait for room are not opened; report this");
                continue;
            }
        };
        if opened.is_empty() {
            continue;
        }
        for late in opened {
            let (topic, partition) = (late.topic.name().clone(), late.number);
            if let Err(error) = triggers.serve(late).await {
                tracing::error!(%topic, partition, %error, "stays offline: what is beyond its tail is not set back");
            }
        }
        schedules.start_waiting().await;
    }
}

/// The process that listens on `port`, where this system shows it.
fn holder_of(port: u16) -> Option<String> {
    let wanted = format!(":{port:04X}");
    let mut inodes = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // Local address, remote address, state (0A listens) … the socket's inode.
            if let [_, local, _, "0A", ..] = fields.as_slice()
                && local.ends_with(&wanted)
                && let Some(inode) = fields.get(9)
            {
                inodes.push(format!("socket:[{inode}]"));
            }
        }
    }
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let mut descriptors = std::fs::read_dir(process.path().join("fd")).ok()?.flatten();
        descriptors.find(|descriptor| {
            let target = std::fs::read_link(descriptor.path());
            target.is_ok_and(|target| inodes.iter().any(|inode| target.as_os_str() == inode.as_str()))
        })?;
        let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        Some(format!("process {pid} ({})", name.trim()))
    })
}
