//! What people ask of runs, as it is written in a request.

use std::time::Duration;

use serde_json::Value;
use tripline_storage::Offset;

use super::patterns::checked;
use crate::config::fields::{Fields, read};
use crate::http::problem::Problem;
use crate::trigger::dry_run::{DryRunRequest, SAMPLES_MAX, TIME_MAX};
use crate::trigger::run::{RATE_MAX, REDRIVES_MAX, RangeRequest, RedriveRequest, ReplayRequest};
use crate::trigger::spec::StartPosition;

const POSITION: &str = "earliest, latest, an offset, or a time such as 2026-01-31T12:00:00Z";
const RANGES: &str = "a list of objects such as {partition: 0, from: 5, to: 9}, instead of partition, from and to";
const DEFAULT_TIME: Duration = Duration::from_secs(10);

/// A position in a partition; `default` when it is left out.
fn position(fields: &mut Fields<'_>, name: &'static str, default: StartPosition) -> Option<StartPosition> {
    let position = match fields.value(name) {
        None => return Some(default),
        Some(Value::Number(number)) => number.as_i64().and_then(Offset::new).map(StartPosition::Offset),
        Some(Value::String(text)) => match text.as_str() {
            "earliest" => Some(StartPosition::Earliest),
            "latest" => Some(StartPosition::Latest),
            text => text.parse().ok().map(StartPosition::Time),
        },
        Some(_) => None,
    };
    if position.is_none() {
        fields.wrong(name, POSITION);
    }
    position
}

fn partition(fields: &mut Fields<'_>) -> Option<u32> {
    fields.value("partition")?;
    Some(fields.integer("partition", 0..=u32::MAX, 0))
}

/// Which topic, for a trigger that reads several.
fn topic(fields: &mut Fields<'_>) -> Option<String> {
    fields.optional_text("topic", "the name of a topic that the trigger reads").map(str::to_owned)
}

fn range(fields: &mut Fields<'_>) -> Option<RangeRequest> {
    let partition = partition(fields);
    let from = position(fields, "from", StartPosition::Earliest);
    let to = position(fields, "to", StartPosition::Latest);
    Some(RangeRequest { partition, from: from?, to: to? })
}

/// `ranges`, or one range of the object itself; everything when it names none.
fn ranges(fields: &mut Fields<'_>) -> Option<Vec<RangeRequest>> {
    let one = range(fields)?;
    match fields.value("ranges") {
        None => Some(vec![one]),
        Some(Value::Array(list)) if one == RangeRequest::ALL && !list.is_empty() => {
            let element = |(index, element): (usize, &Value)| match element {
                Value::Object(map) => fields.element("ranges", index, map, range),
                other => {
                    fields.wrong_at("ranges", index, other, "an object such as {partition: 0, from: 5, to: 9}");
                    None
                }
            };
            list.iter().enumerate().map(element).collect()
        }
        Some(_) => {
            fields.wrong("ranges", RANGES);
            None
        }
    }
}

fn rate(fields: &mut Fields<'_>) -> Option<u32> {
    fields.value("rate")?;
    Some(fields.integer("rate", 1..=RATE_MAX, 1))
}

/// A replay.
pub(crate) fn replay(body: &Value) -> Result<ReplayRequest, Problem> {
    let request = read(body, "replay", |fields| {
        let (topic, ranges, rate) = (topic(fields), ranges(fields), rate(fields));
        Some(ReplayRequest { topic, ranges: ranges?, rate })
    })?;
    Ok(request)
}

/// A redrive, and whether it is only looked at.
pub(crate) fn redrive(body: &Value) -> Result<(RedriveRequest, bool), Problem> {
    let (filter, request, dry_run) = read(body, "redrive", |fields| {
        let (ranges, rate) = (ranges(fields), rate(fields));
        let filter = fields.value("filter").cloned();
        let max = fields.value("max").is_some().then(|| fields.integer("max", 1..=u32::MAX, 1));
        let redrives_max = fields.integer("max_redrives", 1..=1_000_000, REDRIVES_MAX);
        let (force, again, dry_run) =
            (fields.flag("force", false), fields.flag("again", false), fields.flag("dry_run", false));
        let redrives_max = (!force).then_some(redrives_max);
        let max = max.map(u64::from);
        Some((filter, RedriveRequest { ranges: ranges?, filter: None, max, rate, redrives_max, again }, dry_run))
    })?;
    let filter = filter.as_ref().map(checked).transpose()?;
    Ok((RedriveRequest { filter, ..request }, dry_run))
}

/// Which letters to let go: all below `to`.
pub(crate) fn discard(body: &Value) -> Result<Vec<RangeRequest>, Problem> {
    let range = read(body, "discard", |fields| {
        let partition = partition(fields);
        if fields.value("to").is_none() {
            fields.wrong("to", POSITION);
        }
        let to = position(fields, "to", StartPosition::Latest);
        Some(RangeRequest { partition, from: StartPosition::Earliest, to: to? })
    })?;
    Ok(vec![range])
}

/// Where to set a trigger.
pub(crate) fn reset(body: &Value) -> Result<(Option<String>, Option<u32>, StartPosition), Problem> {
    let reset = read(body, "reset", |fields| {
        let (topic, partition) = (topic(fields), partition(fields));
        if fields.value("to").is_none() {
            fields.wrong("to", POSITION);
        }
        let to = position(fields, "to", StartPosition::Latest);
        Some((topic, partition, to?))
    })?;
    Ok(reset)
}

/// A dry run.
pub(crate) fn dry_run(body: &Value) -> Result<DryRunRequest, Problem> {
    let (pattern, request) = read(body, "dry-run", |fields| {
        let (topic, ranges) = (topic(fields), ranges(fields));
        let pattern = fields.value("pattern").cloned();
        let samples = fields.integer("samples", 0..=SAMPLES_MAX, 5);
        let time = fields.duration("time", Duration::from_millis(1)..=TIME_MAX, DEFAULT_TIME);
        Some((pattern, DryRunRequest { topic, ranges: ranges?, filter: None, samples, time }))
    })?;
    let filter = pattern.as_ref().map(checked).transpose()?;
    Ok(DryRunRequest { filter, ..request })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(offset: i64) -> StartPosition {
        StartPosition::Offset(Offset::new(offset).unwrap())
    }

    fn detail<T: std::fmt::Debug>(result: Result<T, Problem>) -> String {
        result.unwrap_err().detail
    }

    #[test]
    fn a_range_is_everything_unless_something_is_said() {
        assert_eq!(
            replay(&json!({})).unwrap(),
            ReplayRequest { topic: None, ranges: vec![RangeRequest::ALL], rate: None }
        );
        let one =
            replay(&json!({"topic": "a", "partition": 2, "from": 5, "to": "2026-01-31T12:00:00Z", "rate": 7})).unwrap();
        let time = StartPosition::Time("2026-01-31T12:00:00Z".parse().unwrap());
        let range = RangeRequest { partition: Some(2), from: at(5), to: time };
        assert_eq!(one, ReplayRequest { topic: Some("a".to_owned()), ranges: vec![range], rate: Some(7) });
        let several =
            replay(&json!({"ranges": [{"partition": 0, "to": 3}, {"partition": 1, "from": "latest"}]})).unwrap();
        assert_eq!(several.ranges[0], RangeRequest { partition: Some(0), from: StartPosition::Earliest, to: at(3) });
        assert_eq!(several.ranges[1].from, StartPosition::Latest);
    }

    #[test]
    fn wrong_fields_are_named_with_what_is_allowed() {
        assert!(detail(replay(&json!({"from": -1}))).starts_with("replay.from: found -1, allowed: earliest, latest"));
        assert!(detail(replay(&json!({"form": 1}))).contains("did you mean `from`?"));
        assert!(detail(replay(&json!({"from": 1, "ranges": [{}]}))).starts_with("replay.ranges: "));
        assert!(detail(replay(&json!({"ranges": [{}, 3]}))).starts_with("replay.ranges[1]: found 3"));
        assert!(detail(replay(&json!({"ranges": [{"to": "x"}]}))).starts_with("replay.ranges[0].to: "));
        assert!(detail(replay(&json!({"rate": 0}))).contains("a whole number from 1 to 1000000"));
        assert!(detail(discard(&json!({}))).starts_with("discard.to: found nothing"));
        assert!(detail(reset(&json!({"to": true}))).starts_with("reset.to: found true"));
        assert!(detail(dry_run(&json!({"time": "1h"}))).contains("to 30s"));
        assert!(detail(redrive(&json!({"filter": {"a": 1}}))).starts_with("a: "));
    }

    #[test]
    fn a_redrive_is_guarded_unless_it_is_forced() {
        let (plain, dry_run) = redrive(&json!({})).unwrap();
        assert_eq!((plain.redrives_max, plain.again, plain.max, dry_run), (Some(10), false, None, false));
        let all = json!({"force": true, "again": true, "max": 5, "dry_run": true, "filter": {"a": [1]}});
        let (forced, dry_run) = redrive(&all).unwrap();
        assert_eq!((forced.redrives_max, forced.again, forced.max, dry_run), (None, true, Some(5), true));
        assert!(forced.filter.is_some());
    }
}
