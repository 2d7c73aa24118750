//! A broker on a free port of this process.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tripline::broker::{Broker, BrokerConfig};
use tripline::group::config::GroupConfig;
use tripline::group::service::GroupService;
use tripline::kafka::Kafka;
use tripline::kafka::advertised::Advertised;
use tripline::kafka::listener::ListenerConfig;
use tripline::kafka::metrics::KafkaMetrics;
use tripline::kafka::trigger_groups::{NoTriggers, TriggerGroups};

/// A running broker; it stops when this is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    #[allow(dead_code, reason = "not each test binary looks inside")]
    pub(crate) broker: Broker,
    #[allow(dead_code, reason = "not each test binary looks inside")]
    pub(crate) metrics: Arc<KafkaMetrics>,
    shutdown: CancellationToken,
    _data: tempfile::TempDir,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(Arc::new(NoTriggers)).await
    }

    pub(crate) async fn start_with(triggers: Arc<dyn TriggerGroups>) -> Self {
        // What the broker complains about stands next to the failure.
        let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_test_writer().try_init();
        let data = tempfile::tempdir().unwrap();
        let (broker, _) = Broker::start(BrokerConfig::new(data.path().join("data"))).unwrap();
        let (groups, timers) = GroupService::new(GroupConfig::default());
        let shutdown = CancellationToken::new();
        tokio::spawn(timers.run(shutdown.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Arc::<KafkaMetrics>::default();
        let kafka = Kafka {
            broker: broker.clone(),
            groups,
            triggers,
            advertised: Arc::new(Advertised::default()),
            metrics: Arc::clone(&metrics),
            listener: ListenerConfig::default(),
        };
        tokio::spawn(kafka.serve(listener, shutdown.clone()));
        Self { address, broker, metrics, shutdown, _data: data }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
