//! Tripline.

pub mod broker;
pub mod cli;
pub mod config;
pub mod event;
pub mod function;
pub mod http;
pub mod observe;
pub mod server;
pub mod topic;
pub mod trigger;
