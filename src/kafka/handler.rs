//! The seam between the wire and what requests do.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use smallvec::SmallVec;

use super::request::DecodedRequest;

/// Begins one request. One value serves every connection.
///
/// The requests of one connection are begun one after the other, in the order in which they came: what must happen in
/// that order (an append, a commit) happens in the future that this answers. What may take long and must not hold up
/// the next request (waiting for the disk, for records, for the other members of a group) goes into [`Answer::Later`].
/// Later answers are awaited in order too, one at a time, so that responses leave in the order of the requests.
///
/// ApiVersions never gets here: it concerns the connection alone. A panic closes the connection and nothing else. The
/// future is dropped when the client goes away.
pub type Handler =
    Arc<dyn Fn(DecodedRequest, Arc<ConnectionContext>) -> BoxFuture<'static, Answer> + Send + Sync + 'static>;

/// What a [`Handler`]'s future ends with.
pub enum Answer {
    /// The response is there.
    Now(Response),
    /// The response follows.
    Later(BoxFuture<'static, Response>),
    /// The response follows, perhaps after long, and nothing is kept of the request meanwhile: what was taken for its
    /// memory is given back at once.
    Detached(BoxFuture<'static, Response>),
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Now(response) => formatter.debug_tuple("Now").field(response).finish(),
            Self::Later(_) => formatter.write_str("Later"),
            Self::Detached(_) => formatter.write_str("Detached"),
        }
    }
}

/// What goes back to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// A frame.
    Frame(ResponseFrame),
    /// Nothing at all: a Produce with `acks=0`.
    Silence,
    /// The connection ends, for this reason: a Produce with `acks=0` that failed has no other way to say so.
    Close(&'static str),
}

/// A whole response frame, in parts that are written one after the other without being copied together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseFrame {
    parts: SmallVec<[Bytes; 1]>,
}

impl ResponseFrame {
    /// A frame in parts; the first holds the length. Empty parts are left out.
    #[must_use]
    pub fn from_parts(parts: impl IntoIterator<Item = Bytes>) -> Self {
        Self { parts: parts.into_iter().filter(|part| !part.is_empty()).collect() }
    }

    /// Its parts, none of them empty.
    #[must_use]
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// Its parts, by value.
    pub fn into_parts(self) -> impl Iterator<Item = Bytes> {
        self.parts.into_iter()
    }

    /// Length in bytes of all parts.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }
}

impl From<Bytes> for ResponseFrame {
    fn from(frame: Bytes) -> Self {
        Self::from_parts([frame])
    }
}

/// What is known of a connection.
#[derive(Debug)]
pub struct ConnectionContext {
    /// Unique in this process, rising.
    pub id: u64,
    /// Where the client connects from.
    pub peer: SocketAddr,
    /// The address of ours that the client connected to: what we advertise to it, unless configured otherwise.
    pub local: SocketAddr,
    /// What the client said of itself in ApiVersions, once.
    pub software: OnceLock<ClientSoftware>,
}

/// The client library, as it names itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSoftware {
    /// Such as `librdkafka`.
    pub name: String,
    /// Such as `2.15.0`.
    pub version: String,
}
