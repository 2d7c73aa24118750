//! When attempts happen, to the millisecond: a trigger at work on a clock that only the test moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use serde_json::{Value, json};

use crate::harness::World;

/// Looks at something at most so often: far more than any of it takes, and an end if it never comes.
const LOOKS_MAX: usize = 10_000_000;

/// A clock that stands still until [`Clock::advance`]. A paused clock of tokio's own accord leaps to the next timer
/// whenever nothing runs, also while the disk or a socket is awaited; it does not while a blocking task runs.
struct Clock {
    _ends_the_blocking_task: Sender<()>,
}

impl Clock {
    fn hold() -> Self {
        let (ends, ended) = channel();
        tokio::task::spawn_blocking(move || ended.recv().is_err());
        tokio::time::pause();
        Self { _ends_the_blocking_task: ends }
    }

    async fn advance(&self, duration_ms: u64) {
        tokio::time::advance(Duration::from_millis(duration_ms)).await;
    }
}

/// A function behind HTTP that always fails and counts its invocations.
struct Failing {
    url: String,
    invoked: Arc<AtomicUsize>,
}

impl Failing {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let invoked = Arc::<AtomicUsize>::default();
        let noted = Arc::clone(&invoked);
        let fail = move || {
            noted.fetch_add(1, Ordering::Relaxed);
            async { StatusCode::INTERNAL_SERVER_ERROR }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/", post(fail))).await });
        Self { url, invoked }
    }
}

/// Looks until there is something to see. Time does not pass meanwhile.
async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..LOOKS_MAX {
        if let Some(seen) = look() {
            return seen;
        }
        tokio::task::yield_now().await;
    }
    panic!("never came: {what}")
}

/// Produces one record for a trigger with this policy, whose function fails; moves the clock from each announced
/// attempt to the next, until the record is a dead letter. How long each attempt waited for after the one before it, in
/// ms.
async fn waits(retry: Value) -> Vec<u64> {
    let clock = Clock::hold();
    let world = World::start();
    let topic = world.topic("t", 1).await;
    let function = Failing::start().await;
    world
        .apply(json!({
            "trigger": "x", "input": {"topic": "t"}, "function": {"http": {"url": function.url}},
            "retry": retry, "dead_letter": {"topic": "t.dlq"},
        }))
        .await;
    world.produce(&topic, 0, &["1"]).await;
    let describe = || world.triggers.describe("x").unwrap();
    let mut waits = Vec::new();
    for attempt in 1.. {
        until("an attempt", || (function.invoked.load(Ordering::Relaxed) == attempt).then_some(())).await;
        let next = until("its outcome", || {
            let report = describe();
            let given_up = report.counts.dead_lettered == 1;
            let lane = &report.lanes[0];
            let announced = lane.next_attempt_ms.filter(|_| report.counts.attempts_failed == attempt as u64);
            (given_up || announced.is_some()).then_some(announced)
        });
        let Some(next_ms) = next.await else { break };
        // The trigger's clock began with the service, at the wall clock's time; the difference is what counts.
        let wait_ms = u64::try_from(next_ms - world.triggers.now_ms()).unwrap();
        clock.advance(wait_ms - 1).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(function.invoked.load(Ordering::Relaxed), attempt, "not before its time, {wait_ms} ms");
        // To its time, and one more: timers fire at the end of the millisecond that they fall into.
        clock.advance(2).await;
        waits.push(wait_ms);
    }
    waits
}

#[tokio::test]
async fn a_free_policy_grows_by_its_factor_up_to_its_longest_interval() {
    let retry = json!({"initial": "10s", "factor": 2, "max_interval": "60s", "max_attempts": 6, "jitter": "none"});
    assert_eq!(waits(retry).await, [10_000, 20_000, 40_000, 60_000, 60_000]);
}

#[tokio::test]
async fn backoff_retries_three_times_after_10_to_20_seconds_each() {
    let waits = waits(json!("BACKOFF_RETRY")).await;
    assert_eq!(waits.len(), 3);
    assert!(waits.iter().all(|wait_ms| (10_000..=20_000).contains(wait_ms)), "{waits:?}");
}

#[tokio::test]
async fn exponential_decay_retries_176_times_over_86_015_seconds() {
    let waits = waits(json!("EXPONENTIAL_DECAY_RETRY")).await;
    assert_eq!(waits.len(), 176);
    assert_eq!(waits[..10], [1, 2, 4, 8, 16, 32, 64, 128, 256, 512].map(|seconds| seconds * 1000));
    assert!(waits[10..].iter().all(|&wait_ms| wait_ms == 512_000), "{waits:?}");
    assert_eq!(waits.iter().sum::<u64>(), 86_015_000);
}
