//! Tripline.

pub mod broker;
pub mod config;
pub mod event;
pub mod function;
pub mod group;
pub mod kafka;
pub mod topic;
pub mod trigger;
