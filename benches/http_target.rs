//! From the log to an HTTP target, one record a request, next to a bare client that sends the same bytes.
//!
//! `cargo bench --bench http_target` starts a hyper server in a process of its own and sends it the same bodies in
//! turn: by hyper's client connections with nothing around them, by the pooled client of hyper-util as most programs
//! would, and by a trigger with windows of one record, in order `none` and in order `key`. As many requests are in
//! flight as there are connections. The medians of several turns are printed with their spread, the CPU time that a
//! request took on its sender's side (the server's is not in it), and the ratio to the bare client before it. Then the
//! trigger sends larger windows, of which rate and CPU time are told by the record. `-- --test` runs each once with few
//! records.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Empty, Full};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use crate::child::Counterpart;
use crate::support::{Meter, at_once, embed};
use crate::world::{Took, World, spread};

#[path = "support/child.rs"]
mod child;
mod support;
#[path = "support/world.rs"]
mod world;

/// What starts this program as the server.
const SERVE: &str = "serve-for-http-target";

/// Reads each request to its end and answers 200 with nothing.
async fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    println!("{}", listener.local_addr().expect("its address"));
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        stream.set_nodelay(true).expect("set");
        let answer = service_fn(|request: Request<hyper::body::Incoming>| async move {
            request.into_body().collect().await?;
            Ok::<_, hyper::Error>(Response::new(Empty::<Bytes>::new()))
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    }
}

/// The server, in a process of its own.
struct Server(Counterpart);

impl Server {
    fn request(&self, body: Bytes) -> Request<Full<Bytes>> {
        let request = Request::post(format!("http://{}/in", self.0.address)).header("host", &self.0.address);
        let request = request.header("content-type", "application/cloudevents-batch+json");
        request.body(Full::new(body)).expect("a request")
    }
}

/// Sends every body once over `connections`, one request at a time on each.
async fn bare(server: &Arc<Server>, bodies: &Arc<Vec<Bytes>>, connections: usize) -> Took {
    let mut senders = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(&server.0.address).await.expect("connected");
        stream.set_nodelay(true).expect("set");
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("shaken");
        tokio::spawn(connection);
        senders.push(sender);
    }
    let next = Arc::new(AtomicUsize::new(0));
    let meter = Meter::start();
    let running = senders.into_iter().map(|mut sender| {
        let (server, bodies, next) = (Arc::clone(server), Arc::clone(bodies), Arc::clone(&next));
        tokio::spawn(async move {
            while let Some(body) = bodies.get(next.fetch_add(1, Relaxed)) {
                sender.ready().await.expect("ready");
                let response = sender.send_request(server.request(body.clone())).await.expect("answered");
                assert!(response.status().is_success());
                response.into_body().collect().await.expect("a body");
            }
        })
    });
    join_all(running).await.into_iter().for_each(|done| done.expect("sent"));
    Took::until_now(&meter, bodies.len())
}

/// The same by the client that keeps a pool.
async fn pooled(server: &Arc<Server>, bodies: &Arc<Vec<Bytes>>, connections: usize) -> Took {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let next = Arc::new(AtomicUsize::new(0));
    let meter = Meter::start();
    let running = (0..connections).map(|_| {
        let (server, bodies, next, client) =
            (Arc::clone(server), Arc::clone(bodies), Arc::clone(&next), client.clone());
        tokio::spawn(async move {
            while let Some(body) = bodies.get(next.fetch_add(1, Relaxed)) {
                let response = client.request(server.request(body.clone())).await.expect("answered");
                assert!(response.status().is_success());
                response.into_body().collect().await.expect("a body");
            }
        })
    });
    join_all(running).await.into_iter().for_each(|done| done.expect("sent"));
    Took::until_now(&meter, bodies.len())
}

struct Bench {
    world: World,
    server: Arc<Server>,
}

impl Bench {
    async fn new(records: usize) -> Self {
        let world = World::new(records, |options| options.egress.allow_loopback = true).await;
        Self { world, server: Arc::new(Server(Counterpart::start(&[SERVE]))) }
    }

    /// What a trigger sends for the last `count` records.
    async fn bodies(&self, count: usize) -> Arc<Vec<Bytes>> {
        let bodies = Arc::<Mutex<Vec<Bytes>>>::default();
        let kept = Arc::clone(&bodies);
        embed(&self.world.functions, "target", move |invocation| {
            kept.lock().push(invocation.payload);
            at_once()
        });
        self.world.run(count, 1, &json!({"order": "partition", "concurrency": 1})).await;
        Arc::new(std::mem::take(&mut *bodies.lock()))
    }

    async fn target(&self, slots: usize) {
        let url = format!("http://{}/in", self.server.0.address);
        let definition =
            json!({"function": "target", "runtime": "http", "url": url, "instances": {"max": slots, "concurrency": 1}});
        self.world.deploy(&definition, None).await;
    }

    /// Larger windows: so many records each, in requests one after the other and eight at a time.
    async fn windows(&self, records: usize, turns: usize) {
        self.target(8).await;
        for (window, in_flight) in [(10, 8), (100, 1), (100, 8), (1_000, 8)] {
            let mut took: Vec<Took> = Vec::new();
            for _ in 0..turns {
                took.push(self.world.run(records, window, &json!({"order": "none", "concurrency": in_flight})).await);
            }
            print(&format!("windows of {window}, {in_flight} in flight"), &took, None);
        }
    }

    async fn compare(&self, in_flight: usize, count: usize, turns: usize) {
        let bodies = self.bodies(count).await;
        self.target(in_flight).await;
        let mut sides: [Vec<(Took, Took)>; 3] = Default::default();
        for _ in 0..turns {
            for (number, side) in sides.iter_mut().enumerate() {
                let before = bare(&self.server, &bodies, in_flight).await;
                let took = match number {
                    0 => pooled(&self.server, &bodies, in_flight).await,
                    1 => self.world.run(count, 1, &json!({"order": "none", "concurrency": in_flight})).await,
                    _ => self.world.run(count, 1, &json!({"order": "key", "concurrency": in_flight})).await,
                };
                side.push((before, took));
            }
        }
        println!("{in_flight} in flight, {count} requests of {} B", bodies[0].len());
        let all_bare: Vec<Took> = sides.iter().flatten().map(|(before, _)| *before).collect();
        print("bare hyper connections", &all_bare, None);
        for (name, side) in
            ["pooled client of hyper-util", "trigger, order none", "trigger, order key"].iter().zip(&sides)
        {
            let took: Vec<Took> = side.iter().map(|(_, took)| *took).collect();
            let ratios: Vec<f64> = side.iter().map(|(before, took)| took.per_s / before.per_s).collect();
            print(name, &took, Some(ratios));
        }
    }
}

fn print(name: &str, took: &[Took], ratios: Option<Vec<f64>>) {
    let (low, rate, high) = spread(took.iter().map(|took| took.per_s / 1e3).collect());
    let (_, cpu, _) = spread(took.iter().map(|took| took.cpu_us).collect());
    let ratio = ratios.map(spread).map(|(low, ratio, high)| format!(", {ratio:.2} of bare ({low:.2}-{high:.2})"));
    println!("  {name}: {rate:.1} k/s ({low:.1}-{high:.1}), {cpu:.1} us of CPU each{}", ratio.unwrap_or_default());
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == SERVE) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        return runtime.block_on(serve());
    }
    let test = arguments.iter().any(|argument| argument == "--test");
    let (records, turns) = if test { (1_000, 1) } else { (100_000, 5) };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let bench = Bench::new(records).await;
        for (in_flight, share) in [(1, 4), (8, 1), (64, 1)] {
            bench.compare(in_flight, records / share, turns).await;
        }
        bench.windows(records, turns).await;
        bench.world.close().await;
    });
}
