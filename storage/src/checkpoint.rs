//! The flushed offset of a partition: a truthful lower bound of what is on stable storage.
//!
//! File `flushed`, two slots of [`SLOT_BYTES`] bytes, each in a sector of its own. After each successful flush the
//! *other* slot is written, without a sync of its own: a power cut may tear the slot being written but not the one
//! before it, and whichever survives was true when it was written and stays true. Layout of a slot, little-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | magic `TLFL` |
//! | 4..6 | version, 1 |
//! | 6..14 | sequence u64: the slot with the higher one is newer |
//! | 14..22 | flushed offset i64: every record below it is on stable storage |
//! | 22..30 | base offset i64 of the segment that holds the end of the flushed bytes |
//! | 30..38 | position u64 in that segment: every byte below it is on stable storage |
//! | 38..46 | log start offset i64: retention syncs it before it removes what lies below |
//! | 46..50 | CRC-32 over bytes 0..46 |

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use crate::format::{FormatError, Reader, Writer};
use crate::fs::{self, File, Fs, OpenMode};
use crate::offset::Offset;

const MAGIC: [u8; 4] = *b"TLFL";
const VERSION: u16 = 1;
/// A slot has a sector of its own, so that a torn write cannot reach its neighbour.
const SLOT_BYTES: u64 = 512;
const ENCODED_BYTES: usize = 50;

/// Name of the file in the partition's directory.
pub(crate) const FILE_NAME: &str = "flushed";

/// What one slot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// Every record below is on stable storage.
    pub(crate) flushed: Offset,
    /// Base offset of the segment in which the flushed bytes end.
    pub(crate) segment: Offset,
    /// Where they end in it.
    pub(crate) position: u64,
    /// First offset that readers may see.
    pub(crate) log_start: Offset,
}

impl Checkpoint {
    fn encode(self, sequence: u64) -> Vec<u8> {
        let mut writer = Writer::new(MAGIC, VERSION, ENCODED_BYTES);
        writer.u64(sequence);
        writer.i64(self.flushed.get());
        writer.i64(self.segment.get());
        writer.u64(self.position);
        writer.i64(self.log_start.get());
        writer.finish()
    }

    fn decode(bytes: &[u8]) -> Result<(u64, Self), FormatError> {
        let mut reader = Reader::open(bytes, MAGIC, VERSION)?;
        let sequence = reader.u64()?;
        let offset = |reader: &mut Reader<'_>, name| Offset::new(reader.i64()?).ok_or(FormatError::Field(name));
        let flushed = offset(&mut reader, "flushed offset")?;
        let segment = offset(&mut reader, "segment base offset")?;
        if segment > flushed {
            return Err(FormatError::Field("segment base offset"));
        }
        let position = reader.u64()?;
        let log_start = offset(&mut reader, "log start offset")?;
        reader.finish()?;
        Ok((sequence, Self { flushed, segment, position, log_start }))
    }
}

/// One slot as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Never written.
    Blank,
    /// With its sequence.
    Good(u64, Checkpoint),
    /// Torn, damaged or foreign.
    Damaged(FormatError),
}

/// Both slots, by their places in the file.
pub(crate) fn read_slots(file: &dyn File) -> io::Result<[(u64, Slot); 2]> {
    let slot = |at: u64| -> io::Result<(u64, Slot)> {
        let left = usize::try_from(file.len()?.saturating_sub(at)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(ENCODED_BYTES)];
        file.read_exact_at(&mut bytes, at)?;
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok((at, Slot::Blank));
        }
        let decoded = Checkpoint::decode(&bytes);
        Ok((at, decoded.map_or_else(Slot::Damaged, |(sequence, checkpoint)| Slot::Good(sequence, checkpoint))))
    };
    Ok([slot(0)?, slot(SLOT_BYTES)?])
}

/// The open file, ready for the next slot.
#[derive(Debug)]
pub(crate) struct CheckpointFile {
    file: Arc<dyn File>,
    sequence: u64,
    /// What the newest slot says, or would say if it could be written; `None` before the first.
    last: Option<Checkpoint>,
    /// The latest log start of the slots that were found.
    log_start_max: Option<Offset>,
}

impl CheckpointFile {
    /// Opens or makes the file and answers the newest slot.
    pub(crate) fn open(fs: &dyn Fs, dir: &Path) -> io::Result<(Self, Option<Checkpoint>)> {
        let path = dir.join(FILE_NAME);
        let file = match fs.open(&path, OpenMode::Write, 0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => fs.open(&path, OpenMode::CreateNew, 0)?,
            other => other?,
        };
        let slots = [read_slot(&*file, &path, 0)?, read_slot(&*file, &path, SLOT_BYTES)?];
        let log_start_max = slots.iter().flatten().map(|(_, checkpoint)| checkpoint.log_start).max();
        let newest = slots.into_iter().flatten().max_by_key(|(sequence, _)| *sequence);
        let sequence = newest.map_or(0, |(sequence, _)| sequence);
        let last = newest.map(|(_, checkpoint)| checkpoint);
        Ok((Self { file, sequence, last, log_start_max }, last))
    }

    /// Whether an older slot has a later log start than the one that recovery came to: the sync of one failed, and it
    /// was not taken. A power cut that tears the newer slot off would take it after all.
    pub(crate) fn has_start_beyond(&self, log_start: Offset) -> bool {
        self.log_start_max.is_some_and(|max| max > log_start)
    }

    /// Writes what the newest slot says with another log start into both slots, and syncs them: what is removed next
    /// must not come back. Nothing else tells of a start inside of a segment, so no slot may be left that says an
    /// earlier one: a later write that stops half-way spoils its own slot, and a power cut then shows the other one as
    /// it was last synced.
    pub(crate) fn write_log_start(&mut self, log_start: Offset) -> io::Result<()> {
        let last = self.last.expect("recovery writes the first");
        if let Err(cause) = self.write_both_durably(Checkpoint { log_start, ..last }) {
            // What did not happen must not come to light later: both slots say again what they said.
            if let Err(cause) = self.write(last).and_then(|()| self.write(last)) {
                tracing::warn!(%cause, "a log start that was not noted may be there after a restart");
            }
            self.last = Some(last);
            return Err(cause);
        }
        Ok(())
    }

    fn write_both_durably(&mut self, checkpoint: Checkpoint) -> io::Result<()> {
        self.write(checkpoint)?;
        if let Err(cause) = self.write(checkpoint) {
            tracing::warn!(%cause, "log start noted once, not twice");
        }
        self.file.sync_data()
    }

    /// The segment in which the flushed bytes end, as the newest slot says.
    pub(crate) fn segment(&self) -> Offset {
        self.last.expect("recovery writes the first").segment
    }

    /// Writes what the newest slot says once more, and syncs it: from here on no older one counts.
    pub(crate) fn write_again_durably(&mut self) -> io::Result<()> {
        self.write_durably(self.last.expect("recovery writes the first"))
    }

    /// As [`CheckpointFile::write`], with a sync.
    pub(crate) fn write_durably(&mut self, checkpoint: Checkpoint) -> io::Result<()> {
        self.write(checkpoint)?;
        self.file.sync_data()
    }

    /// Writes the older slot. Not synced: losing it only makes recovery read more.
    pub(crate) fn write(&mut self, checkpoint: Checkpoint) -> io::Result<()> {
        self.last = Some(checkpoint);
        let sequence = self.sequence + 1;
        let slot = (sequence % 2) * SLOT_BYTES;
        self.file.write_at(&[IoSlice::new(&checkpoint.encode(sequence))], slot)?;
        self.sequence = sequence;
        Ok(())
    }
}

/// A slot that is missing, torn or foreign counts as absent: its neighbour, or nothing, is as true. One that the disk
/// does not show may be the only one that tells of a log start.
fn read_slot(file: &dyn File, path: &Path, at: u64) -> io::Result<Option<(u64, Checkpoint)>> {
    let mut bytes = [0; ENCODED_BYTES];
    let read = fs::if_there(path, file.read_exact_at(&mut bytes, at))?;
    Ok(read.and_then(|()| Checkpoint::decode(&bytes).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::OsFs;
    use crate::fs::sim::Fault;

    fn checkpoint(n: i64) -> Checkpoint {
        let offset = Offset::new(n).unwrap();
        Checkpoint { flushed: offset, segment: Offset::ZERO, position: 61, log_start: Offset::ZERO }
    }

    #[test]
    fn the_bytes_of_a_slot_never_change() {
        let bytes = checkpoint(0x0102).encode(7);
        let expected: &[u8] = &[
            b'T', b'L', b'F', b'L', 1, 0, 7, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 61,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 133, 132, 111, 50,
        ];
        assert_eq!(bytes, expected);
        assert_eq!(Checkpoint::decode(&bytes), Ok((7, checkpoint(0x0102))));
    }

    #[test]
    fn a_slot_whose_segment_begins_behind_what_is_flushed_is_damaged() {
        let offset = |value| Offset::new(value).unwrap();
        for (segment, is_good) in [(4, true), (5, true), (6, false), (i64::MAX, false)] {
            let bytes = Checkpoint { segment: offset(segment), ..checkpoint(5) }.encode(7);
            assert_eq!(Checkpoint::decode(&bytes).is_ok(), is_good, "{segment}");
        }
    }

    #[test]
    fn a_new_log_start_is_durable_and_changes_nothing_else() {
        let fs = crate::fs::SimFs::new();
        let dir = Path::new("/p");
        fs.create_dir_all(dir).unwrap();
        let (mut file, _) = CheckpointFile::open(&fs, dir).unwrap();
        file.write(checkpoint(5)).unwrap();
        fs.sync_dir(Path::new("/")).unwrap();
        fs.sync_dir(dir).unwrap();
        let log_start = Offset::new(3).unwrap();
        file.write_log_start(log_start).unwrap();
        for seed in 0..20 {
            let found = CheckpointFile::open(&fs.crash(seed), dir).unwrap().1;
            assert_eq!(found, Some(Checkpoint { log_start, ..checkpoint(5) }), "seed {seed}");
        }
    }

    #[test]
    fn a_log_start_survives_a_later_slot_that_stops_half_way_and_a_power_cut() {
        for seed in 0..200 {
            let fs = crate::fs::SimFs::new();
            let dir = Path::new("/p");
            fs.create_dir_all(dir).unwrap();
            let (mut file, _) = CheckpointFile::open(&fs, dir).unwrap();
            fs.sync_dir(Path::new("/")).unwrap();
            fs.sync_dir(dir).unwrap();
            file.write(checkpoint(5)).unwrap();
            let log_start = Offset::new(3).unwrap();
            file.write_log_start(log_start).unwrap();
            fs.fail_nth(fs.operations() + 1, Fault::ShortWriteThenFull);
            file.write(Checkpoint { log_start, ..checkpoint(6) }).unwrap_err();
            let found = CheckpointFile::open(&fs.crash(seed), dir).unwrap().1;
            assert_eq!(found.map(|found| found.log_start), Some(log_start), "seed {seed}");
        }
    }

    #[test]
    fn a_log_start_that_was_not_noted_does_not_come_to_light_later() {
        for (after, fault) in [(1, Fault::ShortWriteThenEio), (3, Fault::Eio), (3, Fault::Enospc)] {
            let fs = crate::fs::SimFs::new();
            let dir = Path::new("/p");
            fs.create_dir_all(dir).unwrap();
            let (mut file, _) = CheckpointFile::open(&fs, dir).unwrap();
            fs.sync_dir(Path::new("/")).unwrap();
            fs.sync_dir(dir).unwrap();
            file.write_durably(checkpoint(5)).unwrap();
            fs.fail_nth(fs.operations() + after, fault);
            file.write_log_start(Offset::new(3).unwrap()).unwrap_err();
            assert_eq!(CheckpointFile::open(&fs, dir).unwrap().1, Some(checkpoint(5)), "{fault:?}");
            file.write_again_durably().unwrap();
            for seed in 0..20 {
                let found = CheckpointFile::open(&fs.crash(seed), dir).unwrap().1;
                assert_eq!(found, Some(checkpoint(5)), "{fault:?}, seed {seed}");
            }
        }
    }

    #[test]
    fn every_flipped_bit_makes_a_slot_unreadable() {
        let bytes = checkpoint(12).encode(1);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Checkpoint::decode(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_newest_slot_wins_and_a_torn_one_falls_back_to_its_neighbour() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, none) = CheckpointFile::open(&OsFs, dir.path()).unwrap();
        assert_eq!(none, None);
        for n in 1..=5 {
            file.write(checkpoint(n)).unwrap();
        }
        assert_eq!(CheckpointFile::open(&OsFs, dir.path()).unwrap().1, Some(checkpoint(5)));
        // Sequence 5 is odd: the second slot. Tear it.
        file.file.write_at(&[IoSlice::new(&[0xff; 20])], SLOT_BYTES + 20).unwrap();
        let (mut reopened, found) = CheckpointFile::open(&OsFs, dir.path()).unwrap();
        assert_eq!(found, Some(checkpoint(4)));
        reopened.write(checkpoint(6)).unwrap();
        assert_eq!(CheckpointFile::open(&OsFs, dir.path()).unwrap().1, Some(checkpoint(6)));
    }
}
