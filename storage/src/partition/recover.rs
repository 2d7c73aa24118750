//! Opening a partition's directory after whatever happened to it.
//!
//! The log is the truth; everything else in the directory is a hint. What lies below the flushed offset was on stable
//! storage before somebody relied on it: it is never cut (invariant S5), damage there is reported and served around.
//! What lies above it may be anything: a batch is accepted only if its checksum holds, its base offset is the expected
//! one and its epoch not below its predecessor's. The first that fails ends the log (invariant S4); what stands behind
//! goes to the quarantine directory. Accepted bytes above the flushed offset are written again and synced before they
//! are served: after a failed sync the page cache may show bytes that the disk never got, and a second sync over clean
//! pages proves nothing.

use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use self::rebuild::{end_of_flushed, rebuild_active, recover_producers};
use self::settle::{quarantine_from, settle_names, settle_tail};
use self::swap::settle_swaps;
use super::create_segment;
use crate::batch::BatchError;
use crate::checkpoint::{self, Checkpoint, CheckpointFile};
use crate::cleaned;
use crate::config::LogConfig;
use crate::fs::{self, File, Fs, OpenMode};
use crate::limits::SCAN_BYTES;
use crate::offset::{LeaderEpoch, Offset, PartitionId};
use crate::producer::Producers;
use crate::segment::{
    ActiveSegment, BatchWalk, FileKind, SEAL_BYTES, Seal, SealedSegment, SegmentFacts, Step, WalkError, is_temporary,
    parse_name, path_of,
};

mod rebuild;
mod settle;
mod swap;

/// Offsets `from..to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetRange {
    /// First.
    pub from: Offset,
    /// One after the last.
    pub to: Offset,
}

/// Where recovery ended the log although bytes followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The offset that the next record gets.
    pub offset: Offset,
    /// Why the bytes there are no batch of this log.
    pub reason: String,
    /// How many bytes went to the quarantine directory.
    pub quarantined_bytes: u64,
}

/// What recovery did to one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Which.
    pub partition: PartitionId,
    /// One after the last record that there is.
    pub tail: Offset,
    /// Bytes above the flushed offset that were accepted, written again and synced.
    pub rewritten_bytes: u64,
    /// Set when something behind the tail was moved away.
    pub cut: Option<Cut>,
    /// Damage below the flushed offset, where it was seen. The files are kept as they are.
    pub damaged: Vec<OffsetRange>,
    /// Names in the directory that are not ours. They are left alone.
    pub alien: Vec<String>,
}

impl RecoveryReport {
    /// Whether nothing out of the ordinary was found.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.rewritten_bytes == 0 && self.cut.is_none() && self.damaged.is_empty() && self.alien.is_empty()
    }

    /// So many bytes more were moved away. The first reason is the one that the others follow from.
    fn add_cut(&mut self, offset: Offset, reason: &str, bytes: u64) {
        let (reason, earlier_bytes) =
            self.cut.take().map_or_else(|| (reason.to_owned(), 0), |cut| (cut.reason, cut.quarantined_bytes));
        tracing::warn!(partition = %self.partition, %offset, reason, bytes, "cut off, and kept in quarantine");
        self.cut = Some(Cut { offset, reason, quarantined_bytes: earlier_bytes + bytes });
    }
}

/// A partition ready to be served.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) sealed: Vec<Arc<SealedSegment>>,
    pub(crate) active: ActiveSegment,
    pub(crate) facts: SegmentFacts,
    pub(crate) next: Offset,
    pub(crate) flushed: Offset,
    pub(crate) log_start: Offset,
    /// Segments below the log start: retention was interrupted.
    pub(crate) condemned: Vec<Offset>,
    pub(crate) producers: Producers,
    pub(crate) checkpoint: CheckpointFile,
}

/// What a recovery works with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) fs: &'a dyn Fs,
    pub(crate) id: PartitionId,
    pub(crate) dir: &'a Path,
    pub(crate) quarantine: &'a Path,
    pub(crate) config: &'a LogConfig,
    /// While others are served: how much has to stay free on the disk beside what is copied into quarantine. `None`:
    /// it may have all that the disk gives.
    pub(crate) leaves_free_bytes: Option<u64>,
}

/// Recovers the partition in `place`, or starts an empty one when the directory holds no segment. `cut` is what earlier
/// tries that failed had moved away already: this one would not find it again. After a failure it holds what this one
/// has, too.
pub(crate) fn recover(place: Place<'_>, cut: &mut Option<Cut>) -> io::Result<(Recovered, RecoveryReport)> {
    let mut report = RecoveryReport {
        partition: place.id,
        tail: Offset::ZERO,
        rewritten_bytes: 0,
        cut: cut.take(),
        damaged: Vec::new(),
        alien: Vec::new(),
    };
    match recover_into(place, &mut report) {
        Ok(recovered) => Ok((recovered, report)),
        Err(cause) => {
            *cut = report.cut;
            Err(cause)
        }
    }
}

fn recover_into(place: Place<'_>, report: &mut RecoveryReport) -> io::Result<Recovered> {
    let mut listing = list(place)?;
    settle_swaps(place, &mut listing)?;
    let bases = std::mem::take(&mut listing.bases);
    let (mut checkpoint, slot) = CheckpointFile::open(place.fs, place.dir)?;
    report.alien = std::mem::take(&mut listing.alien);
    let noted = newest_evidence(place.fs, place.dir, &bases, slot)?;
    if bases.is_empty() && noted.log_start < noted.flushed {
        tracing::error!(partition = %place.id, "all segments are missing");
        report.damaged.push(OffsetRange { from: noted.log_start, to: noted.flushed });
    }
    // Each but the last ends where the next begins: what retention had decided to remove is not looked at.
    let (mut condemned, bases) = split_below(bases, noted.log_start);
    let mut chain = scan_chain(place, &bases, noted, report)?;
    if chain.next < noted.log_start {
        condemned.extend(chain.start_anew(noted.log_start));
    }
    if chain.next < noted.flushed {
        // Flushed records are gone with the end of a file. Their offsets are not given to others.
        report.damaged.push(OffsetRange { from: chain.next, to: noted.flushed });
        chain.seal_tail(noted.flushed);
    }
    let (active, created) = chain.open_active(place, &listing.side_files)?;
    if created || slot.is_none_or(|slot| slot.segment != active.base) {
        // No flush knows the active segment: its name, and those of others made since the last flush, may not be
        // durable.
        place.fs.sync_dir(place.dir)?;
    }
    let (index, facts) = rebuild_active(place, &active, &chain, report)?;
    let log_start = noted.log_start.max(chain.first_base(active.base)).min(chain.next);
    let producers = recover_producers(place, &chain, &active, listing.snapshots())?;
    // Opened anew: the map that was walked through holds every page that was touched.
    let path = path_of(place.dir, active.base, FileKind::Log);
    let file = place.fs.open(&path, OpenMode::Write, u64::from(place.config.segment_bytes))?;
    condemned.extend(chain.split_off_below(log_start));
    report.tail = chain.next;
    let published = if chain.tail.is_some() { chain.tail_len_bytes() } else { 0 };
    let reached = Checkpoint { flushed: chain.next, segment: active.base, position: published, log_start };
    let hides = !condemned.is_empty() || chain.first_base(active.base) < log_start;
    let durably = hides || checkpoint.has_start_beyond(log_start);
    note(place, &mut checkpoint, slot, reached, durably)?;
    let recovered = Recovered {
        sealed: chain.sealed.into_iter().map(Arc::new).collect(),
        active: ActiveSegment::new(active.base, file, index, published),
        facts,
        next: chain.next,
        flushed: chain.next,
        log_start,
        condemned,
        producers,
        checkpoint,
    };
    sweep(place, &listing, &recovered);
    Ok(recovered)
}

/// Notes how far recovery came. That is a hint; but a log start with records below may come from a slot that no sync
/// made durable, and would go back with it, and one that an older slot has beyond it would come with that.
fn note(
    place: Place<'_>,
    checkpoint: &mut CheckpointFile,
    slot: Option<Checkpoint>,
    reached: Checkpoint,
    durably: bool,
) -> io::Result<()> {
    if durably {
        return checkpoint.write_durably(reached);
    }
    if slot != Some(reached)
        && let Err(cause) = checkpoint.write(reached)
    {
        tracing::warn!(partition = %place.id, %cause, "flushed offset not noted");
    }
    Ok(())
}

struct Listing {
    bases: Vec<Offset>,
    /// Seals, indexes and snapshots.
    side_files: Vec<(Offset, FileKind)>,
    alien: Vec<String>,
}

impl Listing {
    /// Takes out the side files of one kind.
    fn take(&mut self, wanted: FileKind) -> Vec<Offset> {
        let (taken, others) = self.side_files.drain(..).partition(|(_, kind)| *kind == wanted);
        self.side_files = others;
        Vec::into_iter(taken).map(|(base, _)| base).collect()
    }

    fn snapshots(&self) -> impl DoubleEndedIterator<Item = Offset> {
        self.side_files.iter().filter(|(_, kind)| *kind == FileKind::Snapshot).map(|(at, _)| *at)
    }
}

fn list(place: Place<'_>) -> io::Result<Listing> {
    let mut listing = Listing { bases: Vec::new(), side_files: Vec::new(), alien: Vec::new() };
    for entry in place.fs.list(place.dir)? {
        match parse_name(&entry.name) {
            _ if entry.is_dir => listing.alien.push(entry.name),
            Some((base, FileKind::Log)) => listing.bases.push(base),
            Some(side_file) => listing.side_files.push(side_file),
            None if entry.name == checkpoint::FILE_NAME || entry.name == cleaned::FILE_NAME => {}
            // Left by a replacement that a crash interrupted.
            None if is_temporary(&entry.name) => place.fs.remove_file(&place.dir.join(&entry.name))?,
            None => listing.alien.push(entry.name),
        }
    }
    listing.bases.sort_unstable();
    listing.side_files.sort_unstable_by_key(|(base, _)| *base);
    listing.alien.sort_unstable();
    Ok(listing)
}

/// Removes the side files of segments that are not there: a removal or a flush was interrupted, or their segment was
/// cut off. A later segment of the same base would inherit what they say.
fn sweep(place: Place<'_>, listing: &Listing, recovered: &Recovered) {
    let sealed = recovered.sealed.iter().map(|segment| segment.base);
    let bases: HashSet<_> = sealed.chain([recovered.active.base]).chain(recovered.condemned.iter().copied()).collect();
    for &(base, kind) in listing.side_files.iter().filter(|(base, _)| !bases.contains(base)) {
        let path = path_of(place.dir, base, kind);
        if let Err(cause) = place.fs.remove_file(&path) {
            tracing::warn!(path = %path.display(), %cause, "orphan not removed");
        }
    }
}

/// The bases of the segments that end at or below `log_start`, as far as the bases tell, and the others.
fn split_below(mut bases: Vec<Offset>, log_start: Offset) -> (Vec<Offset>, Vec<Offset>) {
    let count = bases.iter().skip(1).take_while(|&&next| next <= log_start).count();
    let others = bases.split_off(count);
    (bases, others)
}

/// What is known to be flushed: the checkpoint, or the newest seal where that says more (a seal is written after its
/// segment was synced). Without either, everything is above the flushed offset. A seal that may say more and that the
/// disk does not show is not passed over: what it vouches for would be cut where it is damaged.
pub(crate) fn newest_evidence(
    fs: &dyn Fs,
    dir: &Path,
    bases: &[Offset],
    noted: Option<Checkpoint>,
) -> io::Result<Checkpoint> {
    let first = bases.first().copied().unwrap_or(Offset::ZERO);
    let noted = noted.unwrap_or(Checkpoint { flushed: first, segment: first, position: 0, log_start: first });
    let mut newest_seal = None;
    for (at, &base) in bases.iter().enumerate().rev() {
        if bases.get(at + 1).is_some_and(|next| *next <= noted.segment) {
            // It ends where the checkpoint begins, or before: it says no more, and neither do those before it.
            break;
        }
        let path = path_of(dir, base, FileKind::Seal);
        let bytes = fs::if_there(&path, fs::read_whole(fs, &path, SEAL_BYTES as u64))?;
        newest_seal = bytes.and_then(|bytes| Seal::decode(&bytes).ok()).filter(|seal| seal.base == base);
        if newest_seal.is_some() {
            break;
        }
    }
    Ok(match newest_seal {
        // Also where it says as much: compaction may have made another file of the segment in which the checkpoint
        // ends.
        Some(seal) if seal.next >= noted.flushed && seal.next > noted.segment => {
            Checkpoint { flushed: seal.next, segment: seal.next, position: 0, log_start: noted.log_start }
        }
        _ => noted,
    })
}

/// The segments as far as they are one log.
struct Chain {
    sealed: Vec<SealedSegment>,
    /// The last segment, to be appended to.
    tail: Option<Tail>,
    next: Offset,
}

struct Tail {
    base: Offset,
    file: Arc<dyn File>,
    len_bytes: u64,
}

struct Active {
    base: Offset,
    file: Arc<dyn File>,
}

impl Chain {
    fn tail_len_bytes(&self) -> u64 {
        self.tail.as_ref().map_or(0, |tail| tail.len_bytes)
    }

    fn first_base(&self, active: Offset) -> Offset {
        self.sealed.first().map_or(active, |segment| segment.base)
    }

    /// The tail keeps what it has; the log goes on at `next` in a new segment.
    fn seal_tail(&mut self, next: Offset) {
        if let Some(tail) = self.tail.take()
            && self.next > tail.base
        {
            self.sealed.push(SealedSegment::found(tail.base, self.next, tail.len_bytes));
        }
        self.next = next;
    }

    /// Ends before the log start: only the last of what retention had removed is left. The log goes on at its start.
    fn start_anew(&mut self, log_start: Offset) -> Vec<Offset> {
        self.next = log_start;
        let tail = self.tail.take();
        self.sealed.drain(..).map(|segment| segment.base).chain(tail.map(|tail| tail.base)).collect()
    }

    /// Takes out the segments that lie wholly below `log_start`, and answers their bases.
    fn split_off_below(&mut self, log_start: Offset) -> Vec<Offset> {
        let count = self.sealed.partition_point(|segment| segment.next <= log_start);
        self.sealed.drain(..count).map(|segment| segment.base).collect()
    }

    /// The segment that is appended to next, and whether it had to be made. What an earlier one of its base has left is
    /// removed before: its seal would be evidence about records that are not there.
    fn open_active(&self, place: Place<'_>, side_files: &[(Offset, FileKind)]) -> io::Result<(Active, bool)> {
        if let Some(tail) = &self.tail {
            return Ok((Active { base: tail.base, file: Arc::clone(&tail.file) }, false));
        }
        let left = side_files.iter().filter(|(base, kind)| *base == self.next && *kind != FileKind::Snapshot);
        for &(base, kind) in left {
            place.fs.remove_file(&path_of(place.dir, base, kind))?;
        }
        let capacity_bytes = u64::from(place.config.segment_bytes);
        let file = create_segment(place.fs, place.dir, self.next, capacity_bytes)?;
        Ok((Active { base: self.next, file }, true))
    }
}

/// Takes the segments below the checkpoint as they are and scans the rest, up to the first byte that is not this log's.
fn scan_chain(place: Place<'_>, bases: &[Offset], noted: Checkpoint, report: &mut RecoveryReport) -> io::Result<Chain> {
    let first = bases.first().copied().unwrap_or(noted.flushed);
    let mut chain = Chain { sealed: Vec::new(), tail: None, next: first };
    let mut epoch = LeaderEpoch::NONE;
    for (at, &base) in bases.iter().enumerate() {
        let path = path_of(place.dir, base, FileKind::Log);
        let following = bases.get(at + 1).copied();
        if base < noted.segment {
            let segment = flushed_segment(place, base, following.filter(|&next| next <= noted.segment), noted.segment)?;
            chain.next = segment.next;
            chain.sealed.push(segment);
            continue;
        }
        if base != noted.segment && base != chain.next {
            quarantine_from(place, &bases[at..], chain.next, "the segment does not continue the log", report)?;
            break;
        }
        let file = place.fs.open(&path, OpenMode::Write, u64::from(place.config.segment_bytes))?;
        // When it was last appended to, which what is written and cut here is not to hide: the clock may have jumped.
        let appended = file.modified()?;
        let start = if base == noted.segment { (noted.position, noted.flushed) } else { (0, base) };
        let end = scan(place, &*file, base, start, epoch, report);
        let end = end.inspect_err(|_| keep_modified(place, &*file, appended))?;
        epoch = end.epoch;
        chain.next = end.next;
        let fits = following.is_some_and(|next| next == end.next);
        if fits {
            file.truncate(end.position)?;
            keep_modified(place, &*file, appended);
            file.sync_data()?;
            chain.sealed.push(SealedSegment::found(base, end.next, end.position));
            continue;
        }
        let settled = settle_tail(place, &*file, base, &end, report);
        keep_modified(place, &*file, appended);
        settled?;
        chain.tail = Some(Tail { base, file, len_bytes: end.position });
        let rest = &bases[at + 1..];
        if !rest.is_empty() {
            quarantine_from(place, rest, end.next, "the segment before it ends too early", report)?;
        }
        break;
    }
    settle_names(place, report)?;
    Ok(chain)
}

/// Without it a clock that jumped ahead is not noticed at this start, which is no reason not to start.
fn keep_modified(place: Place<'_>, file: &dyn File, at: SystemTime) {
    if let Err(cause) = file.set_modified(at) {
        tracing::warn!(partition = %place.id, %cause, "the time of the last append is not kept");
    }
}

/// A segment that was flushed whole. Where its successor is missing, its own batches tell where it ends.
fn flushed_segment(
    place: Place<'_>,
    base: Offset,
    following: Option<Offset>,
    limit: Offset,
) -> io::Result<SealedSegment> {
    let path = path_of(place.dir, base, FileKind::Log);
    let file = place.fs.open(&path, OpenMode::Read, 0)?;
    let len_bytes = file.len()?;
    match following {
        Some(next) => Ok(SealedSegment::found(base, next, len_bytes)),
        None => Ok(SealedSegment::found(base, end_of_flushed(&path, &*file, base, len_bytes, limit)?, len_bytes)),
    }
}

/// What the disk does not give may hold batches that were acknowledged, and what they say of their producers: without
/// that, one that is sent again would be taken for a new one. It may come back, so the partition is not opened.
fn unread(path: &Path, (position, offset): (u64, Offset), cause: io::Error) -> io::Error {
    let path = path.display();
    let what = format!("{path}: what begins at byte {position}, with offset {offset}, cannot be read: {cause}");
    let advice = "nothing that was flushed was changed; try again, or copy the data directory with a tool that skips \
                  bad sectors and run `tripline repair` on the copy";
    fs::told(cause, format!("{what}; {advice}"))
}

struct ScanEnd {
    position: u64,
    next: Offset,
    epoch: LeaderEpoch,
    reason: Option<BatchError>,
}

/// Accepts batches from `start` on, writes them again and syncs them.
fn scan(
    place: Place<'_>,
    file: &dyn File,
    base: Offset,
    start: (u64, Offset),
    epoch: LeaderEpoch,
    report: &mut RecoveryReport,
) -> io::Result<ScanEnd> {
    let path = path_of(place.dir, base, FileKind::Log);
    let len_bytes = file.len()?;
    let (position, next) = start;
    if position > len_bytes {
        tracing::error!(partition = %place.id, segment = %base, len_bytes, position, "segment is shorter than what was flushed to it");
        let next = end_of_flushed(&path, file, base, len_bytes, next)?;
        return Ok(ScanEnd { position: len_bytes, next, epoch, reason: None });
    }
    let mut end = ScanEnd { position, next, epoch, reason: None };
    let mut walk = BatchWalk::new(file, position, len_bytes);
    loop {
        let step = match walk.next_verified() {
            Ok(Some(step)) => step,
            Ok(None) => break,
            Err(WalkError::Io(e)) => return Err(unread(&path, (end.position, end.next), e)),
            Err(WalkError::NoBatch { reason, .. }) => {
                end.reason = Some(reason);
                break;
            }
        };
        if let Some(reason) = not_ours(&step, end.next, end.epoch) {
            end.reason = Some(reason);
            break;
        }
        end.epoch = step.header.leader_epoch.unwrap_or(end.epoch);
        end.next = step.header.next_offset();
        end.position = step.end();
    }
    if end.position > position {
        rewrite(file, position, end.position)?;
        report.rewritten_bytes += end.position - position;
    }
    Ok(end)
}

/// A batch with a good checksum may still be a ghost: from before a cut, or from a file's earlier life.
fn not_ours(step: &Step, expected: Offset, epoch: LeaderEpoch) -> Option<BatchError> {
    if step.header.base_offset != expected {
        let found = step.header.base_offset.get();
        return Some(BatchError::Field {
            field: "base_offset",
            found,
            allowed: "the offset after the batch before it",
        });
    }
    match step.header.leader_epoch {
        Some(found) if found >= epoch => None,
        other => {
            let found = other.map_or(-1, |epoch| i64::from(epoch.get()));
            Some(BatchError::Field {
                field: "leader_epoch",
                found,
                allowed: "the epoch of the batch before it, or higher",
            })
        }
    }
}

fn rewrite(file: &dyn File, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    while at < to {
        let end = to.min(at + SCAN_BYTES);
        // A copy: the bytes of a map are not handed to a write into the same file.
        let chunk = file.slice(at..end)?.to_vec();
        file.write_at(&[IoSlice::new(&chunk)], at)?;
        at = end;
    }
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;

    use super::*;
    use crate::batch::{BatchBuilder, BatchOptions, NewRecord};
    use crate::fs::SimFs;
    use crate::fs::sim::Fault;
    use crate::{LogConfig, PartitionId, Store, StoreConfig};

    #[test]
    fn seals_that_say_no_more_than_the_checkpoint_are_not_asked() {
        let disk = SimFs::new();
        let id = PartitionId { topic: Uuid::from_u128(7), partition: 0 };
        let store =
            Store::open(Arc::new(disk.clone()), Path::new("/data"), StoreConfig::default(), Uuid::nil()).unwrap();
        let (partition, _) =
            store.open_partition(id, LogConfig { segment_bytes: 1024, ..LogConfig::default() }).unwrap();
        for _ in 0..10 {
            let mut batch = BatchBuilder::new(BatchOptions::default());
            batch.push(&NewRecord { timestamp_ms: 1, value: Some(&[0; 900]), ..NewRecord::default() }).unwrap();
            partition.append(&batch.finish().unwrap(), 1).unwrap();
        }
        partition.flush().unwrap();
        let dir = Path::new("/data").join(format!("topics/{}/0", id.topic));
        let bases: Vec<Offset> = (0..10).filter_map(Offset::new).collect();
        assert!(disk.paths().contains(&path_of(&dir, bases[8], FileKind::Seal)), "{:?}", disk.paths());
        let (_, slot) = CheckpointFile::open(&disk, &dir).unwrap();
        assert_eq!(slot.map(|slot| (slot.segment, slot.flushed)), Some((bases[9], bases[9].next())));
        // That of the segment in which the checkpoint ends could say more, and is not there.
        disk.fail_from(disk.operations() + 2, Fault::Eio);
        assert_eq!(newest_evidence(&disk, &dir, &bases, slot).unwrap(), slot.unwrap());
        // Without the checkpoint, and with an older one, they may say more.
        let older = Checkpoint { flushed: bases[9], segment: bases[8], ..slot.unwrap() };
        for noted in [None, Some(older)] {
            assert!(newest_evidence(&disk, &dir, &bases, noted).is_err(), "{noted:?}");
        }
    }
}
