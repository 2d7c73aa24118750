//! A trigger on all topics that match a pattern: a kill keeps where it stands in each, and what is about one names it.

use serde_json::{Value, json};

use crate::harness::{Broker, alone, until};

const CODE: &str =
    "import json\n\n\ndef handler(event, context):\n    for e in json.loads(event):\n        print(e['data'])\n";

const APP: &str = "
topic: t.a
---
function: show
runtime: python3
code: show.py
handler: show.handler
---
trigger: all
input: { pattern: 't.*' }
function: show
";

fn until_at(broker: &Broker, wanted: &Value) {
    until("offsets of each topic", || {
        let trigger = broker.trigger("all");
        let lane = |lane: &Value| (lane["topic"].as_str().unwrap().to_owned(), lane["committed"].clone());
        let found: Value = trigger["lanes"].as_array().unwrap().iter().map(lane).collect();
        if found == *wanted { Ok(()) } else { Err(trigger.to_string()) }
    });
}

#[test]
fn a_kill_keeps_the_progress_of_each_topic() {
    let _alone = alone();
    let mut broker = Broker::start();
    broker.file("show.py", CODE);
    broker.apply(APP);
    broker.apply("topic: t.b");
    broker.produce("t.a", "1\n2\n").unwrap();
    broker.produce("t.b", "3\n").unwrap();
    broker.wait_for_logs("show", 3);
    until_at(&broker, &json!({"t.a": 2, "t.b": 1}));
    broker.kill();
    broker.restart();
    until_at(&broker, &json!({"t.a": 2, "t.b": 1}));
    broker.apply("topic: t.c");
    broker.produce("t.c", "4\n").unwrap();
    broker.produce("t.b", "5\n").unwrap();
    until_at(&broker, &json!({"t.a": 2, "t.b": 2, "t.c": 1}));
    broker.wait_for_logs("show", 5);
    broker.kill();
    broker.restart();
    until_at(&broker, &json!({"t.a": 2, "t.b": 2, "t.c": 1}));

    assert!(broker.tripline(&["trigger", "list"]).contains("t.*"), "the pattern stands where a topic would");
    let described = broker.tripline(&["trigger", "describe", "all"]);
    assert!(described.contains("t.b    0          2"), "{described}");
    let refused = broker.command(&["trigger", "replay", "all"]);
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(told.contains("reads several topics; name one of t.a, t.b, t.c"), "{told}");
    broker.tripline(&["trigger", "replay", "all", "--topic", "t.c", "--wait"]);
    broker.tripline(&["trigger", "pause", "all"]);
    let reset = broker.tripline(&["trigger", "reset", "all", "--to", "0", "--topic", "t.a", "--partition", "0"]);
    assert_eq!(reset, "TOPIC  PARTITION  OFFSET\nt.a    0          0\n");
    assert!(broker.tripline(&["trigger", "dry-run", "all", "--topic", "t.a"]).starts_with("2 event(s) match"));
    broker.tripline(&["topic", "delete", "t.b"]);
    broker.tripline(&["trigger", "resume", "all"]);
    until_at(&broker, &json!({"t.a": 2, "t.c": 1}));
    let mut shown: Vec<String> = broker.wait_for_logs("show", 8).into_iter().map(|line| line.text).collect();
    shown.sort_unstable();
    assert_eq!(shown, ["1", "1", "2", "2", "3", "4", "4", "5"]);
}
