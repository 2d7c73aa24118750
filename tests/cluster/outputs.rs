//! Results and destinations of triggers on clusters.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tripline::input::cluster::Client;
use tripline::topic::partitioner::partition_of_key;
use tripline_storage::batch::BatchProducer;

use crate::harness::{Cluster, Delivery, Letter, Process, Receiver, batch, read_all, until};
use crate::{AT_ONCE, distinct, soon_lost, trigger, values, wait_for_commits, wait_for_some_commits};

const TO_TOPICS: &str = "destinations:\n  results: { topic: out }\n  on_success: { topic: out.done }\n  on_failure: { topic: out.failed }\n";

/// One result for each record, which says where that was.
fn places(delivery: &Delivery) -> String {
    let places: Vec<Value> =
        delivery.records.iter().map(|(at, offset)| json!({ "at": at, "offset": offset })).collect();
    Value::from(places).to_string()
}

/// The values of a partition.
async fn read(client: &Arc<Client>, topic: &str, partition: u32) -> Vec<Value> {
    let letters = read_all(client, topic, partition).await;
    letters.iter().map(|letter| serde_json::from_str(&letter.value).unwrap()).collect()
}

fn offsets(results: &[Value]) -> Vec<i64> {
    results.iter().map(|result| result["offset"].as_i64().unwrap()).collect()
}

pub(crate) async fn are_in_their_topics(cluster: &Cluster) {
    let client = cluster.topic("in", 3).await;
    let large = "x".repeat(2 << 20);
    let receiver = Receiver::returning(move |delivery| match (delivery.records[0].0, delivery.records[0].1) {
        (1, 0) => (200, AT_ONCE, json!(large).to_string()),
        (2, 0) => {
            let event =
                |key: &str| json!({"specversion": "1.0", "id": "1", "source": "s", "type": "t", "partitionkey": key});
            (200, AT_ONCE, Value::from(["a", "b", "c", "d", "e"].map(event).to_vec()).to_string())
        }
        _ => (200, AT_ONCE, places(delivery)),
    });
    let process = Process::start();
    let more = format!("{TO_TOPICS}window: {{ count: 5 }}\nretry: {{ initial: 10ms, max_attempts: 2 }}\n");
    process.apply(&trigger(cluster, &receiver, &more));
    for topic in ["out", "out.done", "out.failed"] {
        assert_eq!(client.topic(topic).await.unwrap().partition_count(), 3, "{topic} is made as wide as the input");
    }
    for partition in 0..3 {
        let count = if partition == 0 { 50 } else { 5 };
        client.produce("in", partition, &batch(&values(0..count), None)).await.unwrap();
    }
    assert_eq!(wait_for_some_commits(&client, &[(0, 50), (1, 5), (2, 5)]).await, Ok(()), "{}", process.trigger("far"));
    // Whatever is committed is there. Nothing was repeated, so it is there once.
    assert_eq!(distinct(&receiver.deliveries()), 60);
    let mut keyed: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for key in ["a", "b", "c", "d", "e"] {
        keyed.entry(partition_of_key(key.as_bytes(), 3)).or_default().push(key.to_owned());
    }
    for partition in 0..3 {
        let (events, others): (Vec<Letter>, Vec<Letter>) =
            read_all(&client, "out", partition).await.into_iter().partition(|letter| !letter.key.is_empty());
        let keys: Vec<String> = events.iter().map(|letter| letter.key.clone()).collect();
        assert_eq!(keys, keyed.get(&partition).cloned().unwrap_or_default(), "as Kafka's own producers place them");
        assert!(events.iter().all(|letter| letter.headers["content-type"].starts_with("application/cloudevents+json")));
        let others: Vec<Value> = others.iter().map(|letter| serde_json::from_str(&letter.value).unwrap()).collect();
        let expected = if partition == 0 { (0..50).collect() } else { Vec::new() };
        assert_eq!(offsets(&others), expected, "in the partition of their window, in order");
    }
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for partition in 0..3 {
        done.extend(read(&client, "out.done", partition).await);
        failed.extend(read(&client, "out.failed", partition).await);
    }
    assert_eq!(done.len(), 11, "one for each window that succeeded: {done:#?}");
    assert!(done.iter().all(|record| record["requestContext"]["condition"] == "Success"), "{done:#?}");
    let [failed] = failed.as_slice() else { panic!("{failed:#?}") };
    assert_eq!(failed["requestContext"]["condition"], "RetriesExhausted", "{failed:#}");
    assert_eq!(failed["requestContext"]["approximateInvokeCount"], 2, "{failed:#}");
    assert_eq!(failed["requestPayload"], json!({"topic": "in", "partition": 1, "offsets": [0, 1, 2, 3, 4]}));
    assert_eq!(failed["responseContext"]["errorType"], "result-too-large", "{failed:#}");
}

pub(crate) async fn survive_a_kill(cluster: &Cluster) {
    const RECORDS: i64 = 300;
    const WINDOW: i64 = 5;
    let client = cluster.topic("in", 2).await;
    let receiver = Receiver::returning(|delivery| (200, Duration::from_millis(5), places(delivery)));
    let definition = soon_lost(&trigger(cluster, &receiver, &format!("{TO_TOPICS}window: {{ count: {WINDOW} }}\n")));
    let (mut first, second) = (Process::start(), Process::start());
    first.apply(&definition);
    second.apply(&definition);
    let of_first = first.wait_for_partitions("far", 1);
    second.wait_for_partitions("far", 1);
    for partition in 0..2 {
        client.produce("in", partition, &batch(&values(0..RECORDS), None)).await.unwrap();
    }
    receiver.wait_for("100 records", |deliveries| distinct(deliveries) >= 100);
    first.kill();
    assert_eq!(wait_for_commits(&client, 2, RECORDS).await, Ok(()), "{}", second.trigger("far"));
    for partition in 0..2 {
        let found = offsets(&read(&client, "out", partition).await);
        let mut next = 0;
        for offset in &found {
            assert!(*offset <= next, "partition {partition}: {offset} before {next} in {found:?}");
            next = next.max(offset + 1);
        }
        assert_eq!(next, RECORDS, "no result is lost");
        let repeated = found.len() as i64 - RECORDS;
        let allowed = if of_first.contains(&u64::from(partition)) { WINDOW } else { 0 };
        assert!(repeated <= allowed, "partition {partition} repeats {repeated} results, in flight were {allowed}");
    }
}

pub(crate) async fn are_there_once(cluster: &Cluster) {
    let client = cluster.topic("out", 1).await;
    let takes = client.takes("out").await.unwrap();
    assert_eq!(takes.partition_count, 1);
    assert!((1 << 20..2 << 20).contains(&takes.max_message_bytes), "{takes:?}");
    let mut first = batch(&values(0..3), None);
    client.append("out", 0, &mut first).await.unwrap();
    // Its answer was lost, and others went on meanwhile.
    let mut second = batch(&values(3..5), None);
    client.append("out", 0, &mut second).await.unwrap();
    client.append("out", 0, &mut first).await.unwrap();
    let mut third = batch(&values(5..6), None);
    client.append("out", 0, &mut third).await.unwrap();
    // One that follows nothing that the cluster knows of gets another producer.
    let producer = first.header().producer().unwrap();
    let mut fourth = batch(&values(6..7), None).produced_by(BatchProducer { base_sequence: 100, ..producer });
    client.append("out", 0, &mut fourth).await.unwrap();
    assert_ne!(fourth.header().producer().unwrap().id, producer.id);
    client.append("out", 0, &mut batch(&values(7..8), None)).await.unwrap();
    let letters = read_all(&client, "out", 0).await;
    assert_eq!(letters.iter().map(|letter| letter.value.as_str()).collect::<Vec<_>>(), values(0..8));
    let refused = client.append("out", 0, &mut batch(&["x".repeat(2 << 20)], None)).await.unwrap_err();
    assert!(refused.to_string().contains("takes no batch of"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_of_results_that_is_missing_holds_progress_up_until_it_is_there() {
    let cluster = Cluster::Tripline(Process::start());
    let client = cluster.topic("in", 1).await;
    let receiver = Receiver::returning(|delivery| (200, AT_ONCE, places(delivery)));
    let definition = trigger(&cluster, &receiver, "destinations: { results: { topic: out } }\nwindow: { count: 2 }\n");
    let mut process = Process::start();
    process.apply(&definition);
    client.produce("in", 0, &batch(&values(0..2), None)).await.unwrap();
    assert_eq!(wait_for_commits(&client, 1, 2).await, Ok(()));
    let Cluster::Tripline(broker) = &cluster else { unreachable!() };
    let delete = || {
        let (deleted, said) = broker.command(&["topic", "delete", "out"]);
        assert!(deleted, "{said}");
    };
    let wait_until_blocked = |process: &Process| {
        let blocked = until("the trigger to say why it waits", || {
            let described = process.trigger("far");
            if described["state"] == "Blocked" { Ok(described) } else { Err(described.to_string()) }
        });
        assert!(blocked.to_string().contains("topic out does not exist in the cluster"), "{blocked:#}");
    };
    delete();
    client.produce("in", 0, &batch(&values(2..4), None)).await.unwrap();
    wait_until_blocked(&process);
    assert_eq!(wait_for_commits(&client, 1, 2).await, Ok(()), "what is not there is not passed");
    cluster.topic("out", 1).await;
    assert_eq!(wait_for_commits(&client, 1, 4).await, Ok(()));
    assert_eq!(offsets(&read(&client, "out", 0).await), [2, 3], "once, in the new topic");
    assert_eq!(receiver.deliveries().len(), 2, "the function is not asked again for that");
    assert_eq!(process.trigger("far")["state"], "Running");
    // A stop does not wait for it: who goes on finds an attempt that was cut off.
    delete();
    client.produce("in", 0, &batch(&values(4..6), None)).await.unwrap();
    wait_until_blocked(&process);
    process.stop();
    assert_eq!(wait_for_commits(&client, 1, 4).await, Ok(()));
    let next = Process::start();
    next.apply(&definition);
    assert_eq!(wait_for_commits(&client, 1, 6).await, Ok(()), "{}", next.trigger("far"));
    assert_eq!(offsets(&read(&client, "out", 0).await), [4, 5], "its topic was made again");
    assert_eq!(receiver.deliveries().len(), 4);
}
