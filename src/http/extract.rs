//! What handlers take from a request, with our errors instead of the framework's.

use axum::body::Body;
use axum::extract::path::ErrorKind;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::body_room::{BodyBudget, BodyRoom};
use super::limits::HttpLimits;
use super::problem::Problem;
use super::query::Query;

/// How much of an unwanted body is shown.
const FOUND_CHARACTERS: usize = 80;

/// Parts of the path, percent-decoded.
pub(crate) struct Segments<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segments<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        path.map(|Path(segments)| Self(segments)).map_err(|rejected| {
            let detail = match &rejected {
                PathRejection::FailedToDeserializePathParams(failed) => match failed.kind() {
                    ErrorKind::ParseErrorAtIndex { value, expected_type, .. }
                    | ErrorKind::ParseErrorAtKey { value, expected_type, .. } => {
                        let shown: String = value.chars().take(FOUND_CHARACTERS).collect();
                        let range = if *expected_type == "u32" { " from 0 to 4294967295" } else { "" };
                        Some(format!("the path: found {shown:?}, allowed: a whole number{range}"))
                    }
                    _ => None,
                },
                _ => None,
            };
            Problem::bad_request("invalid-path", detail.unwrap_or_else(|| rejected.body_text()))
        })
    }
}

/// No query parameters, which most resources have none of: any that is there is refused.
pub(crate) struct NoParameters;

impl<S: Send + Sync> FromRequestParts<S> for NoParameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        Query::parse(parts.uri.query(), &[]).map(|_| Self)
    }
}

/// The whole body, within the limits.
pub(crate) struct Upload(pub(crate) Bytes);

impl<S: Send + Sync> FromRequest<S> for Upload {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        let limits = request.extensions().get::<HttpLimits>().copied().unwrap_or_default();
        let room = request.extensions().get::<BodyRoom>().cloned();
        let room = room.unwrap_or_else(|| BodyBudget::new(limits.bodies_bytes_max).room());
        let read = tokio::time::timeout(limits.body_timeout, read_body(request.into_body(), limits, &room)).await;
        let late = |_| {
            let seconds = limits.body_timeout.as_secs();
            let detail = format!("the body did not arrive within {seconds} s");
            Problem::new(StatusCode::REQUEST_TIMEOUT, "body-timeout", detail).with("limit_s", seconds)
        };
        read.map_err(late)?.map(Self)
    }
}

async fn read_body(body: Body, limits: HttpLimits, room: &BodyRoom) -> Result<Bytes, Problem> {
    let mut body = Limited::new(body, limits.body_bytes_max);
    // One piece of memory: a part may hold one byte, and takes more than thirty by itself.
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| unread(&*error, limits.body_bytes_max))?;
        let Ok(part) = frame.into_data() else { continue };
        if whole.capacity() - whole.len() < part.len() {
            let more = part.len().max(whole.len() / 8);
            room.reach(whole.len() + more).map_err(no_room)?;
            whole.reserve_exact(more);
        }
        whole.extend_from_slice(&part);
    }
    Ok(whole.into())
}

fn unread(error: &(dyn std::error::Error + Send + Sync + 'static), limit: usize) -> Problem {
    if !error.is::<LengthLimitError>() {
        return Problem::bad_request("body-unreadable", format!("the body cannot be read: {error}"));
    }
    let detail = format!("the body has more than {limit} bytes ({} MiB); send it in parts", limit >> 20);
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", detail).with("limit_bytes", limit)
}

fn no_room(limit: usize) -> Problem {
    let detail = format!("the bodies of all requests at a time may have {limit} bytes, which are taken; try again");
    let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "bodies-too-large", detail);
    problem.with("limit_bytes", limit).with("retry_after_s", 1)
}

/// Most values in a JSON body, those in lists and objects each: in memory one takes a hundred times the bytes that it may
/// be written in.
const JSON_VALUES_MAX: usize = 100_000;

/// How many values JSON has at most: one for each comma, bracket and brace that opens, outside of texts.
fn values_in(json: &[u8]) -> usize {
    let (mut values, mut in_text, mut is_escaped) = (1, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_text => is_escaped = true,
            b'"' => in_text = !in_text,
            b',' | b'[' | b'{' if !in_text => values += 1,
            _ => {}
        }
    }
    values
}

/// A JSON body of type `application/json`.
pub(crate) struct JsonBody(pub(crate) Value);

/// No body, for requests that say everything in their path; an empty object is none. What somebody writes into one
/// would not be done.
pub(crate) struct NoBody;

impl<S: Send + Sync> FromRequest<S> for NoBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let Upload(bytes) = Upload::from_request(request, state).await?;
        let text = bytes.trim_ascii();
        if text.is_empty() || text == b"{}" {
            return Ok(Self);
        }
        let shown: String = String::from_utf8_lossy(text).chars().take(FOUND_CHARACTERS).collect();
        Err(Problem::bad_request("body-not-wanted", format!("the body: found {shown:?}, allowed: nothing")))
    }
}

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let found = media_type(request.headers());
        if found.as_deref() != Some("application/json") {
            return Err(unsupported(found.as_deref(), "application/json"));
        }
        let Upload(bytes) = Upload::from_request(request, state).await?;
        if values_in(&bytes) > JSON_VALUES_MAX {
            let detail = format!("the body has more than {JSON_VALUES_MAX} values");
            return Err(
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "json-too-large", detail).with("limit", JSON_VALUES_MAX)
            );
        }
        parse_json(&bytes).map(Self)
    }
}

/// Reads JSON, or says where it is none.
pub(crate) fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let place = if path == "." { String::new() } else { format!("{path}: ") };
        Problem::bad_request("invalid-json", format!("the body: {place}{}", in_words(&error.into_inner().to_string())))
    })?;
    reader.end().map_err(|error| Problem::bad_request("invalid-json", format!("the body: {error}")))?;
    Ok(parsed)
}

/// Types as people know them.
fn in_words(error: &str) -> String {
    let words = [
        ("expected u32", "expected a whole number from 0 to 4294967295"),
        ("expected i64", "expected a whole number"),
        ("expected struct IncomingRecords with 1 element", "expected an object such as {\"records\": []}"),
        ("expected struct IncomingRecords", "expected an object such as {\"records\": []}"),
        ("expected struct WrittenRecord", "expected an object such as {\"key\": \"k\", \"value\": 1}"),
        (
            "data did not match any variant of untagged enum WrittenHeader",
            "expected a text, null, {\"base64\": \"…\"} or a list of them",
        ),
    ];
    words.iter().fold(error.to_owned(), |said, (code, word)| said.replace(code, word))
}

/// The media type of the body, in lower case and without parameters.
pub(crate) fn media_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let media_type = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    (!media_type.is_empty()).then_some(media_type)
}

/// 415.
pub(crate) fn unsupported(found: Option<&str>, allowed: &str) -> Problem {
    let found = found.map_or_else(|| "no Content-Type".to_owned(), |found| format!("Content-Type {found:?}"));
    let detail = format!("found {found}, allowed: {allowed}");
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", detail)
}
