//! What the handlers work with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::FromRef;

use super::metrics::HttpCounts;
use crate::broker::Broker;
use crate::function::registry::FunctionRegistry;
use crate::group::service::GroupService;
use crate::source::schedule::service::ScheduleService;
use crate::trigger::service::TriggerService;

/// Everything that the API speaks to. Clones are handles to the same rooms.
#[derive(Clone)]
pub struct Rooms {
    /// Topics and records.
    pub broker: Broker,
    /// Functions.
    pub functions: FunctionRegistry,
    /// Triggers.
    pub triggers: TriggerService,
    /// Schedules.
    pub schedules: ScheduleService,
    /// Members of consumer groups.
    pub groups: GroupService,
    /// Whether work is taken.
    pub readiness: Readiness,
    /// What `GET /v1/cluster` tells.
    pub info: Arc<BrokerInfo>,
    /// What HTTP itself counts.
    pub counts: Arc<HttpCounts>,
}

/// Facts about this process.
#[derive(Clone, Debug)]
pub struct BrokerInfo {
    /// The release.
    pub version: &'static str,
    /// The commit it was built from, or `unknown`.
    pub commit: &'static str,
    /// The data directory.
    pub data: PathBuf,
    /// Where Kafka clients connect; `None` while there is no Kafka listener.
    pub kafka_address: Option<SocketAddr>,
    /// Where HTTP clients connect.
    pub http_address: SocketAddr,
}

/// Whether the broker takes work: after recovery, until it stops.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    ready: Arc<AtomicBool>,
}

impl Readiness {
    /// From here on, or no more.
    pub fn set(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// Whether it does.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }
}

impl FromRef<Rooms> for Broker {
    fn from_ref(rooms: &Rooms) -> Self {
        rooms.broker.clone()
    }
}
