//! An HTTP target that fails in every way that targets fail, and remembers what it was sent.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

use super::verify::{Answer, Call, Place, Tick};
use crate::Failure;
use crate::ledger::now;

/// How long a dead broker's connections take to go.
const CLOSED_WITHIN: Duration = Duration::from_secs(10);
/// Longer than any function here has.
const FOR_EVER: Duration = Duration::from_secs(60);
/// Of a thousand invocations without a record that is bad by itself.
const SLOW: u32 = 30;
const FAILED: u32 = 60;
const HANG_UP: u32 = 30;
const LATER: u32 = 15;
const REFUSED: u32 = 4;
const NO_ANSWER: u32 = 3;
const PARTIAL: u32 = 60;
const UNAUTHORIZED: u32 = 1;

/// What is said to the trigger of one path.
#[derive(Debug, Default)]
struct Seen {
    calls: Vec<Call>,
}

#[derive(Debug)]
struct State {
    seed: u64,
    triggers: Vec<(String, Mutex<Seen>)>,
    generation: AtomicUsize,
    connections: AtomicUsize,
    ticks: AtomicU64,
}

/// The target at work, on threads of its own.
pub(super) struct Target {
    pub(super) address: SocketAddr,
    state: Arc<State>,
    _runtime: tokio::runtime::Runtime,
}

impl Target {
    /// Listens for triggers by these names, each at the path of its name.
    pub(super) fn start(seed: u64, triggers: &[&str]) -> Result<Self, Failure> {
        let triggers = triggers.iter().map(|name| (format!("/{name}"), Mutex::default())).collect();
        let state = State {
            seed,
            triggers,
            generation: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            ticks: AtomicU64::new(0),
        };
        let state = Arc::new(state);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        runtime.spawn(accept(listener, Arc::clone(&state)));
        Ok(Self { address, state, _runtime: runtime })
    }

    /// The broker is dead: what comes when its connections are gone comes from the next one.
    pub(super) fn broker_died(&self) -> Result<(), Failure> {
        let begun = Instant::now();
        while self.state.connections.load(Ordering::Acquire) > 0 {
            if begun.elapsed() > CLOSED_WITHIN {
                return Err("connections of a dead broker stay open".into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        self.state.generation.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// All that the trigger at this place of the list sent, by its beginning.
    pub(super) fn calls(&self, trigger: usize) -> Vec<Call> {
        self.state.seen(trigger).calls.clone()
    }
}

impl State {
    fn seen(&self, trigger: usize) -> std::sync::MutexGuard<'_, Seen> {
        self.triggers[trigger].1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) -> Tick {
        self.ticks.fetch_add(1, Ordering::AcqRel)
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((socket, _)) = listener.accept().await {
        state.connections.fetch_add(1, Ordering::AcqRel);
        let generation = state.generation.load(Ordering::Acquire);
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            serve(socket, generation, &state).await;
            state.connections.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

async fn serve(socket: TcpStream, generation: usize, state: &Arc<State>) {
    // A broker that is killed, and one that is hung up on, ends this with an error.
    let service = service_fn(|request| answer(request, generation, Arc::clone(state)));
    let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
}

/// The connection is closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("hung up")]
struct HungUp;

/// Notes how a call ended, also when the caller went away.
struct Ending {
    state: Arc<State>,
    trigger: usize,
    index: usize,
    answer: Answer,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let answer = std::mem::replace(&mut self.answer, Answer::Cut);
        let mut seen = self.state.seen(self.trigger);
        // Ticked under the lock, as beginnings are: they stand in their order.
        let tick = self.state.tick();
        seen.calls[self.index].ended = Some((tick, answer));
    }
}

/// A record in hand.
struct Sent {
    place: Place,
    id: String,
    poison: bool,
}

async fn answer(
    request: Request<Incoming>,
    generation: usize,
    state: Arc<State>,
) -> Result<Response<Full<Bytes>>, HungUp> {
    let path = request.uri().path().to_owned();
    let Some(trigger) = state.triggers.iter().position(|(known, _)| *known == path) else { return Ok(status(404)) };
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (id, attempt) = (header("tripline-invocation-id").to_owned(), header("tripline-attempt").parse().unwrap_or(0));
    let Ok(body) = request.into_body().collect().await else { return Err(HungUp) };
    let Some(sent) = records(&body.to_bytes()) else { return Ok(status(400)) };
    let mut ending = {
        let mut seen = state.seen(trigger);
        let call = Call {
            generation,
            id,
            attempt,
            places: sent.iter().map(|record| record.place).collect(),
            begun: state.tick(),
            begun_ms: now().as_millis() as i64,
            ended: None,
        };
        seen.calls.push(call);
        Ending { state: Arc::clone(&state), trigger, index: seen.calls.len() - 1, answer: Answer::Cut }
    };
    let seed = state.seed ^ (ending.index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((trigger as u64) << 60);
    let (answer, response) = react(&sent, &mut fastrand::Rng::with_seed(seed)).await;
    ending.answer = answer;
    drop(ending);
    response.ok_or(HungUp)
}

fn records(body: &[u8]) -> Option<Vec<Sent>> {
    let events: Vec<Value> = serde_json::from_slice(body).ok()?;
    let records = events.iter().map(|event| {
        let id = event["id"].as_str()?;
        let (partition, offset) = id.split_once('-')?;
        let place = (partition.parse().ok()?, offset.parse().ok()?);
        Some(Sent { place, id: id.to_owned(), poison: event["data"]["poison"] == true })
    });
    records.collect()
}

/// What a window gets; `None` is no answer at all.
async fn react(sent: &[Sent], random: &mut fastrand::Rng) -> (Answer, Option<Response<Full<Bytes>>>) {
    let poisoned: Vec<&Sent> = sent.iter().filter(|record| record.poison).collect();
    if let Some(first) = poisoned.first() {
        // Half of them are named, half fail whatever comes with them.
        return if first.place.1 % 2 == 0 { (Answer::Failed, Some(status(500))) } else { partly(&poisoned) };
    }
    let mut chance = random.u32(..1000);
    let mut falls = |share: u32| {
        let falls = chance < share;
        chance = chance.wrapping_sub(share);
        falls
    };
    if falls(SLOW) {
        tokio::time::sleep(Duration::from_millis(random.u64(20..200))).await;
    } else if falls(FAILED) {
        return (Answer::Failed, Some(status(500)));
    } else if falls(HANG_UP) {
        return (Answer::Failed, None);
    } else if falls(LATER) {
        let after = if random.u32(..10) == 0 { "1" } else { "0" };
        let later = Response::builder().status(429).header("retry-after", after).body(Full::default());
        return (Answer::Later, later.ok());
    } else if falls(REFUSED) {
        return (Answer::Refused, Some(status(400)));
    } else if falls(NO_ANSWER) {
        tokio::time::sleep(FOR_EVER).await;
        return (Answer::Cut, None);
    } else if falls(PARTIAL) {
        let some: Vec<&Sent> = sent.iter().filter(|_| random.bool()).collect();
        if !some.is_empty() {
            return partly(&some);
        }
    } else if falls(UNAUTHORIZED) {
        return (Answer::Later, Some(status(401)));
    }
    (Answer::Taken { failed: Vec::new() }, Some(status(200)))
}

/// These records failed, the others were taken.
fn partly(failed: &[&Sent]) -> (Answer, Option<Response<Full<Bytes>>>) {
    let failures: Vec<Value> = failed.iter().map(|record| serde_json::json!({"itemIdentifier": record.id})).collect();
    let body = serde_json::json!({"batchItemFailures": failures}).to_string();
    let answer = Answer::Taken { failed: failed.iter().map(|record| record.place).collect() };
    (answer, Some(Response::new(Full::new(body.into()))))
}

fn status(code: u16) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}
