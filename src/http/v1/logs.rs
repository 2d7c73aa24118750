//! What functions printed.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::unfold;
use http::{HeaderMap, header};
use serde_json::{Value, json};
use tripline_storage::{Offset, Partition};

use super::functions::{absent, function_name};
use super::records_out::{NDJSON_TYPE, Shape, event_stream};
use crate::function::log_topic::LOG_TOPIC;
use crate::http::extract::Segments;
use crate::http::problem::Problem;
use crate::http::query::Query;
use crate::http::reader::{OwnedRecord, read, wait_for_records};
use crate::http::rooms::Rooms;

/// How far back lines are looked for, in lines of all functions: at most, and at a time. Not as far in tests, which go
/// beyond.
const LOOK_BACK_MAX: u64 = if cfg!(test) { 5_000 } else { 500_000 };
const STEP_BACK: i64 = LOOK_BACK_MAX.cast_signed() / 25;
const STEP_RECORDS: usize = 2_000;
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The newest lines of a function, oldest first.
///
/// With `Accept: text/event-stream` the newest lines come first, then each new one as it is printed.
#[utoipa::path(get, path = "/v1/functions/{function}/logs", tag = "functions", params(
    ("function" = String, Path, description = "Its name"),
    ("limit" = Option<u32>, Query, description = "0 to 10,000 lines, default 100"),
), responses((status = 200, description = "Lines; `complete` is false where there may be older ones behind 500,000 lines of all functions",
    content((Value = "application/json"), (String = "application/x-ndjson"), (String = "text/event-stream"))), (status = "4XX", description = "Problem details")))]
pub(crate) async fn logs(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let query = Query::parse(query.as_deref(), &["limit"])?;
    let limit = query.number("limit", 0, 10_000)?.unwrap_or(100) as usize;
    let shape = Shape::of(&headers)?;
    let name = function_name(&name)?.to_string();
    let is_known = rooms.functions.service().describe(&name).is_some();
    let unknown = || absent(rooms.functions.service(), &name);
    let topic = rooms.broker.topic(LOG_TOPIC);
    let Some(topic) = topic else {
        return Err(if is_known { Problem::not_found("topic", "unknown-topic", LOG_TOPIC) } else { unknown() });
    };
    let log = Arc::clone(topic.partition(0)?);
    let Newest { lines, tail, complete } = newest(&log, &name, limit).await?;
    // What a deleted function has printed may still be read.
    if !is_known && lines.is_empty() {
        return Err(unknown());
    }
    Ok(match shape {
        Shape::Json => Json(json!({ "lines": lines, "complete": complete })).into_response(),
        Shape::Ndjson => {
            let body = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
            ([(header::CONTENT_TYPE, NDJSON_TYPE)], body).into_response()
        }
        Shape::Events => {
            let following = Following { log, name, next: tail, waiting: lines };
            event_stream(unfold(following, |mut following| async move {
                let chunk = following.step().await?;
                Some((Ok::<_, Infallible>(chunk), following))
            }))
        }
    })
}

/// The newest lines of a function.
struct Newest {
    /// Oldest first.
    lines: Vec<Value>,
    /// Where the log ended when it was looked at.
    tail: Offset,
    /// Whether these are as many as were asked for, or all that there are.
    complete: bool,
}

/// Goes back in the log until there are enough.
async fn newest(log: &Arc<Partition>, name: &str, limit: usize) -> Result<Newest, Problem> {
    let tail = log.tail();
    let (mut lines, mut from) = (Vec::new(), tail);
    while lines.len() < limit && from > log.log_start() && tail.since(from) < LOOK_BACK_MAX {
        let to = from;
        let back = Offset::new((to.get() - STEP_BACK).max(0)).unwrap_or(Offset::ZERO);
        from = back.max(log.log_start());
        let (mut found, mut at) = (Vec::new(), from);
        while at < to {
            let page = read(log, at, STEP_RECORDS).await?;
            at = page.next;
            found.extend(lines_of(page.records.iter().filter(|record| record.offset < to), name));
            // Those before are not wanted, whatever follows.
            found.drain(..found.len().saturating_sub(limit - lines.len()));
        }
        found.append(&mut lines);
        lines = found;
    }
    let complete = lines.len() >= limit || from <= log.log_start();
    lines.drain(..lines.len().saturating_sub(limit));
    Ok(Newest { lines, tail, complete })
}

fn lines_of<'a>(records: impl Iterator<Item = &'a OwnedRecord>, name: &str) -> Vec<Value> {
    let own = records.filter(|record| record.key.as_deref() == Some(name.as_bytes()));
    own.filter_map(|record| serde_json::from_slice(record.value.as_deref()?).ok()).collect()
}

struct Following {
    log: Arc<Partition>,
    name: String,
    next: Offset,
    waiting: Vec<Value>,
}

impl Following {
    async fn step(&mut self) -> Option<Bytes> {
        if self.waiting.is_empty() {
            wait_for_records(&self.log, self.next, HEARTBEAT).await;
            let page = read(&self.log, self.next, STEP_RECORDS).await.ok()?;
            self.next = page.next;
            self.waiting = lines_of(page.records.iter(), &self.name);
        }
        if self.waiting.is_empty() {
            return Some(Bytes::from_static(b": still here\n\n"));
        }
        let events = self.waiting.drain(..).map(|line| format!("data: {line}\n\n"));
        Some(events.collect::<String>().into())
    }
}

#[cfg(test)]
mod tests {
    use tripline_storage::batch::{BatchBuilder, BatchOptions, NewRecord};

    use super::*;
    use crate::broker::{Broker, BrokerConfig, Topic};
    use crate::function::log_topic;

    fn print(broker: &Broker, topic: &Topic, function: &str, lines: u64) {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        for line in 0..lines {
            let value = line.to_string();
            let (key, value) = (Some(function.as_bytes()), Some(value.as_bytes()));
            builder.push(&NewRecord { key, value, ..NewRecord::default() }).unwrap();
        }
        broker.append(topic, 0, builder.finish().unwrap()).unwrap();
    }

    #[tokio::test]
    async fn lines_behind_very_many_of_others_are_found_as_far_as_it_is_looked_and_it_is_said_where_not() {
        let dir = tempfile::tempdir().unwrap();
        let (broker, _) = Broker::start(BrokerConfig::new(dir.path().join("data"))).unwrap();
        let topic = log_topic::topic(&broker).await.unwrap();
        let log = topic.partition(0).unwrap();
        let found = async |limit| {
            let newest = newest(log, "f", limit).await.unwrap();
            (newest.lines, newest.complete)
        };
        assert_eq!(found(9).await, (vec![], true));
        print(&broker, &topic, "f", 2);
        print(&broker, &topic, "other", LOOK_BACK_MAX - 2);
        assert_eq!(found(9).await, (vec![json!(0), json!(1)], true), "all that there are");
        print(&broker, &topic, "f", 1);
        assert_eq!(found(9).await, (vec![json!(1), json!(0)], false), "there may be older ones");
        assert_eq!(found(2).await, (vec![json!(1), json!(0)], true), "as many as were asked for");
        assert_eq!(found(1).await, (vec![json!(0)], true));
    }
}
