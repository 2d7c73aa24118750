//! Runs over topics of a cluster: ranges that are replayed, dead letters that are put back or let go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use kafka_wire::DeleteRecordsRequest;
use kafka_wire::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use serde_json::Value;
use tripline::input::cluster::Client;

use crate::harness::{Cluster, Delivery, Process, Receiver, batch, read_all, until};
use crate::wire::{self, message};
use crate::{AT_ONCE, by_partition, distinct, trigger, values, wait_for_commits};

const LETTERS: &str = "dead_letter: { topic: far.dlq }\nwindow: { count: 5 }\n";

pub(crate) fn done(process: &Process, arguments: &[&str]) -> String {
    let (done, said) = process.command(arguments);
    assert!(done, "{arguments:?}: {said}");
    said
}

fn refused(process: &Process, arguments: &[&str]) -> String {
    let (done, said) = process.command(arguments);
    assert!(!done, "{arguments:?}: {said}");
    said
}

fn json(process: &Process, arguments: &[&str]) -> Value {
    serde_json::from_str(&done(process, &[arguments, &["--json"]].concat())).unwrap()
}

/// The only run of the trigger.
fn run(process: &Process) -> Value {
    json(process, &["trigger", "runs", "far"])["runs"][0].clone()
}

fn open_letters(process: &Process) -> usize {
    let listed = json(process, &["dlq", "list", "far"]);
    assert_eq!(listed["unknown"], Value::Array(Vec::new()), "{listed:#}");
    listed["dead_letters"].as_array().unwrap().len()
}

fn places(deliveries: &[Delivery]) -> BTreeSet<(u32, i64)> {
    deliveries.iter().flat_map(|delivery| delivery.records.clone()).collect()
}

/// A topic `in` with so many records in each partition.
async fn filled(cluster: &Cluster, partitions: u32, records: i64) -> Arc<Client> {
    let client = cluster.topic("in", partitions).await;
    for partition in 0..partitions {
        client.produce("in", partition, &batch(&values(0..records), None)).await.unwrap();
    }
    client
}

/// A range goes through the function again; the group stands where it stood, and goes on beside it.
pub(crate) async fn replay(cluster: &Cluster) {
    let client = filled(cluster, 2, 10).await;
    let receiver = Receiver::start(|_| (200, AT_ONCE));
    let process = Process::start();
    process.apply(&trigger(cluster, &receiver, ""));
    receiver.wait_for("20 records", |deliveries| distinct(deliveries) == 20);
    assert_eq!(wait_for_commits(&client, 2, 10).await, Ok(()));
    let before = receiver.deliveries().len();
    done(&process, &["trigger", "replay", "far", "--from", "3", "--to", "7", "--wait"]);
    let again = receiver.deliveries().split_off(before);
    let expected: Vec<i64> = (3..7).collect();
    assert_eq!(by_partition(&again), BTreeMap::from([(0, expected.clone()), (1, expected)]));
    let replay = run(&process);
    assert_eq!((&replay["state"], &replay["counts"]["delivered"]), (&"Done".into(), &8.into()), "{replay:#}");
    assert_eq!(wait_for_commits(&client, 2, 10).await, Ok(()));
    for partition in 0..2 {
        client.produce("in", partition, &batch(&values(10..12), None)).await.unwrap();
    }
    receiver.wait_for("what came since", |deliveries| distinct(deliveries) == 24);
    assert_eq!(wait_for_commits(&client, 2, 12).await, Ok(()));
    assert!(refused(&process, &["trigger", "replay", "far", "--from", "99"]).contains("has no record there"));
    assert!(refused(&process, &["trigger", "replay", "far", "--partition", "2"]).contains("partitions 0 to 1"));
}

/// A clean end repeats nothing, and counts go on.
pub(crate) async fn survive_a_stop(cluster: &Cluster) {
    let client = filled(cluster, 2, 50).await;
    // So slow that it is not done before it is stopped, and within what a stop gives to what is in flight.
    let is_slow = Arc::new(AtomicBool::new(false));
    let slow = Arc::clone(&is_slow);
    let receiver =
        Receiver::start(move |_| (200, if slow.load(Ordering::Relaxed) { Duration::from_secs(1) } else { AT_ONCE }));
    let mut process = Process::with_settings("");
    process.apply(&trigger(cluster, &receiver, "window: { count: 5 }"));
    assert_eq!(wait_for_commits(&client, 2, 50).await, Ok(()));
    let before = receiver.deliveries().len();
    is_slow.store(true, Ordering::Relaxed);
    done(&process, &["trigger", "replay", "far"]);
    let begun = receiver.wait_for("some windows", |deliveries| deliveries.len() >= before + 4);
    assert!(begun.len() < before + 20, "it was to be stopped before");
    is_slow.store(false, Ordering::Relaxed);
    process.stop();
    process.restart_with("");
    let replay = wait_until_done(&process);
    assert_eq!(replay["counts"]["delivered"], 100, "{replay:#}");
    let each: Vec<i64> = (0..50).collect();
    assert_eq!(by_partition(&receiver.deliveries()[before..]), BTreeMap::from([(0, each.clone()), (1, each)]));
}

/// Letters are listed, shown, put back and let go where they are.
pub(crate) async fn letters(cluster: &Cluster) {
    let client = filled(cluster, 2, 10).await;
    let refuses = Arc::new(AtomicBool::new(true));
    let answer = Arc::clone(&refuses);
    let receiver = Receiver::start(move |_| (if answer.load(Ordering::Relaxed) { 400 } else { 200 }, AT_ONCE));
    let process = Process::start();
    // Others' letters here have nothing to do with it.
    process.apply(&format!("topic: far.dlq\n---\n{}", trigger(cluster, &receiver, LETTERS)));
    assert_eq!(wait_for_commits(&client, 2, 10).await, Ok(()));
    assert_eq!(open_letters(&process), 20);
    assert!(refused(&process, &["dlq", "show", "far.dlq/1/3"]).contains("say whose letter it is"));
    let letter = json(&process, &["dlq", "show", "far.dlq/1/3", "--trigger", "far"]);
    assert_eq!(letter["reason"]["partition"], "1", "{letter:#}");
    let preview = json(&process, &["dlq", "redrive", "far", "--dry-run"]);
    assert_eq!((&preview["counts"]["taken"], &preview["complete"]), (&20.into(), &true.into()), "{preview:#}");
    refuses.store(false, Ordering::Relaxed);

    let before = receiver.deliveries().len();
    done(&process, &["dlq", "redrive", "far", "--partition", "0", "--max", "4", "--wait"]);
    let again = receiver.deliveries().split_off(before);
    assert_eq!(by_partition(&again), BTreeMap::from([(0, vec![0, 1, 2, 3])]), "as the records that they were");
    assert_eq!(open_letters(&process), 16);
    let said = done(&process, &["dlq", "discard", "far", "--partition", "1", "--to", "5"]);
    assert!(said.contains("5 letter(s)") && said.contains("kept in the topic"), "{said}");
    assert_eq!(open_letters(&process), 11);
    let preview = json(&process, &["dlq", "redrive", "far", "--dry-run"]);
    let counts = ["taken", "redriven", "discarded"].map(|name| preview["counts"][name].as_u64().unwrap());
    assert_eq!(counts, [11, 4, 5], "{preview:#}");
    let before = receiver.deliveries().len();
    done(&process, &["dlq", "redrive", "far", "--wait"]);
    let again = places(&receiver.deliveries().split_off(before));
    let expected: BTreeSet<(u32, i64)> =
        (4..10).map(|offset| (0, offset)).chain((5..10).map(|offset| (1, offset))).collect();
    assert_eq!(again, expected);
    assert_eq!(open_letters(&process), 0);
    let all = json(&process, &["dlq", "list", "far", "--all"]);
    assert_eq!(all["dead_letters"].as_array().unwrap().len(), 20);
    assert_eq!(wait_for_commits(&client, 2, 10).await, Ok(()), "the live lanes stand where they stood");
}

/// One letter: a topic of this name here would be looked at first.
pub(crate) async fn one_letter(cluster: &Cluster) {
    let client = filled(cluster, 1, 2).await;
    let receiver = Receiver::start(|_| (400, AT_ONCE));
    let process = Process::start();
    process.apply(&trigger(cluster, &receiver, LETTERS));
    assert_eq!(wait_for_commits(&client, 1, 2).await, Ok(()));
    let letter = json(&process, &["dlq", "show", "far.dlq/0/1"]);
    assert_eq!((&letter["reason"]["offset"], &letter["record"]["value"]["n"]), (&"1".into(), &1.into()), "{letter:#}");
    for place in ["far.dlq/0/2", "far.dlq/1/0"] {
        assert!(refused(&process, &["dlq", "show", place]).contains("does not exist"), "{place}");
    }
    assert!(refused(&process, &["dlq", "show", "other.dlq/0/0"]).contains("other.dlq"));
}

/// Records of a window that the cluster's retention takes between two tries of its letters move none of the others.
pub(crate) async fn no_letter_is_left_out(cluster: &Cluster) {
    let client = cluster.topic("in", 1).await;
    // As large as it may be: as a letter it is too large.
    let value = |n: u32, bytes: usize| format!("{{\"n\":{n},\"more\":\"{}\"}}", "x".repeat(bytes));
    let values = [value(0, 100), value(1, (1 << 20) - 200), value(2, 100)];
    for value in &values {
        client.produce("in", 0, &batch(std::slice::from_ref(value), None)).await.unwrap();
    }
    let receiver = Receiver::start(|_| (400, AT_ONCE));
    let process = Process::start();
    process.apply(&trigger(
        cluster,
        &receiver,
        "dead_letter: { topic: far.dlq }\nwindow: { count: 3, interval: 10s, bytes: 4MiB }",
    ));
    until("a letter that is too large", || {
        let shown = process.trigger("far").to_string();
        if shown.contains("dead letters: ") { Ok(()) } else { Err(shown) }
    });
    assert_eq!(receiver.deliveries()[0].records.len(), 3, "one window");
    let delete = message!(DeleteRecordsRequest {
        topics: vec![message!(DeleteRecordsTopic {
            name: "in".into(),
            partitions: vec![message!(DeleteRecordsPartition { offset: 2 })],
        })],
        timeout_ms: 10_000,
    });
    let mut raw = wire::Client::connect(cluster.address().parse().unwrap()).await;
    assert_eq!(raw.call(2, &delete).await.topics[0].partitions[0].error_code, 0);
    assert_eq!(wait_for_commits(&client, 1, 3).await, Ok(()));
    let letters = read_all(&client, "far.dlq", 0).await;
    let found: Vec<&str> = letters.iter().map(|letter| letter.value.as_str()).collect();
    assert_eq!(found, [values[0].as_str(), values[2].as_str()]);
}

/// A run goes on where it was when its process is killed; what it gives up becomes a letter once.
pub(crate) async fn survive_a_kill(cluster: &Cluster) {
    const RECORDS: i64 = 100;
    let client = filled(cluster, 1, RECORDS).await;
    let refuses = Arc::new(AtomicBool::new(false));
    let held = Arc::new(AtomicI64::new(i64::MAX));
    let (answer, holds) = (Arc::clone(&refuses), Arc::clone(&held));
    // From the offset that is held on it answers nobody, until another one is.
    let receiver = Receiver::start(move |delivery| {
        let is_held = delivery.records.iter().any(|(_, offset)| *offset >= holds.load(Ordering::Relaxed));
        match answer.load(Ordering::Relaxed) {
            _ if is_held => (500, Duration::from_secs(600)),
            true => (400, AT_ONCE),
            false => (200, AT_ONCE),
        }
    });
    let mut process = Process::with_settings("");
    process.apply(&trigger(cluster, &receiver, LETTERS));
    assert_eq!(wait_for_commits(&client, 1, RECORDS).await, Ok(()));
    refuses.store(true, Ordering::Relaxed);
    let mut before = receiver.deliveries().len();
    held.store(25, Ordering::Relaxed);
    done(&process, &["trigger", "replay", "far"]);
    for next in [50, 75, i64::MAX] {
        let at = held.load(Ordering::Relaxed);
        let is_there = |delivery: &Delivery| delivery.records.iter().any(|(_, offset)| *offset >= at);
        receiver.wait_for("what is held", |deliveries| deliveries[before..].iter().any(is_there));
        process.kill();
        held.store(next, Ordering::Relaxed);
        process.restart_with("");
    }
    wait_until_done(&process);
    let replayed = receiver.deliveries().split_off(before);
    assert_eq!(distinct(&replayed), RECORDS as usize);
    let sum: usize = replayed.iter().map(|delivery| delivery.records.len()).sum();
    assert_eq!(sum, RECORDS as usize + 3 * 5, "each kill repeats the window in flight");
    let letters = read_all(&client, "far.dlq", 0).await;
    let values: Vec<&str> = letters.iter().map(|letter| letter.value.as_str()).collect();
    assert_eq!(values, crate::values(0..RECORDS), "each once, and in order");
    let told = |letter: &crate::harness::Letter| letter.headers["tripline-dlq-error-code"].clone();
    assert!(letters.iter().all(|letter| told(letter) == "400"), "what the last attempt said is kept");

    // And back again, also over a kill.
    refuses.store(false, Ordering::Relaxed);
    before = receiver.deliveries().len();
    held.store(10, Ordering::Relaxed);
    done(&process, &["dlq", "redrive", "far"]);
    let is_there = |delivery: &Delivery| delivery.records.contains(&(0, 10));
    receiver.wait_for("what is held", |deliveries| deliveries[before..].iter().any(is_there));
    process.kill();
    held.store(i64::MAX, Ordering::Relaxed);
    process.restart_with("");
    until("the end of the redrive", || {
        let runs = json(&process, &["trigger", "runs", "far"]);
        let redrive = runs["runs"].as_array().unwrap().iter().find(|run| run["kind"] == "redrive").unwrap();
        if redrive["state"] == "Done" { Ok(()) } else { Err(redrive.to_string()) }
    });
    assert_eq!(distinct(&receiver.deliveries()[before..]), RECORDS as usize);
    assert_eq!(open_letters(&process), 0);
}

/// What a cluster that is gone has is not known, and what this process keeps can be steered all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_gone_holds_up_no_list_and_no_cancel() {
    let mut cluster = Cluster::Tripline(Process::start());
    let client = filled(&cluster, 1, 10).await;
    let receiver = Receiver::start(|_| (200, AT_ONCE));
    let mut process = Process::with_settings("");
    process.apply(&trigger(&cluster, &receiver, LETTERS));
    assert_eq!(wait_for_commits(&client, 1, 10).await, Ok(()));
    done(&process, &["trigger", "replay", "far", "--rate", "1/s"]);
    done(&process, &["trigger", "cancel", "far"]);
    let Cluster::Tripline(broker) = &mut cluster else { unreachable!() };
    broker.kill();
    done(&process, &["trigger", "resume", "far", run(&process)["run"].as_str().unwrap()]);
    let reason = wait_until_blocked(&process);
    assert!(reason.contains("Connection refused"), "{reason}");
    // The same after a start: it is held up by nothing.
    process.kill();
    process.restart_with("");
    wait_until_blocked(&process);
    let listed = json(&process, &["dlq", "list"]);
    assert_eq!(listed["unknown"][0]["trigger"], "far", "{listed:#}");
    let told = done(&process, &["dlq", "list"]);
    assert!(told.contains("not known of trigger far: trigger.input.cluster: "), "{told}");
    assert!(refused(&process, &["dlq", "list", "far"]).contains("trigger.input.cluster"));
    done(&process, &["trigger", "cancel", "far"]);
    assert_eq!(run(&process)["state"], "Cancelled");
    process.stop();
}

/// Offsets of a topic say nothing of another one of its name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_does_not_go_on_in_a_topic_that_was_made_again() {
    let cluster = Cluster::Tripline(Process::start());
    let client = cluster.topic("in", 1).await;
    // So much that most of it is still to be fetched when the first of it is delivered.
    let text = |number: i64| format!("{{\"n\":{number},\"text\":\"{}\"}}", "x".repeat(10_000));
    for begin in (0..400).step_by(20) {
        let values: Vec<String> = (begin..begin + 20).map(text).collect();
        client.produce("in", 0, &batch(&values, None)).await.unwrap();
    }
    let receiver = Receiver::start(|_| (200, AT_ONCE));
    let process = Process::start();
    process.apply(&trigger(&cluster, &receiver, "window: { count: 1 }"));
    assert_eq!(wait_for_commits(&client, 1, 400).await, Ok(()));
    let before = receiver.deliveries().len();
    done(&process, &["trigger", "replay", "far", "--rate", "10/s"]);
    receiver.wait_for("its begin", |deliveries| deliveries.len() > before);
    let Cluster::Tripline(broker) = &cluster else { unreachable!() };
    done(broker, &["topic", "delete", "in"]);
    cluster.topic("in", 1).await;
    client.produce("in", 0, &batch(&values(0..500), None)).await.unwrap();
    until("the reason", || match run(&process) {
        replay if replay["reason"].as_str().unwrap().contains("topic in of the cluster was made again") => Ok(()),
        replay => Err(replay.to_string()),
    });
    // Nor does it when it is opened anew.
    done(&process, &["trigger", "cancel", "far"]);
    done(&process, &["trigger", "resume", "far", run(&process)["run"].as_str().unwrap()]);
    let reason = wait_until_blocked(&process);
    assert!(reason.contains("topic in is not the one that the run was made for"), "{reason}");
    assert_eq!(run(&process)["ends_when"], "someone cancels the run");
}

/// A trigger that moves to another cluster leaves its runs behind; they go on when it comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_wait_for_a_trigger_that_moves_to_another_cluster() {
    let [home, other] = [(); 2].map(|()| Cluster::Tripline(Process::start()));
    let at_home = filled(&home, 1, 40).await;
    let elsewhere = filled(&other, 1, 60).await;
    let is_held = Arc::new(AtomicBool::new(false));
    let holds = Arc::clone(&is_held);
    let receiver = Receiver::start(move |delivery| match delivery.records[..] {
        [(0, 20)] if holds.load(Ordering::Relaxed) => (200, Duration::from_secs(600)),
        _ => (200, AT_ONCE),
    });
    let process = Process::start();
    let definition = |cluster: &Cluster| trigger(cluster, &receiver, "window: { count: 1 }");
    process.apply(&definition(&home));
    assert_eq!(wait_for_commits(&at_home, 1, 40).await, Ok(()));
    let before = receiver.deliveries().len();
    is_held.store(true, Ordering::Relaxed);
    done(&process, &["trigger", "replay", "far", "--from", "5"]);
    receiver.wait_for("what is held", |deliveries| deliveries[before..].iter().any(|one| one.records == [(0, 20)]));
    is_held.store(false, Ordering::Relaxed);

    process.apply(&definition(&other));
    // Nothing of the other one goes through the run, which says what it waits for.
    assert_eq!(wait_for_commits(&elsewhere, 1, 60).await, Ok(()));
    let reason = wait_until_blocked(&process);
    assert!(reason.contains("topic in is not the one that the run was made for"), "{reason}");
    assert_eq!(run(&process)["counts"]["delivered"], 15);
    let moved = receiver.deliveries().split_off(before);
    assert_eq!(moved.len(), 15 + 1 + 60, "what was held is cut off");

    process.apply(&definition(&home));
    let replay = wait_until_done(&process);
    assert_eq!(replay["counts"]["delivered"], 35, "{replay:#}");
    let rest = receiver.deliveries().split_off(before + moved.len());
    assert_eq!(by_partition(&rest), BTreeMap::from([(0, (20..40).collect::<Vec<_>>())]), "from what was cut off");
}

/// Waits until the only run can do nothing; answers why.
fn wait_until_blocked(process: &Process) -> String {
    until("a reason", || match run(process) {
        replay if replay["state"] == "Blocked" => Ok(replay["reason"].as_str().unwrap().to_owned()),
        replay => Err(replay.to_string()),
    })
}

/// Waits until the only run has ended; answers what it was.
fn wait_until_done(process: &Process) -> Value {
    until("the end of the run", || match run(process) {
        replay if replay["state"] == "Done" => Ok(replay),
        replay => Err(replay.to_string()),
    })
}
