//! What a trigger does when its function does not work, and when the broker dies in between.

use serde_json::json;
use tripline::topic::name::TopicName;
use tripline::topic::spec::{TopicConfig, TopicSpec};
use tripline::trigger::service::{ApplyTriggerError, LaneChoice, TriggerState};
use tripline::trigger::spec::TriggerSpec;

use crate::harness::{Stored, World, python_definition};
use crate::receiver::{Receiver, ok, status};

const RAISE: &str = "
def handler(event, context):
    print('try', context.attempt)
    raise ValueError('no good')
";

#[tokio::test(flavor = "multi_thread")]
async fn records_that_keep_failing_become_dead_letters_with_every_header_and_the_next_go_on() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    world.python("f", RAISE).await;
    let retry = json!({"initial": "10ms", "factor": 2, "max_interval": "1s", "max_attempts": 3, "jitter": "none"});
    world.apply(json!({"trigger": "x", "input": {"topic": "t"}, "function": "f", "retry": retry, "dead_letter": {"topic": "t.dlq"}})).await;
    world.produce(&topic, 0, &["1", "2"]).await;
    let report = world.until_committed("x", 0, 2).await;
    assert_eq!((report.counts.dead_lettered, report.counts.attempts_failed, report.counts.delivered), (2, 3, 0));
    assert_eq!(world.printed.wait_for(3).await, ["try 1", "try 2", "try 3"]);
    let letters = world.records("t.dlq", 0);
    assert_eq!(letters.len(), 2);
    for (n, letter) in letters.iter().enumerate() {
        assert_eq!((letter.key.as_deref(), letter.value.as_str()), (Some("k"), ["1", "2"][n]));
        let names: Vec<&str> = letter.headers.iter().map(|(name, _)| name.as_str()).collect();
        let ours = [
            "trigger",
            "function",
            "topic",
            "partition",
            "offset",
            "timestamp",
            "error-class",
            "error-code",
            "error-message",
            "attempts",
            "first-attempt",
            "last-attempt",
            "redrives",
            "leader-epoch",
        ];
        let expected: Vec<String> =
            ["h", "h"].map(str::to_owned).into_iter().chain(ours.map(|name| format!("tripline-dlq-{name}"))).collect();
        assert_eq!(names, expected, "as they were, then ours");
        let value = |name: &str| {
            let found = letter.headers.iter().find(|(header, _)| header == &format!("tripline-dlq-{name}"));
            found.unwrap().1.clone().unwrap()
        };
        assert_eq!(letter.headers[0].1.as_deref(), Some("v"));
        assert_eq!(letter.headers[1].1, None);
        assert_eq!([value("trigger"), value("function"), value("topic")], ["x", "f", "t"]);
        assert_eq!(
            [value("partition"), value("offset"), value("attempts"), value("redrives")],
            ["0", &n.to_string(), "3", "0"]
        );
        assert_eq!(value("timestamp"), "2023-11-14T22:13:20.000Z");
        assert_eq!([value("error-class"), value("error-code")], ["failed", "ValueError"]);
        assert!(value("error-message").contains("no good"));
        assert!(value("first-attempt") < value("last-attempt"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_handler_refuses_for_good_is_a_dead_letter_after_one_attempt() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    let refuse = "
class Refused(Exception):
    retryable = False

def handler(event, context):
    print('try', context.attempt, flush=True)
    raise Refused('no good')
";
    world.python("f", refuse).await;
    let retry = json!({"initial": "10ms", "factor": 2, "max_interval": "1s", "max_attempts": 3, "jitter": "none"});
    world.apply(json!({"trigger": "x", "input": {"topic": "t"}, "function": "f", "retry": retry, "dead_letter": {"topic": "t.dlq"}})).await;
    world.produce(&topic, 0, &["1"]).await;
    let report = world.until_committed("x", 0, 1).await;
    assert_eq!((report.counts.dead_lettered, report.counts.attempts_failed), (1, 1));
    assert_eq!(world.printed.wait_for(1).await, ["try 1"]);
    let letters = world.records("t.dlq", 0);
    let value = |name: &str| {
        let name = format!("tripline-dlq-{name}");
        letters[0].headers.iter().find(|(header, _)| *header == name).unwrap().1.clone().unwrap()
    };
    assert_eq!([value("error-class"), value("error-code"), value("attempts")], ["rejected", "f.Refused", "1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_two_attempts_does_not_reset_the_count() {
    let retry = json!({"initial": "300ms", "factor": 1, "max_interval": "300ms", "max_attempts": 4, "jitter": "none"});
    let world = World::start();
    let topic = world.topic("t", 1).await;
    let version = world.python("f", RAISE).await;
    world.apply(json!({"trigger": "x", "input": {"topic": "t"}, "function": "f", "retry": retry, "dead_letter": {"topic": "t.dlq"}})).await;
    world.produce(&topic, 0, &["1"]).await;
    world.until("x", |report| report.lanes[0].attempts == 2).await;
    drop(topic);
    let dir = world.kill().await;
    let world = World::start_in(dir, &[(python_definition("f"), version)]);
    let report = world.until_committed("x", 0, 1).await;
    assert_eq!(report.counts.dead_lettered, 1);
    assert_eq!(world.printed.wait_for(2).await, ["try 3", "try 4"], "the count went on where it was");
    assert_eq!(world.records("t.dlq", 0).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_the_broker_did_not_survive_is_made_again_without_being_counted() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    let slow = "
import time
def handler(event, context):
    print('try', context.attempt, flush=True)
    time.sleep(3600 if context.attempt == 1 else 0)
";
    let version = world.python("f", slow).await;
    world.apply(json!({"trigger": "x", "input": {"topic": "t"}, "function": "f"})).await;
    world.produce(&topic, 0, &["1"]).await;
    world.printed.wait_for(1).await;
    drop(topic);
    let dir = world.kill().await;
    let quick = "def handler(event, context):\n    print('again', context.attempt)\n";
    let world = World::start_in(dir, &[(python_definition("f"), version)]);
    world.triggers.pause("x").await.unwrap();
    world.python("f", quick).await;
    world.triggers.resume("x").await.unwrap();
    let report = world.until_committed("x", 0, 1).await;
    assert_eq!(report.counts.delivered, 1);
    assert_eq!(world.printed.wait_for(1).await, ["again 1"]);
}

/// A function that names the events `e` as failed for which `condition` holds, and prints what it was given.
fn failing_where(condition: &str) -> String {
    format!(
        "
import json
def handler(event, context):
    events = json.loads(event)
    print([e['data'] for e in events])
    return {{'batchItemFailures': [{{'itemIdentifier': e['id']}} for e in events if {condition}]}}
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_records_that_the_function_names_are_tried_again() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    let code = failing_where("e['data'] % 2 and context.attempt < 2");
    world.python("f", &code).await;
    let retry = json!({"initial": "1ms", "max_attempts": 5});
    world.apply(json!({"trigger": "x", "input": {"topic": "t"}, "function": "f", "retry": retry})).await;
    world.produce(&topic, 0, &["1", "2", "3", "4"]).await;
    let report = world.until_committed("x", 0, 4).await;
    assert_eq!(world.printed.wait_for(2).await, ["[1, 2, 3, 4]", "[1, 3]"]);
    assert_eq!(report.counts.delivered, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_is_too_large_to_be_handed_over_goes_in_parts() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    // Six bytes each, as JSON: eight records make 38 MiB.
    let value = "\u{1}".repeat(800_000);
    for _ in 0..8 {
        world.produce(&topic, 0, &[&value]).await;
    }
    let receiver = Receiver::start(|_| ok()).await;
    let (input, window) = (json!({"topic": "t", "start": "earliest"}), json!({"count": 100, "bytes": "32MiB"}));
    let retry = json!({"max_attempts": 1});
    let function = json!({"http": {"url": receiver.url}});
    world.apply(json!({"trigger": "x", "input": input, "window": window, "retry": retry, "function": function})).await;
    let report = world.until_committed("x", 0, 8).await;
    assert_eq!((report.counts.delivered, report.counts.dropped), (8, 0));
    let offsets = |places: &[(u32, i64)]| places.iter().map(|(_, offset)| *offset).collect::<Vec<i64>>();
    let invoked: Vec<Vec<i64>> = receiver.invoked().iter().map(|invoked| offsets(&invoked.places)).collect();
    assert_eq!(invoked, [[0, 1, 2, 3], [4, 5, 6, 7]]);
    // Each as its first attempt.
    assert!(receiver.invoked().iter().all(|invoked| invoked.attempt == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_does_not_load_fails_the_trigger_without_spending_attempts_until_it_is_replaced() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    world.python("f", "def handler(event, context):\n    return oops(\n").await;
    let retry = json!({"initial": "1ms", "max_attempts": 2});
    world.apply(json!({"trigger": "x", "input": {"topic": "t"}, "function": "f", "retry": retry})).await;
    world.produce(&topic, 0, &["1"]).await;
    let report = world.until_state("x", TriggerState::Failed).await;
    assert!(report.reason.contains("SyntaxError"), "{}", report.reason);
    assert_eq!(report.lanes[0].attempts, 0);
    world.python("f", "def handler(event, context):\n    print('mended')\n").await;
    world.until_committed("x", 0, 1).await;
    assert_eq!(world.printed.wait_for(1).await, ["mended"]);
    world.until_state("x", TriggerState::Running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_target_is_an_outage_that_spends_no_attempt_and_ends_with_a_probe() {
    let world = World::start();
    let topic = world.topic("t", 2).await;
    // A port that nobody listens on yet.
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let retry = json!({"initial": "1ms", "max_attempts": 1});
    let url = format!("http://127.0.0.1:{port}/");
    world
        .apply(json!({"trigger": "x", "input": {"topic": "t"}, "function": {"http": {"url": url}}, "retry": retry}))
        .await;
    world.produce(&topic, 0, &["1"]).await;
    world.produce(&topic, 1, &["2"]).await;
    let report = world.until_state("x", TriggerState::Outage).await;
    assert!(report.lanes.iter().all(|lane| lane.attempts == 0));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(answer_ok(listener));
    world.until_committed("x", 0, 1).await;
    let report = world.until_committed("x", 1, 1).await;
    assert_eq!((report.counts.delivered, report.counts.dropped), (2, 0));
    world.until_state("x", TriggerState::Running).await;
}

async fn answer_ok(listener: tokio::net::TcpListener) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    loop {
        let (mut socket, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 65_536];
            while socket.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tolerance_a_failing_window_blocks_its_partition_until_it_succeeds() {
    let world = World::start();
    let topic = world.topic("t", 2).await;
    let flag = world.dir.path().join("mended");
    let code = format!(
        "
import json, os
def handler(event, context):
    values = [e['data'] for e in json.loads(event)]
    if values == [1] and not os.path.exists({:?}):
        raise RuntimeError('not yet')
    print(values)
",
        flag.to_str().unwrap()
    );
    world.python("f", &code).await;
    let retry = json!({"initial": "1ms", "max_interval": "20ms", "max_attempts": 2});
    world.apply(json!({"trigger": "x", "input": {"topic": "t"}, "function": "f", "retry": retry, "errors_tolerance": "none"})).await;
    world.produce(&topic, 0, &["1"]).await;
    let report = world.until_state("x", TriggerState::Blocked).await;
    assert!(report.reason.contains("/0: ") && report.reason.contains("not yet"), "{}", report.reason);
    world.produce(&topic, 1, &["2"]).await;
    world.until_committed("x", 1, 1).await;
    std::fs::write(&flag, "").unwrap();
    let report = world.until_committed("x", 0, 1).await;
    assert_eq!(report.counts.dropped, 0);
    world.until_state("x", TriggerState::Running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tolerance_a_record_that_its_transform_refuses_blocks_its_partition_also_after_a_restart() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    let version = world.python("f", RAISE).await;
    let transform = json!({"jsonpath": "$.data.x", "strict": true});
    let retry = json!({"max_interval": "1h"});
    world.apply(json!({"trigger": "x", "input": {"topic": "t"}, "function": "f", "transform": transform, "retry": retry, "errors_tolerance": "none"})).await;
    world.produce(&topic, 0, &["1"]).await;
    let report = world.until_state("x", TriggerState::Blocked).await;
    assert!(report.reason.starts_with("partition t/0: "), "{}", report.reason);
    drop(topic);
    let dir = world.kill().await;
    // Its next attempt is an hour away.
    let world = World::start_in(dir, &[(python_definition("f"), version)]);
    world.until_state("x", TriggerState::Blocked).await;
    assert_eq!(world.triggers.skip("x", LaneChoice::ALL).await.unwrap(), 1);
    world.until_committed("x", 0, 1).await;
    world.until_state("x", TriggerState::Running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_dead_letter_topic_records_are_dropped_and_counted() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    world.python("f", RAISE).await;
    let retry = json!({"initial": "1ms", "max_attempts": 1});
    world.apply(json!({"trigger": "x", "input": {"topic": "t"}, "function": "f", "retry": retry})).await;
    world.produce(&topic, 0, &["1", "2", "3"]).await;
    let report = world.until_committed("x", 0, 3).await;
    assert_eq!((report.counts.dropped, report.counts.dead_lettered), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_only_the_records_that_failed_are_tried_again() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    let code = failing_where("e['data'] in (2, 4)");
    let version = world.python("f", &code).await;
    let retry = json!({"initial": "1h", "max_interval": "1h", "max_attempts": 5, "jitter": "none"});
    world.apply(json!({"trigger": "x", "input": {"topic": "t"}, "function": "f", "retry": retry})).await;
    world.produce(&topic, 0, &["1", "2", "3", "4", "5"]).await;
    world.until("x", |report| report.lanes[0].attempts == 1 && report.lanes[0].next_attempt_ms.is_some()).await;
    drop(topic);
    let dir = world.kill().await;
    let world = World::start_in(dir, &[(python_definition("f"), version)]);
    // A person who does not want to wait.
    world.until("x", |report| report.lanes[0].next_attempt_ms.is_some()).await;
    world
        .python("f", "import json\ndef handler(event, context):\n    print([e['data'] for e in json.loads(event)])\n")
        .await;
    world.until_committed("x", 0, 5).await;
    assert_eq!(world.printed.wait_for(1).await, ["[2, 4]"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_of_two_windows_follow_each_other_over_a_restart() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    let version = world.python("f", RAISE).await;
    let retry = json!({"initial": "1ms", "max_attempts": 1});
    world.apply(json!({"trigger": "x", "input": {"topic": "t"}, "function": "f", "retry": retry, "window": {"count": 1}, "dead_letter": {"topic": "t.dlq"}})).await;
    world.produce(&topic, 0, &["1", "2"]).await;
    world.until_committed("x", 0, 2).await;
    drop(topic);
    let dir = world.kill().await;
    let world = World::start_in(dir, &[(python_definition("f"), version)]);
    let topic = world.broker.topic("t").unwrap();
    world.produce(&topic, 0, &["3"]).await;
    world.until_committed("x", 0, 3).await;
    let values: Vec<String> = world.records("t.dlq", 0).into_iter().map(|letter| letter.value).collect();
    assert_eq!(values, ["1", "2", "3"]);
}

/// What a dead letter says of its last attempt: class, code, and that it began before `until_ms`.
fn last_attempt(letter: &Stored, until_ms: i64) -> (String, String) {
    let header = |name: &str| {
        let found = letter.headers.iter().find(|(found, _)| found == &format!("tripline-dlq-{name}"));
        found.and_then(|(_, value)| value.clone()).unwrap()
    };
    let began: jiff::Timestamp = header("last-attempt").parse().unwrap();
    let first: jiff::Timestamp = header("first-attempt").parse().unwrap();
    assert!(first <= began && (1..=until_ms).contains(&began.as_millisecond()), "{letter:?}");
    (header("error-class"), header("error-code"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_waits_for_its_topic_over_a_kill_says_what_the_last_attempt_said() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    let receiver = Receiver::start(|_| status(418)).await;
    let function = json!({"http": {"url": receiver.url}});
    world.apply(json!({"trigger": "x", "input": {"topic": "t", "start": "earliest"}, "function": function, "dead_letter": {"topic": "t.dlq"}})).await;
    world.broker.delete_topic("t.dlq").await.unwrap();
    world.produce(&topic, 0, &["1"]).await;
    drop(topic);
    world.until_state("x", TriggerState::Blocked).await;
    let until_ms = tripline::broker::now_ms();
    let dir = world.kill().await;
    let world = World::start_in(dir, &[]);
    world.topic("t.dlq", 1).await;
    world.until_committed("x", 0, 1).await;
    let letters = world.records("t.dlq", 0);
    assert_eq!(letters.len(), 1);
    assert_eq!(last_attempt(&letters[0], until_ms), ("rejected".to_owned(), "418".to_owned()));
    assert_eq!(receiver.invoked().len(), 1, "what was given up is not invoked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_skipped_after_a_restart_or_while_paused_says_when_and_how_it_failed_the_last_time() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    let receiver = Receiver::start(|_| status(500)).await;
    let function = json!({"http": {"url": receiver.url}});
    let retry = json!({"initial": "1h", "max_interval": "1h", "jitter": "none"});
    world.apply(json!({"trigger": "x", "input": {"topic": "t", "start": "earliest"}, "function": function, "retry": retry, "dead_letter": {"topic": "t.dlq"}})).await;
    world.produce(&topic, 0, &["1"]).await;
    drop(topic);
    world.until("x", |report| report.lanes[0].next_attempt_ms.is_some()).await;
    let until_ms = tripline::broker::now_ms();
    let dir = world.kill().await;
    let world = World::start_in(dir, &[]);
    world.until("x", |report| report.lanes[0].in_flight_records == 1).await;
    world.triggers.pause("x").await.unwrap();
    assert_eq!(world.triggers.skip("x", LaneChoice::ALL).await.unwrap(), 1);
    // Nothing is invoked for that: a pause does not hold it up.
    world.until_committed("x", 0, 1).await;
    let letters = world.records("t.dlq", 0);
    assert_eq!(letters.len(), 1);
    // Progress has no room for what the target said.
    assert_eq!(last_attempt(&letters[0], until_ms), ("failed".to_owned(), String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_waits_for_what_a_trigger_has_not_finished_but_not_for_a_paused_one_nor_for_ever() {
    let world = World::start();
    let name = TopicName::new("t").unwrap();
    let config = TopicConfig { segment_bytes: 1024, retention_bytes: Some(1024), ..TopicConfig::default() };
    let spec = TopicSpec { name, partitions: 1, config: config.clone() };
    let topic = world.broker.create_topic(spec).await.unwrap();
    let log = topic.partition(0).unwrap();
    // A port that nobody listens on: nothing is ever finished.
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let function = json!({"http": {"url": format!("http://127.0.0.1:{port}/")}});
    world.apply(json!({"trigger": "x", "input": {"topic": "t", "start": "earliest"}, "function": function})).await;
    for _ in 0..20 {
        world.produce(&topic, 0, &["x".repeat(300).as_str()]).await;
    }
    world.until_state("x", TriggerState::Outage).await;
    world.broker.housekeeping(&world.triggers.holds());
    assert_eq!(log.log_start().get(), 0, "an outage is no end");
    let short = TopicConfig { retention_hold_max_ms: Some(0), ..config.clone() };
    world.broker.configure_topic(&topic, short).await.unwrap();
    world.broker.housekeeping(&world.triggers.holds());
    let limited = log.log_start().get();
    assert!(limited > 0, "the hold has a limit");
    world.broker.configure_topic(&topic, config).await.unwrap();
    for _ in 0..20 {
        world.produce(&topic, 0, &["x".repeat(300).as_str()]).await;
    }
    world.triggers.pause("x").await.unwrap();
    world.until_state("x", TriggerState::Paused).await;
    world.broker.housekeeping(&world.triggers.holds());
    let start = log.log_start();
    assert!(start.get() > limited, "nobody waits for a paused trigger");
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(answer_ok(listener));
    world.triggers.resume("x").await.unwrap();
    let report = world.until_committed("x", 0, log.tail().get()).await;
    assert_eq!(report.counts.delivered, log.tail().since(start));
    assert!(report.counts.expired > 0, "what it missed is counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_update_is_not_remembered_and_leaves_the_old_definition_at_work() {
    let world = World::start();
    let receiver = Receiver::start(|_| ok()).await;
    world.topic("t", 1).await;
    let definition = |url: &str| json!({"trigger": "x", "input": {"topic": "t"}, "function": {"http": {"url": url}}});
    world.apply(definition(&receiver.url)).await;
    let before = world.triggers.describe("x").unwrap().spec;
    // An address that no function may reach.
    let refused = TriggerSpec::from_json(&definition("http://169.254.169.254/")).unwrap();
    let refused = world.triggers.apply(refused).await.unwrap_err();
    assert!(matches!(refused, ApplyTriggerError::Deploy(_)), "{refused}");
    assert_eq!(world.triggers.describe("x").unwrap().spec, before);
    let world = World::start_in(world.kill().await, &[]);
    assert_eq!(world.triggers.describe("x").unwrap().spec, before, "also after a restart");
    world.produce(&world.broker.topic("t").unwrap(), 0, &["1"]).await;
    world.until_committed("x", 0, 1).await;
}
