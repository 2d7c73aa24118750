//! An HTTP target in this process: it keeps what it was sent and answers what the test says.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;

use crate::harness::PATIENCE;

/// One invocation as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Invoked {
    /// Its id.
    pub(crate) id: String,
    /// From 1.
    pub(crate) attempt: u32,
    /// Partition and offset of each event, from its id, where it has one.
    pub(crate) places: Vec<(u32, i64)>,
    /// The `data` of each event.
    pub(crate) data: Vec<Value>,
    /// The `partitionkey` of each event.
    pub(crate) keys: Vec<String>,
    /// The trace headers, where they were sent.
    pub(crate) traceparent: String,
    pub(crate) tracestate: String,
    /// What was sent.
    pub(crate) body: Bytes,
}

impl Invoked {
    pub(crate) fn body_json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

type Answer = Arc<dyn Fn(&Invoked) -> Response + Send + Sync>;

#[derive(Clone)]
struct Shared {
    answer: Answer,
    invoked: Arc<Mutex<Vec<Invoked>>>,
    more: Arc<Notify>,
    /// While this is held, nothing is answered.
    gate: Arc<tokio::sync::RwLock<()>>,
}

pub(crate) struct Receiver {
    pub(crate) url: String,
    shared: Shared,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn ok() -> Response {
    StatusCode::OK.into_response()
}

pub(crate) fn status(code: u16) -> Response {
    StatusCode::from_u16(code).unwrap().into_response()
}

impl Receiver {
    pub(crate) async fn start(answer: impl Fn(&Invoked) -> Response + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let shared =
            Shared { answer: Arc::new(answer), invoked: Arc::default(), more: Arc::default(), gate: Arc::default() };
        let router = Router::new().fallback(receive).layer(DefaultBodyLimit::disable()).with_state(shared.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shared, task }
    }

    /// Holds back answers for as long as the guard lives.
    pub(crate) async fn hold(&self) -> tokio::sync::OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.shared.gate).write_owned().await
    }

    pub(crate) fn invoked(&self) -> Vec<Invoked> {
        self.shared.invoked.lock().clone()
    }

    /// Waits until `enough` holds of what has arrived, and answers that.
    pub(crate) async fn until(&self, enough: impl Fn(&[Invoked]) -> bool) -> Vec<Invoked> {
        let waiting = async {
            loop {
                let more = self.shared.more.notified();
                let invoked = self.invoked();
                if enough(&invoked) {
                    return invoked;
                }
                more.await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("arrived: {:#?}", self.invoked()))
    }
}

async fn receive(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    let events: Vec<Value> = serde_json::from_slice(&body).unwrap();
    let place = |event: &Value| {
        let (partition, offset) = event["id"].as_str()?.split_once('-')?;
        Some((partition.parse().ok()?, offset.parse().ok()?))
    };
    let invoked = Invoked {
        id: header("tripline-invocation-id"),
        attempt: header("tripline-attempt").parse().unwrap(),
        places: events.iter().filter_map(place).collect(),
        data: events.iter().map(|event| event["data"].clone()).collect(),
        keys: events.iter().map(|event| event["partitionkey"].as_str().unwrap_or_default().to_owned()).collect(),
        traceparent: header("traceparent"),
        tracestate: header("tracestate"),
        body: body.clone(),
    };
    shared.invoked.lock().push(invoked.clone());
    shared.more.notify_waiters();
    let _open = shared.gate.read().await;
    (shared.answer)(&invoked)
}
