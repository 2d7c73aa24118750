//! What a batch costs on its way in and out, by record size and count. Throughput is in bytes of records, not
//! compressed.
//!
//! `cargo bench -p tripline-storage --bench batch`

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main, measurement};
use tripline_storage::batch::{
    BatchBuilder, BatchLimits, BatchOptions, BatchView, CheckedBatch, Compression, NewRecord, Validation,
};

const SEED: u64 = 0x7219_11e0;
/// Record size in bytes and record count; the largest batch has 1 MB.
const GRID: [(usize, usize); 5] = [(100, 1), (100, 1000), (1024, 1), (1024, 100), (10_240, 100)];

/// Words from a vocabulary of 256: codecs that look for repetitions find some, as in text.
fn values(size_bytes: usize, count: usize) -> Vec<Vec<u8>> {
    let mut rng = fastrand::Rng::with_seed(SEED);
    let words: Vec<Vec<u8>> = (0..256).map(|_| (0..rng.usize(3..10)).map(|_| b'a' + rng.u8(..26)).collect()).collect();
    let mut value = || {
        let mut text: Vec<u8> = Vec::new();
        while text.len() < size_bytes {
            text.extend_from_slice(&words[rng.usize(..words.len())]);
            text.push(b' ');
        }
        text.truncate(size_bytes);
        text
    };
    (0..count).map(|_| value()).collect()
}

fn build(values: &[Vec<u8>], compression: Compression) -> CheckedBatch {
    let mut builder = BatchBuilder::new(BatchOptions { compression, ..BatchOptions::default() });
    for value in values {
        let record = NewRecord { timestamp_ms: 1_700_000_000_000, value: Some(value), ..NewRecord::default() };
        builder.push(&record).expect("the grid stays far below the limits");
    }
    builder.finish().expect("the grid has no empty batch")
}

fn grid(
    c: &mut Criterion,
    name: &str,
    mut bench: impl FnMut(&mut BenchmarkGroup<'_, measurement::WallTime>, BenchmarkId, Vec<Vec<u8>>),
) {
    let mut group = c.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(20);
    for (size_bytes, count) in GRID {
        group.throughput(Throughput::Bytes((size_bytes * count) as u64));
        let id = BenchmarkId::from_parameter(format!("{size_bytes}B x {count}"));
        bench(&mut group, id, values(size_bytes, count));
    }
    group.finish();
}

fn check(bytes: &Bytes, validation: Validation) -> CheckedBatch {
    CheckedBatch::check(bytes.clone(), &BatchLimits::default(), validation).expect("the batch was built to be valid")
}

fn bench_check(c: &mut Criterion) {
    grid(c, "check header", |group, id, values| {
        let batch = build(&values, Compression::None);
        group.bench_function(id, |b| b.iter(|| check(black_box(batch.bytes()), Validation::Header)));
    });
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd, Compression::Snappy] {
        grid(c, &format!("check {compression}"), |group, id, values| {
            let batch = build(&values, compression);
            group.bench_function(id, |b| b.iter(|| check(black_box(batch.bytes()), Validation::Records)));
        });
    }
}

fn sum_of_values(bytes: &[u8]) -> usize {
    let (view, _) = BatchView::parse(bytes).expect("the batch was built to be valid");
    let records = view.records(&BatchLimits::default()).expect("uncompressed records are borrowed");
    records.iter().map(|record| record.expect("every record is valid").value().map_or(0, <[u8]>::len)).sum()
}

fn bench_records(c: &mut Criterion) {
    grid(c, "walk records", |group, id, values| {
        let batch = build(&values, Compression::None);
        group.bench_function(id, |b| b.iter(|| sum_of_values(black_box(batch.bytes()))));
    });
}

fn bench_build(c: &mut Criterion) {
    for compression in [Compression::None, Compression::Lz4] {
        grid(c, &format!("build {compression}"), |group, id, values| {
            group.bench_function(id, |b| b.iter(|| build(black_box(&values), compression)));
        });
    }
}

criterion_group!(benches, bench_check, bench_records, bench_build);
criterion_main!(benches);
