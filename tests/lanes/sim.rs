//! The simulation: a seed is a run. `tests/lanes` runs some, `tripline-battery lanes` many.

#[path = "sim/group.rs"]
mod group;
#[path = "sim/model.rs"]
mod model;
#[path = "sim/runs.rs"]
pub(crate) mod runs;
#[path = "sim/specs.rs"]
mod specs;
#[path = "sim/world.rs"]
mod world;
