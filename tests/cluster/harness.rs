//! Clusters, processes that read them, and who receives what their functions get.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;
use tripline::input::cluster::{Client, ClusterAccess, ClusterInput, Security};
use tripline::input::{ClusterAddress, EventInput};
use tripline_storage::Offset;
use tripline_storage::batch::{
    BatchBuilder, BatchLimits, BatchOptions, BatchProducer, Batches, CheckedBatch, NewRecord,
};

use crate::ports::free_port;
use crate::served::{Served, TRIPLINE};
pub(crate) use crate::until::{LOOK, PATIENCE, until};

/// A Tripline process and its directory; both are gone when it is dropped.
pub(crate) struct Process {
    served: Served,
    dir: tempfile::TempDir,
}

impl Process {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { served: serve_in(dir.path(), Stdio::inherit()), dir }
    }

    /// With a `tripline.toml` of its own, and what it logs in a file.
    pub(crate) fn with_settings(settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let served = Self::serve_with(dir.path(), settings);
        Self { served, dir }
    }

    /// Once more, in the same directory, with these settings.
    pub(crate) fn restart_with(&mut self, settings: &str) {
        self.served = Self::serve_with(self.dir.path(), settings);
    }

    fn serve_with(dir: &Path, settings: &str) -> Served {
        fs::write(dir.join("tripline.toml"), settings).unwrap();
        let log = fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
        serve_in(dir, log)
    }

    /// What it has logged, since the first start.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// As `kill -9` does; answers when it is gone.
    pub(crate) fn kill(&mut self) {
        self.served.kill();
    }

    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.served.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn stop(&mut self) {
        self.signal("-TERM");
        assert!(self.served.child.wait().unwrap().success(), "a clean end");
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> (bool, String) {
        let output = Command::new(TRIPLINE)
            .args(arguments)
            .env("TRIPLINE_SERVER", &self.served.http)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(if output.status.success() { &output.stdout } else { &output.stderr });
        (output.status.success(), said.into_owned())
    }

    /// Applies definitions; answers what was said, and whether they were taken.
    pub(crate) fn try_apply(&self, definitions: &str) -> (bool, String) {
        let path = self.dir.path().join("app.yaml");
        fs::write(&path, definitions).unwrap();
        self.command(&["apply", "-f", &path.display().to_string()])
    }

    pub(crate) fn apply(&self, definitions: &str) {
        let (taken, said) = self.try_apply(definitions);
        assert!(taken, "{said}");
    }

    pub(crate) fn trigger(&self, name: &str) -> Value {
        let (found, said) = self.command(&["trigger", "describe", name, "--json"]);
        assert!(found, "{said}");
        serde_json::from_str(&said).unwrap()
    }

    /// Topic and partition of its lanes.
    pub(crate) fn lanes(&self, trigger: &str) -> Vec<(String, u64)> {
        let described = self.trigger(trigger);
        let lanes = described["lanes"].as_array().unwrap_or_else(|| panic!("{described:#}"));
        let place = |lane: &Value| (lane["topic"].as_str().unwrap().to_owned(), lane["partition"].as_u64().unwrap());
        lanes.iter().map(place).collect()
    }

    pub(crate) fn partitions(&self, trigger: &str) -> Vec<u64> {
        let described = self.trigger(trigger);
        let lanes = described["lanes"].as_array().unwrap_or_else(|| panic!("{described:#}"));
        lanes.iter().map(|lane| lane["partition"].as_u64().unwrap()).collect()
    }

    /// Waits until the group gave it so many partitions.
    pub(crate) fn wait_for_partitions(&self, trigger: &str, count: usize) -> Vec<u64> {
        until(&format!("{count} partitions"), || {
            let partitions = self.partitions(trigger);
            if partitions.len() == count { Ok(partitions) } else { Err(self.trigger(trigger).to_string()) }
        })
    }
}

fn serve_in(dir: &Path, log: impl Into<Stdio>) -> Served {
    let mut command = Command::new(TRIPLINE);
    command.args(["serve", "--data", "data", "--kafka", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    Served::start(command.current_dir(dir).stderr(log))
}

/// Apache Kafka, one node of its own, in a temporary directory.
pub(crate) struct Kafka {
    address: String,
    /// Of a listener with TLS and SASL, if it has one.
    secured: Option<String>,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Kafka {
    /// `None`, with the reason printed, where it cannot be started.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with(None, &[])
    }

    /// With one more listener, `SECURED`, as these properties say, and these users of SCRAM.
    pub(crate) fn secured_by(properties: &str, users: &[String]) -> Option<Self> {
        Self::start_with(Some(properties), users)
    }

    fn start_with(secured: Option<&str>, users: &[String]) -> Option<Self> {
        let Some(jars) = jars() else {
            println!("SKIP: Apache Kafka is not there: set TRIPLINE_CLIENTS_PYTHON (tests/clients/setup.sh makes it)");
            return None;
        };
        for _ in 0..TRIES {
            match Self::try_start(&jars, secured, users)? {
                Ok(kafka) => return Some(kafka),
                Err(log) => println!("Kafka ended while it started, and is started again: {log}"),
            }
        }
        panic!("Kafka ends while it starts");
    }

    /// `Err`: it has ended, perhaps because somebody had one of its ports; what it said last.
    fn try_start(jars: &Path, secured: Option<&str>, users: &[String]) -> Option<Result<Self, String>> {
        let classpath = format!("{}/*", jars.display());
        let dir = tempfile::tempdir().unwrap();
        let [broker_port, controller_port, secured_port] = [(); 3].map(|()| free_port());
        let properties = dir.path().join("server.properties");
        let data = dir.path().join("data").display().to_string();
        let also = if secured.is_some() { format!(",SECURED://127.0.0.1:{secured_port}") } else { String::new() };
        let written = PROPERTIES
            .replace("BROKER", &broker_port.to_string())
            .replace("CONTROLLER_PORT", &controller_port.to_string())
            .replace(",SECURED\n", &format!("{also}\n"))
            .replace("DATA", &data);
        fs::write(&properties, written + secured.unwrap_or_default()).unwrap();
        let properties = properties.display().to_string();
        let formatted = Command::new("java")
            .args([
                "-cp",
                &classpath,
                "kafka.tools.StorageTool",
                "format",
                "-t",
                "dHJpcGxpbmUtZ29sZGVuIQ",
                "-c",
                &properties,
            ])
            .args(users.iter().flat_map(|user| ["--add-scram", user]))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !formatted.is_ok_and(|status| status.success()) {
            println!("SKIP: Java does not run Kafka's tools");
            return None;
        }
        let log_path = dir.path().join("kafka.log");
        let log = fs::File::create(&log_path).unwrap();
        let mut child = Command::new("java")
            .args([
                "-Xmx384m",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-cp",
                &classpath,
                "kafka.Kafka",
                &properties,
            ])
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let address = format!("127.0.0.1:{broker_port}");
        let has_ended = until("connection to Kafka", || match child.try_wait().unwrap() {
            Some(_) => Ok(true),
            None => TcpStream::connect(&address).map(|_| false).map_err(|error| error.to_string()),
        });
        if has_ended {
            let said = fs::read_to_string(&log_path).unwrap_or_default();
            let last: Vec<&str> = said.lines().rev().take(5).collect();
            return Some(Err(last.join(" | ")));
        }
        let secured = secured.map(|_| format!("127.0.0.1:{secured_port}"));
        Some(Ok(Self { address, secured, child, _dir: dir }))
    }

    /// The address of the listener with TLS and SASL.
    pub(crate) fn secured(&self) -> &str {
        self.secured.as_deref().expect("it was started with one")
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How often Kafka is started anew that has ended.
const TRIES: usize = 3;

/// Beside the Python of the client tests.
fn jars() -> Option<PathBuf> {
    let python = std::env::var("TRIPLINE_CLIENTS_PYTHON").ok()?;
    let jars = Path::new(&python).parent()?.parent()?.join("kafka");
    jars.is_dir().then_some(jars)
}

/// What tests write has old timestamps: it is to stay all the same.
const PROPERTIES: &str = "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:CONTROLLER_PORT
listeners=PLAINTEXT://127.0.0.1:BROKER,CTL://127.0.0.1:CONTROLLER_PORT,SECURED
advertised.listeners=PLAINTEXT://127.0.0.1:BROKER,SECURED
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CTL
listener.security.protocol.map=CTL:PLAINTEXT,PLAINTEXT:PLAINTEXT,SECURED:SASL_SSL
log.dirs=DATA
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
log.retention.ms=-1
";

/// A cluster to read.
pub(crate) enum Cluster {
    Tripline(Process),
    Kafka(Kafka),
}

impl Cluster {
    pub(crate) fn address(&self) -> &str {
        match self {
            Self::Tripline(process) => &process.served.kafka,
            Self::Kafka(kafka) => &kafka.address,
        }
    }

    /// A client; with Kafka, once it takes part in everything.
    pub(crate) async fn client(&self) -> Arc<Client> {
        let access =
            ClusterAccess { bootstrap_servers: vec![self.address().to_owned()], security: Security::default() };
        Arc::new(Client::new(access, ClusterAddress::SESSION_TIMEOUT, "test"))
    }

    /// Makes a topic, and waits until its partitions are led.
    pub(crate) async fn topic(&self, name: &str, partitions: u32) -> Arc<Client> {
        let client = self.client().await;
        let begin = Instant::now();
        loop {
            let made = client.create_topic(name, partitions).await;
            let led = match client.topic(name).await {
                Ok(topic) if topic.partition_count() == partitions => {
                    let ends = (0..partitions)
                        .map(|partition| client.start_of(name, partition, tripline::input::cluster::Start::Latest));
                    futures_util::future::try_join_all(ends).await.map(drop).map_err(|error| error.to_string())
                }
                Ok(topic) => Err(format!("{} partitions", topic.partition_count())),
                Err(error) => Err(error.to_string()),
            };
            let Err(instead) = led else { return client };
            assert!(begin.elapsed() < PATIENCE, "no topic, but {made:?}, {instead}");
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A batch with these values, of an idempotent producer if one is named.
pub(crate) fn batch(values: &[String], producer: Option<i64>) -> CheckedBatch {
    let producer = producer.map(|id| BatchProducer { id, epoch: 0, base_sequence: 0 });
    let mut builder = BatchBuilder::new(BatchOptions { producer, ..BatchOptions::default() });
    for value in values {
        let record = NewRecord {
            timestamp_ms: 1_700_000_000_000,
            key: Some(b"k"),
            value: Some(value.as_bytes()),
            headers: &[(b"h", Some(b"v"))],
        };
        builder.push(&record).unwrap();
    }
    builder.finish().unwrap()
}

/// A record as it was read: key, value, headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) headers: BTreeMap<String, String>,
}

/// All records of a partition.
pub(crate) async fn read_all(client: &Arc<Client>, topic: &str, partition: u32) -> Vec<Letter> {
    let described = client.topic(topic).await.unwrap();
    let input = ClusterInput::open(Arc::clone(client), topic, &described, partition, Offset::ZERO).await.unwrap();
    let input = EventInput::Cluster(input);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (mut letters, mut at) = (Vec::new(), input.log_start());
    while at < input.tail() {
        let outcome = input.read(at, 1 << 20).await.unwrap();
        for view in Batches::of(&outcome.bytes).map_while(Result::ok) {
            for record in &view.records(&BatchLimits::default()).unwrap() {
                let record = record.unwrap();
                let headers =
                    record.headers().map(|header| (text(header.name), text(header.value.unwrap_or_default())));
                letters.push(Letter {
                    key: text(record.key().unwrap_or_default()),
                    value: text(record.value().unwrap_or_default()),
                    headers: headers.collect(),
                });
            }
        }
        at = outcome.next;
    }
    letters
}

/// A request that the receiver got.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) at: Instant,
    pub(crate) attempt: u32,
    pub(crate) topic: String,
    /// Partition and offset of each event, in order.
    pub(crate) records: Vec<(u32, i64)>,
}

/// What a delivery is answered with: the status and the body, after a wait.
type Answer = Arc<dyn Fn(&Delivery) -> (u16, Duration, String) + Send + Sync>;

/// An HTTP function in this process.
#[derive(Clone)]
pub(crate) struct Receiver {
    pub(crate) url: String,
    got: Arc<Mutex<Vec<Delivery>>>,
}

impl Receiver {
    pub(crate) fn start(answer: impl Fn(&Delivery) -> (u16, Duration) + Send + Sync + 'static) -> Self {
        Self::returning(move |delivery| {
            let (status, wait) = answer(delivery);
            (status, wait, String::new())
        })
    }

    /// One whose answers say something.
    pub(crate) fn returning(answer: impl Fn(&Delivery) -> (u16, Duration, String) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let receiver = Self { url, got: Arc::default() };
        let (got, answer): (_, Answer) = (Arc::clone(&receiver.got), Arc::new(answer));
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let (got, answer) = (Arc::clone(&got), Arc::clone(&answer));
                thread::spawn(move || serve(&socket, &got, &answer));
            }
        });
        receiver
    }

    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        self.got.lock().clone()
    }

    /// Waits until deliveries are as `wanted` says.
    pub(crate) fn wait_for(&self, what: &str, wanted: impl Fn(&[Delivery]) -> bool) -> Vec<Delivery> {
        until(what, || {
            let deliveries = self.deliveries();
            if wanted(&deliveries) { Ok(deliveries) } else { Err(format!("{} deliveries", deliveries.len())) }
        })
    }
}

fn serve(socket: &TcpStream, got: &Mutex<Vec<Delivery>>, answer: &Answer) {
    let mut reader = BufReader::new(socket);
    loop {
        let (mut length, mut attempt, mut topic) = (0, 0, String::new());
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).is_ok_and(|read| read == 0) || line.is_empty() {
                return;
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            length = line.strip_prefix("content-length: ").map_or(length, |number| number.parse().unwrap());
            attempt = line.strip_prefix("tripline-attempt: ").map_or(attempt, |number| number.parse().unwrap());
            if let Some(id) = line.strip_prefix("tripline-invocation-id: ") {
                id.split('/').nth(1).unwrap().clone_into(&mut topic);
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let events: Vec<Value> = serde_json::from_slice(&body).unwrap();
        let place = |event: &Value| {
            let (partition, offset) = event["id"].as_str().unwrap().split_once('-').unwrap();
            (partition.parse().unwrap(), offset.parse().unwrap())
        };
        let delivery = Delivery { at: Instant::now(), attempt, topic, records: events.iter().map(place).collect() };
        got.lock().push(delivery.clone());
        let (status, wait, body) = answer(&delivery);
        thread::sleep(wait);
        let length = body.len();
        let answered = write!(&mut &*socket, "HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n\r\n{body}");
        if answered.is_err() {
            return;
        }
    }
}
