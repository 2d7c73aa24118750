//! The records of the trace topic, in JSON. Kinds and fields are only ever added.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ranges::Ranges;
use crate::trigger::attempt::Step;

/// The outcome of an attempt that did not fail.
pub(super) const SUCCESS: &str = "success";

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum TraceRecord<'a> {
    /// An attempt ended.
    Attempt(AttemptRecord<'a>),
    /// Some attempts ended of which there is little to tell.
    Successes(SuccessesRecord<'a>),
    /// Records were given up.
    Verdict(VerdictRecord<'a>),
}

/// What a record tells of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact<'a> {
    /// An attempt ended.
    Attempt(AttemptRecord<'a>),
    /// It was given up.
    Verdict(VerdictRecord<'a>),
}

/// Whose records, and which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject<'a> {
    /// The trigger's name.
    pub trigger: Cow<'a, str>,
    /// Its id, or that of the run: another trigger of that name has another one.
    pub trigger_id: Uuid,
    /// The run over a range that it belongs to, if it was no live reading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Uuid>,
    /// The function's name, or its URL.
    pub function: Cow<'a, str>,
    /// The topic.
    pub topic: Cow<'a, str>,
    /// Its id: another topic of that name has another one.
    pub topic_id: Uuid,
    /// The partition.
    pub partition: u32,
    /// The offsets of the records.
    pub offsets: Cow<'a, Ranges>,
}

/// An attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRecord<'a> {
    /// Whose records.
    #[serde(flatten)]
    pub subject: Subject<'a>,
    /// What the invocation is called: `<trigger>/<topic>/<partition>/<first offset>`.
    pub window: Cow<'a, str>,
    /// From 1. Attempts that are not counted have the number of the next one.
    pub attempt: u32,
    /// How often the broker had stopped during an attempt on this window before.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interrupted: u32,
    /// When it began, ms since 1970.
    pub began_ms: i64,
    /// How long the function had the records, µs.
    pub took_us: u64,
    /// `success`, or the class of the error.
    pub outcome: Cow<'a, str>,
    /// A short word for the error, such as an HTTP status.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub code: Cow<'a, str>,
    /// The error for people, at most 1 KiB.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub message: Cow<'a, str>,
    /// The records that go on; all others are finished.
    #[serde(default, skip_serializing_if = "has_none")]
    pub failed: Cow<'a, Ranges>,
    /// The records that are refused for good.
    #[serde(default, skip_serializing_if = "has_none")]
    pub rejected: Cow<'a, Ranges>,
    /// What follows for those that go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<Follows>,
    /// The `traceparent` that the function was sent, of a window of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<Cow<'a, str>>,
    /// The events that have an id of their own or belong to a trace, the first 100 of them.
    #[serde(default, skip_serializing_if = "is_empty_list")]
    pub events: Cow<'a, [EventRecord]>,
    /// How many more of those there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub events_left_out: u32,
}

/// Windows that succeeded at their first attempt, whose records lie side by side and are no events of their own: nearly
/// all of a busy trigger, so they take little room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuccessesRecord<'a> {
    /// Whose records: those of all these windows.
    #[serde(flatten)]
    pub subject: Subject<'a>,
    /// The windows, ascending. None has a record of another.
    pub windows: Cow<'a, [Success]>,
}

/// A window that succeeded at its first attempt. In JSON a list of its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(i64, i64, i64, u64)", into = "(i64, i64, i64, u64)")]
pub struct Success {
    /// Its first offset, which the invocation is called by.
    pub first: i64,
    /// Its last offset.
    pub last: i64,
    /// When the attempt began, ms since 1970.
    pub began_ms: i64,
    /// How long the function had the records, µs.
    pub took_us: u64,
}

/// An event of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Its offset.
    pub offset: i64,
    /// Its own id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// What follows an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follows {
    /// What.
    pub what: Next,
    /// When, ms since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<i64>,
}

/// What may follow an attempt that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Next {
    /// The next attempt.
    Retry,
    /// The same attempt again, as the target asked.
    Throttled,
    /// The same attempt again, when the target can be reached.
    Outage,
    /// The same attempt again, when the code runs.
    BrokenCode,
    /// The next attempt, and on until one succeeds: errors are not tolerated.
    Blocked,
    /// The records are given up: all attempts were made.
    GivenUpAttempts,
    /// They are given up: they are too old.
    GivenUpAge,
    /// They are given up: the function refuses them.
    GivenUpRejected,
    /// They are given up: a person skipped them.
    GivenUpSkipped,
}

/// Records were given up, and what became of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictRecord<'a> {
    /// Whose records.
    #[serde(flatten)]
    pub subject: Subject<'a>,
    /// `attempts`, `age`, `rejected` or `skipped`.
    pub reason: Cow<'a, str>,
    /// Attempts that were made.
    pub attempts: u32,
    /// When it was carried out, ms since 1970.
    pub at_ms: i64,
    /// Class, code and message of the last error.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub outcome: Cow<'a, str>,
    /// Its code.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub code: Cow<'a, str>,
    /// Its message.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub message: Cow<'a, str>,
    /// Where the dead letters are; none where records are dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letters: Option<Letters<'a>>,
}

/// Where dead letters are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letters<'a> {
    /// The topic.
    pub topic: Cow<'a, str>,
    /// The partition.
    pub partition: u32,
    /// Their offsets; none where they were there before a crash.
    #[serde(default, skip_serializing_if = "has_none")]
    pub offsets: Cow<'a, Ranges>,
}

impl Follows {
    /// What a lane decided; `None` when nothing follows.
    #[must_use]
    pub const fn of(step: Step) -> Option<Self> {
        use crate::trigger::attempt::ExhaustedReason::{Age, Attempts, Rejected, Skipped};
        let (what, at_ms) = match step {
            Step::Done => return None,
            Step::RetryAt { at_ms, .. } => (Next::Retry, Some(at_ms)),
            Step::Throttled { until_ms } => (Next::Throttled, Some(until_ms)),
            Step::Outage { probe_at_ms } => (Next::Outage, Some(probe_at_ms)),
            Step::BrokenCode => (Next::BrokenCode, None),
            Step::Blocked { at_ms, .. } => (Next::Blocked, Some(at_ms)),
            Step::Exhausted { reason: Attempts } => (Next::GivenUpAttempts, None),
            Step::Exhausted { reason: Age } => (Next::GivenUpAge, None),
            Step::Exhausted { reason: Rejected } => (Next::GivenUpRejected, None),
            Step::Exhausted { reason: Skipped } => (Next::GivenUpSkipped, None),
        };
        Some(Self { what, at_ms })
    }
}

impl<'a> TraceRecord<'a> {
    /// Whose records.
    #[must_use]
    pub const fn subject(&self) -> &Subject<'a> {
        match self {
            Self::Attempt(attempt) => &attempt.subject,
            Self::Successes(successes) => &successes.subject,
            Self::Verdict(verdict) => &verdict.subject,
        }
    }

    /// What it tells of the record at `offset` of the partition that its subject names.
    #[must_use]
    pub fn about(self, offset: i64) -> Option<Fact<'a>> {
        if !self.subject().offsets.contains(offset) {
            return None;
        }
        match self {
            Self::Attempt(attempt) => Some(Fact::Attempt(attempt)),
            Self::Successes(successes) => successes.attempt_on(offset).map(Fact::Attempt),
            Self::Verdict(verdict) => Some(Fact::Verdict(verdict)),
        }
    }

    /// The key that its record has.
    #[must_use]
    pub fn key(&self) -> String {
        let subject = self.subject();
        let (first, last) = subject.offsets.bounds().unwrap_or((0, 0));
        format!("{}/{}/{first}-{last}", subject.topic, subject.partition)
    }
}

impl<'a> Fact<'a> {
    /// Whose records.
    #[must_use]
    pub const fn subject(&self) -> &Subject<'a> {
        match self {
            Self::Attempt(attempt) => &attempt.subject,
            Self::Verdict(verdict) => &verdict.subject,
        }
    }
}

impl Subject<'_> {
    /// What the invocations of a window are called, by the first offset that it had. Those of a run have names of their
    /// own: a target that knows what it did must not take them for the live ones.
    pub(in crate::trigger) fn invocation_id(&self, window: i64) -> String {
        invocation_id(&self.trigger, (&self.topic, self.partition), window, self.run)
    }
}

/// See [`Subject::invocation_id`].
pub(in crate::trigger) fn invocation_id(
    trigger: &str,
    (topic, partition): (&str, u32),
    window: i64,
    run: Option<Uuid>,
) -> String {
    match run {
        None => format!("{trigger}/{topic}/{partition}/{window}"),
        Some(run) => format!("{trigger}/{topic}/{partition}/{window}/{run}"),
    }
}

impl<'a> SuccessesRecord<'a> {
    /// The attempt on the window that has the record at `offset`.
    fn attempt_on(self, offset: i64) -> Option<AttemptRecord<'a>> {
        let index = self.windows.partition_point(|window| window.last < offset);
        let window = *self.windows.get(index).filter(|window| window.first <= offset)?;
        let mut offsets = Ranges::default();
        offsets.push(window.first, window.last);
        Some(AttemptRecord {
            window: self.subject.invocation_id(window.first).into(),
            subject: Subject { offsets: Cow::Owned(offsets), ..self.subject },
            attempt: 1,
            interrupted: 0,
            began_ms: window.began_ms,
            took_us: window.took_us,
            outcome: SUCCESS.into(),
            code: Cow::default(),
            message: Cow::default(),
            failed: Cow::default(),
            rejected: Cow::default(),
            follows: None,
            traceparent: None,
            events: Cow::default(),
            events_left_out: 0,
        })
    }
}

impl From<(i64, i64, i64, u64)> for Success {
    fn from((first, last, began_ms, took_us): (i64, i64, i64, u64)) -> Self {
        Self { first, last, began_ms, took_us }
    }
}

impl From<Success> for (i64, i64, i64, u64) {
    fn from(Success { first, last, began_ms, took_us }: Success) -> Self {
        (first, last, began_ms, took_us)
    }
}

/// Whether a record with this key may tell of the record at `offset` of a partition, whose name begins the key:
/// `<topic>/<partition>/`.
#[must_use]
pub fn key_may_tell_of(key: &[u8], partition: &str, offset: i64) -> bool {
    let bounds = key.strip_prefix(partition.as_bytes()).and_then(|bounds| std::str::from_utf8(bounds).ok());
    let bounds = bounds.and_then(|bounds| bounds.split_once('-'));
    let bounds = bounds.and_then(|(first, last)| Some((first.parse::<i64>().ok()?, last.parse::<i64>().ok()?)));
    bounds.is_some_and(|(first, last)| (first..=last).contains(&offset))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_empty(text: &str) -> bool {
    text.is_empty()
}

fn is_empty_list(events: &[EventRecord]) -> bool {
    events.is_empty()
}

fn has_none(ranges: &Ranges) -> bool {
    ranges.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject<'static> {
        Subject {
            trigger: "slow".into(),
            trigger_id: Uuid::from_u128(1),
            run: None,
            function: "notify".into(),
            topic: "flights".into(),
            topic_id: Uuid::from_u128(2),
            partition: 3,
            offsets: Cow::Owned("4-6,9".parse().unwrap()),
        }
    }

    const SUBJECT: &str = r#""trigger":"slow","trigger_id":"00000000-0000-0000-0000-000000000001","function":"notify","topic":"flights","topic_id":"00000000-0000-0000-0000-000000000002","partition":3,"offsets":"4-6,9""#;

    fn reads_back(record: &TraceRecord<'_>, expected: &str) {
        assert_eq!(serde_json::to_string(record).unwrap(), expected);
        assert_eq!(&serde_json::from_str::<TraceRecord<'_>>(expected).unwrap(), record);
    }

    #[test]
    fn a_success_is_short_and_a_failure_tells_all() {
        let success = AttemptRecord {
            subject: subject(),
            window: "slow/flights/3/4".into(),
            attempt: 1,
            interrupted: 0,
            began_ms: 1_700_000_000_123,
            took_us: 4_500,
            outcome: "success".into(),
            code: "".into(),
            message: "".into(),
            failed: Cow::Owned(Ranges::default()),
            rejected: Cow::Owned(Ranges::default()),
            follows: None,
            traceparent: None,
            events: Cow::Owned(Vec::new()),
            events_left_out: 0,
        };
        let head = format!(r#"{{"kind":"attempt",{SUBJECT},"window":"slow/flights/3/4","attempt":1"#);
        let expected = format!(r#"{head},"began_ms":1700000000123,"took_us":4500,"outcome":"success"}}"#);
        reads_back(&TraceRecord::Attempt(success.clone()), &expected);
        let failure = AttemptRecord {
            interrupted: 2,
            outcome: "failed".into(),
            code: "500".into(),
            message: "no \"good\"".into(),
            failed: Cow::Owned("4,9".parse().unwrap()),
            rejected: Cow::Owned("5".parse().unwrap()),
            follows: Follows::of(Step::RetryAt { at_ms: 7, attempt: 2 }),
            traceparent: Some("00-a-b-01".into()),
            events: Cow::Owned(vec![EventRecord { offset: 4, id: Some("e1".to_owned()), traceparent: None }]),
            events_left_out: 1,
            ..success
        };
        let expected = format!(
            r#"{head},"interrupted":2,"began_ms":1700000000123,"took_us":4500,"outcome":"failed","code":"500","message":"no \"good\"","failed":"4,9","rejected":"5","follows":{{"what":"retry","at_ms":7}},"traceparent":"00-a-b-01","events":[{{"offset":4,"id":"e1"}}],"events_left_out":1}}"#
        );
        reads_back(&TraceRecord::Attempt(failure), &expected);
    }

    #[test]
    fn successes_are_told_one_by_one() {
        let success = |first, last, began_ms| Success { first, last, began_ms, took_us: 40 };
        let windows = vec![success(4, 4, 700), success(5, 6, 600), success(9, 9, 701)];
        let record = TraceRecord::Successes(SuccessesRecord { subject: subject(), windows: Cow::Owned(windows) });
        let windows = "[[4,4,700,40],[5,6,600,40],[9,9,701,40]]";
        reads_back(&record, &format!(r#"{{"kind":"successes",{SUBJECT},"windows":{windows}}}"#));
        for (offset, window) in [(4, "4"), (5, "5-6"), (6, "5-6"), (9, "9")] {
            let Some(Fact::Attempt(attempt)) = record.clone().about(offset) else { panic!("{offset}") };
            let first = window.split('-').next().unwrap();
            assert_eq!(attempt.window, format!("slow/flights/3/{first}"));
            assert_eq!(attempt.subject.offsets.to_string(), window);
            assert_eq!((attempt.attempt, &*attempt.outcome, attempt.took_us), (1, "success", 40));
        }
        for offset in [3, 7, 8, 10] {
            assert_eq!(record.clone().about(offset), None, "{offset}");
        }
    }

    #[test]
    fn a_verdict_says_where_the_letters_are() {
        let verdict = VerdictRecord {
            subject: subject(),
            reason: "attempts".into(),
            attempts: 3,
            at_ms: 9,
            outcome: "failed".into(),
            code: "500".into(),
            message: "no".into(),
            dead_letters: Some(Letters {
                topic: "flights.dlq".into(),
                partition: 0,
                offsets: Cow::Owned("7-10".parse().unwrap()),
            }),
        };
        let expected = format!(
            r#"{{"kind":"verdict",{SUBJECT},"reason":"attempts","attempts":3,"at_ms":9,"outcome":"failed","code":"500","message":"no","dead_letters":{{"topic":"flights.dlq","partition":0,"offsets":"7-10"}}}}"#
        );
        reads_back(&TraceRecord::Verdict(verdict), &expected);
    }

    #[test]
    fn keys_tell_which_offsets_a_record_may_speak_of() {
        let attempt = serde_json::from_str::<TraceRecord<'_>>(&format!(
            r#"{{"kind":"verdict",{SUBJECT},"reason":"age","attempts":0,"at_ms":0,"a field from later":1}}"#
        ));
        let key = attempt.unwrap().key();
        assert_eq!(key, "flights/3/4-9");
        let may = |partition: &str, offset| key_may_tell_of(key.as_bytes(), partition, offset);
        assert!(may("flights/3/", 4) && may("flights/3/", 9));
        assert!(!may("flights/3/", 3) && !may("flights/3/", 10) && !may("flights/30/", 5) && !may("flights/", 5));
        assert!(!key_may_tell_of(b"\xff", "", 0));
    }
}
