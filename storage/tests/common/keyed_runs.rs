//! What a seed does to a compacted log.

use tripline_storage::LogConfig;
use tripline_storage::fs::sim::{Fault, Lie};

use crate::keyed_world::{Keyed, Operation, TOMBSTONE_MS, Violation, config};
use crate::seeded::{self, Image};

/// Operations in a run.
pub(crate) const OPERATIONS: usize = 60;

const COMPACT: Operation = Operation::Compact { after_ms: 1 };

/// One run; the image that it leaves, or what went wrong and how to repeat it.
pub(crate) fn run(seed: u64, lie: Option<Lie>) -> Result<Image, String> {
    seeded::run(seed, |random, done| run_operations(random, lie, done).map_err(|Violation(facts)| facts))
}

fn run_operations(random: &mut fastrand::Rng, lie: Option<Lie>, done: &mut Vec<Operation>) -> Result<Image, Violation> {
    let config = LogConfig {
        segment_bytes: any_of(random, &[1024, 2048, 8 << 10]),
        index_interval_bytes: any_of(random, &[1, 400, 4096]),
        ..config()
    };
    // Room for 14 keys or for all.
    let keys_bytes = any_of(random, &[400, 64 << 10]);
    let mut world = Keyed::new(config, keys_bytes, lie)?;
    world.looks = true;
    for _ in 0..OPERATIONS {
        let operation = any_operation(random);
        done.push(operation);
        world.apply(operation)?;
    }
    let mut ends = vec![Operation::Heal, COMPACT, Operation::Kill];
    // A segment to compact, and what is not flushed of both producers behind it.
    ends.extend((0..8).map(|_| any_append(random, None)));
    ends.extend([Operation::Flush, any_append(random, Some(0)), any_append(random, Some(1)), COMPACT]);
    // What a power cut leaves of the log is to tell of the producers, alone.
    ends.extend([Operation::PowerCut { seed: random.u64(..) }, Operation::LoseSnapshots, Operation::Kill]);
    ends.extend(each_retry().chain([COMPACT]));
    // Producers that were forgotten when it was compacted, so that the log tells less of them than they wrote, go on.
    ends.extend((0..8).map(|_| any_append(random, None)));
    ends.extend([Operation::Flush, Operation::Forget, COMPACT, Operation::LoseSnapshots, Operation::Kill]);
    ends.extend([any_append(random, Some(0)), any_append(random, Some(1))]);
    ends.extend(each_retry());
    for last in ends {
        done.push(last);
        world.apply(last)?;
    }
    Ok(seeded::image(&world.disk))
}

/// Each batch that a producer may send again.
pub(crate) fn each_retry() -> impl Iterator<Item = Operation> {
    (0..5).flat_map(|back| [0, 1].map(|producer| Operation::Retry { producer, back }))
}

fn any_operation(random: &mut fastrand::Rng) -> Operation {
    match random.u32(0..100) {
        0..48 => {
            let producer = random.bool().then(|| random.u8(0..2));
            any_append(random, producer)
        }
        48..50 => Operation::LoseSnapshots,
        50..51 => Operation::Forget,
        51..55 => Operation::Retry { producer: random.u8(0..2), back: random.u8(0..5) },
        55..65 => Operation::Flush,
        65..80 => Operation::Compact { after_ms: any_of(random, &[0, 0, 3_000, TOMBSTONE_MS as u16]) },
        80..82 => Operation::Trim { permille: random.u16(0..=600) },
        82..85 => Operation::Reopen,
        85..88 => Operation::Kill,
        88..92 => Operation::PowerCut { seed: random.u64(..) },
        92..96 => {
            let faults = [Fault::Eio, Fault::Enospc, Fault::ShortWriteThenEio, Fault::ShortWriteThenFull];
            Operation::FailNth { after: random.u8(0..30), fault: any_of(random, &faults) }
        }
        96..98 => Operation::FillDisk,
        _ => Operation::Heal,
    }
}

fn any_append(random: &mut fastrand::Rng, producer: Option<u8>) -> Operation {
    Operation::Append {
        keys: [(); 4].map(|()| random.u8(0..20)),
        tombstones: if random.u8(0..3) == 0 { random.u8(0..16) } else { 0 },
        producer,
        codec: random.u8(0..10).min(5),
    }
}

fn any_of<T: Copy>(random: &mut fastrand::Rng, choices: &[T]) -> T {
    *random.choice(choices).expect("there is a choice")
}
