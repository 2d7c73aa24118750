//! Connecting to a broker: TCP, and TLS over it where that is asked for.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
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
    /// Connects to a broker, `host:port`; the connection and the handshake have `patience` each.
    pub(super) async fn connect(&self, address: &str, patience: Duration) -> Result<Socket, CallError> {
        let failed = |source| CallError::Io { address: address.to_owned(), source };
        let in_time = |result: Result<_, _>| result.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let socket = in_time(timeout(patience, TcpStream::connect(address)).await).map_err(failed)?;
        socket.set_nodelay(true).map_err(failed)?;
        let Some(tls) = &self.security.tls else { return Ok(Either::Left(socket)) };
        let refused = |reason: String| CallError::Tls { address: address.to_owned(), reason };
        let name = ServerName::try_from(host(address).to_owned()).map_err(|error| refused(error.to_string()))?;
        match timeout(patience, tls.connector().connect(name, socket)).await {
            Ok(Ok(secured)) => Ok(Either::Right(Box::new(secured))),
            Ok(Err(error)) => Err(refused(explain(&error))),
            Err(_) => Err(refused(format!("no end of the handshake after {} ms", patience.as_millis()))),
        }
    }
}

/// The host of `host:port`, an IPv6 address without its brackets.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// What went wrong, and what to do about the usual cause.
fn explain(error: &io::Error) -> String {
    let failure = error.get_ref().and_then(|cause| cause.downcast_ref::<TlsFailure>());
    let speaks_no_tls = match failure {
        Some(failure) => matches!(failure, TlsFailure::InvalidMessage(_)),
        None => matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset),
    };
    if speaks_no_tls { format!("{error}; is this the port of a listener without TLS?") } else { error.to_string() }
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
