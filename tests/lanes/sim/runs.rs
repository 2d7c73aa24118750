//! One seed, one run: random actions, then everything succeeds and all must drain.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::world::{Checked, World};

/// Actions of a run, before it drains.
pub(crate) const ACTIONS: usize = 250;

/// What a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    /// The same for the same history.
    pub(crate) digest: u64,
    pub(crate) records: usize,
    pub(crate) starts: u64,
    pub(crate) writes: u64,
    pub(crate) crashes: u64,
}

/// Runs a seed.
///
/// # Errors
/// What did not hold, with the seed.
pub(crate) fn run(seed: u64) -> Result<Ran, String> {
    let mut world = World::new(seed, false);
    all(&mut world).map_err(|failure| format!("seed {seed}: {failure}"))?;
    Ok(Ran {
        digest: world.digest,
        records: world.model.records.len(),
        starts: world.starts,
        writes: world.writes,
        crashes: world.crashes,
    })
}

/// What a run does, up to what did not hold.
pub(crate) fn tell(seed: u64) -> String {
    let mut world = World::new(seed, true);
    let end = match all(&mut world) {
        Ok(()) => "held".to_owned(),
        Err(failure) => failure,
    };
    format!("{}{end}\n{:?}\n", world.told.unwrap_or_default(), world.lane)
}

fn all(world: &mut World) -> Checked {
    let ran = catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..ACTIONS {
            act(world)?;
        }
        world.drain()
    }));
    ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("it broke down: {}", text.unwrap_or("without a word")))
    })
}

fn act(world: &mut World) -> Checked {
    match world.rng.u32(..200) {
        0..30 => world.append(),
        30..55 => world.pass_time(),
        55..90 => return world.read().map(drop),
        90..115 => return world.start().map(drop),
        115..140 => return world.write(),
        140..165 => return world.end(),
        165..180 => return world.settle().map(drop),
        180..184 => return world.crash(),
        184..187 => world.pause_or_resume(),
        187 => world.skip(),
        188 => world.woken(false),
        189 => world.redefine(),
        190 => world.expire(),
        191 => world.set_count(),
        _ => return world.quiesce(),
    }
    Ok(())
}
