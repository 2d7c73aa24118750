//! The process of one instance: started, talked to, watched, ended.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use rustix::process::Pid;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::frame::{Answer, FrameError, read_answer, write_frame};
use super::launch::LaunchOrder;
use super::log::{LogOrigin, LogPump, LogSink};
use super::process_tree::{Excess, INSTANCE_MARK, ProcessTree};
use super::spawner::Spawner;

/// How often the memory and processes of a busy instance are looked at; memory grows by a few hundred MiB meanwhile at
/// most.
const USAGE_CHECK_BUSY: Duration = Duration::from_millis(100);

/// The same for an instance that has nothing to do.
const USAGE_CHECK_IDLE: Duration = Duration::from_secs(5);

/// What part of the processes that an instance may have may stay behind when they have ended.
const ENDED_PART: usize = 4;

/// How long after its channel closed an instance may take to show its exit status.
const EXIT_STATUS_WAIT: Duration = Duration::from_secs(1);

/// Limits that hold for every instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessLimits {
    /// Open descriptors. Default 1,024.
    pub open_files_max: u64,
    /// Bytes of the largest file it may write. Default 1 GiB.
    pub file_size_bytes_max: u64,
    /// Processes that run, itself included; looked at ten times a second. An instance that leaves more than a quarter
    /// as many behind that have ended is replaced between two invocations. Default 512.
    pub processes_max: usize,
}

impl Default for ProcessLimits {
    fn default() -> Self {
        Self { open_files_max: 1024, file_size_bytes_max: 1 << 30, processes_max: 512 }
    }
}

/// What becomes the process of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Launcher {
    /// This program, called with `__launch …`, which must reach [`super::launch::main`].
    Program(PathBuf),
    /// No launcher: instances share the broker's limits and survive its death. For embedders who accept that.
    Reduced,
}

/// A process to start.
pub(super) struct ProcessPlan {
    pub(super) program: PathBuf,
    pub(super) args: Vec<String>,
    pub(super) directory: PathBuf,
    pub(super) environment: Vec<(String, String)>,
    pub(super) memory_bytes_max: u64,
    /// Unique among all instances of all brokers on the machine.
    pub(super) mark: String,
}

/// How an exchange with an instance ended.
#[derive(Debug)]
pub(super) enum Ending {
    Answered(Answer),
    BrokeProtocol(FrameError),
    Exited(ExitStatus),
    TimedOut,
    /// It used too much.
    Exceeded(Excess),
    /// The broker wants it gone.
    Cancelled,
}

/// A running process. Dropping it kills its first process; [`Process::kill`] all of them.
pub(super) struct Process {
    child: Child,
    exited: Option<ExitStatus>,
    channel: UnixStream,
    pub(super) logs: LogPump,
    usage: UsageWatch,
    cancel: CancellationToken,
}

/// What an instance may use, and when that was last looked at.
struct UsageWatch {
    tree: ProcessTree,
    limit_bytes: u64,
    processes_max: usize,
    checked: Instant,
    /// Has left too many processes behind that have ended. The instance adopts orphans, and nobody else can tell them
    /// from children that its code still waits for: so it is not they that are taken away, but the instance.
    is_worn_out: bool,
}

impl Process {
    pub(super) async fn spawn(
        plan: ProcessPlan,
        launcher: &Launcher,
        limits: ProcessLimits,
        spawner: &Spawner,
        log: (LogOrigin, LogSink),
        cancel: CancellationToken,
    ) -> io::Result<Self> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let channel = UnixStream::from_std(ours)?;
        let mut child = spawner.spawn(command(&plan, launcher, limits, theirs.into())).await?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let tree = ProcessTree::new(pid.ok_or_else(|| io::Error::other("the process has no id"))?, &plan.mark);
        let stdout = child.stdout.take().expect("stdout is piped").into_owned_fd()?;
        let stderr = child.stderr.take().expect("stderr is piped").into_owned_fd()?;
        let logs =
            LogPump::new(log.0, log.1, pipe::Receiver::from_owned_fd(stdout)?, pipe::Receiver::from_owned_fd(stderr)?);
        let usage = UsageWatch {
            tree,
            limit_bytes: plan.memory_bytes_max,
            processes_max: limits.processes_max,
            checked: Instant::now(),
            is_worn_out: false,
        };
        Ok(Self { child, exited: None, channel, logs, usage, cancel })
    }

    /// Whether it should be replaced as soon as it has answered.
    pub(super) const fn is_worn_out(&self) -> bool {
        self.usage.is_worn_out
    }

    /// Sends `head` and `payload`, then waits for one answer. Whatever else happens first is the ending: the time
    /// covers the writing too, so an instance that stops reading blocks nobody.
    pub(super) async fn exchange(&mut self, head: Bytes, payload: Bytes, deadline: Instant) -> Ending {
        let channel = &mut self.channel;
        let talk = async {
            if let Err(error) = write_frame(channel, &head, &payload).await {
                // The instance may have answered, or ended, without reading: that says more than the broken pipe.
                tracing::debug!(%error, "an instance does not read");
            }
            read_answer(channel).await
        };
        let ending =
            watch(talk, &mut self.child, &mut self.logs, (&mut self.usage, Work::Busy), &self.cancel, deadline).await;
        self.with_status(ending).await
    }

    /// Waits for one more answer.
    pub(super) async fn answer(&mut self, deadline: Instant) -> Ending {
        self.exchange(Bytes::new(), Bytes::new(), deadline).await
    }

    /// Watches an instance that has nothing to do; returns only with its end.
    pub(super) async fn idle(&mut self) -> Ending {
        let far = Instant::now() + Duration::from_secs(3600 * 24 * 365);
        let ending = watch(
            read_answer(&mut self.channel),
            &mut self.child,
            &mut self.logs,
            (&mut self.usage, Work::Idle),
            &self.cancel,
            far,
        )
        .await;
        self.with_status(ending).await
    }

    /// A closed channel usually means that the process is ending: its exit status tells more.
    async fn with_status(&mut self, ending: Ending) -> Ending {
        let ending = match ending {
            Ending::BrokeProtocol(FrameError::Closed) => match timeout(EXIT_STATUS_WAIT, self.child.wait()).await {
                Ok(Ok(status)) => Ending::Exited(status),
                _ => Ending::BrokeProtocol(FrameError::Closed),
            },
            other => other,
        };
        if let Ending::Exited(status) = ending {
            self.exited = Some(status);
        }
        ending
    }

    /// Waits for the process to leave by itself, until `deadline`.
    pub(super) async fn wait_for_exit(&mut self, deadline: Instant) {
        if let Ok(Ok(status)) = tokio::time::timeout_at(deadline, self.child.wait()).await {
            self.exited = Some(status);
        }
    }

    /// Kills every process of the instance, waits for its end and takes its last words.
    pub(super) async fn kill(&mut self) {
        let (tree, is_reaped) = (self.usage.tree.clone(), self.exited.is_some());
        if tokio::task::spawn_blocking(move || tree.kill(is_reaped)).await.is_err() {
            let _ = self.child.start_kill();
        }
        if let Ok(status) = self.child.wait().await {
            self.exited = Some(status);
        }
        self.logs.end();
    }
}

/// Waits for the first thing that happens to an instance while it is talked to.
async fn watch(
    talk: impl Future<Output = Result<Answer, FrameError>>,
    child: &mut Child,
    logs: &mut LogPump,
    (usage, work): (&mut UsageWatch, Work),
    cancel: &CancellationToken,
    deadline: Instant,
) -> Ending {
    tokio::pin!(talk);
    let ended = |talked| match talked {
        Ok(answer) => Ending::Answered(answer),
        Err(error) => Ending::BrokeProtocol(error),
    };
    tokio::select! {
        biased;
        talked = &mut talk => ended(talked),
        () = sleep_until(deadline) => Ending::TimedOut,
        () = cancel.cancelled() => Ending::Cancelled,
        status = child.wait() => match (talk.now_or_never(), status) {
            // It answered and left: the answer counts.
            (Some(Ok(answer)), _) => Ending::Answered(answer),
            (_, Ok(status)) => Ending::Exited(status),
            (_, Err(error)) => Ending::BrokeProtocol(FrameError::Io(error)),
        },
        excess = excess(usage, work) => Ending::Exceeded(excess),
        () = logs.run() => unreachable!("the log is read until the exchange ends"),
    }
}

/// Whether an instance holds an invocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Busy,
    Idle,
}

/// Returns when the instance uses more than it may.
async fn excess(usage: &mut UsageWatch, work: Work) -> Excess {
    let every = match work {
        Work::Busy => USAGE_CHECK_BUSY,
        Work::Idle => USAGE_CHECK_IDLE,
    };
    loop {
        // Counted from the last check, not from the start of this wait: many short invocations are checked like a long
        // one.
        sleep_until(usage.checked + every).await;
        usage.checked = Instant::now();
        let found = usage.tree.usage(usage.limit_bytes, usage.processes_max);
        usage.is_worn_out = found.ended > usage.processes_max / ENDED_PART;
        if let Some(excess) = found.excess {
            return excess;
        }
        // One that works is let be for as long as the machine has processes for others.
        let ends = match work {
            Work::Busy => found.ended > usage.processes_max,
            Work::Idle => usage.is_worn_out,
        };
        if ends {
            return Excess::Ended;
        }
    }
}

/// The search path of programs that functions start.
const MINIMAL_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

fn command(plan: &ProcessPlan, launcher: &Launcher, limits: ProcessLimits, channel: OwnedFd) -> Command {
    let mut command = match launcher {
        Launcher::Program(launcher) => {
            let mut command = Command::new(launcher);
            let order = LaunchOrder {
                broker_pid: std::process::id(),
                open_files_max: limits.open_files_max,
                file_size_bytes_max: limits.file_size_bytes_max,
            };
            command.args(order.to_args()).arg(&plan.program);
            command
        }
        Launcher::Reduced => {
            let mut command = Command::new(&plan.program);
            command.process_group(0);
            command
        }
    };
    command
        .args(&plan.args)
        .env_clear()
        .env("PATH", MINIMAL_PATH)
        .env("LANG", "C.UTF-8")
        .env("HOME", &plan.directory)
        .envs(plan.environment.iter().map(|(name, value)| (name, value)))
        .env(INSTANCE_MARK, &plan.mark)
        .current_dir(&plan.directory)
        .stdin(Stdio::from(channel))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// `exit-3` or `signal-9`.
pub(super) fn exit_code(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit-{code}"),
        (None, Some(signal)) => format!("signal-{signal}"),
        (None, None) => "exit-unknown".to_owned(),
    }
}
