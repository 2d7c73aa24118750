//! Triggers that read several topics, or all that match a pattern.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tripline::broker::{DeleteTopicError, Topic};
use tripline::topic::name::TopicName;
use tripline::topic::spec::{TopicConfig, TopicSpec};
use tripline::trigger::dry_run::DryRunRequest;
use tripline::trigger::run::{RangeRequest, RedriveRequest, ReplayRequest};
use tripline::trigger::service::{ApplyTriggerError, LaneChoice, TriggerReport, TriggerState};
use tripline::trigger::spec::{StartPosition, TriggerSpec};
use tripline::trigger::trace::{SearchLimits, Wanted};
use tripline_storage::Offset;

use crate::harness::{PATIENCE, World};
use crate::receiver::{Invoked, Receiver, ok, status};

fn definition(receiver: &Receiver, input: &Value) -> Value {
    json!({
        "trigger": "x", "input": input, "function": {"http": {"url": receiver.url}},
        "retry": {"initial": "1ms", "max_attempts": 1},
    })
}

fn with(mut definition: Value, more: &Value) -> Value {
    definition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    definition
}

/// The data of all that were invoked, in the order of numbers.
fn numbers(invoked: &[Invoked]) -> Vec<i64> {
    let mut numbers: Vec<i64> =
        invoked.iter().flat_map(|invoked| &invoked.data).map(|data| data.as_i64().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

async fn until_numbers(receiver: &Receiver, wanted: &[i64]) {
    receiver.until(|invoked| numbers(invoked).len() >= wanted.len()).await;
    assert_eq!(numbers(&receiver.invoked()), wanted);
}

/// What is finished, by topic and partition.
fn committed(report: &TriggerReport) -> BTreeMap<(String, u32), i64> {
    report.lanes.iter().map(|lane| ((lane.topic.clone(), lane.partition), lane.committed.get())).collect()
}

fn at(places: &[(&str, u32, i64)]) -> BTreeMap<(String, u32), i64> {
    places.iter().map(|&(topic, partition, offset)| ((topic.to_owned(), partition), offset)).collect()
}

impl World {
    async fn delete_topic(&self, name: &str) -> Result<(), DeleteTopicError> {
        self.triggers.delete_topic(&self.broker.topic(name).unwrap()).await
    }

    async fn until_at(&self, places: &[(&str, u32, i64)]) -> TriggerReport {
        let wanted = at(places);
        self.until("x", |report| committed(report) == wanted).await
    }

    async fn refused(&self, definition: &Value) -> ApplyTriggerError {
        self.triggers.apply(TriggerSpec::from_json(definition).unwrap()).await.unwrap_err()
    }

    /// Everything that the journal remembers of lanes: topic ids.
    fn topics_remembered(&self) -> Vec<String> {
        let mut ids: Vec<_> =
            self.broker.journal().look(|state| state.lanes.keys().map(|lane| lane.topic).collect::<Vec<_>>());
        ids.sort_unstable();
        ids.dedup();
        let mut names: Vec<String> =
            ids.into_iter().filter_map(|id| Some(self.broker.topic_by_id(id)?.name().to_string())).collect();
        names.sort_unstable();
        names
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_topics_are_read_each_from_where_it_was_when_the_trigger_was_made() {
    let world = World::start();
    let receiver = Receiver::start(|_| ok()).await;
    let (flights, trains) = (world.topic("flights", 1).await, world.topic("trains", 2).await);
    world.produce(&flights, 0, &["100", "101"]).await;
    world.produce(&trains, 1, &["200"]).await;
    world.apply(definition(&receiver, &json!({"topics": ["trains", "flights"], "start": "latest"}))).await;
    world.until_at(&[("flights", 0, 2), ("trains", 0, 0), ("trains", 1, 1)]).await;
    world.produce(&flights, 0, &["102"]).await;
    world.produce(&trains, 0, &["201"]).await;
    world.produce(&trains, 1, &["202"]).await;
    until_numbers(&receiver, &[102, 201, 202]).await;
    let report = world.until_at(&[("flights", 0, 3), ("trains", 0, 1), ("trains", 1, 2)]).await;
    let lanes: Vec<_> = report.lanes.iter().map(|lane| (lane.topic.as_str(), lane.partition)).collect();
    assert_eq!(lanes, [("flights", 0), ("trains", 0), ("trains", 1)]);
    let mut offsets = world.triggers.committed("x");
    offsets.retain(|(topic, ..)| *topic == trains.id());
    let offsets: Vec<_> = offsets.into_iter().map(|(_, partition, offset)| (partition, offset.get())).collect();
    assert_eq!(offsets, [(0, 1), (1, 2)]);
    let ids: Vec<String> = receiver.invoked().into_iter().map(|invoked| invoked.id).collect();
    assert!(ids.contains(&"x/flights/0/2".to_owned()) && ids.contains(&"x/trains/1/1".to_owned()), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_is_looked_up_in_each_topic() {
    let world = World::start();
    let receiver = Receiver::start(|_| ok()).await;
    let (a, b) = (world.topic("a", 1).await, world.topic("b", 1).await);
    world.produce(&a, 0, &["1"]).await;
    world.produce(&b, 0, &["2"]).await;
    let start = json!({"time": "2020-01-01T00:00:00Z"});
    world.apply(definition(&receiver, &json!({"pattern": "*", "start": start}))).await;
    until_numbers(&receiver, &[1, 2]).await;
    let start = json!({"time": "2030-01-01T00:00:00Z"});
    let later = json!({"trigger": "y", "input": {"topics": ["a", "b"], "start": start}, "function": {"http": {"url": receiver.url}}});
    world.apply(later).await;
    let report = world.until("y", |report| report.state == TriggerState::Running).await;
    assert_eq!(committed(&report), at(&[("a", 0, 1), ("b", 0, 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_a_pattern_selects_later_are_read_from_their_first_record() {
    let world = World::start();
    let receiver = Receiver::start(|_| ok()).await;
    let spec =
        TriggerSpec::from_json(&definition(&receiver, &json!({"pattern": "flights.*", "start": "latest"}))).unwrap();
    let applied = world.triggers.apply(spec).await.unwrap();
    assert!(applied.warnings.iter().any(|warning| warning.contains("no topic matches flights.* yet")), "{applied:?}");
    let other = world.topic("trains.eu", 1).await;
    world.produce(&other, 0, &["900"]).await;
    let mut expected = Vec::new();
    for index in 0..8_i64 {
        let topic = world.topic(&format!("flights.{index}"), 2).await;
        // At once, whether anybody has joined or not.
        world.produce(&topic, 0, &[&(index * 10).to_string(), &(index * 10 + 1).to_string()]).await;
        world.produce(&topic, 1, &[&(index * 10 + 2).to_string()]).await;
        expected.extend([index * 10, index * 10 + 1, index * 10 + 2]);
    }
    until_numbers(&receiver, &expected).await;
    let report = world.until("x", |report| report.counts.delivered == 24).await;
    assert_eq!(report.lanes.len(), 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_the_progress_of_each_topic_and_joins_what_was_made_meanwhile() {
    let world = World::start();
    let receiver = Receiver::start(|invoked| if invoked.data == [json!(21)] { status(500) } else { ok() }).await;
    let (a, b) = (world.topic("t.a", 1).await, world.topic("t.b", 1).await);
    let tolerant = json!({"errors_tolerance": "none", "retry": {"initial": "1ms", "max_interval": "1s", "max_attempts": 1}, "window": {"count": 1}});
    world.apply(with(definition(&receiver, &json!({"pattern": "t.*"})), &tolerant)).await;
    world.produce(&a, 0, &["10", "11"]).await;
    world.produce(&b, 0, &["20", "21", "22"]).await;
    let blocked = world.until("x", |report| report.state == TriggerState::Blocked).await;
    assert!(blocked.reason.starts_with("partition t.b/0: "), "{}", blocked.reason);
    world.until_at(&[("t.a", 0, 2), ("t.b", 0, 1)]).await;
    drop((a, b));
    // Made while no trigger runs: nobody hears of it before the next start.
    world.triggers.shutdown(Duration::ZERO).await;
    let c = world.topic("t.c", 1).await;
    world.produce(&c, 0, &["30"]).await;
    drop(c);
    let before = receiver.invoked().len();
    let world = World::start_in(world.kill().await, &[]);
    receiver.until(|invoked| numbers(&invoked[before..]).contains(&30)).await;
    world.until_at(&[("t.a", 0, 2), ("t.b", 0, 1), ("t.c", 0, 1)]).await;
    assert!(!numbers(&receiver.invoked()[before..]).iter().any(|number| [10, 11, 20, 22].contains(number)));
    let one = LaneChoice { topic: Some("t.b"), partition: None };
    world.until("x", |report| report.state == TriggerState::Blocked).await;
    assert_eq!(world.triggers.skip("x", one).await.unwrap(), 1);
    world.until_at(&[("t.a", 0, 2), ("t.b", 0, 3), ("t.c", 0, 1)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_keeps_the_topics_that_stay_starts_the_others_and_forgets_those_that_go() {
    let world = World::start();
    let receiver = Receiver::start(|_| ok()).await;
    let topics = [("a", "10"), ("b", "20"), ("c", "30")];
    for (name, value) in topics {
        let topic = world.topic(name, 1).await;
        world.produce(&topic, 0, &[value]).await;
    }
    let update = |input: Value| definition(&receiver, &input);
    world.apply(update(json!({"topic": "a", "start": "earliest"}))).await;
    until_numbers(&receiver, &[10]).await;
    world.until_at(&[("a", 0, 1)]).await;
    // One topic becomes two: what stays is not read again.
    world.apply(update(json!({"topics": ["a", "b"], "start": "earliest"}))).await;
    until_numbers(&receiver, &[10, 20]).await;
    world.until_at(&[("a", 0, 1), ("b", 0, 1)]).await;
    // One is added at its tail, one goes.
    world.apply(update(json!({"topics": ["c", "b"], "start": "latest"}))).await;
    world.until_at(&[("b", 0, 1), ("c", 0, 1)]).await;
    assert_eq!(world.topics_remembered(), ["b", "c"]);
    let a = world.broker.topic("a").unwrap();
    world.produce(&a, 0, &["11"]).await;
    assert!(!world.triggers.holds().contains_key(&(a.id(), 0)), "nobody needs it");
    drop(a);
    world.delete_topic("a").await.unwrap();
    world.topic("a", 1).await;
    // The list becomes a pattern, which selects more.
    world.apply(update(json!({"pattern": "*", "start": "latest"}))).await;
    world.until_at(&[("a", 0, 0), ("b", 0, 1), ("c", 0, 1)]).await;
    for (name, value) in [("a", "12"), ("b", "21"), ("c", "31")] {
        world.produce(&world.broker.topic(name).unwrap(), 0, &[value]).await;
    }
    until_numbers(&receiver, &[10, 12, 20, 21, 31]).await;
    world.until_at(&[("a", 0, 1), ("b", 0, 2), ("c", 0, 2)]).await;
    let world = World::start_in(world.kill().await, &[]);
    world.until_at(&[("a", 0, 1), ("b", 0, 2), ("c", 0, 2)]).await;
    let report = world.triggers.describe("x").unwrap();
    assert_eq!(report.counts.delivered, 0, "nothing is delivered again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_leaves_no_topic_or_names_a_missing_one_changes_nothing() {
    let world = World::start();
    let receiver = Receiver::start(|_| ok()).await;
    world.topic("a", 1).await;
    world.apply(definition(&receiver, &json!({"topics": ["a", "b"]}))).await;
    assert!(world.broker.topic("b").is_some(), "as one topic, topics are made with the defaults where that is allowed");
    for (input, field) in [
        (json!({"topics": ["c", "d"]}), "topics"),
        (json!({"topic": "c"}), "topic"),
        (json!({"pattern": "c*"}), "pattern"),
    ] {
        let error = world.refused(&definition(&receiver, &input)).await.to_string();
        assert!(error.starts_with(&format!("trigger.input.{field}: found c")), "{error}");
        assert!(error.contains("the trigger reads a, b"), "{error}");
    }
    let missing = world.refused(&definition(&receiver, &json!({"topics": ["a", "__tripline.none"]}))).await;
    assert_eq!(missing.to_string(), "trigger.input.topics: topic __tripline.none does not exist; create it first");
    assert_eq!(world.triggers.describe("x").unwrap().spec.input.topics.to_string(), "a, b");
    assert!(world.broker.topic("c").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_a_pattern_selects_is_deleted_and_the_trigger_goes_on_with_the_others() {
    let world = World::start();
    let receiver = Receiver::start(|invoked| if invoked.data == [json!(10)] { status(500) } else { ok() }).await;
    let (a, b) = (world.topic("t.a", 1).await, world.topic("t.b", 1).await);
    let tolerant =
        json!({"errors_tolerance": "none", "retry": {"initial": "1ms", "max_interval": "1s", "max_attempts": 1}});
    world.apply(with(definition(&receiver, &json!({"pattern": "t.*"})), &tolerant)).await;
    world.produce(&a, 0, &["10"]).await;
    world.until_state("x", TriggerState::Blocked).await;
    assert!(world.broker.delete_topic("t.a").await.is_err(), "there is progress in it");
    drop(a);
    world.delete_topic("t.a").await.unwrap();
    let report = world.until_state("x", TriggerState::Running).await;
    assert_eq!(committed(&report), at(&[("t.b", 0, 0)]));
    world.produce(&b, 0, &["20"]).await;
    world.until_at(&[("t.b", 0, 1)]).await;
    assert_eq!(world.topics_remembered(), ["t.b"]);
    // Another topic with its name is another topic.
    let again = world.topic("t.a", 1).await;
    world.produce(&again, 0, &["11"]).await;
    world.until_at(&[("t.a", 0, 1), ("t.b", 0, 1)]).await;
    // A topic that a definition names is in use.
    let named =
        json!({"trigger": "y", "input": {"topics": ["t.a", "other"]}, "function": {"http": {"url": receiver.url}}});
    world.apply(named).await;
    let in_use = world.delete_topic("t.a").await.unwrap_err();
    assert_eq!(in_use.to_string(), "topic t.a is used by trigger y; delete the trigger first");
    world.produce(&again, 0, &["12"]).await;
    world.until_at(&[("t.a", 0, 2), ("t.b", 0, 1)]).await;
    assert!(world.triggers.remove("y").await.unwrap());
    drop((again, b));
    let world = World::start_in(world.kill().await, &[]);
    world.until_at(&[("t.a", 0, 2), ("t.b", 0, 1)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_a_run_reads_is_kept_and_its_lanes_go_on() {
    let world = World::start();
    let receiver = Receiver::start(|_| ok()).await;
    let a = world.topic("t.a", 1).await;
    world.apply(definition(&receiver, &json!({"pattern": "t.*"}))).await;
    world.produce(&a, 0, &["1", "2", "3"]).await;
    world.until_at(&[("t.a", 0, 3)]).await;
    let slow = ReplayRequest { topic: None, ranges: vec![RangeRequest::ALL], rate: Some(1) };
    let run = world.triggers.replay("x", slow).await.unwrap();
    assert!(world.delete_topic("t.a").await.unwrap_err().to_string().contains("used by trigger x"));
    world.triggers.cancel_run("x", run).await.unwrap();
    world.produce(&a, 0, &["4"]).await;
    world.until_at(&[("t.a", 0, 4)]).await;
    assert_eq!(receiver.invoked().iter().filter(|invoked| invoked.data.contains(&json!(4))).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_waits_in_each_topic_for_what_is_not_finished_there() {
    let world = World::start();
    let receiver = Receiver::start(|invoked| if invoked.data[0] == "block" { status(500) } else { ok() }).await;
    let config = TopicConfig { segment_bytes: 16 << 10, retention_bytes: Some(1), ..TopicConfig::default() };
    let make = async |name: &str| -> Arc<Topic> {
        let name = TopicName::new(name).unwrap();
        world.broker.create_topic(TopicSpec { name, partitions: 1, config: config.clone() }).await.unwrap()
    };
    let (a, b) = (make("a").await, make("b").await);
    let tolerant = json!({"errors_tolerance": "none", "retry": {"initial": "1ms", "max_interval": "10s", "max_attempts": 1}, "window": {"count": 1}});
    world.apply(with(definition(&receiver, &json!({"topics": ["a", "b"], "start": "earliest"})), &tolerant)).await;
    world.produce(&b, 0, &["\"block\""]).await;
    for topic in [&a, &b] {
        for _ in 0..80 {
            world.produce(topic, 0, &[&format!("\"{}\"", "x".repeat(500))]).await;
        }
    }
    world.until_at(&[("a", 0, 80), ("b", 0, 0)]).await;
    let holds = world.triggers.holds();
    assert_eq!((holds[&(a.id(), 0)].get(), holds[&(b.id(), 0)].get()), (80, 0));
    world.broker.housekeeping(&holds);
    let log_start = |topic: &Topic| topic.partition(0).unwrap().log_start().get();
    assert!(log_start(&a) > 0, "what is finished goes");
    assert_eq!(log_start(&b), 0, "what is not stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn invocations_in_flight_are_bounded_over_all_topics_and_every_topic_gets_its_turn() {
    let world = World::start();
    let receiver = Receiver::start(|_| ok()).await;
    let mut expected = Vec::new();
    let topics: Vec<_> = futures_util::future::join_all((0..6).map(|index| {
        let (world, name) = (&world, format!("t{index}"));
        async move { world.topic(&name, 1).await }
    }))
    .await;
    let one = json!({"concurrency": 1, "window": {"count": 1}});
    world.apply(with(definition(&receiver, &json!({"pattern": "t*"})), &one)).await;
    let gate = receiver.hold().await;
    for (index, topic) in (0..).zip(&topics) {
        let numbers: Vec<i64> = (0..5).map(|number| index * 10 + number).collect();
        let values: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        world.produce(topic, 0, &values.iter().map(String::as_str).collect::<Vec<_>>()).await;
        expected.extend(numbers);
    }
    let report = world.until("x", |report| report.lanes.iter().any(|lane| lane.in_flight_records > 0)).await;
    assert_eq!(report.lanes.len(), 6);
    // One whose topic goes while it waits for its turn takes nobody's turn along.
    drop(topics);
    world.delete_topic("t5").await.unwrap();
    expected.retain(|number| *number < 50);
    drop(gate);
    let done = world.until("x", |report| report.lanes.iter().all(|lane| lane.lag() == 0)).await;
    assert_eq!(done.lanes.len(), 5);
    let mut seen = numbers(&receiver.invoked());
    seen.retain(|number| *number < 50);
    seen.dedup();
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_say_their_topic_and_are_redriven_as_what_they_were() {
    let world = World::start();
    let failing = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let fails = Arc::clone(&failing);
    let answer = move |_: &Invoked| if fails.load(std::sync::atomic::Ordering::Acquire) { status(422) } else { ok() };
    let receiver = Receiver::start(answer).await;
    let (a, b) = (world.topic("a", 1).await, world.topic("b", 2).await);
    let letters = json!({"dead_letter": {"topic": "letters"}});
    world.apply(with(definition(&receiver, &json!({"topics": ["a", "b"]})), &letters)).await;
    assert_eq!(world.broker.topic("letters").unwrap().partition_count(), 2, "as many as the widest");
    world.produce(&a, 0, &["10"]).await;
    world.produce(&b, 0, &["20"]).await;
    world.produce(&b, 1, &["21"]).await;
    world.until_at(&[("a", 0, 1), ("b", 0, 1), ("b", 1, 1)]).await;
    let mut places = Vec::new();
    for partition in 0..2 {
        for letter in world.records("letters", partition) {
            let header = |name: &str| {
                let name = format!("tripline-dlq-{name}");
                letter.headers.iter().find(|(header, _)| *header == name).and_then(|(_, value)| value.clone()).unwrap()
            };
            places.push((header("topic"), header("partition"), header("offset"), letter.value.clone()));
        }
    }
    places.sort_unstable();
    let text = |place: (&str, &str, &str, &str)| {
        let (topic, partition, offset, value) = place;
        (topic.to_owned(), partition.to_owned(), offset.to_owned(), value.to_owned())
    };
    assert_eq!(places, [("a", "0", "0", "10"), ("b", "0", "0", "20"), ("b", "1", "0", "21")].map(text));
    let told = world.triggers.trace(&Wanted::parse("b/1/0", None), SearchLimits::default()).await.unwrap();
    assert!(told.triggers[0].summary.starts_with("dead letter letters/1/0"), "{told:#?}");

    failing.store(false, std::sync::atomic::Ordering::Release);
    let before = receiver.invoked().len();
    world.triggers.redrive("x", RedriveRequest::default()).await.unwrap();
    let invoked = receiver.until(|invoked| numbers(&invoked[before..]).len() == 3).await;
    let mut sources: Vec<(String, i64)> = Vec::new();
    for invoked in &invoked[before..] {
        for event in invoked.body_json().as_array().unwrap() {
            let source = event["source"].as_str().unwrap();
            let topic = source.split('/').nth(2).unwrap().to_owned();
            sources.push((topic, event["data"].as_i64().unwrap()));
        }
    }
    sources.sort_unstable_by_key(|(_, data)| *data);
    let (a, b) = (a.id().to_string(), b.id().to_string());
    assert_eq!(sources, [(a, 10), (b.clone(), 20), (b, 21)], "each with the source that it had");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_about_one_partition_names_its_topic() {
    let world = World::start();
    let receiver = Receiver::start(|_| ok()).await;
    let (a, b) = (world.topic("a", 1).await, world.topic("b", 1).await);
    world.apply(definition(&receiver, &json!({"topics": ["a", "b"]}))).await;
    world.produce(&a, 0, &["10", "11"]).await;
    world.produce(&b, 0, &["20", "21"]).await;
    world.until_at(&[("a", 0, 2), ("b", 0, 2)]).await;

    let replay = |topic: Option<&str>| ReplayRequest {
        topic: topic.map(str::to_owned),
        ranges: vec![RangeRequest::ALL],
        rate: None,
    };
    let unnamed = world.triggers.replay("x", replay(None)).await.unwrap_err().to_string();
    assert_eq!(unnamed, "topic: found nothing, trigger x reads several topics; name one of a, b");
    let unknown = world.triggers.replay("x", replay(Some("c"))).await.unwrap_err().to_string();
    assert_eq!(unknown, "topic: found c, trigger x reads a, b");
    world.triggers.replay("x", replay(Some("b"))).await.unwrap();
    until_numbers(&receiver, &[10, 11, 20, 20, 21, 21]).await;
    let dry = DryRunRequest {
        topic: Some("a".to_owned()),
        ranges: vec![RangeRequest::ALL],
        filter: None,
        samples: 5,
        time: PATIENCE,
    };
    assert_eq!(world.triggers.dry_run("x", &dry).await.unwrap().matched, 2);

    world.triggers.pause("x").await.unwrap();
    let to = StartPosition::Offset(Offset::new(1).unwrap());
    let partition = LaneChoice { topic: None, partition: Some(0) };
    assert!(world.triggers.reset_to("x", partition, to).await.unwrap_err().to_string().contains("name one of a, b"));
    assert!(world.triggers.skip("x", partition).await.unwrap_err().to_string().contains("name one of a, b"));
    let stranger = world.topic("c", 1).await;
    let other = world.triggers.reset("x", &[(stranger.id(), 0, Offset::ZERO)]).await.unwrap_err();
    assert_eq!(other.to_string(), "trigger x does not read that topic");
    let set = world.triggers.reset_to("x", LaneChoice { topic: Some("b"), partition: Some(0) }, to).await.unwrap();
    assert_eq!(set, [("b".to_owned(), 0, Offset::new(1).unwrap())]);
    assert_eq!(committed(&world.triggers.describe("x").unwrap()), at(&[("a", 0, 2), ("b", 0, 1)]));
    let all = world.triggers.reset_to("x", LaneChoice::ALL, StartPosition::Earliest).await.unwrap();
    assert_eq!(all.len(), 2);
    world.triggers.resume("x").await.unwrap();
    world.until_at(&[("a", 0, 2), ("b", 0, 2)]).await;
    until_numbers(&receiver, &[10, 10, 11, 11, 20, 20, 20, 21, 21, 21]).await;
}

/// What was produced in the topics that are there.
type Produced = BTreeMap<String, Vec<i64>>;

async fn produce_some(world: &World, name: &str, produced: &mut Produced, next: &mut i64, random: &mut fastrand::Rng) {
    let topic = world.broker.topic(name).unwrap();
    let numbers: Vec<i64> = (*next..).take(random.usize(1..8)).collect();
    *next += 8;
    let values: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    world.produce(&topic, random.u32(..2), &values).await;
    produced.get_mut(name).unwrap().extend(numbers);
}

/// Topics come and go, definitions, pauses and kills too, while records flow: of the topics that are left none is lost.
async fn storm(seed: u64) {
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let chance = std::sync::Mutex::new(random.fork());
    let receiver =
        Receiver::start(move |_| if chance.lock().unwrap().u32(..8) == 0 { status(503) } else { ok() }).await;
    let definition = |random: &mut fastrand::Rng| {
        let order = ["partition", "key", "none"][random.usize(..3)];
        let retry = json!({"initial": "1ms", "max_interval": "5ms", "max_attempts": 9000});
        let more = json!({
            "concurrency": random.u32(1..4), "order": order, "window": {"count": random.u32(1..5)}, "retry": retry,
        });
        // Either selects all topics, so that what is made later is always read from its first record.
        let pattern = ["t.*", "*.*"][random.usize(..2)];
        with(definition(&receiver, &json!({"pattern": pattern, "start": "latest"})), &more)
    };
    let mut world = World::start();
    world.apply(definition(&mut random)).await;
    let (mut produced, mut next) = (Produced::new(), 0);
    for change in 0..60 {
        let names: Vec<String> = produced.keys().cloned().collect();
        match random.u32(..12) {
            0..4 => {
                let name = format!("t.{change}");
                world.topic(&name, 2).await;
                produced.insert(name.clone(), Vec::new());
                produce_some(&world, &name, &mut produced, &mut next, &mut random).await;
            }
            4 if names.len() > 2 => {
                let gone = &names[random.usize(..names.len())];
                world.delete_topic(gone).await.unwrap();
                produced.remove(gone);
            }
            5 => world.triggers.pause("x").await.unwrap(),
            6 | 7 => world.triggers.resume("x").await.unwrap(),
            8 => world.apply(definition(&mut random)).await,
            9 if random.bool() => world = World::start_in(world.kill().await, &[]),
            _ if !names.is_empty() => {
                let name = &names[random.usize(..names.len())];
                produce_some(&world, name, &mut produced, &mut next, &mut random).await;
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_micros(random.u64(..8_000))).await;
    }
    world.triggers.resume("x").await.unwrap();
    let topics = produced.len();
    let is_done =
        |report: &TriggerReport| report.lanes.len() == 2 * topics && report.lanes.iter().all(|lane| lane.lag() == 0);
    let report = world.until("x", is_done).await;
    assert_eq!(report.state, TriggerState::Running, "seed {seed}");
    let arrived: std::collections::BTreeSet<i64> = numbers(&receiver.invoked()).into_iter().collect();
    for (name, numbers) in &produced {
        let lost: Vec<_> = numbers.iter().filter(|number| !arrived.contains(number)).collect();
        assert!(lost.is_empty(), "seed {seed}: {name} lost {lost:?}");
    }
    let known = world.broker.journal().look(|state| state.topics.keys().copied().collect::<Vec<_>>());
    let stray = world.broker.journal().look(|state| state.lanes.keys().any(|lane| !known.contains(&lane.topic)));
    assert!(!stray, "seed {seed}: progress in a topic that is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_topics_definitions_and_kills_loses_nothing_of_what_is_left() {
    let seed = fastrand::u64(..1 << 32);
    for seed in (seed..).take(3) {
        storm(seed).await;
    }
}

#[tokio::test]
async fn a_topic_is_deleted_and_not_another_one_that_has_its_name_by_then() {
    let world = World::start();
    world.topic("t", 1).await;
    let old = world.broker.topic("t").unwrap();
    world.triggers.delete_topic(&old).await.unwrap();
    world.topic("t", 1).await;
    let error = world.triggers.delete_topic(&old).await.unwrap_err();
    assert!(matches!(&error, DeleteTopicError::Unknown(name) if name == "t"), "{error}");
    assert!(world.broker.topic("t").is_some_and(|new| new.id() != old.id()));
}
