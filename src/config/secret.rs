//! Secrets of the operator's own file: never shown, and best kept elsewhere.

use std::{fmt, io};

/// What the text of a secret may be.
pub const SECRET_ALLOWED: &str = "the secret itself, or where it stands: ${env:NAME} or ${file:PATH}";

/// The longest file that is read for a secret.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// How much of a path is shown.
const SHOWN_CHARS_MAX: usize = 200;

/// A text that is not to be seen. Its debug form does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Why a secret is not known. Never says what it is.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// There is nothing.
    #[error("it is empty")]
    Empty,
    /// No password has this character.
    #[error("it has a character NUL")]
    Nul,
    /// It begins like a reference and is none.
    #[error("it begins with ${{ and is neither ${{env:NAME}} nor ${{file:PATH}}")]
    Reference,
    /// The variable is not set, or no text.
    #[error("the environment variable {name} is not set to a text")]
    Variable {
        /// Which.
        name: String,
    },
    /// The file cannot be read, or is no text.
    #[error("cannot read {path}: {cause}")]
    File {
        /// Which.
        path: String,
        /// Why.
        cause: io::Error,
    },
}

impl Secret {
    /// The secret that `written` is, or tells of: `${env:NAME}` is the value of an environment variable, `${file:PATH}`
    /// what a file holds, without the ends of its last line. For what the operator wrote alone: whoever else could name
    /// a file here could read it.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub fn resolve(written: &str) -> Result<Self, SecretError> {
        let text = match written.strip_prefix("${") {
            None => written.to_owned(),
            Some(rest) => {
                let reference = rest.strip_suffix('}').and_then(|inner| inner.split_once(':'));
                match reference.filter(|(_, what)| !what.is_empty()) {
                    Some(("env", name)) => {
                        std::env::var(name).map_err(|_| SecretError::Variable { name: name.to_owned() })?
                    }
                    Some(("file", path)) => {
                        let text = read(path).map_err(|cause| {
                            let path = path.chars().take(SHOWN_CHARS_MAX).collect();
                            SecretError::File { path, cause }
                        })?;
                        text.trim_end_matches(['\r', '\n']).to_owned()
                    }
                    _ => return Err(SecretError::Reference),
                }
            }
        };
        match text {
            text if text.is_empty() => Err(SecretError::Empty),
            text if text.contains('\0') => Err(SecretError::Nul),
            text => Ok(Self(text)),
        }
    }

    /// The text, for whom it is meant.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// A file of text and of reasonable length; not a device, nor a pipe that nobody writes to.
fn read(path: &str) -> io::Result<String> {
    let about = std::fs::metadata(path)?;
    if !about.is_file() || about.len() > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it is no file of at most {FILE_BYTES_MAX} bytes")));
    }
    std::fs::read_to_string(path)
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(not shown)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_what_is_written_or_what_stands_where_that_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "  from a file \r\n\n").unwrap();
        assert_eq!(Secret::resolve("it self").unwrap().reveal(), "it self");
        assert_eq!(Secret::resolve("$x{}").unwrap().reveal(), "$x{}");
        assert_eq!(Secret::resolve(&format!("${{file:{}}}", path.display())).unwrap().reveal(), "  from a file ");
        // Cargo sets it for every test.
        assert_eq!(Secret::resolve("${env:CARGO_PKG_NAME}").unwrap().reveal(), "tripline");
    }

    #[test]
    fn what_cannot_be_known_is_refused_and_nothing_is_shown() {
        let refused = |written: &str| Secret::resolve(written).unwrap_err().to_string();
        assert_eq!(refused(""), "it is empty");
        for written in ["${hush}", "${env:}", "${file:x", "${vault:hush}", "${"] {
            let said = refused(written);
            assert!(said.contains("neither ${env:NAME} nor ${file:PATH}") && !said.contains("hush"), "{said}");
        }
        assert!(refused("${env:TRIPLINE_NO_SUCH_VARIABLE}").contains("TRIPLINE_NO_SUCH_VARIABLE is not set"));
        assert_eq!(refused("a\0b"), "it has a character NUL");
        assert!(refused("${file:/dev/zero}").contains("no file of at most 65536 bytes"));
        assert!(refused("${file:/no/such/file}").contains("cannot read /no/such/file"));
        assert!(!format!("{:?}", Secret::resolve("hush").unwrap()).contains("hush"));
    }
}
