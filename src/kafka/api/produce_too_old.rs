//! Produce in the versions 0 to 2, which are advertised but not served: each partition is answered with
//! UNSUPPORTED_VERSION.
//!
//! They carry messages older than record batches. The schemas do not hold them any more, and so this file reads and
//! writes the little that a refusal needs:
//! ```text
//! request   acks i16, timeout i32, [topic string, [partition i32, messages bytes]]
//! response  [topic string, [partition i32, error i16, base offset i64, (2: log append time i64)]], (1, 2: throttle time i32)
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut, TryGetError};
use thiserror::Error;

use crate::kafka::codec::RequestHeader;
use crate::kafka::error_code::ErrorCode;
use crate::kafka::handler::{Response, ResponseFrame};

/// A request that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TooOldError {
    /// It ends early.
    #[error("produce request ends early: {0}")]
    Ends(#[from] TryGetError),
    /// A length that no request has.
    #[error("produce request: length {found} of {what} with {remaining} bytes left")]
    Length {
        /// What was to follow.
        what: &'static str,
        /// As sent.
        found: i32,
        /// Bytes after it.
        remaining: usize,
    },
}

/// Refuses one request of version 0, 1 or 2.
///
/// # Errors
/// When the body cannot be read.
pub fn refuse(header: &RequestHeader, mut body: Bytes) -> Result<Response, TooOldError> {
    let acks = body.try_get_i16()?;
    body.try_get_i32()?;
    let mut frame = BytesMut::new();
    frame.put_i32(0);
    frame.put_i32(header.correlation_id);
    let topic_count = take_length(&mut body, "topics")?;
    frame.put_u32(topic_count);
    for _ in 0..topic_count {
        refuse_topic(&mut body, &mut frame, header.api_version)?;
    }
    if header.api_version >= 1 {
        frame.put_i32(0);
    }
    let length = u32::try_from(frame.len() - 4).unwrap_or(u32::MAX);
    frame[..4].copy_from_slice(&length.to_be_bytes());
    Ok(match acks {
        0 => Response::Close("produce with acks=0 in a version below 3"),
        _ => Response::Frame(ResponseFrame::from(frame.freeze())),
    })
}

fn refuse_topic(body: &mut Bytes, frame: &mut BytesMut, version: i16) -> Result<(), TooOldError> {
    let name_length = body.try_get_i16()?;
    let name = take(body, "topic", i32::from(name_length))?;
    frame.put_i16(name_length);
    frame.put_slice(&name);
    let partition_count = take_length(body, "partitions")?;
    frame.put_u32(partition_count);
    for _ in 0..partition_count {
        frame.put_i32(body.try_get_i32()?);
        let messages_length = body.try_get_i32()?;
        take(body, "messages", messages_length.max(0))?;
        frame.put_i16(ErrorCode::UnsupportedVersion.code());
        frame.put_i64(-1);
        if version >= 2 {
            frame.put_i64(-1);
        }
    }
    Ok(())
}

/// A count, which the bytes left must back with one byte each at least.
fn take_length(body: &mut Bytes, what: &'static str) -> Result<u32, TooOldError> {
    let found = body.try_get_i32()?;
    match u32::try_from(found) {
        Ok(count) if count as usize <= body.len() => Ok(count),
        _ => Err(TooOldError::Length { what, found, remaining: body.len() }),
    }
}

fn take(body: &mut Bytes, what: &'static str, found: i32) -> Result<Bytes, TooOldError> {
    match usize::try_from(found) {
        Ok(length) if length <= body.len() => Ok(body.split_to(length)),
        _ => Err(TooOldError::Length { what, found, remaining: body.len() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"\0\x01\0\0\0\x64\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\x07\0\0\0\x03abc";

    fn header(api_version: i16) -> RequestHeader {
        RequestHeader { api_key: 0, api_version, correlation_id: 5, client_id: None }
    }

    fn frame(api_version: i16) -> Vec<u8> {
        match refuse(&header(api_version), Bytes::from_static(BODY)).unwrap() {
            Response::Frame(frame) => frame.parts().concat(),
            other => panic!("a frame, not {other:?}"),
        }
    }

    #[test]
    fn each_partition_is_refused_in_the_shape_of_its_version() {
        let partition = b"\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\x07\0\x23\xff\xff\xff\xff\xff\xff\xff\xff";
        let version_0 = [b"\0\0\0\x1d\0\0\0\x05".as_slice(), partition].concat();
        assert_eq!(frame(0), version_0);
        let version_1 = [b"\0\0\0\x21\0\0\0\x05".as_slice(), partition, b"\0\0\0\0"].concat();
        assert_eq!(frame(1), version_1);
        let version_2 = [b"\0\0\0\x29\0\0\0\x05".as_slice(), partition, &[0xff; 8], b"\0\0\0\0"].concat();
        assert_eq!(frame(2), version_2);
    }

    #[test]
    fn without_acks_the_connection_closes() {
        let mut body = BODY.to_vec();
        body[1] = 0;
        assert!(matches!(refuse(&header(1), Bytes::from(body)), Ok(Response::Close(_))));
    }

    #[test]
    fn hostile_lengths_are_refused() {
        for length in [-2_i32, -1, i32::MAX] {
            for place in [6, 13, 21] {
                let mut body = BODY.to_vec();
                body[place..place + 4].copy_from_slice(&length.to_be_bytes());
                let refused = refuse(&header(2), Bytes::from(body));
                assert!(refused.is_err() || place == 21 && length < 0, "{length} at {place}: {refused:?}");
            }
        }
        for end in 0..BODY.len() {
            assert!(refuse(&header(2), Bytes::copy_from_slice(&BODY[..end])).is_err(), "cut at {end}");
        }
    }
}
