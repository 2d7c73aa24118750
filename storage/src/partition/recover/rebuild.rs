//! What the process keeps in memory about a log, read back from it: the index and facts of the active segment, and the
//! producers.

use std::io;
use std::path::Path;

use super::{Active, Chain, OffsetRange, Place, RecoveryReport, unread};
use crate::fs::{self, File};
use crate::index::Index;
use crate::limits::HEADER_SCAN_BYTES;
use crate::offset::Offset;
use crate::producer::{ProducerLimits, Producers, Replay};
use crate::segment::{BatchWalk, DenseWalk, FileKind, Met, SegmentFacts, Step, path_of, unix_ms};

/// A snapshot has at most a few hundred bytes a producer.
const SNAPSHOT_BYTES_MAX: u64 = 64 << 20;

/// How far the batches of a segment go that was flushed up to `limit` and lost its end, over damage where there is
/// some.
pub(super) fn end_of_flushed(
    path: &Path,
    file: &dyn File,
    base: Offset,
    len_bytes: u64,
    limit: Offset,
) -> io::Result<Offset> {
    let mut next = base;
    for_each_batch(path, file, base..limit, len_bytes, |step, _| next = step.header.next_offset(), |_| {})?;
    Ok(next)
}

/// Index, facts and damage of the segment that goes on being appended to, from its headers.
pub(super) fn rebuild_active(
    place: Place<'_>,
    active: &Active,
    chain: &Chain,
    report: &mut RecoveryReport,
) -> io::Result<(Index, SegmentFacts)> {
    let mut index = Index::default();
    let mut facts = SegmentFacts::new();
    let interval_bytes = place.config.index_interval_bytes;
    let note = |step: &Step, header: &[u8]| {
        if let Some(entry) = facts.note_step(header, step, active.base, interval_bytes) {
            index.push(entry);
        }
    };
    let len_bytes = chain.tail_len_bytes();
    let path = path_of(place.dir, active.base, FileKind::Log);
    for_each_batch(&path, &*active.file, active.base..chain.next, len_bytes, note, |range| {
        tracing::error!(partition = %place.id, segment = %active.base, from = %range.from, to = %range.to, "damaged");
        report.damaged.push(range);
    })?;
    if len_bytes > 0 {
        // The broker's clock at the last write; the first append's time is lost with the process that saw it.
        facts.appended(unix_ms(active.file.modified()?));
    }
    Ok((index, facts))
}

/// Walks the headers of the batches of `file[..end]`, which hold `offsets`.
fn for_each_batch(
    path: &Path,
    file: &dyn File,
    offsets: std::ops::Range<Offset>,
    end: u64,
    mut visit: impl FnMut(&Step, &[u8]),
    mut damaged: impl FnMut(OffsetRange),
) -> io::Result<()> {
    let headers = BatchWalk::new(file, 0, end).with_window(HEADER_SCAN_BYTES);
    let mut walk = DenseWalk::new(headers, offsets.start, offsets.end);
    loop {
        let met = match walk.next() {
            Ok(Some(met)) => met,
            Ok(None) => return Ok(()),
            Err(cause) => return Err(unread(path, walk.place(), cause)),
        };
        match met {
            Met::Batch(step) => visit(&step, &walk.header_bytes(&step)?),
            Met::Damage { from, behind, .. } => {
                let to = behind.map_or(offsets.end, |step| step.header.base_offset);
                if from < to {
                    damaged(OffsetRange { from, to });
                }
            }
        }
    }
}

/// The newest snapshot that reads back, and the batch headers since; without one, those of the whole log: snapshots are
/// written by flushes, so after a kill rolled segments may have none.
pub(super) fn recover_producers(
    place: Place<'_>,
    chain: &Chain,
    active: &Active,
    snapshots: impl DoubleEndedIterator<Item = Offset>,
) -> io::Result<Producers> {
    let limits = ProducerLimits::default();
    // What was appended between an older snapshot and the first segment cannot be read any more: it would tell
    // producers to go on where they were long ago. What stands behind one inside of a segment could not be told from
    // what stands before it.
    let is_base = |at: &Offset| *at == active.base || chain.sealed.iter().any(|segment| segment.base == *at);
    let newest = snapshots.rev().filter(is_base).find_map(|at| read_snapshot(place, at, limits));
    let (producers, from) = newest.unwrap_or_else(|| (Producers::new(limits), Offset::ZERO));
    let mut replay = Replay::new(producers, from);
    for segment in chain.sealed.iter().filter(|segment| segment.base >= from) {
        let path = path_of(place.dir, segment.base, FileKind::Log);
        let file = place.fs.open(&path, fs::OpenMode::Read, segment.len_bytes)?;
        replay_segment(&mut replay, &path, &*file, segment.base..segment.next, segment.len_bytes)?;
    }
    if active.base >= from {
        replay_segment(
            &mut replay,
            &path_of(place.dir, active.base, FileKind::Log),
            &*active.file,
            active.base..chain.next,
            chain.tail_len_bytes(),
        )?;
    }
    Ok(replay.finish(chain.next))
}

fn replay_segment(
    replay: &mut Replay,
    path: &Path,
    file: &dyn File,
    offsets: std::ops::Range<Offset>,
    end: u64,
) -> io::Result<()> {
    let now_ms = unix_ms(file.modified()?);
    for_each_batch(path, file, offsets, end, |step, _| replay.record(&step.header, now_ms), |_| {})
}

/// `None` where it does not read back: what it knew of producers that the log has nothing of any more is lost then.
fn read_snapshot(place: Place<'_>, at: Offset, limits: ProducerLimits) -> Option<(Producers, Offset)> {
    let path = path_of(place.dir, at, FileKind::Snapshot);
    let read = fs::asked_twice(|| fs::read_whole(place.fs, &path, SNAPSHOT_BYTES_MAX));
    let unread = |cause: &io::Error| {
        tracing::warn!(path = %path.display(), %cause, "producers are taken from an older snapshot, or from the log");
    };
    let bytes = read.inspect_err(unread).ok()?;
    let snapshot = Producers::decode_snapshot(&bytes, limits).ok()?;
    (snapshot.next_offset == at).then_some((snapshot.producers, at))
}
