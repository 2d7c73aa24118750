//! Functions: their code, their instances, and one attempt to invoke them.
//!
//! [`FunctionService`] is the door. A function is a [`FunctionSpec`] and, for `python3`, code that arrives as bytes.
//! What runs it is an [`Invoker`]: a pool of instances for `python3`, an HTTP client for `http`.
//!
//! ```text
//! deploy ─▶ code (checked) ─▶ code_store ──┐
//!                                          ▼
//! invoke ─▶ pool ─▶ instance ─▶ process ─▶ spawner ─▶ launch ─▶ bootstrap.py ─▶ handler(event, context)
//!             │          └ frame, log, process_tree
//!             └ pool_state (decides)
//! ```
//!
//! Invariants: F1 Running instances ≤ quota. F2 The initializer ran exactly once, successfully, before an instance's
//! first invocation. F3 The instance of a timed-out or killed invocation is never reused.

pub mod code;
pub mod code_store;
mod frame;
mod home;
pub mod http;
mod instance;
pub mod interpreter;
mod invoker;
pub mod launch;
mod log;
pub mod log_topic;
pub mod outcome;
mod pool;
mod pool_state;
mod process;
mod process_tree;
pub mod registry;
mod service;
mod spawner;
pub mod spec;
mod stats;

pub use code::{CodeBundle, CodeError, CodeLimits};
pub use frame::{OUTPUT_BYTES_MAX, PAYLOAD_BYTES_MAX};
pub use home::Home;
pub use http::address::EgressPolicy;
pub use invoker::{Invoker, InvokerStatus};
pub use log::{LINE_BYTES_MAX, LogLine, LogSink, LogStream};
pub use outcome::{ERROR_MESSAGE_BYTES_MAX, ErrorClass, Invocation, InvocationError, InvocationSuccess};
pub use pool_state::InstanceCounts;
pub use process::{Launcher, ProcessLimits};
pub use service::{
    DeployError, Deployed, FunctionOptions, FunctionReport, FunctionService, FunctionState, RemoveError, RestoreError,
    UnknownFunction,
};
pub use spec::{FunctionSpec, Handler, Instances, Payload, Runtime};
pub use stats::{DURATION_BOUNDS_MS, DurationsSnapshot, StatsSnapshot};
