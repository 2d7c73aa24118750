//! What ties the processes of functions to one data directory.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use uuid::Uuid;

/// The data directory that instances belong to: its id, and where it lies. A copy has the same id, and its broker may
/// run beside that of the original.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home(String);

impl Home {
    /// That of a data directory which this process alone has open.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn new(cluster_id: Uuid, data: &Path) -> io::Result<Self> {
        let place = fs::metadata(data)?;
        Ok(Self(format!("{cluster_id}.{:x}-{:x}", place.dev(), place.ino())))
    }

    /// What an instance and all its processes are marked with.
    pub(super) fn mark_of(&self, instance: &str) -> String {
        format!("{}/{instance}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_a_directory_is_another_home() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let id = Uuid::from_u128(7);
        let home = Home::new(id, one.path()).unwrap();
        assert_eq!(home, Home::new(id, one.path()).unwrap());
        assert_ne!(home, Home::new(id, other.path()).unwrap());
        assert_ne!(home, Home::new(Uuid::from_u128(8), one.path()).unwrap());
        assert!(home.mark_of("x").starts_with(&format!("{id}.")) && home.mark_of("x").ends_with("/x"));
    }
}
