//! Cron expressions in a time zone, and what happens when its clocks change.
//!
//! The expression is read and matched by crate `croner`, on wall clock times without a zone. What becomes of wall clock
//! times that a zone leaves out or has twice is decided here, by the rule of the cron that Linux runs:
//!
//! | | a time in the gap | a time in the overlap |
//! |---|---|---|
//! | fixed: no `*` and no `/` in second, minute and hour | once, at the first instant after the gap | once, the first time |
//! | interval: the others | left out | both times |
//!
//! So `30 2 * * *` runs every day of the year exactly once, and `*/5 * * * *` runs every five minutes of real time.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};

use croner::Cron;
use croner::errors::CronError as CronerError;
use croner::parser::{CronParser, Year};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use parking_lot::Mutex;

/// The longest expression, in bytes.
pub const CRON_BYTES_MAX: usize = 256;
/// Fields of an expression, with what they may be made of besides digits.
const FIELDS: [(&str, &str); 6] = [
    ("second", "*,-/"),
    ("minute", "*,-/"),
    ("hour", "*,-/"),
    ("day of month", "*,-/?LW"),
    ("month", "*,-/JANFEBMARAPRMAYJUNJULAUGSEPOCTNOVDEC"),
    ("day of week", "*,-/?L#+MONTUEWEDTHUFRISATSUN"),
];
const NICKNAMES: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];
/// Where the search for a first match begins: an expression that matches nothing in the years after it matches nothing.
const SEARCH_FROM: DateTime = DateTime::constant(2000, 1, 1, 0, 0, 0, 0);
/// Further than this before a match there is no other, whatever offsets a zone has had: seconds.
const OFFSETS_MAX_S: i64 = 3 * 86_400;

/// What `croner` makes of an expression has a bit for each of thousands of years: 5 KiB. Schedules by the thousand
/// share few expressions, by their six fields.
static IN_USE: Mutex<BTreeMap<String, Weak<Cron>>> = Mutex::new(BTreeMap::new());
/// When there are so many, those that nobody has any more are forgotten.
const IN_USE_MAX: usize = 2 * super::SCHEDULES_MAX;

/// Why a text is not a cron expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    /// It is too long.
    #[error("it has {length_bytes} bytes, at most {CRON_BYTES_MAX} are allowed")]
    TooLong {
        /// How long.
        length_bytes: usize,
    },
    /// It has too few or too many fields.
    #[error("it has {found} fields")]
    FieldCount {
        /// How many.
        found: usize,
    },
    /// One of its fields is wrong.
    #[error("{field} {text:?}: {reason}")]
    Field {
        /// Which: `minute`.
        field: &'static str,
        /// What stands there.
        text: String,
        /// What is wrong.
        reason: String,
    },
    /// There is no such day.
    #[error("no day in any year matches it")]
    Never,
}

/// A checked cron expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CronExpression {
    text: String,
    cron: Arc<Cron>,
    is_fixed: bool,
}

impl fmt::Display for CronExpression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl CronExpression {
    /// Reads an expression of five fields, of six (seconds first), or one such as `@daily`.
    ///
    /// # Errors
    /// See [`CronError`].
    pub fn parse(text: &str) -> Result<Self, CronError> {
        if text.len() > CRON_BYTES_MAX {
            return Err(CronError::TooLong { length_bytes: text.len() });
        }
        let nickname = NICKNAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text.trim()));
        let mut fields: Vec<&str> = nickname.map_or(text, |(_, fields)| fields).split_whitespace().collect();
        match fields.len() {
            5 => fields.insert(0, "0"),
            6 => {}
            found => return Err(CronError::FieldCount { found }),
        }
        let parser = CronParser::builder().year(Year::Disallowed).build();
        for (index, field) in fields.iter().enumerate() {
            check_field(&parser, index, field)?;
        }
        let whole = fields.join(" ");
        let wrong = |error| CronError::Field { field: "expression", text: whole.clone(), reason: reason(error) };
        let cron = parser.parse(&whole).map_err(wrong)?;
        cron.find_next_occurrence(&SEARCH_FROM, true).map_err(|_| CronError::Never)?;
        let is_fixed = fields[..3].iter().all(|field| !field.contains(['*', '/']));
        Ok(Self { text: text.trim().to_owned(), cron: shared(whole, cron), is_fixed })
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it names times of the day, and not an interval: see the head of this module.
    #[must_use]
    pub const fn is_fixed(&self) -> bool {
        self.is_fixed
    }

    /// The first tick after `after_s`; both in seconds since 1970. `None` when there is none before the end of time.
    #[must_use]
    pub fn next_after(&self, after_s: i64, zone: &TimeZone) -> Option<i64> {
        if self.is_fixed { self.next_fixed(after_s, zone) } else { self.next_interval(after_s, zone) }
    }

    fn next_civil(&self, from: DateTime, inclusive: bool) -> Option<DateTime> {
        self.cron.find_next_occurrence(&from, inclusive).ok()
    }

    /// Every wall clock time stands for one instant, and a later one never for an earlier.
    fn next_fixed(&self, after_s: i64, zone: &TimeZone) -> Option<i64> {
        let mut civil = zone.to_datetime(timestamp(after_s)?);
        loop {
            civil = self.next_civil(civil, false)?;
            // In the second half of an overlap, times of its first half lie behind.
            let tick_s = instant_of(civil, zone)?;
            if tick_s > after_s {
                return Some(tick_s);
            }
        }
    }

    /// Every instant whose wall clock time matches. Between two changes of the clock, that is a search on the wall
    /// clock.
    fn next_interval(&self, after_s: i64, zone: &TimeZone) -> Option<i64> {
        let (mut from_s, mut inclusive) = (after_s, false);
        loop {
            let from = timestamp(from_s)?;
            let offset_s = i64::from(zone.to_offset(from).seconds());
            let civil = self.next_civil(zone.to_datetime(from), inclusive)?;
            let tick_s = civil_s(civil)? - offset_s;
            let change_s = zone.following(from).next().map(|change| change.timestamp().as_second());
            match change_s {
                Some(change_s) if change_s <= tick_s => {
                    // Nothing matches on the wall clock before `civil`, but for what an overlap at the change repeats.
                    let next_s = civil_s(self.next_civil(zone.to_datetime(timestamp(change_s)?), true)?)?;
                    (from_s, inclusive) = (change_s.max(next_s - OFFSETS_MAX_S), true);
                }
                _ => return Some(tick_s),
            }
        }
    }
}

/// The same for all expressions that say the same.
fn shared(fields: String, cron: Cron) -> Arc<Cron> {
    let mut in_use = IN_USE.lock();
    if let Some(same) = in_use.get(&fields).and_then(Weak::upgrade) {
        return same;
    }
    if in_use.len() >= IN_USE_MAX {
        in_use.retain(|_, cron| cron.strong_count() > 0);
    }
    let cron = Arc::new(cron);
    in_use.insert(fields, Arc::downgrade(&cron));
    cron
}

/// The instant that a wall clock time stands for: the first of two, or the first one after a gap. Seconds since 1970.
#[must_use]
pub fn instant_of(civil: DateTime, zone: &TimeZone) -> Option<i64> {
    let ambiguous = zone.to_ambiguous_timestamp(civil);
    let AmbiguousOffset::Gap { before, .. } = ambiguous.offset() else {
        return ambiguous.earlier().ok().map(Timestamp::as_second);
    };
    // By the clock that was not changed, the time lies behind the change.
    let behind_s = civil_s(civil)? - i64::from(before.seconds());
    let change = zone.preceding(timestamp(behind_s + 1)?).next()?;
    Some(change.timestamp().as_second())
}

fn timestamp(unix_s: i64) -> Option<Timestamp> {
    Timestamp::from_second(unix_s).ok()
}

/// A wall clock time taken as one of UTC, in seconds since 1970.
fn civil_s(civil: DateTime) -> Option<i64> {
    TimeZone::UTC.to_timestamp(civil).ok().map(Timestamp::as_second)
}

/// Reads a field alone, so that an error has its place.
fn check_field(parser: &CronParser, index: usize, text: &str) -> Result<(), CronError> {
    let (field, allowed) = FIELDS[index];
    let wrong = |reason: String| CronError::Field { field, text: text.to_owned(), reason };
    let is_allowed = |c: &char| c.is_ascii_digit() || allowed.contains(c.to_ascii_uppercase());
    if let Some(character) = text.chars().find(|c| !is_allowed(c)) {
        return Err(wrong(format!("the character {character:?} is not allowed")));
    }
    if text.split(',').any(str::is_empty) {
        return Err(wrong("a comma has nothing before or after it".to_owned()));
    }
    let mut fields = ["0", "0", "0", "*", "*", "*"];
    fields[index] = text;
    parser.parse(&fields.join(" ")).map(|_| ()).map_err(|error| wrong(reason(error)))
}

fn reason(error: CronerError) -> String {
    match error {
        CronerError::InvalidPattern(text)
        | CronerError::IllegalCharacters(text)
        | CronerError::ComponentError(text) => text,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
