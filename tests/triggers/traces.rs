//! The story of one event, and the trace that it belongs to.

use std::time::Duration;

use axum::response::IntoResponse;
use serde_json::{Value, json};
use tripline::broker::Topic;
use tripline::topic::name::TopicName;
use tripline::trigger::service::TriggerReport;
use tripline::trigger::spec::TriggerSpec;
use tripline::trigger::trace::story::{Story, TriggerOutcome, TriggerStory};
use tripline::trigger::trace::{SearchLimits, TRACE_TOPIC, TraceError, Wanted};
use tripline_storage::Offset;
use tripline_storage::batch::{BatchBuilder, BatchOptions, NewRecord};

use crate::harness::World;
use crate::receiver::{Invoked, Receiver, ok, status};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn trigger(receiver: &Receiver, more: Value) -> Value {
    let mut definition = json!({
        "trigger": "t", "input": {"topic": "in", "start": "earliest"}, "window": {"count": 1},
        "function": {"http": {"url": receiver.url}},
        "retry": {"initial": "1ms", "max_interval": "1ms", "max_attempts": 2, "jitter": "none"},
    });
    for (name, value) in more.as_object().unwrap() {
        definition[name] = value.clone();
    }
    definition
}

fn produce_with(world: &World, topic: &Topic, value: &str, headers: &[(&str, &str)]) {
    let mut builder = BatchBuilder::new(BatchOptions::default());
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_bytes(), Some(value.as_bytes()))).collect();
    let value = Some(value.as_bytes());
    builder.push(&NewRecord { timestamp_ms: 1_700_000_000_000, key: Some(b"k"), value, headers: &headers }).unwrap();
    world.broker.append(topic, 0, builder.finish().unwrap()).unwrap();
}

async fn story(world: &World, event: &str) -> Story {
    world.triggers.trace(&Wanted::parse(event, None), SearchLimits::default()).await.unwrap()
}

async fn of_trigger(world: &World, event: &str) -> TriggerStory {
    let mut story = story(world, event).await;
    assert_eq!(story.triggers.len(), 1, "{story:#?}");
    story.triggers.remove(0)
}

/// Asks until the trigger's part is as `wanted`.
async fn until(world: &World, event: &str, wanted: impl Fn(&TriggerStory) -> bool) -> TriggerStory {
    let deadline = tokio::time::Instant::now() + crate::harness::PATIENCE;
    loop {
        let told = of_trigger(world, event).await;
        if wanted(&told) {
            return told;
        }
        assert!(tokio::time::Instant::now() < deadline, "{told:#?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_delivered_tells_its_window_and_its_attempt() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|_| ok()).await;
    world.produce(&topic, 0, &["1", "2"]).await;
    let before_ms = world.triggers.now_ms();
    world.apply(trigger(&receiver, json!({"window": {"count": 2}}))).await;
    world.until_committed("t", 0, 2).await;
    let story = story(&world, "in/0/1").await;
    assert_eq!((story.event.id.as_str(), story.event.key.as_deref()), ("0-1", Some("k")));
    assert_eq!((story.event.timestamp_ms, story.event.size_bytes), (Some(1_700_000_000_000), 5));
    let [told] = story.triggers.as_slice() else { panic!("{story:#?}") };
    assert_eq!((told.outcome, told.summary.as_str()), (TriggerOutcome::Done, "attempt 1 succeeded"));
    assert_eq!((told.matches, told.pending.as_ref(), told.state.as_deref()), (Some(true), None, Some("Running")));
    let [attempt] = told.attempts.as_slice() else { panic!("{told:#?}") };
    assert_eq!((attempt.window.as_str(), attempt.records, attempt.attempt), ("t/in/0/0", 2, 1));
    assert_eq!((attempt.outcome.as_str(), attempt.partial, attempt.follows), ("success", false, None));
    assert!((before_ms..=story.now_ms).contains(&attempt.began_ms) && attempt.took_ms > 0.0, "{attempt:?}");
    assert!(story.history.since_ms.is_some() && story.history.dropped == 0 && story.search.is_none());
    assert_eq!(world.triggers.trace_counts().written, 1);

    let by_id = Wanted::parse("0-1", Some(TopicName::new("in").unwrap()));
    let same = world.triggers.trace(&by_id, SearchLimits::default()).await.unwrap();
    assert_eq!((same.event, &same.triggers[0].attempts), (story.event, &told.attempts));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_were_just_delivered_each_tells_its_own() {
    let world = World::start();
    let topic = world.topic("in", 2).await;
    let receiver = Receiver::start(|invoked: &Invoked| {
        let fails = invoked.attempt == 1 && invoked.body_json()[0]["data"] == 7;
        if fails { status(500) } else { ok() }
    })
    .await;
    let values: Vec<String> = (0..150).map(|number| number.to_string()).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    world.produce(&topic, 0, &values).await;
    world.produce(&topic, 1, &values[..30]).await;
    world.apply(trigger(&receiver, json!({"order": "none"}))).await;
    world.apply(trigger(&receiver, json!({"trigger": "u"}))).await;
    for name in ["t", "u"] {
        world.until_committed(name, 0, 150).await;
        world.until_committed(name, 1, 30).await;
    }
    // Some once more: their windows cannot stand beside the earlier ones.
    world.triggers.pause("t").await.unwrap();
    world.triggers.reset("t", &[(topic.id(), 0, Offset::new(140).unwrap())]).await.unwrap();
    world.triggers.resume("t").await.unwrap();
    world.until_committed("t", 0, 150).await;
    for (partition, offset) in (0..150).map(|offset| (0, offset)).chain((0..30).map(|offset| (1, offset))) {
        let event = format!("in/{partition}/{offset}");
        let story = story(&world, &event).await;
        assert_eq!(story.triggers.len(), 2, "{story:#?}");
        for told in &story.triggers {
            let expected = match (offset, told.trigger.as_str()) {
                (7, _) => vec![("failed", 1), ("success", 2)],
                (140.., "t") => vec![("success", 1); 2],
                _ => vec![("success", 1)],
            };
            let attempts = told.attempts.iter().map(|attempt| (attempt.outcome.as_str(), attempt.attempt));
            assert_eq!(attempts.collect::<Vec<_>>(), expected, "{event}: {told:#?}");
            for attempt in &told.attempts {
                assert_eq!((attempt.window.as_str(), attempt.records), (&*format!("{}/{event}", told.trigger), 1));
                assert!(attempt.took_ms > 0.0 && attempt.began_ms <= story.now_ms, "{attempt:?}");
            }
            assert_eq!(told.outcome, TriggerOutcome::Done);
        }
    }
    let kept = world.records(TRACE_TOPIC, 0).len();
    // How many share one is a matter of time.
    assert!(kept < 374, "374 attempts have {kept} records");
    assert_eq!(world.triggers.trace_counts().written, 374);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_given_up_tells_every_attempt_and_where_its_dead_letter_is() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|_| status(500)).await;
    world.produce(&topic, 0, &["1", "2", "3"]).await;
    world.apply(trigger(&receiver, json!({"window": {"count": 3}, "dead_letter": {"topic": "in.dlq"}}))).await;
    world.until_committed("t", 0, 3).await;
    let told = of_trigger(&world, "in/0/2").await;
    assert_eq!(told.outcome, TriggerOutcome::DeadLettered, "{told:#?}");
    assert_eq!(told.summary, "dead letter in.dlq/0/2, after 2 attempt(s)");
    let attempts: Vec<Value> = told.attempts.iter().map(|attempt| serde_json::to_value(attempt).unwrap()).collect();
    assert_eq!([&attempts[0]["attempt"], &attempts[1]["attempt"]], [1, 2]);
    assert_eq!((&attempts[0]["outcome"], &attempts[0]["code"]), (&json!("failed"), &json!("500")));
    assert_eq!((&attempts[0]["follows"], &attempts[1]["follows"]), (&json!("retry"), &json!("given-up-attempts")));
    let next_ms = attempts[0]["follows_at_ms"].as_i64().unwrap();
    assert!(next_ms <= attempts[1]["began_ms"].as_i64().unwrap(), "{attempts:#?}");
    assert!(told.verdicts[0].error.starts_with("failed 500 "), "{told:#?}");

    // Without a dead-letter topic it says so.
    world.triggers.remove("t").await.unwrap();
    world.apply(trigger(&receiver, json!({"trigger": "u"}))).await;
    world.until_committed("u", 0, 3).await;
    let story = story(&world, "in/0/0").await;
    let names: Vec<&str> = story.triggers.iter().map(|told| told.trigger.as_str()).collect();
    assert_eq!(names, ["t", "u"], "history of a trigger that is gone stays");
    assert_eq!((story.triggers[0].state.as_ref(), story.triggers[0].outcome), (None, TriggerOutcome::DeadLettered));
    assert!(story.triggers[0].summary.ends_with("; the trigger is not there any more"));
    assert_eq!(story.triggers[1].outcome, TriggerOutcome::Dropped);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_one_window_that_came_out_differently_each_tell_their_own() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|invoked: &Invoked| {
        if invoked.attempt > 1 {
            ok()
        } else {
            json!({"batchItemFailures": [{"itemIdentifier": "0-1"}]}).to_string().into_response()
        }
    })
    .await;
    world.produce(&topic, 0, &["1", "2"]).await;
    world.apply(trigger(&receiver, json!({"window": {"count": 2}}))).await;
    world.until_committed("t", 0, 2).await;
    let of = |told: &TriggerStory| {
        told.attempts.iter().map(|attempt| (attempt.outcome.clone(), attempt.partial)).collect::<Vec<_>>()
    };
    let (first, second) = (of_trigger(&world, "in/0/0").await, of_trigger(&world, "in/0/1").await);
    assert_eq!(of(&first), [("success".to_owned(), true)]);
    assert_eq!(of(&second), [("failed".to_owned(), true), ("success".to_owned(), false)]);
    assert_eq!([first.outcome, second.outcome], [TriggerOutcome::Done; 2]);
    assert_eq!(first.attempts[0].message, "", "its own part went well");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_a_filter_turns_away_names_the_clause() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|_| ok()).await;
    world.produce(&topic, 0, &["{\"delay\": 12}", "{\"delay\": 95}"]).await;
    let filter = json!({"data": {"delay": [{"numeric": [">", 60]}]}});
    world.apply(trigger(&receiver, json!({"filter": filter}))).await;
    world.until_committed("t", 0, 2).await;
    let told = of_trigger(&world, "in/0/0").await;
    assert_eq!((told.outcome, told.matches), (TriggerOutcome::NotMatched, Some(false)));
    assert_eq!((told.why_not[0].path.as_str(), told.why_not[0].found.as_str()), ("data.delay", "12"));
    assert!(told.attempts.is_empty());
    assert_eq!(of_trigger(&world, "in/0/1").await.outcome, TriggerOutcome::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pending_is_told_and_a_restart_changes_nothing() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|_| status(500)).await;
    let retry = json!({"initial": "1h", "max_interval": "1h", "max_attempts": 5, "jitter": "none"});
    let held = receiver.hold().await;
    world.produce(&topic, 0, &["1", "2"]).await;
    world.apply(trigger(&receiver, json!({"retry": retry}))).await;
    receiver.until(|invoked| invoked.len() == 1).await;
    let told = of_trigger(&world, "in/0/0").await;
    assert_eq!((told.outcome, told.summary.as_str()), (TriggerOutcome::InFlight, "attempt 1 is running"));
    assert!(told.pending.as_ref().is_some_and(|pending| pending.began_ms.is_some()), "{told:#?}");
    drop(held);
    let first = until(&world, "in/0/0", |told| told.outcome == TriggerOutcome::Waiting).await;
    let pending = first.pending.clone().unwrap();
    assert_eq!((pending.attempt, first.attempts.len()), (Some(2), 1));
    assert_eq!(pending.until_ms, first.attempts[0].follows_at_ms);
    let told = of_trigger(&world, "in/0/1").await;
    let behind = told.pending.clone().unwrap().behind.unwrap();
    assert_eq!((told.outcome, behind.offset, behind.attempts), (TriggerOutcome::Queued, 0, 1), "{told:#?}");
    assert_eq!(behind.until_ms, pending.until_ms);
    world.triggers.pause("t").await.unwrap();
    world.produce(&topic, 0, &["3"]).await;
    let told = of_trigger(&world, "in/0/2").await;
    assert_eq!((told.outcome, told.state.as_deref()), (TriggerOutcome::Unread, Some("Paused")), "{told:#?}");

    drop(topic);
    let dir = world.kill().await;
    let world = World::start_in(dir, &[]);
    let told = until(&world, "in/0/0", |told| told.outcome == TriggerOutcome::Unread).await;
    assert!(told.summary.contains("read again"), "{told:#?}");
    assert_eq!(told.attempts, first.attempts, "history is there after the restart");
    world.triggers.resume("t").await.unwrap();
    // The resume may have asked for attempt 2, or not found its window yet.
    let told = until(&world, "in/0/0", |told| told.outcome == TriggerOutcome::Waiting).await;
    let next = told.pending.unwrap().attempt.unwrap() as usize;
    assert!(next >= 2 && told.attempts.len() == next - 1, "{:#?}", told.attempts);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_behind_a_blocked_key_names_what_blocks_it() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|invoked| if invoked.keys[0] == "bad" { status(500) } else { ok() }).await;
    let retry = json!({"initial": "1h", "max_interval": "1h", "max_attempts": 5, "jitter": "none"});
    let mut records = vec![("bad", "1"); 2_100];
    records.push(("good", "2"));
    world.produce_keyed(&topic, 0, &records).await;
    world.apply(trigger(&receiver, json!({"order": "key", "retry": retry}))).await;
    let told = until(&world, "in/0/2050", |told| {
        told.outcome == TriggerOutcome::KeyBlocked
            && told
                .pending
                .as_ref()
                .and_then(|pending| pending.behind.as_ref())
                .is_some_and(|behind| behind.attempts == 1)
    })
    .await;
    let behind = told.pending.unwrap().behind.unwrap();
    assert_eq!(behind.offset, 0);
    assert!(behind.until_ms.is_some() && told.summary.contains("fails since 1 attempt(s)"), "{}", told.summary);
    until(&world, "in/0/2100", |told| told.outcome == TriggerOutcome::Done).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_found_by_its_own_id_in_history_and_in_its_topic_within_a_bound() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    world.topic("other", 1).await;
    let receiver = Receiver::start(|_| ok()).await;
    let event = |id| [("ce_id", id), ("ce_source", "/s"), ("ce_type", "t"), ("ce_specversion", "1.0")];
    produce_with(&world, &topic, "1", &event("a/b/1"));
    world.apply(trigger(&receiver, json!({}))).await;
    world.until_committed("t", 0, 1).await;
    let found = story(&world, "a/b/1").await;
    assert_eq!((found.event.offset, found.event.source.as_str()), (0, "/s"));
    assert_eq!(found.triggers[0].outcome, TriggerOutcome::Done);
    assert_eq!(found.search.unwrap().records, 1, "history knows it");

    // Not in history: in the topic.
    world.triggers.pause("t").await.unwrap();
    produce_with(&world, &topic, "1", &event("late"));
    let values = vec!["x"; 40];
    world.produce(&topic, 0, &values).await;
    assert_eq!(story(&world, "late").await.event.offset, 1);
    let few = SearchLimits { records: 10, ..SearchLimits::default() };
    let bound = world.triggers.trace(&Wanted::parse("late", None), few).await.unwrap_err();
    assert!(bound.to_string().contains("the bound on records ended the search"), "{bound}");
    let TraceError::NotFound { searched, .. } = bound else { panic!("{bound:?}") };
    assert_eq!((searched.records, searched.bound.as_deref()), (10, Some("records")));

    let all = world.triggers.trace(&Wanted::parse("nobody", None), SearchLimits::default()).await.unwrap_err();
    assert!(all.to_string().contains("which is all there is"), "{all}");
    for (wrong, told) in [
        ("in/0/42", "ends before offset 42"),
        ("in/7/0", "has partitions 0 to 0"),
        ("nowhere/0/1", "topic nowhere does not exist"),
    ] {
        let error = world.triggers.trace(&Wanted::parse(wrong, None), SearchLimits::default()).await.unwrap_err();
        assert!(error.to_string().contains(told), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_in_headers_payload_dead_letters_and_results() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|invoked| match invoked.data[0].as_i64() {
        Some(1) if invoked.attempt == 1 => status(500),
        Some(2) => status(422),
        _ => json!({"late": true}).to_string().into_response(),
    })
    .await;
    produce_with(&world, &topic, "1", &[("traceparent", PARENT), ("tracestate", "a=1")]);
    produce_with(&world, &topic, "2", &[("traceparent", PARENT)]);
    produce_with(&world, &topic, "3", &[("traceparent", "nonsense")]);
    let event =
        [("ce_id", "e"), ("ce_source", "/s"), ("ce_type", "t"), ("ce_specversion", "1.0"), ("ce_traceparent", PARENT)];
    produce_with(&world, &topic, "4", &event);
    let more = json!({"dead_letter": {"topic": "in.dlq"}, "destinations": {"results": {"topic": "results"}}});
    world.apply(trigger(&receiver, more)).await;
    world.until_committed("t", 0, 4).await;
    let invoked = receiver.invoked();
    let spans: Vec<&str> = invoked.iter().map(|one| one.traceparent.as_str()).collect();
    assert_eq!(spans.len(), 5);
    for span in [spans[0], spans[1], spans[2], spans[4]] {
        assert!(span.starts_with(&format!("00-{TRACE_ID}-")) && span.ends_with("-01") && span != PARENT, "{spans:?}");
    }
    assert_ne!(spans[0], spans[1], "each attempt is a span of its own");
    assert_eq!(spans[3], "", "none is made up");
    assert_eq!((invoked[0].tracestate.as_str(), invoked[2].tracestate.as_str()), ("a=1", ""));
    let attribute = |index: usize, name: &str| invoked[index].body_json()[0][name].clone();
    assert_eq!((attribute(0, "traceparent"), attribute(0, "tracestate")), (json!(PARENT), json!("a=1")));
    assert_eq!((attribute(4, "traceparent"), attribute(4, "id")), (json!(PARENT), json!("e")));
    assert_eq!(attribute(3, "traceparent"), Value::Null);

    let header = |headers: &[(String, Option<String>)], wanted: &str| {
        headers.iter().find(|(name, _)| name == wanted).and_then(|(_, value)| value.clone())
    };
    let letters = world.records("in.dlq", 0);
    assert_eq!(header(&letters[0].headers, "traceparent").as_deref(), Some(PARENT), "as it was");
    let results = world.records("results", 0);
    let parents: Vec<Option<String>> = results.iter().map(|result| header(&result.headers, "traceparent")).collect();
    assert_eq!(parents, [Some(PARENT.to_owned()), None, Some(PARENT.to_owned())]);
    assert_eq!(header(&results[0].headers, "tracestate").as_deref(), Some("a=1"));

    let story = story(&world, "in/0/0").await;
    assert_eq!(story.event.traceparent.as_deref(), Some(PARENT));
    assert_eq!(story.triggers[0].attempts[0].traceparent.as_deref(), Some(spans[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_of_several_carries_the_trace_of_each_event_and_no_header() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver = Receiver::start(|_| ok()).await;
    let other = PARENT.replace("4bf9", "ffff");
    produce_with(&world, &topic, "1", &[("traceparent", PARENT)]);
    produce_with(&world, &topic, "2", &[("traceparent", &other)]);
    world.apply(trigger(&receiver, json!({"window": {"count": 2}}))).await;
    world.until_committed("t", 0, 2).await;
    let invoked = receiver.invoked();
    assert_eq!((invoked.len(), invoked[0].traceparent.as_str()), (1, ""));
    let events = invoked[0].body_json();
    assert_eq!([&events[0]["traceparent"], &events[1]["traceparent"]], [PARENT, other.as_str()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_keeps_as_much_history_as_it_says() {
    let world = World::start();
    let topic = world.topic("in", 1).await;
    let receiver =
        Receiver::start(|invoked| if invoked.data[0] == 1 && invoked.attempt == 1 { status(500) } else { ok() }).await;
    world.produce(&topic, 0, &["1", "2"]).await;
    world.apply(trigger(&receiver, json!({"trigger": "none", "trace": "none"}))).await;
    world.until_committed("none", 0, 2).await;
    let told = of_trigger(&world, "in/0/0").await;
    assert_eq!((told.outcome, told.attempts.len()), (TriggerOutcome::Finished, 0));
    assert!(told.summary.contains("no attempt is on record"), "{}", told.summary);
    assert_eq!(world.triggers.trace_counts().written, 0);
    assert!(world.broker.topic(TRACE_TOPIC).is_none(), "nobody needs it");

    world.apply(trigger(&receiver, json!({"trace": "failures"}))).await;
    world.until_committed("t", 0, 2).await;
    let kept = story(&world, "in/0/0").await;
    let kept: Vec<&str> = kept.triggers[1].attempts.iter().map(|attempt| attempt.outcome.as_str()).collect();
    assert_eq!(kept, ["failed"]);
    assert_eq!(world.triggers.trace_counts().written, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_reads_history_makes_none_of_that_and_is_told_so() {
    for (code, kept) in [(200, "attempts"), (400, "verdicts")] {
        let world = World::start();
        let topic = world.topic("in", 1).await;
        let receiver = Receiver::start(move |one| status(if one.id.starts_with("watch") { code } else { 200 })).await;
        world.apply(trigger(&receiver, json!({}))).await;
        world.produce(&topic, 0, &["1"]).await;
        world.until_committed("t", 0, 1).await;
        story(&world, "in/0/0").await;
        let input = json!({"topics": ["in", TRACE_TOPIC], "start": "earliest"});
        let watch = trigger(&receiver, json!({"trigger": "watch", "input": input}));
        let applied = world.triggers.apply(TriggerSpec::from_json(&watch).unwrap()).await.unwrap();
        assert!(applied.warnings.iter().any(|warning| warning.contains(TRACE_TOPIC)), "{:?}", applied.warnings);
        // One of `t`, and what it did with the record of `in`.
        let expected = if code == 200 { 2 } else { 3 };
        let traces = |report: &TriggerReport| {
            report.lanes.iter().find(|lane| lane.topic == TRACE_TOPIC).unwrap().committed.get()
        };
        world.until("watch", |report| traces(report) >= expected).await;
        story(&world, "in/0/0").await;
        let tail = world.broker.topic(TRACE_TOPIC).unwrap().partition(0).unwrap().tail();
        assert_eq!(tail.get(), expected, "{kept} of history are no history");
    }
}
