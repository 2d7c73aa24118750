//! Functions elsewhere: each invocation is a POST to a URL.

pub mod address;
mod answer;
mod connect;
mod connections;
mod slots;

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, USER_AGENT};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use self::address::EgressPolicy;
use self::connect::{ConnectError, Connector, Resolver, host_and_port, system_resolver};
use self::connections::{Connections, SendError};
use self::slots::{NoSlot, Place, Slot, Slots};
use super::frame::{OUTPUT_BYTES_MAX, PAYLOAD_BYTES_MAX};
use super::instance::{InvocationResult, interrupted, queue_full};
use super::invoker::{Invoker, InvokerStatus};
use super::outcome::{ErrorClass, Invocation, InvocationError, InvocationSuccess};
use super::spec::FunctionSpec;
use super::stats::Stats;

/// The longest URL.
const URL_BYTES_MAX: usize = 2048;

const INVOCATION_ID: HeaderName = HeaderName::from_static("tripline-invocation-id");
const ATTEMPT: HeaderName = HeaderName::from_static("tripline-attempt");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Why a URL cannot be the target of a function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// Not a URL, or not one for a request.
    #[error("url {url:?}: {problem}")]
    BadUrl {
        /// As written.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// `https`, which this build cannot speak.
    #[error("url {url:?}: found https, allowed: http")]
    NoTls {
        /// As written.
        url: String,
    },
    /// An address that is no target.
    #[error("url {url:?}: {refused}")]
    Address {
        /// As written.
        url: String,
        /// The address and what it is.
        refused: address::AddressRefused,
    },
}

/// Checks what can be checked without the network.
///
/// # Errors
/// [`TargetError`] names the URL and what is wrong with it.
pub fn check_target(url: &str, policy: &EgressPolicy) -> Result<Uri, TargetError> {
    let bad = |problem: String| TargetError::BadUrl { url: url.chars().take(200).collect(), problem };
    if url.len() > URL_BYTES_MAX {
        return Err(bad(format!("it has {} bytes, the limit is {URL_BYTES_MAX}", url.len())));
    }
    let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| bad(error.to_string()))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(TargetError::NoTls { url: url.to_owned() }),
        found => return Err(bad(format!("its scheme is {}; http is allowed", found.unwrap_or("missing")))),
    }
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return Err(bad("user names and passwords are not allowed in it".to_owned()));
    }
    let (host, port) = host_and_port(&uri);
    // A port that is no number of 16 bits is dropped by the parser, which would leave us with another one.
    let has_odd_port = uri.port_u16().is_none() && authority.len() != uri.host().map_or(0, str::len);
    if host.is_empty() || port == 0 || has_odd_port {
        return Err(bad("it needs a host, and the port, if any, is from 1 to 65535".to_owned()));
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        let checked = policy.check(SocketAddr::new(ip, port));
        checked.map_err(|refused| TargetError::Address { url: url.to_owned(), refused })?;
    }
    Ok(uri)
}

/// Runs the invocations of an http function. `instances.max × instances.concurrency` requests run at a time.
pub(super) struct HttpInvoker {
    /// Where requests go from now on.
    route: RwLock<Arc<Route>>,
    policy: Arc<EgressPolicy>,
    resolver: Resolver,
    slots: Arc<Slots>,
    status: watch::Sender<InvokerStatus>,
    stats: Arc<Stats>,
    cancel: CancellationToken,
}

/// What a definition says of requests.
struct Route {
    target: Target,
    timeout: Duration,
    connections: Arc<Connections>,
}

/// What every request to it says.
struct Target {
    /// Path and query.
    origin_form: Uri,
    host: HeaderValue,
}

/// Nothing was sent of this invocation, and the function has stopped.
#[derive(Debug)]
pub(super) struct NotBegun(pub(super) Box<Invocation>);

impl HttpInvoker {
    pub(super) fn new(spec: &FunctionSpec, uri: Uri, policy: Arc<EgressPolicy>, stats: Arc<Stats>) -> Self {
        Self::with_resolver(spec, uri, policy, stats, system_resolver())
    }

    fn with_resolver(
        spec: &FunctionSpec,
        uri: Uri,
        policy: Arc<EgressPolicy>,
        stats: Arc<Stats>,
        resolver: Resolver,
    ) -> Self {
        Self {
            route: RwLock::new(Arc::new(Route::of(spec, uri, &policy, &resolver))),
            policy,
            resolver,
            slots: Slots::new(slots_of(spec)),
            status: watch::Sender::new(InvokerStatus::default()),
            stats,
            cancel: CancellationToken::new(),
        }
    }

    /// Lets another definition take over, also for what waits. Requests that are under way go on as they began.
    pub(super) fn replace(&self, spec: &FunctionSpec, uri: Uri) {
        // Before anybody is woken by a slot.
        *self.route.write() = Arc::new(Route::of(spec, uri, &self.policy, &self.resolver));
        self.slots.replace(slots_of(spec));
    }

    /// As [`Invoker::invoke`], but gives back what it has not begun with when the function stops.
    ///
    /// # Errors
    /// [`NotBegun`].
    pub(super) async fn try_invoke(&self, invocation: Invocation) -> Result<InvocationResult, NotBegun> {
        let result = self.run(invocation).await?;
        match &result {
            Ok(_) => drop(self.stats.succeeded.fetch_add(1, Relaxed)),
            Err(error) => self.stats.count(Some(error.class)),
        }
        Ok(result)
    }

    async fn run(&self, invocation: Invocation) -> Result<InvocationResult, NotBegun> {
        if invocation.payload.len() > PAYLOAD_BYTES_MAX {
            return Ok(Err(InvocationError::payload_too_large(invocation.payload.len())));
        }
        let called = Instant::now();
        let slot = match self.slot(invocation.payload.len()).await {
            Ok(slot) => slot,
            Err(NoSlot::QueueFull) => return Ok(Err(queue_full())),
            Err(NoSlot::Closed) => return Err(NotBegun(Box::new(invocation))),
        };
        let begun = Instant::now();
        self.stats.queue_wait.observe(begun - called);
        let busy = Counted::new(&self.status, |status| &mut status.instances.busy);
        Ok(self.attempt(invocation, begun, (slot, busy)).await)
    }

    /// The request, while it keeps `held`. What it needs is made outside of its future, which would have room for all
    /// of it until its end.
    fn attempt<T: Send + 'static>(&self, invocation: Invocation, begun: Instant, held: T) -> ToTheEnd {
        let (stats, cancel, route) = (Arc::clone(&self.stats), self.cancel.clone(), Arc::clone(&self.route.read()));
        let request = route.target.request(invocation);
        let exchange = exchange(Arc::clone(&route.connections), request, begun + route.timeout, route.timeout);
        let attempt = async move {
            let _held = held;
            let result = tokio::select! {
                // An answer that is there counts, also when nobody waits for it any longer.
                biased;
                result = exchange, if !cancel.is_cancelled() => result,
                () = cancel.cancelled() => Err(interrupted()),
            };
            stats.run.observe(begun.elapsed());
            result
        };
        ToTheEnd(Some(attempt.boxed()))
    }

    /// The right to send a request with a payload of `bytes`.
    async fn slot(&self, bytes: usize) -> Result<Slot, NoSlot> {
        match self.slots.ask(bytes)? {
            Place::Free(slot) => Ok(slot),
            Place::Queued(waiting) => {
                let _queued = Counted::new(&self.status, |status| &mut status.queued);
                waiting.slot().await
            }
        }
    }
}

fn slots_of(spec: &FunctionSpec) -> usize {
    spec.instances.max as usize * spec.instances.concurrency as usize
}

impl Route {
    fn of(spec: &FunctionSpec, uri: Uri, policy: &Arc<EgressPolicy>, resolver: &Resolver) -> Self {
        Self {
            target: Target::of(&uri),
            timeout: spec.timeout,
            connections: Arc::new(Connections::new(uri, Connector::new(Arc::clone(policy), Arc::clone(resolver)))),
        }
    }
}

impl Invoker for HttpInvoker {
    fn invoke(&self, invocation: Invocation) -> BoxFuture<'_, InvocationResult> {
        async move {
            self.try_invoke(invocation).await.unwrap_or_else(|NotBegun(_)| {
                self.stats.count(Some(ErrorClass::Interrupted));
                Err(interrupted())
            })
        }
        .boxed()
    }

    fn status(&self) -> watch::Receiver<InvokerStatus> {
        self.status.subscribe()
    }

    fn resume(&self) {}

    fn stop(&self, deadline: Instant) -> BoxFuture<'_, ()> {
        async move {
            self.slots.close();
            let mut status = self.status.subscribe();
            if timeout_at(deadline, status.wait_for(|status| status.instances.busy == 0)).await.is_err() {
                self.cancel.cancel();
                let _ = status.wait_for(|status| status.instances.busy == 0).await;
            }
            self.status.send_modify(|status| status.stopped = true);
        }
        .boxed()
    }
}

/// A request that has begun: a caller that goes away does not cut it. It runs within its caller's task, and in one of
/// its own only from then on, since a task for each request costs as much as a fifth of it.
struct ToTheEnd(Option<BoxFuture<'static, InvocationResult>>);

impl Future for ToTheEnd {
    type Output = InvocationResult;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<InvocationResult> {
        let request = self.0.as_mut().expect("nobody polls it after its end");
        let result = ready!(request.as_mut().poll(context));
        self.0 = None;
        Poll::Ready(result)
    }
}

impl Drop for ToTheEnd {
    fn drop(&mut self) {
        if let (Some(request), Ok(runtime)) = (self.0.take(), Handle::try_current())
            && !std::thread::panicking()
        {
            runtime.spawn(request);
        }
    }
}

/// Adds one to a number of the status while it lives.
struct Counted {
    status: watch::Sender<InvokerStatus>,
    number: fn(&mut InvokerStatus) -> &mut usize,
}

impl Counted {
    fn new(status: &watch::Sender<InvokerStatus>, number: fn(&mut InvokerStatus) -> &mut usize) -> Self {
        let counted = Self { status: status.clone(), number };
        counted.change(|number| *number += 1);
        counted
    }

    /// To tell nobody takes a lock for each of several lists of listeners: it is left out while nobody listens.
    fn change(&self, change: impl FnOnce(&mut usize)) {
        self.status.send_if_modified(|status| {
            change((self.number)(status));
            self.status.receiver_count() > 0
        });
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.change(|number| *number -= 1);
    }
}

impl Target {
    /// Of a URL that [`check_target`] has accepted.
    fn of(url: &Uri) -> Self {
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        let origin_form = format!("{}{query}", url.path()).parse().expect("it was parsed before");
        let host = url.host().unwrap_or_default();
        // 80 goes without saying.
        let port = url.port_u16().filter(|port| *port != 80).map(|port| format!(":{port}")).unwrap_or_default();
        let host = HeaderValue::try_from(format!("{host}{port}")).expect("the host of a URL is a header");
        Self { origin_form, host }
    }

    fn request(&self, invocation: Invocation) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(invocation.payload));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.origin_form.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(invocation.content_type));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("tripline/", env!("CARGO_PKG_VERSION"))));
        headers.insert(INVOCATION_ID, header_text(&invocation.id));
        let attempt = match invocation.attempt {
            // Nearly all are.
            1 => HeaderValue::from_static("1"),
            attempt => HeaderValue::from(attempt),
        };
        headers.insert(ATTEMPT, attempt);
        if let Some(trace) = &invocation.trace {
            headers.insert(TRACEPARENT, header_text(trace.parent()));
            // Printable ASCII, which is what a context has.
            let state = trace.state().and_then(|state| HeaderValue::from_str(state).ok());
            state.map(|state| headers.insert(TRACESTATE, state));
        }
        request
    }
}

/// Each wait ends at `deadline`, `timeout` after the begin: which of them the time ran out in says whether the target
/// can have got anything.
async fn exchange(
    connections: Arc<Connections>,
    request: Request<Full<Bytes>>,
    deadline: Instant,
    timeout: Duration,
) -> InvocationResult {
    let sent = connections.send(request, deadline).await;
    let (mut connection, response) = sent.map_err(|error| describe(&error, timeout))?;
    let result = match answer::classify(response.status(), response.headers(), now_s()) {
        Ok(()) => {
            let read = timeout_at(deadline, connection.drive(read_body(response))).await;
            read.map_err(|_| timed_out(timeout))?
        }
        Err(error) => {
            drop(response);
            Err(error)
        }
    };
    if result.is_ok() {
        // A target may answer before it has read everything, and gets the rest; one that leaves it unread has said that
        // it is done all the same. After an error nobody wants the rest.
        let _ = timeout_at(deadline, connection.sent()).await;
    }
    connections.give_back(connection).await;
    result
}

/// `text` as a header, whatever it holds: what is not printable ASCII, and `%`, is percent-encoded.
fn header_text(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'!'..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::try_from(encoded).expect("printable ASCII is a header")
}

async fn read_body(response: Response<Incoming>) -> InvocationResult {
    match Limited::new(response.into_body(), OUTPUT_BYTES_MAX).collect().await {
        Ok(body) => Ok(InvocationSuccess { body: body.to_bytes() }),
        Err(error) if error.is::<LengthLimitError>() => {
            let message = format!("the target answered more than {OUTPUT_BYTES_MAX} bytes");
            Err(InvocationError::new(ErrorClass::Failed, "output-too-large", message))
        }
        Err(error) => Err(lost(error.as_ref())),
    }
}

fn describe(error: &SendError, timeout: Duration) -> InvocationError {
    match error {
        SendError::NoConnection => {
            let message = format!("there was no connection to the target within {timeout:?}");
            InvocationError::new(ErrorClass::Unavailable, "connect", message)
        }
        SendError::NoAnswer => timed_out(timeout),
        SendError::Connect(problem) => {
            let code = match problem {
                ConnectError::Resolve { .. } => "dns",
                ConnectError::Refused { .. } => "address-refused",
                ConnectError::Connect { .. } => "connect",
            };
            InvocationError::new(ErrorClass::Unavailable, code, problem.to_string())
        }
        SendError::Lost(error) => lost(error),
    }
}

/// The target has the request, or a part of it: its work may be done or not.
fn timed_out(timeout: Duration) -> InvocationError {
    InvocationError::new(ErrorClass::Failed, "timeout", format!("no complete answer within {timeout:?}"))
}

/// The connection broke after the request may have been sent: its work may be done or not.
fn lost(error: &(dyn std::error::Error + 'static)) -> InvocationError {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        message.push_str(&format!(": {source}"));
        cause = source.source();
    }
    InvocationError::new(ErrorClass::Failed, "connection-lost", message)
}

fn now_s() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
