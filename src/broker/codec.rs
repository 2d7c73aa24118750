//! The bytes of a journal record: the one place that knows bincode.
//!
//! ```text
//! length  u32 little-endian  of all that follows the checksum
//! crc32   u32 little-endian  CRC-32 (IEEE) of all that follows
//! kind    u8                 what the body is; numbers are never used again
//! version u8                 of the body's shape; a released (kind, version) is frozen
//! body    bincode 2.0.1, standard configuration (little-endian, variable-length integers), at most BODY_BYTES_MAX
//! ```
//! bincode is unmaintained (RUSTSEC-2025-0141) and stays behind this module, so that replacing it is a change of one
//! file. It never sees bytes from the network, and never a body whose checksum fails.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest body: definitions are at most 1 MiB of text, progress 3,000 bytes.
pub const BODY_BYTES_MAX: usize = 4 << 20;
/// Length, checksum, kind and version.
pub const FRAME_BYTES: usize = 4 + 4 + 1 + 1;

type BodyConfig = Configuration<LittleEndian, Varint, Limit<BODY_BYTES_MAX>>;

const BODY_CONFIG: BodyConfig = bincode::config::standard().with_limit::<BODY_BYTES_MAX>();

/// Why bytes are no journal record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The length does not agree with the bytes.
    #[error("the record has {found} bytes, its length says {expected}")]
    Length {
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        expected: usize,
    },
    /// The content was damaged.
    #[error("the record fails its checksum")]
    Checksum,
    /// Written by a release that we do not know.
    #[error("record kind {kind} version {version} is not known to this release")]
    Unknown {
        /// Its kind.
        kind: u8,
        /// Its version.
        version: u8,
    },
    /// The body is not of its kind's shape.
    #[error("the body of record kind {kind} version {version} does not decode: {reason}")]
    Body {
        /// Its kind.
        kind: u8,
        /// Its version.
        version: u8,
        /// What bincode says.
        reason: String,
    },
}

/// A part of a body that the broker keeps for a room above, in the same encoding.
///
/// # Panics
/// As [`encode`].
#[must_use]
pub fn encode_part<T: Serialize>(part: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(part, BODY_CONFIG).expect("journal bodies have no unsupported types")
}

/// Reads back what [`encode_part`] wrote.
///
/// # Errors
/// What bincode says.
pub fn decode_part<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match bincode::serde::decode_from_slice(bytes, BODY_CONFIG) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => Err(format!("{} bytes are left", bytes.len() - used)),
        Err(error) => Err(error.to_string()),
    }
}

/// Frames `body`.
///
/// # Panics
/// When the body is larger than [`BODY_BYTES_MAX`]: everything that goes into the journal has a smaller limit of its
/// own.
#[must_use]
pub fn encode<T: Serialize>(kind: u8, version: u8, body: &T) -> Vec<u8> {
    let body = encode_part(body);
    assert!(body.len() <= BODY_BYTES_MAX, "a journal body of {} bytes", body.len());
    let mut frame = Vec::with_capacity(FRAME_BYTES + body.len());
    let len = u32::try_from(body.len() + 2).expect("bounded above");
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(&[kind, version]);
    frame.extend_from_slice(&body);
    let crc = crc32fast::hash(&frame[8..]);
    frame[4..8].copy_from_slice(&crc.to_le_bytes());
    frame
}

/// A frame whose length and checksum are right.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// What the body is.
    pub kind: u8,
    /// Of which shape.
    pub version: u8,
    body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Checks a frame.
    ///
    /// # Errors
    /// [`DecodeError::Length`] and [`DecodeError::Checksum`].
    pub fn open(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let Some((len, rest)) = bytes.split_first_chunk::<4>() else {
            return Err(DecodeError::Length { found: bytes.len(), expected: FRAME_BYTES });
        };
        let expected = u32::from_le_bytes(*len) as usize;
        match rest.split_first_chunk::<4>() {
            Some((crc, [kind, version, body @ ..])) if body.len() + 2 == expected => {
                let computed = crc32fast::hash(&rest[4..]);
                if computed != u32::from_le_bytes(*crc) {
                    return Err(DecodeError::Checksum);
                }
                Ok(Self { kind: *kind, version: *version, body })
            }
            _ => Err(DecodeError::Length { found: bytes.len(), expected: expected.saturating_add(8) }),
        }
    }

    /// Decodes the body; all of it must be used.
    ///
    /// # Errors
    /// [`DecodeError::Body`].
    pub fn body<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        let fail = |reason: String| DecodeError::Body { kind: self.kind, version: self.version, reason };
        let (value, used) =
            bincode::serde::decode_from_slice(self.body, BODY_CONFIG).map_err(|e| fail(e.to_string()))?;
        if used == self.body.len() {
            Ok(value)
        } else {
            Err(fail(format!("{} bytes are left", self.body.len() - used)))
        }
    }

    /// This kind and version are not known.
    #[must_use]
    pub const fn unknown(&self) -> DecodeError {
        DecodeError::Unknown { kind: self.kind, version: self.version }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_frame_never_change() {
        let frame = encode(1, 2, &("ab".to_owned(), 300_u32, -2_i64));
        // Checksum by another implementation of CRC-32.
        let expected = [9, 0, 0, 0, 178, 160, 176, 228, 1, 2, 2, b'a', b'b', 251, 44, 1, 3];
        assert_eq!(frame, expected);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let frame = encode(1, 1, &"some body".to_owned());
        assert_eq!(Frame::open(&frame).unwrap().body::<String>().unwrap(), "some body");
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::open(&damaged).is_err(), "bit {bit}");
        }
        for len in 0..frame.len() {
            assert!(Frame::open(&frame[..len]).is_err(), "length {len}");
        }
    }

    #[test]
    fn a_body_with_bytes_left_or_a_huge_length_inside_is_refused() {
        let frame = encode(1, 1, &(7_u8, 8_u8));
        assert!(matches!(Frame::open(&frame).unwrap().body::<u8>(), Err(DecodeError::Body { .. })));
        // A string that claims 2^60 bytes.
        let frame = encode(1, 1, &(253_u8, 1_u64 << 60));
        assert!(matches!(Frame::open(&frame).unwrap().body::<String>(), Err(DecodeError::Body { .. })));
    }
}
