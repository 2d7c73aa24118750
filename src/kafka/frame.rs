//! Cuts a byte stream into frames: four bytes of big-endian length, then so many bytes.
//!
//! Pure: the caller reads from its socket into [`FrameDecoder::spare`] and asks for frames. A length is only a claim:
//! the buffer grows with the bytes received, at most fourfold ahead of them, or up to the largest frame that this
//! connection has completed before. A whole frame is contiguous, so that a request's record batches are slices of it.

use bytes::{Bytes, BytesMut};
use thiserror::Error;

use super::version::Api;

/// Bytes of a frame's length.
pub const LENGTH_BYTES: usize = 4;
/// The smallest request: key, version and correlation id.
pub const FRAME_BYTES_MIN: usize = 8;
/// What is read at first, and what small requests share.
pub const READ_BYTES: usize = 8 * 1024;
/// How far the buffer may run ahead of the bytes received, as a factor.
const GROWTH: usize = 4;

/// How long frames may be. Lengths do not count the four length bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Longest Produce request in bytes. 1 MiB–256 MiB, default 64 MiB.
    pub produce_bytes_max: usize,
    /// Longest other request in bytes; they hold names and numbers, and what groups tell each other. Default 8 MiB.
    pub other_bytes_max: usize,
    /// Longest frame before the first request is accepted, in bytes. Default 64 KiB.
    pub first_bytes_max: usize,
    /// Whether the first request may be a Produce of full length. True while connections need no authentication: some
    /// clients learn the versions on one connection and produce on another.
    pub first_may_produce: bool,
}

impl Default for FrameLimits {
    fn default() -> Self {
        Self {
            produce_bytes_max: 64 * 1024 * 1024,
            other_bytes_max: 8 * 1024 * 1024,
            first_bytes_max: 64 * 1024,
            first_may_produce: true,
        }
    }
}

/// What else than Kafka a first frame looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherProtocol {
    /// An HTTP request line.
    Http,
    /// A TLS client hello.
    Tls,
}

/// A stream that cannot go on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// The peer speaks something else.
    #[error("the peer speaks {}, this port speaks the Kafka protocol in plain text", match .0 { OtherProtocol::Http => "HTTP", OtherProtocol::Tls => "TLS" })]
    NotKafka(OtherProtocol),
    /// Negative, zero, or too small to hold a request header.
    #[error("frame length {length} bytes: at least {FRAME_BYTES_MIN} are needed for a request header")]
    TooShort {
        /// As announced.
        length: i32,
    },
    /// Longer than a frame of this request may be.
    #[error("frame length {length} bytes for request key {api_key:?}: at most {limit} are allowed")]
    TooLong {
        /// As announced.
        length: usize,
        /// The longest allowed.
        limit: usize,
        /// The request, where it mattered and was known.
        api_key: Option<i16>,
    },
}

/// Bytes in, frames out.
#[derive(Debug)]
pub struct FrameDecoder {
    limits: FrameLimits,
    buffer: BytesMut,
    /// No request has been accepted yet.
    first: bool,
    /// The largest frame completed, with its length bytes.
    trusted_bytes: usize,
}

/// What the decoder knows of the frame at the front of its buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing has been received of it.
    Idle,
    /// Its length is not yet known or not yet allowed.
    Head,
    /// So many bytes long (without length bytes), still incomplete.
    Body(usize),
}

impl FrameDecoder {
    /// A decoder at the start of a stream, holding no memory.
    #[must_use]
    pub fn new(limits: FrameLimits) -> Self {
        Self { limits, buffer: BytesMut::new(), first: true, trusted_bytes: 0 }
    }

    /// The next whole frame without its length, or none if more bytes are needed.
    ///
    /// # Errors
    /// When the length is not allowed: nothing can be read of this stream any more.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(length) = self.front_length()? else { return Ok(None) };
        let whole = LENGTH_BYTES + length;
        if self.buffer.len() < whole {
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(whole).freeze();
        self.trusted_bytes = self.trusted_bytes.max(whole);
        if self.buffer.is_empty() {
            // Let go of the shared memory, so that it lives no longer than the request.
            self.buffer = BytesMut::new();
        }
        Ok(Some(frame.split_off(LENGTH_BYTES)))
    }

    /// The first request has been accepted: from now on each request has its own limit.
    pub fn accept(&mut self) {
        self.first = false;
    }

    /// How far the frame at the front has come.
    ///
    /// # Errors
    /// As [`Self::next_frame`].
    pub fn progress(&self) -> Result<Progress, FrameError> {
        if self.buffer.is_empty() {
            return Ok(Progress::Idle);
        }
        Ok(self.front_length()?.map_or(Progress::Head, Progress::Body))
    }

    /// Room for at least one more byte, to be filled by the caller.
    ///
    /// # Errors
    /// As [`Self::next_frame`].
    pub fn spare(&mut self) -> Result<&mut BytesMut, FrameError> {
        if self.buffer.len() == self.buffer.capacity() {
            let capacity = self.next_capacity()?;
            // A fresh buffer of exactly this size: growing in place would round up to twice the old one.
            let mut grown = BytesMut::with_capacity(capacity);
            grown.extend_from_slice(&self.buffer);
            self.buffer = grown;
        }
        Ok(&mut self.buffer)
    }

    /// Memory held, in bytes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    fn next_capacity(&self) -> Result<usize, FrameError> {
        let received = self.buffer.len();
        let ahead = received.saturating_mul(GROWTH).max(self.trusted_bytes).max(READ_BYTES);
        let capacity = match self.front_length()? {
            Some(length) => (LENGTH_BYTES + length).clamp(READ_BYTES, ahead),
            None => READ_BYTES,
        };
        debug_assert!(capacity > received, "room for at least one more byte");
        Ok(capacity)
    }

    /// The length of the frame at the front, once it is known and allowed.
    fn front_length(&self) -> Result<Option<usize>, FrameError> {
        let Some((head, rest)) = self.buffer.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let announced = i32::from_be_bytes(*head);
        let length = match usize::try_from(announced) {
            Ok(length) if length >= FRAME_BYTES_MIN => length,
            _ => return Err(FrameError::TooShort { length: announced }),
        };
        let api_key = rest.first_chunk::<2>().map(|key| i16::from_be_bytes(*key));
        match self.limit(api_key) {
            Limit::Known(limit) if length > limit => Err(self.too_long(*head, length, limit, api_key)),
            Limit::Known(_) => Ok(Some(length)),
            Limit::Between { low, .. } if length <= low => Ok(Some(length)),
            Limit::Between { high, .. } if length > high => Err(self.too_long(*head, length, high, api_key)),
            Limit::Between { .. } => Ok(None),
        }
    }

    fn limit(&self, api_key: Option<i16>) -> Limit {
        let other = if self.first { self.limits.first_bytes_max } else { self.limits.other_bytes_max };
        let produce = if self.first && !self.limits.first_may_produce { other } else { self.limits.produce_bytes_max };
        match api_key {
            Some(key) if key == Api::Produce.spec().key => Limit::Known(produce),
            Some(_) => Limit::Known(other),
            None => Limit::Between { low: other.min(produce), high: other.max(produce) },
        }
    }

    fn too_long(&self, head: [u8; LENGTH_BYTES], length: usize, limit: usize, api_key: Option<i16>) -> FrameError {
        match other_protocol(head) {
            Some(protocol) if self.first => FrameError::NotKafka(protocol),
            _ => FrameError::TooLong { length, limit, api_key },
        }
    }
}

/// The longest allowed, as far as the request key is known.
enum Limit {
    Known(usize),
    Between { low: usize, high: usize },
}

fn other_protocol(head: [u8; LENGTH_BYTES]) -> Option<OtherProtocol> {
    match &head {
        b"GET " | b"HEAD" | b"POST" | b"PUT " | b"PATC" | b"DELE" | b"OPTI" | b"CONN" | b"PRI " => {
            Some(OtherProtocol::Http)
        }
        [0x16, 0x03, 0x00..=0x04, _] => Some(OtherProtocol::Tls),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::prelude::*;

    use super::*;

    const PRODUCE: i16 = 0;
    const METADATA: i16 = 3;

    fn limits() -> FrameLimits {
        FrameLimits {
            produce_bytes_max: 1 << 20,
            other_bytes_max: 200_000,
            first_bytes_max: 1_000,
            first_may_produce: true,
        }
    }

    fn feed(decoder: &mut FrameDecoder, mut bytes: &[u8]) -> Result<Vec<Bytes>, FrameError> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let spare = decoder.spare()?;
            let room = (spare.capacity() - spare.len()).min(bytes.len());
            assert!(room > 0);
            spare.put_slice(&bytes[..room]);
            bytes = &bytes[room..];
            while let Some(frame) = decoder.next_frame()? {
                decoder.accept();
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    fn frame(api_key: i16, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&i32::try_from(length).unwrap().to_be_bytes());
        bytes.extend_from_slice(&api_key.to_be_bytes());
        bytes.resize(LENGTH_BYTES + length, 0xab);
        bytes
    }

    #[test]
    fn frames_come_out_whole_however_the_bytes_arrive() {
        let mut stream = frame(METADATA, 8);
        stream.extend(frame(PRODUCE, 900_000));
        stream.extend(frame(METADATA, 20_000));
        for step in [1, 3, 4, 5, 4096, stream.len()] {
            let mut decoder = FrameDecoder::new(limits());
            let mut frames = Vec::new();
            for chunk in stream.chunks(step) {
                frames.extend(feed(&mut decoder, chunk).unwrap());
            }
            assert_eq!(frames.iter().map(Bytes::len).collect::<Vec<_>>(), [8, 900_000, 20_000], "step {step}");
            assert_eq!(decoder.capacity(), 0, "nothing is held between frames");
        }
    }

    #[test]
    fn a_length_that_cannot_hold_a_header_is_refused() {
        for length in [i32::MIN, -2, -1, 0, 1, 7] {
            let mut decoder = FrameDecoder::new(limits());
            assert_eq!(feed(&mut decoder, &length.to_be_bytes()), Err(FrameError::TooShort { length }));
        }
    }

    #[test]
    fn a_length_above_every_limit_is_refused_at_once_and_costs_one_small_buffer() {
        for _ in 0..1_000 {
            let mut decoder = FrameDecoder::new(FrameLimits::default());
            assert!(matches!(feed(&mut decoder, &i32::MAX.to_be_bytes()), Err(FrameError::TooLong { .. })));
            assert!(decoder.capacity() <= READ_BYTES);
        }
    }

    #[test]
    fn a_long_frame_holds_at_most_four_times_the_bytes_received() {
        let mut decoder = FrameDecoder::new(FrameLimits::default());
        let stream = frame(PRODUCE, 60 << 20);
        for (received, chunk) in stream[..4 << 20].chunks(777).enumerate() {
            assert_eq!(feed(&mut decoder, chunk).unwrap().len(), 0);
            let received = received * 777 + chunk.len();
            assert!(decoder.capacity() <= (4 * received).max(READ_BYTES), "{} for {received}", decoder.capacity());
        }
    }

    #[test]
    fn a_second_frame_as_long_as_the_first_gets_its_memory_in_one_piece() {
        let mut decoder = FrameDecoder::new(limits());
        feed(&mut decoder, &frame(PRODUCE, 500_000)).unwrap();
        feed(&mut decoder, &frame(PRODUCE, 500_000)[..READ_BYTES]).unwrap();
        decoder.spare().unwrap();
        assert_eq!(decoder.capacity(), LENGTH_BYTES + 500_000);
    }

    #[test]
    fn the_limit_depends_on_the_request_and_on_whether_it_is_the_first() {
        let refused = |limit, key| Err(FrameError::TooLong { length: 1_001, limit, api_key: key });
        let mut decoder = FrameDecoder::new(limits());
        assert_eq!(feed(&mut decoder, &1_001_i32.to_be_bytes()).unwrap().len(), 0, "could still be a Produce");
        assert_eq!(feed(&mut decoder, &METADATA.to_be_bytes()), refused(1_000, Some(METADATA)));

        let mut strict = FrameDecoder::new(FrameLimits { first_may_produce: false, ..limits() });
        assert_eq!(feed(&mut strict, &1_001_i32.to_be_bytes()), refused(1_000, None));

        let mut decoder = FrameDecoder::new(limits());
        feed(&mut decoder, &frame(METADATA, 8)).unwrap();
        assert_eq!(feed(&mut decoder, &frame(METADATA, 200_000)).unwrap().len(), 1, "the first has passed");
        assert!(feed(&mut decoder, &frame(METADATA, 200_001)).is_err());
    }

    #[test]
    fn other_protocols_are_named() {
        for hello in ["GET / HTTP/1.1", "POST /v1/topics"] {
            let mut decoder = FrameDecoder::new(FrameLimits::default());
            assert_eq!(feed(&mut decoder, hello.as_bytes()), Err(FrameError::NotKafka(OtherProtocol::Http)));
        }
        let mut decoder = FrameDecoder::new(FrameLimits::default());
        assert_eq!(feed(&mut decoder, &[0x16, 3, 1, 2, 0, 1]), Err(FrameError::NotKafka(OtherProtocol::Tls)));
    }

    proptest! {
        #[test]
        fn any_bytes_give_frames_or_an_error_and_never_much_memory(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            let mut decoder = FrameDecoder::new(limits());
            let _ = feed(&mut decoder, &bytes);
            prop_assert!(decoder.capacity() <= (4 * bytes.len()).max(READ_BYTES));
        }
    }
}
