//! `tripline demo`: the main job, shown in half a minute with a broker of its own.
//!
//! First three records and a window of two records or ten seconds: two invocations, with 2 records at once and with 1
//! after ten seconds. Then real flights through a filter, a window and a function that refuses two of them: retries,
//! and dead letters.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::Method;
use serde_json::{Value, json};

use super::client::{Client, Events};
use super::failure::Failure;
use super::output::print;
use super::topic::array;
use crate::config::manifest::{self, Definition};
use crate::server::{Server, ServerConfig};

const HELLO_YAML: &str = include_str!("../../examples/hello/app.yaml");
const HELLO_CODE: &str = include_str!("../../examples/hello/hello.py");
const LATE_YAML: &str = include_str!("../../examples/flights/app.yaml");
const LATE_CODE: &str = include_str!("../../examples/flights/late.py");
const FLIGHTS: &str = include_str!("../../examples/flights/flights.ndjson");

/// The window of the first part.
const INTERVAL: Duration = Duration::from_secs(10);
/// Nothing in the demo takes longer, but for machines that are busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// Flights sent at a time.
const FLIGHTS_AT_ONCE: usize = 100;
/// Between one send and the next: six seconds for all of them.
const FLIGHTS_PACE: Duration = Duration::from_millis(200);
/// Between two looks at what became of them.
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tripline demo")]
pub(super) struct DemoArgs {}

/// Runs it.
pub(super) async fn run(_args: DemoArgs) -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = ServerConfig { kafka: any_port, http: any_port, ..ServerConfig::new(directory.path().join("data")) };
    let server = Server::start(config).await.map_err(|error| Failure::new(error.to_string()))?;
    let client = Client::new(&format!("http://{}", server.http_address()))?;
    let (kafka, http) = (server.kafka_address(), server.http_address());
    let shown = async {
        print(&format!("A broker of its own runs: Kafka on {kafka}, HTTP on {http}.\n\n"))?;
        show(&client).await
    };
    let shown = tokio::select! {
        shown = shown => shown,
        _ = tokio::signal::ctrl_c() => Err(Failure::new("stopped before its end")),
    };
    server.stop().await;
    shown
}

async fn show(client: &Client) -> Result<(), Failure> {
    let started = Instant::now();
    hello(client).await?;
    flights(client).await?;
    print(&format!("\nAll of it in {:.0} s, and gone now. What to try next:\n", started.elapsed().as_secs_f64()))?;
    print("  tripline                                       run the broker, data in ./tripline-data")?;
    print("  tripline apply -f examples/hello/app.yaml      topic, function and trigger from a file")?;
    print("  echo '\"hi\"' | tripline produce greetings       then: tripline logs -f hello")
}

/// Three records through a window of two records or ten seconds.
async fn hello(client: &Client) -> Result<(), Failure> {
    print("1. A topic, a Python function that logs its records, and a trigger with a window of 2 records or 10 s:")?;
    apply(client, HELLO_YAML, HELLO_CODE).await?;
    let mut log = Log::open(client, "hello").await?;
    send(client, "greetings", &["\"one\"", "\"two\"", "\"three\""]).await?;
    let sent = Instant::now();
    print("   three records sent; the function is invoked:")?;
    let mut sizes = Vec::new();
    while sizes.len() < 2 {
        let line = log
            .next(
                sent,
                INTERVAL,
                &format!("the third waits for a fourth, or for its {} s", INTERVAL.as_secs()),
                !sizes.is_empty(),
            )
            .await?;
        print(&format!("   {:>6.2} s  {line}", sent.elapsed().as_secs_f64()))?;
        sizes.push(leading_number(&line));
    }
    if sizes != [Some(2), Some(1)] {
        return Err(Failure::new(format!("the demo expected invocations with 2 and 1 records, found {sizes:?}")));
    }
    print("   two invocations: 2 records at once, 1 when its window closed.\n\n")
}

/// Real flights; a function for those that are late, which refuses two of them.
async fn flights(client: &Client) -> Result<(), Failure> {
    let flights: Vec<&str> = FLIGHTS.lines().collect();
    print(&format!(
        "2. {} flights of 2001 as they come, and a trigger that takes those more than an hour late:",
        flights.len()
    ))?;
    apply(client, LATE_YAML, LATE_CODE).await?;
    let mut log = Log::open(client, "late").await?;
    let started = Instant::now();
    let (sent, shown) = tokio::join!(send_slowly(client, &flights), late_flights(client, &mut log, started));
    sent?;
    let LateFlights { late, invocations, trigger, dead_letters } = shown?;
    print(&format!(
        "   {late} late flights delivered in {invocations} invocations; the filter turned {} away before any.",
        trigger["counts"]["filtered"]
    ))?;
    print(&format!("   {} that the function kept refusing are dead letters, with the reason:", dead_letters.len()))?;
    for letter in &dead_letters {
        let (flight, reason) = (&letter["record"]["value"], &letter["reason"]);
        print(&format!(
            "     {}-{}, {} minutes late: {} after {} attempts",
            flight["origin"].as_str().unwrap_or_default(),
            flight["destination"].as_str().unwrap_or_default(),
            flight["delay"],
            reason["error-code"].as_str().unwrap_or_default(),
            reason["attempts"].as_str().unwrap_or_default(),
        ))?;
    }
    Ok(())
}

/// Sends them in the order of their dates, a whole month within seconds.
async fn send_slowly(client: &Client, flights: &[&str]) -> Result<(), Failure> {
    let mut pace = tokio::time::interval(FLIGHTS_PACE);
    for flights in flights.chunks(FLIGHTS_AT_ONCE) {
        pace.tick().await;
        send(client, "flights", flights).await?;
    }
    Ok(())
}

/// What became of the flights.
struct LateFlights {
    late: u64,
    /// Those that took any, as they told themselves: one that refuses a part of its window is no success of the whole.
    invocations: u64,
    trigger: Value,
    dead_letters: Vec<Value>,
}

/// Shows what the function logs until every flight is delivered, turned away or a dead letter, and all of it was shown.
async fn late_flights(client: &Client, log: &mut Log, started: Instant) -> Result<LateFlights, Failure> {
    let (mut late, mut invocations, mut refusals) = (0, 0, 0);
    let mut look = tokio::time::interval(LOOK_EVERY);
    let deadline = tokio::time::sleep(PATIENCE);
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            line = log.line() => {
                let line = line?;
                match leading_number(&line) {
                    Some(count) => (late, invocations) = (late + count, invocations + 1),
                    None => refusals += 1,
                }
                print(&format!("   {:>6.2} s  {line}", started.elapsed().as_secs_f64()))?;
            }
            _ = look.tick() => {
                let trigger = client.get("/v1/triggers/late-flights").await?;
                let count = |name: &str| trigger["counts"][name].as_u64().unwrap_or_default();
                let finished = count("delivered") + count("filtered") + count("dead_lettered");
                if finished < FLIGHTS.lines().count() as u64 || count("delivered") != late {
                    continue;
                }
                let letters = client.get("/v1/dead-letters?trigger=late-flights").await?;
                let dead_letters = array(&letters["dead_letters"]).to_vec();
                let attempts = dead_letters.iter().filter_map(|letter| letter["reason"]["attempts"].as_str()?.parse::<u64>().ok());
                if attempts.sum::<u64>() == refusals {
                    return Ok(LateFlights { late, invocations, trigger, dead_letters });
                }
            }
            () = &mut deadline => return Err(Failure::new("the flights were not finished in time")),
        }
    }
}

/// Applies the definitions of an example, with its code.
async fn apply(client: &Client, yaml: &str, code: &str) -> Result<(), Failure> {
    for definition in manifest::parse(yaml).map_err(|error| Failure::new(error.to_string()))? {
        let (kind, name) = definition.kind_and_name();
        let path = format!("/v1/{kind}s/{name}");
        let body = match &definition {
            Definition::Topic(spec) => spec.to_json(),
            Definition::Trigger(spec) => spec.to_json(),
            Definition::Schedule(spec) => spec.to_json(),
            Definition::Function(definition) => {
                let mut body = definition.spec.to_json();
                body["code_base64"] = BASE64.encode(code).into();
                body
            }
        };
        let answer = client.call(Method::PUT, &path, Some(&body)).await?;
        if answer["state"] == "Failed" {
            return Err(Failure::new(format!("function {name} does not run: {}", answer["error"]["message"])));
        }
        print(&format!("   {kind} {name}"))?;
    }
    Ok(())
}

/// Appends JSON values, in order.
async fn send(client: &Client, topic: &str, values: &[&str]) -> Result<(), Failure> {
    let record = |value: &&str| json!({ "value_base64": BASE64.encode(value) });
    let records: Vec<Value> = values.iter().map(record).collect();
    let answer =
        client.call(Method::POST, &format!("/v1/topics/{topic}/records"), Some(&json!({ "records": records }))).await?;
    debug_assert_eq!(array(&answer["records"]).len(), values.len(), "each record has its place");
    Ok(())
}

/// The number at the beginning of what a function logged.
fn leading_number(line: &str) -> Option<u64> {
    line.split(' ').next()?.parse().ok()
}

/// What a function prints, as it is printed.
struct Log {
    events: Events,
}

impl Log {
    async fn open(client: &Client, function: &str) -> Result<Self, Failure> {
        Ok(Self { events: client.events(&format!("/v1/functions/{function}/logs?limit=0")).await? })
    }

    /// The next line. With `count_down`, people are told `why` it takes so long, on a terminal with the seconds until
    /// `wait` after `since`.
    async fn next(&mut self, since: Instant, wait: Duration, why: &str, count_down: bool) -> Result<String, Failure> {
        let terminal = std::io::stdout().is_terminal();
        if count_down && !terminal {
            print(&format!("             {why}"))?;
        }
        let count_down = count_down && terminal;
        let mut shown = false;
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        let deadline = tokio::time::sleep(wait + PATIENCE);
        tokio::pin!(deadline);
        let line = loop {
            tokio::select! {
                line = self.events.next() => break line?,
                () = &mut deadline => return Err(Failure::new("the function was not invoked in time")),
                _ = ticks.tick(), if count_down => {
                    let left = wait.saturating_sub(since.elapsed()).as_secs_f64().ceil();
                    print_over(&format!("             {why}: {left:.0} "))?;
                    shown = true;
                }
            }
        };
        if shown {
            print_over("")?;
        }
        text_of(line)
    }

    /// The next line, however long it takes.
    async fn line(&mut self) -> Result<String, Failure> {
        text_of(self.events.next().await?)
    }
}

fn text_of(line: Option<Value>) -> Result<String, Failure> {
    let line = line.ok_or_else(|| Failure::new("the function's log ended"))?;
    let text = line["text"].as_str().unwrap_or_default();
    Ok(text.strip_prefix("[INFO] ").unwrap_or(text).to_owned())
}

/// Writes over the line that is on the terminal.
fn print_over(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout();
    write!(stdout, "\r\x1b[K{text}")?;
    Ok(stdout.flush()?)
}
