//! What the status of an answer means.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};

use super::super::outcome::{ErrorClass, InvocationError};

/// The longest wait that a target can ask for.
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Success, or the error of an answer with `status`; `now_s` is the time in seconds since 1970.
pub(super) fn classify(status: StatusCode, headers: &HeaderMap, now_s: i64) -> Result<(), InvocationError> {
    if status.is_success() {
        return Ok(());
    }
    let wait = headers.get(RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?, now_s));
    let class = match status.as_u16() {
        429 => ErrorClass::Throttled,
        503 if wait.is_some() => ErrorClass::Throttled,
        401 | 403 | 407 => ErrorClass::Unavailable,
        404 | 408 | 409 => ErrorClass::Failed,
        400..=499 => ErrorClass::Rejected,
        // 5xx; and redirects, which are not followed because their target was never checked.
        _ => ErrorClass::Failed,
    };
    let remark = if status.is_redirection() { "; redirects are not followed" } else { "" };
    let mut error = InvocationError::new(class, status.as_str(), format!("the target answered {status}{remark}"));
    error.retry_after = wait.filter(|_| class == ErrorClass::Throttled);
    Err(error)
}

/// `Retry-After`: seconds, or a date.
fn retry_after(text: &str, now_s: i64) -> Option<Duration> {
    let text = text.trim();
    let seconds = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit mean more than the maximum.
        text.parse::<u64>().unwrap_or(u64::MAX)
    } else {
        let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
        u64::try_from(date.as_second().saturating_sub(now_s)).unwrap_or(0)
    };
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1994-11-06 08:49:07 GMT.
    const NOW_S: i64 = 784_111_747;

    fn outcome(status: u16, retry_after: Option<&str>) -> Result<(), (ErrorClass, Option<Duration>)> {
        let mut headers = HeaderMap::new();
        if let Some(text) = retry_after {
            headers.insert(RETRY_AFTER, text.parse().unwrap());
        }
        let status = StatusCode::from_u16(status).unwrap();
        classify(status, &headers, NOW_S).map_err(|error| {
            assert_eq!(error.code, status.as_str());
            (error.class, error.retry_after)
        })
    }

    #[test]
    fn every_status_has_the_class_of_the_table() {
        for status in 100..=599 {
            let expected = match status {
                200..=299 => None,
                429 => Some(ErrorClass::Throttled),
                401 | 403 | 407 => Some(ErrorClass::Unavailable),
                404 | 408 | 409 | 500..=599 | 300..=399 | 100..=199 => Some(ErrorClass::Failed),
                _ => Some(ErrorClass::Rejected),
            };
            assert_eq!(outcome(status, None).err().map(|(class, _)| class), expected, "{status}");
        }
    }

    #[test]
    fn a_wait_is_taken_in_seconds_or_as_a_date_and_bounded() {
        let cases = [
            ("0", Some(0)),
            (" 30 ", Some(30)),
            ("3601", Some(3600)),
            ("99999999999999999999999999", Some(3600)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(30)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", Some(0)),
            ("Thu, 31 Dec 9998 23:59:59 GMT", Some(3600)),
            ("-5", None),
            ("soon", None),
            ("1.5", None),
            ("", None),
        ];
        for (text, seconds) in cases {
            let wait = seconds.map(Duration::from_secs);
            assert_eq!(outcome(429, Some(text)), Err((ErrorClass::Throttled, wait)), "{text:?}");
            let class = if wait.is_some() { ErrorClass::Throttled } else { ErrorClass::Failed };
            assert_eq!(outcome(503, Some(text)), Err((class, wait)), "{text:?}");
        }
        assert_eq!(outcome(500, Some("30")), Err((ErrorClass::Failed, None)), "only throttling waits");
    }
}
