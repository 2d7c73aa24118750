//! Real Kafka clients against a broker in this process. `tests/clients/setup.sh DIR` makes the environment that they need;
//! `TRIPLINE_CLIENTS_PYTHON` names its interpreter. Without it each test says that it is skipped.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "kafka/support.rs"]
mod support;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use support::Server;
use tokio::process::Command;

/// How long a script may take on a slow machine.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(180);

fn python() -> Option<String> {
    let python = std::env::var("TRIPLINE_CLIENTS_PYTHON").ok();
    if python.is_none() {
        println!("SKIP: TRIPLINE_CLIENTS_PYTHON is not set; tests/clients/setup.sh makes what it names");
    }
    python
}

/// Something that the set-up has put next to Python, if it has.
fn beside_python(name: &str) -> Option<String> {
    let found = Path::new(&python()?).parent()?.parent()?.join(name);
    if !found.exists() {
        println!("SKIP: there is no {}; tests/clients/setup.sh makes it where it can", found.display());
        return None;
    }
    Some(found.display().to_string())
}

fn script(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name).display().to_string()
}

async fn run(program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().unwrap_or_else(|error| panic!("{program} does not start: {error}"));
    let output = tokio::time::timeout(SCRIPT_TIMEOUT, child.wait_with_output()).await;
    let output = output.unwrap_or_else(|_| panic!("{arguments:?} took longer than {SCRIPT_TIMEOUT:?}")).unwrap();
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(output.status.success() && said.trim_end().ends_with("OK"), "{arguments:?}: {said}\n{complained}");
}

async fn run_python(name: &str) {
    let Some(python) = python() else { return };
    let server = Server::start().await;
    run(&python, &[&script(name), &server.address.to_string()]).await;
    assert_eq!(server.metrics.handler_panics_total.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confluent_kafka_produces_consumes_and_administers() {
    run_python("confluent_basic.py").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_python_produces_consumes_and_administers() {
    run_python("kafka_python_basic.py").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aiokafka_produces_and_consumes_in_a_group() {
    run_python("aiokafka_basic.py").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_of_real_members_rebalance_and_resume() {
    run_python("groups.py").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_topic_reads_to_its_end_whatever_is_missing() {
    let Some(python) = python() else { return };
    let server = Server::start().await;
    let (script, address) = (script("compacted.py"), server.address.to_string());
    run(&python, &[&script, &address, "produce"]).await;
    server.broker.topic("compacted").unwrap().partition(0).unwrap().flush().unwrap();
    server.broker.compact(&std::collections::HashMap::new());
    assert!(server.broker.compacted().0 > 300, "{:?}", server.broker.compacted());
    run(&python, &[&script, &address, "consume"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafkajs_produces_consumes_and_administers() {
    let Some(modules) = beside_python("node/node_modules") else { return };
    let server = Server::start().await;
    let address = server.address.to_string();
    run(
        "env",
        &[
            &format!("NODE_PATH={modules}"),
            "KAFKAJS_NO_PARTITIONER_WARNING=1",
            "node",
            &script("kafkajs_basic.js"),
            &address,
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn franz_go_produces_consumes_and_administers() {
    let Some(program) = beside_python("franz-go") else { return };
    let server = Server::start().await;
    run(&program, &[&server.address.to_string()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_java_client_produces_consumes_and_administers() {
    let Some(jars) = beside_python("java") else { return };
    let server = Server::start().await;
    run("java", &["-cp", &format!("{jars}/*"), &script("java/Basic.java"), &server.address.to_string()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kcat_produces_consumes_and_lists() {
    if !["/usr/bin/kcat", "/usr/local/bin/kcat"].iter().any(|path| Path::new(path).exists()) {
        println!("SKIP: kcat is not installed; tests/clients/setup.sh installs it where it can");
        return;
    }
    let server = Server::start().await;
    run("sh", &[&script("kcat.sh"), &server.address.to_string()]).await;
}

/// `cargo test --release --test clients -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, and says little in a debug build"]
async fn throughput_through_librdkafka() {
    let Some(python) = python() else { return };
    let server = Server::start().await;
    run(&python, &[&script("throughput.py"), &server.address.to_string(), &std::process::id().to_string()]).await;
}
