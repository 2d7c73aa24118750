//! Triggers that read several topics of a cluster, by name or by a pattern.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use tripline::input::cluster::Client;

use crate::harness::{Cluster, Delivery, Process, Receiver, batch, until};
use crate::{AT_ONCE, soon_lost, values};

fn trigger(cluster: &Cluster, receiver: &Receiver, input: &str) -> String {
    let (address, url) = (cluster.address(), &receiver.url);
    format!(
        "trigger: far\n\
         input: {{ {input}, cluster: {{ bootstrap_servers: \"{address}\", session_timeout: 30s }} }}\n\
         window: {{ count: 5 }}\n\
         function: {{ http: {{ url: \"{url}\" }} }}\n"
    )
}

/// Offsets by topic and partition, in the order of delivery.
fn by_place(deliveries: &[Delivery]) -> BTreeMap<(String, u32), Vec<i64>> {
    let mut offsets: BTreeMap<_, Vec<i64>> = BTreeMap::new();
    for delivery in deliveries {
        for (partition, offset) in &delivery.records {
            offsets.entry((delivery.topic.clone(), *partition)).or_default().push(*offset);
        }
    }
    offsets
}

/// How many records of a topic came at least once.
fn came(deliveries: &[Delivery], topic: &str) -> usize {
    let of_topic = deliveries.iter().filter(|delivery| delivery.topic == topic);
    of_topic.flat_map(|delivery| delivery.records.clone()).collect::<BTreeSet<_>>().len()
}

/// Waits until a process has lanes in these topics, and no others.
fn wait_for_topics(process: &Process, topics: &[&str]) {
    until(&format!("lanes in {topics:?}"), || {
        let lanes = process.lanes("far");
        let found: BTreeSet<&str> = lanes.iter().map(|(topic, _)| topic.as_str()).collect();
        if found == topics.iter().copied().collect() { Ok(()) } else { Err(process.trigger("far").to_string()) }
    });
}

async fn produce(client: &Client, topic: &str, partitions: u32, range: std::ops::Range<i64>) {
    for partition in 0..partitions {
        client.produce(topic, partition, &batch(&values(range.clone()), None)).await.unwrap();
    }
}

pub(crate) async fn are_shared(cluster: &Cluster) {
    let receiver = Receiver::start(|_| (200, Duration::from_millis(5)));
    let client = cluster.topic("a", 3).await;
    cluster.topic("b", 3).await;
    let definition = soon_lost(&trigger(cluster, &receiver, "topics: [a, b], start: earliest"));
    let (mut first, second) = (Process::start(), Process::start());
    first.apply(&definition);
    first.wait_for_partitions("far", 6);
    produce(&client, "a", 3, 0..40).await;
    produce(&client, "b", 3, 0..40).await;
    second.apply(&definition);
    second.wait_for_partitions("far", 3);
    first.wait_for_partitions("far", 3);
    let (of_first, of_second) = (first.lanes("far"), second.lanes("far"));
    let both: BTreeSet<_> = of_first.iter().chain(&of_second).collect();
    assert_eq!(both.len(), 6, "{of_first:?} {of_second:?}");
    assert!(["a", "b"].iter().all(|topic| both.iter().filter(|(of, _)| of == topic).count() == 3), "{both:?}");
    receiver.wait_for("240 records", |deliveries| came(deliveries, "a") + came(deliveries, "b") == 240);
    let deliveries = receiver.deliveries();
    assert_eq!(deliveries.iter().map(|one| one.records.len()).sum::<usize>(), 240, "a handover repeats nothing");
    produce(&client, "a", 3, 40..200).await;
    produce(&client, "b", 3, 40..200).await;
    receiver.wait_for("400 records", |deliveries| came(deliveries, "a") + came(deliveries, "b") >= 400);
    first.kill();
    let deliveries =
        receiver.wait_for("all records", |deliveries| came(deliveries, "a") + came(deliveries, "b") == 1200);
    assert_eq!(second.wait_for_partitions("far", 6).len(), 6);
    for ((topic, partition), offsets) in by_place(&deliveries) {
        let repeated = offsets.len() - 200;
        let was_first = of_first.contains(&(topic.clone(), u64::from(partition)));
        assert!(repeated <= if was_first { 5 } else { 0 }, "{topic}/{partition} repeats {repeated}: {offsets:?}");
        let mut next = 0;
        for offset in offsets {
            assert!(offset <= next, "{topic}/{partition}: {offset} before {next}");
            next = next.max(offset + 1);
        }
    }
    for topic in ["a", "b"] {
        until("commits of everything", || {
            let described = second.trigger("far");
            let lanes = described["lanes"].as_array().unwrap();
            let done = lanes.iter().filter(|lane| lane["topic"] == topic && lane["committed"] == 200).count();
            if done == 3 { Ok(()) } else { Err(described.to_string()) }
        });
        let committed = client.committed("trigger.far", topic, &[0, 1, 2]).await.unwrap();
        assert_eq!(committed.len(), 3, "{committed:?}");
    }
}

pub(crate) async fn are_joined_later(cluster: &Cluster) {
    let receiver = Receiver::start(|_| (200, AT_ONCE));
    let client = cluster.topic("in.a", 2).await;
    cluster.topic("other", 1).await;
    produce(&client, "in.a", 2, 0..3).await;
    let process = Process::start();
    process.apply(&trigger(cluster, &receiver, "pattern: \"in.*\", start: latest"));
    process.wait_for_partitions("far", 2);
    produce(&client, "in.a", 2, 3..6).await;
    // Nobody who reads is told of it: the member looks by itself.
    cluster.topic("in.b", 1).await;
    produce(&client, "in.b", 1, 0..7).await;
    produce(&client, "other", 1, 0..3).await;
    wait_for_topics(&process, &["in.a", "in.b"]);
    let deliveries = receiver.wait_for("the topic that came later", |deliveries| came(deliveries, "in.b") == 7);
    let found = by_place(&deliveries);
    assert_eq!(found[&("in.b".to_owned(), 0)], (0..7).collect::<Vec<_>>(), "from its first record");
    for partition in 0..2 {
        assert_eq!(found[&("in.a".to_owned(), partition)], [3, 4, 5], "this one from where it was");
    }
    assert_eq!(found.len(), 3, "{found:?}");
}

pub(crate) async fn need_not_be_there(cluster: &Cluster) {
    let receiver = Receiver::start(|_| (200, AT_ONCE));
    let client = cluster.topic("other", 1).await;
    let process = Process::start();
    let (taken, said) = process.try_apply(&trigger(cluster, &receiver, "pattern: \"in.*\", start: latest"));
    assert!(taken && said.contains("no topic matches in.* yet"), "{said}");
    cluster.topic("in.a", 1).await;
    produce(&client, "in.a", 1, 0..4).await;
    let deliveries = receiver.wait_for("the topic that came later", |deliveries| came(deliveries, "in.a") == 4);
    assert_eq!(by_place(&deliveries), BTreeMap::from([(("in.a".to_owned(), 0), vec![0, 1, 2, 3])]));
}

pub(crate) async fn are_selected_anew(cluster: &Cluster) {
    let receiver = Receiver::start(|_| (200, AT_ONCE));
    let client = cluster.topic("a", 2).await;
    for topic in ["b", "c"] {
        cluster.topic(topic, 1).await;
        produce(&client, topic, 1, 0..3).await;
    }
    let process = Process::start();
    let select = |input: &str| process.try_apply(&trigger(cluster, &receiver, input));
    assert!(select("topic: a, start: latest").0);
    process.wait_for_partitions("far", 2);
    produce(&client, "a", 2, 0..3).await;
    receiver.wait_for("6 records", |deliveries| came(deliveries, "a") == 6);
    let (taken, said) = select("topics: [b, c], start: latest");
    assert!(!taken && said.contains("b, c"), "at least one topic stays: {said}");
    let (taken, said) = select("topics: [a, missing], start: latest");
    assert!(!taken && said.contains("topic missing does not exist in the cluster"), "{said}");
    assert!(select("topics: [a, b], start: latest").0);
    // From this moment on: also what comes before the group has shared it.
    produce(&client, "b", 1, 3..6).await;
    produce(&client, "a", 2, 3..6).await;
    receiver.wait_for("15 records", |deliveries| came(deliveries, "a") == 12 && came(deliveries, "b") == 3);
    wait_for_topics(&process, &["a", "b"]);
    assert!(select("pattern: \"b*\"").0);
    wait_for_topics(&process, &["b"]);
    produce(&client, "a", 2, 6..9).await;
    produce(&client, "b", 1, 6..9).await;
    let deliveries = receiver.wait_for("6 records of b", |deliveries| came(deliveries, "b") == 6);
    let found = by_place(&deliveries);
    assert_eq!(found[&("b".to_owned(), 0)], [3, 4, 5, 6, 7, 8], "what was there before is not its business");
    for partition in 0..2 {
        assert_eq!(found[&("a".to_owned(), partition)], (0..6).collect::<Vec<_>>(), "each once");
    }
    // What was read before goes on where it was.
    assert!(select("topics: [b, a], start: latest").0);
    receiver.wait_for("the rest of a", |deliveries| came(deliveries, "a") == 18);
    assert_eq!(came(&receiver.deliveries(), "c"), 0);
    until("24 records, as it has been the same trigger all the time", || {
        let described = process.trigger("far");
        if described["counts"]["delivered"] == 24 { Ok(()) } else { Err(described.to_string()) }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_deleted_holds_up_no_other_and_is_read_from_its_first_record_when_it_is_made_again() {
    let cluster = Cluster::Tripline(Process::start());
    let receiver = Receiver::start(|_| (200, AT_ONCE));
    let client = cluster.topic("a", 1).await;
    cluster.topic("b", 1).await;
    let process = Process::start();
    process.apply(&trigger(&cluster, &receiver, "topics: [a, b], start: latest"));
    process.wait_for_partitions("far", 2);
    produce(&client, "a", 1, 0..3).await;
    produce(&client, "b", 1, 0..3).await;
    receiver.wait_for("6 records", |deliveries| came(deliveries, "a") + came(deliveries, "b") == 6);
    let Cluster::Tripline(broker) = &cluster else { unreachable!() };
    let (deleted, said) = broker.command(&["topic", "delete", "b"]);
    assert!(deleted, "{said}");
    wait_for_topics(&process, &["a"]);
    let described = process.trigger("far").to_string();
    assert!(described.contains("topic b does not exist in the cluster"), "{described}");
    produce(&client, "a", 1, 3..6).await;
    receiver.wait_for("3 more of a", |deliveries| came(deliveries, "a") == 6);
    cluster.topic("b", 1).await;
    produce(&client, "b", 1, 0..5).await;
    wait_for_topics(&process, &["a", "b"]);
    let deliveries = receiver.wait_for("5 of the new topic", |deliveries| came(deliveries, "b") == 5);
    assert_eq!(by_place(&deliveries)[&("b".to_owned(), 0)], [0, 1, 2, 0, 1, 2, 3, 4], "it is another topic");
    assert_eq!(process.trigger("far")["state"], "Running");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_made_again_before_anybody_looks_is_read_from_its_first_record() {
    let cluster = Cluster::Tripline(Process::start());
    let (in_flight, is_first) = (Arc::new(Barrier::new(2)), AtomicBool::new(true));
    let receiver = Receiver::start({
        let in_flight = Arc::clone(&in_flight);
        move |_| {
            if is_first.swap(false, Ordering::Relaxed) {
                in_flight.wait();
            }
            (200, AT_ONCE)
        }
    });
    let client = cluster.topic("b", 1).await;
    let process = Process::start();
    process.apply(&trigger(&cluster, &receiver, "topic: b, start: latest"));
    process.wait_for_partitions("far", 1);
    produce(&client, "b", 1, 0..5).await;
    let offsets = |deliveries: &[Delivery]| by_place(deliveries).remove(&("b".to_owned(), 0)).unwrap_or_default();
    receiver.wait_for("5 records", |deliveries| offsets(deliveries).len() == 5);
    let Cluster::Tripline(broker) = &cluster else { unreachable!() };
    let (deleted, said) = broker.command(&["topic", "delete", "b"]);
    assert!(deleted, "{said}");
    cluster.topic("b", 1).await;
    produce(&client, "b", 1, 0..3).await;
    // Its progress is committed for whatever has the name now.
    in_flight.wait();
    until("progress in the topic before", || {
        let described = process.trigger("far");
        if described["lanes"][0]["committed"] == 5 { Ok(()) } else { Err(described.to_string()) }
    });
    let committed = client.committed("trigger.far", "b", &[0]).await.unwrap();
    assert_eq!(committed[&0].offset.get(), 5, "{committed:?}");
    let deliveries = receiver.wait_for("3 of the new topic", |deliveries| offsets(deliveries).len() >= 8);
    assert_eq!(offsets(&deliveries), [0, 1, 2, 3, 4, 0, 1, 2], "each once: it is another topic");
}
