//! Tripline.

pub mod function;
pub mod kafka;
