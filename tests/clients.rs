//! Real Kafka clients against a broker in this process. `tests/clients/setup.sh DIR` makes the environment that they
//! need; `TRIPLINE_CLIENTS_PYTHON` names its interpreter. Without it each test says that it is skipped.
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

async fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().unwrap_or_else(|error| panic!("{program} does not start: {error}"));
    let output = tokio::time::timeout(SCRIPT_TIMEOUT, child.wait_with_output()).await;
    let output = output.unwrap_or_else(|_| panic!("{arguments:?} took longer than {SCRIPT_TIMEOUT:?}")).unwrap();
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(output.status.success() && said.trim_end().ends_with("OK"), "{arguments:?}: {said}\n{complained}");
    said.into_owned()
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

/// What Kafka's own tool prints of segment files, oldest first.
async fn dump_log_segments(jars: &str, folder: &Path) -> String {
    let mut logs: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.retain(|path| std::fs::metadata(path).unwrap().len() > 0);
    logs.sort();
    let files: Vec<_> = logs.iter().map(|path| path.display().to_string()).collect();
    let classes = format!("{jars}/*");
    let arguments = ["-cp", &classes, "kafka.tools.DumpLogSegments", "--deep-iteration", "--print-data-log", "--files"];
    let output = Command::new("java").args(arguments).arg(files.join(",")).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    // It ends well also where it complains.
    assert!(!text.contains("rror") && !text.contains("isvalid: false"), "{text}");
    text
}

fn partition_folder(data: &Path) -> std::path::PathBuf {
    let topic = std::fs::read_dir(data.join("data/topics")).unwrap().next().unwrap().unwrap();
    topic.path().join("0")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafkas_own_tool_reads_our_segments() {
    let Some(jars) = beside_python("kafka") else { return };
    let server = Server::start().await;
    // Small segments, so that several files are read.
    let config = tripline::topic::spec::TopicConfig { segment_bytes: 4 << 10, ..Default::default() };
    let name = tripline::topic::name::TopicName::new("dump").unwrap();
    server.broker.create_topic(tripline::topic::spec::TopicSpec { name, partitions: 1, config }).await.unwrap();
    run("java", &["-cp", &format!("{jars}/*"), &script("java/Write.java"), &server.address.to_string()]).await;
    let data = server.stop().await;
    let folder = partition_folder(data.path());
    let text = dump_log_segments(&jars, &folder).await;
    assert!(text.matches("Log starting offset: ").count() > 2, "several segments");
    let records: Vec<_> = text.lines().filter(|line| line.starts_with("| offset: ")).collect();
    assert_eq!(records.len(), 1000);
    for (number, line) in records.iter().enumerate() {
        let key = if number % 13 == 12 { String::new() } else { format!(" key: key {}", number % 10) };
        let value = if number % 17 == 16 { String::new() } else { format!(" payload: value {number}") };
        let head = format!("| offset: {number} CreateTime: {number} ");
        let tail = format!("sequence: {} headerKeys: [number]{key}{value}", number % 200);
        assert!(line.starts_with(&head) && line.ends_with(&tail), "{line}");
    }
    let mut next = 0;
    for line in text.lines().filter(|line| line.starts_with("baseOffset: ")) {
        let words: Vec<_> = line.split(' ').collect();
        assert_eq!((words[1].parse::<i64>().unwrap(), line.contains("isvalid: true")), (next, true), "{line}");
        next = words[3].parse::<i64>().unwrap() + 1;
    }
    assert_eq!(next, 1000);
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        assert!(text.contains(&format!("compresscodec: {codec} ")), "{codec}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafkas_own_tool_prints_the_same_of_what_was_imported() {
    let Some(jars) = beside_python("kafka") else { return };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/kafka");
    for topic in ["plain", "compacted"] {
        let data = tempfile::tempdir().unwrap();
        let mut import = Command::new(env!("CARGO_BIN_EXE_tripline"));
        import.args(["import", "--topic", topic, "--from"]).arg(&golden).arg("--data").arg(data.path().join("data"));
        assert!(import.output().await.unwrap().status.success());
        let text = dump_log_segments(&jars, &partition_folder(data.path())).await;
        let records: Vec<_> = text.lines().filter(|line| line.starts_with('|')).collect();
        let expected = std::fs::read_to_string(golden.join(format!("{topic}-0.records"))).unwrap();
        assert_eq!(records, expected.lines().collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafkas_consumer_reads_what_was_imported_as_kafka_wrote_it() {
    let Some(jars) = beside_python("kafka") else { return };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/kafka");
    let data = tempfile::tempdir().unwrap();
    let topics = ["compacted", "committed", "aborted"];
    for topic in topics {
        let mut import = Command::new(env!("CARGO_BIN_EXE_tripline"));
        import.args(["import", "--topic", topic, "--from"]).arg(&golden).arg("--data").arg(data.path().join("data"));
        assert!(import.output().await.unwrap().status.success());
    }
    let server = Server::start_on(data).await;
    for topic in topics {
        let written = std::fs::read_to_string(golden.join(format!("{topic}-0.records"))).unwrap();
        let expected: Vec<String> = written
            .lines()
            .filter(|line| topic != "aborted" && !line.contains("endTxnMarker"))
            .map(|line| {
                // A consumer does not see sequences.
                let (before, behind) = line.split_once(" sequence: ").unwrap();
                format!("{before} {}", behind.split_once(' ').unwrap().1)
            })
            .collect();
        for isolation in ["read_uncommitted", "read_committed"] {
            let address = server.address.to_string();
            let classes = format!("{jars}/*");
            let said = run("java", &["-cp", &classes, &script("java/Read.java"), &address, topic, isolation]).await;
            let found: Vec<&str> = said.lines().filter(|line| line.starts_with('|')).collect();
            assert_eq!(found, expected, "{topic}, {isolation}");
        }
    }
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
