//! What is written down about a segment when it is sealed.
//!
//! File `<base>.seal`, made durable by the first flush after the roll. With it, opening needs to read no sealed
//! segment, retention goes by the broker's clock instead of the clients', and a shortened or swapped segment file is
//! noticed. Layout, little-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | magic `TLSE` |
//! | 4..6 | version, 1 |
//! | 6..14 | base offset i64 |
//! | 14..22 | next offset i64: one after the last record |
//! | 22..30 | length u64 of the log file in bytes |
//! | 30..38 | first append i64, ms since 1970 by the broker's clock |
//! | 38..46 | last append i64, likewise |
//! | 46..54 | largest record timestamp i64, ms; −1 for none |
//! | 54..58 | CRC-32 over the 61-byte headers of all batches, in order: it covers the base offsets and epochs that a batch's own CRC does not |
//! | 58..62 | CRC-32 over bytes 0..58 |

use crate::format::{FormatError, Reader, Writer};
use crate::offset::Offset;

const MAGIC: [u8; 4] = *b"TLSE";
const VERSION: u16 = 1;
/// Size of the file.
pub(crate) const SEAL_BYTES: usize = 62;

/// The facts of a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    /// First offset.
    pub(crate) base: Offset,
    /// One after the last offset.
    pub(crate) next: Offset,
    /// Length of the log file in bytes.
    pub(crate) len_bytes: u64,
    /// When its first batch was appended, ms since 1970, broker time.
    pub(crate) first_append_ms: i64,
    /// When its last batch was appended, ms since 1970, broker time.
    pub(crate) last_append_ms: i64,
    /// The largest timestamp that a client or the broker gave a record, ms since 1970; −1 for none.
    pub(crate) max_timestamp_ms: i64,
    /// CRC-32 over the batch headers.
    pub(crate) headers_crc: u32,
}

impl Seal {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(MAGIC, VERSION, SEAL_BYTES);
        writer.i64(self.base.get());
        writer.i64(self.next.get());
        writer.u64(self.len_bytes);
        writer.i64(self.first_append_ms);
        writer.i64(self.last_append_ms);
        writer.i64(self.max_timestamp_ms);
        writer.u32(self.headers_crc);
        writer.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::open(bytes, MAGIC, VERSION)?;
        let seal = Self {
            base: Offset::new(reader.i64()?).ok_or(FormatError::Field("base offset"))?,
            next: Offset::new(reader.i64()?).ok_or(FormatError::Field("next offset"))?,
            len_bytes: reader.u64()?,
            first_append_ms: reader.i64()?,
            last_append_ms: reader.i64()?,
            max_timestamp_ms: reader.i64()?,
            headers_crc: reader.u32()?,
        };
        reader.finish()?;
        if seal.next < seal.base { Err(FormatError::Field("next offset")) } else { Ok(seal) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Seal {
        Seal {
            base: Offset::new(5).unwrap(),
            next: Offset::new(260).unwrap(),
            len_bytes: 4096,
            first_append_ms: 1_000,
            last_append_ms: 2_000,
            max_timestamp_ms: -1,
            headers_crc: 0xdead_beef,
        }
    }

    #[test]
    fn the_bytes_of_a_seal_never_change() {
        let expected: &[u8] = &[
            b'T', b'L', b'S', b'E', 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 232,
            3, 0, 0, 0, 0, 0, 0, 208, 7, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 239, 190, 173, 222,
            182, 18, 143, 77,
        ];
        assert_eq!(sample().encode(), expected);
    }

    #[test]
    fn a_seal_reads_back_and_every_flipped_bit_is_noticed() {
        let bytes = sample().encode();
        assert_eq!(bytes.len(), SEAL_BYTES);
        assert_eq!(Seal::decode(&bytes), Ok(sample()));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Seal::decode(&damaged).is_err(), "bit {bit}");
        }
    }
}
