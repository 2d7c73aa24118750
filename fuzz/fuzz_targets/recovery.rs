//! Any bytes as the files of a partition. Invariants: opening and reading never panic; reading ends; what is served has a
//! right checksum and an offset that was asked for; what was there once is there after another start.
#![no_main]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use tripline_storage::batch::BatchView;
use tripline_storage::error::ReadError;
use tripline_storage::fs::SimFs;
use tripline_storage::{LogConfig, Offset, Partition, PartitionId, Store, StoreConfig};
use uuid::Uuid;

const TOPIC: Uuid = Uuid::from_u128(7);

/// Which file of a partition holds the bytes.
#[derive(Arbitrary, Debug)]
enum Name {
    Log(u16),
    Index(u16),
    Seal(u16),
    Snapshot(u16),
    Flushed,
    Temporary(u16),
    Alien,
}

#[derive(Arbitrary, Debug)]
struct Named {
    name: Name,
    bytes: Vec<u8>,
    /// Puts a checksum of our own kind of file behind the bytes, which mutation does not find.
    checksum: bool,
}

fuzz_target!(|files: Vec<Named>| {
    let disk = SimFs::new();
    drop(open(&disk));
    let dir = Path::new("/data").join(format!("topics/{TOPIC}/0"));
    for file in files.iter().take(8) {
        let mut bytes = file.bytes.clone();
        if file.checksum {
            bytes.extend(crc32fast::hash(&file.bytes).to_le_bytes());
        }
        disk.write_image(&dir.join(text(&file.name)), &bytes).expect("a file in a directory");
    }
    let first = read_all(&disk.kill());
    // The first start may cut; the second one has nothing left to do.
    let again = disk.kill();
    drop(open(&again));
    assert_eq!(first, read_all(&again.kill()));
});

fn text(name: &Name) -> String {
    match name {
        Name::Log(base) => format!("{base:020}.log"),
        Name::Index(base) => format!("{base:020}.index"),
        Name::Seal(base) => format!("{base:020}.seal"),
        Name::Snapshot(base) => format!("{base:020}.snapshot"),
        Name::Flushed => "flushed".to_owned(),
        Name::Temporary(base) => format!("{base:020}.tmp"),
        Name::Alien => "alien".to_owned(),
    }
}

fn open(disk: &SimFs) -> Option<(Store, Arc<Partition>)> {
    let config = StoreConfig { flush_interval: Duration::from_secs(3600), flush_threads: 1, reserve_bytes: 0, ..StoreConfig::default() };
    let store = Store::open(Arc::new(disk.clone()), Path::new("/data"), config, Uuid::from_u128(1)).expect("its own");
    let (partition, _) = store.open_partition(PartitionId { topic: TOPIC, partition: 0 }, LogConfig::default()).ok()?;
    Some((store, partition))
}

/// The offsets that are served, and the tail.
fn read_all(disk: &SimFs) -> Option<(Vec<(i64, i64)>, Offset)> {
    let (_store, partition) = open(disk)?;
    let mut served = Vec::new();
    let mut at = partition.log_start();
    while at < partition.tail() {
        at = match partition.read_blocking(at, 4_096) {
            Ok(outcome) => {
                assert!(outcome.next > at && outcome.next <= partition.tail());
                served.extend(checked(&outcome.bytes, at));
                outcome.next
            }
            Err(ReadError::Damaged { to, .. }) => {
                assert!(to > at);
                to
            }
            Err(_) => break,
        };
    }
    let _ = partition.offset_for_time(0);
    Some((served, partition.tail()))
}

fn checked(mut bytes: &[u8], at: Offset) -> Vec<(i64, i64)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (view, rest) = BatchView::parse(bytes).expect("a served batch has its shape");
        view.verify_crc().expect("a served batch was verified");
        assert!(view.header().last_offset() >= at);
        found.push((view.header().base_offset.get(), view.header().last_offset().get()));
        bytes = rest;
    }
    found
}
