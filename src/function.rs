//! Functions: their definitions, instances and invocation.

pub mod outcome;
pub mod spec;
