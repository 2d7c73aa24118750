//! Damage that can be undone: a header whose right bytes are known for sure.
//!
//! A batch's own checksum does not cover its base offset, its length, its epoch and the checksum itself. Its neighbours
//! say what the first two must be, the records what the last must be; the epoch can only be that of a neighbour.
//! Whether all of that is right is told by the seal: its checksum is over all headers of the segment as they were when
//! it was sealed. Without a seal, or where more is wrong than that, a batch must at least pass its own checksum with
//! what its neighbours say.

use std::io;
use std::ops::Range;

use super::{BatchWalk, Fault, Seal, Step, Wrong};
use crate::batch::header::{
    ATTRIBUTES_AT, BASE_OFFSET_AT, BATCH_LENGTH_AT, CRC_AT, HEADER_BYTES, LEADER_EPOCH_AT, LENGTH_PREFIX_BYTES, MAGIC,
    MAGIC_AT,
};
use crate::batch::{BatchHeader, crc32c};
use crate::fs::File;
use crate::limits::BATCH_BYTES_MAX;
use crate::offset::{LeaderEpoch, Offset};

/// With more wrong places than this each is looked at by itself alone: a seal that vouches for all of them together is
/// not to be expected, and every try reads the file.
const TOGETHER_MAX: usize = 32;
/// How many batches whose epoch stands alone are tried.
const LONERS_MAX: usize = 8;

/// A header that was changed, and what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HealedHeader {
    pub(crate) position: u64,
    pub(crate) offsets: Range<Offset>,
    pub(crate) found: [u8; HEADER_BYTES],
    pub(crate) right: [u8; HEADER_BYTES],
}

impl HealedHeader {
    /// The first field that differs: its name, what was expected, what was found.
    pub(crate) fn difference(&self) -> (&'static str, String, String) {
        let field = |at: usize, len: usize| (&self.right[at..at + len], &self.found[at..at + len]);
        let number = |bytes: &[u8]| {
            let sign = if bytes.first().is_some_and(|byte| byte & 0x80 != 0) { -1_i64 } else { 0 };
            bytes.iter().fold(sign, |number, byte| (number << 8) | i64::from(*byte)).to_string()
        };
        let fields = [
            ("base_offset", BASE_OFFSET_AT, 8),
            ("batch_length", BATCH_LENGTH_AT, 4),
            ("leader_epoch", LEADER_EPOCH_AT, 4),
            ("magic", MAGIC_AT, 1),
            ("crc", CRC_AT, 4),
        ];
        let differing = fields.into_iter().find(|&(_, at, len)| field(at, len).0 != field(at, len).1);
        let (name, at, len) = differing.unwrap_or(("header", ATTRIBUTES_AT, 8));
        let (right, found) = field(at, len);
        (name, number(right), number(found))
    }
}

/// The headers as they were, as far as that can be told: `wrongs` is what an audit said of the file, `seal` that of the
/// segment if it has one, and `end` where its batches end.
pub(crate) fn heal(file: &dyn File, seal: Option<&Seal>, wrongs: &[Wrong], end: u64) -> io::Result<Vec<HealedHeader>> {
    if let Some(seal) = seal.filter(|seal| seal.len_bytes == end && wrongs.len() <= TOGETHER_MAX) {
        if wrongs.is_empty() {
            return heal_lone_epoch(file, seal);
        }
        for epoch_of in [EpochOf::Itself, EpochOf::Before, EpochOf::Behind] {
            let Some(healed) = candidates(file, seal, wrongs, epoch_of)? else { break };
            if headers_crc(file, seal, &healed)? == Some(seal.headers_crc) {
                return Ok(healed);
            }
        }
    }
    let mut healed = Vec::new();
    for wrong in wrongs {
        healed.extend(heal_alone(file, wrong)?);
    }
    Ok(healed)
}

/// The header of one batch that passes its own checksum once it says what its neighbours say.
pub(crate) fn heal_alone(file: &dyn File, wrong: &Wrong) -> io::Result<Option<HealedHeader>> {
    if !is_one_batch(wrong) {
        return Ok(None);
    }
    let epoch = match wrong.fault {
        Fault::Epoch { least, .. } => Some(least),
        _ => None,
    };
    let healed = candidate(file, wrong.bytes.clone(), wrong.offsets.clone(), epoch)?;
    let crc = CRC_AT..ATTRIBUTES_AT;
    let is_own = healed.right[crc.clone()] == healed.found[crc];
    let fits = BatchHeader::parse(&healed.right)
        .is_ok_and(|header| header.base_offset == wrong.offsets.start && header.next_offset() == wrong.offsets.end);
    Ok((is_own && fits).then_some(healed))
}

fn is_one_batch(wrong: &Wrong) -> bool {
    let size_bytes = wrong.bytes.end - wrong.bytes.start;
    size_bytes >= HEADER_BYTES as u64 && size_bytes <= BATCH_BYTES_MAX as u64
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EpochOf {
    Itself,
    Before,
    Behind,
}

/// `None` when a wrong place cannot be one batch.
fn candidates(
    file: &dyn File,
    seal: &Seal,
    wrongs: &[Wrong],
    epoch_of: EpochOf,
) -> io::Result<Option<Vec<HealedHeader>>> {
    let mut healed = Vec::new();
    for wrong in wrongs {
        if !is_one_batch(wrong) {
            return Ok(None);
        }
        let epoch = match epoch_of {
            EpochOf::Itself => None,
            EpochOf::Before => epoch_before(file, wrong.bytes.start)?,
            EpochOf::Behind => epoch_at(file, wrong.bytes.end, seal.len_bytes),
        };
        healed.push(candidate(file, wrong.bytes.clone(), wrong.offsets.clone(), epoch)?);
    }
    Ok(Some(healed))
}

fn candidate(
    file: &dyn File,
    bytes: Range<u64>,
    offsets: Range<Offset>,
    epoch: Option<LeaderEpoch>,
) -> io::Result<HealedHeader> {
    let batch = file.slice(bytes.clone())?;
    let mut found = [0; HEADER_BYTES];
    found.copy_from_slice(&batch[..HEADER_BYTES]);
    let mut right = found;
    let mut put = |at: usize, field: &[u8]| right[at..at + field.len()].copy_from_slice(field);
    let batch_length = u32::try_from(batch.len() - LENGTH_PREFIX_BYTES).expect("bounded by the largest batch");
    put(BASE_OFFSET_AT, &offsets.start.get().to_be_bytes());
    put(BATCH_LENGTH_AT, &batch_length.to_be_bytes());
    if let Some(epoch) = epoch {
        put(LEADER_EPOCH_AT, &epoch.get().to_be_bytes());
    }
    put(MAGIC_AT, &MAGIC.to_be_bytes());
    put(CRC_AT, &crc32c(&batch[ATTRIBUTES_AT..]).to_be_bytes());
    Ok(HealedHeader { position: bytes.start, offsets, found, right })
}

/// The epoch of the batch that ends at `position`.
fn epoch_before(file: &dyn File, position: u64) -> io::Result<Option<LeaderEpoch>> {
    let mut walk = BatchWalk::new(file, 0, position);
    let mut last = None;
    while let Ok(Some(step)) = walk.next() {
        last = (step.end() == position).then_some(step.header.leader_epoch).flatten();
    }
    Ok(last)
}

fn epoch_at(file: &dyn File, position: u64, end: u64) -> Option<LeaderEpoch> {
    let step = BatchWalk::new(file, position, end).with_window(HEADER_BYTES as u64).next();
    step.ok().flatten().and_then(|step| step.header.leader_epoch)
}

/// All checksums hold and all offsets are dense, and yet the headers are not those that were sealed: one epoch was
/// changed. It shows as a batch whose epoch is not that of its neighbours.
fn heal_lone_epoch(file: &dyn File, seal: &Seal) -> io::Result<Vec<HealedHeader>> {
    for (step, epochs) in lone_epochs(file, seal.len_bytes) {
        let offsets = step.header.base_offset..step.header.next_offset();
        for epoch in epochs {
            let healed = vec![candidate(file, step.position..step.end(), offsets.clone(), Some(epoch))?];
            if headers_crc(file, seal, &healed)? == Some(seal.headers_crc) {
                return Ok(healed);
            }
        }
    }
    Ok(Vec::new())
}

/// Batches whose epoch differs from that of both neighbours, with the epochs that theirs may have been.
fn lone_epochs(file: &dyn File, end: u64) -> Vec<(Step, Vec<LeaderEpoch>)> {
    let mut walk = BatchWalk::new(file, 0, end);
    let mut window: [Option<Step>; 3] = [None; 3];
    let mut lone = Vec::new();
    loop {
        let next = walk.next().ok().flatten();
        window = [window[1], window[2], next];
        if let [before, Some(step), behind] = window {
            let epoch_of = |step: Option<Step>| step.and_then(|step| step.header.leader_epoch);
            let own = step.header.leader_epoch;
            let mut others: Vec<_> = [epoch_of(before), epoch_of(behind)].into_iter().flatten().collect();
            others.dedup();
            if !others.is_empty() && !others.iter().any(|&other| Some(other) == own) {
                lone.push((step, others));
            }
        }
        if (next.is_none() && window[1].is_none()) || lone.len() == LONERS_MAX {
            return lone;
        }
    }
}

/// The checksum over all headers of the segment, with those of `healed` in their places; `None` when they do not lead
/// from batch to batch to the sealed end.
fn headers_crc(file: &dyn File, seal: &Seal, healed: &[HealedHeader]) -> io::Result<Option<u32>> {
    let mut crc = crc32fast::Hasher::new();
    let mut walk = BatchWalk::new(file, 0, seal.len_bytes);
    while walk.position() < seal.len_bytes {
        let position = walk.position();
        if let Some(header) = healed.iter().find(|header| header.position == position) {
            crc.update(&header.right);
            let Ok(parsed) = BatchHeader::parse(&header.right) else { return Ok(None) };
            walk.skip_to(position + parsed.size_bytes() as u64);
            continue;
        }
        let Ok(Some(step)) = walk.next() else { return Ok(None) };
        crc.update(&walk.bytes(step.position, step.position + HEADER_BYTES as u64)?);
    }
    Ok((walk.position() == seal.len_bytes).then(|| crc.finalize()))
}
