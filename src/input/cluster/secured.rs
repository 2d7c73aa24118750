//! Connections that are encrypted, and over which we say who we are, with a broker of few words. What Apache Kafka
//! makes of them is in `tests/cluster/secured.rs`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rcgen::{CertifiedKey, KeyPair};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::access::{Mechanism, Sasl, Security, Tls, TlsFiles};
use super::dial::Dialer;
use super::wire::schema::ApiVersionsRequest;
use super::wire::{CallError, Connection, Link, PATIENCE};
use crate::config::secret::Secret;

const PASSWORD: &str = "hush hush";
const API_VERSIONS: i16 = 18;
const SASL_HANDSHAKE: i16 = 17;
const SASL_AUTHENTICATE: i16 = 36;

/// What the broker says to the bytes of an exchange: more of them, or why not.
type Says = fn(&[u8]) -> Result<Vec<u8>, &'static str>;

#[derive(Clone)]
struct Broker {
    address: String,
    /// How many connections there were, and how often a password was told.
    connections: Arc<AtomicUsize>,
    passwords: Arc<AtomicUsize>,
    /// Ends the connections that there are.
    closes: Arc<Notify>,
    /// Before each answer.
    pause: Duration,
}

impl Broker {
    async fn start(tls: Option<ServerConfig>, says: Says, lifetime_ms: i64) -> Self {
        Self::start_slow(tls, says, lifetime_ms, Duration::ZERO).await
    }

    async fn start_slow(tls: Option<ServerConfig>, says: Says, lifetime_ms: i64, pause: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("localhost:{}", listener.local_addr().unwrap().port());
        let (connections, passwords, closes) = Default::default();
        let broker = Self { address, connections, passwords, closes, pause };
        let (there, acceptor) = (broker.clone(), tls.map(|tls| TlsAcceptor::from(Arc::new(tls))));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                there.connections.fetch_add(1, Ordering::Relaxed);
                let (acceptor, there) = (acceptor.clone(), there.clone());
                tokio::spawn(async move {
                    let served = async {
                        match acceptor {
                            None => serve(socket, &there, says, lifetime_ms).await,
                            Some(acceptor) => {
                                if let Ok(socket) = acceptor.accept(socket).await {
                                    serve(socket, &there, says, lifetime_ms).await;
                                }
                            }
                        }
                    };
                    tokio::select! {
                        () = served => {}
                        () = there.closes.notified() => {}
                    }
                });
            }
        });
        broker
    }

    async fn call(&self, link: &mut Link, dialer: &Dialer) -> Result<(), CallError> {
        call(link, &self.address, dialer).await
    }

    async fn refuses(&self, security: Security) -> String {
        refuses(&self.address, security).await
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    fn passwords(&self) -> usize {
        self.passwords.load(Ordering::Relaxed)
    }
}

async fn call(link: &mut Link, address: &str, dialer: &Dialer) -> Result<(), CallError> {
    link.call((address, dialer), 0..=0, &ApiVersionsRequest::default(), PATIENCE).await.map(drop)
}

/// Why a call over a new connection is not answered.
async fn refuses(address: &str, security: Security) -> String {
    call(&mut Link::default(), address, &dialer(security)).await.unwrap_err().to_string()
}

/// Until the client goes, or says what a broker would close the connection for.
async fn serve(mut socket: impl AsyncRead + AsyncWrite + Unpin, broker: &Broker, says: Says, lifetime_ms: i64) {
    while let Some((key, id, mut body)) = request(&mut socket).await {
        let mut answer = BytesMut::new();
        answer.put_i32(id);
        match key {
            API_VERSIONS => {
                answer.put_i16(0);
                let spoken = [(API_VERSIONS, 0, 0), (SASL_HANDSHAKE, 0, 1), (SASL_AUTHENTICATE, 0, 1)];
                answer.put_i32(spoken.len() as i32);
                spoken.iter().flat_map(|(key, min, max)| [*key, *min, *max]).for_each(|number| answer.put_i16(number));
            }
            SASL_HANDSHAKE => {
                let length = body.get_u16();
                let known = [&b"PLAIN"[..], b"SCRAM-SHA-256"];
                answer.put_i16(if known.contains(&&body[..length.into()]) { 0 } else { 33 });
                answer.put_i32(known.len() as i32);
                for name in known {
                    answer.put_u16(name.len() as u16);
                    answer.put_slice(name);
                }
            }
            SASL_AUTHENTICATE => {
                broker.passwords.fetch_add(1, Ordering::Relaxed);
                let length = body.get_u32() as usize;
                let (code, reason, more) = match says(&body[..length]) {
                    Ok(more) => (0, "", more),
                    Err(reason) => (58, reason, Vec::new()),
                };
                answer.put_i16(code);
                answer.put_u16(reason.len() as u16);
                answer.put_slice(reason.as_bytes());
                answer.put_u32(more.len() as u32);
                answer.put_slice(&more);
                answer.put_i64(lifetime_ms);
            }
            _ => return,
        }
        if !broker.pause.is_zero() {
            tokio::time::sleep(broker.pause).await;
        }
        if socket.write_i32(answer.len() as i32).await.is_err() || socket.write_all(&answer).await.is_err() {
            return;
        }
        let _ = socket.flush().await;
    }
}

/// Key, correlation id and body of a request with a header of version 1.
pub(super) async fn request(socket: &mut (impl AsyncRead + Unpin)) -> Option<(i16, i32, Bytes)> {
    let length = socket.read_i32().await.ok().filter(|length| (10..1 << 20).contains(length))?;
    let mut frame = vec![0; length as usize];
    socket.read_exact(&mut frame).await.ok()?;
    let mut frame = Bytes::from(frame);
    let (key, _version, id) = (frame.get_i16(), frame.get_i16(), frame.get_i32());
    let client_id = frame.get_u16();
    frame.advance(client_id.into());
    Some((key, id, frame))
}

fn dialer(security: Security) -> Dialer {
    Dialer { client_id: "test".to_owned(), security }
}

fn sasl(mechanism: Mechanism) -> Option<Sasl> {
    Some(Sasl::new(mechanism, "u", Secret::resolve(PASSWORD).unwrap()))
}

/// Takes the password in PLAIN.
fn knows_the_password(bytes: &[u8]) -> Result<Vec<u8>, &'static str> {
    if bytes == b"\0u\0hush hush" { Ok(Vec::new()) } else { Err("Authentication failed:\n no such user") }
}

/// Keys and certificates, and the files of those that clients read.
struct Pki {
    dir: tempfile::TempDir,
    broker: CertifiedKey<KeyPair>,
    client: CertifiedKey<KeyPair>,
}

impl Pki {
    fn new(broker_name: &str) -> Self {
        let made = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let pki = Self { dir: tempfile::tempdir().unwrap(), broker: made(broker_name), client: made("client") };
        for (name, text) in [
            ("ca.pem", pki.broker.cert.pem()),
            ("other-ca.pem", made(broker_name).cert.pem()),
            ("client.pem", pki.client.cert.pem()),
            ("client.key", pki.client.signing_key.serialize_pem()),
        ] {
            std::fs::write(pki.dir.path().join(name), text).unwrap();
        }
        pki
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tls(&self, ca: &str, with_identity: bool) -> Option<Tls> {
        let identity = with_identity.then(|| (self.path("client.pem"), self.path("client.key")));
        Some(Tls::new(&TlsFiles { ca: Some(self.path(ca)), identity }).unwrap())
    }

    /// What the broker speaks TLS by.
    fn server(&self, asks_for_identity: bool) -> ServerConfig {
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let config = config.unwrap();
        let config = if asks_for_identity {
            let mut roots = RootCertStore::empty();
            roots.add(self.client.cert.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            config.with_client_cert_verifier(verifier)
        } else {
            config.with_no_client_auth()
        };
        let key = PrivateKeyDer::try_from(self.broker.signing_key.serialize_der()).unwrap();
        config.with_single_cert(vec![self.broker.cert.der().clone()], key).unwrap()
    }
}

#[tokio::test]
async fn a_broker_is_called_over_tls_once_it_knows_who_we_are() {
    let pki = Pki::new("localhost");
    let broker = Broker::start(Some(pki.server(false)), knows_the_password, 0).await;
    let dialer = dialer(Security { tls: pki.tls("ca.pem", false), sasl: sasl(Mechanism::Plain) });
    let mut link = Link::default();
    for _ in 0..3 {
        broker.call(&mut link, &dialer).await.unwrap();
    }
    assert_eq!(broker.connections(), 1);
}

#[tokio::test]
async fn a_connection_is_used_for_as_long_as_the_broker_believes_it() {
    for (lifetime_ms, connections) in [(3_600_000, 1), (1, 3)] {
        let broker = Broker::start(None, knows_the_password, lifetime_ms).await;
        let dialer = dialer(Security { tls: None, sasl: sasl(Mechanism::Plain) });
        let mut link = Link::default();
        for _ in 0..3 {
            broker.call(&mut link, &dialer).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(broker.connections(), connections);
    }
}

#[tokio::test]
async fn a_refusal_says_who_was_refused_and_why_and_not_the_password() {
    let broker = Broker::start(None, |_| Err("Authentication failed:\n no such user"), 0).await;
    let said = broker.refuses(Security { tls: None, sasl: sasl(Mechanism::Plain) }).await;
    let expected = "not authenticated as \"u\" by PLAIN: Authentication failed: no such user";
    assert!(said.ends_with(expected) && said.starts_with(&broker.address), "{said}");
    let said = broker.refuses(Security { tls: None, sasl: sasl(Mechanism::ScramSha512) }).await;
    assert!(said.ends_with(": SCRAM-SHA-512: the broker takes PLAIN, SCRAM-SHA-256"), "{said}");
    let shown = format!("{:?}", sasl(Mechanism::Plain));
    assert!(!said.contains(PASSWORD) && !shown.contains(PASSWORD), "{shown}");
}

#[tokio::test]
async fn a_refused_password_is_not_tried_again_at_once_over_any_connection() {
    let broker = Broker::start(None, |_| Err("no such user"), 0).await;
    let security = Security { tls: None, sasl: sasl(Mechanism::Plain) };
    for _ in 0..5 {
        let said = broker.refuses(security.clone()).await;
        assert!(said.ends_with("by PLAIN: no such user"), "{said}");
    }
    assert_eq!(broker.connections(), 1);
    // Also when they all begin before the first is refused.
    let passwords = Arc::new(AtomicUsize::new(0));
    let broker = Broker::start(None, |_| Err("no such user"), 0).await;
    let security = Security { tls: None, sasl: sasl(Mechanism::Plain) };
    let together = (0..20).map(|_| async {
        let said = broker.refuses(security.clone()).await;
        assert!(said.ends_with("by PLAIN: no such user"), "{said}");
        passwords.fetch_add(1, Ordering::Relaxed);
    });
    futures_util::future::join_all(together).await;
    assert_eq!((passwords.load(Ordering::Relaxed), broker.passwords()), (20, 1));
}

#[tokio::test]
async fn what_does_not_refuse_the_password_does_not_hold_it_back() {
    let broker = Broker::start(None, knows_the_password, 0).await;
    let mut security = Security { tls: None, sasl: sasl(Mechanism::Plain) };
    security.sasl.as_mut().unwrap().mechanism = Mechanism::ScramSha512;
    let refused = broker.refuses(security.clone()).await;
    assert!(refused.contains("the broker takes"), "{refused}");
    security.sasl.as_mut().unwrap().mechanism = Mechanism::Plain;
    broker.call(&mut Link::default(), &dialer(security)).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_the_broker_has_closed_is_made_anew() {
    let broker = Broker::start(None, knows_the_password, 0).await;
    let dialer = dialer(Security::default());
    let mut link = Link::default();
    broker.call(&mut link, &dialer).await.unwrap();
    broker.closes.notify_waiters();
    // What it closes may be told at the write or at the read.
    broker.call(&mut link, &dialer).await.unwrap();
    assert_eq!(broker.connections(), 2);
}

#[tokio::test]
async fn a_broker_that_says_nothing_is_waited_for_once() {
    tokio::time::pause();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let pki = Pki::new("localhost");
    for tls in [None, pki.tls("ca.pem", false)] {
        let begin = tokio::time::Instant::now();
        let said = refuses(&address, Security { tls, sasl: sasl(Mechanism::Plain) }).await;
        assert!(begin.elapsed() <= PATIENCE + Duration::from_secs(1), "{said} after {:?}", begin.elapsed());
    }
}

#[tokio::test]
async fn a_broker_that_is_slow_at_each_step_is_waited_for_no_longer_in_all() {
    let patience = Duration::from_millis(200);
    // Each answer would come in time; there are three of them.
    let broker = Broker::start_slow(None, knows_the_password, 0, patience * 3 / 4).await;
    let dialer = dialer(Security { tls: None, sasl: sasl(Mechanism::Plain) });
    let opened = Connection::open(&broker.address, &dialer, patience).await;
    assert!(matches!(opened, Err(CallError::Timeout { .. })), "{opened:?}");
}

#[tokio::test]
async fn a_broker_that_wants_to_know_who_we_are_is_guessed() {
    // It answers what everybody may ask, and closes then.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let (_, id, _) = request(&mut socket).await.unwrap();
        socket.write_all(&[0, 0, 0, 16]).await.unwrap();
        socket.write_i32(id).await.unwrap();
        // No error, and one request: this, in version 0.
        socket.write_all(&[0, 0, 0, 0, 0, 1, 0, 18, 0, 0, 0, 0]).await.unwrap();
    });
    let said = refuses(&address, Security::default()).await;
    assert!(said.contains("does this listener want SASL?"), "{said}");
}

#[tokio::test]
async fn what_a_broker_announces_before_it_knows_us_is_bounded() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        request(&mut socket).await.unwrap();
        socket.write_i32((1 << 20) + 1).await.unwrap();
        // Until the client goes.
        while request(&mut socket).await.is_some() {}
    });
    let said = refuses(&address, Security::default()).await;
    assert!(said.contains("out of bounds"), "{said}");
}

#[tokio::test]
async fn what_a_broker_says_is_told_in_a_line() {
    let broker = Broker::start(None, |_| Err("no\u{1b}[2J\n"), 0).await;
    let said = broker.refuses(Security { tls: None, sasl: sasl(Mechanism::Plain) }).await;
    assert!(!said.chars().any(char::is_control), "{said:?}");
}

#[tokio::test]
async fn a_broker_that_is_not_who_it_should_be_is_not_spoken_to() {
    let pki = Pki::new("localhost");
    let broker = Broker::start(Some(pki.server(false)), knows_the_password, 0).await;
    let with = |tls| Security { tls, sasl: sasl(Mechanism::Plain) };
    let said = broker.refuses(with(pki.tls("other-ca.pem", false))).await;
    assert!(said.contains("TLS: invalid peer certificate"), "{said}");
    let elsewhere = Pki::new("elsewhere");
    let broker = Broker::start(Some(elsewhere.server(false)), knows_the_password, 0).await;
    let said = broker.refuses(with(elsewhere.tls("ca.pem", false))).await;
    assert!(said.contains("TLS: invalid peer certificate") && said.contains("localhost"), "{said}");
}

#[tokio::test]
async fn a_broker_that_asks_for_a_certificate_gets_ours() {
    let pki = Pki::new("localhost");
    let broker = Broker::start(Some(pki.server(true)), knows_the_password, 0).await;
    let with = |with_identity| Security { tls: pki.tls("ca.pem", with_identity), sasl: None };
    broker.call(&mut Link::default(), &dialer(with(true))).await.unwrap();
    let said = broker.refuses(with(false)).await;
    assert!(said.to_lowercase().contains("certificate"), "{said}");
}

#[tokio::test]
async fn the_wrong_kind_of_listener_is_guessed() {
    let pki = Pki::new("localhost");
    let secured = Broker::start(Some(pki.server(false)), knows_the_password, 0).await;
    let said = secured.refuses(Security::default()).await;
    assert!(said.contains("does this listener want TLS?"), "{said}");
    let plain = Broker::start(None, knows_the_password, 0).await;
    let said = plain.refuses(Security { tls: pki.tls("ca.pem", false), sasl: None }).await;
    assert!(said.contains("is this the port of a listener without TLS?"), "{said}");
}

/// What a broker says behind the nonce when all is well.
const WELL: &str = "x,s=AAAA,i=4096";

/// The first message of a SCRAM exchange, answered with `rest` behind the nonce.
fn first(bytes: &[u8], rest: &str) -> Vec<u8> {
    let nonce = std::str::from_utf8(bytes).unwrap().split_once(",r=").unwrap().1;
    format!("r={nonce}{rest}").into_bytes()
}

#[tokio::test]
async fn whatever_a_hostile_broker_says_in_an_exchange_is_an_error_of_the_connection() {
    let cases: [(Says, &str); 8] = [
        (|bytes| Ok(first(bytes, "x,s=AAAA,i=4095")), "asks for 4095 iterations, allowed: 4096 to 100000"),
        (|bytes| Ok(first(bytes, "x,s=AAAA,i=4294967295")), "asks for 4294967295 iterations"),
        (|bytes| Ok(first(bytes, "x,,i=4096")), "cannot be read"),
        (|_| Ok(b"r=another,s=AAAA,i=4096".to_vec()), "nonce"),
        (|_| Ok(Vec::new()), "missing"),
        (|bytes| Ok(if bytes.starts_with(b"n,,") { first(bytes, WELL) } else { b"v".to_vec() }), "cannot be read"),
        (|bytes| Ok(if bytes.starts_with(b"n,,") { first(bytes, WELL) } else { Vec::new() }), "cannot be read"),
        // It does not know the password itself.
        (|bytes| Ok(if bytes.starts_with(b"n,,") { first(bytes, WELL) } else { b"v=AAAA".to_vec() }), "mutual"),
    ];
    for (says, expected) in cases {
        let broker = Broker::start(None, says, 0).await;
        let said = broker.refuses(Security { tls: None, sasl: sasl(Mechanism::ScramSha256) }).await;
        assert!(said.contains("SCRAM-SHA-256: ") && said.contains(expected), "{said}");
    }
}
