//! What comes back from one attempt to invoke a function.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;

use super::frame::PAYLOAD_BYTES_MAX;
use crate::event::trace::TraceContext;

/// Why an attempt did not succeed, as the trigger engine distinguishes it.
///
/// The class decides what follows: whether an attempt is spent, whether the trigger waits, pauses or gives up. Only of
/// what is too large to be handed over in one, the parts are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorClass {
    /// The handler raised, answered 5xx, 404, 408, 409, or ran out of time: the retry policy applies and an attempt is
    /// spent.
    Failed,
    /// The handler refused the records for good (other 4xx, raised with `retryable` being false): no retry.
    Rejected,
    /// The target asked to slow down (429, 503 with `Retry-After`, quota reached): no attempt spent.
    Throttled,
    /// The target cannot be reached or does not let us in: no attempt spent, the trigger goes into outage mode.
    Unavailable,
    /// The code cannot run at all (does not load, initializer raises, interpreter missing): no attempt spent, the
    /// trigger fails.
    BrokenCode,
    /// The instance died while it held the records.
    Crashed,
    /// The broker stopped between the start of the attempt and its outcome.
    Interrupted,
}

impl ErrorClass {
    /// The word used in dead-letter headers, metrics and the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::BrokenCode => "broken-code",
            Self::Crashed => "crashed",
            Self::Interrupted => "interrupted",
        }
    }
}

/// The longest [`InvocationError::message`] kept, in bytes; of longer ones the beginning and the end.
pub const ERROR_MESSAGE_BYTES_MAX: usize = 4096;

/// Stands where the middle of a message was left out.
const LEFT_OUT: &str = " ... ";

/// The code of a payload that functions do not take.
const PAYLOAD_TOO_LARGE: &str = "payload-too-large";

/// The facts of a failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvocationError {
    /// What follows.
    pub class: ErrorClass,
    /// A short stable word or number, at most 128 bytes: an HTTP status, an exception type, `timeout`, `signal-9`.
    pub code: String,
    /// What a person reads, at most [`ERROR_MESSAGE_BYTES_MAX`] bytes: for code, the traceback.
    pub message: String,
    /// How long the target asked us to wait, when it did.
    pub retry_after: Option<Duration>,
}

impl InvocationError {
    /// An error without a wait, with the beginning and the end of a `message` that is longer than
    /// [`ERROR_MESSAGE_BYTES_MAX`].
    #[must_use]
    pub fn new(class: ErrorClass, code: impl Into<String>, message: impl Into<String>) -> Self {
        let message = message.into();
        let message = match abridged(&message, ERROR_MESSAGE_BYTES_MAX) {
            Cow::Borrowed(_) => message,
            Cow::Owned(shorter) => shorter,
        };
        Self { class, code: code.into(), message, retry_after: None }
    }

    /// No function takes a payload of more than [`PAYLOAD_BYTES_MAX`]: one of `size_bytes` is refused for good.
    pub(crate) fn payload_too_large(size_bytes: usize) -> Self {
        let message = format!("the payload has {size_bytes} bytes, the limit is {PAYLOAD_BYTES_MAX}");
        Self::new(ErrorClass::Rejected, PAYLOAD_TOO_LARGE, message)
    }

    /// The same of `records`, which have to go in smaller parts.
    pub(crate) fn payload_too_large_for_one(records: usize) -> Self {
        let message = format!("{records} records make a payload of more than {PAYLOAD_BYTES_MAX} bytes");
        Self::new(ErrorClass::Failed, PAYLOAD_TOO_LARGE, message)
    }

    /// Whether fewer records may be what a function takes.
    pub(crate) fn is_payload_too_large(&self) -> bool {
        self.code == PAYLOAD_TOO_LARGE
    }
}

/// What of a message is kept in `max_bytes`: all of it, or a quarter from its beginning and the rest from its end, where
/// a traceback says what went wrong. Cut between characters.
pub(crate) fn abridged(message: &str, max_bytes: usize) -> Cow<'_, str> {
    if message.len() <= max_bytes {
        return Cow::Borrowed(message);
    }
    let room = max_bytes.saturating_sub(LEFT_OUT.len());
    let head = beginning(message, room / 4);
    let tail_at = (message.len() - (room - head.len())..).find(|&at| message.is_char_boundary(at));
    let tail = &message[tail_at.unwrap_or(message.len())..];
    Cow::Owned([head, LEFT_OUT, tail].concat())
}

/// The longest beginning of `text` that is at most `max_bytes` long and ends between characters.
pub(crate) fn beginning(text: &str, max_bytes: usize) -> &str {
    let end = (0..=max_bytes.min(text.len())).rfind(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

/// What one attempt hands to a function.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The same for every attempt of one window: `<trigger>/<topic>/<partition>/<first offset>`, or a random id for a
    /// direct invocation.
    pub id: String,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// The payload as the function's `payload` setting shapes it.
    pub payload: Bytes,
    /// Its media type.
    pub content_type: &'static str,
    /// How many records the payload holds; 0 for a direct invocation.
    pub record_count: u32,
    /// The span that the attempt is, where what it hands over belongs to one trace. http functions are told in headers.
    pub trace: Option<TraceContext>,
}

/// The answer of a function that returned: its result as JSON bytes (python3), or the response body (http).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvocationSuccess {
    /// Bounded by the function's output limit.
    pub body: Bytes,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_that_is_too_long_keeps_its_beginning_and_its_end() {
        assert_eq!(abridged("0123456789", 10), "0123456789");
        assert_eq!(abridged("0123456789abcdefghijklmnopqrstuvwxyz", 21), "0123 ... opqrstuvwxyz");
        let error = InvocationError::new(ErrorClass::Failed, "x", format!("head{}tail", "ä".repeat(5000)));
        assert_eq!(error.message.len(), ERROR_MESSAGE_BYTES_MAX - 1, "no half of an ä");
        assert!(error.message.starts_with("headä") && error.message.ends_with("ätail"));
    }

    proptest! {
        #[test]
        fn what_is_kept_is_never_too_long_and_is_what_was_there(message in "[aäあ😀]{0,60}", max_bytes in 5_usize..100) {
            let kept = abridged(&message, max_bytes);
            prop_assert!(kept.len() <= max_bytes);
            match kept.split_once(LEFT_OUT) {
                None => prop_assert_eq!(&*kept, &message),
                Some((head, tail)) => {
                    prop_assert!(message.len() > max_bytes);
                    prop_assert!(message.starts_with(head) && message.ends_with(tail));
                    // No character is longer than four bytes, and each end may have lost one.
                    prop_assert!(kept.len() + 6 >= max_bytes);
                }
            }
        }
    }
}
