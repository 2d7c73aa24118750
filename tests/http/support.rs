//! A server on free ports, and a client that says exactly what it sends.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tripline::http::HttpLimits;
use tripline::server::{Server, ServerConfig};

/// No event of a test takes longer, even on a machine that is busy with everything else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Stage {
    pub(crate) server: Server,
    pub(crate) directory: tempfile::TempDir,
    client: Client<HttpConnector, Full<Bytes>>,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// The status and code of a problem, after checking its shape.
    pub(crate) fn problem(&self) -> (u16, String) {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{:?}", self.body);
        let problem = self.json();
        assert_eq!(problem["status"], self.status.as_u16());
        assert!(problem["title"].is_string() && !problem["detail"].as_str().unwrap().is_empty(), "{problem}");
        let code = problem["code"].as_str().unwrap().to_owned();
        assert_eq!(problem["type"], format!("urn:tripline:error:{code}"));
        (self.status.as_u16(), code)
    }
}

pub(crate) fn config(directory: &tempfile::TempDir) -> ServerConfig {
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    ServerConfig {
        kafka: any_port,
        http: any_port,
        launcher: Some(env!("CARGO_BIN_EXE_tripline").into()),
        ..ServerConfig::new(directory.path().join("data"))
    }
}

impl Stage {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut HttpLimits)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(&directory);
        change(&mut config.http_limits);
        let server = Server::start(config).await.unwrap();
        Self { server, directory, client: Client::builder(TokioExecutor::new()).build_http() }
    }

    /// Stops the server and starts it again on the same data.
    pub(crate) async fn restart(self) -> Self {
        let Self { server, directory, client } = self;
        server.stop().await;
        let server = Server::start(config(&directory)).await.unwrap();
        Self { server, directory, client }
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let uri = format!("http://{}{path}", self.server.http_address());
        let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let sent = self.client.request(request.body(Full::new(body.into())).unwrap());
        let answer = tokio::time::timeout(PATIENCE, sent).await.unwrap().unwrap();
        let (parts, body) = answer.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect()).await.unwrap().unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub(crate) async fn json(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.send(method, path, &[("content-type", "application/json")], body.to_string()).await
    }

    /// The records of a topic's only partition, from the beginning.
    pub(crate) async fn records(&self, topic: &str) -> Vec<Value> {
        let answer = self.get(&format!("/v1/topics/{topic}/records")).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        answer.json()["records"].as_array().unwrap().clone()
    }

    /// Asks until `good`.
    pub(crate) async fn until(&self, path: &str, good: impl Fn(&Value) -> bool) -> Value {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = self.get(path).await.json();
            if good(&answer) {
                return answer;
            }
            assert!(tokio::time::Instant::now() < deadline, "{path} stays {answer:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
