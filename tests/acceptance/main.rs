//! The real binary from outside: real Kafka clients, real kills, real functions.
//!
//! `tests/clients/setup.sh DIR` makes the environment that the Kafka clients need; `TRIPLINE_CLIENTS_PYTHON` names its
//! interpreter. Without it each test that needs one says that it is skipped.
#![allow(clippy::unwrap_used, reason = "tests")]

mod broken;
mod failing;
mod founding;
mod full;
mod harness;
mod kills;
mod many;
mod memory;
#[path = "../common/ports.rs"]
mod ports;
#[path = "../common/served.rs"]
mod served;
mod stopped;
mod topics;
#[path = "../common/until.rs"]
mod until;
