//! The names on a simulated disk, what a power cut leaves of them, and the space they take.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use super::content::{FileNode, PAGE_BYTES};
use super::fault::{Faults, Lie};
use super::random::Random;

/// Names a file or directory for ever, whatever it is called. Never used again.
pub(super) type NodeId = u64;

const ROOT: NodeId = 0;

/// The longest file, in bytes: positions are signed to the operating system.
const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// The space of a disk that nobody limited: 1 TiB.
const CAPACITY_BYTES_DEFAULT: u64 = 1 << 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Dir(NodeId),
    File(NodeId),
}

type Names = BTreeMap<String, Entry>;

#[derive(Clone, Debug, Default)]
struct DirNode {
    live: Names,
    durable: Names,
}

/// A name in a directory.
#[derive(Clone, Debug)]
struct Place {
    dir: NodeId,
    name: String,
}

/// One step of the journal: a name made, removed, or both at once (a rename).
#[derive(Clone, Debug)]
struct Change {
    taken: Option<Place>,
    given: Option<(Place, Entry)>,
}

impl Change {
    fn dirs(&self) -> impl Iterator<Item = NodeId> {
        let given = self.given.as_ref().map(|(place, _)| place.dir);
        self.taken.as_ref().map(|place| place.dir).into_iter().chain(given)
    }
}

/// How a file is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Locked {
    Exclusive,
    /// By so many.
    Shared(usize),
}

/// All of a disk.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    dirs: BTreeMap<NodeId, DirNode>,
    files: BTreeMap<NodeId, FileNode>,
    /// Changes of names that no sync made durable yet, oldest first.
    journal: Vec<Change>,
    next_id: NodeId,
    pub(super) locks: BTreeMap<NodeId, Locked>,
    pub(super) capacity_bytes: u64,
    pub(super) now: SystemTime,
    pub(super) faults: Faults,
    /// Goes on in the images: it is a habit of the disk.
    pub(super) lie: Option<Lie>,
}

impl Disk {
    pub(super) fn new() -> Self {
        Self {
            dirs: BTreeMap::from([(ROOT, DirNode::default())]),
            files: BTreeMap::new(),
            journal: Vec::new(),
            next_id: ROOT + 1,
            locks: BTreeMap::new(),
            capacity_bytes: CAPACITY_BYTES_DEFAULT,
            now: SystemTime::UNIX_EPOCH,
            faults: Faults::default(),
            lie: None,
        }
    }

    // ---- names -------------------------------------------------------------------------------------------------

    pub(super) fn names(&self, path: &Path) -> io::Result<&Names> {
        Ok(&self.dirs[&self.dir(path)?].live)
    }

    pub(super) fn find_file(&self, path: &Path) -> io::Result<NodeId> {
        match self.find(path)? {
            Entry::File(id) => Ok(id),
            Entry::Dir(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    pub(super) fn find(&self, path: &Path) -> io::Result<Entry> {
        let mut entry = Entry::Dir(ROOT);
        for name in components(path)? {
            let Entry::Dir(dir) = entry else { return Err(io::ErrorKind::NotADirectory.into()) };
            entry = self.entry(dir, name).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(entry)
    }

    fn entry(&self, dir: NodeId, name: &str) -> Option<Entry> {
        self.dirs[&dir].live.get(name).copied()
    }

    fn dir(&self, path: &Path) -> io::Result<NodeId> {
        match self.find(path)? {
            Entry::Dir(id) => Ok(id),
            Entry::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn place(&self, path: &Path) -> io::Result<Place> {
        let (Some(parent), Some(name)) = (path.parent(), components(path)?.pop()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        Ok(Place { dir: self.dir(parent)?, name: name.to_owned() })
    }

    pub(super) fn create_file(&mut self, path: &Path) -> io::Result<NodeId> {
        let place = self.place(path)?;
        if self.entry(place.dir, &place.name).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = self.new_id();
        self.files.insert(id, FileNode::new(self.now));
        self.change(Change { taken: None, given: Some((place, Entry::File(id))) });
        Ok(id)
    }

    pub(super) fn create_dirs(&mut self, path: &Path) -> io::Result<()> {
        let mut dir = ROOT;
        for name in components(path)? {
            dir = match self.entry(dir, name) {
                Some(Entry::Dir(id)) => id,
                Some(Entry::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => self.create_dir(Place { dir, name: name.to_owned() }),
            };
        }
        Ok(())
    }

    fn create_dir(&mut self, place: Place) -> NodeId {
        let id = self.new_id();
        self.dirs.insert(id, DirNode::default());
        self.change(Change { taken: None, given: Some((place, Entry::Dir(id))) });
        id
    }

    const fn new_id(&mut self) -> NodeId {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let entry = self.find(from)?;
        let (taken, given) = (self.place(from)?, self.place(to)?);
        match (entry, self.entry(given.dir, &given.name)) {
            (_, Some(target)) if target == entry => return Ok(()),
            (Entry::Dir(_), _) if to.starts_with(from) => return Err(io::ErrorKind::InvalidInput.into()),
            (Entry::Dir(_), Some(Entry::File(_))) => return Err(io::ErrorKind::NotADirectory.into()),
            (Entry::File(_), Some(Entry::Dir(_))) => return Err(io::ErrorKind::IsADirectory.into()),
            (Entry::Dir(_), Some(Entry::Dir(id))) if !self.dirs[&id].live.is_empty() => {
                return Err(io::ErrorKind::DirectoryNotEmpty.into());
            }
            _ => {}
        }
        self.change(Change { taken: Some(taken), given: Some((given, entry)) });
        Ok(())
    }

    pub(super) fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        self.find_file(path)?;
        self.remove(path)
    }

    /// Removes a directory that has become empty.
    pub(super) fn remove_dir(&mut self, path: &Path) -> io::Result<()> {
        if !self.names(path)?.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        self.remove(path)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        let place = self.place(path)?;
        self.change(Change { taken: Some(place), given: None });
        self.collect();
        Ok(())
    }

    fn change(&mut self, change: Change) {
        for gone in apply(&change, &mut self.dirs, |dir| &mut dir.live) {
            self.set_linked(gone, false);
        }
        if let Some((_, entry)) = change.given {
            self.set_linked(entry, true);
        }
        self.journal.push(change);
    }

    fn set_linked(&mut self, entry: Entry, linked: bool) {
        if let Entry::File(id) = entry {
            self.file(id).linked = linked;
        }
    }

    /// The paths of all files, sorted.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        let mut todo = vec![(PathBuf::from("/"), ROOT)];
        while let Some((path, dir)) = todo.pop() {
            for (name, entry) in &self.dirs[&dir].live {
                match entry {
                    Entry::Dir(id) => todo.push((path.join(name), *id)),
                    Entry::File(_) => paths.push(path.join(name)),
                }
            }
        }
        paths.sort();
        paths
    }

    // ---- files and space ---------------------------------------------------------------------------------------

    pub(super) fn file(&mut self, id: NodeId) -> &mut FileNode {
        self.files.get_mut(&id).expect("a node lives as long as a name or a handle leads to it")
    }

    pub(super) fn free_bytes(&self) -> u64 {
        let used = self.files.values().filter(|file| file.linked || file.handles > 0);
        let used_bytes = used.map(FileNode::allocated_bytes).fold(0, u64::saturating_add);
        self.capacity_bytes.saturating_sub(used_bytes)
    }

    /// How long the file can become before the disk is full. Holes take space here.
    fn len_max(&mut self, id: NodeId) -> u64 {
        let free_bytes = self.free_bytes() / PAGE_BYTES * PAGE_BYTES;
        self.file(id).allocated_bytes().saturating_add(free_bytes)
    }

    /// Writes what there is room for.
    pub(super) fn write(&mut self, id: NodeId, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).filter(|&end| end <= FILE_BYTES_MAX);
        let end = end.ok_or(io::ErrorKind::InvalidInput)?;
        let room = if end <= self.file(id).len() { end } else { self.len_max(id) };
        let count = room.saturating_sub(offset).min(bytes.len() as u64) as usize;
        self.file(id).write(&bytes[..count], offset);
        self.touch(id);
        if count < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    pub(super) fn reserve(&mut self, id: NodeId, len_bytes: u64) -> io::Result<()> {
        if len_bytes <= self.file(id).len() {
            return Ok(());
        }
        if len_bytes > self.len_max(id) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.set_len(id, len_bytes)
    }

    pub(super) fn set_len(&mut self, id: NodeId, len_bytes: u64) -> io::Result<()> {
        if len_bytes > FILE_BYTES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.file(id).set_len(len_bytes);
        self.touch(id);
        Ok(())
    }

    fn touch(&mut self, id: NodeId) {
        self.file(id).modified = self.now;
    }

    pub(super) fn close(&mut self, id: NodeId) {
        let file = self.file(id);
        file.handles -= 1;
        // What has a name is kept by it: a close is common, a collection goes over the whole disk.
        if file.handles == 0 && !file.linked {
            self.collect();
        }
    }

    /// Puts a file on the disk as if it had always been there.
    pub(super) fn write_image(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let id = match self.find_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.create_dirs(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
                let id = self.create_file(path)?;
                path.ancestors().skip(1).try_for_each(|dir| self.sync_dir(dir))?;
                id
            }
            found => found?,
        };
        self.file(id).set_image(bytes);
        Ok(())
    }

    // ---- durability --------------------------------------------------------------------------------------------

    /// Makes the names of a directory durable. A rename between two directories is one step of the journal: syncing
    /// either makes it durable in both, with what came before it there, as ext4 and XFS do.
    pub(super) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        let mut reached = BTreeSet::from([self.dir(path)?]);
        let (mut synced, mut unsynced) = (Vec::new(), Vec::new());
        for change in std::mem::take(&mut self.journal).into_iter().rev() {
            if change.dirs().any(|dir| reached.contains(&dir)) {
                reached.extend(change.dirs());
                synced.push(change);
            } else {
                unsynced.push(change);
            }
        }
        self.journal = unsynced.into_iter().rev().collect();
        synced.iter().rev().for_each(|change| self.make_durable(change));
        self.collect();
        Ok(())
    }

    fn make_durable(&mut self, change: &Change) {
        apply(change, &mut self.dirs, |dir| &mut dir.durable);
    }

    /// The disk as a new process finds it after this one died: everything is there, nothing is open or locked.
    pub(super) fn after_kill(&self) -> Self {
        let mut image = Self { faults: Faults::default(), locks: BTreeMap::new(), ..self.clone() };
        image.files.values_mut().for_each(|file| file.handles = 0);
        image.collect();
        image
    }

    /// The disk as it may be found after a power cut.
    pub(super) fn after_power_cut(&self, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut image = self.after_kill();
        for change in self.surviving_changes(&mut random) {
            image.make_durable(change);
        }
        image.journal.clear();
        image.dirs.values_mut().for_each(|dir| dir.live.clone_from(&dir.durable));
        image.files.values_mut().for_each(|file| file.lose_power(&mut random));
        image.collect();
        image.files.values_mut().for_each(|file| file.linked = true);
        image
    }

    /// Of each directory's changes a prefix; one that is lost in one directory is lost in both.
    fn surviving_changes(&self, random: &mut Random) -> Vec<&Change> {
        let mut counts = BTreeMap::new();
        for dir in self.journal.iter().flat_map(Change::dirs) {
            *counts.entry(dir).or_insert(0) += 1;
        }
        let mut left: BTreeMap<NodeId, u64> =
            counts.into_iter().map(|(dir, count)| (dir, random.below(count + 1))).collect();
        let survives = |change: &&Change| {
            let kept = change.dirs().all(|dir| left[&dir] > 0);
            for dir in change.dirs() {
                left.entry(dir).and_modify(|count| *count = if kept { count.saturating_sub(1) } else { 0 });
            }
            kept
        };
        self.journal.iter().filter(survives).collect()
    }

    /// Forgets what neither a name, seen or durable or on its way, nor a handle leads to.
    fn collect(&mut self) {
        self.journal.retain(|change| change.dirs().any(|dir| self.dirs.contains_key(&dir)));
        let mut reached = BTreeSet::new();
        let mut todo = vec![Entry::Dir(ROOT)];
        todo.extend(self.journal.iter().filter_map(|change| change.given.as_ref()).map(|(_, entry)| *entry));
        while let Some(entry) = todo.pop() {
            let (Entry::Dir(id) | Entry::File(id)) = entry;
            if reached.insert(id)
                && let Some(dir) = self.dirs.get(&id)
            {
                todo.extend(dir.live.values().chain(dir.durable.values()));
            }
        }
        let dirs_before = self.dirs.len();
        self.dirs.retain(|id, _| reached.contains(id));
        self.files.retain(|id, file| file.handles > 0 || reached.contains(id));
        if self.dirs.len() < dirs_before {
            // What is on its way in the directories that went leads nowhere any more.
            self.collect();
        }
    }
}

/// Carries out `change` on one side of the directories that still exist; returns what lost its name.
fn apply(change: &Change, dirs: &mut BTreeMap<NodeId, DirNode>, side: fn(&mut DirNode) -> &mut Names) -> Vec<Entry> {
    let mut lost = Vec::new();
    if let Some(place) = &change.taken {
        lost.extend(dirs.get_mut(&place.dir).and_then(|dir| side(dir).remove(&place.name)));
    }
    if let Some((place, entry)) = &change.given {
        lost.extend(dirs.get_mut(&place.dir).and_then(|dir| side(dir).insert(place.name.clone(), *entry)));
    }
    lost
}

fn components(path: &Path) -> io::Result<Vec<&str>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => names.push(name.to_str().ok_or(io::ErrorKind::InvalidInput)?),
            Component::ParentDir | Component::Prefix(_) => return Err(io::ErrorKind::InvalidInput.into()),
        }
    }
    Ok(names)
}
