//! A schedule definition as written, checked.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::{
    CatchUp, DATA_BYTES_MAX, JITTER_MAX, KEY_BYTES_MAX, Moment, RATE_MAX, RATE_MIN, Rule, ScheduleSpec, Timing,
};
use crate::config::fields::{Fields, nearest};
use crate::source::schedule::cron::CronExpression;
use crate::topic::name::{NAME_BYTES_MAX, ScheduleName, allowed_name};
use crate::topic::spec::new_topic_name;

/// Before every moment that can be written, in any zone: seconds since 1970.
const BEFORE_ALL_S: i64 = -2 * 86_400;
const RULES: [&str; 3] = ["cron", "rate", "at"];
const ONE_RULE: &str = "one of cron, rate and at, and only one";
const CRON: &str = "five fields (minute, hour, day of month, month, day of week), six (seconds first), or @hourly, @daily, @weekly, @monthly, @yearly";
const MOMENT: &str = "a time in whole seconds of the years 1970 to 9000 such as 2026-12-01T08:00:00 (in the schedule's time zone) or 2026-12-01T07:00:00Z";
const ZONE: &str = "a time zone's IANA name such as UTC or Europe/Berlin";

pub(super) fn schedule(fields: &mut Fields<'_>) -> Option<ScheduleSpec> {
    let name = fields.name("schedule", ScheduleName::new, &allowed_name(NAME_BYTES_MAX));
    let timing = timing(fields);
    let topic = new_topic_name(fields, "topic");
    let key = key(fields);
    let data = data(fields);
    let policies = [("skip", CatchUp::Skip), ("once", CatchUp::Once)];
    let catch_up = fields.choice("catch_up", &policies, &[], CatchUp::Skip);
    let enabled = enabled(fields);
    Some(ScheduleSpec { name: name?, timing: timing?, topic: topic?, key, data, catch_up, enabled })
}

fn timing(fields: &mut Fields<'_>) -> Option<Timing> {
    let zone = zone(fields);
    let rule = rule(fields);
    let (start, end) = (moment(fields, "start"), moment(fields, "end"));
    let jitter = fields.duration("jitter", Duration::ZERO..=JITTER_MAX, Duration::ZERO);
    let timing = Timing { rule: rule?, zone: zone?, start, end, jitter };
    if let (Some(start), Some(end)) = (timing.start, timing.end)
        && end.unix_s(&timing.zone) < start.unix_s(&timing.zone)
    {
        fields.wrong("end", "a time that is not before `start`");
        return None;
    }
    if timing.next_after(BEFORE_ALL_S).is_none() {
        fields.wrong(rule_name(&timing.rule), "a rule with a tick between `start` and `end`");
        return None;
    }
    Some(timing)
}

const fn rule_name(rule: &Rule) -> &'static str {
    match rule {
        Rule::Cron(_) => "cron",
        Rule::Rate { .. } => "rate",
        Rule::At(_) => "at",
    }
}

fn rule(fields: &mut Fields<'_>) -> Option<Rule> {
    let written: Vec<&str> = RULES.into_iter().filter(|name| fields.value(name).is_some()).collect();
    match written.as_slice() {
        [] => fields.wrong("cron", ONE_RULE),
        [_, second, ..] => fields.wrong(second, ONE_RULE),
        ["cron"] => return cron(fields),
        ["rate"] => return rate(fields),
        [_] => return moment(fields, "at").map(Rule::At),
    }
    None
}

fn cron(fields: &mut Fields<'_>) -> Option<Rule> {
    let text = fields.text("cron", CRON)?;
    match CronExpression::parse(text) {
        Ok(cron) => Some(Rule::Cron(Box::new(cron))),
        Err(reason) => {
            fields.wrong("cron", format!("{CRON}; {reason}"));
            None
        }
    }
}

fn rate(fields: &mut Fields<'_>) -> Option<Rule> {
    let rate = fields.optional_duration("rate", RATE_MIN..=RATE_MAX)?;
    if rate.subsec_nanos() != 0 {
        fields.wrong("rate", "whole seconds");
        return None;
    }
    u32::try_from(rate.as_secs()).ok().map(|every_s| Rule::Rate { every_s })
}

fn zone(fields: &mut Fields<'_>) -> Option<TimeZone> {
    if fields.value("timezone").is_none() {
        return Some(TimeZone::UTC);
    }
    let name = fields.optional_text("timezone", ZONE)?;
    match TimeZone::get(name).ok().filter(|zone| zone.iana_name().is_some()) {
        Some(zone) => Some(zone),
        None => {
            let names: Vec<String> = jiff::tz::db().available().map(|name| name.to_string()).collect();
            let near = nearest(name, names.iter().map(String::as_str));
            fields.wrong(
                "timezone",
                near.map_or_else(|| ZONE.to_owned(), |near| format!("{ZONE}; did you mean {near}?")),
            );
            None
        }
    }
}

fn moment(fields: &mut Fields<'_>, name: &'static str) -> Option<Moment> {
    fields.value(name)?;
    let text = fields.optional_text(name, MOMENT)?;
    let moment = match text.parse::<Timestamp>() {
        Ok(time) => Some(Moment::Absolute(time)).filter(|_| time.subsec_nanosecond() == 0),
        Err(_) => local(text).map(Moment::Local),
    };
    let in_range = |moment: &Moment| {
        let year = match moment {
            Moment::Local(civil) => civil.year(),
            Moment::Absolute(time) => TimeZone::UTC.to_datetime(*time).year(),
        };
        (1970..=9000).contains(&year)
    };
    let moment = moment.filter(in_range);
    if moment.is_none() {
        fields.wrong(name, MOMENT);
    }
    moment
}

/// A time without an offset; one with an offset that is no time at all must not be taken for one.
fn local(text: &str) -> Option<DateTime> {
    let is_plain = |c: char| c.is_ascii_digit() || matches!(c, '-' | ':' | 'T' | 't' | ' ');
    let civil: DateTime = text.parse().ok().filter(|_| text.chars().all(is_plain))?;
    (civil.subsec_nanosecond() == 0).then_some(civil)
}

fn key(fields: &mut Fields<'_>) -> Option<String> {
    let allowed = format!("a text of 1 to {KEY_BYTES_MAX} bytes");
    let key = fields.optional_text("key", &allowed)?;
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        fields.wrong("key", allowed);
    }
    Some(key.to_owned())
}

fn data(fields: &mut Fields<'_>) -> Option<std::sync::Arc<str>> {
    let text = fields.value("data")?.to_string();
    if text.len() > DATA_BYTES_MAX {
        fields.wrong("data", format!("at most {DATA_BYTES_MAX} bytes of JSON; it has {}", text.len()));
    }
    Some(text.into())
}

fn enabled(fields: &mut Fields<'_>) -> bool {
    match fields.value("enabled") {
        None => true,
        Some(Value::Bool(enabled)) => *enabled,
        Some(_) => {
            fields.wrong("enabled", "true or false");
            true
        }
    }
}
