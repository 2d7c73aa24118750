//! The data directory: its format, its lock, its epoch and its partitions.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

use crate::config::{LogConfig, StoreConfig};
use crate::error::{OpenLogError, OpenStoreError};
use crate::flush::Flusher;
use crate::fs::{self, Fs};
use crate::offset::{LeaderEpoch, PartitionId};
use crate::partition::{self, Cut, Partition, RecoveryReport, Shared};
use crate::reserve::{self, Reserve};
use crate::segment::{OpenSegments, is_segment};

/// The format of data directories that this release writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// The id under which the state partition goes in reports.
pub const STATE_PARTITION: PartitionId = PartitionId { topic: Uuid::nil(), partition: 0 };

/// The file that stands in a data directory while a repair is under way.
pub(crate) const REPAIRING: &str = "REPAIRING";
/// Longest FORMAT or EPOCH file that is read.
pub(crate) const SMALL_FILE_BYTES: u64 = 4096;

/// An open data directory. One process has it at a time: from [`Store::open`] until the store, its partitions and its
/// flush threads are gone.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    cluster_id: Uuid,
    shared: Arc<Shared>,
    partitions: RwLock<HashMap<PartitionId, Arc<Partition>>>,
    /// Those that are being recovered.
    opening: Mutex<HashSet<PartitionId>>,
    /// What tries to open a partition had moved away before they failed: the next one would not find it again.
    cuts: Mutex<HashMap<PartitionId, Cut>>,
}

impl Store {
    /// Opens the data directory `root`, making it if it is missing, and raises its leader epoch durably.
    /// `new_cluster_id` becomes the id of a new directory.
    ///
    /// # Errors
    /// See [`OpenStoreError`].
    pub fn open(
        fs: Arc<dyn Fs>,
        root: &Path,
        config: StoreConfig,
        new_cluster_id: Uuid,
    ) -> Result<Self, OpenStoreError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |cause| OpenStoreError::Io { path, cause }
        };
        fs.create_dir_all(root).map_err(io(root))?;
        // Before the lock, which is a file: somebody else's directory stays as it is.
        refuse_foreign(&*fs, root)?;
        let lock = fs.lock(&root.join("LOCK")).map_err(|cause| match cause.kind() {
            io::ErrorKind::WouldBlock => OpenStoreError::InUse { path: root.to_owned(), holder: cause.to_string() },
            _ => OpenStoreError::Io { path: root.join("LOCK"), cause },
        })?;
        let cluster_id = open_format(&*fs, root, new_cluster_id)?;
        refuse_half_repaired(&*fs, root)?;
        let reserve =
            Reserve::open(Arc::clone(&fs), root, config.reserve_bytes).map_err(io(&root.join(reserve::FILE_NAME)))?;
        let reserve = Arc::new(reserve);
        let epoch = raise_epoch(&*fs, root, &reserve)?;
        for name in ["topics", "state", "trash"] {
            fs.create_dir_all(&root.join(name)).map_err(io(&root.join(name)))?;
        }
        fs.sync_dir(root).map_err(io(root))?;
        empty_trash(&*fs, root);
        if reserve.is_full() {
            tracing::warn!(root = %root.display(), "started on a full disk");
        }
        reserve.refill();
        let flusher =
            Flusher::start(config.flush_threads, config.flush_interval, Arc::clone(&reserve)).map_err(io(root))?;
        let shared = Arc::new(Shared {
            fs,
            epoch,
            flusher,
            open_segments: OpenSegments::new(config.open_segments_max),
            hot_bytes: config.hot_bytes,
            reserve,
            compaction_keys_bytes: config.compaction_keys_bytes,
            _lock: lock,
        });
        let (partitions, opening, cuts) = (RwLock::default(), Mutex::default(), Mutex::default());
        Ok(Self { root: root.to_owned(), cluster_id, shared, partitions, opening, cuts })
    }

    /// The directory's id, for ever.
    #[must_use]
    pub const fn cluster_id(&self) -> Uuid {
        self.cluster_id
    }

    /// The epoch of this start.
    #[must_use]
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.shared.epoch
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Bytes free on its file system.
    ///
    /// # Errors
    /// The disk does not answer.
    pub fn free_bytes(&self) -> io::Result<u64> {
        self.shared.fs.free_bytes(&self.root)
    }

    /// Whether appends are refused because the disk is full; see [`Store::look_for_room`].
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        self.shared.reserve.is_full()
    }

    /// Disk space kept back for a full disk, at the moment. Bytes.
    #[must_use]
    pub fn reserve_held_bytes(&self) -> u64 {
        self.shared.reserve.held_bytes()
    }

    /// Looks now whether a disk that was full has room again, fills the reserve up and lets appends go on if so. The
    /// flush threads look by themselves: every second, or each flush interval while something is appended.
    pub fn look_for_room(&self) {
        self.shared.reserve.refill();
    }

    /// Opens the partition of the state journal.
    ///
    /// # Errors
    /// See [`OpenLogError`].
    pub fn open_state(&self, config: LogConfig) -> Result<(Arc<Partition>, RecoveryReport), OpenLogError> {
        self.open_at(STATE_PARTITION, self.root.join("state"), config, Room::WithReserve)
    }

    /// Opens a partition, making it if it is missing, and recovers its log. What is there may draw on the reserve for
    /// that.
    ///
    /// # Errors
    /// See [`OpenLogError`].
    pub fn open_partition(
        &self,
        id: PartitionId,
        config: LogConfig,
    ) -> Result<(Arc<Partition>, RecoveryReport), OpenLogError> {
        self.open_at(id, self.partition_dir(id), config, Room::WithReserve)
    }

    /// As [`Store::open_partition`], while others are served: this one takes nothing from the reserve, as that would
    /// have their appends refused.
    ///
    /// # Errors
    /// See [`OpenLogError`].
    pub fn open_late(
        &self,
        id: PartitionId,
        config: LogConfig,
    ) -> Result<(Arc<Partition>, RecoveryReport), OpenLogError> {
        self.open_at(id, self.partition_dir(id), config, Room::Free)
    }

    /// An open partition.
    #[must_use]
    pub fn partition(&self, id: PartitionId) -> Option<Arc<Partition>> {
        self.partitions.read().get(&id).cloned()
    }

    /// All open partitions but the state journal's.
    #[must_use]
    pub fn partitions(&self) -> Vec<Arc<Partition>> {
        self.partitions.read().values().filter(|partition| partition.id() != STATE_PARTITION).cloned().collect()
    }

    /// Topic ids that have a directory, whoever knows them.
    ///
    /// # Errors
    /// The disk does not answer.
    pub fn topics_on_disk(&self) -> io::Result<Vec<Uuid>> {
        let entries = self.shared.fs.list(&self.root.join("topics"))?;
        Ok(entries.iter().filter_map(|entry| Uuid::try_parse(&entry.name).ok()).collect())
    }

    /// Whether a topic's directory holds no record: its making was interrupted.
    ///
    /// # Errors
    /// The disk does not answer.
    pub fn topic_is_empty(&self, topic: Uuid) -> io::Result<bool> {
        let fs = &*self.shared.fs;
        for partition in fs.list(&self.topic_dir(topic))? {
            let dir = self.topic_dir(topic).join(&partition.name);
            for entry in if partition.is_dir { fs.list(&dir)? } else { Vec::new() } {
                let is_log = entry.name.ends_with(".log");
                if is_log && !fs.open(&dir.join(&entry.name), fs::OpenMode::Read, 0)?.is_empty()? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Removes a topic with all its partitions. Readers that hold slices keep them.
    ///
    /// # Errors
    /// The disk does not answer; the topic is then still there, or already in the trash and gone after the next start.
    pub fn delete_topic(&self, topic: Uuid) -> io::Result<()> {
        let fs = &*self.shared.fs;
        let trash = self.root.join("trash").join(format!("{topic}-{}", Uuid::new_v4()));
        match fs.rename(&self.topic_dir(topic), &trash) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        self.partitions.write().retain(|id, _| id.topic != topic);
        self.cuts.lock().retain(|id, _| id.topic != topic);
        self.shared.open_segments.remove_topic(topic);
        fs.sync_dir(&self.root.join("topics"))?;
        fs.remove_dir_all(&trash).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
    }

    /// Makes everything durable and ends the flush threads. Appends after this are in the page cache only. Answers how
    /// many partitions could not be made durable; the log says why.
    pub fn close(&self) -> usize {
        let mut failed = 0;
        for partition in self.partitions.read().values() {
            if let Err(error) = partition.close() {
                tracing::error!(partition = %partition.id(), %error, "not closed cleanly");
                failed += 1;
            }
        }
        self.shared.flusher.stop();
        failed
    }

    /// Ends the flush threads; a flush under way ends first. Whoever waits for another one waits for ever: call it when
    /// nobody does.
    pub fn stop_flushing(&self) {
        self.shared.flusher.stop();
    }

    pub(crate) fn fs(&self) -> &dyn Fs {
        &*self.shared.fs
    }

    pub(crate) fn partition_dir(&self, id: PartitionId) -> PathBuf {
        self.topic_dir(id.topic).join(id.partition.to_string())
    }

    fn topic_dir(&self, topic: Uuid) -> PathBuf {
        self.root.join("topics").join(topic.to_string())
    }

    fn open_at(
        &self,
        id: PartitionId,
        dir: PathBuf,
        config: LogConfig,
        room: Room,
    ) -> Result<(Arc<Partition>, RecoveryReport), OpenLogError> {
        let _opening = Opening::begin(self, id).ok_or(OpenLogError::AlreadyOpen(id))?;
        let reserve = &self.shared.reserve;
        let mut cut = self.cuts.lock().remove(&id);
        let leaves_free_bytes = (room == Room::Free).then(|| reserve.margin_bytes());
        let mut recover = || self.recover(id, &dir, &config, leaves_free_bytes, &mut cut);
        let recovered = match holds_segment(&*self.shared.fs, &dir) {
            Ok(true) if room == Room::WithReserve => reserve.with_room(recover),
            // What is new waits for room like any append.
            Ok(false) if reserve.is_full() => Err(io::ErrorKind::StorageFull.into()),
            Ok(_) => recover(),
            Err(cause) => Err(cause),
        };
        self.cuts.lock().extend(cut.map(|cut| (id, cut)));
        let (recovered, report) = recovered.map_err(|cause| OpenLogError::Io { path: dir.clone(), cause })?;
        let partition = Arc::new(Partition::new(id, dir, config, Arc::clone(&self.shared), recovered));
        self.partitions.write().insert(id, Arc::clone(&partition));
        Ok((partition, report))
    }

    fn recover(
        &self,
        id: PartitionId,
        dir: &Path,
        config: &LogConfig,
        leaves_free_bytes: Option<u64>,
        cut: &mut Option<Cut>,
    ) -> io::Result<(partition::Recovered, RecoveryReport)> {
        let fs = &*self.shared.fs;
        if !holds_segment(fs, dir)? {
            create_durably(fs, &self.root, dir)?;
        }
        let quarantine = self.root.join("quarantine");
        let quarantine = &quarantine;
        partition::recover(partition::Place { fs, id, dir, quarantine, config, leaves_free_bytes }, cut)
    }
}

/// What a recovery may take of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Free,
    WithReserve,
}

/// The turn of whoever opens a partition: two recoveries of one log would write over each other.
struct Opening<'a> {
    store: &'a Store,
    id: PartitionId,
}

impl<'a> Opening<'a> {
    /// `None` when the partition is open or being opened.
    fn begin(store: &'a Store, id: PartitionId) -> Option<Self> {
        let mut opening = store.opening.lock();
        // Under the lock: whoever opened it left the set after the partition was there.
        let is_new = store.partition(id).is_none() && opening.insert(id);
        is_new.then(|| Self { store, id })
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.store.opening.lock().remove(&self.id);
    }
}

/// Whether the partition has a segment. One without may have been left by a process that died before its names were
/// durable; a segment is made after that only.
fn holds_segment(fs: &dyn Fs, dir: &Path) -> io::Result<bool> {
    match fs.list(dir) {
        Ok(entries) => Ok(entries.iter().any(|entry| is_segment(&entry.name))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Makes `dir` below `root` with all its names on stable storage: a batch in it may be acknowledged.
pub(crate) fn create_durably(fs: &dyn Fs, root: &Path, dir: &Path) -> io::Result<()> {
    fs.create_dir_all(dir)?;
    for parent in dir.ancestors().skip(1).take_while(|parent| parent.starts_with(root)) {
        fs.sync_dir(parent)?;
    }
    Ok(())
}

/// Reads FORMAT or writes that of a new directory. The file is text, four lines, the last a CRC-32 (IEEE) over those
/// before:
///
/// ```text
/// tripline data directory
/// version 1
/// cluster 00000000-0000-0000-0000-000000000001
/// crc32 4d19be4b
/// ```
fn open_format(fs: &dyn Fs, root: &Path, new_cluster_id: Uuid) -> Result<Uuid, OpenStoreError> {
    let path = root.join("FORMAT");
    match fs::read_whole(fs, &path, SMALL_FILE_BYTES) {
        Ok(bytes) => parse_format(root, &bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            refuse_foreign(fs, root)?;
            sync_names_above(fs, root).map_err(|cause| OpenStoreError::Io { path: root.to_owned(), cause })?;
            fs::replace_file(fs, &path, format_text(new_cluster_id).as_bytes())
                .map_err(|cause| OpenStoreError::Io { path, cause })?;
            Ok(new_cluster_id)
        }
        Err(cause) => Err(OpenStoreError::Io { path, cause }),
    }
}

/// The text of FORMAT.
pub(crate) fn format_text(cluster_id: Uuid) -> String {
    with_checksum(&format!("{FORMAT_TITLE}\nversion {FORMAT_VERSION}\ncluster {cluster_id}\n"))
}

/// The text of EPOCH.
pub(crate) fn epoch_text(epoch: LeaderEpoch) -> String {
    with_checksum(&format!("{epoch}\n"))
}

/// What the text was, when flipping one bit back makes its checksum right. Texts of this length that differ in fewer
/// than four bits never have the same checksum, so there is no second answer.
pub(crate) fn mend_text(bytes: &[u8]) -> Option<String> {
    let mut mended = bytes.to_vec();
    for bit in 0..bytes.len().min(256) * 8 {
        mended[bit / 8] ^= 1 << (bit % 8);
        if let Ok(text) = std::str::from_utf8(&mended)
            && without_checksum(text).is_some()
        {
            return Some(text.to_owned());
        }
        mended[bit / 8] ^= 1 << (bit % 8);
    }
    None
}

fn with_checksum(text: &str) -> String {
    format!("{text}crc32 {:08x}\n", crc32fast::hash(text.as_bytes()))
}

/// The lines before the checksum, when that fits.
fn without_checksum(text: &str) -> Option<&str> {
    const LINE_BYTES: usize = "crc32 00000000\n".len();
    let (body, _) = text.split_at_checked(text.len().checked_sub(LINE_BYTES)?)?;
    (with_checksum(body) == text).then_some(body)
}

const FORMAT_TITLE: &str = "tripline data directory";

pub(crate) fn parse_format(root: &Path, bytes: &[u8]) -> Result<Uuid, OpenStoreError> {
    let foreign = |reason: &str| OpenStoreError::Foreign { path: root.to_owned(), reason: reason.to_owned() };
    let text = std::str::from_utf8(bytes).map_err(|_| foreign("its FORMAT file is not text"))?;
    let mut lines = text.lines();
    if lines.next() != Some(FORMAT_TITLE) {
        return Err(foreign("its FORMAT file does not start with \"tripline data directory\""));
    }
    let version = lines.next().and_then(|line| line.strip_prefix("version ")).and_then(|text| text.parse().ok());
    match version {
        None | Some(0) => return Err(foreign("the second line of its FORMAT file is not \"version N\"")),
        Some(found) if found > FORMAT_VERSION => {
            return Err(OpenStoreError::Newer { path: root.to_owned(), found, known: FORMAT_VERSION });
        }
        Some(_) => {}
    }
    if without_checksum(text).is_none() {
        return Err(foreign("its FORMAT file fails its checksum"));
    }
    let cluster = lines.next().and_then(|line| line.strip_prefix("cluster ")).and_then(|id| Uuid::try_parse(id).ok());
    cluster.ok_or_else(|| foreign("the third line of its FORMAT file is not \"cluster UUID\""))
}

/// Makes the names on the way to a new data directory durable: `create_dir_all` may have made any of them. Ends at the
/// first directory that we may not read, which we did not make.
fn sync_names_above(fs: &dyn Fs, root: &Path) -> io::Result<()> {
    for parent in root.ancestors().skip(1) {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        match fs.sync_dir(parent) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

/// A directory with other things in it and without FORMAT was named by mistake, or lost that file: nothing is put
/// there.
fn refuse_foreign(fs: &dyn Fs, root: &Path) -> Result<(), OpenStoreError> {
    let entries = fs.list(root).map_err(|cause| OpenStoreError::Io { path: root.to_owned(), cause })?;
    if entries.iter().any(|entry| entry.name == "FORMAT") {
        return Ok(());
    }
    let ours = |name: &str| name == "LOCK" || name == "FORMAT.tmp" || name == "lost+found";
    match entries.iter().find(|entry| !ours(&entry.name)) {
        None => Ok(()),
        Some(entry) => Err(OpenStoreError::Foreign {
            path: root.to_owned(),
            reason: format!(
                "it has no FORMAT file and is not empty ({:?} is there); name an empty or new directory",
                entry.name
            ),
        }),
    }
}

/// What an interrupted repair leaves would be taken for something else.
fn refuse_half_repaired(fs: &dyn Fs, root: &Path) -> Result<(), OpenStoreError> {
    match fs.open(&root.join(REPAIRING), fs::OpenMode::Read, 0) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(cause) => Err(OpenStoreError::Io { path: root.join(REPAIRING), cause }),
        Ok(_) => Err(OpenStoreError::Foreign {
            path: root.to_owned(),
            reason: "a repair of it was interrupted; run `tripline repair` again".to_owned(),
        }),
    }
}

/// Reads EPOCH, adds one and makes that durable: (epoch, offset) never names two different records. The file is text,
/// two lines, the last a CRC-32 (IEEE) over the first:
///
/// ```text
/// 7
/// crc32 310b5bd5
/// ```
fn raise_epoch(fs: &dyn Fs, root: &Path, reserve: &Reserve) -> Result<LeaderEpoch, OpenStoreError> {
    let path = root.join("EPOCH");
    let foreign = |reason: &str| OpenStoreError::Foreign { path: root.to_owned(), reason: reason.to_owned() };
    let last = match fs::read_whole(fs, &path, SMALL_FILE_BYTES) {
        Ok(bytes) => {
            parse_epoch(&bytes).ok_or_else(|| foreign("its EPOCH file holds no number or fails its checksum"))?
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // The topics come after the first epoch. With them there were epochs, which must not be given again.
            let entries = fs.list(root).map_err(|cause| OpenStoreError::Io { path: root.to_owned(), cause })?;
            if entries.iter().any(|entry| entry.name == "topics") {
                return Err(foreign("its EPOCH file is missing"));
            }
            LeaderEpoch::NONE
        }
        Err(cause) => return Err(OpenStoreError::Io { path, cause }),
    };
    let epoch = last.next().ok_or_else(|| foreign("it was started 2^31 times; export its topics into a new one"))?;
    let text = epoch_text(epoch);
    reserve
        .with_room(|| fs::replace_file(fs, &path, text.as_bytes()))
        .map_err(|cause| OpenStoreError::Io { path, cause })?;
    Ok(epoch)
}

pub(crate) fn parse_epoch(bytes: &[u8]) -> Option<LeaderEpoch> {
    let text = without_checksum(std::str::from_utf8(bytes).ok()?)?;
    LeaderEpoch::new(text.strip_suffix('\n')?.parse().ok()?)
}

/// What a crash left half-removed. Failing costs space, nothing else.
fn empty_trash(fs: &dyn Fs, root: &Path) {
    let trash = root.join("trash");
    let entries = match fs.list(&trash) {
        Ok(entries) => entries,
        Err(cause) => {
            tracing::warn!(path = %trash.display(), %cause, "trash not emptied");
            return;
        }
    };
    for entry in entries {
        if let Err(cause) = fs.remove_dir_all(&trash.join(&entry.name)) {
            tracing::warn!(path = %trash.join(&entry.name).display(), %cause, "not removed from the trash");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_an_epoch_never_changes_and_damage_is_noticed() {
        let text = with_checksum("7\n");
        assert_eq!(text, "7\ncrc32 310b5bd5\n");
        assert_eq!(parse_epoch(text.as_bytes()), LeaderEpoch::new(7));
        for bit in 0..text.len() * 8 {
            let mut damaged = text.clone().into_bytes();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse_epoch(&damaged), None, "bit {bit}");
        }
        for short in 0..text.len() {
            assert_eq!(parse_epoch(&text.as_bytes()[..short]), None, "{short} bytes");
        }
    }
}
