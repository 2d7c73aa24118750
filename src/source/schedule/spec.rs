//! A schedule as its owner declares it, checked.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::cron::{CronExpression, instant_of};
use super::tick::Tick;
use crate::config::fields::{FieldErrors, read};
use crate::config::units::display_duration;
use crate::topic::name::{ScheduleName, TopicName};

mod parse;

#[cfg(test)]
mod tests;

/// The shortest rate.
pub const RATE_MIN: Duration = Duration::from_secs(1);
/// The longest rate.
pub const RATE_MAX: Duration = Duration::from_secs(366 * 86_400);
/// The most jitter.
pub const JITTER_MAX: Duration = Duration::from_secs(86_400);
/// The most bytes of data, as JSON without white space.
pub const DATA_BYTES_MAX: usize = 256 << 10;
/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;

/// A checked schedule definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleSpec {
    /// Its name.
    pub name: ScheduleName,
    /// When it is due.
    pub timing: Timing,
    /// Where its events go.
    pub topic: TopicName,
    /// The key of its records, 1–1,024 bytes; without one all go to the partition of the schedule's name.
    pub key: Option<String>,
    /// The data of its events, as JSON text; without one, an object with the schedule's name and the tick's time.
    pub data: Option<Arc<str>>,
    /// What happens to missed ticks.
    pub catch_up: CatchUp,
    /// Whether there are any ticks. Default true.
    pub enabled: bool,
}

/// When a schedule is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The rule.
    pub rule: Rule,
    /// The zone whose clock it follows. Default UTC.
    pub zone: TimeZone,
    /// No tick before it.
    pub start: Option<Moment>,
    /// No tick after it.
    pub end: Option<Moment>,
    /// Events are appended up to so much after their tick, but before the next one. Default 0.
    pub jitter: Duration,
}

/// The rule by which ticks follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// When the zone's clock shows it.
    Cron(Box<CronExpression>),
    /// Every so many seconds, counted from `start`, or from 1970 without one: 5m is at :00, :05 and so on. 1 s – 366 d.
    Rate {
        /// Seconds from one to the next.
        every_s: u32,
    },
    /// Once.
    At(Moment),
}

/// What happens to ticks that passed while the broker was down or the clock jumped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CatchUp {
    /// They are left out; but the last one still counts as on time within [`super::planner::LATE_MAX_S`].
    #[default]
    Skip,
    /// The last of them is made up for, however late.
    Once,
}

/// A moment as written: by the schedule's clock, or absolute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// `2026-12-01T08:00:00`, in the schedule's zone.
    Local(DateTime),
    /// `2026-12-01T08:00:00+01:00`.
    Absolute(Timestamp),
}

impl Moment {
    /// In seconds since 1970. In a gap: the first instant after it; in an overlap: the first time.
    #[must_use]
    pub fn unix_s(&self, zone: &TimeZone) -> i64 {
        match self {
            // Years are checked, so there is one.
            Self::Local(civil) => instant_of(*civil, zone).unwrap_or(i64::MAX),
            Self::Absolute(time) => time.as_second(),
        }
    }

    fn to_json(self) -> Value {
        match self {
            Self::Local(civil) => civil.to_string().into(),
            Self::Absolute(time) => time.to_string().into(),
        }
    }
}

impl Timing {
    /// The first tick after `after_s` seconds since 1970.
    #[must_use]
    pub fn next_after(&self, after_s: i64) -> Option<Tick> {
        let start_s = self.start.map(|start| start.unix_s(&self.zone));
        let after_s = start_s.map_or(after_s, |start_s| after_s.max(start_s - 1));
        let tick_s = match &self.rule {
            Rule::Cron(cron) => cron.next_after(after_s, &self.zone)?,
            Rule::Rate { every_s } => {
                let (every_s, from_s) = (i64::from(*every_s), start_s.unwrap_or(0));
                let steps = (after_s.checked_sub(from_s)?).div_euclid(every_s).checked_add(1)?;
                from_s.checked_add(steps.checked_mul(every_s)?)?
            }
            Rule::At(moment) => Some(moment.unix_s(&self.zone)).filter(|&tick_s| tick_s > after_s)?,
        };
        let has_come_before_the_end = self.end.is_none_or(|end| tick_s <= end.unix_s(&self.zone));
        // Also the end of what times can say.
        (has_come_before_the_end && Timestamp::from_second(tick_s).is_ok()).then_some(Tick::new(tick_s))
    }

    /// The last tick after `after_s` and not after `upto_s`. By bisection: there is a tick between a moment and
    /// `upto_s` or there is none, and once there is none there is none later.
    #[must_use]
    pub fn last_in(&self, after_s: i64, upto_s: i64) -> Option<Tick> {
        let next = |from_s| self.next_after(from_s).filter(|tick| tick.unix_s() <= upto_s);
        let mut last = next(after_s)?;
        let mut none_from_s = upto_s;
        while last.unix_s() < none_from_s {
            let middle_s = last.unix_s() + (none_from_s - last.unix_s()) / 2;
            match next(middle_s) {
                Some(later) => last = later,
                None => none_from_s = middle_s,
            }
        }
        Some(last)
    }

    /// When the event of `tick` is to be appended, ms since 1970: the same whenever it is asked. Later than that of
    /// every earlier tick, earlier than the next tick.
    #[must_use]
    pub fn fire_ms(&self, schedule: &str, tick: Tick) -> i64 {
        let jitter_ms = i64::try_from(self.jitter.as_millis()).unwrap_or(i64::MAX);
        if jitter_ms == 0 {
            return tick.unix_ms();
        }
        let gap_ms = self.next_after(tick.unix_s()).map_or(i64::MAX, |next| next.unix_ms() - tick.unix_ms());
        let span_ms = jitter_ms.min(gap_ms).unsigned_abs();
        let delay_ms = mix(schedule, tick) % span_ms.max(1);
        tick.unix_ms().saturating_add_unsigned(delay_ms)
    }
}

/// FNV-1a of the tick's id, with its bits mixed: even over short spans.
fn mix(schedule: &str, tick: Tick) -> u64 {
    let bytes = schedule.bytes().chain(tick.unix_s().to_le_bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

impl ScheduleSpec {
    /// Reads a definition such as `{"schedule": "nightly", "cron": "0 2 * * *", "topic": "ticks"}`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_json(value: &Value) -> Result<Self, FieldErrors> {
        read(value, "schedule", parse::schedule)
    }

    /// The definition in the shape that [`ScheduleSpec::from_json`] reads, every field written out.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let timing = &self.timing;
        let mut definition = json!({
            "schedule": self.name,
            "timezone": timing.zone.iana_name().unwrap_or("UTC"),
            "topic": self.topic,
            "catch_up": match self.catch_up { CatchUp::Skip => "skip", CatchUp::Once => "once" },
            "jitter": display_duration(timing.jitter),
            "enabled": self.enabled,
        });
        let (rule, value) = match &timing.rule {
            Rule::Cron(cron) => ("cron", cron.as_str().into()),
            Rule::Rate { every_s } => ("rate", display_duration(Duration::from_secs(u64::from(*every_s))).into()),
            Rule::At(moment) => ("at", moment.to_json()),
        };
        definition[rule] = value;
        for (name, moment) in [("start", timing.start), ("end", timing.end)] {
            if let Some(moment) = moment {
                definition[name] = moment.to_json();
            }
        }
        if let Some(key) = &self.key {
            definition["key"] = key.as_str().into();
        }
        if let Some(data) = &self.data {
            definition["data"] = serde_json::from_str(data).expect("it was printed as JSON");
        }
        definition
    }

    /// When the event of `tick` is to be appended, ms since 1970.
    #[must_use]
    pub fn fire_ms(&self, tick: Tick) -> i64 {
        self.timing.fire_ms(self.name.as_str(), tick)
    }
}
