//! Any bytes as the files of a partition. Invariants: opening, reading and appending never panic; reading ends; what is
//! served has a right checksum and an offset that was asked for; what was there once is there after another start; what
//! is appended is there.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tripline_storage::batch::{BatchBuilder, BatchOptions, BatchView, NewRecord};
use tripline_storage::error::ReadError;
use tripline_storage::fs::SimFs;
use tripline_storage::{LogConfig, Offset, Partition, PartitionId, Store, StoreConfig};
use uuid::Uuid;

const TOPIC: Uuid = Uuid::from_u128(7);
/// Files of an input that are looked at.
const FILES_MAX: usize = 16;

/// A file in an input: kind, base offset, 1 for a checksum of our own kind of file behind the bytes (which mutation
/// does not find), length, each little-endian; then so many bytes, or as many as there are.
struct Named<'a> {
    name: String,
    bytes: &'a [u8],
    checksum: bool,
}

impl<'a> Named<'a> {
    fn parse(input: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let ([kind, base_0, base_1, checksum, len_0, len_1], rest) = input.split_first_chunk()?;
        let base = u16::from_le_bytes([*base_0, *base_1]);
        let (bytes, rest) = rest.split_at(rest.len().min(u16::from_le_bytes([*len_0, *len_1]).into()));
        Some((Self { name: name(*kind, base), bytes, checksum: *checksum == 1 }, rest))
    }
}

fn name(kind: u8, base: u16) -> String {
    match kind {
        0 => "flushed".to_owned(),
        1 => format!("{base:020}.log"),
        2 => format!("{base:020}.index"),
        3 => format!("{base:020}.seal"),
        4 => format!("{base:020}.snapshot"),
        5 => format!("{base:020}.tmp"),
        6 => format!("{base:020}.clean"),
        7 => format!("{base:020}.swap"),
        8 => "compacted".to_owned(),
        _ => "alien".to_owned(),
    }
}

/// Does one input.
pub(crate) fn run(data: &[u8]) {
    let disk = SimFs::new();
    drop(open(&disk));
    let dir = Path::new("/data").join(format!("topics/{TOPIC}/0"));
    let mut rest = data;
    for _ in 0..FILES_MAX {
        let Some((file, behind)) = Named::parse(rest) else { break };
        let mut bytes = file.bytes.to_vec();
        if file.checksum {
            bytes.extend(crc32fast::hash(file.bytes).to_le_bytes());
        }
        disk.write_image(&dir.join(file.name), &bytes).expect("a file in a directory");
        rest = behind;
    }
    let first = read_all(&disk.kill());
    // The first start may cut; the second one has nothing left to do.
    let again = disk.kill();
    drop(open(&again));
    assert_eq!(first, read_all(&again.kill()));
    append(&again.kill());
}

/// Appends, if it opens: the log goes on at its tail.
fn append(disk: &SimFs) {
    let Some((_store, partition)) = open(disk) else { return };
    let mut batch = BatchBuilder::new(BatchOptions::default());
    batch.push(&NewRecord::default()).expect("there is room in it");
    let tail = partition.tail();
    if let Ok(outcome) = partition.append(&batch.finish().expect("a batch"), 1) {
        assert_eq!(outcome.base_offset, tail);
        let read = partition.read_blocking(tail, 4_096).expect("it was appended");
        assert_eq!(read.next, outcome.last_offset.next());
    }
}

fn open(disk: &SimFs) -> Option<(Store, Arc<Partition>)> {
    let config = StoreConfig {
        flush_interval: Duration::from_secs(3600),
        flush_threads: 1,
        reserve_bytes: 0,
        ..StoreConfig::default()
    };
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
