//! How a command fails: one line, and a code.

use std::io::Write;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::Common;
use super::output::clean;

/// Why a command did not do what was asked: what, where, what to do.
#[derive(Debug)]
pub(super) struct Failure {
    message: String,
    kind: Kind,
    /// The broker's own words.
    problem: Option<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Failed,
    WrongUse,
    ReaderGone,
}

impl Failure {
    /// Exit code 1.
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), kind: Kind::Failed, problem: None }
    }

    /// Exit code 2.
    pub(super) fn wrong_use(message: impl Into<String>) -> Self {
        Self { kind: Kind::WrongUse, ..Self::new(message) }
    }

    /// Nobody reads what is printed any more: that ends a command, and is no failure. Exit code 0, not a word.
    pub(super) fn reader_gone() -> Self {
        Self { kind: Kind::ReaderGone, ..Self::new("nobody reads what is printed") }
    }

    /// What the broker answered.
    pub(super) fn problem(problem: Value) -> Self {
        let detail = problem["detail"].as_str().unwrap_or("the broker refused").to_owned();
        Self { problem: Some(problem), ..Self::new(detail) }
    }

    /// The stable code of the broker's answer.
    pub(super) fn code(&self) -> Option<&str> {
        self.problem.as_ref()?["code"].as_str()
    }

    /// The sentence.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Said in other words, to people and to programs.
    pub(super) fn said(mut self, other: impl FnOnce(&str) -> String) -> Self {
        self.message = other(&self.message);
        if let Some(problem) = &mut self.problem {
            problem["detail"] = self.message.as_str().into();
        }
        self
    }

    /// As [`Failure::said`] to people only: programs get the broker's own words.
    pub(super) fn told(mut self, other: impl FnOnce(&str) -> String) -> Self {
        self.message = other(&self.message);
        self
    }

    /// With a word on where it happened.
    pub(super) fn at(self, place: &str) -> Self {
        self.said(|what| format!("{place}: {what}"))
    }

    /// Prints it; answers the exit code.
    pub(super) fn report(self, common: &Common) -> ExitCode {
        if self.kind == Kind::ReaderGone {
            return ExitCode::SUCCESS;
        }
        let mut stderr = std::io::stderr();
        let _ = if common.json {
            let error = self.problem.clone().unwrap_or_else(|| json!({ "detail": self.message }));
            writeln!(stderr, "{}", json!({ "error": error }))
        } else {
            writeln!(stderr, "error: {}", clean(&self.message))
        };
        if let Some(problem) = self.problem.filter(|_| common.verbose && !common.json) {
            let _ = writeln!(stderr, "{problem:#}");
        }
        ExitCode::from(if self.kind == Kind::WrongUse { 2 } else { 1 })
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}
