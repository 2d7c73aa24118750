//! What is answered when the disk does not: to a read, to an opening.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests play the user and the operating system")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::*;
use tripline_storage::error::{OpenStoreError, ReadError};
use tripline_storage::fs::SimFs;
use tripline_storage::fs::sim::Fault;
use tripline_storage::{Store, StoreConfig};
use uuid::Uuid;

const RECORDS: u64 = 60;

fn root() -> &'static Path {
    Path::new("/data")
}

fn written() -> SimFs {
    let disk = SimFs::new();
    let store = open_store_on(Arc::new(disk.clone()), root());
    let (partition, _) = open(&store, small_segments());
    append_records(&partition, 0, RECORDS);
    store.close();
    disk.kill()
}

/// All files but the space that is kept back for a full disk, which holds nothing.
fn content(disk: &SimFs) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = disk.paths().into_iter().filter(|path| !path.ends_with("reserve"));
    paths.map(|path| (path.clone(), disk.read_image(&path).unwrap())).collect()
}

#[test]
fn a_read_that_the_disk_refuses_is_an_error_of_that_read_alone() {
    let disk = written();
    // By an error that passes at once, and by one that stays for a while.
    let mut refused = [0, 0];
    for (stays, from) in [0, 20, 59].into_iter().flat_map(|from| [(false, from), (true, from)]) {
        // As many operations as a read takes at the most.
        for nth in 1..=12 {
            let disk = disk.kill();
            let store = open_store_on(Arc::new(disk.clone()), root());
            let (partition, _) = open(&store, small_segments());
            let number = disk.operations() + nth;
            if stays {
                disk.fail_from(number, Fault::Eio)
            } else {
                disk.fail_nth(number, Fault::Eio)
            }
            match partition.read_blocking(offset(from), 1 << 20) {
                Ok(outcome) => assert!(numbers(&outcome.bytes).iter().any(|(record, _)| *record == from)),
                Err(ReadError::Io(cause)) => {
                    refused[usize::from(stays)] += 1;
                    assert!(cause.to_string().contains("os error 5"), "{cause}");
                }
                Err(other) => panic!("from {from}, operation {nth}: {other}"),
            }
            disk.heal();
            assert!(partition.stopped().is_none(), "a read stops nothing");
            assert_records(&partition, 0, RECORDS);
            append_records(&partition, RECORDS, RECORDS + 3);
        }
    }
    assert!(refused[0] < refused[1] && refused[1] > 4, "{refused:?}");
}

#[test]
fn a_directory_that_lost_a_file_a_start_needs_is_refused_untouched_with_the_name() {
    for (name, told) in [("FORMAT", "no FORMAT file"), ("EPOCH", "EPOCH file is missing")] {
        let whole = written();
        let disk = SimFs::new();
        for (path, bytes) in content(&whole).into_iter().filter(|(path, _)| *path != root().join(name)) {
            disk.write_image(&path, &bytes).unwrap();
        }
        let before = content(&disk);
        let refused = Store::open(Arc::new(disk.clone()), root(), StoreConfig::default(), Uuid::nil()).unwrap_err();
        assert!(matches!(refused, OpenStoreError::Foreign { .. }) && refused.to_string().contains(told), "{refused}");
        assert!(content(&disk) == before, "{name}");
    }
}

#[test]
fn a_directory_of_a_newer_release_is_refused_untouched_with_both_versions() {
    let disk = written();
    let path = root().join("FORMAT");
    let text = String::from_utf8(disk.read_image(&path).unwrap()).unwrap();
    // Whatever else it says, and also when its checksum is of a kind that we do not know.
    for newer in [text.replace("version 1", "version 2"), "tripline data directory\nversion 900\n".to_owned()] {
        let disk = SimFs::new();
        for (path, bytes) in content(&written()) {
            disk.write_image(&path, &bytes).unwrap();
        }
        disk.write_image(&path, newer.as_bytes()).unwrap();
        let before = content(&disk);
        let refused = Store::open(Arc::new(disk.clone()), root(), StoreConfig::default(), Uuid::nil()).unwrap_err();
        let OpenStoreError::Newer { found, known, .. } = &refused else { panic!("{refused}") };
        assert!(refused.to_string().contains(&format!("version {found}")) && *known == 1, "{refused}");
        assert!(content(&disk) == before);
    }
}
