//! The life of one instance of a python3 function: cold start, invocations one at a time, end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::code_store::{CodeLease, CodeStore};
use super::frame::{
    self, Answer, AnswerKind, Fault, FrameError, FunctionFacts, HandlerRef, Load, OUTPUT_BYTES_MAX, Ready,
};
use super::home::Home;
use super::interpreter::{Interpreter, Interpreters};
use super::launch::EXIT_NOT_LAUNCHED;
use super::log::{LogOrigin, LogSink};
use super::outcome::{ErrorClass, Invocation, InvocationError, InvocationSuccess, beginning};
use super::process::{Ending, Launcher, Process, ProcessLimits, ProcessPlan, exit_code};
use super::process_tree::Excess;
use super::spawner::Spawner;
use super::spec::{FunctionSpec, Handler, Runtime};

/// The program that every instance runs.
const BOOTSTRAP: &str = include_str!("bootstrap.py");

/// The longest error code that is taken over from a function.
const CODE_BYTES_MAX: usize = 128;

/// What instances need from the broker; shared by all functions.
pub(super) struct InstanceHost {
    pub(super) spawner: Spawner,
    pub(super) launcher: Launcher,
    pub(super) limits: ProcessLimits,
    pub(super) interpreters: Interpreters,
    pub(super) code_store: Arc<CodeStore>,
    pub(super) log_sink: LogSink,
    /// From the start of the process until the initializer returned.
    pub(super) start_timeout: Duration,
    /// For `pre_stop`.
    pub(super) stop_timeout: Duration,
    /// By which what it left behind is known when the broker was killed.
    pub(super) home: Option<Home>,
}

/// A definition with its code, as instances run it.
#[derive(Debug)]
pub(super) struct Definition {
    pub(super) spec: Arc<FunctionSpec>,
    pub(super) code: CodeLease,
}

/// Number of an instance, unique per function while the broker runs.
pub(super) type InstanceId = u64;

/// An invocation with the place where its outcome goes.
#[derive(Debug)]
pub(super) struct Assignment {
    pub(super) ticket: u64,
    pub(super) invocation: Invocation,
    pub(super) outcome: oneshot::Sender<InvocationResult>,
    pub(super) since: Instant,
    /// How many instances died before they could begin with it.
    pub(super) returned: u8,
}

/// The outcome of an attempt.
pub(super) type InvocationResult = Result<InvocationSuccess, InvocationError>;

/// What the pool tells an instance.
pub(super) enum Order {
    Invoke(Box<Assignment>),
    Stop,
}

/// What an instance tells the pool.
#[derive(Debug)]
pub(super) enum Report {
    /// The initializer returned; `start` is the whole cold start.
    Ready { start: Duration, facts: Ready },
    /// The instance will not become ready; [`Report::Gone`] follows.
    StartFailed(InvocationError),
    /// An invocation ended. If the instance is not `reusable`, [`Report::Gone`] follows.
    Finished { reusable: bool, duration: Duration, error: Option<ErrorClass> },
    /// The instance ended before it began with this; [`Report::Gone`] follows.
    Returned(Box<Assignment>),
    /// The instance leaves, and nothing is wrong with its code: another may start at once. With what it was given and
    /// has not begun with. [`Report::Gone`] follows.
    Leaving(Option<Box<Assignment>>),
    /// The process and all its children are gone.
    Gone,
}

/// Takes the reports of one instance.
pub(super) type Reporter = Box<dyn Fn(Report) + Send + Sync>;

/// One instance to run.
pub(super) struct InstanceTask {
    pub(super) id: InstanceId,
    pub(super) definition: Arc<Definition>,
    pub(super) host: Arc<InstanceHost>,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) report: Reporter,
    /// Ends the instance at once, without `pre_stop`.
    pub(super) cancel: CancellationToken,
}

impl InstanceTask {
    /// Runs the instance until it is told to stop, dies or must be killed.
    pub(super) async fn run(mut self) {
        match self.start().await {
            Ok(process) => self.serve(process).await,
            Err(error) => (self.report)(Report::StartFailed(error)),
        }
        if let Some(assignment) = self.close_orders() {
            (self.report)(Report::Returned(assignment));
        }
        let Self { definition, report, .. } = self;
        // The code may be pruned as soon as the pool hears that the instance is gone.
        drop(definition);
        report(Report::Gone);
    }

    /// Takes no more work; answers what it was given and has not begun with.
    fn close_orders(&mut self) -> Option<Box<Assignment>> {
        self.orders.close();
        match self.orders.try_recv() {
            Ok(Order::Invoke(assignment)) => Some(assignment),
            _ => None,
        }
    }

    async fn start(&self) -> Result<Process, InvocationError> {
        let begun = Instant::now();
        let interpreter = self.host.interpreters.python3().await;
        let interpreter = interpreter
            .map_err(|error| InvocationError::new(ErrorClass::BrokenCode, "interpreter-missing", error.to_string()))?;
        let instance = uuid::Uuid::new_v4().to_string();
        let mark = self.host.home.as_ref().map_or_else(|| instance.clone(), |home| home.mark_of(&instance));
        let mut process = self.spawn(&interpreter, mark).await.map_err(|error| {
            InvocationError::new(
                ErrorClass::Unavailable,
                "spawn-failed",
                format!("no process could be started: {error}"),
            )
        })?;
        match self.load(&mut process, &interpreter, &instance, begun + self.host.start_timeout).await {
            Ok(facts) => {
                (self.report)(Report::Ready { start: begun.elapsed(), facts });
                Ok(process)
            }
            Err(failure) => {
                process.kill().await;
                Err(failure.describe(&process))
            }
        }
    }

    async fn spawn(&self, interpreter: &Interpreter, mark: String) -> std::io::Result<Process> {
        let Definition { spec, code } = &*self.definition;
        let arguments = ["-E", "-S", "-X", "utf8", "-c", BOOTSTRAP];
        let plan = ProcessPlan {
            program: interpreter.executable.clone(),
            args: arguments.map(str::to_owned).to_vec(),
            directory: std::path::absolute(code.directory())?,
            environment: spec.environment.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            memory_bytes_max: spec.memory_bytes,
            mark,
        };
        let origin = LogOrigin { function: Arc::from(spec.name.as_str()), version: code.version(), instance: self.id };
        let InstanceHost { launcher, limits, spawner, log_sink, .. } = &*self.host;
        Process::spawn(plan, launcher, *limits, spawner, (origin, Arc::clone(log_sink)), self.cancel.clone()).await
    }

    async fn load(
        &self,
        process: &mut Process,
        interpreter: &Interpreter,
        instance: &str,
        deadline: Instant,
    ) -> Result<Ready, StartFailure> {
        let request = load_frame(&self.definition, interpreter, instance);
        let failed = |step| move |ending| StartFailure { step, ending };
        let loaded = process.exchange(request, Bytes::new(), deadline).await;
        expect(AnswerKind::Loaded, loaded).map_err(failed("importing the code"))?;
        let ready = process.answer(deadline).await;
        let answer = expect(AnswerKind::Ready, ready).map_err(failed("the initializer"))?;
        process.logs.end();
        Ok(decode(&answer.body).unwrap_or_default())
    }

    async fn serve(&mut self, mut process: Process) {
        loop {
            let order = tokio::select! {
                order = self.orders.recv() => order,
                ending = process.idle() => {
                    if matches!(ending, Ending::Exceeded(Excess::Ended)) {
                        // Its good-bye takes time, which nobody has to wait for.
                        let assignment = self.close_orders();
                        (self.report)(Report::Leaving(assignment));
                        return self.stop(&mut process).await;
                    }
                    tracing::warn!(function = %self.definition.spec.name, instance = self.id, ?ending, "an idle instance ended");
                    return process.kill().await;
                }
            };
            match order {
                Some(Order::Invoke(assignment)) => {
                    if !self.invoke(&mut process, *assignment).await {
                        return;
                    }
                }
                Some(Order::Stop) | None => return self.stop(&mut process).await,
            }
        }
    }

    /// Answers whether the instance lives on.
    async fn invoke(&self, process: &mut Process, assignment: Assignment) -> bool {
        let Assignment { invocation, outcome, .. } = assignment;
        let spec = &self.definition.spec;
        let begun = Instant::now();
        process.logs.begin(&invocation.id);
        let timeout_ms = u64::try_from(spec.timeout.as_millis()).unwrap_or(u64::MAX);
        let head = frame::invoke_frame_head(&invocation, timeout_ms);
        let ending = process.exchange(head, invocation.payload, begun + spec.timeout).await;
        let duration = begun.elapsed();
        let result = match interpret(ending) {
            Ok(result) => {
                process.logs.end();
                Reused(result)
            }
            Err(ending) => {
                // All its processes are gone before the outcome is known: the next attempt never overlaps this one.
                process.kill().await;
                Ended(describe_death(&ending, spec, process))
            }
        };
        let (result, lives) = match result {
            Reused(result) => (result, true),
            Ended(error) => (Err(error), false),
        };
        let reusable = lives && !process.is_worn_out();
        let error = result.as_ref().err().map(|error| error.class);
        // First the pool, then the caller: its next invocation must find this instance idle.
        (self.report)(Report::Finished { reusable, duration, error });
        // Nobody may wait any more; the work is done all the same.
        let _ = outcome.send(result);
        if lives && !reusable {
            self.stop(process).await;
        }
        reusable
    }

    async fn stop(&self, process: &mut Process) {
        let deadline = Instant::now() + self.host.stop_timeout;
        let ending = process.exchange(frame::stop_frame(), Bytes::new(), deadline).await;
        match ending {
            Ending::Answered(Answer { kind: AnswerKind::Stopped, .. }) => process.wait_for_exit(deadline).await,
            Ending::Exited(_) => {}
            other => {
                let (function, instance) = (&self.definition.spec.name, self.id);
                tracing::warn!(%function, instance, ending = ?other, "an instance did not stop by itself and is killed");
            }
        }
        process.kill().await;
    }
}

/// What an invocation left behind: an instance that can go on, or one that is gone.
enum Aftermath {
    Reused(InvocationResult),
    Ended(InvocationError),
}
use Aftermath::{Ended, Reused};

/// A start that came to nothing.
struct StartFailure {
    step: &'static str,
    ending: Ending,
}

impl StartFailure {
    /// `process` is dead by now and has said its last words.
    fn describe(self, process: &Process) -> InvocationError {
        let Self { step, ending } = self;
        let broken = |code: &str, message: String| {
            let tail = process.logs.tail();
            let message = if tail.is_empty() { message } else { format!("{message}\nlast lines of its log:\n{tail}") };
            InvocationError::new(ErrorClass::BrokenCode, code, message)
        };
        match ending {
            Ending::Answered(Answer { kind: AnswerKind::Broken, body }) => fault(&body, |_| ErrorClass::BrokenCode),
            Ending::Answered(answer) => {
                broken("protocol", format!("{step} answered {:?}, which makes no sense", answer.kind))
            }
            Ending::BrokeProtocol(error) => broken("protocol", format!("{step} failed: {error}")),
            Ending::Exited(status) if status.code() == Some(i32::from(EXIT_NOT_LAUNCHED)) => {
                broken("not-launched", "the interpreter could not be started".to_owned())
            }
            Ending::Exited(status) => broken(&exit_code(status), format!("{step} ended the process: {status}")),
            Ending::TimedOut => broken("start-timeout", format!("{step} took too long; the instance was killed")),
            Ending::Exceeded(excess) => {
                let (code, what) = describe_excess(excess);
                broken(code, format!("{step} made the instance use {what} than it may"))
            }
            Ending::Cancelled => interrupted(),
        }
    }
}

/// The outcome of an invocation after which the instance lives, or the ending after which it must not.
fn interpret(ending: Ending) -> Result<InvocationResult, Ending> {
    match ending {
        Ending::Answered(Answer { kind: AnswerKind::Result, body }) => Ok(Ok(InvocationSuccess { body })),
        Ending::Answered(Answer { kind: AnswerKind::Error, body }) => Ok(Err(fault(&body, class_of_raised))),
        other => Err(other),
    }
}

fn describe_death(ending: &Ending, spec: &FunctionSpec, process: &Process) -> InvocationError {
    let crashed = |code: String, what: String| {
        let tail = process.logs.tail();
        let message = if tail.is_empty() { what } else { format!("{what}\nlast lines of its log:\n{tail}") };
        InvocationError::new(ErrorClass::Crashed, code, message)
    };
    match ending {
        Ending::TimedOut => {
            let message = format!("no answer within {:?}; the instance was killed", spec.timeout);
            InvocationError::new(ErrorClass::Failed, "timeout", message)
        }
        Ending::BrokeProtocol(error @ FrameError::TooLong { kind: AnswerKind::Result, .. }) => {
            InvocationError::new(ErrorClass::Failed, "output-too-large", error.to_string())
        }
        Ending::BrokeProtocol(error) => crashed("protocol".to_owned(), error.to_string()),
        Ending::Answered(answer) => {
            crashed("protocol".to_owned(), format!("the instance answered {:?} to an invocation", answer.kind))
        }
        Ending::Exited(status) => crashed(exit_code(*status), format!("the process ended in the handler: {status}")),
        Ending::Exceeded(excess) => {
            let (code, what) = describe_excess(*excess);
            crashed(code.to_owned(), format!("the instance used {what} than it may and was killed"))
        }
        Ending::Cancelled => interrupted(),
    }
}

fn describe_excess(excess: Excess) -> (&'static str, String) {
    match excess {
        Excess::Memory { used_bytes } => ("out-of-memory", format!("{used_bytes} bytes of memory, which is more")),
        Excess::Processes => ("too-many-processes", "more processes".to_owned()),
        Excess::Ended => ("too-many-processes", "more processes that have ended".to_owned()),
    }
}

/// The error of work that the broker gave up to stop.
pub(super) fn interrupted() -> InvocationError {
    InvocationError::new(ErrorClass::Interrupted, "shutdown", "the broker stopped before the outcome was known")
}

/// The error of work that would have to wait behind too much.
pub(super) fn queue_full() -> InvocationError {
    let message = "too many invocations wait for an instance of the function";
    InvocationError::new(ErrorClass::Throttled, "queue-full", message)
}

/// The handler has the last word on whether trying again may help; it may where it does not say.
fn class_of_raised(fault: &Fault) -> ErrorClass {
    if fault.retryable == Some(false) { ErrorClass::Rejected } else { ErrorClass::Failed }
}

fn fault(body: &[u8], class: impl FnOnce(&Fault) -> ErrorClass) -> InvocationError {
    let fault = decode(body).unwrap_or_else(|| Fault {
        code: "protocol".to_owned(),
        message: "the instance sent an error that cannot be read".to_owned(),
        retryable: None,
    });
    let class = class(&fault);
    InvocationError::new(class, beginning(&fault.code, CODE_BYTES_MAX), fault.message)
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    serde_json::from_slice(body).ok()
}

fn expect(kind: AnswerKind, ending: Ending) -> Result<Answer, Ending> {
    match ending {
        Ending::Answered(answer) if answer.kind == kind => Ok(answer),
        other => Err(other),
    }
}

fn load_frame(definition: &Definition, interpreter: &Interpreter, instance: &str) -> Bytes {
    let Definition { spec, code } = definition;
    let Runtime::Python3 { handler, initializer } = &spec.runtime else {
        unreachable!("only python3 functions have instances")
    };
    let code_dir = std::path::absolute(code.directory()).unwrap_or_else(|_| code.directory().to_owned());
    frame::load_frame(&Load {
        code_dir: &code_dir.to_string_lossy(),
        path: &interpreter.path,
        prefix: &interpreter.prefix,
        exec_prefix: &interpreter.exec_prefix,
        handler: reference(handler),
        initializer: initializer.as_ref().map(reference),
        function: FunctionFacts {
            name: &spec.name,
            handler: dotted(handler),
            initializer: initializer.as_ref().map(dotted),
            memory_mb: spec.memory_bytes >> 20,
            timeout_s: spec.timeout.as_secs_f64(),
        },
        version: code.version(),
        instance,
        output_max: OUTPUT_BYTES_MAX,
    })
}

fn reference(handler: &Handler) -> HandlerRef<'_> {
    HandlerRef { module: &handler.module, function: &handler.function }
}

fn dotted(handler: &Handler) -> String {
    format!("{}.{}", handler.module, handler.function)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_final_only_where_the_handler_says_so() {
        for (more, class) in [
            ("", ErrorClass::Failed),
            (r#", "retryable": null"#, ErrorClass::Failed),
            (r#", "retryable": true"#, ErrorClass::Failed),
            (r#", "retryable": false"#, ErrorClass::Rejected),
        ] {
            let body = format!(r#"{{"code": "ValueError", "message": "no good"{more}}}"#);
            assert_eq!(fault(body.as_bytes(), class_of_raised), InvocationError::new(class, "ValueError", "no good"));
        }
        let unreadable = fault(br#"{"code": "x", "message": "y", "retryable": 0}"#, class_of_raised);
        assert_eq!((unreadable.class, unreadable.code.as_str()), (ErrorClass::Failed, "protocol"));
    }
}
