//! Accepts connections and serves them, each with its limits.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_io_timeout::TimeoutStream;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::guard::AllowedHosts;
use super::limits::HttpLimits;

/// A listener that serves until it is stopped.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    tasks: TaskTracker,
    limits: HttpLimits,
}

impl Listener {
    /// Serves `router` on `socket`.
    ///
    /// # Errors
    /// The socket has no address.
    pub fn serve(socket: TcpListener, router: Router, hosts: AllowedHosts, limits: HttpLimits) -> io::Result<Self> {
        let address = socket.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let tasks = TaskTracker::new();
        let serving = Serving { router, hosts: Arc::new(hosts), limits, stopped, tasks: tasks.clone() };
        tasks.spawn(serving.accept(socket));
        Ok(Self { address, stop, tasks, limits })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more, lets requests in hand finish for as long as the limits say, then drops the rest.
    pub async fn stop(&self) {
        let _ = self.stop.send(true);
        self.tasks.close();
        if tokio::time::timeout(self.limits.stop_timeout, self.tasks.wait()).await.is_err() {
            tracing::info!(connections = self.tasks.len(), "HTTP connections are dropped");
        }
    }
}

#[derive(Clone)]
struct Serving {
    router: Router,
    hosts: Arc<AllowedHosts>,
    limits: HttpLimits,
    stopped: watch::Receiver<bool>,
    tasks: TaskTracker,
}

impl Serving {
    async fn accept(mut self, socket: TcpListener) {
        let permits = Arc::new(Semaphore::new(self.limits.connections_max));
        loop {
            let permit = Arc::clone(&permits).acquire_owned();
            let Ok(permit) = permit.await else { return };
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                () = stopped(&mut self.stopped) => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let connection = self.clone();
                    self.tasks.spawn(async move {
                        connection.serve(stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Out of descriptors, usually: waiting lets some become free.
                    tracing::warn!(%error, "an HTTP connection was not accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn serve(mut self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let (router, hosts) = (self.router.clone(), Arc::clone(&self.hosts));
        let service = service_fn(move |request| answer(router.clone(), Arc::clone(&hosts), request));
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head_timeout)
            .max_headers(self.limits.headers_max)
            .max_header_size(self.limits.head_bytes_max)
            .max_buf_size(self.limits.head_bytes_max);
        // One that never reads would keep its connection, and its answer, for ever.
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.limits.write_timeout));
        let connection = builder.serve_connection(TokioIo::new(Box::pin(stream)), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stopped(&mut self.stopped) => {
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(self.limits.stop_timeout, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an HTTP connection ended early");
        }
    }
}

/// Waits for the stop, or for the listener to be dropped.
async fn stopped(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

async fn answer(router: Router, hosts: Arc<AllowedHosts>, request: Request<Incoming>) -> Result<Response, Infallible> {
    if let Err(problem) = hosts.check(request.uri(), request.headers()) {
        return Ok(problem.into_response());
    }
    router.oneshot(request.map(Body::new)).await
}
