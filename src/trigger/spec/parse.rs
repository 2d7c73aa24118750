//! A trigger definition as written, checked.

use std::time::Duration;

use serde_json::Value;

use super::input::{TopicSelection, input};
use super::{CONCURRENCY_MAX, FlowLimits, FunctionRef, Order, TriggerSpec};
use crate::config::fields::Fields;
use crate::function::spec::http_url;
use crate::topic::name::{FunctionName, TRIGGER_NAME_BYTES_MAX, TopicName, TriggerName, allowed_name};
use crate::topic::spec::new_topic_name;
use crate::trigger::attempt::ErrorsTolerance;
use crate::trigger::filter::Pattern;
use crate::trigger::flow::{Debounce, PerKey, Singleton, Throttle};
use crate::trigger::outputs::Destinations;
use crate::trigger::retry::{FreeRetry, Jitter, RetryPolicy};
use crate::trigger::trace::TraceLevel;
use crate::trigger::transform::Transform;
use crate::trigger::window::{WINDOW_COUNT_MAX, WindowSpec};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const ADAPTIVE_LATENCY: Duration = SECOND;
const THROTTLE_MAX: u32 = 1000;
const LIMIT_RECORDS_MAX: u32 = 1_000_000;
const LIMIT_BYTES_MAX: u64 = 16 << 30;
const RATE_MAX: u32 = 1_000_000;
const WINDOW_BYTES_MAX: u64 = 32 << 20;
const WINDOW_INTERVAL_MAX: Duration = Duration::from_secs(300);
const ATTEMPTS_MAX: u32 = 10_000;
const AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

const FUNCTION: &str = "the name of a function, or {http: {url: …}}";
const RETRY: &str = "BACKOFF_RETRY, EXPONENTIAL_DECAY_RETRY, or an object with initial, factor, max_interval, max_attempts, jitter, max_age";
const DEAD_LETTER: &str = "{topic: …} or none";
const FACTOR: &str = "a number from 1 to 100 with at most three decimals";

pub(super) fn trigger(fields: &mut Fields<'_>) -> Option<TriggerSpec> {
    let name = fields.name("trigger", TriggerName::new, &allowed_name(TRIGGER_NAME_BYTES_MAX));
    fields.not_yet(&["schedule"]);
    let input = input(fields);
    let filter = filter(fields);
    let transform = Transform::field(fields, "transform");
    let (window, window_latency) = window(fields);
    let orders = [("partition", Order::Partition), ("key", Order::Key), ("none", Order::None)];
    let order = fields.choice("order", &orders, &[], Order::Partition);
    let per_key = per_key(fields);
    let limits = limits(fields);
    let bisect = fields.flag("bisect", false);
    let concurrency = fields.integer("concurrency", 1..=CONCURRENCY_MAX, 8);
    let function = function(fields);
    let retry = retry(fields);
    let tolerances = [("all", ErrorsTolerance::All), ("none", ErrorsTolerance::None)];
    let errors_tolerance = fields.choice("errors_tolerance", &tolerances, &[], ErrorsTolerance::All);
    let dead_letter = dead_letter(fields, input.as_ref().map(|input| &input.topics));
    let destinations = destinations(fields, input.as_ref().map(|input| &input.topics));
    let levels = [("all", TraceLevel::All), ("failures", TraceLevel::Failures), ("none", TraceLevel::None)];
    let trace = fields.choice("trace", &levels, &[], TraceLevel::All);
    Some(TriggerSpec {
        name: name?,
        input: input?,
        filter,
        transform: transform?,
        window,
        window_latency,
        order,
        concurrency,
        function: function?,
        retry,
        errors_tolerance,
        dead_letter,
        bisect,
        per_key,
        limits,
        destinations,
        trace,
    })
}

fn filter(fields: &mut Fields<'_>) -> Option<Pattern> {
    let pattern = Pattern::parse(fields.value("filter")?);
    match pattern {
        Ok(pattern) => Some(pattern),
        Err(error) if error.path == "pattern" => {
            fields.wrong("filter", error.reason);
            None
        }
        Err(error) => {
            let found = fields.value("filter").and_then(|filter| value_at(filter, &error.path));
            fields.wrong_below("filter", &error.path, found, error.reason);
            None
        }
    }
}

/// What stands at keys joined with dots, where no key has a dot itself.
fn value_at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(value, |value, key| value.get(key))
}

fn window(fields: &mut Fields<'_>) -> (WindowSpec, Option<Duration>) {
    let default = WindowSpec::default();
    let read = fields.object("window", |fields| {
        let spec = WindowSpec {
            count: fields.integer("count", 1..=WINDOW_COUNT_MAX, default.count),
            interval: fields.duration("interval", Duration::ZERO..=WINDOW_INTERVAL_MAX, default.interval),
            bytes: fields.size("bytes", 1..=WINDOW_BYTES_MAX, default.bytes),
            max_wait: fields.optional_duration("max_wait", MILLISECOND..=DAY),
        };
        Some((spec, adaptive(fields)))
    });
    read.unwrap_or((default, None))
}

/// How long an attempt should take, when the size of windows adapts to that.
fn adaptive(fields: &mut Fields<'_>) -> Option<Duration> {
    match fields.value("adaptive")? {
        Value::Bool(adaptive) => adaptive.then_some(ADAPTIVE_LATENCY),
        Value::Object(_) => {
            fields.object("adaptive", |fields| Some(fields.duration("latency", MILLISECOND..=HOUR, ADAPTIVE_LATENCY)))
        }
        _ => {
            fields.wrong("adaptive", "true, false or {latency: 500ms}");
            None
        }
    }
}

fn per_key(fields: &mut Fields<'_>) -> PerKey {
    // A wrong order is told by itself.
    let other_order = fields.value("order").is_none_or(|order| order == "partition" || order == "none");
    if fields.value("per_key").is_some() && other_order {
        fields.wrong("per_key", "nothing, unless `order` is key");
        return PerKey::default();
    }
    let read = fields.object("per_key", |fields| {
        let throttle = fields.object("throttle", |fields| {
            let limit = fields.integer("limit", 1..=THROTTLE_MAX, 1);
            let period_ms = milliseconds(fields.duration("period", MILLISECOND..=DAY, SECOND));
            Some(Throttle { limit, period_ms })
        });
        let debounce = fields.object("debounce", |fields| {
            let period = fields.duration("period", MILLISECOND..=HOUR, SECOND);
            let max = fields.duration("max", period..=DAY, DAY);
            Some(Debounce { period_ms: milliseconds(period), max_ms: milliseconds(max) })
        });
        let singleton = fields
            .value("singleton")
            .is_some()
            .then(|| fields.choice("singleton", &[("skip", Singleton::Skip)], &[], Singleton::Skip));
        Some(PerKey { throttle, debounce, singleton })
    });
    read.unwrap_or_default()
}

fn limits(fields: &mut Fields<'_>) -> FlowLimits {
    let default = FlowLimits::default();
    let read = fields.object("limits", |fields| {
        let rate = "invocations_per_second";
        Some(FlowLimits {
            records: fields.integer("records", 1..=LIMIT_RECORDS_MAX, default.records),
            bytes: fields.size("bytes", 1024..=LIMIT_BYTES_MAX, default.bytes),
            invocations_per_second: fields.value(rate).is_some().then(|| fields.integer(rate, 1..=RATE_MAX, 1)),
        })
    });
    read.unwrap_or(default)
}

/// At most days, so it fits.
fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn function(fields: &mut Fields<'_>) -> Option<FunctionRef> {
    match fields.value("function") {
        Some(Value::String(_)) => fields.name("function", FunctionName::new, FUNCTION).map(FunctionRef::Named),
        Some(Value::Object(map)) if map.len() == 1 => fields.object("function", |fields| {
            // Any other name is reported as unknown.
            fields.value("http")?;
            fields.object("http", |fields| Some(FunctionRef::Http { url: http_url(fields, "url")? }))
        }),
        _ => {
            fields.wrong("function", FUNCTION);
            None
        }
    }
}

fn retry(fields: &mut Fields<'_>) -> RetryPolicy {
    match fields.value("retry") {
        None => RetryPolicy::default(),
        Some(Value::String(_)) => {
            let presets = [
                ("BACKOFF_RETRY", RetryPolicy::BackoffRetry),
                ("EXPONENTIAL_DECAY_RETRY", RetryPolicy::ExponentialDecayRetry),
            ];
            fields.choice("retry", &presets, &[], RetryPolicy::default())
        }
        Some(Value::Object(_)) => {
            fields.object("retry", free_retry).map_or_else(RetryPolicy::default, RetryPolicy::Free)
        }
        Some(_) => {
            fields.wrong("retry", RETRY);
            RetryPolicy::default()
        }
    }
}

fn free_retry(fields: &mut Fields<'_>) -> Option<FreeRetry> {
    let default = FreeRetry::default();
    let initial = fields.duration("initial", MILLISECOND..=DAY, default.initial);
    let factor_thousandths = factor(fields).unwrap_or(default.factor_thousandths);
    let max_interval = fields.duration("max_interval", MILLISECOND..=DAY, default.max_interval.max(initial));
    if max_interval < initial {
        fields.wrong("max_interval", "at least `initial`");
    }
    let max_attempts = fields.integer("max_attempts", 1..=ATTEMPTS_MAX, default.max_attempts);
    let jitters = [("full", Jitter::Full), ("equal", Jitter::Equal), ("none", Jitter::None)];
    let jitter = fields.choice("jitter", &jitters, &[], default.jitter);
    let max_age = fields.duration("max_age", SECOND..=AGE_MAX, default.max_age);
    Some(FreeRetry { initial, factor_thousandths, max_interval, max_attempts, jitter, max_age })
}

/// A factor with at most three decimals, so that it prints as it was written.
fn factor(fields: &mut Fields<'_>) -> Option<u32> {
    let thousandths = fields.value("factor")?.as_f64().map(|factor| factor * 1000.0);
    let whole =
        thousandths.filter(|number| (1000.0..=100_000.0).contains(number) && (number - number.round()).abs() < 1e-6);
    if whole.is_none() {
        fields.wrong("factor", FACTOR);
    }
    // Between 1,000 and 100,000, so nothing is cut.
    whole.map(|number| number.round() as u32)
}

fn destinations(fields: &mut Fields<'_>, input: Option<&TopicSelection>) -> Destinations {
    let read = fields.object("destinations", |fields| {
        let results = other_topic(fields, "results", input);
        let on_success = other_topic(fields, "on_success", input);
        let on_failure = other_topic(fields, "on_failure", input);
        Some(Destinations { results, on_success, on_failure })
    });
    read.unwrap_or_default()
}

/// `{topic: …}`, another one than the trigger reads.
fn other_topic(fields: &mut Fields<'_>, field: &'static str, input: Option<&TopicSelection>) -> Option<TopicName> {
    fields.value(field)?;
    fields.object(field, |fields| {
        let topic = new_topic_name(fields, "topic")?;
        if input.is_some_and(|input| input.selects(topic.as_str())) {
            fields.wrong("topic", "another topic than the trigger's input, which it would feed for ever");
            return None;
        }
        Some(topic)
    })
}

fn dead_letter(fields: &mut Fields<'_>, input: Option<&TopicSelection>) -> Option<TopicName> {
    match fields.value("dead_letter")? {
        Value::String(word) if word == "none" => None,
        Value::Object(_) => other_topic(fields, "dead_letter", input),
        _ => {
            fields.wrong("dead_letter", DEAD_LETTER);
            None
        }
    }
}
