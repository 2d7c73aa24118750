//! The HTTP client of the commands.

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::failure::Failure;

/// Where a broker is unless something else is said.
pub(super) const DEFAULT_SERVER: &str = "http://127.0.0.1:7080";
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A part of a path or a query value.
pub(super) fn encoded(text: &str) -> String {
    // Clients and proxies resolve dots before they send.
    if matches!(text, "." | "..") { text.replace('.', "%2E") } else { utf8_percent_encode(text, SEGMENT).to_string() }
}

/// Talks to one broker.
pub(super) struct Client {
    server: String,
    http: hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>,
}

impl Client {
    /// A client of the broker at `server`.
    pub(super) fn new(server: &str) -> Result<Self, Failure> {
        let allowed = format!("found {server:?}, allowed: http://HOST:PORT such as {DEFAULT_SERVER}");
        let uri: Uri = server.parse().map_err(|_| Failure::wrong_use(format!("--server: {allowed}")))?;
        if uri.scheme_str() != Some("http") || uri.host().is_none() || uri.path() != "/" || uri.query().is_some() {
            return Err(Failure::wrong_use(format!("--server: {allowed}")));
        }
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http();
        Ok(Self { server: server.trim_end_matches('/').to_owned(), http })
    }

    /// GET, an answer in JSON.
    pub(super) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::GET, path, None).await
    }

    /// Any method with a JSON body; an answer without a body is null.
    pub(super) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let (bytes, media_type) = match body {
            Some(body) => (body.to_string().into_bytes(), Some("application/json")),
            None => (Vec::new(), None),
        };
        let answer = self.call_bytes(method, path, bytes.into(), media_type).await?;
        if answer.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer).map_err(|error| {
            Failure::new(format!("{} does not answer in JSON: {error}; is it a Tripline broker?", self.server))
        })
    }

    /// Any method, with any body.
    pub(super) async fn call_bytes(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        media_type: Option<&str>,
    ) -> Result<Bytes, Failure> {
        let answer = self.send(method, path, body, media_type, "application/json").await?;
        let bytes = answer.into_body().collect().await;
        bytes.map(http_body_util::Collected::to_bytes).map_err(|error| self.broken(&error))
    }

    /// GET, server-sent events: their data, one after another.
    pub(super) async fn events(&self, path: &str) -> Result<Events, Failure> {
        let answer = self.send(Method::GET, path, Bytes::new(), None, "text/event-stream").await?;
        Ok(Events { body: answer.into_body(), read: Vec::new() })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        media_type: Option<&str>,
        accept: &str,
    ) -> Result<http::Response<Incoming>, Failure> {
        let mut request =
            Request::builder().method(method).uri(format!("{}{path}", self.server)).header(header::ACCEPT, accept);
        if let Some(media_type) = media_type {
            request = request.header(header::CONTENT_TYPE, media_type);
        }
        let request = request.body(Full::new(body)).map_err(|error| Failure::wrong_use(error.to_string()))?;
        let answer = self.http.request(request).await.map_err(|error| {
            if error.is_connect() {
                let server = &self.server;
                return Failure::new(format!(
                    "no broker answers at {server}; start one with `tripline`, or name it with --server URL"
                ));
            }
            self.broken(&error)
        })?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        Err(refused(answer).await)
    }

    fn broken(&self, error: &dyn std::error::Error) -> Failure {
        let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        Failure::new(format!("the connection to {} broke: {cause}", self.server))
    }
}

async fn refused(answer: http::Response<Incoming>) -> Failure {
    let status: StatusCode = answer.status();
    let body = answer.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let problem = serde_json::from_slice::<Value>(&body).ok().filter(|problem| problem["detail"].is_string());
    Failure::problem(
        problem.unwrap_or_else(|| json!({ "detail": format!("the answer was {status}"), "status": status.as_u16() })),
    )
}

/// A stream of server-sent events.
pub(super) struct Events {
    body: Incoming,
    read: Vec<u8>,
}

impl Events {
    /// The data of the next event; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Value>, Failure> {
        loop {
            if let Some(end) = self.read.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.read.drain(..end + 2).collect();
                match parse_event(&event)? {
                    Some(data) => return Ok(Some(data)),
                    None => continue,
                }
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(Failure::new(format!("the stream broke: {error}"))),
                Some(Ok(frame)) => self.read.extend(frame.into_data().unwrap_or_default()),
            }
        }
    }
}

fn parse_event(event: &[u8]) -> Result<Option<Value>, Failure> {
    let text = String::from_utf8_lossy(event);
    let Some(data) = text.lines().find_map(|line| line.strip_prefix("data: ")) else { return Ok(None) };
    let data: Value =
        serde_json::from_str(data).map_err(|error| Failure::new(format!("an event is not JSON: {error}")))?;
    if text.lines().any(|line| line == "event: error") { Err(Failure::problem(data)) } else { Ok(Some(data)) }
}
