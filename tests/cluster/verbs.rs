//! What one does with a trigger beside running it: a dry run, an explanation, a reset. The records are a cluster's.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Cluster, Delivery, Process, Receiver, batch, until};
use crate::{distinct, trigger, values};

const FILTER: &str = "filter: { data: { n: [ { numeric: [ '<', 5 ] } ] } }";

fn json(process: &Process, arguments: &[&str]) -> Value {
    let (done, said) = process.command(&[arguments, &["--json"]].concat());
    assert!(done, "{arguments:?}: {said}");
    serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"))
}

fn refused(process: &Process, arguments: &[&str]) -> String {
    let (done, said) = process.command(arguments);
    assert!(!done, "{arguments:?}: {said}");
    said
}

/// What a filter would do with records is said of those of the cluster; nothing is invoked and nothing committed.
pub(crate) async fn look(cluster: &Cluster) {
    let client = cluster.topic("in", 2).await;
    for partition in 0..2 {
        client.produce("in", partition, &batch(&values(0..10), None)).await.unwrap();
    }
    let receiver = Receiver::start(|_| (200, Duration::ZERO));
    let process = Process::start();
    // A topic of the same name here has nothing to do with it.
    process.apply(&format!("topic: in\n---\n{}", trigger(cluster, &receiver, FILTER)));
    process.command(&["trigger", "pause", "far"]);
    let whole = json(&process, &["trigger", "dry-run", "far"]);
    assert_eq!((&whole["matched"], &whole["turned_away"]), (&10.into(), &10.into()), "{whole:#}");
    let part = json(&process, &["trigger", "dry-run", "far", "--partition", "1", "--from", "3", "--to", "7"]);
    assert_eq!((&part["matched"], &part["turned_away"]), (&2.into(), &2.into()), "{part:#}");
    assert!(refused(&process, &["trigger", "dry-run", "far", "--partition", "2"]).contains("partitions 0 to 1"));
    assert!(refused(&process, &["trigger", "dry-run", "far", "--from", "99"]).contains("has no record there"));
    assert!(refused(&process, &["trigger", "dry-run", "far", "--topic", "other"]).contains("reads in"));

    let taken = json(&process, &["trigger", "explain", "far", "--partition", "1", "--offset", "4"]);
    assert_eq!((&taken["matches"], &taken["event"]["data"]["n"]), (&true.into(), &4.into()), "{taken:#}");
    let turned_away = json(&process, &["trigger", "explain", "far", "--offset", "7"]);
    assert_eq!(turned_away["matches"], false, "{turned_away:#}");
    assert!(refused(&process, &["trigger", "explain", "far", "--offset", "10"]).contains("10"));
}

/// A reset needs the group for itself, and holds for whoever runs the trigger next.
pub(crate) async fn reset(cluster: &Cluster) {
    let client = cluster.topic("in", 2).await;
    for partition in 0..2 {
        client.produce("in", partition, &batch(&values(0..10), None)).await.unwrap();
    }
    let receiver = Receiver::start(|_| (200, Duration::ZERO));
    let (mut process, mut other) = (Process::start(), Process::start());
    process.apply(&trigger(cluster, &receiver, ""));
    receiver.wait_for("20 records", |deliveries| distinct(deliveries) == 20);
    let to = |to: &str| process.command(&["trigger", "reset", "far", "--to", to]);
    let (done, said) = to("earliest");
    assert!(!done && said.contains("is not paused"), "{said}");

    other.apply(&trigger(cluster, &receiver, ""));
    other.wait_for_partitions("far", 1);
    process.command(&["trigger", "pause", "far"]);
    let (done, said) = to("earliest");
    assert!(!done && said.contains("group trigger.far has other members"), "{said}");
    assert_eq!(process.partitions("far").len(), 1, "nobody has left for it");
    other.stop();
    process.wait_for_partitions("far", 2);

    let before = receiver.deliveries().len();
    assert!(refused(&process, &["trigger", "reset", "far", "--to", "11"]).contains("goes beyond 10"));
    let partition = ["trigger", "reset", "far", "--partition", "1", "--to"];
    assert!(refused(&process, &[&partition[..], &["11"]].concat()).contains("has offsets 0 to 10"));
    let (done, said) = process.command(&[&partition[..], &["6"]].concat());
    assert!(done, "{said}");
    process.wait_for_partitions("far", 2);
    assert_eq!(receiver.deliveries().len(), before, "it is paused still");
    process.command(&["trigger", "resume", "far"]);
    let again = |deliveries: &[Delivery]| -> BTreeSet<(u32, i64)> {
        deliveries[before..].iter().flat_map(|delivery| delivery.records.clone()).collect()
    };
    let expected: BTreeSet<(u32, i64)> = (6..10).map(|offset| (1, offset)).collect();
    let all = receiver.wait_for("4 records once more", |deliveries| again(deliveries).len() >= 4);
    assert_eq!(again(&all), expected);

    // All of them, found again by a process that has read nothing yet.
    until("the end of what was read again", || {
        let described = process.trigger("far");
        let lags: Option<Vec<u64>> =
            described["lanes"].as_array().unwrap().iter().map(|lane| lane["lag"].as_u64()).collect();
        if lags == Some(vec![0, 0]) { Ok(()) } else { Err(described.to_string()) }
    });
    process.command(&["trigger", "pause", "far"]);
    let (done, said) = to("earliest");
    assert!(done && said.lines().filter(|line| line.starts_with("in ")).count() == 2, "{said}");
    let before = receiver.deliveries().len();
    process.stop();
    let process = Process::start();
    process.apply(&trigger(cluster, &receiver, ""));
    let all = receiver.wait_for("20 records once more", |deliveries| distinct(&deliveries[before..]) == 20);
    assert_eq!(all[before..].iter().map(|delivery| delivery.records.len()).sum::<usize>(), 20, "each once");
}
