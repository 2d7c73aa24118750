//! What the batteries need of the machine: tools, a place of their own, disks made of files.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::Failure;

/// Set in a process that has its mounts and processes to itself.
const APART: &str = "TRIPLINE_BATTERY_APART";

/// Why a battery with these tools cannot be run here; `None` when it can.
pub(crate) fn lacks(tools: &[&str], disks: bool) -> Option<String> {
    if let Some(tool) = tools.iter().find(|tool| !is_there(tool)) {
        return Some(format!("{tool} is not installed"));
    }
    if !disks {
        return None;
    }
    if !rustix::process::geteuid().is_root() {
        return Some("mounting disks takes root".to_owned());
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some("there is no /dev/loop-control".to_owned());
    }
    let works = Command::new("unshare").args(["--mount", "true"]).stderr(Stdio::null()).status();
    (!works.is_ok_and(|status| status.success())).then(|| "mounting is not allowed here".to_owned())
}

fn is_there(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // The tools of file systems are not in everybody's path.
    std::env::split_paths(&path).chain(["/sbin".into(), "/usr/sbin".into()]).any(|dir| dir.join(tool).exists())
}

/// Does the battery in a process whose mounts and children are gone with it, and that is gone with this one. Returns in
/// that process only; this one ends as it does.
pub(crate) fn stand_apart() -> Result<(), Failure> {
    if std::env::var_os(APART).is_some() {
        return Ok(());
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "unshare"]);
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
    command.arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(APART, "1");
    let status = command.status()?;
    std::process::exit(status.code().unwrap_or(1))
}

/// Runs a tool to its end; its output, or what it complained of.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String, Failure> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|cause| format!("{program}: {cause}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}, {}", arguments.join(" "), output.status, complaint.trim()).into())
}

/// A directory in memory where there is one: for what the death of a process may lose, which no disk makes worse.
pub(crate) fn memory_scratch() -> Result<tempfile::TempDir, Failure> {
    let memory = Path::new("/dev/shm");
    Ok(if memory.is_dir() { tempfile::tempdir_in(memory)? } else { tempfile::tempdir()? })
}

/// A file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// A directory where a file system is mounted, as long as this lives.
#[derive(Debug)]
pub(crate) struct Mount {
    at: PathBuf,
}

impl Mount {
    /// Mounts the file system in the file `image` at the directory `at`.
    pub(crate) fn image(image: &Path, at: &Path, options: &str) -> Result<Self, Failure> {
        let options = if options.is_empty() { "loop".to_owned() } else { format!("loop,{options}") };
        run("mount", &["-o", &options, text(image)?, text(at)?])?;
        Ok(Self { at: at.to_owned() })
    }

    /// A file system in memory of `size_bytes`.
    pub(crate) fn memory(at: &Path, size_bytes: u64) -> Result<Self, Failure> {
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size_bytes}"), "tmpfs", text(at)?])?;
        Ok(Self { at: at.to_owned() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    /// Takes it away. A process that was killed may hold it for a moment.
    pub(crate) fn unmount(self) -> Result<(), Failure> {
        let path = text(&self.at)?.to_owned();
        for _ in 0..200 {
            if run("umount", &[&path]).is_ok() {
                std::mem::forget(self);
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(format!("{path} stays in use").into())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // On the way out after a failure: whoever holds it loses it.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

/// Makes a file of `size_bytes` with an empty file system in it.
pub(crate) fn format(image: &Path, kind: Kind, size_bytes: u64, options: &[&str]) -> Result<(), Failure> {
    std::fs::File::create(image)?.set_len(size_bytes)?;
    make_file_system(image, kind, options)
}

/// Puts an empty file system on a disk or into a file.
pub(crate) fn make_file_system(disk: &Path, kind: Kind, options: &[&str]) -> Result<(), Failure> {
    let mut arguments = vec!["-q"];
    arguments.extend(options);
    arguments.push(text(disk)?);
    run(&format!("mkfs.{}", kind.name()), &arguments).map(drop)
}

pub(crate) fn text(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| format!("{} is not text", path.display()).into())
}
