//! Tripline.

pub mod broker;
pub mod config;
pub mod event;
pub mod function;
pub mod topic;
pub mod trigger;
