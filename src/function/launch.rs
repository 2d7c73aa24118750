//! The hidden launcher, `tripline __launch`: the process that becomes an instance.
//!
//! Between fork and exec only code for that moment may run, and such code cannot be written without `unsafe`. So the
//! broker starts its own executable under this name instead: a fresh, single-threaded process that gives up what an
//! instance must not have by ordinary calls, then execs the interpreter in its place. Whatever it cannot apply ends it
//! with [`EXIT_NOT_LAUNCHED`] and one line on stderr, never with an instance that is less confined than asked.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::process::{Pid, Resource, Rlimit};

/// The exit status of a launcher that could not start the program.
pub const EXIT_NOT_LAUNCHED: u8 = 121;

/// The first argument that makes the executable a launcher.
pub const LAUNCH_COMMAND: &str = "__launch";

/// What an instance may use, and whose child it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchOrder {
    /// Process id of the broker: if it died before the launcher could ask to die with it, nothing is started.
    pub broker_pid: u32,
    /// Highest number of open descriptors.
    pub open_files_max: u64,
    /// Largest file the instance may write, in bytes.
    pub file_size_bytes_max: u64,
}

impl LaunchOrder {
    /// The arguments that carry this order and the program behind it.
    #[must_use]
    pub fn to_args(&self) -> [String; 4] {
        [
            LAUNCH_COMMAND.to_owned(),
            self.broker_pid.to_string(),
            self.open_files_max.to_string(),
            self.file_size_bytes_max.to_string(),
        ]
    }

    fn from_args(args: &mut impl Iterator<Item = OsString>) -> Option<Self> {
        let mut number = || args.next()?.to_str()?.parse::<u64>().ok();
        let broker_pid = u32::try_from(number()?).ok()?;
        Some(Self { broker_pid, open_files_max: number()?, file_size_bytes_max: number()? })
    }
}

/// Applies the limits in `args` (those behind [`LAUNCH_COMMAND`]) and becomes the program that follows them.
///
/// Returns only when that failed. Must be called before the process has a second thread.
pub fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let problem = match (LaunchOrder::from_args(&mut args), args.next()) {
        (Some(order), Some(program)) => match confine(&order) {
            Ok(()) => format!("cannot run {}: {}", program.display(), Command::new(&program).args(args).exec()),
            Err((step, error)) => format!("cannot apply {step}: {error}"),
        },
        _ => "the launcher is started by the broker only".to_owned(),
    };
    eprintln!("tripline launcher: {problem}");
    ExitCode::from(EXIT_NOT_LAUNCHED)
}

/// Which step of [`confine`] failed.
type Refused = (&'static str, io::Error);

/// Everything an instance gives up, in the order in which later steps need earlier ones.
///
/// File-system rules (Landlock) and the system-call filter (seccomp) belong behind `no_new_privs`, last of all.
fn confine(order: &LaunchOrder) -> Result<(), Refused> {
    rustix::process::setsid().map_err(|error| ("a session of its own", error.into()))?;
    set_limits(order).map_err(|error| ("resource limits", error.into()))?;
    bind_to_broker(order)
}

fn set_limits(order: &LaunchOrder) -> rustix::io::Result<()> {
    limit(Resource::Core, 0)?;
    limit(Resource::Nofile, order.open_files_max)?;
    limit(Resource::Fsize, order.file_size_bytes_max)
}

/// Lowers a limit for good; one that is already lower stays.
fn limit(resource: Resource, most: u64) -> rustix::io::Result<()> {
    let found = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let value = Some(most.min(found));
    rustix::process::setrlimit(resource, Rlimit { current: value, maximum: value })
}

/// Dies with the broker, adopts the orphans of the function so that they can be found, and never gains rights.
#[cfg(target_os = "linux")]
fn bind_to_broker(order: &LaunchOrder) -> Result<(), Refused> {
    use rustix::process::{Signal, set_child_subreaper, set_parent_process_death_signal};

    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| ("death with the broker", error.into()))?;
    check_parent(order)?;
    set_child_subreaper(Some(rustix::process::getpid())).map_err(|error| ("adoption of orphans", error.into()))?;
    rustix::thread::set_no_new_privs(true).map_err(|error| ("no_new_privs", error.into()))
}

#[cfg(not(target_os = "linux"))]
fn bind_to_broker(order: &LaunchOrder) -> Result<(), Refused> {
    check_parent(order)
}

fn check_parent(order: &LaunchOrder) -> Result<(), Refused> {
    let parent = rustix::process::getppid().map(Pid::as_raw_nonzero);
    if parent.is_some_and(|pid| i64::from(pid.get()) == i64::from(order.broker_pid)) {
        return Ok(());
    }
    Err(("death with the broker", io::Error::other("the broker is already gone")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Option<LaunchOrder> {
        LaunchOrder::from_args(&mut args.iter().map(OsString::from))
    }

    #[test]
    fn an_order_survives_the_command_line() {
        let order = LaunchOrder { broker_pid: 77, open_files_max: 1024, file_size_bytes_max: 1 << 30 };
        let args = order.to_args();
        assert_eq!(args[0], LAUNCH_COMMAND);
        let rest: Vec<&str> = args[1..].iter().map(String::as_str).collect();
        assert_eq!(parse(&rest), Some(order));
    }

    #[test]
    fn a_damaged_order_is_no_order() {
        for args in [&[][..], &["1"], &["1", "2"], &["x", "2", "3"], &["4294967296", "2", "3"], &["1", "-2", "3"]] {
            assert_eq!(parse(args), None, "{args:?}");
        }
    }
}
