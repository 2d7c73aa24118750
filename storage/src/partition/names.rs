//! Making the names of a partition's files durable.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::Partition;
use crate::error::Stopped;
use crate::fs;
use crate::limits::DESCRIPTOR_RETRY;

/// Why names are not durable.
pub(super) enum NamesError {
    /// There was no descriptor for the directory: it was not tried, so that nothing is lost.
    NoDescriptors(io::Error),
    /// The partition has stopped, with this sync or before.
    Stopped(Stopped),
}

impl Partition {
    /// Syncs the directory; waits for a descriptor for so long at most.
    ///
    /// One at a time, and none after one that failed: the system tells of that once, the names that are lost with it may
    /// be anybody's, and a later sync would vouch for them all.
    pub(super) fn sync_names(&self, during: &'static str, patience: Duration) -> Result<(), NamesError> {
        let begun = Instant::now();
        loop {
            let turn = self.names.lock();
            self.check_running().map_err(NamesError::Stopped)?;
            match self.shared.fs.sync_dir(&self.dir) {
                Ok(()) => return Ok(()),
                Err(cause) if !fs::is_out_of_descriptors(&cause) => {
                    return Err(NamesError::Stopped(self.stop(during, cause)));
                }
                Err(cause) if begun.elapsed() >= patience => return Err(NamesError::NoDescriptors(cause)),
                Err(_) => {}
            }
            drop(turn);
            thread::sleep(DESCRIPTOR_RETRY);
        }
    }
}
