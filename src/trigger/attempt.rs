//! What follows from the outcome of one attempt to hand a window to its function.
//!
//! [`AttemptState`] is plain data in wall-clock milliseconds: it is written to the journal when an attempt starts and
//! when it ends, so that a restart continues the count. A state that is still running when it is read back belongs to
//! an attempt that the broker did not survive.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::retry::{Next, RetriesExhausted, RetryPolicy};
use crate::function::outcome::{ErrorClass, InvocationError, abridged, beginning};

mod batch_failures;
mod health;

pub use batch_failures::{BATCH_ITEM_FAILURES, BatchOutcome, BatchRecord, WholeFailure, parse_batch_item_failures};
pub use health::{NOT_FOUND_IN_A_ROW, TargetHealth};

/// Interruptions that spend no attempt; each further one spends one, so that a record which kills the broker cannot
/// loop for ever.
pub const FREE_INTERRUPTIONS: u32 = 3;
/// The first wait after a throttled answer that names none, and between the probes of an outage.
pub const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest such wait.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest `Retry-After` that is obeyed.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// How much of an error message a state keeps, in bytes.
pub const LAST_MESSAGE_BYTES_MAX: usize = 1024;
/// How much of an error code a state keeps, in bytes.
pub const LAST_CODE_BYTES_MAX: usize = 128;

/// What to do when all attempts are spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorsTolerance {
    /// Dead-letter the records (or drop them) and go on.
    #[default]
    All,
    /// Keep trying every `max_interval`; the lane is blocked until it succeeds or someone skips it.
    None,
}

/// The last failure, as much of it as is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// Its class.
    #[serde(with = "class_number")]
    pub class: ErrorClass,
    /// Its code, at most [`LAST_CODE_BYTES_MAX`] bytes.
    pub code: String,
    /// Its message, at most [`LAST_MESSAGE_BYTES_MAX`] bytes.
    pub message: String,
}

/// The attempts of one window so far. Times are milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptState {
    /// Attempts spent.
    pub attempts: u32,
    /// Attempts that the broker did not survive.
    pub interrupted: u32,
    /// Pauses in a row: throttled answers or failed probes since the last other outcome.
    pub pauses: u32,
    /// When the first attempt began.
    pub first_attempt_ms: Option<i64>,
    /// When the last attempt began.
    pub last_attempt_ms: Option<i64>,
    /// When the next one may begin.
    pub next_attempt_ms: Option<i64>,
    /// Whether an attempt has begun and its outcome is not known.
    pub running: bool,
    /// Since when time does not count, while it does not: outage, paused, failed.
    pub excluded_since_ms: Option<i64>,
    /// Time that does not count towards `max_age`.
    pub excluded_ms: u64,
    /// The last failure.
    pub last_error: Option<LastError>,
}

/// Why records are given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExhaustedReason {
    /// All attempts were made.
    Attempts,
    /// `max_age` has passed.
    Age,
    /// The function refused them for good.
    Rejected,
    /// A person skipped them.
    Skipped,
}

impl ExhaustedReason {
    /// All reasons.
    pub const ALL: [Self; 4] = [Self::Attempts, Self::Age, Self::Rejected, Self::Skipped];

    /// The word used in the journal's verdicts, metrics and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attempts => "attempts",
            Self::Age => "age",
            Self::Rejected => "rejected",
            Self::Skipped => "skipped",
        }
    }

    /// The reason that [`ExhaustedReason::as_str`] names.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }
}

/// What follows an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The records are finished.
    Done,
    /// Try again at `at_ms`; that will be attempt `attempt`.
    RetryAt {
        /// When, in milliseconds since 1970.
        at_ms: i64,
        /// Its number, from 1.
        attempt: u32,
    },
    /// The target is busy: nothing before `until_ms`, and fewer invocations at a time. No attempt is spent, but the
    /// window grows older.
    Throttled {
        /// When the next attempt may begin.
        until_ms: i64,
    },
    /// The target cannot be reached: the trigger pauses, and one invocation probes at `probe_at_ms`. No attempt is
    /// spent.
    Outage {
        /// When to probe.
        probe_at_ms: i64,
    },
    /// The code cannot run: the trigger has failed until new code arrives or someone resumes it. No attempt is spent.
    BrokenCode,
    /// Give the records up: dead-letter or drop them.
    Exhausted {
        /// Why.
        reason: ExhaustedReason,
    },
    /// They would be given up, but errors are not tolerated: try again at `at_ms`, visibly blocked.
    Blocked {
        /// When, in milliseconds since 1970.
        at_ms: i64,
        /// Why they would be given up.
        reason: ExhaustedReason,
    },
}

impl Step {
    /// Whether nothing but that errors are not tolerated keeps the records from being given up.
    #[must_use]
    pub const fn blocks(self) -> bool {
        matches!(self, Self::Blocked { .. })
    }
}

/// The policies that decide a [`Step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policies {
    /// When to try again.
    pub retry: RetryPolicy,
    /// What to do when that ends.
    pub errors_tolerance: ErrorsTolerance,
}

impl AttemptState {
    /// The number of the attempt that begins or runs now, from 1.
    #[must_use]
    pub const fn attempt_number(&self) -> u32 {
        self.attempts.saturating_add(1)
    }

    /// Notes that an attempt begins at `now_ms`. Journal the state before the function is invoked.
    pub fn begin(&mut self, now_ms: i64) {
        self.count_again(now_ms);
        self.first_attempt_ms.get_or_insert(now_ms);
        self.last_attempt_ms = Some(now_ms);
        self.next_attempt_ms = None;
        self.running = true;
    }

    /// Notes that time stops counting towards `max_age`: the trigger is paused, has failed or is in an outage.
    pub fn suspend(&mut self, now_ms: i64) {
        // Before the first attempt no time counts anyway.
        if self.first_attempt_ms.is_some() {
            self.excluded_since_ms.get_or_insert(now_ms);
        }
    }

    /// Notes that time counts again.
    pub fn count_again(&mut self, now_ms: i64) {
        if let Some(since_ms) = self.excluded_since_ms.take() {
            self.excluded_ms = self.excluded_ms.saturating_add(elapsed_ms(since_ms, now_ms));
        }
    }

    /// Takes up what another run of the broker wrote down, whose clock may have stood elsewhere: nothing lies in the
    /// future but the next attempt, and that no further away than a pause may be long.
    pub fn take_up(&mut self, retry: &RetryPolicy, now_ms: i64) {
        let pause_max = retry.max_interval().max(RETRY_AFTER_MAX);
        let latest_ms = now_ms.saturating_add(i64::try_from(pause_max.as_millis()).unwrap_or(i64::MAX));
        let not_after = |time_ms: &mut Option<i64>, latest_ms: i64| {
            *time_ms = time_ms.map(|time_ms| time_ms.min(latest_ms));
        };
        not_after(&mut self.first_attempt_ms, now_ms);
        not_after(&mut self.last_attempt_ms, now_ms);
        not_after(&mut self.excluded_since_ms, now_ms);
        not_after(&mut self.next_attempt_ms, latest_ms);
    }

    /// Notes why an attempt failed that is not counted: its window is halved.
    pub fn note(&mut self, error: &InvocationError) {
        self.running = false;
        self.last_error = Some(LastError::of(error));
    }

    /// Time since the first attempt began, without outages and pauses.
    #[must_use]
    pub fn age(&self, now_ms: i64) -> Duration {
        let Some(first_ms) = self.first_attempt_ms else { return Duration::ZERO };
        let excluded_now_ms = self.excluded_since_ms.map_or(0, |since_ms| elapsed_ms(since_ms, now_ms));
        let excluded_ms = self.excluded_ms.saturating_add(excluded_now_ms);
        Duration::from_millis(elapsed_ms(first_ms, now_ms).saturating_sub(excluded_ms))
    }

    /// Whether the last step was [`Step::Blocked`], as far as what is kept of the attempts tells.
    #[must_use]
    pub fn is_blocked(&self, policies: &Policies) -> bool {
        let retry = &policies.retry;
        let is_rejected = self.last_error.as_ref().is_some_and(|error| error.class == ErrorClass::Rejected);
        let next_ms = self.next_attempt_ms.or(self.last_attempt_ms);
        let is_too_old = |next_ms| retry.max_age().is_some_and(|max_age| self.age(next_ms) > max_age);
        policies.errors_tolerance == ErrorsTolerance::None
            && (is_rejected || self.attempts >= retry.max_attempts() || next_ms.is_some_and(is_too_old))
    }

    /// The step after an attempt that ended at `now_ms`; the state then says what the step says. Journal it. `random`
    /// is any uniform number.
    pub fn end(
        &mut self,
        outcome: Result<(), &InvocationError>,
        policies: &Policies,
        now_ms: i64,
        random: u64,
    ) -> Step {
        self.running = false;
        let Err(error) = outcome else { return Step::Done };
        self.last_error = Some(LastError::of(error));
        match error.class {
            ErrorClass::Failed | ErrorClass::Crashed => self.spend(policies, now_ms, random),
            ErrorClass::Interrupted => self.interrupt(policies, now_ms, random),
            ErrorClass::Rejected => {
                self.count_attempt();
                self.give_up(ExhaustedReason::Rejected, policies, now_ms)
            }
            ErrorClass::Throttled => {
                let until_ms = self.throttle(error.retry_after, now_ms, random);
                self.wait_throttled(until_ms, policies, now_ms)
            }
            ErrorClass::Unavailable => {
                let probe_at_ms = self.pause_until(now_ms, error.retry_after.unwrap_or(Duration::ZERO));
                self.suspend(now_ms);
                Step::Outage { probe_at_ms }
            }
            ErrorClass::BrokenCode => {
                self.suspend(now_ms);
                Step::BrokenCode
            }
        }
    }

    fn spend(&mut self, policies: &Policies, now_ms: i64, random: u64) -> Step {
        self.count_attempt();
        match policies.retry.next(self.attempts, self.age(now_ms), random) {
            Next::After(wait) => self.retry_after(wait, now_ms),
            Next::Exhausted(RetriesExhausted::Attempts) => self.give_up(ExhaustedReason::Attempts, policies, now_ms),
            Next::Exhausted(RetriesExhausted::Age) => self.give_up(ExhaustedReason::Age, policies, now_ms),
        }
    }

    fn interrupt(&mut self, policies: &Policies, now_ms: i64, random: u64) -> Step {
        self.interrupted = self.interrupted.saturating_add(1);
        if self.interrupted > FREE_INTERRUPTIONS {
            return self.spend(policies, now_ms, random);
        }
        self.retry_after(Duration::ZERO, now_ms)
    }

    fn throttle(&mut self, told: Option<Duration>, now_ms: i64, random: u64) -> i64 {
        let spread_ms = random % (duration_ms(FIRST_PAUSE).unsigned_abs() / 2);
        let at_least = told.unwrap_or(Duration::ZERO).saturating_add(Duration::from_millis(spread_ms));
        match told {
            // As told; the spread keeps those who were told the same from coming back together.
            Some(_) => {
                self.pauses = self.pauses.saturating_add(1);
                self.next_at(now_ms, at_least.min(RETRY_AFTER_MAX))
            }
            None => self.pause_until(now_ms, at_least),
        }
    }

    /// No attempt is spent, but the time counts: a target that never takes a record holds it up for no longer than any
    /// other that fails.
    fn wait_throttled(&mut self, until_ms: i64, policies: &Policies, now_ms: i64) -> Step {
        if policies.retry.max_age().is_none_or(|max_age| self.age(until_ms) <= max_age) {
            return Step::Throttled { until_ms };
        }
        match self.give_up(ExhaustedReason::Age, policies, now_ms) {
            // What blocks is tried again, and not before the time that the target asked for.
            Step::Blocked { at_ms, reason } => {
                let at_ms = at_ms.max(until_ms);
                self.next_attempt_ms = Some(at_ms);
                Step::Blocked { at_ms, reason }
            }
            step => step,
        }
    }

    /// Waits 1, 2, 4 … 60 s, but at least as long as given.
    fn pause_until(&mut self, now_ms: i64, at_least: Duration) -> i64 {
        let wait = pause(self.pauses);
        self.pauses = self.pauses.saturating_add(1);
        self.next_at(now_ms, wait.max(at_least.min(RETRY_AFTER_MAX)))
    }

    fn retry_after(&mut self, wait: Duration, now_ms: i64) -> Step {
        Step::RetryAt { at_ms: self.next_at(now_ms, wait), attempt: self.attempt_number() }
    }

    fn give_up(&mut self, reason: ExhaustedReason, policies: &Policies, now_ms: i64) -> Step {
        match policies.errors_tolerance {
            ErrorsTolerance::All => {
                self.next_attempt_ms = None;
                Step::Exhausted { reason }
            }
            ErrorsTolerance::None => {
                Step::Blocked { at_ms: self.next_at(now_ms, policies.retry.max_interval()), reason }
            }
        }
    }

    const fn count_attempt(&mut self) {
        self.attempts = self.attempts.saturating_add(1);
        self.pauses = 0;
    }

    fn next_at(&mut self, now_ms: i64, wait: Duration) -> i64 {
        let at_ms = now_ms.saturating_add(duration_ms(wait));
        self.next_attempt_ms = Some(at_ms);
        at_ms
    }
}

impl LastError {
    /// What of an error is kept.
    #[must_use]
    pub fn of(error: &InvocationError) -> Self {
        Self {
            class: error.class,
            code: beginning(&error.code, LAST_CODE_BYTES_MAX).to_owned(),
            message: abridged(&error.message, LAST_MESSAGE_BYTES_MAX).into_owned(),
        }
    }

    /// What is known of an attempt that failed in an earlier run of the broker, or in another process: progress keeps
    /// the class alone.
    #[must_use]
    pub fn before_restart(class: ErrorClass) -> Self {
        let message = "the attempt failed before the broker was started again, or another took over; where a trace is kept, it tells more";
        Self { class, code: String::new(), message: message.to_owned() }
    }
}

/// A clock set back counts as no time passed.
const fn elapsed_ms(from_ms: i64, to_ms: i64) -> u64 {
    if to_ms <= from_ms { 0 } else { to_ms.abs_diff(from_ms) }
}

/// The wait after so many in a row.
fn pause(before: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1u32.checked_shl(before).unwrap_or(u32::MAX)).min(LONGEST_PAUSE)
}

fn duration_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Numbers of the classes in what is written down; never used for another class.
pub(super) mod class_number {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::function::outcome::ErrorClass;

    pub(in crate::trigger) const CLASSES: [ErrorClass; 7] = [
        ErrorClass::Failed,
        ErrorClass::Rejected,
        ErrorClass::Throttled,
        ErrorClass::Unavailable,
        ErrorClass::BrokenCode,
        ErrorClass::Crashed,
        ErrorClass::Interrupted,
    ];

    pub(in crate::trigger) fn of(class: ErrorClass) -> u8 {
        let number = CLASSES.iter().position(|known| *known == class).and_then(|index| u8::try_from(index).ok());
        number.expect("every class has a number")
    }

    pub(in crate::trigger) fn class(number: u8) -> Option<ErrorClass> {
        CLASSES.get(usize::from(number)).copied()
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde names this signature")]
    pub(super) fn serialize<S: Serializer>(class: &ErrorClass, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(of(*class))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ErrorClass, D::Error> {
        let number = u8::deserialize(deserializer)?;
        class(number).ok_or_else(|| D::Error::custom(format_args!("{number} is the number of no error class")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trigger::retry::{FreeRetry, Jitter};

    const NOW: i64 = 1_700_000_000_000;

    fn policies(errors_tolerance: ErrorsTolerance) -> Policies {
        let free = FreeRetry {
            initial: Duration::from_secs(2),
            max_attempts: 3,
            jitter: Jitter::None,
            max_age: Duration::from_secs(100),
            ..FreeRetry::default()
        };
        Policies { retry: RetryPolicy::Free(free), errors_tolerance }
    }

    fn error(class: ErrorClass) -> InvocationError {
        InvocationError::new(class, "code", "message")
    }

    /// Runs one attempt that begins and ends at `now_ms`.
    fn attempt(state: &mut AttemptState, class: ErrorClass, tolerance: ErrorsTolerance, now_ms: i64) -> Step {
        state.begin(now_ms);
        state.end(Err(&error(class)), &policies(tolerance), now_ms, 0)
    }

    #[test]
    fn success_finishes_the_window() {
        let mut state = AttemptState::default();
        state.begin(NOW);
        assert!(state.running);
        assert_eq!(state.end(Ok(()), &policies(ErrorsTolerance::All), NOW + 5, 0), Step::Done);
        assert!(!state.running);
    }

    #[test]
    fn failures_and_crashes_spend_attempts_until_the_policy_ends() {
        let mut state = AttemptState::default();
        let mut step = |class, at| attempt(&mut state, class, ErrorsTolerance::All, at);
        assert_eq!(step(ErrorClass::Failed, NOW), Step::RetryAt { at_ms: NOW + 2000, attempt: 2 });
        assert_eq!(step(ErrorClass::Crashed, NOW + 2000), Step::RetryAt { at_ms: NOW + 6000, attempt: 3 });
        assert_eq!(step(ErrorClass::Failed, NOW + 6000), Step::Exhausted { reason: ExhaustedReason::Attempts });
        assert_eq!((state.attempts, state.first_attempt_ms, state.last_attempt_ms), (3, Some(NOW), Some(NOW + 6000)));
        assert_eq!(state.last_error.unwrap().class, ErrorClass::Failed);
    }

    #[test]
    fn a_rejection_is_not_retried() {
        let mut state = AttemptState::default();
        let step = attempt(&mut state, ErrorClass::Rejected, ErrorsTolerance::All, NOW);
        assert_eq!(step, Step::Exhausted { reason: ExhaustedReason::Rejected });
        assert_eq!(state.attempts, 1);
    }

    #[test]
    fn without_tolerance_the_lane_is_blocked_and_goes_on_trying() {
        let mut state = AttemptState::default();
        let step = attempt(&mut state, ErrorClass::Rejected, ErrorsTolerance::None, NOW);
        assert_eq!(step, Step::Blocked { at_ms: NOW + 60_000, reason: ExhaustedReason::Rejected });
        for round in 1..5 {
            let now = NOW + round * 60_000;
            let step = attempt(&mut state, ErrorClass::Failed, ErrorsTolerance::None, now);
            assert!(matches!(step, Step::RetryAt { .. } | Step::Blocked { .. }), "{step:?}");
        }
        assert_eq!(state.attempts, 5);
        state.begin(NOW);
        assert_eq!(state.end(Ok(()), &policies(ErrorsTolerance::None), NOW, 0), Step::Done);
    }

    #[test]
    fn a_throttled_answer_waits_as_told_and_spends_nothing() {
        let mut state = AttemptState::default();
        let mut told = error(ErrorClass::Throttled);
        let ageless = Policies { retry: RetryPolicy::BackoffRetry, errors_tolerance: ErrorsTolerance::All };
        told.retry_after = Some(Duration::from_secs(7));
        state.begin(NOW);
        let step = state.end(Err(&told), &ageless, NOW, 0);
        assert_eq!(step, Step::Throttled { until_ms: NOW + 7000 });
        told.retry_after = Some(Duration::MAX);
        state.begin(NOW);
        let step = state.end(Err(&told), &ageless, NOW, u64::MAX);
        assert_eq!(step, Step::Throttled { until_ms: NOW + 3_600_000 });
        assert_eq!((state.attempts, state.pauses), (0, 2));
    }

    #[test]
    fn a_throttled_answer_that_names_no_wait_backs_off_to_a_minute() {
        let mut state = AttemptState::default();
        let waits: Vec<i64> = (0..9)
            .map(|_| match attempt(&mut state, ErrorClass::Throttled, ErrorsTolerance::All, NOW) {
                Step::Throttled { until_ms } => (until_ms - NOW) / 1000,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        state.pauses = u32::MAX;
        let step = attempt(&mut state, ErrorClass::Throttled, ErrorsTolerance::All, NOW);
        assert_eq!(step, Step::Throttled { until_ms: NOW + 60_000 });
    }

    #[test]
    fn a_window_that_is_throttled_grows_older_and_is_given_up_in_the_end() {
        let mut state = AttemptState::default();
        let mut throttled = |tolerance, at_ms| attempt(&mut state, ErrorClass::Throttled, tolerance, at_ms);
        assert_eq!(throttled(ErrorsTolerance::All, NOW), Step::Throttled { until_ms: NOW + 1000 });
        // Of a hundred seconds, the two before the next attempt are the last.
        let at_ms = NOW + 98_000;
        assert_eq!(throttled(ErrorsTolerance::All, at_ms), Step::Throttled { until_ms: at_ms + 2000 });
        let step = throttled(ErrorsTolerance::All, at_ms + 2000);
        assert_eq!(step, Step::Exhausted { reason: ExhaustedReason::Age });
        assert_eq!((state.attempts, state.next_attempt_ms), (0, None));
        // The longest wait of the policy is a minute: the target is asked no earlier than it wants.
        let mut told = error(ErrorClass::Throttled);
        told.retry_after = Some(Duration::from_secs(3600));
        let intolerant = policies(ErrorsTolerance::None);
        state.begin(at_ms);
        let step = state.end(Err(&told), &intolerant, at_ms, 0);
        assert_eq!(step, Step::Blocked { at_ms: at_ms + 3_600_000, reason: ExhaustedReason::Age });
        assert!(state.is_blocked(&intolerant) && state.next_attempt_ms == Some(at_ms + 3_600_000));
        // The time of an outage or a pause does not count.
        let mut state = AttemptState::default();
        attempt(&mut state, ErrorClass::Throttled, ErrorsTolerance::All, NOW);
        state.suspend(NOW + 1000);
        let step = attempt(&mut state, ErrorClass::Throttled, ErrorsTolerance::All, NOW + 900_000);
        assert_eq!(step, Step::Throttled { until_ms: NOW + 902_000 });
    }

    #[test]
    fn an_outage_spends_no_attempt_and_its_time_does_not_count() {
        let mut state = AttemptState::default();
        attempt(&mut state, ErrorClass::Failed, ErrorsTolerance::All, NOW);
        let step = attempt(&mut state, ErrorClass::Unavailable, ErrorsTolerance::All, NOW + 2000);
        assert_eq!(step, Step::Outage { probe_at_ms: NOW + 3000 });
        let step = attempt(&mut state, ErrorClass::Unavailable, ErrorsTolerance::All, NOW + 3000);
        assert_eq!(step, Step::Outage { probe_at_ms: NOW + 5000 });
        // An hour later the probe gets through and the function fails: only the two seconds before the outage count.
        state.begin(NOW + 3_600_000);
        assert_eq!(state.age(NOW + 3_600_000), Duration::from_secs(2));
        let step = state.end(Err(&error(ErrorClass::Failed)), &policies(ErrorsTolerance::All), NOW + 3_600_000, 0);
        assert_eq!(step, Step::RetryAt { at_ms: NOW + 3_604_000, attempt: 3 });
        assert_eq!(state.pauses, 0);
    }

    #[test]
    fn broken_code_spends_no_attempt_and_its_time_does_not_count() {
        let mut state = AttemptState::default();
        assert_eq!(attempt(&mut state, ErrorClass::BrokenCode, ErrorsTolerance::All, NOW), Step::BrokenCode);
        assert_eq!((state.attempts, state.next_attempt_ms), (0, None));
        assert_eq!(state.age(NOW + 999_999), Duration::ZERO);
    }

    #[test]
    fn a_pause_stops_the_age_and_the_greatest_age_gives_up() {
        let mut state = AttemptState::default();
        attempt(&mut state, ErrorClass::Failed, ErrorsTolerance::All, NOW);
        state.suspend(NOW + 1000);
        state.suspend(NOW + 500_000);
        state.count_again(NOW + 901_000);
        assert_eq!(state.age(NOW + 902_000), Duration::from_secs(2));
        let step = attempt(&mut state, ErrorClass::Failed, ErrorsTolerance::All, NOW + 997_001);
        assert_eq!(step, Step::Exhausted { reason: ExhaustedReason::Age });
    }

    #[test]
    fn a_clock_set_back_makes_nothing_older() {
        let mut state = AttemptState::default();
        state.begin(NOW);
        assert_eq!(state.age(NOW - 1), Duration::ZERO);
        state.suspend(NOW);
        state.count_again(i64::MIN);
        assert_eq!(state.excluded_ms, 0);
    }

    #[test]
    fn three_interruptions_are_free_and_every_further_one_spends_an_attempt() {
        let mut state = AttemptState::default();
        for _ in 0..3 {
            let step = attempt(&mut state, ErrorClass::Interrupted, ErrorsTolerance::All, NOW);
            assert_eq!(step, Step::RetryAt { at_ms: NOW, attempt: 1 });
        }
        let mut step = || attempt(&mut state, ErrorClass::Interrupted, ErrorsTolerance::All, NOW);
        assert_eq!(step(), Step::RetryAt { at_ms: NOW + 2000, attempt: 2 });
        assert_eq!(step(), Step::RetryAt { at_ms: NOW + 4000, attempt: 3 });
        assert_eq!(step(), Step::Exhausted { reason: ExhaustedReason::Attempts });
    }

    #[test]
    fn a_state_survives_its_journal_and_keeps_a_bounded_message() {
        let mut state = AttemptState::default();
        state.begin(NOW);
        let mut long = InvocationError::new(ErrorClass::Interrupted, "c".repeat(999), "ä".repeat(5000));
        long.code.push('x');
        state.end(Err(&long), &policies(ErrorsTolerance::All), NOW, 0);
        let kept = state.last_error.clone().unwrap();
        assert_eq!((kept.code.len(), kept.message.len()), (128, 1023));
        let bytes = bincode::serde::encode_to_vec(&state, bincode::config::standard()).unwrap();
        let (read, _) =
            bincode::serde::decode_from_slice::<AttemptState, _>(&bytes, bincode::config::standard()).unwrap();
        assert_eq!(read, state);
        assert!(serde_json::from_str::<LastError>(r#"{"class":7,"code":"","message":""}"#).is_err());
    }
}
