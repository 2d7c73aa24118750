//! What requests do: the broker and the groups behind the wire.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::ops::Deref;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tripline_storage::Partition;
use uuid::Uuid;

use super::advertised::Advertised;
use super::api;
use super::codec::{self, RequestHeader};
use super::error_code::ErrorCode;
use super::handler::{Answer, ConnectionContext, Handler, Response, ResponseFrame};
use super::metrics::KafkaMetrics;
use super::request::{DecodedRequest, RequestBody};
use crate::broker::{Broker, Topic};
use crate::group::service::GroupService;
use crate::topic::name::NAME_BYTES_MAX;
use crate::trigger::service::TriggerService;

/// The id of the one node there is.
pub const NODE_ID: i32 = 1;

/// What all requests share.
pub struct Shared {
    pub(crate) broker: Broker,
    pub(crate) groups: GroupService,
    pub(crate) triggers: TriggerService,
    pub(crate) advertised: Arc<Advertised>,
    metrics: Arc<KafkaMetrics>,
    /// Cancelled when the broker stops: whoever waits for records waits no longer.
    stopping: CancellationToken,
}

/// Serves Kafka's requests from a broker. A handle, cheap to clone.
#[derive(Clone)]
pub struct KafkaService {
    shared: Arc<Shared>,
}

impl Deref for KafkaService {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl KafkaService {
    /// The requests' view of a running broker. `metrics` and `stopping` are those of the listener that hands the
    /// requests over.
    #[must_use]
    pub fn new(
        broker: Broker,
        groups: GroupService,
        triggers: TriggerService,
        advertised: Arc<Advertised>,
        metrics: Arc<KafkaMetrics>,
        stopping: CancellationToken,
    ) -> Self {
        Self { shared: Arc::new(Shared { broker, groups, triggers, advertised, metrics, stopping }) }
    }

    /// Its requests as the connections begin them.
    #[must_use]
    pub fn into_handler(self) -> Handler {
        Arc::new(move |request, connection| {
            let service = self.clone();
            Box::pin(async move { service.answer(request, &connection).await })
        })
    }

    async fn answer(&self, request: DecodedRequest, connection: &ConnectionContext) -> Answer {
        let (header, service) = (request.header, self.clone());
        let version = header.api_version;
        match request.body {
            RequestBody::Produce(body) => api::produce::begin(self, header, *body).await,
            RequestBody::Fetch(body) => api::fetch::begin(self, header, *body),
            RequestBody::JoinGroup(body) => api::join_group::begin(self, header, &body, connection),
            RequestBody::SyncGroup(body) => api::sync_group::begin(self, header, &body),
            RequestBody::OffsetCommit(body) => api::offset_commit::begin(self, header, *body).await,
            RequestBody::ListOffsets(body) => {
                later(header, async move { api::list_offsets::answer(&service, *body, version).await })
            }
            RequestBody::Metadata(body) => {
                let advertised = self.advertised.for_connection(connection);
                later(header, async move { api::metadata::answer(&service, *body, version, advertised).await })
            }
            RequestBody::CreateTopics(body) => {
                later(header, async move { api::create_topics::answer(&service, *body, version).await })
            }
            RequestBody::DeleteTopics(body) => {
                later(header, async move { api::delete_topics::answer(&service, *body, version).await })
            }
            RequestBody::DeleteRecords(body) => {
                later(header, async move { api::delete_records::answer(&service, *body).await })
            }
            RequestBody::InitProducerId(body) => {
                later(header, async move { api::init_producer_id::answer(&service, &body).await })
            }
            RequestBody::DeleteGroups(body) => {
                later(header, async move { api::delete_groups::answer(&service, *body).await })
            }
            body => Answer::Now(self.answer_now(&header, body, connection)),
        }
    }

    /// Those that look and do not wait.
    fn answer_now(&self, header: &RequestHeader, body: RequestBody, connection: &ConnectionContext) -> Response {
        let version = header.api_version;
        match body {
            RequestBody::Heartbeat(body) => respond(header, &api::heartbeat::answer(self, &body)),
            RequestBody::LeaveGroup(body) => respond(header, &api::leave_group::answer(self, &body, version)),
            RequestBody::FindCoordinator(body) => {
                let advertised = self.advertised.for_connection(connection);
                respond(header, &api::find_coordinator::answer(self, *body, version, &advertised))
            }
            RequestBody::OffsetFetch(body) => respond(header, &api::offset_fetch::answer(self, *body, version)),
            RequestBody::DescribeGroups(body) => respond(header, &api::describe_groups::answer(self, *body, version)),
            RequestBody::ListGroups(body) => respond(header, &api::list_groups::answer(self, &body)),
            RequestBody::DescribeProducers(body) => respond(header, &api::describe_producers::answer(self, *body)),
            RequestBody::DescribeConfigs(body) => respond(header, &api::describe_configs::answer(self, *body, version)),
            other => {
                tracing::error!(api = ?other.api(), "no handler for a request that the table has");
                Response::Close("a request without a handler")
            }
        }
    }
}

impl Shared {
    /// What is awaited; `None` when the broker stops first.
    pub(crate) async fn unless_stopping<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            result = work => Some(result),
            () = self.stopping.cancelled() => None,
        }
    }

    /// Counts an error and gives its number.
    pub(crate) fn count_error(&self, code: ErrorCode) -> i16 {
        if code != ErrorCode::None {
            self.metrics.error(code);
        }
        code.code()
    }

    pub(crate) fn topic_by_id(&self, id: codec::Uuid) -> Option<Arc<Topic>> {
        self.broker.topic_by_id(Uuid::from_bytes(id.to_bytes()))
    }

    /// Whether `claimed`, the leader epoch that a client believes in, is that of this start; negative says nothing.
    pub(crate) fn check_epoch(&self, claimed: i32) -> Result<(), ErrorCode> {
        let current = self.broker.leader_epoch().get();
        match claimed {
            claimed if claimed < 0 || claimed == current => Ok(()),
            claimed if claimed < current => Err(ErrorCode::FencedLeaderEpoch),
            _ => Err(ErrorCode::UnknownLeaderEpoch),
        }
    }
}

/// Each thing once, however often it is named: what is told of one may be large, and naming it again is cheap.
pub(crate) fn once_each<T, K: Hash + Eq>(asked: Vec<T>, key: impl Fn(&T) -> K) -> impl Iterator<Item = T> {
    let mut seen = HashSet::new();
    asked.into_iter().filter(move |item| seen.insert(key(item)))
}

/// As [`once_each`], for what is asked of topics: each topic once, with all that is asked of it anywhere, once each.
pub(crate) fn once_each_in<K: Clone + Hash + Eq, T, P: Hash + Eq>(
    asked: impl IntoIterator<Item = (K, Vec<T>)>,
    key: impl Fn(&T) -> P,
) -> Vec<(K, Vec<T>)> {
    let mut places: HashMap<K, usize> = HashMap::new();
    let mut together: Vec<(K, Vec<T>)> = Vec::new();
    for (topic, items) in asked {
        let place = *places.entry(topic.clone()).or_insert(together.len());
        match together.get_mut(place) {
            Some((_, earlier)) => earlier.extend(items),
            None => together.push((topic, items)),
        }
    }
    together.into_iter().map(|(topic, items)| (topic, once_each(items, &key).collect())).collect()
}

/// A partition by its number on the wire.
pub(crate) fn partition_of(topic: &Topic, number: i32) -> Result<&Arc<Partition>, ErrorCode> {
    let number = u32::try_from(number).map_err(|_| ErrorCode::UnknownTopicOrPartition)?;
    topic.partition(number).map_err(|error| api::log_errors::partition(&error))
}

/// As much of a name that a client made up as a reason repeats: strings of the older versions end at 32 KiB.
pub(crate) fn shown(name: &str) -> String {
    name.chars().take(NAME_BYTES_MAX).collect()
}

/// An id as the wire has it.
pub(crate) fn wire_id(id: Uuid) -> codec::Uuid {
    codec::Uuid::from_bytes(*id.as_bytes())
}

/// Whole response frame; an encoding that fails is a mistake of ours and closes the connection.
pub(crate) fn respond<R: codec::Response>(header: &RequestHeader, response: &R) -> Response {
    match codec::encode_response(header.correlation_id, header.api_version, response) {
        Ok(frame) => Response::Frame(ResponseFrame::from(frame)),
        Err(error) => {
            tracing::error!(api = header.api_key, version = header.api_version, %error, "response not encoded");
            Response::Close("a response could not be encoded")
        }
    }
}

/// An answer that may take its time while further requests of the connection begin.
fn later<R: codec::Response>(header: RequestHeader, work: impl Future<Output = R> + Send + 'static) -> Answer {
    Answer::Later(Box::pin(async move { respond(&header, &work.await) }))
}
