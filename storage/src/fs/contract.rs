//! The contract of [`Fs`] and [`File`], held against every disk there is.

use super::*;

/// Runs `test` on the operating system and on a simulated disk, each with an empty directory of its own.
fn on_every_disk(test: impl Fn(&dyn Fs, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    test(&OsFs, dir.path());
    let sim = SimFs::new();
    sim.create_dir_all(Path::new("/disk")).unwrap();
    test(&sim, Path::new("/disk"));
}

fn kind<T: fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
    result.unwrap_err().kind()
}

fn create(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> Arc<dyn File> {
    let file = fs.open(path, OpenMode::CreateNew, 1 << 20).unwrap();
    file.write_at(&[IoSlice::new(bytes)], 0).unwrap();
    file
}

fn names(fs: &dyn Fs, dir: &Path) -> Vec<(String, bool)> {
    let mut names: Vec<_> = fs.list(dir).unwrap().into_iter().map(|entry| (entry.name, entry.is_dir)).collect();
    names.sort();
    names
}

#[test]
fn opening_tells_missing_and_existing_files_apart() {
    on_every_disk(|fs, root| {
        let path = root.join("f");
        for mode in [OpenMode::Read, OpenMode::Write] {
            assert_eq!(kind(fs.open(&path, mode, 0)), io::ErrorKind::NotFound);
        }
        create(fs, &path, b"abc");
        assert_eq!(kind(fs.open(&path, OpenMode::CreateNew, 0)), io::ErrorKind::AlreadyExists);
        for mode in [OpenMode::Read, OpenMode::Write] {
            assert_eq!(fs.open(&path, mode, 0).unwrap().len().unwrap(), 3);
        }
        assert_eq!(kind(fs.open(&root.join("no/f"), OpenMode::CreateNew, 0)), io::ErrorKind::NotFound);
        assert_eq!(kind(fs.open(&path.join("f"), OpenMode::CreateNew, 0)), io::ErrorKind::NotADirectory);
        assert_eq!(kind(fs.open(root, OpenMode::Write, 0)), io::ErrorKind::IsADirectory);
    });
}

#[test]
fn a_file_opened_for_reading_refuses_every_change() {
    on_every_disk(|fs, root| {
        create(fs, &root.join("f"), b"abc");
        let file = fs.open(&root.join("f"), OpenMode::Read, 0).unwrap();
        assert!(file.write_at(&[IoSlice::new(b"x")], 0).is_err());
        assert!(file.reserve(100).is_err());
        assert!(file.truncate(1).is_err());
        assert_eq!(file.slice(0..3).unwrap(), &b"abc"[..]);
    });
}

#[test]
fn parts_are_written_one_behind_the_other_and_seen_by_every_handle_at_once() {
    on_every_disk(|fs, root| {
        let file = create(fs, &root.join("f"), b"");
        assert!(file.is_empty().unwrap());
        let reader = fs.open(&root.join("f"), OpenMode::Read, 0).unwrap();
        file.write_at(&[IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cde")], 4094).unwrap();
        assert_eq!(reader.len().unwrap(), 4099);
        assert_eq!(reader.slice(4092..4099).unwrap(), &b"\0\0abcde"[..]);
        let mut middle = [0; 3];
        reader.read_exact_at(&mut middle, 4095).unwrap();
        assert_eq!(&middle, b"bcd");
    });
}

#[test]
fn more_parts_than_one_system_call_takes_are_all_written() {
    on_every_disk(|fs, root| {
        let file = create(fs, &root.join("f"), b"");
        let bytes: Vec<[u8; 3]> = (0..2_500_u16).map(|i| [i as u8, (i >> 8) as u8, 7]).collect();
        let parts: Vec<_> = bytes.iter().map(|part| IoSlice::new(part)).collect();
        file.write_at(&parts, 5).unwrap();
        assert_eq!(file.slice(5..7_505).unwrap(), bytes.concat());
    });
}

#[test]
fn an_empty_write_changes_nothing() {
    on_every_disk(|fs, root| {
        let file = create(fs, &root.join("f"), b"abc");
        file.write_at(&[], 100).unwrap();
        file.write_at(&[IoSlice::new(b"")], 100).unwrap();
        assert_eq!(file.len().unwrap(), 3);
    });
}

#[test]
fn reads_beyond_the_end_are_unexpected_ends() {
    on_every_disk(|fs, root| {
        create(fs, &root.join("f"), b"abc");
        let file = fs.open(&root.join("f"), OpenMode::Read, 0).unwrap();
        for start in [1, 3, 100_000, u64::MAX - 3] {
            assert_eq!(kind(file.slice(start..start + 3)), io::ErrorKind::UnexpectedEof, "from {start}");
        }
        assert_eq!(kind(file.read_exact_at(&mut [0; 4], 0)), io::ErrorKind::UnexpectedEof);
        assert_eq!(file.slice(3..3).unwrap().len(), 0);
    });
}

#[test]
fn a_slice_keeps_its_bytes_when_file_and_name_are_gone() {
    on_every_disk(|fs, root| {
        let file = create(fs, &root.join("f"), b"kept");
        let slice = file.slice(0..4).unwrap();
        drop(file);
        fs.remove_file(&root.join("f")).unwrap();
        assert_eq!(slice, &b"kept"[..]);
    });
}

#[test]
fn reserved_space_reads_as_zero_and_never_shortens() {
    on_every_disk(|fs, root| {
        let file = create(fs, &root.join("f"), b"abc");
        file.reserve(10_000).unwrap();
        assert_eq!(file.len().unwrap(), 10_000);
        file.reserve(5_000).unwrap();
        assert_eq!(file.len().unwrap(), 10_000);
        assert_eq!(file.slice(0..3).unwrap(), &b"abc"[..]);
        assert!(file.slice(3..10_000).unwrap().iter().all(|&byte| byte == 0));
    });
}

#[test]
fn what_was_cut_off_does_not_come_back_when_the_file_grows() {
    on_every_disk(|fs, root| {
        let file = create(fs, &root.join("f"), &[7; 9_000]);
        file.truncate(4_100).unwrap();
        assert_eq!(file.len().unwrap(), 4_100);
        file.sync_data().unwrap();
        file.reserve(9_000).unwrap();
        let mut expected = vec![7; 4_100];
        expected.resize(9_000, 0);
        let fresh = fs.open(&root.join("f"), OpenMode::Read, 0).unwrap();
        assert_eq!(fresh.slice(0..9_000).unwrap(), expected);
    });
}

#[test]
fn directories_are_made_with_their_parents_and_listed() {
    on_every_disk(|fs, root| {
        let deep = root.join("a/b");
        assert_eq!(kind(fs.list(&deep)), io::ErrorKind::NotFound);
        fs.create_dir_all(&deep).unwrap();
        fs.create_dir_all(&deep).unwrap();
        create(fs, &root.join("a/f"), b"");
        assert_eq!(names(fs, root), [("a".to_owned(), true)]);
        assert_eq!(names(fs, &root.join("a")), [("b".to_owned(), true), ("f".to_owned(), false)]);
        assert_eq!(names(fs, &deep), []);
        fs.sync_dir(&deep).unwrap();
        assert_eq!(kind(fs.sync_dir(&root.join("no"))), io::ErrorKind::NotFound);
        assert!(fs.create_dir_all(&root.join("a/f/x")).is_err());
    });
}

#[test]
fn a_rename_replaces_a_file_whose_open_handles_keep_the_old_one() {
    on_every_disk(|fs, root| {
        let old = create(fs, &root.join("to"), b"old");
        create(fs, &root.join("from"), b"new");
        fs.rename(&root.join("from"), &root.join("to")).unwrap();
        assert_eq!(names(fs, root), [("to".to_owned(), false)]);
        let new = fs.open(&root.join("to"), OpenMode::Read, 0).unwrap();
        assert_eq!(new.slice(0..3).unwrap(), &b"new"[..]);
        assert_eq!(old.slice(0..3).unwrap(), &b"old"[..]);
        assert_eq!(kind(fs.rename(&root.join("from"), &root.join("x"))), io::ErrorKind::NotFound);
    });
}

#[test]
fn a_renamed_directory_takes_its_files_along() {
    on_every_disk(|fs, root| {
        fs.create_dir_all(&root.join("topics/t")).unwrap();
        fs.create_dir_all(&root.join("trash")).unwrap();
        let file = create(fs, &root.join("topics/t/f"), b"abc");
        fs.rename(&root.join("topics/t"), &root.join("trash/1")).unwrap();
        assert_eq!(names(fs, &root.join("topics")), []);
        assert_eq!(names(fs, &root.join("trash/1")), [("f".to_owned(), false)]);
        file.write_at(&[IoSlice::new(b"d")], 3).unwrap();
        let moved = fs.open(&root.join("trash/1/f"), OpenMode::Read, 0).unwrap();
        assert_eq!(moved.slice(0..4).unwrap(), &b"abcd"[..]);
    });
}

#[test]
fn renames_that_make_no_sense_are_refused() {
    on_every_disk(|fs, root| {
        fs.create_dir_all(&root.join("full/sub")).unwrap();
        fs.create_dir_all(&root.join("dir")).unwrap();
        create(fs, &root.join("f"), b"");
        let rename = |from: &str, to: &str| kind(fs.rename(&root.join(from), &root.join(to)));
        assert_eq!(rename("f", "dir"), io::ErrorKind::IsADirectory);
        assert_eq!(rename("dir", "f"), io::ErrorKind::NotADirectory);
        assert_eq!(rename("dir", "full"), io::ErrorKind::DirectoryNotEmpty);
        assert_eq!(rename("full", "full/sub/x"), io::ErrorKind::InvalidInput);
        fs.rename(&root.join("f"), &root.join("f")).unwrap();
        assert_eq!(names(fs, root).len(), 3);
    });
}

#[test]
fn a_removed_file_is_gone_by_name_and_there_for_its_handles() {
    on_every_disk(|fs, root| {
        let file = create(fs, &root.join("f"), b"abc");
        fs.remove_file(&root.join("f")).unwrap();
        assert_eq!(kind(fs.open(&root.join("f"), OpenMode::Read, 0)), io::ErrorKind::NotFound);
        assert_eq!(kind(fs.remove_file(&root.join("f"))), io::ErrorKind::NotFound);
        assert_eq!(file.slice(0..3).unwrap(), &b"abc"[..]);
        create(fs, &root.join("f"), b"other");
        assert_eq!(file.len().unwrap(), 3);
    });
}

#[test]
fn a_directory_is_removed_with_all_below_it() {
    on_every_disk(|fs, root| {
        fs.create_dir_all(&root.join("a/b/c")).unwrap();
        create(fs, &root.join("a/b/f"), b"abc");
        create(fs, &root.join("g"), b"abc");
        assert!(fs.remove_file(&root.join("a")).is_err());
        fs.remove_dir_all(&root.join("a")).unwrap();
        assert_eq!(names(fs, root), [("g".to_owned(), false)]);
        assert_eq!(kind(fs.remove_dir_all(&root.join("a"))), io::ErrorKind::NotFound);
        assert!(fs.remove_dir_all(&root.join("g")).is_err());
    });
}

#[test]
fn a_lock_is_held_by_one_until_it_is_dropped() {
    on_every_disk(|fs, root| {
        let path = root.join("LOCK");
        let held = fs.lock(&path).unwrap();
        assert_eq!(kind(fs.lock(&path)), io::ErrorKind::WouldBlock);
        fs.lock(&root.join("LOCK2")).unwrap();
        drop(held);
        fs.lock(&path).unwrap();
        assert_eq!(kind(fs.lock(&root.join("no/LOCK"))), io::ErrorKind::NotFound);
    });
}

#[test]
fn a_shared_lock_keeps_out_who_wants_it_alone_and_no_other_that_shares() {
    on_every_disk(|fs, root| {
        let path = root.join("LOCK");
        assert_eq!(kind(fs.lock_shared(&path)), io::ErrorKind::NotFound, "nothing is made");
        drop(fs.lock(&path).unwrap());
        let (first, second) = (fs.lock_shared(&path).unwrap(), fs.lock_shared(&path).unwrap());
        drop(first);
        assert_eq!(kind(fs.lock(&path)), io::ErrorKind::WouldBlock);
        drop(second);
        let alone = fs.lock(&path).unwrap();
        assert_eq!(kind(fs.lock_shared(&path)), io::ErrorKind::WouldBlock);
        drop(alone);
        fs.lock_shared(&path).unwrap();
    });
}

#[test]
fn free_space_is_known_for_places_that_exist() {
    on_every_disk(|fs, root| {
        assert!(fs.free_bytes(root).unwrap() > 0);
        assert_eq!(kind(fs.free_bytes(&root.join("no"))), io::ErrorKind::NotFound);
    });
}

#[test]
fn a_small_file_is_read_whole_and_a_longer_one_than_allowed_is_not() {
    on_every_disk(|fs, root| {
        create(fs, &root.join("f"), b"abc");
        assert_eq!(read_whole(fs, &root.join("f"), 3).unwrap(), b"abc");
        let error = read_whole(fs, &root.join("f"), 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("has 3 bytes, at most 2"), "{error}");
    });
}

#[test]
fn a_file_is_replaced_also_when_an_earlier_try_left_something() {
    on_every_disk(|fs, root| {
        let path = root.join("f.state");
        create(fs, &root.join("f.tmp"), b"left by a crash, and longer");
        for bytes in [&b"one"[..], b"two two"] {
            replace_file(fs, &path, bytes).unwrap();
            assert_eq!(read_whole(fs, &path, 100).unwrap(), bytes);
        }
        assert_eq!(names(fs, root), [("f.state".to_owned(), false)]);
    });
}
