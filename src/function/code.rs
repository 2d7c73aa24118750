//! Code as it is uploaded: one Python file or a zip archive, checked before anything touches the disk.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};

use bytes::Bytes;
use zip::ZipArchive;

/// How large uploaded code may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeLimits {
    /// Bytes of all files after unpacking, and of the upload itself. Default 50 MiB.
    pub unpacked_bytes_max: usize,
    /// Number of files. Default 5,000.
    pub files_max: usize,
}

impl Default for CodeLimits {
    fn default() -> Self {
        Self { unpacked_bytes_max: 50 << 20, files_max: 5_000 }
    }
}

/// The longest path of a file inside the code, in bytes, and the longest name in it.
const PATH_BYTES_MAX: usize = 512;
const NAME_BYTES_MAX: usize = 255;

/// Why uploaded code was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodeError {
    /// Nothing was uploaded.
    #[error("the code is empty")]
    Empty,
    /// More bytes than allowed, packed or unpacked.
    #[error("the code is larger than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// More files than allowed.
    #[error("the code has {found} files, the limit is {limit}")]
    TooManyFiles {
        /// Entries of the archive.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// Starts like no zip archive and contains a byte that no source file has.
    #[error("the code is neither a zip archive nor Python source: byte {offset} is 0")]
    NeitherZipNorSource {
        /// Where the byte is.
        offset: usize,
    },
    /// A name that could leave the code folder or would be read differently elsewhere.
    #[error("the archive has a file named {name:?}: {problem}")]
    BadName {
        /// The name as found.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Two names that are one on some file systems, or a file where another needs a folder.
    #[error("the archive has both {first:?} and {second:?}, which collide")]
    Collision {
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// The archive cannot be read.
    #[error("the zip archive cannot be read: {0}")]
    BadArchive(String),
}

/// Checked code: relative file paths and their bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeBundle {
    files: BTreeMap<String, Bytes>,
}

/// Where Python keeps what it made of the code.
pub(super) const BYTECODE: &str = "__pycache__";

impl CodeBundle {
    /// Checks `upload`: a zip archive, or the source of the Python module `module` (`a.b` becomes `a/b.py`).
    ///
    /// # Errors
    /// [`CodeError`] names the file and what is wrong with it; nothing was written anywhere.
    pub fn parse(upload: &Bytes, module: &str, limits: CodeLimits) -> Result<Self, CodeError> {
        if upload.is_empty() {
            return Err(CodeError::Empty);
        }
        if upload.len() > limits.unpacked_bytes_max {
            return Err(CodeError::TooLarge { limit: limits.unpacked_bytes_max });
        }
        if upload.starts_with(b"PK\x03\x04") || upload.starts_with(b"PK\x05\x06") {
            return Self::from_zip(upload, limits);
        }
        if let Some(offset) = upload.iter().position(|&byte| byte == 0) {
            return Err(CodeError::NeitherZipNorSource { offset });
        }
        let path = format!("{}.py", module.replace('.', "/"));
        check_path(&path)?;
        Ok(Self { files: BTreeMap::from([(path, upload.clone())]) })
    }

    /// Relative paths with their contents, in order of the paths.
    pub fn files(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.files.iter().map(|(path, contents)| (path.as_str(), contents))
    }

    /// How many files there are.
    #[must_use]
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    fn from_zip(upload: &Bytes, limits: CodeLimits) -> Result<Self, CodeError> {
        let mut archive = ZipArchive::new(Cursor::new(&upload[..])).map_err(bad_archive)?;
        if archive.len() > limits.files_max {
            return Err(CodeError::TooManyFiles { found: archive.len(), limit: limits.files_max });
        }
        let mut files = BTreeMap::new();
        let mut left_bytes = limits.unpacked_bytes_max;
        for index in 0..archive.len() {
            if let Some((path, contents)) = read_entry(&mut archive, index, left_bytes, limits.unpacked_bytes_max)? {
                left_bytes -= contents.len();
                // Python makes them anew: they are no part of the code, here as in a folder.
                if !path.split('/').any(|part| part == BYTECODE) {
                    files.insert(path, contents);
                }
            }
        }
        if files.is_empty() {
            return Err(CodeError::Empty);
        }
        check_collisions(files.keys())?;
        Ok(Self { files })
    }
}

fn bad_archive(error: impl std::fmt::Display) -> CodeError {
    CodeError::BadArchive(error.to_string())
}

/// The path and contents of an entry, or nothing for a folder.
fn read_entry(
    archive: &mut ZipArchive<Cursor<&[u8]>>,
    index: usize,
    left_bytes: usize,
    limit: usize,
) -> Result<Option<(String, Bytes)>, CodeError> {
    let entry = archive.by_index(index).map_err(bad_archive)?;
    let Ok(path) = std::str::from_utf8(entry.name_raw()) else {
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        return Err(CodeError::BadName { name, problem: "names must be UTF-8" });
    };
    let path = path.to_owned();
    check_mode(&path, entry.unix_mode())?;
    check_path(path.strip_suffix('/').unwrap_or(&path))?;
    if path.ends_with('/') {
        return Ok(None);
    }
    // The size that the archive claims is not trusted: what comes out is counted.
    let mut contents = Vec::new();
    entry.take(left_bytes as u64 + 1).read_to_end(&mut contents).map_err(bad_archive)?;
    if contents.len() > left_bytes {
        return Err(CodeError::TooLarge { limit });
    }
    Ok(Some((path, contents.into())))
}

/// Only files and folders: no links, devices or pipes.
fn check_mode(path: &str, mode: Option<u32>) -> Result<(), CodeError> {
    const TYPE_MASK: u32 = 0o170_000;
    match mode.map_or(0, |mode| mode & TYPE_MASK) {
        0 | 0o100_000 | 0o040_000 => Ok(()),
        0o120_000 => Err(CodeError::BadName { name: path.to_owned(), problem: "symbolic links are not allowed" }),
        _ => Err(CodeError::BadName { name: path.to_owned(), problem: "only files and folders are allowed" }),
    }
}

fn check_path(path: &str) -> Result<(), CodeError> {
    let problem = if path.len() > PATH_BYTES_MAX {
        "paths have at most 512 bytes"
    } else if path.starts_with('/') {
        "absolute paths are not allowed"
    } else if path.contains(['\\', ':']) {
        "backslashes and colons are not allowed"
    } else if path.chars().any(char::is_control) {
        "control characters are not allowed"
    } else if path.split('/').any(|name| matches!(name, "" | "." | "..")) {
        "empty names, . and .. are not allowed"
    } else if path.split('/').any(|name| name.len() > NAME_BYTES_MAX) {
        "names have at most 255 bytes"
    } else {
        return Ok(());
    };
    Err(CodeError::BadName { name: path.to_owned(), problem })
}

/// Refuses two spellings of one name, and a file whose name is a folder of another.
fn check_collisions<'a>(paths: impl Iterator<Item = &'a String>) -> Result<(), CodeError> {
    /// How a folded path or folder is spelled, and whether it is a file.
    type Spellings = BTreeMap<String, (String, bool)>;
    fn claim(seen: &mut Spellings, spelled: &str, is_file: bool) -> Result<(), CodeError> {
        let claimed = seen.entry(spelled.to_lowercase()).or_insert_with(|| (spelled.to_owned(), is_file));
        if claimed.0 == spelled && claimed.1 == is_file {
            return Ok(());
        }
        Err(CodeError::Collision { first: claimed.0.clone(), second: spelled.to_owned() })
    }
    let mut seen = Spellings::new();
    for path in paths {
        for (end, _) in path.match_indices('/') {
            claim(&mut seen, &path[..end], false)?;
        }
        claim(&mut seen, path, true)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    fn zip_of(entries: &[(&str, &[u8])]) -> Bytes {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, contents) in entries {
            writer.start_file(*name, SimpleFileOptions::default()).unwrap();
            writer.write_all(contents).unwrap();
        }
        writer.finish().unwrap().into_inner().into()
    }

    fn parse(upload: &Bytes) -> Result<CodeBundle, CodeError> {
        CodeBundle::parse(upload, "notify", CodeLimits::default())
    }

    #[test]
    fn a_source_file_takes_the_name_of_its_module() {
        let upload = Bytes::from_static(b"def handler(event, context): pass\n");
        let bundle = CodeBundle::parse(&upload, "pkg.notify", CodeLimits::default()).unwrap();
        assert_eq!(bundle.files().collect::<Vec<_>>(), [("pkg/notify.py", &upload)]);
    }

    #[test]
    fn an_archive_keeps_its_folders() {
        let upload = zip_of(&[("notify.py", b"import lib.a"), ("lib/a.py", b"x = 1"), ("lib/data.bin", b"\0\x01")]);
        let names: Vec<_> = parse(&upload).unwrap().files.into_keys().collect();
        assert_eq!(names, ["lib/a.py", "lib/data.bin", "notify.py"]);
    }

    #[test]
    fn what_python_made_of_the_code_is_no_part_of_it() {
        let code: (&str, &[u8]) = ("pkg/notify.py", b"x = 1");
        let upload = zip_of(&[("__pycache__/a.pyc", b"1"), code, ("pkg/__pycache__/notify.pyc", b"2")]);
        assert_eq!(parse(&upload), parse(&zip_of(&[code])));
        assert_eq!(parse(&zip_of(&[("__pycache__/a.pyc", b"1")])), Err(CodeError::Empty));
    }

    #[test]
    fn what_is_neither_source_nor_archive_is_named() {
        assert_eq!(parse(&Bytes::new()), Err(CodeError::Empty));
        assert_eq!(parse(&Bytes::from_static(b"\x1f\x8b\x08\0gz")), Err(CodeError::NeitherZipNorSource { offset: 3 }));
        assert!(matches!(parse(&Bytes::from_static(b"PK\x03\x04broken")), Err(CodeError::BadArchive(_))));
        assert_eq!(parse(&zip_of(&[])), Err(CodeError::Empty));
    }

    #[test]
    fn names_that_could_leave_the_folder_are_refused() {
        for name in
            ["../x.py", "a/../../x.py", "/etc/x", "a\\..\\x.py", "c:/x", "a//b", "./a", "a\nb", &"x".repeat(256)]
        {
            let error = parse(&zip_of(&[(name, b"")])).unwrap_err();
            assert!(matches!(&error, CodeError::BadName { name: found, .. } if found == name), "{name:?}: {error}");
        }
    }

    #[test]
    fn symbolic_links_are_refused() {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        writer.add_symlink("link.py", "/etc/passwd", SimpleFileOptions::default()).unwrap();
        let upload = writer.finish().unwrap().into_inner().into();
        let error = parse(&upload).unwrap_err();
        assert_eq!(error.to_string(), "the archive has a file named \"link.py\": symbolic links are not allowed");
    }

    #[test]
    fn names_that_collide_are_refused() {
        for pair in [["a.py", "A.py"], ["lib/a.py", "Lib/b.py"], ["lib", "lib/a.py"], ["LIB", "lib/a.py"]] {
            let error = parse(&zip_of(&[(pair[0], b""), (pair[1], b"")])).unwrap_err();
            assert!(matches!(error, CodeError::Collision { .. }), "{pair:?}: {error}");
        }
    }

    #[test]
    fn limits_hold_for_what_really_comes_out() {
        let limits = CodeLimits { unpacked_bytes_max: 1000, files_max: 2 };
        let bomb = zip_of(&[("a.py", &[b'#'; 600]), ("b.py", &[b'#'; 401])]);
        assert!(bomb.len() < 1000, "the upload itself must pass");
        assert_eq!(CodeBundle::parse(&bomb, "a", limits), Err(CodeError::TooLarge { limit: 1000 }));
        let exact = zip_of(&[("a.py", &[b'#'; 600]), ("b.py", &[b'#'; 400])]);
        assert_eq!(CodeBundle::parse(&exact, "a", limits).unwrap().file_count(), 2);
        let many = zip_of(&[("a", b""), ("b", b""), ("c", b"")]);
        assert_eq!(CodeBundle::parse(&many, "a", limits), Err(CodeError::TooManyFiles { found: 3, limit: 2 }));
        let long = Bytes::from(vec![b'#'; 1001]);
        assert_eq!(CodeBundle::parse(&long, "a", limits), Err(CodeError::TooLarge { limit: 1000 }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_without_a_panic(tail in proptest::collection::vec(any::<u8>(), 0..400), zip in any::<bool>()) {
            let mut upload = if zip { b"PK\x03\x04".to_vec() } else { Vec::new() };
            upload.extend(tail);
            let _ = parse(&upload.into());
        }

        #[test]
        fn a_damaged_archive_is_answered_without_a_panic(at in 0usize..400, bit in 0u8..8) {
            let mut upload = zip_of(&[("notify.py", b"x = 1\n"), ("lib/a.py", &[b'#'; 200])]).to_vec();
            let at = at % upload.len();
            upload[at] ^= 1 << bit;
            let _ = parse(&upload.into());
        }
    }
}
