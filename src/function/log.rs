//! What a function prints, line by line.
//!
//! stdout and stderr of an instance are its log. Reading is bounded three ways: a line is cut into pieces of
//! [`LINE_BYTES_MAX`], an unfinished line holds no more than that, and an instance that prints faster than
//! [`LogBudget`] allows is simply not read for a while, so it waits in its own `print` instead of filling our memory.

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::unix::pipe;
use tokio::time::Instant;

use super::outcome::beginning;

/// The longest text of one [`LogLine`] in bytes; longer lines arrive in pieces.
pub const LINE_BYTES_MAX: usize = 8 << 10;

/// Bytes per second that an instance may print in the long run, and in one burst.
const RATE_BYTES_PER_SECOND: usize = 4 << 20;
const BURST_BYTES: usize = 1 << 20;

/// Bytes taken from a pipe in one read.
const READ_BYTES: usize = 8 << 10;

/// Bytes taken at most when an invocation ended: what two full pipes hold.
const DRAIN_BYTES_MAX: usize = 256 << 10;

/// The newest lines that error messages about a dead instance quote, in bytes.
const TAIL_BYTES_MAX: usize = 1 << 10;

/// Where a line was printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output; `logging` goes there too.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line that a function printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Name of the function.
    pub function: Arc<str>,
    /// Version of its code.
    pub version: u64,
    /// Number of the instance, unique per function while the broker runs.
    pub instance: u64,
    /// The invocation that was running, if one was.
    pub invocation: Option<Arc<str>>,
    /// Where it was printed.
    pub stream: LogStream,
    /// When it was read, in milliseconds since 1970.
    pub time_ms: i64,
    /// The line without its end, at most [`LINE_BYTES_MAX`] bytes; not UTF-8 is replaced. Control characters are as
    /// printed: whoever shows it on a terminal must escape them.
    pub text: String,
}

/// Takes the lines; called on the runtime, must not block.
pub type LogSink = Arc<dyn Fn(LogLine) + Send + Sync>;

/// Cuts a byte stream into lines and long lines into pieces.
#[derive(Debug, Default)]
pub(super) struct LineCutter {
    unfinished: Vec<u8>,
}

impl LineCutter {
    /// Takes `bytes` and hands every finished line to `line`.
    pub(super) fn push(&mut self, bytes: &[u8], mut line: impl FnMut(String)) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            self.extend(&rest[..end], &mut line);
            line(self.take(self.unfinished.len()));
            rest = &rest[end + 1..];
        }
        self.extend(rest, &mut line);
    }

    /// Hands over what is left without a line end.
    pub(super) fn finish(&mut self, mut line: impl FnMut(String)) {
        if !self.unfinished.is_empty() {
            line(self.take(self.unfinished.len()));
        }
    }

    fn extend(&mut self, bytes: &[u8], line: &mut impl FnMut(String)) {
        let mut rest = bytes;
        while self.unfinished.len() + rest.len() > LINE_BYTES_MAX {
            let (now, later) = rest.split_at(LINE_BYTES_MAX - self.unfinished.len());
            self.unfinished.extend_from_slice(now);
            line(self.take(piece_end(&self.unfinished)));
            rest = later;
        }
        self.unfinished.extend_from_slice(rest);
    }

    fn take(&mut self, end: usize) -> String {
        let text = String::from_utf8_lossy(&self.unfinished[..end]).trim_end_matches('\r').to_owned();
        self.unfinished.drain(..end);
        text
    }
}

/// Where to cut a full piece: not inside a character, if it is UTF-8 at all.
fn piece_end(bytes: &[u8]) -> usize {
    let is_continuation = |byte: u8| byte & 0xC0 == 0x80;
    let start_of_last = bytes.iter().rposition(|&byte| !is_continuation(byte));
    match start_of_last {
        Some(start) if bytes[start] >= 0xC0 && bytes.len() - start < 4 && start > 0 => start,
        _ => bytes.len(),
    }
}

/// A token bucket over printed bytes; pure, the clock is handed in.
#[derive(Debug)]
pub(super) struct LogBudget {
    left_bytes: usize,
    refilled: Instant,
}

impl LogBudget {
    pub(super) fn new(now: Instant) -> Self {
        Self { left_bytes: BURST_BYTES, refilled: now }
    }

    /// Pays for `bytes`; a debt is not kept.
    pub(super) fn spend(&mut self, bytes: usize) {
        self.left_bytes = self.left_bytes.saturating_sub(bytes);
    }

    /// How long to wait before the next read: zero while anything is left.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.refilled);
        let earned = (passed.as_secs_f64() * RATE_BYTES_PER_SECOND as f64) as usize;
        if earned >= READ_BYTES {
            self.left_bytes = (self.left_bytes + earned).min(BURST_BYTES);
            self.refilled = now;
        }
        if self.left_bytes > 0 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64(READ_BYTES as f64 / RATE_BYTES_PER_SECOND as f64)
    }
}

/// Whose lines these are.
#[derive(Clone, Debug)]
pub(super) struct LogOrigin {
    pub(super) function: Arc<str>,
    pub(super) version: u64,
    pub(super) instance: u64,
}

/// One of the two pipes.
struct Source {
    stream: LogStream,
    pipe: Option<pipe::Receiver>,
    cutter: LineCutter,
}

/// Reads both pipes of an instance and hands lines to the sink.
pub(super) struct LogPump {
    origin: LogOrigin,
    sink: LogSink,
    invocation: Option<Arc<str>>,
    sources: [Source; 2],
    budget: LogBudget,
    tail: VecDeque<String>,
    tail_bytes: usize,
}

impl LogPump {
    pub(super) fn new(origin: LogOrigin, sink: LogSink, stdout: pipe::Receiver, stderr: pipe::Receiver) -> Self {
        let source = |stream, pipe| Source { stream, pipe: Some(pipe), cutter: LineCutter::default() };
        Self {
            origin,
            sink,
            invocation: None,
            sources: [source(LogStream::Stdout, stdout), source(LogStream::Stderr, stderr)],
            budget: LogBudget::new(Instant::now()),
            tail: VecDeque::new(),
            tail_bytes: 0,
        }
    }

    /// The lines from here on belong to `invocation`.
    pub(super) fn begin(&mut self, invocation: &str) {
        self.invocation = Some(Arc::from(invocation));
        self.tail.clear();
        self.tail_bytes = 0;
    }

    /// Takes what the pipes hold now, then the lines belong to nobody. A last line without an end is a line too.
    pub(super) fn end(&mut self) {
        let mut left_bytes = DRAIN_BYTES_MAX;
        for index in 0..self.sources.len() {
            while left_bytes > 0 {
                match self.read_once(index) {
                    Ok(0) | Err(_) => break,
                    Ok(read) => left_bytes = left_bytes.saturating_sub(read),
                }
            }
            self.finish_line(index);
        }
        self.invocation = None;
    }

    /// Hands over lines as they come; never returns, and loses nothing when it is dropped.
    pub(super) async fn run(&mut self) {
        loop {
            let wait = self.budget.wait(Instant::now());
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
                continue;
            }
            let index = self.readable().await;
            let _ = self.read_once(index);
        }
    }

    /// The newest lines, for messages about an instance that died.
    pub(super) fn tail(&self) -> String {
        self.tail.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// Waits until one of the pipes has something.
    async fn readable(&self) -> usize {
        let [stdout, stderr] = &self.sources;
        tokio::select! {
            () = until_readable(stdout) => 0,
            () = until_readable(stderr) => 1,
        }
    }

    /// Reads what is there, at most [`READ_BYTES`]; 0 at the end of the stream.
    fn read_once(&mut self, index: usize) -> io::Result<usize> {
        let source = &mut self.sources[index];
        let Some(pipe) = &source.pipe else { return Ok(0) };
        let mut buffer = [0; READ_BYTES];
        let read = match pipe.try_read(&mut buffer) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Err(error);
            }
            Ok(read) if read > 0 => read,
            _ => {
                source.pipe = None;
                self.finish_line(index);
                return Ok(0);
            }
        };
        self.budget.spend(read);
        let mut lines = Vec::new();
        source.cutter.push(&buffer[..read], |line| lines.push(line));
        lines.into_iter().for_each(|line| self.hand_over(index, line));
        Ok(read)
    }

    fn finish_line(&mut self, index: usize) {
        let mut last = None;
        self.sources[index].cutter.finish(|line| last = Some(line));
        if let Some(line) = last {
            self.hand_over(index, line);
        }
    }

    fn hand_over(&mut self, index: usize, text: String) {
        self.keep_in_tail(&text);
        (self.sink)(LogLine {
            function: Arc::clone(&self.origin.function),
            version: self.origin.version,
            instance: self.origin.instance,
            invocation: self.invocation.clone(),
            stream: self.sources[index].stream,
            time_ms: now_ms(),
            text,
        });
    }

    fn keep_in_tail(&mut self, text: &str) {
        let kept = beginning(text, TAIL_BYTES_MAX);
        self.tail.push_back(kept.to_owned());
        self.tail_bytes += kept.len();
        while self.tail_bytes > TAIL_BYTES_MAX || self.tail.len() > 20 {
            let Some(oldest) = self.tail.pop_front() else { break };
            self.tail_bytes -= oldest.len();
        }
    }
}

async fn until_readable(source: &Source) {
    match &source.pipe {
        // An error of the pipe shows again, and is handled, when it is read.
        Some(pipe) => drop(pipe.readable().await),
        None => pending().await,
    }
}

fn now_ms() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(chunks: &[&[u8]]) -> Vec<String> {
        let (mut cutter, mut lines) = (LineCutter::default(), Vec::new());
        chunks.iter().for_each(|chunk| cutter.push(chunk, |line| lines.push(line)));
        cutter.finish(|line| lines.push(line));
        lines
    }

    #[test]
    fn lines_are_cut_wherever_the_reads_fall() {
        assert_eq!(cut(&[b"a\nb", b"c\r\n", b"\n", b"last"]), ["a", "bc", "", "last"]);
        assert_eq!(cut(&[b""]), [""; 0]);
        assert_eq!(cut(&[b"caf\xc3", b"\xa9 \xff\n"]), ["café \u{fffd}"]);
    }

    #[test]
    fn a_line_without_end_is_cut_into_pieces_and_holds_no_more_than_one() {
        let (mut cutter, mut lines) = (LineCutter::default(), Vec::new());
        for _ in 0..100 {
            cutter.push(&[b'x'; 1000], |line| lines.push(line.len()));
            assert!(cutter.unfinished.len() <= LINE_BYTES_MAX);
        }
        assert_eq!(lines, vec![LINE_BYTES_MAX; 100_000 / LINE_BYTES_MAX]);
    }

    #[test]
    fn a_piece_never_ends_inside_a_character() {
        let long = "é".repeat(LINE_BYTES_MAX);
        for shift in 0..3 {
            let text = format!("{}{long}", "x".repeat(shift));
            let pieces = cut(&[text.as_bytes()]);
            assert_eq!(pieces.concat(), text);
            assert!(pieces.iter().all(|piece| piece.len() <= LINE_BYTES_MAX));
        }
        let garbage = vec![0x80; 3 * LINE_BYTES_MAX];
        assert_eq!(cut(&[&garbage]).len(), 3);
    }

    #[test]
    fn an_instance_that_prints_too_fast_is_held_to_the_rate() {
        let start = Instant::now();
        let mut budget = LogBudget::new(start);
        let (mut now, mut read_bytes) = (start, 0);
        while now < start + Duration::from_secs(10) {
            let wait = budget.wait(now);
            if wait.is_zero() {
                budget.spend(READ_BYTES);
                read_bytes += READ_BYTES;
            }
            now += wait;
        }
        let allowed = BURST_BYTES + 10 * RATE_BYTES_PER_SECOND;
        assert!(read_bytes <= allowed + 2 * READ_BYTES && read_bytes > allowed * 9 / 10, "{read_bytes} of {allowed}");
    }

    proptest! {
        #[test]
        fn pieces_join_to_what_was_printed(text in "[a-zé\n]{0,200}", cuts in proptest::collection::vec(0usize..200, 0..5)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let expected: Vec<&str> = text.split_terminator('\n').collect();
            prop_assert_eq!(cut(&chunks), expected);
        }
    }
}
