use proptest::prelude::*;

use super::*;

fn minimal() -> Value {
    json!({"schedule": "nightly", "cron": "0 2 * * *", "topic": "ticks"})
}

fn with(mut definition: Value, field: &str, value: Value) -> Value {
    definition[field] = value;
    definition
}

fn spec(value: &Value) -> ScheduleSpec {
    ScheduleSpec::from_json(value).unwrap()
}

fn errors(value: &Value) -> Vec<String> {
    ScheduleSpec::from_json(value).unwrap_err().0.iter().map(ToString::to_string).collect()
}

fn rule(rule: &str, value: impl Into<Value>) -> Value {
    let mut definition = json!({"schedule": "s", "topic": "t"});
    definition[rule] = value.into();
    definition
}

fn at(text: &str) -> i64 {
    text.parse::<Timestamp>().unwrap().as_second()
}

fn next(definition: &Value, after: &str) -> Option<String> {
    spec(definition).timing.next_after(at(after)).map(Tick::time_text)
}

#[test]
fn a_minimal_schedule_has_the_defaults() {
    let spec = spec(&minimal());
    assert_eq!((spec.name.as_str(), spec.topic.as_str()), ("nightly", "ticks"));
    assert_eq!((spec.key, spec.data, spec.catch_up, spec.enabled), (None, None, CatchUp::Skip, true));
    assert_eq!((spec.timing.zone, spec.timing.start, spec.timing.end), (TimeZone::UTC, None, None));
    assert_eq!(spec.timing.jitter, Duration::ZERO);
}

#[test]
fn definitions_print_back_the_same() {
    let mut definitions =
        vec![minimal(), rule("rate", "90s"), rule("at", "2026-12-01T08:00:00"), rule("at", "2026-12-01")];
    for (field, value) in [
        ("timezone", json!("europe/berlin")),
        ("start", json!("2026-01-01T00:00:00")),
        ("end", json!("2026-12-31T23:59:59+01:00")),
        ("jitter", json!("30s")),
        ("key", json!("k")),
        ("data", json!({"b": 1, "a": [null, "x"]})),
        ("data", json!(null)),
        ("catch_up", json!("once")),
        ("enabled", json!(false)),
    ] {
        definitions.push(with(minimal(), field, value));
    }
    for definition in definitions {
        let spec = spec(&definition);
        let printed = spec.to_json();
        assert_eq!(ScheduleSpec::from_json(&printed).unwrap(), spec, "{printed}");
        assert_eq!(ScheduleSpec::from_json(&printed).unwrap().to_json(), printed);
    }
    assert_eq!(spec(&with(minimal(), "timezone", json!("europe/berlin"))).to_json()["timezone"], "Europe/Berlin");
}

#[test]
fn every_field_names_itself_when_it_is_wrong() {
    for (field, values) in [
        ("schedule", vec![json!(""), json!(1), json!("a/b"), json!({"cron": "* * * * *"})]),
        ("cron", vec![json!(1), json!("* * * *"), json!("0 0 30 2 *"), json!("60 * * * *")]),
        ("timezone", vec![json!(1), json!("Berlin"), json!("Etc/Unknown"), json!("+01:00"), json!("")]),
        ("topic", vec![json!(""), json!(null), json!("__tripline.x")]),
        ("key", vec![json!(""), json!(1), json!("k".repeat(1025))]),
        ("data", vec![json!("x".repeat(256 << 10))]),
        ("catch_up", vec![json!("all"), json!(true)]),
        (
            "start",
            vec![
                json!(1),
                json!("tomorrow"),
                json!("2026-02-30"),
                json!("2026-01-01T00:00:00.5"),
                json!("1969-12-31"),
                json!("9001-01-01"),
                json!("2026-01-01T00:00:00+99:00"),
            ],
        ),
        ("end", vec![json!("x")]),
        ("jitter", vec![json!("25h"), json!(5)]),
        ("enabled", vec![json!("yes"), json!(null)]),
    ] {
        for value in values {
            let found = errors(&with(minimal(), field, value.clone()));
            let path = if field == "schedule" { "schedule: ".to_owned() } else { format!("schedule.{field}: ") };
            assert!(found.len() == 1 && found[0].starts_with(&path), "{field} {value}: {found:?}");
        }
    }
    for rate in [json!("999ms"), json!("1500ms"), json!("367d"), json!(0), json!(5)] {
        assert!(errors(&rule("rate", rate.clone()))[0].starts_with("schedule.rate: "), "{rate}");
    }
    assert!(errors(&rule("at", "soon"))[0].starts_with("schedule.at: "));
    assert!(errors(&with(minimal(), "crom", json!(1)))[0].contains("did you mean `cron`?"));
}

#[test]
fn an_error_says_where_and_what_is_near() {
    let found = errors(&with(minimal(), "cron", json!("0 25 * * *")));
    assert!(found[0].contains("hour \"25\": "), "{found:?}");
    let found = errors(&with(minimal(), "timezone", json!("Europe/Berln")));
    assert!(found[0].contains("did you mean Europe/Berlin?"), "{found:?}");
}

#[test]
fn a_schedule_has_one_rule_and_at_least_one_tick() {
    assert_eq!(
        errors(&json!({"schedule": "s", "topic": "t"}))[0],
        "schedule.cron: found nothing, allowed: one of cron, rate and at, and only one"
    );
    assert!(errors(&with(minimal(), "rate", json!("5m")))[0].starts_with("schedule.rate: "));
    let bounded = with(with(minimal(), "start", json!("2026-02-01")), "end", json!("2026-01-01"));
    assert!(errors(&bounded)[0].starts_with("schedule.end: "));
    let empty = with(with(minimal(), "start", json!("2026-01-01T03:00:00")), "end", json!("2026-01-01T04:00:00"));
    assert_eq!(
        errors(&empty)[0],
        "schedule.cron: found \"0 2 * * *\", allowed: a rule with a tick between `start` and `end`"
    );
}

#[test]
fn a_rate_counts_from_its_start_or_from_1970() {
    assert_eq!(next(&rule("rate", "5m"), "2026-01-01T00:03:20Z").unwrap(), "2026-01-01T00:05:00Z");
    assert_eq!(next(&rule("rate", "5m"), "2026-01-01T00:05:00Z").unwrap(), "2026-01-01T00:10:00Z");
    let started = with(rule("rate", "24h"), "start", json!("2026-01-01T09:30:00+01:00"));
    assert_eq!(next(&started, "2020-01-01T00:00:00Z").unwrap(), "2026-01-01T08:30:00Z");
    assert_eq!(next(&started, "2026-01-01T08:30:00Z").unwrap(), "2026-01-02T08:30:00Z");
}

#[test]
fn start_and_end_are_ticks_themselves_if_the_rule_says_so() {
    let bounded = with(with(minimal(), "start", json!("2026-01-01T02:00:00")), "end", json!("2026-01-02T02:00:00"));
    assert_eq!(next(&bounded, "2025-01-01T00:00:00Z").unwrap(), "2026-01-01T02:00:00Z");
    assert_eq!(next(&bounded, "2026-01-01T02:00:00Z").unwrap(), "2026-01-02T02:00:00Z");
    assert_eq!(next(&bounded, "2026-01-02T02:00:00Z"), None);
}

#[test]
fn a_moment_is_read_by_the_clock_of_the_zone() {
    let local = with(rule("at", "2026-12-01T08:00:00"), "timezone", json!("Europe/Berlin"));
    assert_eq!(next(&local, "2026-01-01T00:00:00Z").unwrap(), "2026-12-01T07:00:00Z");
    assert_eq!(next(&local, "2026-12-01T07:00:00Z"), None);
    let absolute = with(local, "at", json!("2026-12-01T08:00:00Z"));
    assert_eq!(next(&absolute, "2026-01-01T00:00:00Z").unwrap(), "2026-12-01T08:00:00Z");
    let in_gap = with(rule("at", "2026-03-29T02:30:00"), "timezone", json!("Europe/Berlin"));
    assert_eq!(next(&in_gap, "2026-01-01T00:00:00Z").unwrap(), "2026-03-29T01:00:00Z");
}

#[test]
fn jitter_stays_between_a_tick_and_the_next() {
    let spec = spec(&with(rule("rate", "10s"), "jitter", json!("1h")));
    let mut seen = std::collections::HashSet::new();
    for number in 0..1000 {
        let tick = Tick::new(number * 10);
        let delay_ms = spec.fire_ms(tick) - tick.unix_ms();
        assert!((0..10_000).contains(&delay_ms));
        seen.insert(delay_ms / 1000);
        assert_eq!(spec.fire_ms(tick), tick.unix_ms() + delay_ms, "the same whenever it is asked");
    }
    assert_eq!(seen.len(), 10, "and is spread");
}

proptest! {
    #[test]
    fn the_last_tick_of_a_range_is_the_last_that_the_search_meets(
        definition in prop::sample::select(vec![
            rule("cron", "*/7 3-5 * * MON-FRI"), rule("cron", "30 2 * * *"), rule("rate", "97s"), rule("at", "2026-03-29T02:30:00"),
            with(rule("rate", "11m"), "end", json!("2026-03-29T01:00:00Z")),
        ]),
        from in 0i64..200_000,
        length in 0i64..100_000,
    ) {
        let timing = spec(&with(definition, "timezone", json!("Europe/Berlin"))).timing;
        let after_s = at("2026-03-27T00:00:00Z") + from;
        let (mut last, mut at_s) = (None, after_s);
        while let Some(tick) = timing.next_after(at_s).filter(|tick| tick.unix_s() <= after_s + length) {
            (last, at_s) = (Some(tick), tick.unix_s());
        }
        prop_assert_eq!(timing.last_in(after_s, after_s + length), last);
    }
}
