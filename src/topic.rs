//! Topics: their names and settings.

pub mod name;
pub mod spec;
