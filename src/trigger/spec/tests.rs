use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::trigger::flow::{Debounce, Singleton, Throttle};
use crate::trigger::retry::{FreeRetry, Jitter};

fn minimal() -> Value {
    json!({"trigger": "slow", "input": {"topic": "flights"}, "function": "notify"})
}

fn full() -> Value {
    json!({
        "trigger": "slow-flights",
        "input": {"topic": "flights", "start": "earliest"},
        "filter": {"data": {"delay": [{"numeric": [">", 60]}]}},
        "transform": "original",
        "window": {"count": 100, "interval": "500ms", "bytes": "1MiB", "max_wait": "2s", "adaptive": {"latency": "300ms"}},
        "order": "key",
        "per_key": {
            "throttle": {"limit": 2, "period": "10s"}, "debounce": {"period": "1s", "max": "5s"}, "singleton": "skip",
        },
        "limits": {"records": 5000, "bytes": "8MiB", "invocations_per_second": 50},
        "bisect": true,
        "trace": "failures",
        "concurrency": 16,
        "function": {"http": {"url": "http://127.0.0.1:9/x"}},
        "retry": {"initial": "200ms", "factor": 1.5, "max_interval": "60s", "max_attempts": 7, "jitter": "equal", "max_age": "48h"},
        "errors_tolerance": "none",
        "dead_letter": {"topic": "flights.dlq"},
        "destinations": {
            "results": {"topic": "late"}, "on_success": {"topic": "flights.done"}, "on_failure": {"topic": "flights.failed"},
        },
    })
}

/// `definition` with the value at `path` replaced.
fn with(mut definition: Value, path: &str, value: Value) -> Value {
    let pointer = format!("/{}", path.replace('.', "/"));
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    definition.pointer_mut(parent).unwrap()[field] = value;
    definition
}

fn paths(value: &Value) -> Vec<String> {
    TriggerSpec::from_json(value).unwrap_err().0.into_iter().map(|error| error.path).collect()
}

#[test]
fn a_minimal_trigger_has_the_defaults() {
    let spec = TriggerSpec::from_json(&minimal()).unwrap();
    assert_eq!(
        spec.input,
        InputSpec {
            topics: TopicSelection::One(TopicName::new("flights").unwrap()),
            start: StartPosition::Latest,
            cluster: None
        }
    );
    assert_eq!(spec.window, WindowSpec { count: 100, interval: Duration::ZERO, bytes: 1 << 20, max_wait: None });
    assert_eq!((spec.order, spec.concurrency, spec.retry), (Order::Partition, 8, RetryPolicy::BackoffRetry));
    assert_eq!((spec.errors_tolerance, &spec.dead_letter, &spec.filter), (ErrorsTolerance::All, &None, &None));
    assert_eq!(spec.function, FunctionRef::Named(FunctionName::new("notify").unwrap()));
}

#[test]
fn a_full_trigger_is_read_as_written() {
    let spec = TriggerSpec::from_json(&full()).unwrap();
    assert_eq!(spec.window.max_wait, Some(Duration::from_secs(2)));
    assert_eq!(spec.window.interval, Duration::from_millis(500));
    assert_eq!(spec.filter.as_ref().unwrap().source(), &full()["filter"]);
    let free = FreeRetry {
        initial: Duration::from_millis(200),
        factor_thousandths: 1500,
        max_interval: Duration::from_secs(60),
        max_attempts: 7,
        jitter: Jitter::Equal,
        max_age: Duration::from_secs(48 * 3600),
    };
    assert_eq!(spec.retry, RetryPolicy::Free(free));
    assert_eq!(spec.function.label(), "http://127.0.0.1:9/x");
    assert_eq!((spec.order, spec.bisect, spec.window_latency), (Order::Key, true, Some(Duration::from_millis(300))));
    assert_eq!(spec.trace, TraceLevel::Failures);
    let per_key = PerKey {
        throttle: Some(Throttle { limit: 2, period_ms: 10_000 }),
        debounce: Some(Debounce { period_ms: 1000, max_ms: 5000 }),
        singleton: Some(Singleton::Skip),
    };
    assert_eq!(spec.per_key, per_key);
    assert_eq!(spec.limits, FlowLimits { records: 5000, bytes: 8 << 20, invocations_per_second: Some(50) });
}

#[test]
fn definitions_print_back_the_same() {
    let mut definitions = vec![minimal(), full()];
    for (path, value) in [
        ("input.start", json!({"offset": 42})),
        ("input.start", json!({"time": "2026-01-31T12:00:00.5+01:00"})),
        ("retry", json!("EXPONENTIAL_DECAY_RETRY")),
        ("retry", json!({})),
        ("retry", json!({"initial": "2h", "factor": 3})),
        ("dead_letter", json!("none")),
        ("filter", json!({})),
    ] {
        definitions.push(with(full(), path, value));
    }
    for definition in definitions {
        let spec = TriggerSpec::from_json(&definition).unwrap();
        let printed = spec.to_json();
        let again = TriggerSpec::from_json(&printed).unwrap();
        assert_eq!(again, spec, "{printed}");
        assert_eq!(again.to_json(), printed);
    }
}

#[test]
fn source_is_another_word_for_input() {
    let mut definition = minimal();
    definition["source"] = definition.as_object_mut().unwrap().remove("input").unwrap();
    assert_eq!(TriggerSpec::from_json(&definition), TriggerSpec::from_json(&minimal()));
    definition["input"] = json!({"topic": "flights"});
    assert_eq!(paths(&definition), ["trigger.source"]);
}

#[test]
fn every_field_names_itself_when_it_is_wrong() {
    let kinds = [json!(null), json!(true), json!(-1), json!(1.5), json!("?"), json!([]), json!([1]), json!({"?": 1})];
    // Beside each field: which of the kinds are right after all, or are wrong further inside, and what else is wrong.
    for (path, but, more) in [
        ("trigger", vec![], vec![json!(""), json!("a b"), json!("t".repeat(201))]),
        ("input", vec![json!({"?": 1})], vec![]),
        ("input.topic", vec![], vec![json!(""), json!(".."), json!("a/b")]),
        (
            "input.start",
            vec![json!({"?": 1})],
            vec![json!("latst"), json!(5), json!({}), json!({"offset": 1, "time": "x"})],
        ),
        ("filter", vec![json!({"?": 1})], vec![]),
        ("transform", vec![json!([1]), json!({"?": 1})], vec![json!({}), json!("jsonpath"), json!({"strict": true})]),
        ("window", vec![json!({"?": 1})], vec![]),
        ("window.count", vec![], vec![json!(0), json!(10_001), json!("100")]),
        ("window.interval", vec![], vec![json!(10), json!("301s"), json!("10")]),
        ("window.bytes", vec![], vec![json!(0), json!("33MiB"), json!("1mb")]),
        ("window.max_wait", vec![], vec![json!(0), json!("25h")]),
        ("window.adaptive", vec![json!(true), json!({"?": 1})], vec![json!("1s")]),
        ("window.adaptive.latency", vec![], vec![json!(0), json!("2h")]),
        ("order", vec![], vec![json!("keys"), json!("None")]),
        ("per_key", vec![json!({"?": 1})], vec![]),
        ("per_key.throttle", vec![json!({"?": 1})], vec![]),
        ("per_key.throttle.limit", vec![], vec![json!(0), json!(1001)]),
        ("per_key.throttle.period", vec![], vec![json!(0), json!("25h")]),
        ("per_key.debounce", vec![json!({"?": 1})], vec![]),
        ("per_key.debounce.period", vec![], vec![json!(0), json!("2h")]),
        ("per_key.debounce.max", vec![], vec![json!("999ms"), json!("25h")]),
        ("per_key.singleton", vec![], vec![json!("cancel")]),
        ("limits", vec![json!({"?": 1})], vec![]),
        ("limits.records", vec![], vec![json!(0), json!(1_000_001)]),
        ("limits.bytes", vec![], vec![json!(1023), json!("17GiB")]),
        ("limits.invocations_per_second", vec![], vec![json!(0), json!(1_000_001)]),
        ("concurrency", vec![], vec![json!(0), json!(10_001)]),
        ("function", vec![json!({"?": 1})], vec![json!({}), json!("a b"), json!({"http": 1, "x": 2})]),
        ("function.http", vec![json!({"?": 1})], vec![]),
        ("function.http.url", vec![], vec![json!("/x"), json!("ftp://x")]),
        ("retry", vec![json!({"?": 1})], vec![json!("backoff_retry")]),
        ("retry.initial", vec![], vec![json!(0), json!(200), json!("25h")]),
        ("retry.factor", vec![json!(1.5)], vec![json!(0.5), json!(101), json!(1.0001), json!("2")]),
        ("retry.max_interval", vec![], vec![json!("25h"), json!("1ms")]),
        ("retry.max_attempts", vec![], vec![json!(0), json!(10_001)]),
        ("retry.jitter", vec![], vec![json!("some")]),
        ("retry.max_age", vec![], vec![json!("999ms"), json!("31d")]),
        ("errors_tolerance", vec![], vec![json!("ALL")]),
        ("dead_letter", vec![json!({"?": 1})], vec![json!("flights.dlq")]),
        ("dead_letter.topic", vec![], vec![json!(""), json!("__tripline.x"), json!("flights")]),
        ("destinations", vec![json!({"?": 1})], vec![]),
        ("destinations.results", vec![json!({"?": 1})], vec![json!("late")]),
        ("destinations.on_success.topic", vec![], vec![json!(""), json!("__tripline.x"), json!("flights")]),
        ("destinations.on_failure.topic", vec![], vec![json!(""), json!("__tripline.x"), json!("flights")]),
        ("bisect", vec![json!(true)], vec![json!("yes")]),
    ] {
        let expected = if path == "trigger" { path.to_owned() } else { format!("trigger.{path}") };
        for wrong in kinds.iter().filter(|kind| !but.contains(kind)).chain(&more) {
            assert_eq!(paths(&with(full(), path, wrong.clone())), [expected.as_str()], "{path}: {wrong}");
        }
    }
}

#[test]
fn unknown_names_are_refused_with_the_nearest_right_one() {
    for (path, suggestion) in [
        ("windw", Some("window")),
        ("window.intervall", Some("interval")),
        ("input.strat", Some("start")),
        ("retry.max_attempt", Some("max_attempts")),
        ("dead_letter.tpoic", Some("topic")),
        ("deadletter", Some("dead_letter")),
        ("zebra", None),
        ("window.zebra", None),
    ] {
        let error = TriggerSpec::from_json(&with(full(), path, json!(1))).unwrap_err().0.remove(0);
        assert_eq!((error.path, error.suggestion.as_deref()), (format!("trigger.{path}"), suggestion));
    }
}

#[test]
fn what_is_wrong_further_inside_is_named_there() {
    for (path, value, expected) in [
        ("input.start", json!({"offset": -1}), "trigger.input.start.offset"),
        ("input.start", json!({"time": "yesterday"}), "trigger.input.start.time"),
        ("input.start", json!({"ofset": 1}), "trigger.input.start.ofset"),
        ("filter", json!({"data": {"delay": [{"numeric": ["?"]}]}}), "trigger.filter.data.delay"),
        ("filter", json!({"$or": [1]}), "trigger.filter.$or"),
        ("function", json!({"htp": {"url": "x"}}), "trigger.function.htp"),
    ] {
        assert_eq!(paths(&with(full(), path, value)), [expected]);
    }
    for missing in ["trigger", "input", "function"] {
        let mut definition = full();
        definition.as_object_mut().unwrap().remove(missing);
        let expected = if missing == "trigger" { "trigger".to_owned() } else { format!("trigger.{missing}") };
        assert_eq!(paths(&definition), [expected]);
    }
    assert_eq!(paths(&json!([])), ["trigger"]);
}

#[test]
fn what_drops_records_is_said() {
    let warnings = |path: &str, value: Value| {
        let definition = with(with(full(), "errors_tolerance", json!("all")), path, value);
        TriggerSpec::from_json(&definition).unwrap().warnings()
    };
    assert!(warnings("dead_letter", json!("none"))[0].contains("dropped"));
    assert_eq!(warnings("concurrency", json!(1)), Vec::<String>::new());
    assert!(warnings("errors_tolerance", json!("none"))[0].contains("stays empty"));
}

#[test]
fn who_reads_what_the_broker_writes_about_it_is_told_what_follows() {
    let warns = |topic: &str, of: &str| {
        let definition = with(minimal(), "input.topic", json!(topic));
        TriggerSpec::from_json(&definition).unwrap().warnings().iter().any(|warning| warning.contains(of))
    };
    assert!(warns(TRACE_TOPIC, "leaves no trace") && warns(LOG_TOPIC, "each line that its own function prints"));
    assert!(!warns("in", "leaves no trace") && !warns("in", "prints"));
}

#[test]
fn a_function_that_takes_raw_bytes_takes_one_record_at_a_time() {
    let raw = json!({"function": "notify", "runtime": "http", "url": "http://a/", "payload": "raw"});
    let function = FunctionSpec::from_json(&raw).unwrap();
    let spec = TriggerSpec::from_json(&minimal()).unwrap();
    assert_eq!(spec.check_function(&function).unwrap_err().0[0].path, "trigger.window.count");
    let one = TriggerSpec::from_json(&with(full(), "window.count", json!(1))).unwrap();
    assert_eq!(one.check_function(&function), Ok(()));
}

fn any_json() -> impl Strategy<Value = Value> {
    let words = ["topic", "start", "offset", "http", "url", "initial", "factor", "count", "$or", "a"];
    let plain = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,6}".prop_map(Value::from)
    ];
    plain.prop_recursive(3, 16, 4, move |inner| {
        let object = proptest::collection::btree_map(proptest::sample::select(words.to_vec()), inner.clone(), 0..4);
        let object = object.prop_map(|map| map.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
        prop_oneof![object.prop_map(Value::Object), proptest::collection::vec(inner, 0..3).prop_map(Value::from)]
    })
}

proptest! {
    #[test]
    fn any_json_in_any_field_is_read_or_refused_with_a_reason(
        field in proptest::sample::select(vec!["trigger", "input", "filter", "window", "function", "retry", "dead_letter", "transform"]),
        value in any_json(),
    ) {
        match TriggerSpec::from_json(&with(full(), field, value)) {
            Ok(spec) => prop_assert_eq!(TriggerSpec::from_json(&spec.to_json()), Ok(spec)),
            Err(errors) => prop_assert!(errors.0.iter().all(|error| error.path.starts_with("trigger"))),
        }
    }
}
