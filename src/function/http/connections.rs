//! The connections to one target.
//!
//! A connection belongs to one request at a time, which also drives it: nothing runs besides, so an answer that arrives
//! wakes the request itself and no go-between. One that waits for the next request is looked at every few seconds; that
//! its target has closed it is seen at the latest when the next request takes it: before anything is sent, unless it
//! happens at that very moment. How many there are is bounded by who asks: a connection is made only for a request that
//! finds none waiting.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

use super::connect::{ConnectError, Connector};

/// How long an unused connection is kept.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// How often those that wait are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Bytes of an answer's head, and of what is read ahead of its body.
const READ_BUFFER_BYTES_MAX: usize = 64 << 10;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// There is no connection: nothing was sent.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The time ran out before there was a connection: nothing was sent.
    #[error("there was no connection in time")]
    NoConnection,
    /// The time ran out before the answer began: the request may have been sent.
    #[error("there was no answer in time")]
    NoAnswer,
    /// The connection broke: the request may have been sent, as far as anybody knows.
    #[error(transparent)]
    Lost(#[from] hyper::Error),
}

/// Those to one target: what waits for a request, and how to come to more.
pub(super) struct Connections {
    target: Uri,
    connector: Connector,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// With the moment since when each waits.
    connections: Vec<(Instant, Box<Connection>)>,
    /// A task closes those that wait for too long.
    is_watched: bool,
}

type Driver = http1::Connection<TokioIo<TcpStream>, Full<Bytes>>;

/// In the hands of one request.
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// `None` when it is closed.
    driver: Option<Driver>,
}

impl Connections {
    pub(super) fn new(target: Uri, connector: Connector) -> Self {
        Self { target, connector, idle: Mutex::default() }
    }

    /// Sends a request, in origin form and with a `host`, over a connection that waits for one, or a new one, and waits
    /// for the head of its answer until `deadline`. Whoever has read the answer [gives the connection
    /// back](Connections::give_back).
    ///
    /// # Errors
    /// [`SendError`]. What a target did not begin to read, because it had closed the connection, is sent over another
    /// one.
    pub(super) async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Result<(Box<Connection>, Response<Incoming>), SendError> {
        loop {
            let (mut connection, waited) = match self.take() {
                Some(connection) => (connection, true),
                None => {
                    let connected = timeout_at(deadline, self.connect()).await;
                    (Box::new(connected.map_err(|_| SendError::NoConnection)??), false)
                }
            };
            let Connection { sender, driver } = &mut *connection;
            let sent = sender.try_send_request(request);
            match timeout_at(deadline, drive(driver, sent)).await.map_err(|_| SendError::NoAnswer)? {
                Ok(response) => return Ok((connection, response)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if waited => request = unsent,
                    _ => return Err(SendError::Lost(error.into_error())),
                },
            }
        }
    }

    /// Keeps a connection for the next request, if it can have one now: its request was sent and the answer read to its
    /// end, and the target does not close it.
    pub(super) async fn give_back(self: &Arc<Self>, mut connection: Box<Connection>) {
        let can_have_one = poll_fn(|context| {
            if !connection.sender.is_ready() {
                // The rest of an answer that was not read, as after an error, is passed over if it is all here.
                connection.poll(context);
            }
            Poll::Ready(connection.driver.is_some() && connection.sender.is_ready())
        });
        if !can_have_one.await {
            return;
        }
        let mut idle = self.idle.lock();
        idle.connections.push((Instant::now(), connection));
        if !std::mem::replace(&mut idle.is_watched, true) {
            tokio::spawn(close_unused(Arc::downgrade(self)));
        }
    }

    /// The one that was used last: what a few can do is not spread over many.
    fn take(&self) -> Option<Box<Connection>> {
        self.idle.lock().connections.pop().map(|(_, connection)| connection)
    }

    async fn connect(&self) -> Result<Connection, SendError> {
        let stream = self.connector.connect(&self.target).await?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(READ_BUFFER_BYTES_MAX);
        let (sender, driver) = builder.handshake(TokioIo::new(stream)).await?;
        Ok(Connection { sender, driver: Some(driver) })
    }
}

impl Connection {
    /// Has what reads the answer run, with the connection that brings it.
    pub(super) async fn drive<T>(&mut self, reading: impl Future<Output = T>) -> T {
        drive(&mut self.driver, reading).await
    }

    /// Waits until the request is sent to its end, of which the answer may say nothing, or cannot be.
    pub(super) async fn sent(&mut self) {
        poll_fn(|context| {
            if self.sender.is_ready() {
                return Poll::Ready(());
            }
            self.poll(context);
            let is_sent = self.driver.is_none() || matches!(self.sender.poll_ready(context), Poll::Ready(Ok(())));
            if is_sent { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn poll(&mut self, context: &mut Context<'_>) {
        poll_driver(&mut self.driver, context);
    }
}

/// Runs `exchange` and the connection that it needs. When the connection is closed, `exchange` comes to its end by
/// itself.
async fn drive<T>(driver: &mut Option<Driver>, exchange: impl Future<Output = T>) -> T {
    let mut exchange = pin!(exchange);
    poll_fn(|context| {
        poll_driver(driver, context);
        exchange.as_mut().poll(context)
    })
    .await
}

/// What it brings, or why it brings no more, the exchange learns: the error that it ends with says nothing more.
fn poll_driver(driver: &mut Option<Driver>, context: &mut Context<'_>) {
    if let Some(open) = driver
        && Pin::new(open).poll(context).is_ready()
    {
        *driver = None;
    }
}

/// Closes what waits for too long, and what the target has closed; ends when nothing waits.
async fn close_unused(connections: Weak<Connections>) {
    loop {
        sleep(LOOK_EVERY).await;
        let Some(connections) = connections.upgrade() else { return };
        let is_over = poll_fn(|context| {
            let mut idle = connections.idle.lock();
            let now = Instant::now();
            idle.connections.retain_mut(|(since, connection)| {
                connection.poll(context);
                connection.driver.is_some() && now - *since < KEEP_ALIVE
            });
            idle.is_watched = !idle.connections.is_empty();
            Poll::Ready(!idle.is_watched)
        });
        if is_over.await {
            return;
        }
    }
}
