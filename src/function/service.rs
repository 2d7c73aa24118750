//! The door to functions: deploy, invoke, describe, stop.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::RwLock;
use tokio::sync::{Mutex, MutexGuard, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::code::{CodeBundle, CodeError, CodeLimits};
use super::code_store::{CodeLease, CodeStore, CodeStoreError};
use super::home::Home;
use super::http::address::EgressPolicy;
use super::http::{HttpInvoker, NotBegun, TargetError, check_target};
use super::instance::{Definition, InstanceHost, interrupted};
use super::interpreter::{InterpreterError, Interpreters};
use super::invoker::{Invoker, InvokerStatus};
use super::log::LogSink;
use super::outcome::{ErrorClass, Invocation, InvocationError, InvocationSuccess};
use super::pool::{Pool, ProbeResult};
use super::process::{Launcher, ProcessLimits};
use super::process_tree::kill_left_over;
use super::spawner::Spawner;
use super::spec::{FunctionSpec, Payload, Runtime};
use super::stats::{Stats, StatsSnapshot};

/// What a [`FunctionService`] needs to know; every path in it comes from the operator, none from the API.
#[derive(Clone)]
pub struct FunctionOptions {
    /// Where code is kept: `functions/` in the data directory.
    pub directory: PathBuf,
    /// The `python3` to use; by default the first one in `PATH`.
    pub python3: Option<PathBuf>,
    /// What becomes the process of an instance. Default: this executable, called with
    /// [`super::launch::LAUNCH_COMMAND`].
    pub launcher: Launcher,
    /// Limits of every instance.
    pub process_limits: ProcessLimits,
    /// Limits of uploaded code.
    pub code_limits: CodeLimits,
    /// What http functions may reach.
    pub egress: EgressPolicy,
    /// Takes what functions print.
    pub log_sink: LogSink,
    /// From the start of a process until the initializer returned. Default 60 s.
    pub start_timeout: Duration,
    /// For `pre_stop`. Default 5 s.
    pub stop_timeout: Duration,
    /// The data directory that instances belong to. Default none: what they leave behind when this process is killed is
    /// not known to be theirs.
    pub home: Option<Home>,
}

impl FunctionOptions {
    /// The defaults, with code in `directory`; what functions print is dropped until a `log_sink` is set.
    ///
    /// # Errors
    /// The path of this executable is not known.
    pub fn new(directory: PathBuf) -> std::io::Result<Self> {
        Ok(Self {
            directory,
            python3: None,
            launcher: Launcher::Program(std::env::current_exe()?),
            process_limits: ProcessLimits::default(),
            code_limits: CodeLimits::default(),
            egress: EgressPolicy::default(),
            log_sink: Arc::new(drop),
            start_timeout: Duration::from_secs(60),
            stop_timeout: Duration::from_secs(5),
            home: None,
        })
    }
}

/// Why a definition was not accepted. Nothing changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeployError {
    /// A `python3` function needs code once.
    #[error("function {0:?} has no code yet; it must come with the definition")]
    CodeMissing(String),
    /// An `http` function has none.
    #[error("function {0:?} has runtime http, which takes no code")]
    CodeNotWanted(String),
    /// A function of the embedding program comes with its code, not by a definition.
    #[error("function {0:?} has runtime embedded, which only the program that embeds the broker can give")]
    Embedded(String),
    /// The upload was refused.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// The code could not be kept.
    #[error(transparent)]
    Store(#[from] CodeStoreError),
    /// There is nothing to run it.
    #[error(transparent)]
    Interpreter(#[from] InterpreterError),
    /// The URL cannot be a target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The broker stops.
    #[error("the broker stops; deploy it again when it is back")]
    Stopping,
}

/// Why a function was not removed altogether.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoveError {
    /// It is gone, but its code is still on disk.
    #[error(transparent)]
    Store(#[from] CodeStoreError),
    /// The broker stops, and it stays as it is.
    #[error("the broker stops; delete it when it is back")]
    Stopping,
}

/// Why a definition from the journal cannot run. It stays in the journal; deploying it anew may help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Its code is not there.
    #[error(transparent)]
    Store(#[from] CodeStoreError),
    /// The URL cannot be a target any more.
    #[error(transparent)]
    Target(#[from] TargetError),
}

/// There is no function of this name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("there is no function {0:?}")]
pub struct UnknownFunction(pub String);

/// An accepted definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployed {
    /// What the journal must remember for [`FunctionService::restore`].
    pub version: u64,
    /// Whether anything is different from before.
    pub changed: bool,
    /// Whether the code loads: the definition is accepted either way.
    pub state: FunctionState,
}

/// Whether a function can run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FunctionState {
    /// Its code has loaded, or nothing is known against it.
    Ready,
    /// Its first instance has not finished starting.
    Starting,
    /// Its code cannot run, for this reason, until new code or a resume.
    Failed(InvocationError),
}

/// What is known about a function.
#[derive(Clone, Debug)]
pub struct FunctionReport {
    /// Its definition.
    pub spec: Arc<FunctionSpec>,
    /// The version of its code; for `http` the number of its definition.
    pub version: u64,
    /// Whether it can run.
    pub state: FunctionState,
    /// What its instances do.
    pub status: InvokerStatus,
    /// What is metered, since the broker started.
    pub stats: StatsSnapshot,
}

/// All functions of a broker. Cloning gives another handle; with the last one all instances end.
#[derive(Clone)]
pub struct FunctionService {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for FunctionService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<String> = self.inner.functions.read().keys().cloned().collect();
        f.debug_struct("FunctionService").field("functions", &names).finish()
    }
}

struct Inner {
    host: Arc<InstanceHost>,
    code_limits: CodeLimits,
    egress: Arc<EgressPolicy>,
    functions: RwLock<HashMap<String, Arc<Entry>>>,
    /// Definitions change one at a time.
    changing: Mutex<()>,
    /// Whether all functions have been stopped, or are being stopped: what is not there is not unknown then.
    stopping: AtomicBool,
}

struct Entry {
    spec: Arc<FunctionSpec>,
    version: u64,
    runner: Runner,
    stats: Arc<Stats>,
}

enum Runner {
    Pool(Arc<Pool>),
    Http(Arc<HttpInvoker>),
    Embedded(Arc<dyn Invoker>),
}

impl Runner {
    fn invoker(&self) -> &dyn Invoker {
        match self {
            Self::Pool(pool) => &**pool,
            Self::Http(http) => &**http,
            Self::Embedded(invoker) => &**invoker,
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pool(one), Self::Pool(other)) => Arc::ptr_eq(one, other),
            (Self::Http(one), Self::Http(other)) => Arc::ptr_eq(one, other),
            (Self::Embedded(one), Self::Embedded(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// What a deployment found out before it switched.
enum Switch {
    /// Nothing to do.
    Unchanged(Arc<Entry>),
    /// Done; the first start will answer here, if there is one.
    Done(u64, Option<oneshot::Receiver<ProbeResult>>),
}

/// A definition that is in force, whether its code loads or not.
pub(super) struct Switched {
    switch: Switch,
    start_wait: Duration,
}

impl Switched {
    pub(super) fn version(&self) -> u64 {
        match &self.switch {
            Switch::Unchanged(entry) => entry.version,
            Switch::Done(version, _) => *version,
        }
    }

    /// Waits for the first start.
    pub(super) async fn started(self) -> Deployed {
        let version = self.version();
        match self.switch {
            Switch::Unchanged(entry) => Deployed { version, changed: false, state: entry.state() },
            Switch::Done(_, probe) => {
                Deployed { version, changed: true, state: probe_state(probe, self.start_wait).await }
            }
        }
    }
}

/// A function that nobody finds any more and that still runs. None takes its name until it has ended.
pub(super) struct Leaving<'a> {
    inner: &'a Inner,
    entry: Arc<Entry>,
    _one_at_a_time: MutexGuard<'a, ()>,
}

impl Leaving<'_> {
    /// Stops it, giving its instances `grace` to finish, and deletes its code.
    pub(super) async fn end(self, grace: Duration) -> Result<(), RemoveError> {
        self.entry.runner.invoker().stop(Instant::now() + grace).await;
        let (store, name) = (Arc::clone(&self.inner.host.code_store), self.entry.spec.name.clone());
        Ok(blocking(move || store.remove(&name)).await?)
    }
}

impl FunctionService {
    /// A service without functions. Must be called on a tokio runtime with time and I/O.
    ///
    /// # Errors
    /// The thread that starts processes could not be started.
    pub fn new(options: FunctionOptions) -> std::io::Result<Self> {
        let host = InstanceHost {
            spawner: Spawner::new()?,
            launcher: options.launcher,
            limits: options.process_limits,
            interpreters: Interpreters::new(options.python3),
            code_store: CodeStore::new(options.directory),
            log_sink: options.log_sink,
            start_timeout: options.start_timeout,
            stop_timeout: options.stop_timeout,
            home: options.home,
        };
        let inner = Inner {
            host: Arc::new(host),
            code_limits: options.code_limits,
            egress: Arc::new(options.egress),
            functions: RwLock::default(),
            changing: Mutex::default(),
            stopping: AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Kills what functions had started and what is still there because the process that ran them was killed. Answers
    /// how many processes that were. Before the first function is restored or deployed.
    pub async fn end_left_over(&self) -> usize {
        let host = Arc::clone(&self.inner.host);
        blocking(move || {
            // Where nobody ever brought code, nothing was started: such a broker need not look at all processes.
            let home = host.home.as_ref().filter(|_| host.code_store.has_held_code());
            home.map_or(0, kill_left_over)
        })
        .await
    }

    /// Accepts a definition, with `code` if it is new: the source of the handler's module, or a zip archive.
    ///
    /// Code is loaded once at this occasion, by starting an instance. If that fails, the definition is accepted all the
    /// same and the function is [`FunctionState::Failed`], so that what runs is never something else than what was
    /// asked for; the answer carries the traceback. New instances take over from older ones, which finish what they
    /// hold. The same definition with the same code changes nothing, unless the function had failed: then it is tried
    /// again.
    ///
    /// # Errors
    /// [`DeployError`]: the definition cannot be accepted and what was there before goes on.
    pub async fn deploy(&self, spec: FunctionSpec, code: Option<Bytes>) -> Result<Deployed, DeployError> {
        Ok(self.switch(spec, code).await?.started().await)
    }

    /// The part of [`FunctionService::deploy`] that comes before the wait for the first start.
    pub(super) async fn switch(&self, spec: FunctionSpec, code: Option<Bytes>) -> Result<Switched, DeployError> {
        let _one_at_a_time = self.inner.changing.lock().await;
        if self.is_stopping() {
            return Err(DeployError::Stopping);
        }
        let switch = match spec.runtime {
            Runtime::Python3 { .. } => self.inner.switch_python(spec, code).await?,
            Runtime::Http { .. } if code.is_some() => return Err(DeployError::CodeNotWanted(spec.name)),
            Runtime::Http { .. } => self.inner.switch_http(spec)?,
            Runtime::Embedded => return Err(DeployError::Embedded(spec.name)),
        };
        // Older instances may hold the whole quota for long; the answer does not wait for them for ever.
        Ok(Switched { switch, start_wait: self.inner.host.start_timeout + self.inner.host.stop_timeout })
    }

    /// Refuses what [`FunctionService::deploy`] would refuse, and does nothing. Answers whether the code is another one
    /// than that which is there; it is not loaded.
    ///
    /// # Errors
    /// [`DeployError`].
    pub async fn check(&self, spec: &FunctionSpec, code: Option<Bytes>) -> Result<bool, DeployError> {
        if self.is_stopping() {
            return Err(DeployError::Stopping);
        }
        match &spec.runtime {
            Runtime::Python3 { handler, .. } => self.inner.check_python(spec, &handler.module, code).await,
            Runtime::Http { .. } if code.is_some() => Err(DeployError::CodeNotWanted(spec.name.clone())),
            Runtime::Http { url } => {
                check_target(url, &self.inner.egress)?;
                Ok(false)
            }
            Runtime::Embedded => Err(DeployError::Embedded(spec.name.clone())),
        }
    }

    /// Takes up a definition that an earlier run of the broker had accepted as `version`.
    ///
    /// # Errors
    /// [`RestoreError`]: the function is not there; its invocations answer class `broken-code`.
    pub fn restore(&self, spec: FunctionSpec, version: u64) -> Result<(), RestoreError> {
        let spec = Arc::new(spec);
        let stats = Arc::<Stats>::default();
        let runner = match &spec.runtime {
            Runtime::Python3 { .. } => {
                let code = self.inner.host.code_store.lease(&spec.name, version)?;
                let definition = Arc::new(Definition { spec: Arc::clone(&spec), code });
                Runner::Pool(Arc::new(Pool::start(definition, Arc::clone(&self.inner.host), Arc::clone(&stats))))
            }
            Runtime::Http { url } => self.inner.http_runner(&spec, url, &stats)?,
            // The program that had it makes it known again.
            Runtime::Embedded => return Ok(()),
        };
        self.inner.insert(Entry { spec, version, runner, stats });
        Ok(())
    }

    /// One attempt; see [`Invoker`] for what is promised.
    ///
    /// # Errors
    /// [`InvocationError`]; an unknown function is class `broken-code` with code `unknown-function`, one that was
    /// deleted while the invocation waited for its turn is class `interrupted` with code `deleted`, and from the
    /// shutdown on any is class `interrupted`.
    pub async fn invoke(&self, name: &str, mut invocation: Invocation) -> Result<InvocationSuccess, InvocationError> {
        let mut stopped: Option<Arc<HttpInvoker>> = None;
        loop {
            let entry = self.inner.get(name).ok_or_else(|| self.missing(name, stopped.is_some()))?;
            let Runner::Http(http) = &entry.runner else { return entry.runner.invoker().invoke(invocation).await };
            if stopped.as_ref().is_some_and(|stopped| Arc::ptr_eq(stopped, http)) {
                return Err(interrupted());
            }
            match http.try_invoke(invocation).await {
                Ok(result) => return result,
                // What runs under this name by now takes it, if anything else does.
                Err(NotBegun(unbegun)) => (invocation, stopped) = (*unbegun, Some(Arc::clone(http))),
            }
        }
    }

    /// Why an invocation finds no function.
    fn missing(&self, name: &str, has_waited: bool) -> InvocationError {
        if self.is_stopping() {
            return interrupted();
        }
        if has_waited {
            let message = format!("function {name:?} was deleted before this invocation began");
            return InvocationError::new(ErrorClass::Interrupted, "deleted", message);
        }
        let message = UnknownFunction(name.to_owned()).to_string();
        InvocationError::new(ErrorClass::BrokenCode, "unknown-function", message)
    }

    /// Makes a function of the embedding program known under a name, or replaces it; `spec.runtime` does not matter. It
    /// is not remembered: make it known at each start, before triggers start.
    pub fn embed(&self, spec: FunctionSpec, invoker: Arc<dyn Invoker>) {
        let spec = Arc::new(FunctionSpec { runtime: Runtime::Embedded, ..spec });
        self.inner.insert(Entry { spec, version: 0, runner: Runner::Embedded(invoker), stats: Arc::default() });
    }

    /// Tries again what failed; the next invocation waits for the result.
    ///
    /// # Errors
    /// [`UnknownFunction`].
    pub fn resume(&self, name: &str) -> Result<(), UnknownFunction> {
        let entry = self.inner.get(name).ok_or_else(|| UnknownFunction(name.to_owned()))?;
        entry.runner.invoker().resume();
        Ok(())
    }

    /// Stops a function, giving its instances `grace` to finish, and deletes its code.
    ///
    /// # Errors
    /// See [`RemoveError`].
    pub async fn remove(&self, name: &str, grace: Duration) -> Result<bool, RemoveError> {
        match self.take_out(name).await? {
            Some(leaving) => leaving.end(grace).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// The part of [`FunctionService::remove`] after which nobody finds the function any more.
    pub(super) async fn take_out(&self, name: &str) -> Result<Option<Leaving<'_>>, RemoveError> {
        let one_at_a_time = self.inner.changing.lock().await;
        if self.is_stopping() {
            return Err(RemoveError::Stopping);
        }
        let entry = self.inner.functions.write().remove(name);
        Ok(entry.map(|entry| Leaving { inner: &self.inner, entry, _one_at_a_time: one_at_a_time }))
    }

    /// What is known about a function; nothing from the shutdown on.
    #[must_use]
    pub fn describe(&self, name: &str) -> Option<FunctionReport> {
        self.inner.get(name).map(|entry| entry.report())
    }

    /// How a function wants its records; `None` when there is none with this name.
    #[must_use]
    pub fn payload(&self, name: &str) -> Option<Payload> {
        self.inner.functions.read().get(name).map(|entry| entry.spec.payload)
    }

    /// All functions, by name.
    #[must_use]
    pub fn list(&self) -> Vec<FunctionReport> {
        let mut reports: Vec<FunctionReport> =
            self.inner.functions.read().values().map(|entry| entry.report()).collect();
        reports.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        reports
    }

    /// What the instances of a function do, now and at each change.
    #[must_use]
    pub fn watch(&self, name: &str) -> Option<watch::Receiver<InvokerStatus>> {
        self.inner.get(name).map(|entry| entry.runner.invoker().status())
    }

    /// Whether [`FunctionService::shutdown`] has begun: functions that are not there any more are not unknown.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.inner.stopping.load(Ordering::Acquire)
    }

    /// Stops all functions: what runs has `grace` to finish, then ends with class `interrupted`. Nothing is deployed or
    /// removed any more.
    pub async fn shutdown(&self, grace: Duration) {
        let changing = self.inner.changing.lock().await;
        self.inner.stopping.store(true, Ordering::Release);
        let deadline = Instant::now() + grace;
        let entries: Vec<Arc<Entry>> = self.inner.functions.write().drain().map(|(_, entry)| entry).collect();
        // Those that wait to change something are refused at once.
        drop(changing);
        join_all(entries.iter().map(|entry| entry.runner.invoker().stop(deadline))).await;
    }
}

impl Inner {
    fn get(&self, name: &str) -> Option<Arc<Entry>> {
        self.functions.read().get(name).cloned()
    }

    fn insert(&self, entry: Entry) {
        let entry = Arc::new(entry);
        let replaced = self.functions.write().insert(entry.spec.name.clone(), Arc::clone(&entry));
        if let Some(replaced) = replaced
            && !replaced.runner.is_same(&entry.runner)
        {
            // What it holds may take as long as an invocation may.
            let deadline = Instant::now() + replaced.spec.timeout;
            tokio::spawn(async move { replaced.runner.invoker().stop(deadline).await });
        }
    }

    async fn switch_python(&self, spec: FunctionSpec, upload: Option<Bytes>) -> Result<Switch, DeployError> {
        self.host.interpreters.python3().await?;
        let before = self.get(&spec.name);
        let code = self.keep_code(&spec, upload, before.as_deref()).await?;
        let version = code.version();
        if let Some(entry) = before.as_ref().filter(|entry| *entry.spec == spec && entry.version == version)
            && !matches!(entry.state(), FunctionState::Failed(_))
        {
            return Ok(Switch::Unchanged(Arc::clone(entry)));
        }
        let spec = Arc::new(spec);
        let definition = Arc::new(Definition { spec: Arc::clone(&spec), code });
        let (pool, stats, probe) = match before.as_deref() {
            Some(Entry { runner: Runner::Pool(pool), stats, .. }) => {
                (Arc::clone(pool), Arc::clone(stats), pool.replace(definition))
            }
            _ => {
                let stats = Arc::<Stats>::default();
                let (pool, probe) = Pool::start_probed(definition, Arc::clone(&self.host), Arc::clone(&stats));
                (Arc::new(pool), stats, probe)
            }
        };
        self.insert(Entry { spec, version, runner: Runner::Pool(pool), stats });
        Ok(Switch::Done(version, Some(probe)))
    }

    async fn check_python(
        &self,
        spec: &FunctionSpec,
        module: &str,
        upload: Option<Bytes>,
    ) -> Result<bool, DeployError> {
        self.host.interpreters.python3().await?;
        let version_before = self.get(&spec.name).and_then(|entry| entry.code_version());
        let Some(upload) = upload else {
            return version_before.map(|_| false).ok_or_else(|| DeployError::CodeMissing(spec.name.clone()));
        };
        let (store, name, module) = (Arc::clone(&self.host.code_store), spec.name.clone(), module.to_owned());
        let limits = self.code_limits;
        blocking(move || {
            let bundle = CodeBundle::parse(&upload, &module, limits)?;
            Ok(!version_before.is_some_and(|version| store.holds(&name, version, &bundle)))
        })
        .await
    }

    /// The version that holds the uploaded code: a new one, or the one before if nothing is different.
    async fn keep_code(
        &self,
        spec: &FunctionSpec,
        upload: Option<Bytes>,
        before: Option<&Entry>,
    ) -> Result<CodeLease, DeployError> {
        let Runtime::Python3 { handler, .. } = &spec.runtime else { unreachable!("only python3 functions have code") };
        let version_before = before.and_then(Entry::code_version);
        let (store, name, module) = (Arc::clone(&self.host.code_store), spec.name.clone(), handler.module.clone());
        let Some(upload) = upload else {
            let version = version_before.ok_or_else(|| DeployError::CodeMissing(name.clone()))?;
            return Ok(store.lease(&name, version)?);
        };
        let limits = self.code_limits;
        blocking(move || {
            let bundle = CodeBundle::parse(&upload, &module, limits)?;
            let version = match version_before.filter(|&version| store.holds(&name, version, &bundle)) {
                Some(version) => version,
                None => store.put(&name, &bundle)?,
            };
            let lease = store.lease(&name, version)?;
            store.prune(&name)?;
            Ok(lease)
        })
        .await
    }

    fn switch_http(&self, spec: FunctionSpec) -> Result<Switch, DeployError> {
        let Runtime::Http { url } = &spec.runtime else { unreachable!("only http functions come here") };
        let before = self.get(&spec.name);
        if let Some(entry) = before.as_ref().filter(|entry| *entry.spec == spec) {
            return Ok(Switch::Unchanged(Arc::clone(entry)));
        }
        let stats = before.as_ref().map_or_else(Arc::<Stats>::default, |entry| Arc::clone(&entry.stats));
        let version = before.as_ref().map_or(1, |entry| entry.version + 1);
        let runner = match before.as_deref() {
            Some(Entry { runner: Runner::Http(http), .. }) => {
                http.replace(&spec, check_target(url, &self.egress)?);
                Runner::Http(Arc::clone(http))
            }
            _ => self.http_runner(&spec, url, &stats)?,
        };
        self.insert(Entry { spec: Arc::new(spec), version, runner, stats });
        Ok(Switch::Done(version, None))
    }

    fn http_runner(&self, spec: &FunctionSpec, url: &str, stats: &Arc<Stats>) -> Result<Runner, TargetError> {
        let uri = check_target(url, &self.egress)?;
        let http = HttpInvoker::new(spec, uri, Arc::clone(&self.egress), Arc::clone(stats));
        Ok(Runner::Http(Arc::new(http)))
    }
}

/// What the first start showed, if it is over within `most`.
async fn probe_state(probe: Option<oneshot::Receiver<ProbeResult>>, most: Duration) -> FunctionState {
    let Some(probe) = probe else { return FunctionState::Ready };
    match timeout(most, probe).await {
        Ok(Ok(Ok(()))) => FunctionState::Ready,
        Ok(Ok(Err(error))) => FunctionState::Failed(error),
        Ok(Err(_)) | Err(_) => FunctionState::Starting,
    }
}

impl Entry {
    /// Of a function that has code.
    fn code_version(&self) -> Option<u64> {
        matches!(self.runner, Runner::Pool(_)).then_some(self.version)
    }

    fn state(&self) -> FunctionState {
        self.report().state
    }

    fn report(&self) -> FunctionReport {
        let status = self.runner.invoker().status().borrow().clone();
        let state = match &status {
            InvokerStatus { broken: Some(error), .. } => FunctionState::Failed(error.clone()),
            InvokerStatus { instances, .. } if instances.starting > 0 && instances.idle + instances.busy == 0 => {
                FunctionState::Starting
            }
            _ => FunctionState::Ready,
        };
        FunctionReport {
            spec: Arc::clone(&self.spec),
            version: self.version,
            state,
            status,
            stats: self.stats.snapshot(),
        }
    }
}

/// Runs what waits for the disk on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
