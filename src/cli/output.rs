//! What commands print: tables for people, JSON for programs.

use std::io::Write;

use serde_json::Value;

use super::failure::Failure;

/// For whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    pub(super) json: bool,
}

impl Output {
    /// Prints `value` as JSON, or what `text` makes of it.
    pub(super) fn show(self, value: &Value, text: impl FnOnce(&Value) -> String) -> Result<(), Failure> {
        let shown = if self.json { format!("{value:#}") } else { clean(&text(value)) };
        print(&shown)
    }
}

/// The text with `?` for control characters that do more than end a line or a cell: much of what is shown comes from
/// records and from functions, and is to steer nobody's terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '?' } else { c }).collect()
}

/// Prints a text with a line end. A reader that went away ends the command.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    match write!(stdout, "{text}{end}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::reader_gone()),
        written => Ok(written?),
    }
}

/// Columns, each as wide as its widest cell. Control characters are shown as `?`.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let clean = |cell: &str| cell.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect()).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).chain([head[column].len()]).max();
    let widths: Vec<usize> = (0..head.len()).map(|column| width(column).unwrap_or(0)).collect();
    let line = |cells: Vec<&str>| {
        let cells: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    let body = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(line(head.to_vec())).chain(body).collect()
}

/// The line of an error that says most: of a traceback the last, of anything else the first.
pub(super) fn gist(message: &str) -> &str {
    let mut lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = if message.starts_with("Traceback") { lines.next_back() } else { lines.next() };
    line.unwrap_or_default()
}

/// A field as text, without quotes.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceback_is_told_by_its_last_line_and_anything_else_by_its_first() {
        let traceback = "Traceback (most recent call last):\n  File \"f.py\"\nValueError: no good\n";
        assert_eq!(gist(traceback), "ValueError: no good");
        assert_eq!((gist("no\ngood"), gist("")), ("no", ""));
    }
}
