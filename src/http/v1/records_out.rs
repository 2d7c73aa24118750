//! Records out: a page as JSON or NDJSON, or a stream of server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde::Serialize;
use tripline_storage::{Offset, Partition};

use super::topics::existing_topic;
use crate::broker::{Broker, Topic};
use crate::http::extract::Segments;
use crate::http::limits::{RECORDS_OUT_MAX, WAIT_MAX};
use crate::http::problem::Problem;
use crate::http::query::{Query, wrong};
use crate::http::reader::{Page, read, wait_for_records};
use crate::http::record_json::{Encoding, Shown};
use crate::http::rooms::Rooms;

pub(crate) const NDJSON_TYPE: &str = "application/x-ndjson";
const SSE_TYPE: &str = "text/event-stream";
/// A stream without records says so often that it lives.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Records of one step of a stream.
const STEP_RECORDS: usize = 500;
const FROM: &str = "earliest, latest, an offset, or a time such as 2026-01-31T12:00:00Z";

/// The shapes of an answer with records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Json,
    Ndjson,
    Events,
}

impl Shape {
    /// By `Accept`: the first type in it that we have.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let accept = headers.get(header::ACCEPT).map_or("*/*", |accept| accept.to_str().unwrap_or_default());
        let types =
            accept.split(',').map(|range| range.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
        for media_type in types {
            match media_type.as_str() {
                "application/json" | "application/*" | "*/*" => return Ok(Self::Json),
                NDJSON_TYPE => return Ok(Self::Ndjson),
                SSE_TYPE => return Ok(Self::Events),
                _ => {}
            }
        }
        let detail = format!("found Accept {accept:?}, allowed: application/json, {NDJSON_TYPE}, {SSE_TYPE}");
        Err(Problem::new(StatusCode::NOT_ACCEPTABLE, "not-acceptable", detail))
    }
}

/// Read records.
///
/// `Accept` chooses the shape: `application/json` (a page with `next`), `application/x-ndjson` (one record a line) or
/// `text/event-stream` (follows until the client goes away).
#[utoipa::path(get, path = "/v1/topics/{topic}/records", tag = "records", params(
    ("topic" = String, Path, description = "The topic"),
    ("partition" = Option<u32>, Query, description = "Which partition; may be left out where there is one"),
    ("from" = Option<String>, Query, description = "earliest (default), latest, an offset, or an RFC 3339 time"),
    ("limit" = Option<u32>, Query, description = "1 to 10,000 records, default 100; without limit for a stream"),
    ("wait" = Option<String>, Query, description = "How long to wait for a first record: 0 (default) to 30s"),
    ("encoding" = Option<String>, Query, description = "auto (default), or base64 so that no byte is lost"),
), responses((status = 200, description = "Records",
    content((Value = "application/json"), (String = "application/x-ndjson"), (String = "text/event-stream"))), (status = "4XX", description = "Problem details")))]
pub(crate) async fn records(
    State(rooms): State<Rooms>,
    Segments(topic): Segments<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let query = Query::parse(query.as_deref(), &["partition", "from", "limit", "wait", "encoding"])?;
    let shape = Shape::of(&headers)?;
    let topic = existing_topic(&rooms.broker, &topic)?;
    let partition = partition(&topic, &query)?;
    let from = start(&partition, query.text("from").unwrap_or("earliest")).await?;
    let limit = query.number("limit", 1, RECORDS_OUT_MAX)?;
    let wait = query.duration("wait", WAIT_MAX)?;
    let encoding = encoding(&query)?;
    if shape == Shape::Events {
        let limit = limit.map(|limit| limit as usize);
        let broker = rooms.broker.clone();
        let following = Following { broker, topic, partition, next: from, left: limit, encoding, failed: false };
        return Ok(follow(following));
    }
    if !wait.is_zero() {
        wait_for_records(&partition, from, wait).await;
    }
    let page = read(&partition, from, limit.unwrap_or(100) as usize).await?;
    Ok(page_response(&page, shape, encoding))
}

#[derive(Serialize)]
struct ShownPage<'a> {
    log_start: i64,
    next: i64,
    records: Vec<Shown<'a>>,
    tail: i64,
}

fn page_response(page: &Page, shape: Shape, encoding: Encoding) -> Response {
    let records = page.records.iter().map(|record| Shown { record, encoding });
    if shape == Shape::Json {
        return Json(ShownPage {
            log_start: page.log_start.get(),
            next: page.next.get(),
            records: records.collect(),
            tail: page.tail.get(),
        })
        .into_response();
    }
    let lines: String = records.map(|record| format!("{record}\n")).collect();
    ([(header::CONTENT_TYPE, HeaderValue::from_static(NDJSON_TYPE))], lines).into_response()
}

fn partition(topic: &Topic, query: &Query) -> Result<Arc<Partition>, Problem> {
    let last = topic.partition_count() - 1;
    let number = match query.number("partition", 0, u32::MAX)? {
        Some(number) => number,
        None if last == 0 => 0,
        None => {
            let detail = format!("topic {} has partitions 0 to {last}: say which with `partition`", topic.name());
            return Err(Problem::bad_request("partition-missing", detail));
        }
    };
    Ok(topic.partition(number).cloned()?)
}

/// The offset that `from` means now.
pub(crate) async fn start(partition: &Arc<Partition>, from: &str) -> Result<Offset, Problem> {
    match from {
        "earliest" => return Ok(partition.log_start()),
        "latest" => return Ok(partition.tail()),
        _ => {}
    }
    if let Ok(offset) = from.parse::<i64>() {
        let offset = Offset::new(offset).ok_or_else(|| wrong("from", from, FROM))?;
        let (log_start, tail) = (partition.log_start(), partition.tail());
        if offset < log_start || offset > tail {
            return Err(tripline_storage::error::ReadError::OutOfRange { offset, log_start, tail }.into());
        }
        return Ok(offset);
    }
    let time: Timestamp = from.parse().map_err(|_| wrong("from", from, FROM))?;
    let found = Broker::offset_for_time(partition, time.as_millisecond()).await?;
    Ok(found.map_or_else(|| partition.tail(), |(offset, _)| offset))
}

fn encoding(query: &Query) -> Result<Encoding, Problem> {
    match query.text("encoding") {
        None | Some("auto") => Ok(Encoding::Auto),
        Some("base64") => Ok(Encoding::Base64),
        Some(other) => Err(wrong("encoding", other, "auto or base64")),
    }
}

struct Following {
    broker: Broker,
    topic: Arc<Topic>,
    partition: Arc<Partition>,
    next: Offset,
    left: Option<usize>,
    encoding: Encoding,
    failed: bool,
}

fn follow(following: Following) -> Response {
    event_stream(unfold(following, |mut following| async move {
        let chunk = following.step().await?;
        Some((Ok::<_, Infallible>(chunk), following))
    }))
}

/// An answer that sends server-sent events as they come.
pub(crate) fn event_stream(stream: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(SSE_TYPE)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, Body::from_stream(stream)).into_response()
}

/// Returns when a topic is deleted: nothing comes any more. One of the same name is another.
async fn gone(broker: &Broker, topic: &Topic) {
    loop {
        let changed = broker.listen_topics();
        if broker.topic(topic.name().as_str()).is_none_or(|named| named.id() != topic.id()) {
            return;
        }
        changed.await;
    }
}

impl Following {
    /// The next events, a heartbeat, an error, or the end.
    async fn step(&mut self) -> Option<Bytes> {
        if self.failed || self.left == Some(0) {
            return None;
        }
        let limit = self.left.map_or(STEP_RECORDS, |left| left.min(STEP_RECORDS));
        let arrived = wait_for_records(&self.partition, self.next, HEARTBEAT);
        tokio::select! {
            () = arrived => {}
            () = gone(&self.broker, &self.topic) => {
                self.failed = true;
                let problem = Problem::not_found("topic", "unknown-topic", self.topic.name().as_str()).to_json();
                return Some(format!("event: error\ndata: {problem}\n\n").into());
            }
        }
        let page = match read(&self.partition, self.next, limit).await {
            Ok(page) => page,
            Err(error) => {
                self.failed = true;
                let problem = Problem::from(error).to_json();
                return Some(format!("event: error\ndata: {problem}\n\n").into());
            }
        };
        self.next = page.next;
        if page.records.is_empty() {
            return Some(Bytes::from_static(b": still here\n\n"));
        }
        self.left = self.left.map(|left| left - page.records.len());
        let events = page.records.iter().map(|record| {
            let shown = Shown { record, encoding: self.encoding };
            format!("id: {}-{}\ndata: {shown}\n\n", record.partition, record.offset)
        });
        Some(events.collect::<String>().into())
    }
}
