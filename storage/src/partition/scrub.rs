//! Reading sealed segments again, in slices, to find damage before a reader does.
//!
//! Everything that an audit sees is looked at: checksums, offsets, epochs, and at the end of a segment the checksum
//! over its headers, so that also an epoch that was changed into another one of this log is noticed. What the page
//! cache holds is not read from the disk again.

use std::io;
use std::sync::Arc;

use super::Partition;
use super::recover::OffsetRange;
use crate::fs::{self, File, OpenMode};
use crate::offset::{LeaderEpoch, Offset};
use crate::segment::{Audit, AuditPlace, AuditScope, Audited, FileKind, SealedSegment, heal, path_of};

/// How far a pass over the sealed segments of a partition has come.
#[derive(Debug, Default)]
pub struct Scrub {
    /// Segments below are done.
    from: Offset,
    current: Option<Current>,
}

/// The segment that is being read.
#[derive(Debug)]
struct Current {
    segment: Arc<SealedSegment>,
    /// Held open: compaction and retention may take its name away meanwhile.
    file: Arc<dyn File>,
    place: AuditPlace,
    headers_crc: crc32fast::Hasher,
    damaged: Vec<OffsetRange>,
}

/// What a pass goes on with.
enum Next {
    Open(Current),
    Unreadable(Arc<SealedSegment>),
    /// There are no descriptors for the moment.
    Later,
    None,
}

/// What one slice of a pass found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubSlice {
    /// Bytes that were read; as many as were asked for, where there were no descriptors to read any.
    pub read_bytes: u64,
    /// Offsets of the segment that this slice ended which are damaged. They are told once in a pass.
    pub damaged: Vec<OffsetRange>,
    /// The pass is over; the next slice begins another one.
    pub is_done: bool,
}

impl Partition {
    /// Reads on in a pass: about `max_bytes`, at least one batch, at most to the end of a segment. Blocks on the disk;
    /// takes no lock while it reads. Damage never stops the partition: readers are told of it when they come there.
    pub fn scrub(&self, scrub: &mut Scrub, max_bytes: u64) -> ScrubSlice {
        let mut slice = ScrubSlice::default();
        let next = scrub.current.take().map_or_else(|| self.next_to_scrub(scrub.from), Next::Open);
        let mut current = match next {
            Next::Open(current) => current,
            Next::Unreadable(segment) => {
                scrub.from = segment.next;
                // Unless retention or compaction took it between the look and the opening.
                let range = OffsetRange { from: segment.base, to: segment.next };
                slice.damaged.extend(self.is_there(&segment).then_some(range));
                return slice;
            }
            Next::Later => {
                slice.read_bytes = max_bytes;
                return slice;
            }
            Next::None => {
                (*scrub, slice.is_done) = (Scrub::default(), true);
                return slice;
            }
        };
        let before = current.place.position;
        let ended = match self.read_slice(&mut current, max_bytes) {
            Ok(ended) => ended,
            Err(cause) => {
                let (base, position) = (current.segment.base, current.place.position);
                tracing::error!(partition = %self.id(), segment = %base, position, %cause, "segment cannot be read");
                current.damaged.push(OffsetRange { from: current.place.expected, to: current.segment.next });
                true
            }
        };
        slice.read_bytes = current.place.position.saturating_sub(before);
        if ended {
            scrub.from = current.segment.next;
            slice.damaged = self.still_damaged(current);
        } else {
            scrub.current = Some(current);
        }
        slice
    }

    /// Opens the first segment from `from` on.
    fn next_to_scrub(&self, from: Offset) -> Next {
        let found = self.files.read().sealed.iter().find(|segment| segment.next > from).cloned();
        let Some(segment) = found else { return Next::None };
        // No map: a bad sector is an error of the read, not of a load.
        match self.shared.fs.open(&path_of(&self.dir, segment.base, FileKind::Log), OpenMode::Read, 0) {
            Ok(file) => Next::Open(Current {
                place: AuditPlace::beginning(segment.base, LeaderEpoch::NONE),
                headers_crc: crc32fast::Hasher::new(),
                damaged: Vec::new(),
                segment,
                file,
            }),
            Err(cause) if fs::is_out_of_descriptors(&cause) => Next::Later,
            Err(cause) => {
                tracing::warn!(partition = %self.id(), segment = %segment.base, %cause, "segment cannot be opened");
                Next::Unreadable(segment)
            }
        }
    }

    /// Answers whether the segment ended.
    fn read_slice(&self, current: &mut Current, max_bytes: u64) -> io::Result<bool> {
        let segment = &current.segment;
        let scope = AuditScope {
            start: current.place,
            end: segment.len_bytes,
            flushed_to: segment.len_bytes,
            flushed_next: Some(segment.next),
        };
        let mut audit = Audit::new(&*current.file, scope);
        let start = current.place.position;
        loop {
            let met = audit.next()?;
            if let Some(Audited::Batch(step)) = &met {
                current.headers_crc.update(&audit.header_bytes(step)?);
            }
            let place = audit.place();
            current.place = place.unwrap_or(current.place);
            match met {
                None | Some(Audited::End { .. }) => return self.check_headers(current).map(|()| true),
                Some(Audited::Batch(_)) => {}
                Some(Audited::Wrong(wrong)) => {
                    let (base, position) = (segment.base, wrong.bytes.start);
                    let (from, to) = (wrong.offsets.start, wrong.offsets.end);
                    tracing::error!(partition = %self.id(), segment = %base, position, %from, %to, fault = ?wrong.fault, "damaged");
                    current.damaged.push(OffsetRange { from, to });
                }
            }
            if place.is_some_and(|place| place.position - start >= max_bytes) {
                return Ok(false);
            }
        }
    }

    /// All batches are whole: are their headers those that were sealed?
    fn check_headers(&self, current: &mut Current) -> io::Result<()> {
        let segment = &current.segment;
        // Without descriptors the next pass looks.
        let seal = segment.read_seal(&*self.shared.fs, &self.dir).ok().flatten();
        let Some(seal) = seal.filter(|_| current.damaged.is_empty()) else { return Ok(()) };
        // That of a compacted segment may be there already.
        if seal.headers_crc == current.headers_crc.clone().finalize() || !self.is_there(segment) {
            return Ok(());
        }
        let known = heal(&*current.file, Some(&seal), &[], segment.len_bytes)?;
        let ranges = known.into_iter().map(|healed| OffsetRange { from: healed.offsets.start, to: healed.offsets.end });
        current.damaged.extend(ranges);
        if current.damaged.is_empty() {
            current.damaged.push(OffsetRange { from: segment.base, to: segment.next });
        }
        for OffsetRange { from, to } in &current.damaged {
            tracing::error!(partition = %self.id(), segment = %segment.base, %from, %to, "leader epoch is not the one that was written");
        }
        Ok(())
    }

    /// What was found of a segment that compaction or retention took meanwhile concerns nobody.
    fn still_damaged(&self, current: Current) -> Vec<OffsetRange> {
        if self.is_there(&current.segment) { current.damaged } else { Vec::new() }
    }

    fn is_there(&self, segment: &Arc<SealedSegment>) -> bool {
        self.files.read().sealed.iter().any(|sealed| Arc::ptr_eq(sealed, segment))
    }
}
