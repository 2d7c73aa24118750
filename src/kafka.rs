//! The Kafka wire protocol over TCP: frames, connections, and one file per request.
//!
//! ```text
//!  listener ─▶ connection: reader ─▶ frame ─▶ request ─▶ handler ─▶ ordered queue ─▶ writer ─▶ socket
//! ```
//! [`frame`], [`request`], [`codec`], [`version`] and [`response`] are pure: bytes in, values or errors out.
//! [`listener`] and [`connection`] move the bytes. What a request *does* is behind a [`handler::Handler`].
//!
//! Only [`codec`] names the crates that know Kafka's schemas, so replacing them is a change to one file.

pub mod advertised;
pub mod api;
pub mod codec;
pub mod connection;
pub mod error_code;
pub mod frame;
pub mod handler;
mod io_threads;
pub mod listener;
pub mod metrics;
pub mod request;
pub mod response;
pub mod service;
pub mod trigger_groups;
pub mod version;

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::broker::Broker;
use crate::group::service::GroupService;
use crate::trigger::service::TriggerService;

use advertised::Advertised;
use listener::ListenerConfig;
use metrics::KafkaMetrics;
use service::KafkaService;

/// Everything that the Kafka side of a broker is made of.
#[derive(Clone)]
pub struct Kafka {
    /// The log.
    pub broker: Broker,
    /// The consumer groups; their timers run elsewhere.
    pub groups: GroupService,
    /// The triggers: each shows as a group.
    pub triggers: TriggerService,
    /// Where clients are told to find us.
    pub advertised: Arc<Advertised>,
    /// What is counted.
    pub metrics: Arc<KafkaMetrics>,
    /// Limits of the listener.
    pub listener: ListenerConfig,
}

impl Kafka {
    /// Serves `listener` until `shutdown` is cancelled and what was begun is answered.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        let Self { broker, groups, triggers, advertised, metrics, listener: config } = self;
        let service = KafkaService::new(broker, groups, triggers, advertised, Arc::clone(&metrics), shutdown.clone());
        listener::serve(listener, service.into_handler(), config, metrics, shutdown).await;
    }
}
