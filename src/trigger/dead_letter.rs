//! The headers that tell why a record became a dead letter and where it came from.
//!
//! A dead letter has key, value and headers as they were, then these fourteen, in this order. The bytes are part of the
//! format: people write tools against them.

use jiff::Timestamp;
use tripline_storage::{LeaderEpoch, Offset};

use crate::event::time_text;
use crate::function::outcome::{ErrorClass, abridged};

pub use crate::input::LETTER_HEADER_PREFIX as HEADER_PREFIX;

/// The longest error message in a dead letter, in bytes.
pub const ERROR_MESSAGE_BYTES_MAX: usize = 1024;
/// The longest error code in a dead letter, in bytes.
pub const ERROR_CODE_BYTES_MAX: usize = 128;

/// Why a record was given up, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterFacts<'a> {
    /// The trigger's name.
    pub trigger: &'a str,
    /// The function's name, or its URL.
    pub function: &'a str,
    /// The topic the record was read from.
    pub topic: &'a str,
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: Offset,
    /// Its timestamp in milliseconds since 1970, −1 for none.
    pub timestamp_ms: i64,
    /// The class of the last failure.
    pub error_class: ErrorClass,
    /// Its code.
    pub error_code: &'a str,
    /// What a person reads; of more than [`ERROR_MESSAGE_BYTES_MAX`] the beginning and the end, control characters
    /// become spaces.
    pub error_message: &'a str,
    /// Attempts that were made.
    pub attempts: u32,
    /// When the first began, in milliseconds since 1970.
    pub first_attempt_ms: i64,
    /// When the last began.
    pub last_attempt_ms: i64,
    /// How often the record has come back by a redrive.
    pub redrives: u32,
    /// The leader epoch of the record's batch: a part of its event's source, so that a redriven event has the name that
    /// it had.
    pub leader_epoch: LeaderEpoch,
}

/// A header's name and value.
pub type DeadLetterHeader = (&'static str, Vec<u8>);

impl DeadLetterFacts<'_> {
    /// The fourteen headers.
    #[must_use]
    pub fn headers(&self) -> [DeadLetterHeader; 14] {
        [
            ("tripline-dlq-trigger", self.trigger.into()),
            ("tripline-dlq-function", self.function.into()),
            ("tripline-dlq-topic", self.topic.into()),
            ("tripline-dlq-partition", decimal(self.partition)),
            ("tripline-dlq-offset", decimal(self.offset)),
            ("tripline-dlq-timestamp", date(self.timestamp_ms)),
            ("tripline-dlq-error-class", self.error_class.as_str().into()),
            ("tripline-dlq-error-code", clean(self.error_code, ERROR_CODE_BYTES_MAX)),
            ("tripline-dlq-error-message", clean(self.error_message, ERROR_MESSAGE_BYTES_MAX)),
            ("tripline-dlq-attempts", decimal(self.attempts)),
            ("tripline-dlq-first-attempt", date(self.first_attempt_ms)),
            ("tripline-dlq-last-attempt", date(self.last_attempt_ms)),
            ("tripline-dlq-redrives", decimal(self.redrives)),
            ("tripline-dlq-leader-epoch", decimal(self.leader_epoch)),
        ]
    }
}

fn decimal(number: impl std::fmt::Display) -> Vec<u8> {
    number.to_string().into_bytes()
}

/// RFC 3339 in UTC with milliseconds; empty when there is no such time.
fn date(unix_ms: i64) -> Vec<u8> {
    if unix_ms < 0 {
        return Vec::new();
    }
    Timestamp::from_millisecond(unix_ms).map_or_else(|_| Vec::new(), |time| time_text(time).into_bytes())
}

/// One line without control characters, at most `max_bytes` long.
fn clean(text: &str, max_bytes: usize) -> Vec<u8> {
    let cleaned: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    abridged(&cleaned, max_bytes).into_owned().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> DeadLetterFacts<'static> {
        DeadLetterFacts {
            trigger: "slow-flights",
            function: "notify",
            topic: "flights",
            partition: 3,
            offset: Offset::new(4711).unwrap(),
            timestamp_ms: 1_700_000_000_123,
            error_class: ErrorClass::Failed,
            error_code: "ValueError",
            error_message: "Traceback:\n\tline 1\nValueError: ä",
            attempts: 4,
            first_attempt_ms: 1_700_000_001_000,
            last_attempt_ms: 1_700_000_046_007,
            redrives: 0,
            leader_epoch: LeaderEpoch::new(7).unwrap(),
        }
    }

    #[test]
    fn the_headers_are_these_bytes_in_this_order() {
        let expected = "tripline-dlq-trigger=slow-flights\n\
            tripline-dlq-function=notify\n\
            tripline-dlq-topic=flights\n\
            tripline-dlq-partition=3\n\
            tripline-dlq-offset=4711\n\
            tripline-dlq-timestamp=2023-11-14T22:13:20.123Z\n\
            tripline-dlq-error-class=failed\n\
            tripline-dlq-error-code=ValueError\n\
            tripline-dlq-error-message=Traceback:  line 1 ValueError: ä\n\
            tripline-dlq-attempts=4\n\
            tripline-dlq-first-attempt=2023-11-14T22:13:21.000Z\n\
            tripline-dlq-last-attempt=2023-11-14T22:14:06.007Z\n\
            tripline-dlq-redrives=0\n\
            tripline-dlq-leader-epoch=7\n";
        let written: String = facts()
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}={}\n", std::str::from_utf8(value).unwrap()))
            .collect();
        assert_eq!(written, expected);
        assert!(facts().headers().iter().all(|(name, _)| name.starts_with(HEADER_PREFIX)));
    }

    #[test]
    fn of_a_long_message_beginning_and_end_are_told_and_a_missing_time_is_empty() {
        let message = format!("Traceback:\n{}ValueError: ä", "\tline 1\n".repeat(400));
        let headers = DeadLetterFacts { error_message: &message, timestamp_ms: -1, ..facts() }.headers();
        let text = std::str::from_utf8(&headers[8].1).unwrap();
        assert_eq!(text.len(), ERROR_MESSAGE_BYTES_MAX);
        assert!(text.starts_with("Traceback:  line 1  line 1 ") && text.ends_with(" line 1 ValueError: ä"), "{text}");
        assert_eq!(headers[5].1, b"");
        assert_eq!(date(i64::MAX), b"");
    }
}
