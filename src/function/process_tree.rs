//! Which processes belong to an instance, how much memory they use, and how they all end.
//!
//! An instance leads its own session and adopts the orphans of its children, so while it lives every descendant is
//! found below it. When it is already gone, its session and the mark in the environment of its children still name
//! them. Only a process that left the session, cleared its environment *and* outlived the instance escapes; a pid
//! namespace will end that.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::home::Home;

/// The environment variable that marks every process of an instance.
pub(super) const INSTANCE_MARK: &str = "TRIPLINE_INSTANCE";

/// How often the processes of an instance are listed until none is left: a fork bomb may outrun one round, and a killed
/// process needs a moment to end, which nobody but its parent is told about.
const ROUNDS_MAX: usize = 200;
const ROUND_PAUSE: Duration = Duration::from_micros(500);

/// The processes of one instance.
#[derive(Clone, Debug)]
pub(super) struct ProcessTree {
    leader: Pid,
    mark: Vec<u8>,
}

impl ProcessTree {
    /// The tree below the instance `leader`, whose environment holds `INSTANCE_MARK=mark`.
    pub(super) fn new(leader: Pid, mark: &str) -> Self {
        Self { leader, mark: format!("{INSTANCE_MARK}={mark}").into_bytes() }
    }

    /// Kills every process of the instance. `leader_is_reaped` says that its process id may mean something else
    /// already.
    ///
    /// Reads all of `/proc`: for a thread that may block.
    pub(super) fn kill(&self, leader_is_reaped: bool) {
        if !leader_is_reaped {
            // Stopped, not killed: as long as it lives, its orphans come to it and can be found.
            let _ = rustix::process::kill_process(self.leader, Signal::STOP);
            kill_all(|| proc_fs::descendants(self.leader));
            let _ = rustix::process::kill_process_group(self.leader, Signal::KILL);
            let _ = rustix::process::kill_process(self.leader, Signal::KILL);
        }
        kill_all(|| proc_fs::marked(self.leader, &self.mark));
    }

    /// What the instance uses, and whether that is more than it may.
    pub(super) fn usage(&self, memory_bytes_max: u64, processes_max: usize) -> Usage {
        let (below, ended) = proc_fs::descendants_by_children(self.leader, processes_max);
        Usage { excess: self.excess(&below, memory_bytes_max, processes_max), ended }
    }

    fn excess(&self, below: &[Pid], memory_bytes_max: u64, processes_max: usize) -> Option<Excess> {
        let processes = below.len() + 1;
        if processes > processes_max {
            return Some(Excess::Processes);
        }
        let tree = || std::iter::once(&self.leader).chain(below);
        let mut used_bytes: u64 = tree().filter_map(|&pid| proc_fs::resident_bytes(pid)).sum();
        if used_bytes > memory_bytes_max && processes > 1 {
            // Forked processes share pages, which the cheap sum counts for each; the exact one is slow and only needed
            // now.
            used_bytes = tree().filter_map(|&pid| proc_fs::proportional_bytes(pid)).sum();
        }
        (used_bytes > memory_bytes_max).then_some(Excess::Memory { used_bytes })
    }
}

/// What an instance uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) excess: Option<Excess>,
    /// Processes below it that have ended and that nobody has waited for.
    pub(super) ended: usize,
}

/// What an instance uses too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Excess {
    /// Memory of all its processes together.
    Memory { used_bytes: u64 },
    /// Processes that run.
    Processes,
    /// Processes that have ended. An invocation dies of that only where it leaves more of them than may run.
    Ended,
}

/// Kills what instances of `home` left behind, and answers how many processes that were: the kernel ends an instance
/// with its broker, but not what that had started. For the time before any instance starts.
///
/// Reads all of `/proc`: for a thread that may block.
pub(super) fn kill_left_over(home: &Home) -> usize {
    let mark = format!("{INSTANCE_MARK}={}", home.mark_of("")).into_bytes();
    let mut killed = BTreeSet::new();
    for _ in 0..ROUNDS_MAX {
        let found = proc_fs::kill_marked_from(&mark);
        if found.is_empty() {
            break;
        }
        killed.extend(found.into_iter().map(Pid::as_raw_nonzero));
        std::thread::sleep(ROUND_PAUSE);
    }
    killed.len()
}

/// Kills what `list` answers until it answers nothing new.
fn kill_all(list: impl Fn() -> Vec<Pid>) {
    for _ in 0..ROUNDS_MAX {
        let found = list();
        if found.is_empty() {
            return;
        }
        for pid in found {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(ROUND_PAUSE);
    }
}

#[cfg(target_os = "linux")]
mod proc_fs {
    use std::collections::HashMap;
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};

    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    /// What `/proc/<pid>/stat` says about a process that has not ended.
    #[derive(Debug)]
    struct Stat {
        pid: Pid,
        parent: i32,
        session: i32,
    }

    /// Where the number of threads stands behind the state.
    const STATE_TO_THREADS: usize = 17;

    /// All running processes below `root`, without it.
    pub(super) fn descendants(root: Pid) -> Vec<Pid> {
        let all = running();
        let mut children: HashMap<i32, Vec<Pid>> = HashMap::new();
        for stat in &all {
            children.entry(stat.parent).or_default().push(stat.pid);
        }
        let mut found = Vec::new();
        let mut next = vec![root];
        while let Some(pid) = next.pop() {
            let below = children.remove(&raw(pid)).unwrap_or_default();
            next.extend(&below);
            found.extend(below);
        }
        found
    }

    /// Processes that run below `root` by the kernel's lists of children, which is cheap, and how many are in these
    /// lists that have ended; stops above `most` of either.
    pub(super) fn descendants_by_children(root: Pid, most: usize) -> (Vec<Pid>, usize) {
        let (mut found, mut ended) = (Vec::new(), 0);
        let mut next = vec![root];
        while let Some(pid) = next.pop() {
            for child in children_of(pid) {
                // One that is gone by now was waited for.
                let Some(line) = stat_line(child) else { continue };
                if parse_stat(child, &line).is_none() {
                    ended += 1;
                } else {
                    found.push(child);
                    next.push(child);
                }
                if found.len().max(ended) > most {
                    return (found, ended);
                }
            }
        }
        (found, ended)
    }

    fn children_of(pid: Pid) -> Vec<Pid> {
        let mut found = Vec::new();
        for thread in threads_of(pid) {
            let list = fs::read_to_string(thread.join("children")).unwrap_or_default();
            found.extend(list.split_ascii_whitespace().filter_map(parse_pid));
        }
        found
    }

    fn threads_of(pid: Pid) -> impl Iterator<Item = PathBuf> {
        let threads = fs::read_dir(format!("/proc/{}/task", raw(pid)));
        threads.into_iter().flatten().flatten().map(|thread| thread.path())
    }

    /// What `read` finds in a file of a process: that of its first thread or, where this has ended before the others
    /// and has no memory any more, that of one which has.
    fn of_any_thread<T>(pid: Pid, file: &str, read: impl Fn(Vec<u8>) -> Option<T>) -> Option<T> {
        let of = |folder: &Path| read(fs::read(folder.join(file)).ok()?);
        let first = Path::new("/proc").join(raw(pid).to_string());
        of(&first).or_else(|| threads_of(pid).find_map(|thread| of(&thread)))
    }

    /// Kills all running processes of this user whose mark begins with `mark`, and answers them. Each is held before it
    /// is looked at once more, so that no signal reaches another one which got its number meanwhile.
    pub(super) fn kill_marked_from(mark: &[u8]) -> Vec<Pid> {
        let (own, user) = (rustix::process::getpid(), rustix::process::geteuid().as_raw());
        let is_left = |pid: Pid| {
            let owner = fs::metadata(format!("/proc/{}", raw(pid))).map(|process| process.uid());
            owner.is_ok_and(|owner| owner == user) && has_variable(pid, |variable| variable.starts_with(mark))
        };
        let candidates = running().into_iter().map(|stat| stat.pid).filter(|pid| *pid != own && is_left(*pid));
        let kill = |pid: &Pid| {
            let held = pidfd_open(*pid, PidfdFlags::empty());
            held.is_ok_and(|held| is_left(*pid) && pidfd_send_signal(&held, Signal::KILL).is_ok())
        };
        candidates.filter(kill).collect()
    }

    /// Whether the environment that a process started with has a variable for which `matches` holds.
    fn has_variable(pid: Pid, matches: impl Fn(&[u8]) -> bool) -> bool {
        let environ = of_any_thread(pid, "environ", |environ| (!environ.is_empty()).then_some(environ));
        environ.is_some_and(|environ| environ.split(|&byte| byte == 0).any(matches))
    }

    /// All running processes of the session of `leader`, or with `mark` in the environment they started with.
    pub(super) fn marked(leader: Pid, mark: &[u8]) -> Vec<Pid> {
        let is_marked = |pid: Pid| has_variable(pid, |variable| variable == mark);
        let own = rustix::process::getpid();
        running()
            .into_iter()
            .filter(|stat| stat.pid != own && (stat.session == raw(leader) || is_marked(stat.pid)))
            .map(|stat| stat.pid)
            .collect()
    }

    pub(super) fn resident_bytes(pid: Pid) -> Option<u64> {
        let pages = of_any_thread(pid, "statm", |statm| {
            let pages: u64 = std::str::from_utf8(&statm).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()?;
            (pages > 0).then_some(pages)
        })?;
        Some(pages * rustix::param::page_size() as u64)
    }

    pub(super) fn proportional_bytes(pid: Pid) -> Option<u64> {
        let kib: u64 = of_any_thread(pid, "smaps_rollup", |rollup| {
            let line = std::str::from_utf8(&rollup).ok()?.lines().find_map(|line| line.strip_prefix("Pss:"))?;
            line.split_ascii_whitespace().next()?.parse().ok()
        })?;
        Some(kib * 1024)
    }

    fn running() -> Vec<Stat> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| parse_pid(entry.file_name().to_str()?))
            .filter_map(|pid| parse_stat(pid, &stat_line(pid)?))
            .collect()
    }

    fn stat_line(pid: Pid) -> Option<String> {
        fs::read_to_string(format!("/proc/{}/stat", raw(pid))).ok()
    }

    /// The name in a stat line may hold blanks and parentheses, so reading starts behind its last `)`. The state is
    /// that of the first thread: where that has left by itself, the others run on, and are counted with it.
    fn parse_stat(pid: Pid, line: &str) -> Option<Stat> {
        let fields: Vec<&str> = line[line.rfind(')')? + 1..].split_ascii_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<i32>().ok();
        let stat = Stat { pid, parent: number(1)?, session: number(3)? };
        let has_ended = match *fields.first()? {
            "Z" => number(STATE_TO_THREADS).is_none_or(|threads| threads <= 1),
            state => state == "X",
        };
        (!has_ended).then_some(stat)
    }

    fn parse_pid(text: &str) -> Option<Pid> {
        text.parse().ok().and_then(Pid::from_raw)
    }

    fn raw(pid: Pid) -> i32 {
        pid.as_raw_nonzero().get()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_stat_line_is_read_behind_any_name() {
            let pid = Pid::from_raw(42).unwrap();
            let stat = parse_stat(pid, "42 (a) b (c) S 7 42 40 0 -1 4194560 1").unwrap();
            assert_eq!((stat.parent, stat.session), (7, 40));
            assert!(parse_stat(pid, "42 (a) Z 7 42 40 0").is_none(), "a zombie has ended");
            let zombie = |threads| format!("42 (a) Z 7 42 40 0 -1 4227084 1 2 3 4 5 6 7 8 20 0 {threads} 0 3961342");
            assert!(parse_stat(pid, &zombie(1)).is_none());
            assert!(parse_stat(pid, &zombie(2)).is_some(), "only its first thread has ended");
            assert!(parse_stat(pid, "42 (a").is_none());
            assert!(parse_stat(pid, "").is_none());
        }

        #[test]
        fn our_own_memory_is_seen_both_ways() {
            let own = rustix::process::getpid();
            let (resident, proportional) = (resident_bytes(own).unwrap(), proportional_bytes(own).unwrap());
            assert!(resident > 1 << 20 && proportional > 0 && proportional <= 2 * resident);
        }
    }
}

/// Without `/proc` only the process group is known.
#[cfg(not(target_os = "linux"))]
mod proc_fs {
    use rustix::process::Pid;

    pub(super) fn descendants(_: Pid) -> Vec<Pid> {
        Vec::new()
    }

    pub(super) fn descendants_by_children(_: Pid, _: usize) -> (Vec<Pid>, usize) {
        (Vec::new(), 0)
    }

    pub(super) fn marked(_: Pid, _: &[u8]) -> Vec<Pid> {
        Vec::new()
    }

    pub(super) fn kill_marked_from(_: &[u8]) -> Vec<Pid> {
        Vec::new()
    }

    pub(super) fn resident_bytes(_: Pid) -> Option<u64> {
        None
    }

    pub(super) fn proportional_bytes(_: Pid) -> Option<u64> {
        None
    }
}
