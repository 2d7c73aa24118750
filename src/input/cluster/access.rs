//! The clusters that the operator's settings name: where they are, and what protects the connections to them.
//!
//! Definitions come over the network, so they hold no secret, and name no file of this machine: they name the cluster.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::refusals::Refusals;
use crate::config::secret::Secret;
use crate::input::{ClusterAddress, ClusterBrokers};
use crate::topic::name::ClusterName;

/// How to get to a cluster.
#[derive(Clone, Debug)]
pub struct ClusterAccess {
    /// Brokers to ask first, as `host:port`; at least one.
    pub bootstrap_servers: Vec<String>,
    /// What protects the connections.
    pub security: Security,
}

/// What protects the connections to a cluster's brokers; by default nothing.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// Whether connections are encrypted.
    pub tls: Option<Tls>,
    /// Who we say we are.
    pub sasl: Option<Sasl>,
}

/// A name and its password, and how they are told.
#[derive(Clone, Debug)]
pub struct Sasl {
    pub(super) mechanism: Mechanism,
    pub(super) username: String,
    pub(super) password: Secret,
    /// Of all connections that go by it.
    pub(super) refusals: Arc<Refusals>,
}

impl Sasl {
    /// Who we are, not empty, and what shows it.
    #[must_use]
    pub fn new(mechanism: Mechanism, username: impl Into<String>, password: Secret) -> Self {
        Self { mechanism, username: username.into(), password, refusals: Arc::default() }
    }
}

/// A SASL mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// The password as it is, RFC 4616.
    Plain,
    /// A proof that the password is known, on both sides; RFC 7677.
    ScramSha256,
    /// The same with the longer hash.
    ScramSha512,
}

impl Mechanism {
    /// All there are, by their names.
    pub const ALL: [(&str, Self); 3] =
        [("PLAIN", Self::Plain), ("SCRAM-SHA-256", Self::ScramSha256), ("SCRAM-SHA-512", Self::ScramSha512)];

    /// Its name among SASL's.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, mechanism)| *mechanism == self).map_or("", |(name, _)| name)
    }
}

/// The files that TLS goes by, in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Whom to believe who a broker is; by default those whom this machine believes.
    pub ca: Option<PathBuf>,
    /// Our own certificate, with those that vouch for it, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// TLS as its files say, which were read once.
#[derive(Clone)]
pub struct Tls(TlsConnector);

/// Why TLS cannot be spoken as the settings say.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read, or does not hold what it should.
    #[error("{field}: {path}: {reason}")]
    File {
        /// Which setting names it.
        field: &'static str,
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There is nobody to believe.
    #[error(
        "ca: found nothing, and this machine has no certificates of authorities that can be read{reason}: \
         name a file with those to believe"
    )]
    NoRoots {
        /// What went wrong first, with a separator before it, if anything did.
        reason: String,
    },
}

impl Tls {
    /// Reads the files. Blocks on the disk.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn new(files: &TlsFiles) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        match &files.ca {
            Some(path) => {
                for certificate in certificates("ca", path)? {
                    roots.add(certificate).map_err(|error| wrong("ca", path, &error))?;
                }
            }
            None => {
                // Those that cannot be read are nobody to believe; some machines have old ones.
                let found = rustls_native_certs::load_native_certs();
                let (read, _) = roots.add_parsable_certificates(found.certs);
                if read == 0 {
                    let reason = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
                    return Err(TlsError::NoRoots { reason });
                }
            }
        }
        // Named, because what else is built in may choose another one for the process.
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("it has ciphers for them")
            .with_root_certificates(roots);
        let config = match &files.identity {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates("certificate", certificate)?;
                let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong("key", key, &error))?;
                config.with_client_auth_cert(chain, private).map_err(|error| wrong("key", key, &error))?
            }
        };
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    pub(super) const fn connector(&self) -> &TlsConnector {
        &self.0
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

fn certificates(field: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let read: Vec<_> = read.map_err(|error| wrong(field, path, &error))?;
    if read.is_empty() { Err(wrong(field, path, &"there is no certificate in it")) } else { Ok(read) }
}

fn wrong(field: &'static str, path: &Path, reason: &dyn fmt::Display) -> TlsError {
    TlsError::File { field, path: path.to_owned(), reason: reason.to_string() }
}

/// The clusters that definitions may name.
#[derive(Clone, Debug, Default)]
pub struct Clusters(BTreeMap<ClusterName, ClusterAccess>);

impl Clusters {
    /// How to get to the cluster that is meant; `None`: there is none with this name.
    #[must_use]
    pub fn access(&self, address: &ClusterAddress) -> Option<ClusterAccess> {
        match &address.brokers {
            ClusterBrokers::Named(name) => self.0.get(name).cloned(),
            ClusterBrokers::Listed(bootstrap_servers) => {
                Some(ClusterAccess { bootstrap_servers: bootstrap_servers.clone(), security: Security::default() })
            }
        }
    }

    /// Their names, in order.
    pub fn names(&self) -> impl Iterator<Item = &ClusterName> {
        self.0.keys()
    }
}

impl FromIterator<(ClusterName, ClusterAccess)> for Clusters {
    fn from_iter<I: IntoIterator<Item = (ClusterName, ClusterAccess)>>(clusters: I) -> Self {
        Self(clusters.into_iter().collect())
    }
}
