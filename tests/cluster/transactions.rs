//! Records of transactions, as Kafka's own client writes them: those that were aborted are nobody's, and open ones wait.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use crate::harness::{Cluster, Kafka, Process, Receiver, batch};
use crate::runs::done;
use crate::{AT_ONCE, by_partition, trigger, values, wait_for_commits};

/// A transactional producer.
struct Producer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Producer {
    /// Kafka's jars stand beside this Python: who has one has the other.
    fn start(address: &str) -> Self {
        let python = std::env::var("TRIPLINE_CLIENTS_PYTHON").unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/transactions.py");
        let mut command = Command::new(python);
        command.args([script, address, "in"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut producer = Self { child, input, output };
        producer.is_done();
        producer
    }

    fn is_done(&mut self) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line, "done\n");
    }

    fn order(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
        self.is_done();
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn delivered(receiver: &Receiver) -> Vec<i64> {
    by_partition(&receiver.deliveries()).remove(&0).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_decided_records_are_read() {
    let Some(kafka) = Kafka::start() else { return };
    let cluster = Cluster::Kafka(kafka);
    let client = cluster.topic("in", 1).await;
    let mut producer = Producer::start(cluster.address());
    client.produce("in", 0, &batch(&values(0..3), None)).await.unwrap();
    // 3 to 5 and a marker, 7 to 9 and a marker, then 11 and 12 of one that is open, and 13 of nobody's.
    for order in ["send 3 6", "abort", "send 7 10", "commit", "send 11 13"] {
        producer.order(order);
    }
    client.produce("in", 0, &batch(&values(13..14), None)).await.unwrap();
    let receiver = Receiver::start(|_| (200, AT_ONCE));
    let process = Process::start();
    process.apply(&trigger(&cluster, &receiver, "window: { count: 2 }"));
    assert_eq!(wait_for_commits(&client, 1, 11).await, Ok(()), "behind the last that is decided");
    assert_eq!(delivered(&receiver), [0, 1, 2, 7, 8, 9]);
    let dry_run = |arguments: &[&str]| {
        let said = done(&process, &[&["trigger", "dry-run", "far", "--json"], arguments].concat());
        serde_json::from_str::<Value>(&said).unwrap()
    };
    assert_eq!(dry_run(&[])["matched"], 6);
    // What lies behind it comes when it is decided.
    producer.order("abort");
    assert_eq!(wait_for_commits(&client, 1, 15).await, Ok(()));
    assert_eq!(delivered(&receiver), [0, 1, 2, 7, 8, 9, 13]);

    // The same holds for whoever looks at a range, also one in which nothing is.
    for (from, to, expected) in [("0", "15", 7), ("3", "8", 1), ("3", "7", 0), ("4", "5", 0), ("11", "15", 1)] {
        let looked = dry_run(&["--from", from, "--to", to]);
        assert_eq!((&looked["matched"], &looked["turned_away"]), (&expected.into(), &0.into()), "{from}: {looked:#}");
    }
    let (found, said) = process.command(&["trigger", "explain", "far", "--offset", "4"]);
    assert!(!found && said.contains("offset 4"), "{said}");
    let before = receiver.deliveries().len();
    for range in [("3", "6"), ("2", "8"), ("10", "14")] {
        done(&process, &["trigger", "replay", "far", "--from", range.0, "--to", range.1, "--wait"]);
    }
    let again = by_partition(&receiver.deliveries().split_off(before));
    assert_eq!(again, BTreeMap::from([(0, vec![2, 7, 13])]));
}
