//! Connections that only reach allowed addresses.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Uri;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::address::{AddressRefused, EgressPolicy};

/// How long one address may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How many addresses of a name are tried.
const ADDRESSES_MAX: usize = 8;

/// Why there is no connection. The texts show nothing that the target sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("{host} cannot be resolved: {source}")]
    Resolve { host: String, source: io::Error },
    #[error("{host} must not be reached: {refused}")]
    Refused { host: String, refused: AddressRefused },
    #[error("{address} does not accept a connection: {source}")]
    Connect { address: SocketAddr, source: io::Error },
}

/// Turns a name and a port into addresses.
pub(super) type Resolver = Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// The resolver of the system.
pub(super) fn system_resolver() -> Resolver {
    Arc::new(|host, port| async move { Ok(tokio::net::lookup_host((host.as_str(), port)).await?.collect()) }.boxed())
}

/// Resolves once, checks, and connects to an address that passed.
pub(super) struct Connector {
    policy: Arc<EgressPolicy>,
    resolver: Resolver,
}

impl Connector {
    pub(super) fn new(policy: Arc<EgressPolicy>, resolver: Resolver) -> Self {
        Self { policy, resolver }
    }

    pub(super) async fn connect(&self, uri: &Uri) -> Result<TcpStream, ConnectError> {
        let (host, port) = host_and_port(uri);
        let addresses = match host.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, port)],
            Err(_) => (self.resolver)(host.clone(), port)
                .await
                .map_err(|source| ConnectError::Resolve { host: host.clone(), source })?,
        };
        let none = io::Error::new(io::ErrorKind::NotFound, "it has no address");
        let mut last = ConnectError::Resolve { host: host.clone(), source: none };
        for address in addresses.into_iter().take(ADDRESSES_MAX) {
            match self.connect_to(&host, address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn connect_to(&self, host: &str, address: SocketAddr) -> Result<TcpStream, ConnectError> {
        self.policy.check(address).map_err(|refused| ConnectError::Refused { host: host.to_owned(), refused })?;
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let stream = connected
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
            .map_err(|source| ConnectError::Connect { address, source })?;
        // Small requests must not wait for the acknowledgement of the one before.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

/// Both from a URI that was checked to have a host; port 80 by default.
pub(super) fn host_and_port(uri: &Uri) -> (String, u16) {
    let host = uri.host().unwrap_or_default();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (host.to_owned(), uri.port_u16().unwrap_or(80))
}
