use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::AtomicUsize;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::super::pool_state::QUEUE_BYTES_MAX;
use super::super::spec::{Instances, Payload, Runtime};
use super::*;

/// How long something may take that takes no time.
const PATIENCE: Duration = Duration::from_secs(30);

fn spec(timeout: Duration) -> FunctionSpec {
    FunctionSpec {
        name: "hook".to_owned(),
        runtime: Runtime::Http { url: String::new() },
        instances: Instances { min: 0, max: 4, concurrency: 1, idle: Duration::from_secs(60) },
        timeout,
        memory_bytes: 0,
        environment: BTreeMap::new(),
        payload: Payload::Events,
    }
}

fn local() -> EgressPolicy {
    EgressPolicy { allow_loopback: true, ..EgressPolicy::default() }
}

fn invoker(url: &str, policy: EgressPolicy, resolver: Resolver) -> HttpInvoker {
    let uri = url.parse().unwrap();
    HttpInvoker::with_resolver(&spec(Duration::from_secs(2)), uri, Arc::new(policy), Arc::default(), resolver)
}

fn invocation(id: &str) -> Invocation {
    Invocation {
        id: id.to_owned(),
        attempt: 3,
        payload: Bytes::from_static(b"[1]"),
        content_type: "application/cloudevents-batch+json",
        record_count: 1,
        trace: None,
    }
}

async fn invoke(invoker: &HttpInvoker) -> InvocationResult {
    invoker.invoke(invocation("t/0/5")).await
}

/// A server that answers every request with `answer`, byte for byte, and counts connections.
struct Server {
    url: String,
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn new(answer: impl Into<Vec<u8>>) -> Self {
        let answer = Arc::new(answer.into());
        Self::with(move |mut stream| {
            let answer = Arc::clone(&answer);
            async move { stream.write_all(&answer).await.map(|()| stream) }
        })
        .await
    }

    /// `respond` gets the connection after each whole request; an error ends the connection.
    async fn with<F: Future<Output = io::Result<TcpStream>> + Send + 'static>(
        respond: impl Fn(TcpStream) -> F + Clone + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::<Mutex<Vec<String>>>::default());
        let (counted, kept) = (Arc::clone(&connections), Arc::clone(&requests));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Relaxed);
                let (respond, kept) = (respond.clone(), Arc::clone(&kept));
                tokio::spawn(async move {
                    while let Ok(Some(request)) = read_request(&mut stream).await {
                        kept.lock().push(request);
                        let Ok(next) = respond(stream).await else { return };
                        stream = next;
                    }
                });
            }
        });
        Self { url: format!("http://{address}/hook"), address, connections, requests }
    }

    async fn outcome(&self) -> InvocationResult {
        invoke(&invoker(&self.url, local(), system_resolver())).await
    }
}

/// Where a test answers by itself, and who sends there.
async fn listening() -> (TcpListener, HttpInvoker) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let invoker = invoker(&format!("http://{}/", listener.local_addr().unwrap()), local(), system_resolver());
    (listener, invoker)
}

async fn read_request(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let mut request = Vec::new();
    while !request.ends_with(b"[1]") {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(String::from_utf8(request).unwrap()))
}

fn answer(head: &str, body: &str) -> String {
    format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn class_and_code(result: &InvocationResult) -> (ErrorClass, &str) {
    let error = result.as_ref().unwrap_err();
    (error.class, &error.code)
}

#[tokio::test]
async fn a_request_carries_the_payload_its_type_and_the_attempt() {
    let server = Server::new(answer("200 OK", "done")).await;
    assert_eq!(server.outcome().await.unwrap().body, "done");
    let request = server.requests.lock()[0].to_lowercase();
    assert!(request.starts_with("post /hook http/1.1\r\n") && request.ends_with("\r\n\r\n[1]"), "{request}");
    for header in [
        "content-type: application/cloudevents-batch+json",
        "content-length: 3",
        "tripline-invocation-id: t/0/5",
        "tripline-attempt: 3",
    ] {
        assert!(request.contains(&format!("\r\n{header}\r\n")), "{header} in {request}");
    }
}

#[tokio::test]
async fn connections_are_kept_and_an_error_answer_is_one_too() {
    let server = Server::new(answer("500 Oops", "")).await;
    let invoker = invoker(&server.url, local(), system_resolver());
    for _ in 0..5 {
        assert_eq!(class_and_code(&invoke(&invoker).await), (ErrorClass::Failed, "500"));
    }
    assert_eq!(server.connections.load(Relaxed), 1);
}

#[tokio::test]
async fn statuses_have_their_class_over_the_wire() {
    for (head, class, code, wait) in [
        ("429 Slow\r\nretry-after: 7", ErrorClass::Throttled, "429", Some(7)),
        ("503 Later\r\nretry-after: 9", ErrorClass::Throttled, "503", Some(9)),
        ("503 Down", ErrorClass::Failed, "503", None),
        ("401 Who", ErrorClass::Unavailable, "401", None),
        ("404 Where", ErrorClass::Failed, "404", None),
        ("422 What", ErrorClass::Rejected, "422", None),
    ] {
        let result = Server::new(answer(head, "secret answer")).await.outcome().await;
        assert_eq!(class_and_code(&result), (class, code));
        let error = result.unwrap_err();
        assert_eq!(error.retry_after, wait.map(Duration::from_secs));
        assert!(!error.message.contains("secret"), "what the target sent is not repeated: {}", error.message);
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let target = Server::new(answer("200 OK", "")).await;
    for status in ["301", "302", "303", "307", "308"] {
        let server = Server::new(answer(&format!("{status} Go\r\nlocation: {}", target.url), "")).await;
        let result = server.outcome().await;
        assert_eq!(class_and_code(&result), (ErrorClass::Failed, status));
        assert!(result.unwrap_err().message.ends_with("redirects are not followed"));
    }
    assert_eq!(target.connections.load(Relaxed), 0);
}

#[tokio::test]
async fn a_body_without_end_is_cut_off_at_the_limit() {
    let endless = |chunked: bool| {
        Server::with(move |mut stream| async move {
            let head = if chunked { "transfer-encoding: chunked" } else { "content-length: 99999999999" };
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").as_bytes()).await?;
            loop {
                if chunked {
                    stream.write_all(b"10000\r\n").await?;
                }
                stream.write_all(&[b'x'; 65536]).await?;
                if chunked {
                    stream.write_all(b"\r\n").await?;
                }
            }
        })
    };
    for chunked in [true, false] {
        let result = endless(chunked).await.outcome().await;
        assert_eq!(class_and_code(&result), (ErrorClass::Failed, "output-too-large"), "chunked: {chunked}");
    }
}

#[tokio::test]
async fn an_answer_that_trickles_runs_into_the_timeout() {
    for head in ["", "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"] {
        let server = Server::with(move |mut stream| async move {
            stream.write_all(head.as_bytes()).await?;
            loop {
                stream.write_all(b"H").await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        let begun = std::time::Instant::now();
        let spec = spec(Duration::from_millis(300));
        let uri = server.url.parse().unwrap();
        let invoker = HttpInvoker::new(&spec, uri, Arc::new(local()), Arc::default());
        let result = invoke(&invoker).await;
        // Letters before the head are no HTTP: whichever is noticed first ends it.
        assert!(matches!(class_and_code(&result), (ErrorClass::Failed, "timeout" | "connection-lost")), "{result:?}");
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
}

#[tokio::test]
async fn answers_that_are_no_http_or_break_off_are_failures() {
    for bytes in [
        "",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 9999 No\r\n\r\n",
    ] {
        let server = Server::with(move |mut stream| async move {
            stream.write_all(bytes.as_bytes()).await?;
            Err(io::Error::other("hang up"))
        })
        .await;
        let result = server.outcome().await;
        assert_eq!(class_and_code(&result), (ErrorClass::Failed, "connection-lost"), "{bytes:?}");
    }
    let long_head = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    let result = Server::new(long_head).await.outcome().await;
    assert_eq!(class_and_code(&result), (ErrorClass::Failed, "connection-lost"));
}

#[tokio::test]
async fn who_cannot_be_reached_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let result = invoke(&invoker(&format!("http://{closed}/"), local(), system_resolver())).await;
    assert_eq!(class_and_code(&result), (ErrorClass::Unavailable, "connect"));

    let failing: Resolver = Arc::new(|_, _| async { Err(io::Error::other("no such host")) }.boxed());
    let result = invoke(&invoker("http://nowhere.example/", local(), failing)).await;
    assert_eq!(class_and_code(&result), (ErrorClass::Unavailable, "dns"));
    assert_eq!(result.unwrap_err().message, "nowhere.example cannot be resolved: no such host");

    let empty: Resolver = Arc::new(|_, _| async { Ok(Vec::new()) }.boxed());
    let result = invoke(&invoker("http://empty.example/", local(), empty)).await;
    assert_eq!(class_and_code(&result), (ErrorClass::Unavailable, "dns"));
}

#[tokio::test]
async fn a_target_to_which_no_connection_comes_in_time_is_unavailable() {
    let endless: Resolver = Arc::new(|_, _| std::future::pending().boxed());
    tokio::time::pause();
    let result = invoke(&invoker("http://slow.example/", local(), endless)).await;
    assert_eq!(class_and_code(&result), (ErrorClass::Unavailable, "connect"));
    assert_eq!(result.unwrap_err().message, "there was no connection to the target within 2s");
}

#[tokio::test]
async fn what_a_closed_connection_did_not_take_was_not_sent_when_there_is_no_other_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (close, is_to_close) = tokio::sync::oneshot::channel::<()>();
    let (closed, is_closed) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await.unwrap();
        stream.write_all(answer("200 OK", "done").as_bytes()).await.unwrap();
        is_to_close.await.unwrap();
        drop(stream);
        closed.send(()).unwrap();
    });
    let asked = AtomicUsize::new(0);
    let once: Resolver = Arc::new(move |_, _| match asked.fetch_add(1, Relaxed) {
        0 => async move { Ok(vec![address]) }.boxed(),
        _ => std::future::pending().boxed(),
    });
    let invoker = invoker("http://once.example/", local(), once);
    assert_eq!(invoke(&invoker).await.unwrap().body, "done");
    close.send(()).unwrap();
    is_closed.await.unwrap();
    // The runtime looks at its sockets before it goes on here.
    tokio::task::yield_now().await;
    tokio::time::pause();
    assert_eq!(class_and_code(&invoke(&invoker).await), (ErrorClass::Unavailable, "connect"));
}

#[tokio::test]
async fn a_target_that_has_the_request_and_stays_silent_has_failed() {
    let (listener, invoker) = listening().await;
    let (read, has_read) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await.unwrap();
        read.send(()).unwrap();
        std::future::pending::<()>().await;
    });
    let mut invoked = std::pin::pin!(invoke(&invoker));
    tokio::select! {
        result = &mut invoked => panic!("nobody answered: {result:?}"),
        read = has_read => read.unwrap(),
    }
    tokio::time::pause();
    assert_eq!(class_and_code(&invoked.await), (ErrorClass::Failed, "timeout"));
}

#[tokio::test]
async fn a_name_that_leads_to_a_forbidden_address_is_never_connected_to() {
    let server = Server::new(answer("200 OK", "")).await;
    let address = server.address;
    let resolver: Resolver = Arc::new(move |_, _| async move { Ok(vec![address]) }.boxed());
    let result = invoke(&invoker("http://innocent.example/", EgressPolicy::default(), resolver)).await;
    assert_eq!(class_and_code(&result), (ErrorClass::Unavailable, "address-refused"));
    let message = result.unwrap_err().message;
    assert!(
        message.starts_with(&format!("innocent.example must not be reached: {address} is a loopback address")),
        "{message}"
    );
    let own = EgressPolicy { own_listeners: vec![address], ..local() };
    let result = invoke(&invoker(&server.url, own, system_resolver())).await;
    assert_eq!(
        class_and_code(&result),
        (ErrorClass::Unavailable, "address-refused"),
        "literal addresses are checked too"
    );
    assert_eq!(server.connections.load(Relaxed), 0);
}

#[tokio::test]
async fn a_name_that_changes_its_mind_is_checked_at_each_connection() {
    let server = Server::with(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await?;
        Err(io::Error::other("closed"))
    })
    .await;
    let allowed = server.address;
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let resolver: Resolver = Arc::new(move |_, port| {
        let first = counter.fetch_add(1, Relaxed) == 0;
        let metadata = SocketAddr::new("169.254.169.254".parse().unwrap(), port);
        async move { Ok(vec![if first { allowed } else { metadata }]) }.boxed()
    });
    let invoker = invoker("http://rebinding.example/", local(), resolver);
    assert!(invoke(&invoker).await.is_ok());
    assert_eq!(class_and_code(&invoke(&invoker).await), (ErrorClass::Unavailable, "address-refused"));
    assert_eq!(asked.load(Relaxed), 2, "resolved once per connection");
}

#[tokio::test]
async fn an_id_cannot_inject_headers() {
    let server = Server::new(answer("200 OK", "")).await;
    let invoker = invoker(&server.url, local(), system_resolver());
    invoker.invoke(invocation("a\r\nx-evil: 1\0é%")).await.unwrap();
    let request = server.requests.lock()[0].clone();
    assert!(request.contains("tripline-invocation-id: a%0D%0Ax-evil:%201%00%C3%A9%25\r\n"), "{request}");
}

#[test]
fn a_url_is_checked_before_anything_runs() {
    let policy = local();
    for good in
        ["http://example.com", "http://example.com:8080/a?b=c", "http://127.0.0.1:9/", "http://[::1]:9/", "HTTP://h/"]
    {
        check_target(good, &policy).unwrap_or_else(|error| panic!("{good}: {error}"));
    }
    for (bad, problem) in [
        ("", "empty string"),
        ("example.com", "its scheme is missing; http is allowed"),
        ("/etc/passwd", "its scheme is missing"),
        ("file:///etc/passwd", "invalid format"),
        ("ftp://h/", "its scheme is ftp; http is allowed"),
        ("gopher://h/", "its scheme is gopher"),
        ("http://", "empty string"),
        ("http://user:pass@h/", "user names and passwords are not allowed in it"),
        ("http://h@127.0.0.1/", "user names"),
        ("http://h:0/", "the port, if any, is from 1 to 65535"),
        ("http://h:99999/", "the port, if any, is from 1 to 65535"),
        ("http://h:/", "the port, if any, is from 1 to 65535"),
        ("http://h/ x", "invalid uri character"),
        ("http://h/\r\nx: y", "invalid uri character"),
    ] {
        let error = check_target(bad, &policy).unwrap_err().to_string();
        assert!(error.contains(problem), "{bad:?}: {error}");
    }
    let long = format!("http://h/{}", "x".repeat(URL_BYTES_MAX));
    assert!(check_target(&long, &policy).unwrap_err().to_string().contains("the limit is 2048"));
    assert!(matches!(check_target("https://h/", &policy), Err(TargetError::NoTls { .. })));
    for metadata in [
        "http://169.254.169.254/latest",
        "http://[fd00:ec2::254]/",
        "http://[::ffff:169.254.169.254]/",
        "http://0.0.0.0/",
    ] {
        assert!(matches!(check_target(metadata, &policy), Err(TargetError::Address { .. })), "{metadata}");
    }
}

#[tokio::test]
async fn odd_spellings_of_addresses_go_through_the_resolver_and_are_checked() {
    // The system may resolve these to loopback, or not at all; neither is a connection.
    for host in ["2130706433", "0x7f.1", "127.1", "017700000001", "localhost", "localhost."] {
        let result = invoke(&invoker(&format!("http://{host}:9/"), EgressPolicy::default(), system_resolver())).await;
        assert!(
            matches!(class_and_code(&result), (ErrorClass::Unavailable, "address-refused" | "dns")),
            "{host}: {result:?}"
        );
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_cut_a_request_that_has_begun() {
    let (begun, go_on) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (telling, waiting) = (Arc::clone(&begun), Arc::clone(&go_on));
    let server = Server::with(move |mut stream| {
        let (begun, go_on) = (Arc::clone(&telling), Arc::clone(&waiting));
        async move {
            begun.add_permits(1);
            go_on.acquire().await.unwrap().forget();
            stream.write_all(answer("200 OK", "done").as_bytes()).await.map(|()| stream)
        }
    })
    .await;
    let invoker = invoker(&server.url, local(), system_resolver());
    let mut status = invoker.status();
    tokio::select! {
        result = invoke(&invoker) => panic!("it ended before its answer: {result:?}"),
        begun = begun.acquire() => begun.unwrap().forget(),
    }
    assert_eq!(status.borrow_and_update().instances.busy, 1);
    go_on.add_permits(2);
    status.wait_for(|status| status.instances.busy == 0).await.unwrap();
    assert_eq!(invoke(&invoker).await.unwrap().body, "done");
    assert_eq!(server.connections.load(Relaxed), 1, "a request that is cut takes its connection along");
}

/// A target that answers `name` to each request, when it may.
async fn gated(name: &'static str) -> (Server, Arc<Semaphore>) {
    let may_answer = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&may_answer);
    let server = Server::with(move |mut stream| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            stream.write_all(answer("200 OK", name).as_bytes()).await.map(|()| stream)
        }
    });
    (server.await, may_answer)
}

fn one_at_a_time() -> FunctionSpec {
    let mut spec = spec(PATIENCE);
    spec.instances.max = 1;
    spec
}

#[tokio::test]
async fn what_waits_goes_on_with_the_definition_that_takes_over_and_in_its_order() {
    let ((old, may_old), (new, may_new)) = (gated("old").await, gated("new").await);
    let invoker = HttpInvoker::new(&one_at_a_time(), old.url.parse().unwrap(), Arc::new(local()), Arc::default());
    let mut status = invoker.status();
    let invoke = |id| invoker.invoke(invocation(id));
    let taken_over = async {
        status.wait_for(|status| status.instances.busy == 1 && status.queued == 2).await.unwrap();
        invoker.replace(&one_at_a_time(), new.url.parse().unwrap());
        // Nothing of theirs was sent, and they do not wait for what was.
        may_new.add_permits(2);
        status.wait_for(|status| status.instances.busy == 1 && status.queued == 0).await.unwrap();
        may_old.add_permits(1);
    };
    let (first, second, third, ()) = tokio::join!(invoke("1"), invoke("2"), invoke("3"), taken_over);
    assert_eq!(first.unwrap().body, "old", "it finishes what it holds");
    assert_eq!((second.unwrap().body, third.unwrap().body), ("new".into(), "new".into()));
    assert_eq!(old.requests.lock().len(), 1);
    let order: Vec<bool> = new.requests.lock().iter().map(|request| request.contains("-id: 2\r\n")).collect();
    assert_eq!(order, [true, false]);
}

#[tokio::test]
async fn what_waits_when_the_function_stops_is_given_back() {
    let (server, may_answer) = gated("done").await;
    let invoker = HttpInvoker::new(&one_at_a_time(), server.url.parse().unwrap(), Arc::new(local()), Arc::default());
    let mut status = invoker.status();
    let stopped = async {
        status.wait_for(|status| status.instances.busy == 1 && status.queued == 1).await.unwrap();
        let stopped = invoker.stop(Instant::now() + PATIENCE);
        may_answer.add_permits(1);
        stopped.await;
    };
    let (first, second, ()) = tokio::join!(invoke(&invoker), invoker.try_invoke(invocation("second")), stopped);
    assert_eq!(first.unwrap().body, "done");
    assert_eq!(second.unwrap_err().0.id, "second");
    assert_eq!(class_and_code(&invoke(&invoker).await), (ErrorClass::Interrupted, "shutdown"));
    assert_eq!(server.requests.lock().len(), 1);
}

#[tokio::test]
async fn too_much_that_waits_is_refused_as_a_pool_does() {
    let (server, may_answer) = gated("done").await;
    let invoker = HttpInvoker::new(&one_at_a_time(), server.url.parse().unwrap(), Arc::new(local()), Arc::default());
    let mut status = invoker.status();
    let large = Bytes::from(vec![b'x'; PAYLOAD_BYTES_MAX]);
    let fits = QUEUE_BYTES_MAX / PAYLOAD_BYTES_MAX;
    let mut waiting: Vec<_> = std::iter::once(invocation("held"))
        .chain((0..fits).map(|_| Invocation { payload: large.clone(), ..invocation("waits") }))
        .map(|invocation| invoker.invoke(invocation))
        .collect();
    let held = waiting.remove(0);
    let refused = async {
        status.wait_for(|status| status.instances.busy == 1 && status.queued == fits).await.unwrap();
        let refused = invoke(&invoker).await;
        assert_eq!(class_and_code(&refused), (ErrorClass::Throttled, "queue-full"));
    };
    tokio::select! {
        biased;
        _ = held => panic!("nobody answers it"),
        _ = futures_util::future::join_all(waiting) => panic!("they wait"),
        () = refused => {}
    }
    drop(may_answer);
}

#[tokio::test]
async fn what_a_closed_connection_did_not_take_goes_over_another_one() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (close, is_to_close) = std::sync::mpsc::channel();
    let (closed, is_closed) = tokio::sync::oneshot::channel();
    let server = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let serve = || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).unwrap() > 0);
            stream.write_all(answer("200 OK", "done").as_bytes()).unwrap();
            stream
        };
        let stream = serve();
        is_to_close.recv().unwrap();
        drop(stream);
        closed.send(()).unwrap();
        serve();
    });
    let invoker = invoker(&url, local(), system_resolver());
    assert_eq!(invoke(&invoker).await.unwrap().body, "done");
    close.send(()).unwrap();
    is_closed.await.unwrap();
    // The runtime looks at its sockets before it goes on here.
    tokio::task::yield_now().await;
    assert_eq!(invoke(&invoker).await.unwrap().body, "done");
    server.join().unwrap();
}

#[tokio::test]
async fn a_connection_is_closed_when_it_was_not_used_for_a_minute() {
    let (listener, invoker) = listening().await;
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut served = 0;
        while read_request(&mut stream).await.unwrap().is_some() {
            stream.write_all(answer("200 OK", "done").as_bytes()).await.unwrap();
            served += 1;
        }
        served
    });
    // The clock stands still only where it is moved: otherwise it runs on while the network is waited for.
    let pass = async |seconds| {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(seconds)).await;
        tokio::time::resume();
    };
    for _ in 0..3 {
        assert_eq!(invoke(&invoker).await.unwrap().body, "done");
        pass(50).await;
    }
    assert!(!served.is_finished());
    // It is looked at every few seconds.
    for _ in 0..3 {
        pass(5).await;
    }
    let served = tokio::time::timeout(PATIENCE, served).await.expect("it is closed");
    assert_eq!(served.unwrap(), 3, "it is the same connection until then");
}

#[tokio::test]
async fn a_connection_whose_request_was_not_read_to_its_end_is_not_used_again() {
    let (listener, invoker) = listening().await;
    let accepted = tokio::spawn(async move {
        let mut streams = Vec::new();
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(answer("413 Too much", "").as_bytes()).await.unwrap();
            streams.push(stream);
        }
    });
    let large = Bytes::from(vec![b'x'; PAYLOAD_BYTES_MAX]);
    for _ in 0..2 {
        let result = invoker.invoke(Invocation { payload: large.clone(), ..invocation("t/0/5") }).await;
        assert_eq!(class_and_code(&result), (ErrorClass::Rejected, "413"));
    }
    accepted.await.unwrap();
}

#[tokio::test]
async fn a_target_that_answers_early_gets_the_whole_request_all_the_same() {
    let (listener, invoker) = listening().await;
    let received = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut received = Vec::new();
        for _ in 0..2 {
            let head = loop {
                assert!(stream.read_buf(&mut received).await.unwrap() > 0, "there is another one");
                if let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                    break end + 4;
                }
            };
            stream.write_all(answer("202 Accepted", "").as_bytes()).await.unwrap();
            while received.len() < head + PAYLOAD_BYTES_MAX {
                assert!(stream.read_buf(&mut received).await.unwrap() > 0, "it was cut off");
            }
            received.drain(..head + PAYLOAD_BYTES_MAX);
        }
    });
    let large = Bytes::from(vec![b'x'; PAYLOAD_BYTES_MAX]);
    for _ in 0..2 {
        let result = invoker.invoke(Invocation { payload: large.clone(), ..invocation("t/0/5") }).await;
        assert_eq!(result.unwrap().body, "");
    }
    tokio::time::timeout(PATIENCE, received).await.expect("it has everything").unwrap();
}

#[tokio::test]
async fn an_unused_connection_is_let_go_when_the_target_has_closed_it() {
    let (listener, invoker) = listening().await;
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await.unwrap();
        stream.write_all(answer("200 OK", "done").as_bytes()).await.unwrap();
        stream
    });
    assert_eq!(invoke(&invoker).await.unwrap().body, "done");
    let mut stream = served.await.unwrap();
    stream.shutdown().await.unwrap();
    // The runtime learns of it here.
    tokio::task::yield_now().await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(6)).await;
    tokio::time::resume();
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("it is closed from here, too");
    assert_eq!(read.unwrap(), 0);
}

#[test]
fn a_request_says_path_query_and_host_as_the_url_does() {
    for (url, origin_form, host) in [
        ("http://one.example", "/", "one.example"),
        ("http://one.example:80/", "/", "one.example"),
        ("http://one.example:8080/a/b?c=d&e", "/a/b?c=d&e", "one.example:8080"),
        ("http://one.example?c=d", "/?c=d", "one.example"),
        ("http://[2001:db8::1]:81//a", "//a", "[2001:db8::1]:81"),
    ] {
        let target = Target::of(&url.parse().unwrap());
        let request = target.request(invocation("t/0/5"));
        assert_eq!(request.uri().to_string(), origin_form, "{url}");
        assert_eq!(request.headers()[HOST], host, "{url}");
    }
}
