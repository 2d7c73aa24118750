//! Waiting for what other processes do, where there is nothing to listen to.

use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything that tests wait for takes; only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// How often is looked.
pub(crate) const LOOK: Duration = Duration::from_millis(20);

/// Looks until there is something.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let begin = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(instead) => assert!(begin.elapsed() < PATIENCE, "no {what}, but {instead}"),
        }
        thread::sleep(LOOK);
    }
}
