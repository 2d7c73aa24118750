//! Tripline.

pub mod function;
