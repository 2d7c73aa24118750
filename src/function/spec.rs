//! A function as its owner declares it, checked.

use std::collections::BTreeMap;
use std::time::Duration;

mod parse;

pub use parse::FunctionDefinition;
pub(crate) use parse::http_url;

/// What runs the code.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Runtime {
    /// CPython, `handler(event, context)` behind our bootstrap.
    Python3 {
        /// `module.function`.
        handler: Handler,
        /// `module.function`, run once per instance before its first invocation.
        initializer: Option<Handler>,
    },
    /// A POST to this URL.
    Http {
        /// `http://` or `https://`, as written.
        url: String,
    },
    /// Code of the program that embeds the broker; never from a definition, and not remembered.
    Embedded,
}

/// A `module.function` reference; the module may be dotted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handler {
    /// Dotted module path below the code folder.
    pub module: String,
    /// Function name in that module.
    pub function: String,
}

/// How many instances may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instances {
    /// Reserved: started at once and never stopped for idleness. 0–1,000, default 0.
    pub min: u32,
    /// The function's quota. 1–1,000, at least `min`, default 4.
    pub max: u32,
    /// Invocations that one instance handles at a time; 1 for python3 for now. Default 1.
    pub concurrency: u32,
    /// An instance idle for so long is stopped. 1 s–24 h, default 60 s.
    pub idle: Duration,
}

/// The shape in which records reach the function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Payload {
    /// JSON array of CloudEvents.
    #[default]
    Events,
    /// The bytes of one record's value; windows of 1 only.
    Raw,
}

/// A checked function definition (without its code).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionSpec {
    /// `[A-Za-z0-9._-]{1,249}`.
    pub name: String,
    /// What runs it.
    pub runtime: Runtime,
    /// Instances and their life.
    pub instances: Instances,
    /// Longest invocation. 1 ms–24 h, default 30 s.
    pub timeout: Duration,
    /// Memory limit of one instance in bytes. 16 MiB–64 GiB, default 256 MiB.
    pub memory_bytes: u64,
    /// Environment of the instances; names `[A-Za-z_][A-Za-z0-9_]*`, at most 128, 4 KiB a value. `TRIPLINE_*`, `LD_*`,
    /// `PYTHON*` and `PATH` are refused.
    pub environment: BTreeMap<String, String>,
    /// How records are handed over.
    pub payload: Payload,
}
