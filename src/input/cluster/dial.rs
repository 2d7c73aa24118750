//! Connecting to a broker: TCP, and TLS over it where that is asked for.

use std::io;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::Error as TlsFailure;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::either::Either;

use super::access::Security;
use super::wire::CallError;

/// A way to a broker.
pub(super) type Socket = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// How brokers are connected to, and what they are told of us.
#[derive(Clone, Debug)]
pub(super) struct Dialer {
    pub(super) client_id: String,
    pub(super) security: Security,
}

impl Dialer {
    /// Connects to a broker, `host:port`, until `deadline`.
    pub(super) async fn connect(&self, address: &str, deadline: Instant) -> Result<Socket, CallError> {
        let failed = |source| CallError::Io { address: address.to_owned(), source };
        let socket = timeout_at(deadline, TcpStream::connect(address)).await;
        let socket = socket.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)?;
        socket.set_nodelay(true).map_err(failed)?;
        let Some(tls) = &self.security.tls else { return Ok(Either::Left(socket)) };
        let refused = |reason: String| CallError::Tls { address: address.to_owned(), reason };
        let name = ServerName::try_from(host(address).to_owned()).map_err(|error| refused(error.to_string()))?;
        match timeout_at(deadline, tls.connector().connect(name, socket)).await {
            Ok(Ok(secured)) => Ok(Either::Right(Box::new(secured))),
            Ok(Err(error)) => Err(not_secured(address, error)),
            Err(_) => Err(failed(io::Error::new(io::ErrorKind::TimedOut, "no end of the TLS handshake"))),
        }
    }
}

/// The host of `host:port`, an IPv6 address without its brackets.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// What went wrong, with a guess where a listener without TLS is the usual cause. A connection that broke is told as
/// such: that passes.
fn not_secured(address: &str, error: io::Error) -> CallError {
    const GUESS: &str = "is this the port of a listener without TLS?";
    let address = address.to_owned();
    match error.get_ref().and_then(|cause| cause.downcast_ref::<TlsFailure>()) {
        Some(TlsFailure::InvalidMessage(_)) => CallError::Tls { address, reason: format!("{error}; {GUESS}") },
        Some(_) => CallError::Tls { address, reason: error.to_string() },
        None => {
            let said = format!("{error}, in the TLS handshake; {GUESS}");
            CallError::Io { address, source: io::Error::new(error.kind(), said) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_what_stands_before_the_port() {
        assert_eq!(host("kafka1:9092"), "kafka1");
        assert_eq!(host("127.0.0.1:9092"), "127.0.0.1");
        assert_eq!(host("[::1]:9092"), "::1");
    }
}
