//! Which `python3` runs the instances, found once.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;
use tokio::sync::Mutex;

/// The oldest Python that the bootstrap runs on.
const OLDEST_VERSION: (u32, u32) = (3, 8);

/// How long an interpreter may take to introduce itself.
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(20);

/// What the interpreter is asked: its real executable behind shims and links, and the search path that `site` built, so
/// that instances need not build it again at each start (which takes longer than the rest of the start).
const INTRODUCTION: &str = "import json, sys; print(json.dumps({'executable': sys.executable, \
     'version': sys.version_info[:2], 'path': [entry for entry in sys.path if entry], \
     'prefix': sys.prefix, 'exec_prefix': sys.exec_prefix}))";

/// An interpreter that answered.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Interpreter {
    /// The real executable.
    pub executable: PathBuf,
    /// Major and minor version.
    pub version: (u32, u32),
    /// Its module search path.
    pub path: Vec<String>,
    /// `sys.prefix`.
    pub prefix: String,
    /// `sys.exec_prefix`.
    pub exec_prefix: String,
}

/// Why there is no interpreter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InterpreterError {
    /// No such program anywhere it was looked for.
    #[error("python3 was not found; looked in {}", list(searched))]
    NotFound {
        /// The folders, in order.
        searched: Vec<PathBuf>,
    },
    /// The program exists and does not work as a Python interpreter.
    #[error("{} does not work as python3: {problem}", program.display())]
    Unusable {
        /// What was started.
        program: PathBuf,
        /// What happened.
        problem: String,
    },
    /// Python, but an old one.
    #[error("{} is Python {}.{}, at least 3.8 is needed", program.display(), found.0, found.1)]
    TooOld {
        /// What was started.
        program: PathBuf,
        /// Its version.
        found: (u32, u32),
    },
}

fn list(folders: &[PathBuf]) -> String {
    if folders.is_empty() {
        return "PATH, which is empty".to_owned();
    }
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Finds the interpreter at its first use and remembers it.
#[derive(Debug)]
pub struct Interpreters {
    configured: Option<PathBuf>,
    python3: Mutex<Option<Arc<Interpreter>>>,
}

impl Interpreters {
    /// `configured` is the operator's choice; without one, `PATH` decides.
    #[must_use]
    pub fn new(configured: Option<PathBuf>) -> Self {
        Self { configured, python3: Mutex::default() }
    }

    /// The interpreter for `python3` functions.
    ///
    /// # Errors
    /// Names what was looked for and where; the next call looks again.
    pub async fn python3(&self) -> Result<Arc<Interpreter>, InterpreterError> {
        let mut known = self.python3.lock().await;
        // An upgrade may have replaced what was found.
        if let Some(interpreter) = known.as_ref().filter(|interpreter| interpreter.executable.exists()) {
            return Ok(Arc::clone(interpreter));
        }
        let program = match &self.configured {
            Some(program) => program.clone(),
            None => search("python3", std::env::var_os("PATH").as_deref().unwrap_or_default())?,
        };
        let found = Arc::new(introduce(&program).await?);
        *known = Some(Arc::clone(&found));
        Ok(found)
    }
}

/// The first `name` in the folders of `path`.
fn search(name: &str, path: &OsStr) -> Result<PathBuf, InterpreterError> {
    let searched: Vec<PathBuf> = std::env::split_paths(path).filter(|folder| folder.is_absolute()).collect();
    let found = searched.iter().map(|folder| folder.join(name)).find(|program| is_executable(program));
    found.ok_or(InterpreterError::NotFound { searched })
}

fn is_executable(program: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    program.metadata().is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
}

async fn introduce(program: &Path) -> Result<Interpreter, InterpreterError> {
    let unusable = |problem: String| InterpreterError::Unusable { program: program.to_owned(), problem };
    let mut command = Command::new(program);
    command.args(["-c", INTRODUCTION]).current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PYTHON")) {
        command.env_remove(name);
    }
    let output = tokio::time::timeout(INTRODUCTION_TIMEOUT, command.output())
        .await
        .map_err(|_| unusable(format!("no answer within {} s", INTRODUCTION_TIMEOUT.as_secs())))?
        .map_err(|error| unusable(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(unusable(format!("{}: {}", output.status, said.trim().chars().take(500).collect::<String>())));
    }
    let found: Interpreter =
        serde_json::from_slice(&output.stdout).map_err(|error| unusable(format!("its answer is not ours: {error}")))?;
    if found.version < OLDEST_VERSION {
        return Err(InterpreterError::TooOld { program: program.to_owned(), found: found.version });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn script(directory: &Path, name: &str, text: &str) -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn the_interpreter_in_the_path_is_found_behind_its_shim() {
        let interpreters = Interpreters::new(None);
        let found = interpreters.python3().await.unwrap();
        assert!(found.executable.is_absolute() && found.version >= OLDEST_VERSION);
        assert!(found.path.iter().all(|entry| !entry.is_empty()));
        assert!(Arc::ptr_eq(&found, &interpreters.python3().await.unwrap()), "found once");
    }

    #[test]
    fn a_missing_interpreter_names_where_it_was_looked_for() {
        let empty = tempfile::tempdir().unwrap();
        std::fs::write(empty.path().join("python3"), "not executable").unwrap();
        let path = std::env::join_paths([empty.path(), Path::new("/nowhere"), Path::new("relative")]).unwrap();
        let error = search("python3", &path).unwrap_err();
        let expected = format!("python3 was not found; looked in {}, /nowhere", empty.path().display());
        assert_eq!(error.to_string(), expected);
        assert_eq!(
            search("x", OsStr::new("")).unwrap_err().to_string(),
            "python3 was not found; looked in PATH, which is empty"
        );
    }

    #[tokio::test]
    async fn a_configured_program_that_is_no_python_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let cases = [
            ("missing", None, "No such file"),
            ("failing", Some("#!/bin/sh\necho broken here >&2; exit 4\n"), "exit status: 4: broken here"),
            ("silent", Some("#!/bin/sh\n"), "its answer is not ours"),
        ];
        for (name, text, expected) in cases {
            let program = directory.path().join(name);
            if let Some(text) = text {
                script(directory.path(), name, text);
            }
            let error = Interpreters::new(Some(program.clone())).python3().await.unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(program.to_str().unwrap()), "{error}");
        }
    }

    #[tokio::test]
    async fn an_old_python_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let answer = r#"{"executable":"/x","version":[3,7],"path":[],"prefix":"/","exec_prefix":"/"}"#;
        let program = script(directory.path(), "old", &format!("#!/bin/sh\necho '{answer}'\n"));
        let error = Interpreters::new(Some(program)).python3().await.unwrap_err();
        assert!(error.to_string().ends_with("is Python 3.7, at least 3.8 is needed"), "{error}");
    }
}
