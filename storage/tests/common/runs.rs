//! What a seed does to a [`World`].

use tripline_storage::LogConfig;
use tripline_storage::fs::sim::{Fault, Lie};

use crate::seeded::{self, Image};
use crate::world::{Operation, Violation, World};

/// Operations in a run.
pub(crate) const OPERATIONS: usize = 60;

/// One run; the image that it leaves, or what went wrong and how to repeat it.
pub(crate) fn run(seed: u64, lie: Option<Lie>) -> Result<Image, String> {
    seeded::run(seed, |random, done| run_operations(random, lie, done).map_err(|Violation(facts)| facts))
}

fn run_operations(random: &mut fastrand::Rng, lie: Option<Lie>, done: &mut Vec<Operation>) -> Result<Image, Violation> {
    let config = LogConfig {
        segment_bytes: *random.choice(&[1024, 2048, 16 << 10]).expect("there is a choice"),
        index_interval_bytes: *random.choice(&[1, 400, 4096]).expect("there is a choice"),
        retention_age: None,
        ..LogConfig::default()
    };
    let mut world = World::new(config, lie)?;
    for _ in 0..OPERATIONS {
        let operation = any_operation(random);
        done.push(operation);
        world.apply(operation)?;
    }
    for last in [Operation::Heal, Operation::Kill, Operation::PowerCut { seed: random.u64(..) }, Operation::Flush] {
        done.push(last);
        world.apply(last)?;
    }
    Ok(seeded::image(&world.disk))
}

fn any_operation(random: &mut fastrand::Rng) -> Operation {
    match random.u32(0..100) {
        0..45 => any_append(random),
        45..50 => Operation::Retry { producer: random.u8(0..2), back: random.u8(0..5) },
        50..62 => Operation::Flush,
        62..64 => Operation::Trim { permille: random.u16(0..=1_000) },
        64..67 => Operation::Retention {
            keep_bytes: random.u16(0..12_000),
            by_age: random.u8(0..4) == 0,
            held: random.bool().then(|| random.u8(..)),
        },
        67..74 => Operation::Read { permille: random.u16(0..=1_000), max_bytes: random.u16(..) },
        74..77 => Operation::TimeLookup { permille: random.u16(0..=1_000) },
        77..81 => Operation::Reopen,
        81..86 => Operation::Kill,
        86..92 => Operation::PowerCut { seed: random.u64(..) },
        92..96 => Operation::FailNth { after: random.u8(0..12), fault: any_fault(random) },
        96..98 => Operation::FillDisk { room_bytes: random.u32(0..100_000) },
        _ => Operation::Heal,
    }
}

fn any_append(random: &mut fastrand::Rng) -> Operation {
    let value_bytes = match random.u8(0..10) {
        0 => random.u16(1_000..6_000),
        _ => random.u16(0..200),
    };
    let producer = random.bool().then(|| random.u8(0..2));
    Operation::Append { records: random.u8(1..6), value_bytes, producer }
}

fn any_fault(random: &mut fastrand::Rng) -> Fault {
    *random
        .choice(&[Fault::Eio, Fault::Enospc, Fault::ShortWriteThenEio, Fault::ShortWriteThenFull, Fault::Interrupted])
        .expect("there is a choice")
}
