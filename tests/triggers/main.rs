//! Triggers from end to end inside one process: real log, real python3 processes, real files.
#![allow(clippy::unwrap_used, reason = "tests")]

mod expiry;
mod failing;
mod harness;
mod moments;
mod offline;
mod orders;
mod outputs;
mod power;
mod receiver;
mod running;
mod runs;
mod shares;
mod storms;
mod targets;
mod topics;
mod traces;
mod transforms;
