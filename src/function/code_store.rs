//! Where code lives: `functions/<name>/<version>/` below the data directory, versions 1, 2, 3 … per name.
//!
//! A version appears whole or not at all: it is written to `.tmp`, synced, renamed, and the folder synced. It never
//! changes afterwards (but for the interpreter's `__pycache__`). Old versions go when no instance uses them; the last
//! two stay.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::code::{BYTECODE, CodeBundle};

/// How many of the newest versions are kept though nothing uses them.
const VERSIONS_KEPT: usize = 2;

/// The folder a version is written to before it gets its number.
const STAGING: &str = ".tmp";

/// A failed operation on the code folder.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct CodeStoreError {
    /// What was tried.
    pub action: &'static str,
    /// On which file or folder.
    pub path: PathBuf,
    /// What the system answered.
    pub source: io::Error,
}

impl CodeStoreError {
    fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { action, path: path.to_owned(), source }
    }
}

/// The code folder. Calls block on the disk.
#[derive(Debug)]
pub struct CodeStore {
    directory: PathBuf,
    in_use: Mutex<HashMap<(String, u64), usize>>,
}

/// A version that is in use: it stays on disk while a lease lives.
#[derive(Debug)]
pub struct CodeLease {
    store: Arc<CodeStore>,
    name: String,
    version: u64,
    directory: PathBuf,
}

impl CodeStore {
    /// The store below `directory`, which is created with its first version.
    #[must_use]
    pub fn new(directory: PathBuf) -> Arc<Self> {
        Arc::new(Self { directory, in_use: Mutex::default() })
    }

    /// Whether there ever was code.
    #[must_use]
    pub fn has_held_code(&self) -> bool {
        self.directory.exists()
    }

    /// Writes `bundle` as the next version of `name` and answers its number; durable on return.
    ///
    /// Calls for one name must not overlap.
    ///
    /// # Errors
    /// What the disk refused; no version was added then.
    pub fn put(&self, name: &str, bundle: &CodeBundle) -> Result<u64, CodeStoreError> {
        let folder = self.folder(name);
        fs::create_dir_all(&folder).map_err(CodeStoreError::at("create", &folder))?;
        let staging = folder.join(STAGING);
        remove_tree(&staging)?;
        let version = self.versions(name)?.last().map_or(1, |newest| newest + 1);
        let target = folder.join(version.to_string());
        write_tree(&staging, bundle)?;
        fs::rename(&staging, &target).map_err(CodeStoreError::at("rename", &staging))?;
        sync(&folder)?;
        sync(&self.directory)?;
        Ok(version)
    }

    /// Keeps `version` of `name` on disk while the lease lives.
    ///
    /// # Errors
    /// The version is not there.
    pub fn lease(self: &Arc<Self>, name: &str, version: u64) -> Result<CodeLease, CodeStoreError> {
        *self.in_use.lock().entry((name.to_owned(), version)).or_default() += 1;
        let directory = self.folder(name).join(version.to_string());
        let lease = CodeLease { store: Arc::clone(self), name: name.to_owned(), version, directory };
        fs::metadata(&lease.directory).map_err(CodeStoreError::at("open", &lease.directory))?;
        Ok(lease)
    }

    /// Whether `version` of `name` has exactly the files of `bundle`, so that a new version would change nothing.
    #[must_use]
    pub fn holds(&self, name: &str, version: u64, bundle: &CodeBundle) -> bool {
        let directory = self.folder(name).join(version.to_string());
        count_files(&directory).is_ok_and(|found| found == bundle.file_count())
            && bundle
                .files()
                .all(|(path, contents)| fs::read(directory.join(path)).is_ok_and(|found| found == *contents))
    }

    /// The versions of `name` on disk, oldest first.
    ///
    /// # Errors
    /// The folder exists and cannot be listed.
    pub fn versions(&self, name: &str) -> Result<Vec<u64>, CodeStoreError> {
        let folder = self.folder(name);
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listed => listed.map_err(CodeStoreError::at("list", &folder))?,
        };
        let mut versions = Vec::new();
        for entry in entries {
            let file_name = entry.map_err(CodeStoreError::at("list", &folder))?.file_name();
            versions.extend(file_name.to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        versions.sort_unstable();
        Ok(versions)
    }

    /// Deletes the versions of `name` that nothing uses, but for the newest two.
    ///
    /// # Errors
    /// What the disk refused; the rest is tried again next time.
    pub fn prune(&self, name: &str) -> Result<(), CodeStoreError> {
        let versions = self.versions(name)?;
        let old = &versions[..versions.len().saturating_sub(VERSIONS_KEPT)];
        for &version in old {
            // Held during the deletion, so that no lease begins on a folder that is half gone.
            let in_use = self.in_use.lock();
            if !in_use.contains_key(&(name.to_owned(), version)) {
                remove_tree(&self.folder(name).join(version.to_string()))?;
            }
        }
        Ok(())
    }

    /// Deletes every version of `name`.
    ///
    /// # Errors
    /// What the disk refused.
    pub fn remove(&self, name: &str) -> Result<(), CodeStoreError> {
        remove_tree(&self.folder(name))
    }

    fn folder(&self, name: &str) -> PathBuf {
        assert!(!matches!(name, "" | "." | "..") && !name.contains('/'), "a checked name");
        self.directory.join(name)
    }
}

impl CodeLease {
    /// The number of the version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The folder that holds the code.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for CodeLease {
    fn drop(&mut self) {
        let mut in_use = self.store.in_use.lock();
        let key = (std::mem::take(&mut self.name), self.version);
        if let Some(count) = in_use.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                in_use.remove(&key);
            }
        }
    }
}

fn write_tree(root: &Path, bundle: &CodeBundle) -> Result<(), CodeStoreError> {
    let mut folders = vec![root.to_owned()];
    fs::create_dir_all(root).map_err(CodeStoreError::at("create", root))?;
    for (relative, contents) in bundle.files() {
        let path = root.join(relative);
        let parent = path.parent().expect("a file below root has a parent");
        if !folders.iter().any(|folder| folder == parent) {
            fs::create_dir_all(parent).map_err(CodeStoreError::at("create", parent))?;
            folders.extend(parent.ancestors().take_while(|folder| *folder != root).map(Path::to_owned));
        }
        let mut file = File::create_new(&path).map_err(CodeStoreError::at("create", &path))?;
        file.write_all(contents).and_then(|()| file.sync_all()).map_err(CodeStoreError::at("write", &path))?;
    }
    folders.sort_unstable();
    folders.dedup();
    folders.iter().rev().try_for_each(|folder| sync(folder))
}

fn sync(folder: &Path) -> Result<(), CodeStoreError> {
    File::open(folder).and_then(|opened| opened.sync_all()).map_err(CodeStoreError::at("sync", folder))
}

fn remove_tree(path: &Path) -> Result<(), CodeStoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(CodeStoreError::at("delete", path)),
    }
}

/// Files below `directory` without what the interpreter caches.
fn count_files(directory: &Path) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if entry.file_name() != BYTECODE {
                count += count_files(&entry.path())?;
            }
        } else {
            count += 1;
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::code::CodeLimits;
    use super::*;

    fn bundle(source: &str) -> CodeBundle {
        CodeBundle::parse(&Bytes::from(source.to_owned()), "pkg.notify", CodeLimits::default()).unwrap()
    }

    fn store() -> (tempfile::TempDir, Arc<CodeStore>) {
        let directory = tempfile::tempdir().unwrap();
        let store = CodeStore::new(directory.path().join("functions"));
        (directory, store)
    }

    #[test]
    fn versions_count_up_and_hold_their_own_code() {
        let (_directory, store) = store();
        assert_eq!(store.versions("f").unwrap(), [0; 0]);
        assert_eq!(store.put("f", &bundle("one")).unwrap(), 1);
        assert_eq!(store.put("f", &bundle("two")).unwrap(), 2);
        assert_eq!(store.put("g", &bundle("other")).unwrap(), 1);
        let lease = store.lease("f", 1).unwrap();
        assert_eq!(fs::read_to_string(lease.directory().join("pkg/notify.py")).unwrap(), "one");
        assert!(store.holds("f", 2, &bundle("two")));
        assert!(!store.holds("f", 1, &bundle("two")));
        assert!(!store.holds("f", 3, &bundle("two")));
    }

    #[test]
    fn an_extra_file_makes_code_different_but_a_cache_does_not() {
        let (directory, store) = store();
        store.put("f", &bundle("one")).unwrap();
        let pkg = directory.path().join("functions/f/1/pkg");
        fs::create_dir(pkg.join("__pycache__")).unwrap();
        fs::write(pkg.join("__pycache__/notify.pyc"), "x").unwrap();
        assert!(store.holds("f", 1, &bundle("one")));
        fs::write(pkg.join("more.py"), "x").unwrap();
        assert!(!store.holds("f", 1, &bundle("one")));
    }

    #[test]
    fn pruning_keeps_the_newest_two_and_whatever_is_leased() {
        let (_directory, store) = store();
        for source in ["one", "two", "three", "four", "five"] {
            store.put("f", &bundle(source)).unwrap();
        }
        let (first, second) = (store.lease("f", 2).unwrap(), store.lease("f", 2).unwrap());
        store.prune("f").unwrap();
        assert_eq!(store.versions("f").unwrap(), [2, 4, 5]);
        drop(first);
        store.prune("f").unwrap();
        assert_eq!(store.versions("f").unwrap(), [2, 4, 5], "the second lease still holds it");
        drop(second);
        store.prune("f").unwrap();
        assert_eq!(store.versions("f").unwrap(), [4, 5]);
        assert_eq!(store.put("f", &bundle("six")).unwrap(), 6);
    }

    #[test]
    fn what_a_crash_left_half_written_is_no_version() {
        let (directory, store) = store();
        store.put("f", &bundle("one")).unwrap();
        let staging = directory.path().join("functions/f/.tmp/pkg");
        fs::create_dir_all(&staging).unwrap();
        fs::write(staging.join("stale.py"), "x").unwrap();
        assert_eq!(store.versions("f").unwrap(), [1]);
        assert_eq!(store.put("f", &bundle("two")).unwrap(), 2);
        assert!(store.holds("f", 2, &bundle("two")), "the stale file is not in the new version");
    }

    #[test]
    fn a_missing_version_cannot_be_leased_and_leaves_no_mark() {
        let (_directory, store) = store();
        let error = store.lease("f", 7).unwrap_err();
        assert!(error.to_string().contains("functions/f/7"), "{error}");
        assert!(store.in_use.lock().is_empty());
    }

    #[test]
    fn removing_a_function_removes_all_versions() {
        let (_directory, store) = store();
        store.put("f", &bundle("one")).unwrap();
        store.remove("f").unwrap();
        store.remove("f").unwrap();
        assert_eq!(store.versions("f").unwrap(), [0; 0]);
    }
}
