//! Functions with real processes and a real HTTP server.

#![expect(clippy::unwrap_used, reason = "helpers of tests stand outside of test functions")]

mod broken;
mod contract;
mod handler;
mod hostile;
mod instances;
mod support;
