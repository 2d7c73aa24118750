//! A service on an empty directory, and what tests ask of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tripline::function::{
    Deployed, FunctionOptions, FunctionService, FunctionSpec, FunctionState, Handler, Instances, Invocation,
    InvocationError, InvocationSuccess, InvokerStatus, Launcher, LogLine, Payload, Runtime,
};

/// No event of a test takes longer, even on a machine that is busy with everything else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The name of the function that most tests have.
pub(crate) const NAME: &str = "notify";

pub(crate) struct Stage {
    pub(crate) service: FunctionService,
    pub(crate) logs: mpsc::UnboundedReceiver<LogLine>,
    pub(crate) directory: tempfile::TempDir,
}

pub(crate) fn options(directory: &std::path::Path) -> FunctionOptions {
    let mut options = FunctionOptions::new(directory.join("functions")).unwrap();
    options.launcher = Launcher::Program(env!("CARGO_BIN_EXE_tripline").into());
    options.egress.allow_loopback = true;
    options
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut FunctionOptions)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (sink, logs) = mpsc::unbounded_channel();
        let mut options = options(directory.path());
        options.log_sink = Arc::new(move |line| drop(sink.send(line)));
        change(&mut options);
        Self { service: FunctionService::new(options).unwrap(), logs, directory }
    }

    /// A stage with the function `notify` from `source`, whose code loads.
    pub(crate) async fn running(source: &str) -> Self {
        Self::running_as(spec(), source).await
    }

    pub(crate) async fn running_as(spec: FunctionSpec, source: &str) -> Self {
        let stage = Self::new();
        let deployed = stage.deploy(spec, source).await;
        assert_eq!(deployed.state, FunctionState::Ready);
        stage
    }

    pub(crate) async fn deploy(&self, spec: FunctionSpec, source: &str) -> Deployed {
        self.service.deploy(spec, Some(Bytes::from(source.to_owned()))).await.unwrap()
    }

    pub(crate) async fn invoke(&self, payload: &str) -> Result<InvocationSuccess, InvocationError> {
        let invoked = self.service.invoke(NAME, invocation(payload));
        timeout(PATIENCE, invoked).await.expect("every invocation has an outcome")
    }

    /// The result as text.
    pub(crate) async fn result(&self, payload: &str) -> String {
        String::from_utf8(self.invoke(payload).await.unwrap().body.to_vec()).unwrap()
    }

    pub(crate) async fn error(&self, payload: &str) -> InvocationError {
        self.invoke(payload).await.unwrap_err()
    }

    /// Waits until the instances are as `matches` wants them.
    pub(crate) async fn until(&self, matches: impl FnMut(&InvokerStatus) -> bool) -> InvokerStatus {
        let mut status = self.service.watch(NAME).unwrap();
        let seen = timeout(PATIENCE, status.wait_for(matches)).await;
        seen.unwrap_or_else(|_| panic!("not seen, but: {:?}", self.service.describe(NAME))).unwrap().clone()
    }

    pub(crate) async fn log(&mut self) -> LogLine {
        timeout(PATIENCE, self.logs.recv()).await.expect("a line is printed").unwrap()
    }
}

pub(crate) fn spec() -> FunctionSpec {
    FunctionSpec {
        name: NAME.to_owned(),
        runtime: python("handler"),
        instances: Instances { min: 0, max: 4, concurrency: 1, idle: Duration::from_secs(60) },
        timeout: Duration::from_secs(20),
        memory_bytes: 256 << 20,
        environment: BTreeMap::new(),
        payload: Payload::Events,
    }
}

pub(crate) fn python(function: &str) -> Runtime {
    Runtime::Python3 { handler: reference(NAME, function), initializer: None }
}

pub(crate) fn with_initializer() -> Runtime {
    Runtime::Python3 { handler: reference(NAME, "handler"), initializer: Some(reference(NAME, "initialize")) }
}

pub(crate) fn reference(module: &str, function: &str) -> Handler {
    Handler { module: module.to_owned(), function: function.to_owned() }
}

pub(crate) fn invocation(payload: &str) -> Invocation {
    Invocation {
        id: "late/flights/0/5".to_owned(),
        attempt: 1,
        payload: Bytes::from(payload.to_owned()),
        content_type: "application/json",
        record_count: 1,
        trace: None,
    }
}

/// Whether the process still runs, be it without its first thread.
pub(crate) fn is_running(pid: &str) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", pid.trim()));
    threads.into_iter().flatten().flatten().any(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
    })
}

/// Waits until the process runs no more.
pub(crate) async fn until_gone(pid: &str) {
    let gone = async {
        while is_running(pid) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap_or_else(|_| panic!("{pid} lives on"));
}
