//! Ports for those who cannot ask for any free one: whoever must come back on the same port, or cannot say which it got.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

/// A port of 127.0.0.1 that nobody listens on, another one each time. It is outside of those that the system gives to
/// whoever asks for any, so that it stays free until it is taken.
pub(crate) fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = fastrand::u16(15_000..32_000);
        let is_new = GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port);
        if is_new && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
