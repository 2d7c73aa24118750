//! Fetch: reads from many partitions, and waits for records where there are none.
//!
//! A fetch that has to wait listens at the tail of each of its partitions first, reads then, and sleeps last, so that
//! no append goes unseen and nothing polls. After each append it reads only the partitions whose tail has moved.
//! Records are slices of the log; a waiting fetch holds at most what it would answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::select_all;
use tokio::time::{Instant, timeout_at};
use tripline_storage::{Offset, Partition};

use super::log_errors;
use crate::broker::{Broker, Topic};
use crate::kafka::codec::{FetchRequest, RequestHeader, Uuid, fetch_request};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::handler::{Answer, Response};
use crate::kafka::response::{FetchBody, FetchedPartition, FetchedTopic, encode_fetch};
use crate::kafka::service::{KafkaService, Shared, once_each_in, partition_of};

/// Versions that name topics by id.
const TOPIC_ID_SINCE: i16 = 13;
/// Versions in which a replica says who it is elsewhere.
const REPLICA_STATE_SINCE: i16 = 15;
/// Most bytes of records in one response, whatever the client asks for. Kafka's `fetch.max.bytes`.
pub(crate) const RESPONSE_BYTES_MAX: usize = 55 << 20;
/// The longest that a fetch waits for records, whatever the client asks for.
const WAIT_MAX: Duration = Duration::from_secs(300);

pub(crate) fn begin(service: &KafkaService, header: RequestHeader, request: FetchRequest) -> Answer {
    let (service, version, correlation_id) = (service.clone(), header.api_version, header.correlation_id);
    // We never begin a session, so whoever continues one has it from somebody else.
    let continues = request.session_id != 0 && request.session_epoch > 0;
    let wait = Duration::from_millis(request.max_wait_ms.max(0).unsigned_abs().into()).min(WAIT_MAX);
    let deadline = Instant::now() + wait;
    // Now and not when its turn comes: nothing of the request is kept for that.
    let fetch = if continues { None } else { Some(Fetch::new(&service, request, version)) };
    // With an error it does not wait, and may hold very many of them.
    let may_wait = fetch.as_ref().is_none_or(|fetch| !fetch.has_failed());
    let answered = Box::pin(async move {
        let body = match fetch {
            Some(fetch) => answer(&service, fetch, deadline).await,
            None => {
                let error_code = service.count_error(ErrorCode::FetchSessionIdNotFound);
                FetchBody { error_code, ..FetchBody::default() }
            }
        };
        match encode_fetch(correlation_id, version, &body) {
            Ok(frame) => Response::Frame(frame),
            Err(error) => {
                tracing::error!(%error, "fetch response not encoded");
                Response::Close("a fetch response could not be encoded")
            }
        }
    });
    if may_wait { Answer::Detached(answered) } else { Answer::Later(answered) }
}

async fn answer(service: &Shared, mut fetch: Fetch, deadline: Instant) -> FetchBody {
    loop {
        let listeners = fetch.listen();
        fetch.read().await;
        if fetch.is_enough() || listeners.is_empty() {
            break;
        }
        let woken = service.unless_stopping(timeout_at(deadline, select_all(listeners))).await;
        if !matches!(woken, Some(Ok(_))) {
            break;
        }
    }
    fetch.into_body(service)
}

/// One fetch under way.
struct Fetch {
    topics: Vec<FetchTopic>,
    min_bytes: usize,
    max_bytes: usize,
    /// Bytes of records found so far.
    found_bytes: usize,
}

struct FetchTopic {
    name: String,
    id: [u8; 16],
    partitions: Vec<FetchPartition>,
}

struct FetchPartition {
    number: i32,
    max_bytes: usize,
    /// Where to read, or why not.
    source: Result<(Arc<Partition>, Offset), ErrorCode>,
    /// The tail as the last read saw it; `None` before the first read.
    seen_tail: Option<Offset>,
    log_start: Offset,
    records: Bytes,
    /// The last read ended before the tail: at its limit, or at the end of a segment.
    has_more: bool,
}

impl Fetch {
    fn new(service: &Shared, request: FetchRequest, version: i16) -> Self {
        let replica =
            if version >= REPLICA_STATE_SINCE { request.replica_state.replica_id } else { request.replica_id };
        // Each partition once: each waits with a listener of its own, which each append there has to notify.
        let asked = request.topics.into_iter().map(|asked| ((asked.topic, asked.topic_id), asked.partitions));
        let asked = once_each_in(asked, |asked| asked.partition);
        let topics = asked.into_iter().map(|((name, id), partitions)| {
            let topic = find_topic(service, &name, id, version);
            let topic = if replica >= 0 { Err(ErrorCode::TopicAuthorizationFailed) } else { topic };
            let partition = |asked| FetchPartition::new(service, topic.as_deref(), asked);
            FetchTopic {
                name: name.to_string(),
                id: id.to_bytes(),
                partitions: partitions.iter().map(partition).collect(),
            }
        });
        let max_bytes = usize::try_from(request.max_bytes).unwrap_or(0).min(RESPONSE_BYTES_MAX);
        Self {
            topics: topics.collect(),
            min_bytes: usize::try_from(request.min_bytes).unwrap_or(0).min(max_bytes),
            max_bytes,
            found_bytes: 0,
        }
    }

    fn partitions(&self) -> impl Iterator<Item = &FetchPartition> {
        self.topics.iter().flat_map(|topic| &topic.partitions)
    }

    /// Listens at each tail. Nothing to listen at means nothing to wait for.
    fn listen(&self) -> Vec<event_listener::EventListener> {
        let sources = self.partitions().filter_map(|partition| partition.source.as_ref().ok());
        sources.map(|(partition, _)| partition.listen_tail()).collect()
    }

    /// Reads each partition whose tail has moved since it was read last.
    async fn read(&mut self) {
        let mut left = self.max_bytes;
        let mut found_bytes = 0;
        for partition in self.topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
            // The first batch of a response is whole however large it is, or a consumer would never get beyond it.
            partition.read(left, found_bytes == 0).await;
            found_bytes += partition.records.len();
            left = left.saturating_sub(partition.records.len());
        }
        self.found_bytes = found_bytes;
    }

    fn has_failed(&self) -> bool {
        self.partitions().any(|partition| partition.source.is_err())
    }

    /// Whether an answer need not wait: never with an error, nor with records behind which there are more. Those are
    /// due with the next fetch, and nothing would wake this one.
    fn is_enough(&self) -> bool {
        let has_more = |partition: &FetchPartition| partition.has_more;
        self.found_bytes >= self.min_bytes || self.has_failed() || self.partitions().any(has_more)
    }

    fn into_body(self, service: &Shared) -> FetchBody {
        let topics = self.topics.into_iter().map(|topic| FetchedTopic {
            name: topic.name,
            id: topic.id,
            partitions: topic.partitions.into_iter().map(|partition| partition.into_fetched(service)).collect(),
        });
        FetchBody { topics: topics.collect(), ..FetchBody::default() }
    }
}

fn find_topic(service: &Shared, name: &str, id: Uuid, version: i16) -> Result<Arc<Topic>, ErrorCode> {
    if version < TOPIC_ID_SINCE {
        return service.broker.topic(name).ok_or(ErrorCode::UnknownTopicOrPartition);
    }
    if id == Uuid::ZERO {
        return Err(ErrorCode::UnknownTopicId);
    }
    service.topic_by_id(id).ok_or(ErrorCode::UnknownTopicId)
}

impl FetchPartition {
    fn new(service: &Shared, topic: Result<&Topic, &ErrorCode>, asked: &fetch_request::FetchPartition) -> Self {
        let source = topic.map_err(|code| *code).and_then(|topic| {
            let partition = partition_of(topic, asked.partition)?;
            service.check_epoch(asked.current_leader_epoch)?;
            let offset = Offset::new(asked.fetch_offset).ok_or(ErrorCode::OffsetOutOfRange)?;
            Ok((Arc::clone(partition), offset))
        });
        Self {
            number: asked.partition,
            max_bytes: usize::try_from(asked.partition_max_bytes).unwrap_or(0),
            source,
            seen_tail: None,
            log_start: Offset::ZERO,
            records: Bytes::new(),
            has_more: false,
        }
    }

    /// Reads at most `left` bytes, or one batch if it is the `first` to be found.
    async fn read(&mut self, left: usize, first: bool) {
        let Ok((partition, offset)) = &self.source else { return };
        if left == 0 && !first {
            self.records = Bytes::new();
            return;
        }
        if self.seen_tail == Some(partition.tail()) && self.records.len() <= left {
            return;
        }
        let max_bytes = self.max_bytes.min(left);
        match Broker::read(partition, *offset, max_bytes).await {
            Ok(outcome) => {
                self.seen_tail = Some(outcome.tail);
                self.log_start = outcome.log_start;
                self.has_more = outcome.next < outcome.tail;
                let fits = first || outcome.bytes.len() <= max_bytes;
                self.records = if fits { outcome.bytes } else { Bytes::new() };
            }
            Err(error) => {
                tracing::debug!(partition = %partition.id(), %error, "a fetch has no records");
                self.records = Bytes::new();
                let (tail, log_start) = (partition.tail(), partition.log_start());
                self.seen_tail = Some(tail);
                self.log_start = log_start;
                self.source = Err(log_errors::read(&error));
            }
        }
    }

    fn into_fetched(self, service: &Shared) -> FetchedPartition {
        let code = self.source.as_ref().err().copied().unwrap_or(ErrorCode::None);
        let error_code = service.count_error(code);
        // A partition that had no room in the response was not read, but its end is known.
        let unread = || self.source.as_ref().ok().map(|(partition, _)| (partition.tail(), partition.log_start()));
        let seen = self.seen_tail.map(|tail| (tail, self.log_start));
        let Some((tail, log_start)) = seen.or_else(unread) else {
            return FetchedPartition::failed(self.number, error_code);
        };
        FetchedPartition {
            partition: self.number,
            error_code,
            high_watermark: tail.get(),
            last_stable_offset: tail.get(),
            log_start_offset: log_start.get(),
            aborted_transactions: None,
            records: if self.records.is_empty() { Vec::new() } else { vec![self.records] },
        }
    }
}
