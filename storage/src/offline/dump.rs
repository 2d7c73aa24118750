//! What stands in a single file, whatever is wrong with it.

use std::io;
use std::path::{Path, PathBuf};

use super::{DataDirectory, PartitionDirectory};
use crate::batch::{BatchError, BatchView};
use crate::checkpoint::{self, Slot};
use crate::fs::{self, File, Fs, OpenMode};
use crate::index::Index;
use crate::limits::SCAN_BYTES;
use crate::offset::Offset;
use crate::producer::{ProducerLimits, Producers};
use crate::segment::{BatchWalk, FileKind, SEAL_BYTES, Seal, WalkError, next_intact, parse_name, path_of};

use super::names::PartitionNames;

/// Largest small file that is shown.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// What a log holds, piece by piece.
#[derive(Debug)]
pub enum LogPiece<'a> {
    /// Something of a batch's shape.
    Batch {
        /// Where it starts in the file.
        position: u64,
        /// The batch.
        view: BatchView<'a>,
        /// Whether its checksum holds.
        crc: Result<(), BatchError>,
    },
    /// Something else.
    Other {
        /// Where it starts.
        position: u64,
        /// Where the next batch starts, or the file ends.
        end: u64,
        /// Why it is no batch.
        reason: BatchError,
    },
    /// Zeros up to the end of the file: space that is reserved for what is appended next.
    Reserved {
        /// Where they start.
        position: u64,
        /// Where the file ends.
        end: u64,
    },
}

/// One of the small files, as facts by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmallFileDump {
    /// What kind of file it is.
    pub kind: &'static str,
    /// Its parts: the file itself first, then entries or slots, each as name and value.
    pub parts: Vec<Vec<(&'static str, String)>>,
}

impl DataDirectory {
    /// The log files of a partition, oldest first, with their full paths.
    ///
    /// # Errors
    /// The disk does not answer.
    pub fn log_files(&self, partition: &PartitionDirectory) -> io::Result<Vec<PathBuf>> {
        let dir = self.root.join(&partition.path);
        let names = PartitionNames::list(&*self.fs, &dir)?;
        Ok(names.bases.iter().map(|&base| path_of(&dir, base, FileKind::Log)).collect())
    }
}

/// Goes through the log file `path`, also one that belongs to no data directory, until `visit` answers false.
///
/// # Errors
/// The disk does not answer.
pub fn dump_log(fs: &dyn Fs, path: &Path, visit: &mut dyn FnMut(LogPiece<'_>) -> bool) -> io::Result<()> {
    let file = fs.open(path, OpenMode::Read, 0)?;
    let end = file.len()?;
    let mut walk = BatchWalk::new(&*file, 0, end);
    loop {
        let position = walk.position();
        let goes_on = match walk.next() {
            Ok(None) => return Ok(()),
            Ok(Some(step)) => {
                let bytes = walk.bytes(step.position, step.end())?;
                let (view, _) = BatchView::parse(&bytes).expect("the walk has parsed it");
                visit(LogPiece::Batch { position, view, crc: view.verify_crc() })
            }
            Err(WalkError::Io(e)) => return Err(e),
            Err(WalkError::NoBatch { .. }) if is_zero(&*file, position, end)? => {
                visit(LogPiece::Reserved { position, end });
                return Ok(());
            }
            Err(WalkError::NoBatch { reason, .. }) => {
                let any = Offset::ZERO..Offset::new(i64::MAX).expect("positive");
                let behind = next_intact(&*file, position, end, any)?.map_or(end, |step| step.position);
                walk.skip_to(behind);
                visit(LogPiece::Other { position, end: behind, reason })
            }
        };
        if !goes_on {
            return Ok(());
        }
    }
}

fn is_zero(file: &dyn File, from: u64, to: u64) -> io::Result<bool> {
    let mut at = from;
    while at < to {
        let end = to.min(at + SCAN_BYTES);
        if file.slice(at..end)?.iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
        at = end;
    }
    Ok(true)
}

/// Whether `path` has the name of a log file, or of what recovery and repair keep of one.
#[must_use]
pub fn is_log_name(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "log" || extension == "bytes")
}

/// What one of the small files says.
///
/// # Errors
/// `InvalidInput` when the name is not that of one; `InvalidData`, with the reason, when it does not read back;
/// otherwise as the disk answers.
pub fn dump_small_file(fs: &dyn Fs, path: &Path) -> io::Result<SmallFileDump> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let damaged = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    if name == checkpoint::FILE_NAME {
        return Ok(dump_slots(&checkpoint::read_slots(&*fs.open(path, OpenMode::Read, 0)?)?));
    }
    match parse_name(&name) {
        Some((_, FileKind::Seal)) => {
            let bytes = fs::read_whole(fs, path, SEAL_BYTES as u64)?;
            Seal::decode(&bytes).map(|seal| dump_seal(&seal)).map_err(|reason| damaged(reason.to_string()))
        }
        Some((base, FileKind::Index)) => {
            let bytes = fs::read_whole(fs, path, FILE_BYTES_MAX)?;
            let index = Index::decode(&bytes, base, u64::MAX).map_err(|reason| damaged(reason.to_string()))?;
            Ok(dump_index(&index, base))
        }
        Some((_, FileKind::Snapshot)) => {
            let bytes = fs::read_whole(fs, path, FILE_BYTES_MAX)?;
            let snapshot = Producers::decode_snapshot(&bytes, ProducerLimits::default());
            let snapshot = snapshot.map_err(|reason| damaged(reason.to_string()))?;
            Ok(dump_producers(&snapshot.producers, snapshot.next_offset))
        }
        _ => {
            let allowed = "a name that ends in .log, .seal, .index or .snapshot, or is `flushed`";
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("found {name:?}, allowed: {allowed}")))
        }
    }
}

fn dump_slots(slots: &[(u64, Slot)]) -> SmallFileDump {
    let part = |(at, slot): &(u64, Slot)| {
        let mut part = vec![("slot_at", at.to_string())];
        match slot {
            Slot::Blank => part.push(("state", "blank".to_owned())),
            Slot::Damaged(reason) => part.push(("state", format!("damaged: {reason}"))),
            Slot::Good(sequence, checkpoint) => part.extend([
                ("state", "good".to_owned()),
                ("sequence", sequence.to_string()),
                ("flushed", checkpoint.flushed.to_string()),
                ("segment", checkpoint.segment.to_string()),
                ("position", checkpoint.position.to_string()),
                ("log_start", checkpoint.log_start.to_string()),
            ]),
        }
        part
    };
    SmallFileDump { kind: "flushed", parts: slots.iter().map(part).collect() }
}

fn dump_seal(seal: &Seal) -> SmallFileDump {
    let part = vec![
        ("base", seal.base.to_string()),
        ("next", seal.next.to_string()),
        ("len_bytes", seal.len_bytes.to_string()),
        ("first_append_ms", seal.first_append_ms.to_string()),
        ("last_append_ms", seal.last_append_ms.to_string()),
        ("max_timestamp_ms", seal.max_timestamp_ms.to_string()),
        ("headers_crc", format!("{:08x}", seal.headers_crc)),
    ];
    SmallFileDump { kind: "seal", parts: vec![part] }
}

fn dump_index(index: &Index, base: Offset) -> SmallFileDump {
    let entry = |entry: &crate::index::IndexEntry| {
        let offset = base.checked_add(entry.relative_offset.into()).map_or_else(String::new, |at| at.to_string());
        let before = entry.max_timestamp_before.to_string();
        vec![("offset", offset), ("position", entry.position.to_string()), ("max_timestamp_before_ms", before)]
    };
    SmallFileDump { kind: "index", parts: index.entries().iter().map(entry).collect() }
}

fn dump_producers(producers: &Producers, next: Offset) -> SmallFileDump {
    let head = vec![("next_offset", next.to_string()), ("producers", producers.len().to_string())];
    let lines = producers.describe().into_iter().map(|producer| {
        vec![
            ("producer_id", producer.id.to_string()),
            ("epoch", producer.epoch.to_string()),
            ("last_used_ms", producer.last_used_ms.to_string()),
            ("last_sequence", producer.last_sequence.map_or_else(|| "-".to_owned(), |last| last.to_string())),
            ("last_offset", producer.last_offset.map_or_else(|| "-".to_owned(), |last| last.to_string())),
        ]
    });
    SmallFileDump { kind: "snapshot", parts: std::iter::once(head).chain(lines).collect() }
}
