//! Telling a target that is not there from one that does not know a record, and how often it is tried while it is not
//! there.

use std::time::Duration;

use super::{RETRY_AFTER_MAX, duration_ms, pause};
use crate::function::outcome::{ErrorClass, InvocationError};

/// So many 404 answers in a row, with no success since the definition changed, mean that the address is wrong.
pub const NOT_FOUND_IN_A_ROW: u32 = 5;

/// What a trigger has learnt about its target since its definition changed. Kept per trigger, not journalled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetHealth {
    succeeded: bool,
    not_found_in_a_row: u32,
    outage: Option<Probing>,
}

/// An outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Probing {
    /// Probes that failed.
    failed: u32,
    /// When the next one may begin, ms since 1970.
    next_ms: i64,
}

impl TargetHealth {
    /// Notes a success: from now on a 404 is the function's answer to a record.
    pub const fn success(&mut self) {
        self.succeeded = true;
        self.not_found_in_a_row = 0;
    }

    /// The class that an error counts as: the fifth 404 in a row from a target that never succeeded is `Unavailable`.
    #[must_use]
    pub fn class_of(&mut self, error: &InvocationError) -> ErrorClass {
        let not_found = error.class == ErrorClass::Failed && error.code == "404";
        if !not_found || self.succeeded {
            self.not_found_in_a_row = 0;
            return error.class;
        }
        self.not_found_in_a_row = self.not_found_in_a_row.saturating_add(1);
        if self.not_found_in_a_row >= NOT_FOUND_IN_A_ROW { ErrorClass::Unavailable } else { ErrorClass::Failed }
    }

    /// Notes that an attempt which began at `began_ms` did not reach it by `now_ms`, and answers when to probe: 1, 2, 4
    /// … 60 s after each probe, whichever windows they were made with, and not before it wants to be asked again. An
    /// attempt that began before the last wait was over is no probe: those under way when an outage begins fail all at
    /// once.
    pub fn unreachable(&mut self, began_ms: i64, now_ms: i64, told: Option<Duration>) -> i64 {
        let told = told.unwrap_or(Duration::ZERO).min(RETRY_AFTER_MAX);
        let probing = match self.outage {
            Some(probing) if began_ms < probing.next_ms => {
                Probing { next_ms: probing.next_ms.max(now_ms.saturating_add(duration_ms(told))), ..probing }
            }
            before => {
                let failed = before.map_or(0, |probing| probing.failed.saturating_add(1));
                Probing { failed, next_ms: now_ms.saturating_add(duration_ms(pause(failed).max(told))) }
            }
        };
        self.outage = Some(probing);
        probing.next_ms
    }

    /// Notes that it was reached, or that somebody wants to know at once whether it can be.
    pub const fn outage_over(&mut self) {
        self.outage = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(health: &mut TargetHealth, codes: &[&str]) -> Vec<ErrorClass> {
        codes.iter().map(|code| health.class_of(&InvocationError::new(ErrorClass::Failed, *code, ""))).collect()
    }

    #[test]
    fn the_fifth_404_in_a_row_is_an_outage_until_something_else_answers() {
        use ErrorClass::{Failed, Unavailable};
        let mut health = TargetHealth::default();
        let seen = classes(&mut health, &["404", "404", "404", "404", "500", "404", "404", "404", "404", "404", "404"]);
        let expected =
            [Failed, Failed, Failed, Failed, Failed, Failed, Failed, Failed, Failed, Unavailable, Unavailable];
        assert_eq!(seen, expected);
    }

    #[test]
    fn probes_go_out_after_one_two_four_seconds_up_to_a_minute_and_anew_when_it_was_reached() {
        let mut health = TargetHealth::default();
        let waits = |health: &mut TargetHealth| {
            let mut now_ms = 1_000_000;
            let mut waits = Vec::new();
            for _ in 0..8 {
                // Each by a window that was never tried before.
                let next_ms = health.unreachable(now_ms, now_ms + 10, None);
                waits.push((next_ms - now_ms - 10) / 1000);
                now_ms = next_ms;
            }
            waits
        };
        assert_eq!(waits(&mut health), [1, 2, 4, 8, 16, 32, 60, 60]);
        health.outage_over();
        assert_eq!(waits(&mut health), [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn attempts_that_were_under_way_when_an_outage_began_make_no_wait_longer() {
        let mut health = TargetHealth::default();
        let first_ms = health.unreachable(0, 5_000, None);
        assert_eq!(first_ms, 6_000);
        for began_ms in 0..20 {
            assert_eq!(health.unreachable(began_ms, 5_900, None), first_ms);
        }
        assert_eq!(health.unreachable(10, 5_900, Some(Duration::from_secs(7))), 12_900, "as it wants");
        assert_eq!(health.unreachable(12_900, 13_000, None), 15_000, "the second wait");
    }

    #[test]
    fn a_target_that_once_succeeded_may_answer_404_for_ever() {
        let mut health = TargetHealth::default();
        health.success();
        assert_eq!(classes(&mut health, &["404"; 9]), [ErrorClass::Failed; 9]);
    }
}
