//! A broker on a free port of this process.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tripline::broker::{Broker, BrokerConfig};
use tripline::function::{FunctionOptions, FunctionService};
use tripline::group::config::GroupConfig;
use tripline::group::service::GroupService;
use tripline::kafka::Kafka;
use tripline::kafka::advertised::Advertised;
use tripline::kafka::listener::ListenerConfig;
use tripline::kafka::metrics::KafkaMetrics;
use tripline::trigger::service::TriggerService;
use tripline_storage::fs::SimFs;

/// A running broker; it stops when this is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    #[allow(dead_code, reason = "not each test binary looks inside")]
    pub(crate) broker: Broker,
    #[allow(dead_code, reason = "not each test binary looks inside")]
    pub(crate) metrics: Arc<KafkaMetrics>,
    #[allow(dead_code, reason = "not each test binary has triggers")]
    pub(crate) triggers: TriggerService,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    data: Option<tempfile::TempDir>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_on(tempfile::tempdir().unwrap()).await
    }

    /// Stops; answers the data directory, which is gone when that is dropped.
    #[allow(dead_code, reason = "not each test binary looks at the files")]
    pub(crate) async fn stop(mut self) -> tempfile::TempDir {
        self.shutdown.cancel();
        (&mut self.serving).await.unwrap();
        // The writer of their history holds the broker until then.
        self.triggers.shutdown(std::time::Duration::ZERO).await;
        self.broker.close();
        self.data.take().unwrap()
    }

    /// Stops and starts again on the same data.
    #[allow(dead_code, reason = "not each test binary restarts")]
    pub(crate) async fn restart(self) -> Self {
        let data = self.stop().await;
        Self::start_on(data).await
    }

    /// Starts on what is there.
    pub(crate) async fn start_on(data: tempfile::TempDir) -> Self {
        Self::start_with(data, listener()).await
    }

    /// With such limits, and threads for connections.
    pub(crate) async fn start_with(data: tempfile::TempDir, listener: ListenerConfig) -> Self {
        let (broker, _) = Broker::start(BrokerConfig::new(data.path().join("data"))).unwrap();
        Self::serve(broker, data, listener).await
    }

    /// Its topics on a disk in memory.
    #[allow(dead_code, reason = "not each test binary has such a disk")]
    pub(crate) async fn start_on_disk(disk: &SimFs) -> Self {
        let (broker, _) = Broker::start_on(Arc::new(disk.clone()), BrokerConfig::new("/data")).unwrap();
        Self::serve(broker, tempfile::tempdir().unwrap(), listener()).await
    }

    async fn serve(broker: Broker, data: tempfile::TempDir, listener: ListenerConfig) -> Self {
        // What the broker complains about stands next to the failure.
        let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_test_writer().try_init();
        let mut options = FunctionOptions::new(data.path().join("data/functions")).unwrap();
        options.egress.allow_loopback = true;
        let functions = FunctionService::new(options).unwrap();
        let (triggers, failed) = TriggerService::start(broker.clone(), functions);
        assert!(failed.is_empty(), "{failed:?}");
        let (groups, timers) = GroupService::new(GroupConfig::default());
        let shutdown = CancellationToken::new();
        tokio::spawn(timers.run(shutdown.clone()));
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let metrics = Arc::<KafkaMetrics>::default();
        let kafka = Kafka {
            broker: broker.clone(),
            groups,
            triggers: triggers.clone(),
            advertised: Arc::new(Advertised::default()),
            metrics: Arc::clone(&metrics),
            listener,
        };
        let serving = tokio::spawn(kafka.serve(socket, shutdown.clone()));
        Self { address, broker, metrics, triggers, shutdown, serving, data: Some(data) }
    }
}

/// Two threads for connections, as where there are two cores.
fn listener() -> ListenerConfig {
    ListenerConfig { io_threads: 2, ..ListenerConfig::default() }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
