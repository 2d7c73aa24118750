//! Telling a target that is not there from one that does not know a record.

use crate::function::outcome::{ErrorClass, InvocationError};

/// So many 404 answers in a row, with no success since the definition changed, mean that the address is wrong.
pub const NOT_FOUND_IN_A_ROW: u32 = 5;

/// What a trigger has learnt about its target since its definition changed. Kept per trigger, not journalled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetHealth {
    succeeded: bool,
    not_found_in_a_row: u32,
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
    fn a_target_that_once_succeeded_may_answer_404_for_ever() {
        let mut health = TargetHealth::default();
        health.success();
        assert_eq!(classes(&mut health, &["404"; 9]), [ErrorClass::Failed; 9]);
    }
}
