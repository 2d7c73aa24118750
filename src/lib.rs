//! Tripline.

pub mod function;
pub mod group;
pub mod kafka;
