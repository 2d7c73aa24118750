//! How far the log of a partition has been compacted.
//!
//! File `compacted`, written in place after each compaction, not synced: it is a hint. Where it is missing, torn or
//! old, the next compaction goes over more than it has to, and finds less to do. Layout, little-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | magic `TLCP` |
//! | 4..6 | version, 1 |
//! | 6..14 | first offset i64 that was never compacted |
//! | 14..22 | when the next tombstone may go i64, ms since 1970 by the broker's clock; 2^63 − 1 when none waits |
//! | 22..26 | CRC-32 over bytes 0..22 |

use std::io::{self, IoSlice};
use std::path::Path;

use crate::format::{FormatError, Reader, Writer};
use crate::fs::{self, Fs, OpenMode};
use crate::offset::Offset;

const MAGIC: [u8; 4] = *b"TLCP";
const VERSION: u16 = 1;
const ENCODED_BYTES: usize = 26;

/// Name of the file in the partition's directory.
pub(crate) const FILE_NAME: &str = "compacted";

/// What is known of earlier compactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cleaned {
    /// Below, no record has a newer one of its key that lies below, too.
    pub(crate) to: Offset,
    /// When the next tombstone may go, ms since 1970, broker time; `i64::MAX` when none waits.
    pub(crate) next_horizon_ms: i64,
}

impl Cleaned {
    /// Nothing was compacted yet.
    pub(crate) const NOTHING: Self = Self { to: Offset::ZERO, next_horizon_ms: i64::MAX };

    fn encode(self) -> Vec<u8> {
        let mut writer = Writer::new(MAGIC, VERSION, ENCODED_BYTES);
        writer.i64(self.to.get());
        writer.i64(self.next_horizon_ms);
        writer.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::open(bytes, MAGIC, VERSION)?;
        let to = Offset::new(reader.i64()?).ok_or(FormatError::Field("first offset never compacted"))?;
        let next_horizon_ms = reader.i64()?;
        reader.finish()?;
        Ok(Self { to, next_horizon_ms })
    }

    /// What the file in `dir` says, or that nothing is known.
    ///
    /// # Errors
    /// There are no descriptors for the moment.
    pub(crate) fn read(fs: &dyn Fs, dir: &Path) -> io::Result<Self> {
        match fs::read_whole(fs, &dir.join(FILE_NAME), ENCODED_BYTES as u64) {
            Err(cause) if fs::is_out_of_descriptors(&cause) => Err(cause),
            bytes => Ok(bytes.ok().and_then(|bytes| Self::decode(&bytes).ok()).unwrap_or(Self::NOTHING)),
        }
    }

    /// Why the file, which is there, says nothing.
    pub(crate) fn fault(fs: &dyn Fs, dir: &Path) -> Option<String> {
        match fs::read_whole(fs, &dir.join(FILE_NAME), ENCODED_BYTES as u64) {
            Ok(bytes) => Self::decode(&bytes).err().map(|reason| reason.to_string()),
            Err(cause) => Some(cause.to_string()),
        }
    }

    /// Writes the file.
    pub(crate) fn write(self, fs: &dyn Fs, dir: &Path) -> io::Result<()> {
        let path = dir.join(FILE_NAME);
        let file = match fs.open(&path, OpenMode::Write, 0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => fs.open(&path, OpenMode::CreateNew, 0)?,
            other => other?,
        };
        file.write_at(&[IoSlice::new(&self.encode())], 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::SimFs;

    fn sample() -> Cleaned {
        Cleaned { to: Offset::new(0x0102).unwrap(), next_horizon_ms: i64::MAX }
    }

    #[test]
    fn the_bytes_never_change() {
        let expected: &[u8] = &[
            b'T', b'L', b'C', b'P', 1, 0, 2, 1, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 127, 155, 250, 23,
            232,
        ];
        assert_eq!(sample().encode(), expected);
    }

    #[test]
    fn what_was_written_reads_back_and_anything_else_is_nothing() {
        let (fs, dir) = (SimFs::new(), Path::new("/p"));
        fs.create_dir_all(dir).unwrap();
        assert_eq!(Cleaned::read(&fs, dir).unwrap(), Cleaned::NOTHING);
        for next_horizon_ms in [5, i64::MAX] {
            let cleaned = Cleaned { next_horizon_ms, ..sample() };
            cleaned.write(&fs, dir).unwrap();
            assert_eq!(Cleaned::read(&fs, dir).unwrap(), cleaned);
        }
        for bit in 0..ENCODED_BYTES * 8 {
            let mut damaged = sample().encode();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs.write_image(&dir.join(FILE_NAME), &damaged).unwrap();
            assert_eq!(Cleaned::read(&fs, dir).unwrap(), Cleaned::NOTHING, "bit {bit}");
        }
    }
}
