//! A broker in a process of its own, the command line, and scripts with real Kafka clients.

use std::io::{BufRead, BufReader, Lines, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{fs, io};

use serde_json::Value;

use crate::ports::free_port;
use crate::served::{Served, TRIPLINE};
pub(crate) use crate::until::until;

static ALONE: Mutex<()> = Mutex::new(());

/// These tests measure times and memory: one at a time.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The Python that has the Kafka clients, if there is one.
pub(crate) fn python() -> Option<String> {
    let python = std::env::var("TRIPLINE_CLIENTS_PYTHON").ok();
    if python.is_none() {
        println!("SKIP: TRIPLINE_CLIENTS_PYTHON is not set; tests/clients/setup.sh makes what it names");
    }
    python
}

/// A number from the environment.
pub(crate) fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: found {text:?}, allowed: a number")))
}

/// Where a broker listens, also after a restart.
fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// A disk of its own, mounted where no other process sees it. It is gone when this is dropped.
struct SmallDisk {
    /// Holds the mounts; ends with its input.
    holder: Child,
}

impl SmallDisk {
    /// `size_bytes` of memory at the directory `at`. `None` where mounting is not allowed, which it says.
    fn mount(at: &Path, size_bytes: u64) -> Option<Self> {
        let script = format!("mount -t tmpfs -o size={size_bytes} tmpfs '{}' && echo mounted && read _", at.display());
        let started = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let said = started.map_err(|error| error.to_string()).and_then(|mut holder| {
            let line = BufReader::new(holder.stdout.take().unwrap()).lines().next();
            if line.is_some_and(|line| line.is_ok_and(|line| line == "mounted")) {
                return Ok(Self { holder });
            }
            let _ = holder.wait();
            Err("mounting is not allowed".to_owned())
        });
        said.map_err(|reason| println!("SKIP: a small disk: unshare --mount: {reason}")).ok()
    }

    /// What runs a program where the disk is seen, in the directory `dir`.
    fn enter(&self, dir: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id())).arg(format!("--wd={}", dir.display()));
        command
    }

    /// Where `path` is for those who do not see the disk.
    fn outside(&self, path: &Path) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.holder.id())).join(path.strip_prefix("/").unwrap())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A broker and its directory. Both are gone when it is dropped.
pub(crate) struct Broker {
    served: Served,
    pub(crate) dir: tempfile::TempDir,
    disk: Option<SmallDisk>,
}

impl Broker {
    /// On free ports, which it takes again after a restart.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more flags, which a restart leaves out.
    pub(crate) fn start_with(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let served = serve(None, dir.path(), &free_address(), &free_address(), flags);
        Self { served, dir, disk: None }
    }

    /// With a disk of `size_bytes` for its data alone. `None` where there can be none.
    pub(crate) fn start_on_small_disk(size_bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        let disk = SmallDisk::mount(&data, size_bytes)?;
        let served = serve(Some(&disk), dir.path(), &free_address(), &free_address(), &[]);
        Some(Self { served, dir, disk: Some(disk) })
    }

    /// Where Kafka clients connect.
    pub(crate) fn kafka(&self) -> &str {
        &self.served.kafka
    }

    pub(crate) fn pid(&self) -> u32 {
        self.served.child.id()
    }

    /// As `kill -9` does; answers when it is gone.
    pub(crate) fn kill(&mut self) {
        self.served.kill();
    }

    /// Starts it again on the same ports and directory.
    pub(crate) fn restart(&mut self) {
        let served = serve(self.disk.as_ref(), self.dir.path(), self.kafka(), self.http_address(), &[]);
        assert_eq!((&served.kafka, &served.http), (&self.served.kafka, &self.served.http));
        self.served = served;
    }

    pub(crate) fn data(&self) -> PathBuf {
        let data = self.dir.path().join("data");
        if let Some(disk) = &self.disk { disk.outside(&data) } else { data }
    }

    fn http_address(&self) -> &str {
        self.served.http.trim_start_matches("http://")
    }

    /// The answer to a request for `path`, head and all.
    pub(crate) fn get(&self, path: &str) -> String {
        let address = self.http_address();
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").unwrap();
        io::read_to_string(stream).unwrap()
    }

    /// The value of the one metric with that name and those labels.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let all = self.get("/metrics");
        let value = all.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {all}"))
    }

    /// Appends the lines of `records` to a topic; what the command said, or complained of.
    pub(crate) fn produce(&self, topic: &str, records: &str) -> Result<String, String> {
        let file = self.file("records.json", records);
        let ran = self.command(&["produce", topic, "--file", &file.display().to_string()]);
        if ran.status.success() { Ok(text(&ran.stdout)) } else { Err(text(&ran.stderr)) }
    }

    /// Puts a file next to the definitions; answers its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Runs a command of the command line.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        Command::new(TRIPLINE)
            .args(arguments)
            .env("TRIPLINE_SERVER", &self.served.http)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a command that must succeed; answers what it printed.
    pub(crate) fn tripline(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        let (said, complained) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {said}\n{complained}");
        said
    }

    /// Writes `definitions` to a file and applies it.
    pub(crate) fn apply(&self, definitions: &str) {
        let file = self.file("app.yaml", definitions);
        println!("{}", self.tripline(&["apply", "-f", &file.display().to_string()]));
    }

    /// A topic `orders` and a trigger `pay` that hands its records one by one to a function which always fails, `code`.
    /// What `retry` gives up goes to `orders.dlq`.
    pub(crate) fn apply_failing(&self, code: &str, retry: &str) {
        self.file("fail.py", code);
        self.apply(&format!(
            "
topic: orders
---
function: fail
runtime: python3
code: fail.py
handler: fail.handler
---
trigger: pay
input: {{ topic: orders }}
window: {{ count: 1 }}
function: fail
retry: {retry}
dead_letter: {{ topic: orders.dlq }}
"
        ));
    }

    /// What a function has printed.
    pub(crate) fn logs(&self, function: &str) -> Vec<LogLine> {
        let printed = self.tripline(&["function", "logs", function, "--json"]);
        let lines = printed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines
            .map(|line| LogLine {
                time_ms: line["time_ms"].as_i64().unwrap(),
                text: line["text"].as_str().unwrap().to_owned(),
            })
            .collect()
    }

    /// Waits until a function has printed `count` lines.
    pub(crate) fn wait_for_logs(&self, function: &str, count: usize) -> Vec<LogLine> {
        until(&format!("{count} lines of {function}"), || {
            let lines = self.logs(function);
            if lines.len() >= count { Ok(lines) } else { Err(format!("{lines:?}")) }
        })
    }

    pub(crate) fn trigger(&self, name: &str) -> Value {
        serde_json::from_str(&self.tripline(&["trigger", "describe", name, "--json"])).unwrap()
    }
}

/// One line that a function printed.
#[derive(Clone, Debug)]
pub(crate) struct LogLine {
    pub(crate) time_ms: i64,
    pub(crate) text: String,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn serve(disk: Option<&SmallDisk>, dir: &Path, kafka: &str, http: &str, flags: &[&str]) -> Served {
    let data = dir.join("data");
    let mut command = disk.map_or_else(|| Command::new("env"), |disk| disk.enter(dir));
    command.arg(TRIPLINE).args(["serve", "--data", &data.display().to_string(), "--kafka", kafka, "--http", http]);
    Served::start(command.args(flags).current_dir(dir))
}

/// A running script with a Kafka client. It is told and asked things line by line.
pub(crate) struct Script {
    name: String,
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Script {
    pub(crate) fn start(python: &str, name: &str, arguments: &[&str]) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name);
        let mut child = Command::new(python)
            .arg(path)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{python} does not start: {error}"));
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { name: name.to_owned(), child, input, output: BufReader::new(output).lines() }
    }

    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// The next line it prints.
    pub(crate) fn line(&mut self) -> String {
        let line = self.output.next().unwrap_or_else(|| panic!("{} printed nothing more", self.name));
        line.unwrap()
    }

    /// The next line it prints, which is JSON.
    pub(crate) fn json(&mut self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{}: {line}: {error}", self.name))
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn finish(mut self) {
        assert!(self.child.wait().unwrap().success(), "{} failed", self.name);
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
