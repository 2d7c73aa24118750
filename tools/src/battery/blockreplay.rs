//! What a disk may hold after the power went: its writes are recorded, and states are put together from the recording.
//!
//! A disk keeps all that it had written when it answered a flush. Of what came after the last flush before the end, it
//! may have any part: each write whole, not at all, or its first or last sectors only. Two things are never torn, as a
//! disk which tears them ends the file system whatever was written there. ext4's superblock: its checksum spans two
//! sectors and a mount looks at no other copy. And blocks of xfs's directories and trees: where the first sector of one
//! is as new as the log, recovery writes nothing over it, and its checksum spans eight. qemu-storage-daemon stands
//! between a loop device and a file and records; the format of the recording is that of dm-log-writes.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::ledger::End;
use crate::machine::{self, Kind, Mount, text};
use crate::store::{self, Promises, Writing};
use crate::{Failure, Verdict};

const DISK_BYTES: u64 = 64 << 20;
const SECTOR_BYTES: usize = 512;
/// Longer than a daemon takes to begin.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// States to put together and open
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    states: u64,
    /// How long is recorded, in milliseconds
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    record_ms: u64,
    /// Decides what is written and which states; chosen by chance and printed when it is not given
    #[arg(long)]
    seed: Option<u64>,
    /// On this file system alone; half of the states on each when it is not given
    #[arg(long)]
    fs: Option<Kind>,
}

pub(crate) fn run(args: &Args) -> Result<Verdict, Failure> {
    if let Some(lack) = machine::lacks(&["qemu-storage-daemon", "mkfs.ext4"], true) {
        let package = "qemu-storage-daemon is in Debian's qemu-system-common";
        return Ok(Verdict::Skipped(format!("block-level replay: {lack} ({package})")));
    }
    if !Path::new("/dev/fuse").exists() {
        return Ok(Verdict::Skipped("block-level replay: there is no /dev/fuse".to_owned()));
    }
    machine::stand_apart()?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let kinds = args.fs.map_or_else(|| vec![Kind::Ext4, Kind::Xfs], |kind| vec![kind]);
    let mut told = Vec::new();
    let mut left = args.states;
    for (nth, &kind) in kinds.iter().enumerate() {
        let states = left.div_ceil((kinds.len() - nth) as u64);
        left -= states;
        if kind == Kind::Xfs
            && let Some(lack) = machine::lacks(&["mkfs.xfs"], true)
        {
            println!("SKIP: block-level replay on xfs: {lack} (apt-get install xfsprogs)");
            continue;
        }
        println!("recording {} ms on {}, then {states} states, seed {seed}", args.record_ms, kind.name());
        match replay(kind, states, seed, Duration::from_millis(args.record_ms))? {
            Ok(line) => told.push(line),
            Err(broken) => {
                let again = format!("tripline-battery blockreplay --fs {} --seed {seed}", kind.name());
                return Ok(Verdict::Broken(format!("{broken}; again: {again} (the recording differs each time)")));
            }
        }
    }
    Ok(Verdict::Held(format!("seed {seed}; {}", told.join("; "))))
}

/// Records once and opens `states` states. What was seen, or the promise that was broken.
fn replay(kind: Kind, states: u64, seed: u64, long: Duration) -> Result<Result<String, String>, Failure> {
    let begun = Instant::now();
    let scratch = machine::memory_scratch()?;
    let place = Place { kind, dir: scratch.path().to_owned() };
    let (promises, made_bytes) = place.record(seed, long)?;
    let recording = Recording::read(&place.recording(), made_bytes)?;
    let recorded = begun.elapsed();
    let disk = vec![0; DISK_BYTES as usize];
    let mut replay = Replay { recording: &recording, disk, played: 0, never_torn: place.never_torn() };
    let mut random = fastrand::Rng::with_seed(seed);
    // In the order of time, so that the disk is played once.
    let mut ends: Vec<usize> = (0..states).map(|_| recording.any_end(&mut random)).collect();
    ends.sort_unstable();
    let mut counts = Counts::default();
    for (number, &end) in ends.iter().enumerate() {
        let (state, reordered) = replay.state(end, &mut random);
        if let Err(broken) = place.check(&state, &promises, recording.bytes_at(end))? {
            let (kept, count) = (place.keep(&state)?, recording.entries.len());
            let kept = kept.display();
            return Ok(Err(format!(
                "state {number}, {end} of {count} writes and flushes: {broken}\nthe disk is kept in {kept}"
            )));
        }
        counts.reordered += u64::from(reordered > 0);
        counts.unflushed_max = counts.unflushed_max.max(reordered);
        if (number + 1) % 500 == 0 {
            println!("  {} states after {:.0} s", number + 1, begun.elapsed().as_secs_f64());
        }
    }
    Ok(Ok(format!(
        "{}: {states} states, {} of them with reordered or torn writes ({} at most), of {} writes and flushes with {} acknowledgements, recorded in {:.1} s, checked in {:.1} s",
        kind.name(),
        counts.reordered,
        counts.unflushed_max,
        recording.entries.len(),
        promises.count(),
        recorded.as_secs_f64(),
        (begun.elapsed() - recorded).as_secs_f64(),
    )))
}

#[derive(Default)]
struct Counts {
    reordered: u64,
    unflushed_max: usize,
}

// ---- recording -----------------------------------------------------------------------------------------------------

/// Where everything is.
struct Place {
    kind: Kind,
    dir: PathBuf,
}

impl Place {
    fn recording(&self) -> PathBuf {
        self.dir.join("recording")
    }

    fn mount(&self) -> PathBuf {
        self.dir.join("mount")
    }

    /// Records a writer on a new file system; answers what it was promised, and how long the recording was before.
    fn record(&self, seed: u64, long: Duration) -> Result<(Promises, u64), Failure> {
        let (disk, export) = (self.dir.join("disk"), self.dir.join("export"));
        File::create(&disk)?.set_len(DISK_BYTES)?;
        File::create(&export)?;
        File::create(self.recording())?;
        std::fs::create_dir(self.mount())?;
        let daemon = Daemon::start(&disk, &self.recording(), &export)?;
        // Made on the recorded disk: what comes behind is played upon it.
        machine::make_file_system(&export, self.kind, self.making())?;
        let made_bytes = std::fs::metadata(self.recording())?.len();
        let mounted = Mount::image(&export, &self.mount(), "")?;
        let recording = self.recording();
        let more = ["--recorded", text(&recording)?];
        let writing = Writing::start(&mounted.path().join("store"), 1, seed, &more, &[])?;
        thread::sleep(long);
        let said = writing.kill()?;
        mounted.unmount()?;
        daemon.stop()?;
        let mut promises = Promises::default();
        if said.note(&mut promises)? == 0 {
            return Err(format!("nothing was acknowledged while it was recorded: {}", said.complaint).into());
        }
        Ok((promises, made_bytes))
    }

    const fn making(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::Ext4 => &["-E", "lazy_itable_init=0,lazy_journal_init=0"],
            // Smaller than it is meant to be: each state is a copy of the disk.
            Kind::Xfs => &["--unsupported"],
        }
    }

    fn never_torn(&self) -> Whole {
        match self.kind {
            Kind::Ext4 => Whole { bytes: 1024..2048, is_block: |_| false },
            // The superblock is one sector.
            Kind::Xfs => Whole { bytes: 0..SECTOR_BYTES, is_block: is_xfs_block },
        }
    }

    /// Opens a state of the disk as the next start does.
    fn check(&self, state: &[u8], promises: &Promises, recorded_bytes: u64) -> Result<Result<(), String>, Failure> {
        let image = self.dir.join("state");
        write_sparse(&image, state)?;
        let mounted = match Mount::image(&image, &self.mount(), "") {
            Ok(mounted) => mounted,
            Err(error) => return Ok(Err(format!("the file system is broken: {error}"))),
        };
        let found = store::read_all(&mounted.path().join("store"));
        mounted.unmount()?;
        let found = match found {
            Ok(found) => found,
            Err(error) => return Ok(Err(error.to_string())),
        };
        Ok(promises.clone().settle(&found, End::Recorded { bytes: recorded_bytes }).map(drop))
    }

    fn keep(&self, state: &[u8]) -> Result<PathBuf, Failure> {
        let path = std::env::temp_dir().join(format!("tripline-battery-state-{}", std::process::id()));
        write_sparse(&path, state)?;
        Ok(path)
    }
}

/// Pages of zeros stay holes: a disk is mostly empty.
fn write_sparse(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    const PAGE_BYTES: usize = 64 << 10;
    let file = File::create(path)?;
    file.set_len(bytes.len() as u64)?;
    for (number, page) in bytes.chunks(PAGE_BYTES).enumerate() {
        if page.iter().any(|&byte| byte != 0) {
            file.write_all_at(page, (number * PAGE_BYTES) as u64)?;
        }
    }
    Ok(())
}

/// qemu-storage-daemon with a disk that records.
struct Daemon(Child);

impl Daemon {
    fn start(disk: &Path, recording: &Path, export: &Path) -> Result<Self, Failure> {
        let mut command = Command::new("qemu-storage-daemon");
        let [disk, recording, export_at] = [text(disk)?, text(recording)?, text(export)?];
        command.args(["--blockdev", &format!("driver=file,node-name=f,filename={disk}")]);
        command.args(["--blockdev", "driver=raw,node-name=d,file=f"]);
        command.args(["--blockdev", &format!("driver=file,node-name=l,filename={recording}")]);
        command.args(["--blockdev", "driver=blklogwrites,node-name=b,file=d,log=l,log-sector-size=512"]);
        command.args(["--export", &format!("type=fuse,id=e,node-name=b,mountpoint={export_at},writable=on")]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?;
        let mut daemon = Self(child);
        let begun = Instant::now();
        while std::fs::metadata(export).map_or(0, |metadata| metadata.len()) != DISK_BYTES {
            if begun.elapsed() > PATIENCE || daemon.0.try_wait()?.is_some() {
                return Err("qemu-storage-daemon does not export its disk".into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    /// Lets it write the end of the recording.
    fn stop(mut self) -> Result<(), Failure> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended as it was asked to.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// ---- the recording -------------------------------------------------------------------------------------------------

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    /// Where on the disk, in bytes.
    disk: Range<usize>,
    /// Where in the recording its bytes are; empty for a discard, which leaves zeros.
    data: Range<usize>,
    flags: u64,
    /// The length of the recording when it was recorded.
    recorded_bytes: u64,
}

/// A recording; bytes 0..512 are `<u64 magic><u64 version><u64 entries><u32 sector size>`, then for each entry a sector
/// that begins with `<u64 sector><u64 sectors><u64 flags><u64 data length>`, and its sectors. Little-endian.
struct Recording {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// The first entry behind the making of the file system.
    begun: usize,
}

impl Recording {
    /// The first `made_bytes` of it are the making of the file system, which flushes when it is done.
    fn read(path: &Path, made_bytes: u64) -> Result<Self, Failure> {
        let bytes = std::fs::read(path)?;
        let entries = parse(&bytes)?;
        // The last of the making, its flush, ends there: a state without it need not hold a file system.
        let begun = entries.iter().position(|entry| entry.recorded_bytes > made_bytes).ok_or("nothing was written")?;
        Ok(Self { bytes, entries, begun })
    }

    /// Anywhere behind the making of the file system; each other time just before a flush, where most is unflushed.
    fn any_end(&self, random: &mut fastrand::Rng) -> usize {
        let end = random.usize(self.begun..=self.entries.len());
        let to_flush = self.entries[end..].iter().position(|entry| entry.flags & FLUSH != 0);
        if random.bool() { end + to_flush.unwrap_or(0) } else { end }
    }

    /// How long the recording was when `end` entries were recorded.
    fn bytes_at(&self, end: usize) -> u64 {
        end.checked_sub(1).map_or(0, |last| self.entries[last].recorded_bytes)
    }
}

fn parse(bytes: &[u8]) -> Result<Vec<Entry>, Failure> {
    let number = |at: usize| -> Result<u64, Failure> {
        let field = bytes.get(at..at + 8).ok_or("the recording ends early")?;
        Ok(u64::from_le_bytes(field.try_into()?))
    };
    if number(0)? != MAGIC {
        return Err("the recording does not begin with its magic".into());
    }
    let mut entries = Vec::new();
    let mut at = SECTOR_BYTES;
    for _ in 0..number(16)? {
        let sectors = |field: u64| usize::try_from(field).map(|sectors| sectors.saturating_mul(SECTOR_BYTES));
        let (start, len) = (sectors(number(at)?)?, sectors(number(at + 8)?)?);
        let flags = number(at + 16)?;
        let data = at + SECTOR_BYTES..at + SECTOR_BYTES + if flags & DISCARD == 0 { len } else { 0 };
        if data.end > bytes.len() || start.saturating_add(len) > DISK_BYTES as usize {
            return Err(format!("entry {} of the recording is out of bounds", entries.len()).into());
        }
        at = data.end;
        entries.push(Entry { disk: start..start + len, data, flags, recorded_bytes: at as u64 });
    }
    Ok(entries)
}

// ---- states --------------------------------------------------------------------------------------------------------

/// Plays a recording onto a disk, from one flush to the next.
struct Replay<'a> {
    recording: &'a Recording,
    disk: Vec<u8>,
    /// So many entries are on the disk.
    played: usize,
    never_torn: Whole,
}

/// What a disk writes as one.
struct Whole {
    /// In bytes of the disk.
    bytes: Range<usize>,
    /// And each block of [`BLOCK_BYTES`] that begins like this.
    is_block: fn(&[u8]) -> bool,
}

impl Replay<'_> {
    /// A disk whose power went when `end` entries were recorded, which is not before the last state; and how many of
    /// its writes nothing had flushed.
    fn state(&mut self, end: usize, random: &mut fastrand::Rng) -> (Vec<u8>, usize) {
        let entries = &self.recording.entries;
        let flushed = entries[..end].iter().rposition(|entry| entry.flags & FLUSH != 0).map_or(0, |at| at + 1);
        for entry in &entries[self.played.min(flushed)..flushed] {
            apply(&mut self.disk, &self.recording.bytes, entry, 0..entry.disk.len());
        }
        self.played = self.played.max(flushed);
        let mut state = self.disk.clone();
        let unflushed = &entries[flushed..end];
        for entry in unflushed {
            let kept = match entry.flags & FUA {
                0 => kept_of(entry, &self.recording.bytes, &self.never_torn, random),
                _ => 0..entry.disk.len(),
            };
            apply(&mut state, &self.recording.bytes, entry, kept);
        }
        (state, unflushed.len())
    }
}

/// What xfs's directories and trees are made of, as `mkfs.xfs` makes them.
const BLOCK_BYTES: usize = 4096;
/// How their blocks begin (`fs/xfs/libxfs/xfs_format.h`, `xfs_da_format.h`): directories, and trees of free space, of
/// inodes, of extents and of references.
const XFS_BLOCKS: [&[u8; 4]; 10] =
    [b"XDD3", b"XDB3", b"XDF3", b"AB3B", b"AB3C", b"IAB3", b"FIB3", b"BMA3", b"R3FC", b"RMB3"];
/// The others have their magic behind two links: nodes and leaves of directories.
const XFS_LINKED_BLOCKS: [[u8; 2]; 3] = [[0x3e, 0xbe], [0x3d, 0xf1], [0x3d, 0xff]];

fn is_xfs_block(bytes: &[u8]) -> bool {
    XFS_BLOCKS.iter().any(|magic| bytes.starts_with(*magic))
        || bytes.get(8..10).is_some_and(|magic| XFS_LINKED_BLOCKS.iter().any(|known| known == magic))
}

/// All of a write, nothing, or some sectors at one of its ends.
fn kept_of(entry: &Entry, recording: &[u8], never_torn: &Whole, random: &mut fastrand::Rng) -> Range<usize> {
    let len = entry.disk.len();
    let mut torn_at = random.usize(0..=len / SECTOR_BYTES) * SECTOR_BYTES;
    let on_disk = entry.disk.start + torn_at;
    let Whole { bytes, is_block } = never_torn;
    if bytes.start < on_disk && on_disk < bytes.end {
        torn_at = bytes.start.saturating_sub(entry.disk.start);
    }
    let block_at = on_disk / BLOCK_BYTES * BLOCK_BYTES;
    if let Some(at) = block_at.checked_sub(entry.disk.start)
        && recording[entry.data.clone()].get(at..).is_some_and(is_block)
    {
        torn_at = at;
    }
    match random.u8(0..4) {
        0 => 0..0,
        1 => 0..torn_at,
        2 => torn_at..len,
        _ => 0..len,
    }
}

fn apply(disk: &mut [u8], recording: &[u8], entry: &Entry, kept: Range<usize>) {
    let target = &mut disk[entry.disk.clone()][kept.clone()];
    if entry.data.is_empty() {
        target.fill(0);
    } else {
        target.copy_from_slice(&recording[entry.data.clone()][kept]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording(entries: &[(u64, u64, u64, u8)]) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR_BYTES];
        bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[16..24].copy_from_slice(&(entries.len() as u64).to_le_bytes());
        for &(sector, sectors, flags, fill) in entries {
            let mut head = vec![0; SECTOR_BYTES];
            for (at, field) in [(0, sector), (8, sectors), (16, flags)] {
                head[at..at + 8].copy_from_slice(&field.to_le_bytes());
            }
            bytes.extend(head);
            let len = if flags & DISCARD == 0 { sectors as usize * SECTOR_BYTES } else { 0 };
            bytes.extend(vec![fill; len]);
        }
        bytes
    }

    #[test]
    fn what_was_flushed_is_in_every_state_and_the_rest_in_some() {
        let bytes = recording(&[(0, 2, 0, 1), (0, 0, FLUSH, 0), (1, 2, 0, 2), (4, 1, FUA, 3)]);
        let recording = Recording { entries: parse(&bytes).unwrap(), bytes, begun: 2 };
        let mut random = fastrand::Rng::with_seed(1);
        let mut seen = std::collections::BTreeSet::new();
        let disk = vec![0; 5 * SECTOR_BYTES];
        let mut replay =
            Replay { recording: &recording, disk, played: 0, never_torn: Whole { bytes: 0..0, is_block: |_| false } };
        for _ in 0..200 {
            let (state, unflushed) = replay.state(4, &mut random);
            assert_eq!(unflushed, 2);
            let sectors: Vec<u8> = state.chunks(SECTOR_BYTES).map(|sector| sector[0]).collect();
            assert_eq!((sectors[0], sectors[3], sectors[4]), (1, 0, 3));
            seen.insert((sectors[1], sectors[2]));
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(1, 0), (1, 2), (2, 0), (2, 2)]);
    }

    #[test]
    fn no_state_is_without_the_last_flush_of_the_making() {
        let made = recording(&[(2, 2, 0, 1), (0, 0, FLUSH, 0)]);
        let bytes = recording(&[(2, 2, 0, 1), (0, 0, FLUSH, 0), (4, 1, 0, 2)]);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let recording = Recording::read(file.path(), made.len() as u64).unwrap();
        let mut random = fastrand::Rng::with_seed(3);
        let ends: std::collections::BTreeSet<usize> = (0..100).map(|_| recording.any_end(&mut random)).collect();
        assert_eq!(ends.into_iter().collect::<Vec<_>>(), [2, 3]);
        assert!(Recording::read(file.path(), recording.bytes.len() as u64).is_err(), "nothing was written after it");
    }

    #[test]
    fn a_write_is_torn_anywhere_but_in_what_is_never_torn() {
        let mut random = fastrand::Rng::with_seed(2);
        let mut kept = |sectors: Range<usize>| -> std::collections::BTreeSet<(usize, usize)> {
            let disk = sectors.start * SECTOR_BYTES..sectors.end * SECTOR_BYTES;
            let entry = Entry { disk, data: 0..0, flags: 0, recorded_bytes: 0 };
            let any =
                (0..200).map(|_| kept_of(&entry, &[], &Whole { bytes: 1024..2048, is_block: |_| false }, &mut random));
            any.map(|kept| (kept.start / SECTOR_BYTES, kept.end / SECTOR_BYTES))
                .filter(|(from, to)| from < to)
                .collect()
        };
        assert_eq!(kept(2..4).into_iter().collect::<Vec<_>>(), [(0, 2)]);
        assert_eq!(kept(4..6).into_iter().collect::<Vec<_>>(), [(0, 1), (0, 2), (1, 2)]);
        assert_eq!(kept(1..5).into_iter().collect::<Vec<_>>(), [(0, 1), (0, 3), (0, 4), (1, 4), (3, 4)]);
    }

    #[test]
    fn blocks_of_xfs_are_whole_in_any_write() {
        let mut recording = vec![0; 4 * BLOCK_BYTES];
        recording[BLOCK_BYTES..][..4].copy_from_slice(b"XDD3");
        recording[3 * BLOCK_BYTES + 8..][..2].copy_from_slice(&[0x3d, 0xf1]);
        let (disk, data) = (BLOCK_BYTES..5 * BLOCK_BYTES, 0..recording.len());
        let entry = Entry { disk, data, flags: 0, recorded_bytes: 0 };
        let mut random = fastrand::Rng::with_seed(2);
        let whole = Whole { bytes: 0..SECTOR_BYTES, is_block: is_xfs_block };
        let kept = (0..2000).map(|_| kept_of(&entry, &recording, &whole, &mut random));
        let ends: std::collections::BTreeSet<usize> =
            kept.filter(|kept| kept.start == 0).map(|kept| kept.end / SECTOR_BYTES).collect();
        let torn_in_others = (0..=8).chain(16..=24).chain([32]);
        assert_eq!(ends.into_iter().collect::<Vec<_>>(), torn_in_others.collect::<Vec<_>>());
    }

    #[test]
    fn a_discard_leaves_zeros_and_a_bad_recording_is_refused() {
        let bytes = recording(&[(0, 1, 0, 7), (0, 1, DISCARD, 0), (0, 0, FLUSH, 0)]);
        let entries = parse(&bytes).unwrap();
        let mut disk = vec![9; SECTOR_BYTES];
        apply(&mut disk, &bytes, &entries[1], 0..SECTOR_BYTES);
        assert!(disk.iter().all(|&byte| byte == 0));
        assert!(parse(&bytes[..700]).is_err());
        assert!(parse(&[0; 512]).is_err());
        assert!(parse(&recording(&[(u64::MAX, 1, 0, 1)])).is_err());
    }
}
