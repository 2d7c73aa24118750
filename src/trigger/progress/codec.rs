//! Progress as bytes; the layout stands in the head of the parent module.

use std::collections::BTreeMap;

use tripline_storage::Offset;

use super::{HoleAttempts, Progress};

/// The most bytes that progress may take. Beyond it the partition stops reading, visibly.
pub const ENCODED_BYTES_MAX: usize = 3000;

const VERSION: u8 = 1;
const HAS_ATTEMPTS: u8 = 1;

/// Progress does not fit its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("progress takes {size_bytes} bytes, at most {ENCODED_BYTES_MAX} are allowed")]
pub struct TooLarge {
    /// How many it would take.
    pub size_bytes: usize,
}

/// Why bytes are not progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They are longer than any that we write.
    #[error("{size_bytes} bytes are more than {ENCODED_BYTES_MAX}")]
    TooLarge {
        /// How long.
        size_bytes: usize,
    },
    /// Their version is not known.
    #[error("version {found} is not known")]
    Version {
        /// What stands there.
        found: u8,
    },
    /// They end too early.
    #[error("the bytes end at {at}")]
    Truncated {
        /// Where more was expected.
        at: usize,
    },
    /// A number is too large, or contradicts another.
    #[error("the number before byte {at} cannot be right")]
    Number {
        /// Where it ends.
        at: usize,
    },
    /// Bytes follow the end.
    #[error("{count} bytes too many")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
}

impl Progress {
    /// The bytes of this progress.
    ///
    /// # Errors
    /// When they would be more than [`ENCODED_BYTES_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, TooLarge> {
        let committed = self.committed();
        let mut bytes = vec![VERSION];
        put(&mut bytes, committed.get().unsigned_abs());
        put(&mut bytes, self.reading_point.since(committed));
        put(&mut bytes, count(self.holes.len()));
        let mut end = committed;
        for (&first, (next, attempts)) in &self.holes {
            put(&mut bytes, first.since(end));
            put(&mut bytes, next.since(first));
            put_attempts(&mut bytes, attempts);
            end = *next;
        }
        put(&mut bytes, count(self.blocked_keys.len()));
        for (hash, first) in &self.blocked_keys {
            bytes.extend_from_slice(&hash.to_le_bytes());
            put(&mut bytes, first.since(committed));
        }
        if bytes.len() > ENCODED_BYTES_MAX { Err(TooLarge { size_bytes: bytes.len() }) } else { Ok(bytes) }
    }

    /// Reads what [`Progress::encode`] wrote. Whatever decodes encodes to the same bytes again.
    ///
    /// # Errors
    /// Where the bytes are wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > ENCODED_BYTES_MAX {
            return Err(DecodeError::TooLarge { size_bytes: bytes.len() });
        }
        let mut reader = Reader { bytes, at: 0 };
        let found = reader.byte()?;
        if found != VERSION {
            return Err(DecodeError::Version { found });
        }
        let committed = reader.offset_after(Offset::ZERO)?;
        let reading_point = reader.offset_after(committed)?;
        let holes = reader.holes(committed, reading_point)?;
        let blocked_keys = reader.blocked_keys(committed, reading_point)?;
        let progress = Self { reading_point, holes, blocked_keys };
        if progress.committed() != committed {
            return Err(DecodeError::Number { at: reader.at });
        }
        match bytes.len() - reader.at {
            0 => Ok(progress),
            count => Err(DecodeError::TrailingBytes { count }),
        }
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push((number & 0x7f) as u8);
}

fn put_attempts(bytes: &mut Vec<u8>, attempts: &HoleAttempts) {
    let Some(first_ms) = attempts.first_attempt_ms else {
        bytes.push(0);
        return;
    };
    bytes.push(HAS_ATTEMPTS);
    put(bytes, u64::from(attempts.attempts));
    put(bytes, u64::from(attempts.interrupted));
    put(bytes, first_ms);
    put(bytes, attempts.next_attempt_ms.map_or(0, |next_ms| next_ms - first_ms + 1));
    put(bytes, attempts.excluded_ms);
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, DecodeError> {
        let byte = *self.bytes.get(self.at).ok_or(DecodeError::Truncated { at: self.at })?;
        self.at += 1;
        Ok(byte)
    }

    const fn wrong(&self) -> DecodeError {
        DecodeError::Number { at: self.at }
    }

    fn number(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            let placed = bits << shift;
            if placed >> shift != bits {
                return Err(self.wrong());
            }
            number |= placed;
            if byte & 0x80 == 0 {
                let shortest = byte != 0 || shift == 0;
                return if shortest { Ok(number) } else { Err(self.wrong()) };
            }
        }
        Err(self.wrong())
    }

    fn small(&mut self) -> Result<u32, DecodeError> {
        let number = self.number()?;
        u32::try_from(number).map_err(|_| self.wrong())
    }

    fn offset_after(&mut self, from: Offset) -> Result<Offset, DecodeError> {
        let distance = self.number()?;
        from.checked_add(distance).ok_or_else(|| self.wrong())
    }

    fn holes(
        &mut self,
        committed: Offset,
        reading_point: Offset,
    ) -> Result<BTreeMap<Offset, (Offset, HoleAttempts)>, DecodeError> {
        // Every hole takes bytes of its own, so a count that lies ends at the end of the bytes.
        let count = self.number()?;
        let mut holes = BTreeMap::new();
        let mut end = committed;
        for _ in 0..count {
            let first = self.offset_after(end)?;
            let next = self.offset_after(first)?;
            if next == first || next > reading_point {
                return Err(self.wrong());
            }
            holes.insert(first, (next, self.attempts()?));
            end = next;
        }
        Ok(holes)
    }

    fn attempts(&mut self) -> Result<HoleAttempts, DecodeError> {
        match self.byte()? {
            0 => Ok(HoleAttempts::default()),
            HAS_ATTEMPTS => {
                let attempts = self.small()?;
                let interrupted = self.small()?;
                let first_ms = self.number()?;
                let next_attempt_ms = match self.number()? {
                    0 => None,
                    later => Some(first_ms.checked_add(later - 1).ok_or_else(|| self.wrong())?),
                };
                let excluded_ms = self.number()?;
                Ok(HoleAttempts {
                    attempts,
                    interrupted,
                    first_attempt_ms: Some(first_ms),
                    next_attempt_ms,
                    excluded_ms,
                })
            }
            _ => Err(self.wrong()),
        }
    }

    fn blocked_keys(&mut self, committed: Offset, reading_point: Offset) -> Result<BTreeMap<u64, Offset>, DecodeError> {
        let count = self.number()?;
        let mut keys = BTreeMap::new();
        for _ in 0..count {
            let mut hash = [0; 8];
            for byte in &mut hash {
                *byte = self.byte()?;
            }
            let hash = u64::from_le_bytes(hash);
            let first = self.offset_after(committed)?;
            let ascending = keys.last_key_value().is_none_or(|(last, _)| *last < hash);
            if !ascending || first > reading_point {
                return Err(self.wrong());
            }
            keys.insert(hash, first);
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(value: i64) -> Offset {
        Offset::new(value).unwrap()
    }

    #[test]
    fn the_bytes_are_these() {
        let mut progress = Progress::start(offset(300));
        assert_eq!(progress.encode().unwrap(), [1, 0xac, 2, 0, 0, 0]);
        progress.open(offset(300), offset(302)).unwrap();
        progress.open(offset(305), offset(306)).unwrap();
        let attempts = HoleAttempts {
            attempts: 2,
            interrupted: 1,
            first_attempt_ms: Some(1000),
            next_attempt_ms: Some(1127),
            excluded_ms: 5,
        };
        progress.set_attempts(offset(305), attempts).unwrap();
        progress.block_key(0x0102_0304_0506_0708, offset(301), offset(302)).unwrap();
        let expected = [
            1, 0xac, 2, 6, // version, committed 300, reading point 306
            2, 0, 1, 0, // two holes: 300..301 without attempts
            4, 1, 1, 2, 1, 0xe8, 7, 0x80, 1, 5, // 305..306 with attempts
            1, 8, 7, 6, 5, 4, 3, 2, 1, 1, // one blocked key from 301
        ];
        assert_eq!(progress.encode().unwrap(), expected);
        assert_eq!(Progress::decode(&expected), Ok(progress));
    }

    #[test]
    fn wrong_bytes_are_told_apart() {
        let decode = Progress::decode;
        assert_eq!(decode(&[]), Err(DecodeError::Truncated { at: 0 }));
        assert_eq!(decode(&[2]), Err(DecodeError::Version { found: 2 }));
        assert_eq!(decode(&[1, 5, 0, 0]), Err(DecodeError::Truncated { at: 4 }));
        assert_eq!(decode(&[1, 5, 0, 0, 0, 9]), Err(DecodeError::TrailingBytes { count: 1 }));
        assert_eq!(decode(&vec![1; 3001]), Err(DecodeError::TooLarge { size_bytes: 3001 }));
        // Longer than needed; beyond 64 bits; a hole beyond the reading point; an empty hole; a hole after committed; a flag not known.
        for bytes in [
            &[1, 0x85, 0, 0, 0, 0][..],
            &[1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2, 0, 0, 0],
            &[1, 5, 1, 1, 0, 2, 0, 0],
            &[1, 5, 1, 1, 0, 0, 0, 0],
            &[1, 5, 3, 1, 1, 1, 0, 0],
            &[1, 5, 1, 1, 0, 1, 2, 0],
        ] {
            assert!(matches!(decode(bytes), Err(DecodeError::Number { .. })), "{bytes:?}");
        }
        let huge_count = [1, 5, 1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1];
        assert_eq!(decode(&huge_count), Err(DecodeError::Truncated { at: 13 }));
    }

    #[test]
    fn too_many_holes_do_not_fit() {
        let mut progress = Progress::start(Offset::ZERO);
        for index in 0..2000 {
            progress.open(offset(index * 2), offset(index * 2 + 1)).unwrap();
        }
        assert!(matches!(progress.encode(), Err(TooLarge { size_bytes: 3001.. })));
    }
}
