//! Targets that do what targets do: ask for less, hang, die, talk without end, refuse.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tripline::trigger::service::TriggerState;

use crate::harness::World;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const LATER: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n";
const UNAUTHORIZED: &[u8] = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
/// What a target says that does not stop: more than anybody takes.
const ENDLESS_BYTES: u64 = 10 << 30;

/// What a target does with a request that it has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Answer(&'static [u8]),
    /// The connection stays open and says nothing.
    Hang,
    /// It closes in the middle of the answer.
    Die,
    /// An answer of 10 GiB.
    Flood,
}

/// A target that says what it does by the number of the request, and knows how many it had at a time.
struct Wild {
    url: String,
    requests: Arc<AtomicUsize>,
    open_max: Arc<AtomicUsize>,
    flooded_bytes: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Wild {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads one request; `false` when there is none any more.
async fn read_request(socket: &mut TcpStream) -> bool {
    let mut read = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    loop {
        match socket.read(&mut buffer).await {
            Ok(0) | Err(_) => return false,
            Ok(bytes) => read.extend_from_slice(&buffer[..bytes]),
        }
        let Some(head) = read.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&read[..head]).to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
        if read.len() >= head + 4 + length {
            return true;
        }
    }
}

impl Wild {
    async fn start(does: impl Fn(usize) -> Does + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let [requests, open, open_max, flooded] = [(); 4].map(|()| Arc::new(AtomicUsize::new(0)));
        let does = Arc::new(does);
        let counts = (Arc::clone(&requests), open, Arc::clone(&open_max), Arc::clone(&flooded));
        let task = tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let (does, (requests, open, open_max, flooded)) = (Arc::clone(&does), counts.clone());
                tokio::spawn(async move {
                    while read_request(&mut socket).await {
                        open_max.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        // Long enough for others to come meanwhile.
                        tokio::time::sleep(Duration::from_millis(2)).await;
                        let done = does(requests.fetch_add(1, Ordering::SeqCst));
                        open.fetch_sub(1, Ordering::SeqCst);
                        if !act(&mut socket, done, &flooded).await {
                            return;
                        }
                    }
                });
            }
        });
        Self { url, requests, open_max, flooded_bytes: flooded, task }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Answers whether the connection goes on.
async fn act(socket: &mut TcpStream, does: Does, flooded: &AtomicUsize) -> bool {
    match does {
        Does::Answer(answer) => socket.write_all(answer).await.is_ok(),
        Does::Hang => {
            let mut byte = [0];
            let _ = socket.read(&mut byte).await;
            false
        }
        Does::Die => {
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
            false
        }
        Does::Flood => {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {ENDLESS_BYTES}\r\n\r\n");
            let mut sent = socket.write_all(head.as_bytes()).await;
            while sent.is_ok() {
                sent = socket.write_all(&[b'x'; 64 << 10]).await;
                flooded.fetch_add(64 << 10, Ordering::SeqCst);
            }
            false
        }
    }
}

/// A trigger `t` on topic `in` that tries again at once and often.
fn trigger(url: &str, more: Value) -> Value {
    let mut definition = json!({
        "trigger": "t", "input": {"topic": "in", "start": "earliest"}, "window": {"count": 1},
        "function": {"http": {"url": url}},
        "retry": {"initial": "1ms", "max_interval": "1ms", "max_attempts": 3, "jitter": "none"},
        "dead_letter": {"topic": "in.dlq"},
    });
    definition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    definition
}

async fn produce(world: &World, partitions: u32, count: usize) -> Arc<tripline::broker::Topic> {
    let topic = world.topic("in", partitions).await;
    for partition in 0..partitions {
        world.produce(&topic, partition, &vec!["1"; count]).await;
    }
    topic
}

async fn until_finished(world: &World) {
    world.until("t", |report| report.lanes.iter().all(|lane| lane.lag() == 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_trigger_asks_for_less_then_for_more_and_spends_nothing() {
    let world = World::start();
    produce(&world, 1, 60).await;
    let throttled = Arc::new(AtomicBool::new(true));
    let says = Arc::clone(&throttled);
    let target =
        Wild::start(
            move |nth| if nth < 12 && says.load(Ordering::SeqCst) { Does::Answer(LATER) } else { Does::Answer(OK) },
        )
        .await;
    world.apply(trigger(&target.url, json!({"order": "none", "concurrency": 8}))).await;
    world.until("t", |report| report.counts.attempts_failed >= 8).await;
    target.open_max.store(0, Ordering::SeqCst);
    until_finished(&world).await;
    let report = world.triggers.describe("t").unwrap();
    assert_eq!((report.counts.delivered, report.counts.dead_lettered, report.counts.attempts_failed), (60, 0, 12));
    assert!(target.open_max.load(Ordering::SeqCst) <= 8);
    assert_eq!(world.records("in.dlq", 0).len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_probed_by_one_invocation_at_a_time_whatever_the_order_and_the_lanes() {
    for order in ["partition", "key", "none"] {
        let world = World::start();
        produce(&world, 8, 5).await;
        let down = Arc::new(AtomicBool::new(true));
        let says = Arc::clone(&down);
        let target =
            Wild::start(move |_| Does::Answer(if says.load(Ordering::SeqCst) { UNAUTHORIZED } else { OK })).await;
        world.apply(trigger(&target.url, json!({"order": order, "concurrency": 16}))).await;
        let report = world.until_state("t", TriggerState::Outage).await;
        assert!(report.reason.contains("401"), "{report:?}");
        // What was under way when it began comes back; then only probes go out.
        let mut before = target.requests();
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if before == std::mem::replace(&mut before, target.requests()) {
                break;
            }
        }
        target.open_max.store(0, Ordering::SeqCst);
        let (begun, probes) = (Instant::now(), target.requests());
        while target.requests() < probes + 2 {
            assert!(begun.elapsed() < Duration::from_secs(20), "order {order}: no probes");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(target.open_max.load(Ordering::SeqCst), 1, "order {order}: one probe at a time");
        down.store(false, Ordering::SeqCst);
        world.triggers.resume("t").await.unwrap();
        until_finished(&world).await;
        let report = world.until_state("t", TriggerState::Running).await;
        assert_eq!((report.counts.delivered, report.counts.dead_lettered), (40, 0), "order {order}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_hangs_dies_or_floods_costs_an_attempt_and_no_memory() {
    for (does, code) in [(Does::Hang, "timeout"), (Does::Die, ""), (Does::Flood, "output-too-large")] {
        let world = World::start();
        produce(&world, 1, 2).await;
        let target = Wild::start(move |nth| if nth < 3 { does } else { Does::Answer(OK) }).await;
        let function = json!({"function": "f", "runtime": "http", "url": target.url, "timeout": if does == Does::Hang { "300ms" } else { "30s" }});
        world.http_function(&function).await;
        world.apply(trigger(&target.url, json!({"function": "f"}))).await;
        until_finished(&world).await;
        let letters = world.records("in.dlq", 0);
        assert_eq!(letters.len(), 1, "{does:?}");
        let header = |name: &str| {
            letters[0].headers.iter().find(|(header, _)| header == name).and_then(|(_, value)| value.clone()).unwrap()
        };
        assert_eq!((header("tripline-dlq-attempts"), header("tripline-dlq-offset")), ("3".to_owned(), "0".to_owned()));
        assert!(header("tripline-dlq-error-code").contains(code), "{does:?}: {letters:?}");
        assert_eq!(world.triggers.describe("t").unwrap().counts.delivered, 1, "{does:?}: the next one goes on");
        let flooded = target.flooded_bytes.load(Ordering::SeqCst);
        assert!(flooded < 256 << 20, "{flooded} bytes were taken");
    }
}

const DIES_OF_POISON: &str = r#"
import json
import os

def handler(event, context):
    values = [one["data"] for one in json.loads(event)]
    print(",".join(values), flush=True)
    if "poison" in values:
        os._exit(9)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn of_a_window_whose_process_dies_only_the_record_that_kills_it_is_given_up() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    world.python("f", DIES_OF_POISON).await;
    let mut values: Vec<String> = (0..10).map(|n| format!("\"{n}\"")).collect();
    values[6] = "\"poison\"".to_owned();
    world.produce(&topic, 0, &values.iter().map(String::as_str).collect::<Vec<_>>()).await;
    world.apply(trigger("", json!({"function": "f", "window": {"count": 10}}))).await;
    until_finished(&world).await;
    let letters = world.records("in.dlq", 0);
    let header = |name: &str| {
        letters[0].headers.iter().find(|(header, _)| header == name).and_then(|(_, value)| value.clone()).unwrap()
    };
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0].value, "\"poison\"");
    assert_eq!((header("tripline-dlq-error-class"), header("tripline-dlq-attempts")), ("crashed".into(), "3".into()));
    let counts = world.triggers.describe("t").unwrap().counts;
    assert_eq!((counts.delivered, counts.dead_lettered), (9, 1));
    // The window, its halves down to one record, and the attempts of that one.
    assert!(world.printed.lines().len() <= 14, "{:?}", world.printed.lines());
}
