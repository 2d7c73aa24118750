//! The contract of [`tripline::function::Invoker`], run over every implementation.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes as Body;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use futures_util::future::join_all;
use tripline::function::{ErrorClass, FunctionState, Invocation, OUTPUT_BYTES_MAX, PAYLOAD_BYTES_MAX, Runtime};

use crate::support::{NAME, PATIENCE, Stage, invocation, spec};

/// The same small function in Python …
const PYTHON: &str = r#"
import time
def handler(event, context):
    word, _, rest = event.partition(b" ")
    if word == b"echo": return rest
    if word == b"id": return ("%s %d" % (context.request_id, context.attempt)).encode()
    if word == b"large": return b"x" * int(rest)
    if word == b"sleep": time.sleep(float(rest))
    if word == b"fail": raise ValueError("as told")
    return b""
"#;

/// … and behind HTTP.
async fn http_handler(headers: HeaderMap, event: Body) -> (StatusCode, Vec<u8>) {
    let end = event.iter().position(|&byte| byte == b' ').unwrap_or(event.len());
    let (word, rest) = (&event[..end], event.get(end + 1..).unwrap_or_default());
    let number = || std::str::from_utf8(rest).unwrap().parse::<f64>().unwrap();
    let text = |name: &str| headers[name].to_str().unwrap().to_owned();
    let body = match word {
        b"echo" => rest.to_vec(),
        b"id" => format!("{} {}", text("tripline-invocation-id"), text("tripline-attempt")).into_bytes(),
        b"large" => vec![b'x'; number() as usize],
        b"sleep" => {
            tokio::time::sleep(Duration::from_secs_f64(number())).await;
            Vec::new()
        }
        b"fail" => return (StatusCode::INTERNAL_SERVER_ERROR, Vec::new()),
        _ => Vec::new(),
    };
    (StatusCode::OK, body)
}

async fn python() -> Stage {
    let mut spec = spec();
    (spec.timeout, spec.instances.max) = (Duration::from_secs(2), 2);
    Stage::running_as(spec, PYTHON).await
}

async fn http() -> Stage {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook?x=1", listener.local_addr().unwrap());
    let limit = axum::extract::DefaultBodyLimit::max(PAYLOAD_BYTES_MAX);
    let router = Router::new().route("/hook", post(http_handler)).layer(limit);
    tokio::spawn(async move { axum::serve(listener, router).await });
    let mut spec = spec();
    (spec.timeout, spec.instances.max, spec.runtime) = (Duration::from_secs(2), 2, Runtime::Http { url });
    let stage = Stage::new();
    assert_eq!(stage.service.deploy(spec, None).await.unwrap().state, FunctionState::Ready);
    stage
}

macro_rules! contract {
    ($($name:ident)*) => { $(
        mod $name {
            #[tokio::test]
            async fn python3() {
                super::$name(super::python().await).await;
            }
            #[tokio::test]
            async fn http() {
                super::$name(super::http().await).await;
            }
        }
    )* };
}

contract! {
    the_payload_arrives_byte_for_byte
    the_attempt_carries_its_id_and_number
    every_failure_is_an_outcome_and_later_calls_work
    a_result_above_the_limit_is_an_error_and_one_at_the_limit_is_whole
    a_payload_above_the_limit_is_rejected
    no_more_run_at_a_time_than_the_quota
    a_stop_waits_and_then_interrupts
    an_attempt_goes_on_without_its_caller
}

async fn the_payload_arrives_byte_for_byte(stage: Stage) {
    let all: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let payload = [b"echo ", &all[..]].concat();
    let sent = Invocation { payload: payload.into(), ..invocation("") };
    assert!(stage.service.invoke(NAME, sent).await.unwrap().body == all[..]);
    assert_eq!(stage.result("").await, "", "an empty payload is one too");
}

async fn the_attempt_carries_its_id_and_number(stage: Stage) {
    let sent = Invocation { attempt: 176, ..invocation("id") };
    assert_eq!(stage.service.invoke(NAME, sent).await.unwrap().body, "late/flights/0/5 176");
}

async fn every_failure_is_an_outcome_and_later_calls_work(stage: Stage) {
    assert_eq!(stage.error("fail").await.class, ErrorClass::Failed);
    assert_eq!(stage.result("echo 1").await, "1");
    let late = stage.error("sleep 30").await;
    assert_eq!((late.class, late.code.as_str()), (ErrorClass::Failed, "timeout"));
    assert_eq!(stage.result("echo 2").await, "2");
    let stats = stage.service.describe(NAME).unwrap().stats;
    assert_eq!((stats.succeeded, stats.invocations()), (2, 4));
}

async fn a_result_above_the_limit_is_an_error_and_one_at_the_limit_is_whole(stage: Stage) {
    assert_eq!(stage.result(&format!("large {OUTPUT_BYTES_MAX}")).await.len(), OUTPUT_BYTES_MAX);
    let error = stage.error(&format!("large {}", OUTPUT_BYTES_MAX + 1)).await;
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Failed, "output-too-large"));
    assert_eq!(stage.result("echo 3").await, "3");
}

async fn a_payload_above_the_limit_is_rejected(stage: Stage) {
    let error = stage.error(&"x".repeat(PAYLOAD_BYTES_MAX + 1)).await;
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Rejected, "payload-too-large"));
}

async fn no_more_run_at_a_time_than_the_quota(stage: Stage) {
    let mut status = stage.service.watch(NAME).unwrap();
    let most = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = Arc::clone(&most);
    let watching = tokio::spawn(async move {
        while status.changed().await.is_ok() {
            let busy = status.borrow_and_update().instances.busy;
            seen.fetch_max(busy, std::sync::atomic::Ordering::Relaxed);
        }
    });
    let begun = std::time::Instant::now();
    for result in join_all((0..6).map(|_| stage.invoke("sleep 0.1"))).await {
        result.unwrap();
    }
    assert!(begun.elapsed() >= Duration::from_millis(300), "six of 0.1 s, two at a time");
    watching.abort();
    assert_eq!(most.load(std::sync::atomic::Ordering::Relaxed), 2);
}

async fn a_stop_waits_and_then_interrupts(stage: Stage) {
    let calls = join_all(["sleep 0.3", "sleep 60"].map(|payload| stage.invoke(payload)));
    let stopped = async {
        stage.until(|status| status.instances.busy == 2).await;
        stage.service.shutdown(Duration::from_secs(1)).await;
    };
    let (results, ()) = tokio::join!(calls, stopped);
    assert!(results[0].is_ok());
    assert_eq!(results[1].as_ref().unwrap_err().class, ErrorClass::Interrupted);
}

async fn an_attempt_goes_on_without_its_caller(stage: Stage) {
    {
        let given_up = stage.service.invoke(NAME, invocation("sleep 0.3"));
        tokio::pin!(given_up);
        let begun = stage.until(|status| status.instances.busy == 1);
        tokio::select! {
            _ = &mut given_up => panic!("it takes longer"),
            _ = begun => {}
        }
    }
    stage.until(|status| status.instances.busy == 0).await;
    assert_eq!(stage.service.describe(NAME).unwrap().stats.run.count(), 1);
    tokio::time::timeout(PATIENCE, stage.service.shutdown(PATIENCE)).await.unwrap();
}
