//! One connection to one broker of a cluster: requests out, answers in, one at a time.
//!
//! The schemas are those of `kafka-wire`, as on the socket of our own; here they are the client's side. A frame that a
//! broker announces is read as it comes, so that memory grows with the bytes that are there.

use std::collections::HashMap;
use std::io;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_wire::{ApiVersionsRequest, KafkaRequest, KafkaResponse, OutboundFrameLimits, RequestResponsePair};
use kafka_wire_core::{DecodeLimits, Decoder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::dial::{Dialer, Socket};
use super::sasl;

/// The messages themselves, by their names: nothing else of this room names the crate.
pub(super) use kafka_wire as schema;
pub(super) use kafka_wire_core::{ApiVersion, StrBytes, Uuid as WireUuid};

/// The longest answer that is read: what a fetch may hold, and one large batch on top.
const FRAME_BYTES_MAX: usize = 128 << 20;
/// The same before the broker knows who we are: whoever listens there may be anybody.
const EARLY_FRAME_BYTES_MAX: usize = 1 << 20;
/// How long a broker may take until a connection speaks, and to answer what it answers at once.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long a broker may take to accept a connection in place of one that it closed: if it is gone, somebody else leads
/// or coordinates soon, and is to be asked for.
const REDIAL: Duration = Duration::from_secs(2);
/// How much of the time is used for which a broker believes who we are, from and to: a request must arrive in it, and
/// connections that began together need not be made anew together.
const LIFETIME_USED: (f64, f64) = (0.80, 0.90);

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The broker cannot be reached, or went away.
    #[error("{address}: {source}")]
    Io {
        /// Which.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// It took too long.
    #[error("{address}: no answer to {request} after {after_ms} ms")]
    Timeout {
        /// Which.
        address: String,
        /// To what.
        request: &'static str,
        /// How long was waited.
        after_ms: u128,
    },
    /// It speaks no version of this request that we speak.
    #[error("{address}: {request} is spoken there in versions {theirs:?}, here in {ours:?}")]
    Versions {
        /// Which.
        address: String,
        /// Which request.
        request: &'static str,
        /// Theirs, if any.
        theirs: Option<(i16, i16)>,
        /// Ours.
        ours: (i16, i16),
    },
    /// The connection cannot be encrypted, or the broker is not who it should be.
    #[error("{address}: TLS: {reason}")]
    Tls {
        /// Which.
        address: String,
        /// Why.
        reason: String,
    },
    /// It cannot be said to the broker who we are.
    #[error("{address}: {mechanism}: {reason}")]
    Sasl {
        /// Which.
        address: String,
        /// How it was to be said.
        mechanism: &'static str,
        /// Why not.
        reason: String,
    },
    /// The broker does not take us for who we say we are.
    #[error("{address}: not authenticated as {username:?} by {mechanism}: {reason}")]
    Unauthenticated {
        /// Which.
        address: String,
        /// How it was said.
        mechanism: &'static str,
        /// Who we said we are.
        username: String,
        /// Why not.
        reason: String,
    },
    /// Its answer cannot be read.
    #[error("{address}: the answer to {request} cannot be read: {reason}")]
    Malformed {
        /// Which.
        address: String,
        /// To what.
        request: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// A connection that speaks. One that failed, or whose call was dropped, is of no use any more.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Socket,
    address: String,
    client_id: String,
    next_id: i32,
    versions: HashMap<i16, (i16, i16)>,
    frame_bytes_max: usize,
    /// Until when the broker believes who we are, if it told.
    good_until: Option<Instant>,
}

impl Connection {
    pub(super) async fn open(address: &str, dialer: &Dialer, patience: Duration) -> Result<Self, CallError> {
        let sasl = dialer.security.sasl.as_ref();
        if let Some((sasl, reason)) = sasl.and_then(|sasl| Some((sasl, sasl.refusals.holding(Instant::now())?))) {
            return Err(sasl::unauthenticated(address, sasl, reason));
        }
        let deadline = Instant::now() + patience;
        let mut connection = Self {
            socket: dialer.connect(address, deadline).await?,
            address: address.to_owned(),
            client_id: dialer.client_id.clone(),
            next_id: 1,
            versions: HashMap::new(),
            frame_bytes_max: EARLY_FRAME_BYTES_MAX,
            good_until: None,
        };
        let spoken = connection.call_as(0, &ApiVersionsRequest::default(), sasl::left(deadline)).await;
        let is_plain = dialer.security.tls.is_none();
        let spoken =
            spoken.map_err(|error| if is_plain { guess(error, "does this listener want TLS?") } else { error })?;
        let spoken = spoken.api_keys.iter();
        connection.versions = spoken.map(|api| (api.api_key, (api.min_version, api.max_version))).collect();
        if let Some(sasl) = sasl {
            let lifetime = sasl::authenticate(&mut connection, sasl, deadline).await?;
            let used = LIFETIME_USED.0 + fastrand::f64() * (LIFETIME_USED.1 - LIFETIME_USED.0);
            connection.good_until = lifetime.map(|lifetime| Instant::now() + lifetime.mul_f64(used));
        }
        connection.frame_bytes_max = FRAME_BYTES_MAX;
        Ok(connection)
    }

    /// Which broker it leads to.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Whether the broker still believes who we are: after that it closes the connection at the next request.
    fn is_good(&self) -> bool {
        self.good_until.is_none_or(|until| Instant::now() < until)
    }

    /// Sends a request in the newest version within `ours` that the broker speaks too.
    pub(super) async fn call<R: RequestResponsePair>(
        &mut self,
        ours: RangeInclusive<i16>,
        request: &R,
        patience: Duration,
    ) -> Result<R::Response, CallError> {
        let theirs = self.versions.get(&<R as KafkaRequest>::API_KEY.value()).copied();
        let version = theirs.map(|(_, max)| max.min(*ours.end()));
        let version =
            version.filter(|version| ours.contains(version) && theirs.is_some_and(|(min, _)| min <= *version));
        let version = version.ok_or_else(|| CallError::Versions {
            address: self.address.clone(),
            request: R::NAME,
            theirs,
            ours: (*ours.start(), *ours.end()),
        })?;
        self.call_as(version, request, patience).await
    }

    async fn call_as<R: RequestResponsePair>(
        &mut self,
        version: i16,
        request: &R,
        patience: Duration,
    ) -> Result<R::Response, CallError> {
        let exchanged = timeout(patience, self.exchange(version, request)).await;
        exchanged.unwrap_or_else(|_| {
            let (address, after_ms) = (self.address.clone(), patience.as_millis());
            Err(CallError::Timeout { address, request: R::NAME, after_ms })
        })
    }

    async fn exchange<R: RequestResponsePair>(&mut self, version: i16, request: &R) -> Result<R::Response, CallError> {
        let malformed = |address: &str, reason: &dyn ToString| CallError::Malformed {
            address: address.to_owned(),
            request: R::NAME,
            reason: reason.to_string(),
        };
        let mut frame = BytesMut::new();
        let limits = OutboundFrameLimits::new(FRAME_BYTES_MAX);
        let client_id = Some(StrBytes::from(self.client_id.clone()));
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        kafka_wire::encode_request(&mut frame, id, client_id, request, ApiVersion::new(version), limits)
            .map_err(|reason| malformed(&self.address, &reason))?;
        let failed = |address: &str, source| CallError::Io { address: address.to_owned(), source };
        self.socket.write_all(&frame).await.map_err(|source| failed(&self.address, source))?;
        self.socket.flush().await.map_err(|source| failed(&self.address, source))?;
        let answer = self.receive().await.map_err(|source| failed(&self.address, source))?;
        decode::<R::Response>(answer, id, version).map_err(|reason| malformed(&self.address, &reason))
    }

    async fn receive(&mut self) -> io::Result<Bytes> {
        let length = self.socket.read_i32().await?;
        let length = usize::try_from(length).ok().filter(|length| *length <= self.frame_bytes_max);
        let length = length
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the announced length is out of bounds"))?;
        let mut frame = BytesMut::new();
        let mut rest = (&mut self.socket).take(length as u64);
        while frame.len() < length {
            if rest.read_buf(&mut frame).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(frame.freeze())
    }
}

fn was_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}

/// A broker whose listener wants something else closes the connection, with or without a TLS alert before: says what
/// that may be.
fn guess(error: CallError, what: &str) -> CallError {
    match error {
        CallError::Io { address, source } if was_closed(&source) || source.kind() == io::ErrorKind::InvalidData => {
            let hint = format!("{source}, in place of an answer; {what}");
            CallError::Io { address, source: io::Error::new(source.kind(), hint) }
        }
        other => other,
    }
}

fn decode<R: KafkaResponse>(frame: Bytes, id: i32, version: i16) -> Result<R, String> {
    let mut decoder = Decoder::new(frame, limits()).map_err(|error| error.to_string())?;
    let found = decoder.read_i32().map_err(|error| error.to_string())?;
    if found != id {
        return Err(format!("correlation id {found} instead of {id}"));
    }
    let version = ApiVersion::new(version);
    if kafka_wire::response_header_version(R::API_KEY, version, R::is_flexible(version)) == 1 {
        decoder.read_tagged_fields().map_err(|error| error.to_string())?;
    }
    R::decode(&mut decoder, version).map_err(|error| error.to_string())
}

/// Bounds on what an answer may hold; the frame itself is bounded before.
pub(super) fn limits() -> DecodeLimits {
    let mut limits = DecodeLimits::default();
    limits.max_frame_bytes = FRAME_BYTES_MAX;
    limits.max_bytes_bytes = FRAME_BYTES_MAX;
    limits.max_array_elements = 1_000_000;
    limits
}

/// A connection that is made when it is needed, and again after it failed.
#[derive(Debug, Default)]
pub(super) struct Link {
    open: Option<Connection>,
}

impl Link {
    /// As [`Connection::call`], to this address.
    pub(super) async fn call<R: RequestResponsePair>(
        &mut self,
        (address, dialer): (&str, &Dialer),
        ours: RangeInclusive<i16>,
        request: &R,
        patience: Duration,
    ) -> Result<R::Response, CallError> {
        // Taken out: a call that is dropped or fails leaves an answer behind on its way, and takes the connection with
        // it.
        let open = self.open.take().filter(|open| open.address == address && open.is_good());
        let mut opening = PATIENCE;
        if let Some(mut connection) = open {
            match connection.call(ours.clone(), request, patience).await {
                // Brokers close connections that were idle for long, which shows when one is used. Whatever we ask may
                // be asked twice.
                Err(CallError::Io { source, .. }) if was_closed(&source) => opening = REDIAL,
                answer => {
                    self.open = answer.is_ok().then_some(connection);
                    return answer;
                }
            }
        }
        // Boxed: it is rare, and would make every call larger.
        let mut connection = Box::pin(Connection::open(address, dialer, opening)).await?;
        let answer = connection.call(ours, request, patience).await;
        if answer.is_ok() {
            self.open = Some(connection);
        }
        let says_nobody = dialer.security.sasl.is_none();
        answer.map_err(|error| if says_nobody { guess(error, "does this listener want SASL?") } else { error })
    }

    pub(super) fn close(&mut self) {
        self.open = None;
    }
}

/// Connections to several brokers, made when they are needed.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// By address; the one that was used last is the last.
    links: Vec<(String, Link)>,
}

/// Most connections that are kept for the next question.
const LINKS_MAX: usize = 8;

impl Links {
    /// The way to this broker. The one that was not used for longest is let go for it.
    pub(super) fn to(&mut self, address: &str) -> &mut Link {
        let known = self.links.iter().position(|(known, _)| known == address);
        let link = match known {
            Some(at) => self.links.remove(at),
            None => {
                if self.links.len() >= LINKS_MAX {
                    self.links.remove(0);
                }
                (address.to_owned(), Link::default())
            }
        };
        self.links.push(link);
        &mut self.links.last_mut().expect("it was pushed").1
    }

    /// Brokers to which a connection is open, the one that was used last first.
    pub(super) fn open(&self) -> impl Iterator<Item = &str> {
        self.links.iter().rev().filter(|(_, link)| link.open.is_some()).map(|(address, _)| address.as_str())
    }
}

/// A message by its fields; those not named have their defaults.
macro_rules! message {
    ($type:path { $($field:ident: $value:expr),* $(,)? }) => {{
        #[allow(unused_mut, reason = "a message without fields")]
        let mut message = <$type>::default();
        $(message.$field = $value;)*
        message
    }};
}
pub(super) use message;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_that_was_not_used_for_longest_is_let_go() {
        let mut links = Links::default();
        for broker in 0..LINKS_MAX {
            links.to(&format!("{broker}:9092"));
        }
        links.to("0:9092");
        links.to("another:9092");
        let kept: Vec<&str> = links.links.iter().map(|(address, _)| address.as_str()).collect();
        let expected: Vec<String> =
            (2..LINKS_MAX).map(|broker| broker.to_string()).chain(["0".into(), "another".into()]).collect();
        assert_eq!(kept, expected.iter().map(|broker| format!("{broker}:9092")).collect::<Vec<_>>());
    }
}
