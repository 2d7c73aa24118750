//! CPU time and memory of processes, from `/proc`.

use std::time::Duration;

use crate::Failure;

/// The kernel counts CPU time in hundredths of a second.
const TICK: Duration = Duration::from_millis(10);

/// User and system time of a process so far.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration, Failure> {
    parse_cpu_time(&std::fs::read_to_string(format!("/proc/{pid}/stat"))?)
}

fn parse_cpu_time(stat: &str) -> Result<Duration, Failure> {
    // The name in parentheses may hold anything; fields are counted behind it, the state being the third.
    let (_, fields) = stat.rsplit_once(')').ok_or("/proc/PID/stat has no name")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || -> Result<u32, Failure> { Ok(fields.next().ok_or("/proc/PID/stat ends early")?.parse()?) };
    Ok(TICK * (ticks()? + ticks()?))
}

/// Resident memory in bytes.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64, Failure> {
    parse_resident(&std::fs::read_to_string(format!("/proc/{pid}/status"))?)
}

fn parse_resident(status: &str) -> Result<u64, Failure> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("/proc/PID/status has no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 25 17 0 0 20 0 5 0 100 1000 200";
        assert_eq!(parse_cpu_time(stat).unwrap(), Duration::from_millis(420));
        assert!(parse_cpu_time("7 (a) S 1").is_err());
    }

    #[test]
    fn memory_is_given_in_bytes() {
        assert_eq!(parse_resident("Name:\tx\nVmRSS:\t    9432 kB\nThreads:\t1\n").unwrap(), 9432 * 1024);
        assert!(parse_resident("Name:\tx\n").is_err());
    }
}
