//! The reading half: bytes to frames to requests that are begun.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::io::poll_read_buf;

use super::{Begun, End, Held, Shared, UNBUDGETED_FRAME_BYTES, WAITING_BYTES_MAX, allowance, budget, budget_units};
use crate::kafka::api::{api_versions, produce_too_old};
use crate::kafka::codec::{self, RequestHeader, StrBytes};
use crate::kafka::frame::{FrameDecoder, Progress};
use crate::kafka::handler::{Answer, ConnectionContext, Response, ResponseFrame};
use crate::kafka::metrics::KafkaMetrics;
use crate::kafka::request::{DecodedRequest, RequestBody};
use crate::kafka::version::Api;

pub(super) struct Reader {
    socket: OwnedReadHalf,
    queue: mpsc::UnboundedSender<Begun>,
    context: Arc<ConnectionContext>,
    shared: Arc<Shared>,
    decoder: FrameDecoder,
    in_flight: Arc<Semaphore>,
    queued: Arc<Semaphore>,
    /// Bytes of requests other than Produce.
    waiting: Arc<Semaphore>,
    /// Memory granted to the frame at the front.
    granted: Option<OwnedSemaphorePermit>,
    /// By when the first request must be complete; none after it.
    first_deadline: Option<Instant>,
    /// When the first byte of the frame at the front came.
    frame_begun: Option<Instant>,
}

impl Reader {
    pub(super) fn new(
        socket: OwnedReadHalf,
        queue: mpsc::UnboundedSender<Begun>,
        context: Arc<ConnectionContext>,
        shared: Arc<Shared>,
    ) -> Self {
        let config = shared.config;
        Self {
            socket,
            queue,
            context,
            decoder: FrameDecoder::new(config.frames),
            in_flight: Arc::new(Semaphore::new(config.in_flight_max.max(1))),
            queued: budget(config.queued_response_bytes_max),
            waiting: budget(WAITING_BYTES_MAX),
            granted: None,
            first_deadline: Some(Instant::now() + config.first_request_timeout),
            frame_begun: None,
            shared,
        }
    }

    /// Reads until the connection ends.
    pub(super) async fn run(mut self) -> End {
        loop {
            if let Err(end) = self.step().await {
                return end;
            }
        }
    }

    /// One request, from its first byte until it is begun.
    async fn step(&mut self) -> Result<(), End> {
        let in_flight = tokio::select! {
            biased;
            () = self.shared.drain.cancelled() => return Err(End::Drained),
            permit = acquire(&self.in_flight, 1) => permit,
        };
        let frame = self.next_frame().await?;
        let (answer, held) = self.begin(frame).await?;
        let granted = self.granted.take();
        self.first_deadline = None;
        self.decoder.accept();
        let queued = match &answer {
            Answer::Now(Response::Frame(frame)) => {
                let units = budget_units(frame.size_bytes(), self.shared.config.queued_response_bytes_max);
                Some(acquire(&self.queued, units).await)
            }
            _ => None,
        };
        let begun = Begun { answer, _in_flight: in_flight, _frame: granted, _queued: queued, _held: held };
        self.queue.send(begun).map_err(|_| End::Closed)
    }

    async fn begin(&mut self, frame: Bytes) -> Result<(Answer, Held), End> {
        let length = frame.len();
        let (mut header, body) = codec::decode_header(frame).map_err(|error| End::Malformed {
            api_key: -1,
            api_version: -1,
            client_id: None,
            error: error.to_string(),
        })?;
        let version = header.api_version;
        let api = match Api::from_key(header.api_key) {
            Some(api) if api == Api::ApiVersions || api.serves(version) => api,
            Some(api @ Api::Produce) if (0..=2).contains(&version) => {
                self.shared.metrics.request(api);
                let refusal = produce_too_old::refuse(&header, body).map_err(|error| malformed(&header, &error))?;
                return Ok((Answer::Now(refusal), Held::default()));
            }
            _ => return Err(unknown(&header)),
        };
        self.shared.metrics.request(api);
        if api == Api::ApiVersions {
            return Ok((self.api_versions(&header, body)?, Held::default()));
        }
        let mut held = if api == Api::Produce { Held::default() } else { self.hold(length).await? };
        if self.granted.is_some() {
            // Else it keeps the whole frame.
            header.client_id = header.client_id.map(|id| StrBytes::from(id.to_string()));
        }
        let body = RequestBody::decode(api, version, body).map_err(|error| malformed(&header, &error))?;
        let request = DecodedRequest { header, body };
        let (shared, context) = (Arc::clone(&self.shared), Arc::clone(&self.context));
        let begin = async move { (shared.handler)(request, context).await };
        let answer = AssertUnwindSafe(begin).catch_unwind().await.map_err(|_| End::Panicked)?;
        if !matches!(answer, Answer::Later(_)) {
            // It may stand behind one that waits for long, or wait itself, and has nothing of the request any more.
            (self.granted, held.decoded) = (None, None);
        }
        Ok((answer, held))
    }

    /// What a request of this length takes beside its frame. Waits until others have been answered: those of this
    /// connection, and then those of all. A long one is begun when no other of its connection waits, so that it holds
    /// what all share no longer than it takes itself.
    async fn hold(&self, length: usize) -> Result<Held, End> {
        let budget = self.shared.frame_budget.decoded_for(length);
        let alone = if budget.is_some() { WAITING_BYTES_MAX } else { length };
        let waiting = acquire(&self.waiting, budget_units(alone, WAITING_BYTES_MAX)).await;
        let decoded = match budget {
            Some((budget, units)) => Some(self.in_time(budget, units).await?),
            None => None,
        };
        Ok(Held { _waiting: Some(waiting), decoded })
    }

    fn api_versions(&self, header: &RequestHeader, body: Bytes) -> Result<Answer, End> {
        let answer = api_versions::answer(header, body).map_err(|error| malformed(header, &error))?;
        if let Some(software) = answer.software {
            // The first word counts; a client that says something else later keeps its first name.
            let _ = self.context.software.set(software);
        }
        Ok(Answer::Now(Response::Frame(ResponseFrame::from(answer.frame))))
    }

    async fn next_frame(&mut self) -> Result<Bytes, End> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                // What follows in the buffer has begun by now.
                self.frame_begun = (self.decoder.progress()? != Progress::Idle).then(Instant::now);
                return Ok(frame);
            }
            if let Progress::Body(length) = self.decoder.progress()?
                && length > UNBUDGETED_FRAME_BYTES
                && self.granted.is_none()
            {
                self.granted = Some(self.grant(length).await?);
            }
            self.fill().await?;
        }
    }

    /// Memory for the whole frame.
    async fn grant(&self, length: usize) -> Result<OwnedSemaphorePermit, End> {
        let (budget, units) = self.shared.frame_budget.part_for(length);
        self.in_time(budget, units).await
    }

    async fn in_time(&self, budget: &Arc<Semaphore>, units: u32) -> Result<OwnedSemaphorePermit, End> {
        let allowed = self.shared.config.frame_timeout;
        timeout_at(Instant::now() + allowed, acquire(budget, units))
            .await
            .map_err(|_| End::TimedOut { what: "waiting for memory for a request", allowed })
    }

    /// Reads some bytes.
    async fn fill(&mut self) -> Result<(), End> {
        let progress = self.decoder.progress()?;
        if progress != Progress::Idle && self.frame_begun.is_none() {
            self.frame_begun = Some(Instant::now());
        }
        if progress == Progress::Idle {
            // Without a byte in sight there is no buffer either: idle connections cost none.
            self.frame_begun = None;
            self.wait_readable(progress).await?;
        }
        loop {
            match self.read_some().await? {
                Poll::Ready(0) => return Err(End::Closed),
                Poll::Ready(count) => {
                    KafkaMetrics::add(&self.shared.metrics.received_bytes_total, count);
                    return Ok(());
                }
                Poll::Pending => self.wait_readable(progress).await?,
            }
        }
    }

    /// Reads what is there, without waiting. By `poll_read` and not by `try_read`, which does not conclude from a
    /// buffer that was not filled that nothing is left, and so costs a second call to the system each time.
    async fn read_some(&mut self) -> Result<Poll<usize>, End> {
        let spare = self.decoder.spare()?;
        let socket = &mut self.socket;
        let read = poll_fn(|context| Poll::Ready(poll_read_buf(Pin::new(&mut *socket), context, spare)));
        match read.await {
            Poll::Pending => Ok(Poll::Pending),
            Poll::Ready(count) => Ok(Poll::Ready(count?)),
        }
    }

    async fn wait_readable(&self, progress: Progress) -> Result<(), End> {
        loop {
            let (deadline, end) = self.deadline(progress);
            tokio::select! {
                // Bytes that are there count, even if their time has just run out.
                biased;
                ready = self.socket.readable() => return ready.map_err(End::Io),
                () = self.shared.drain.cancelled() => return Err(End::Drained),
                () = sleep_until(deadline) => {}
            }
            // Silence while we owe an answer is ours, not the client's.
            let owing = self.in_flight.available_permits() + 1 < self.shared.config.in_flight_max.max(1);
            if !(matches!(end, End::Idle(_)) && owing) {
                return Err(end);
            }
        }
    }

    /// By when something must have come, and what it means if not.
    fn deadline(&self, progress: Progress) -> (Instant, End) {
        let config = &self.shared.config;
        let own = match (progress, self.frame_begun) {
            (Progress::Idle, _) | (_, None) => (Instant::now() + config.idle_timeout, End::Idle(config.idle_timeout)),
            (progress, Some(begun)) => {
                let length = if let Progress::Body(length) = progress { length } else { 0 };
                let allowed = allowance(config.frame_timeout, length);
                (begun + allowed, End::TimedOut { what: "a request", allowed })
            }
        };
        match self.first_deadline {
            Some(first) if first < own.0 => {
                let allowed: Duration = config.first_request_timeout;
                (first, End::TimedOut { what: "the first request", allowed })
            }
            _ => own,
        }
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, units: u32) -> OwnedSemaphorePermit {
    Arc::clone(semaphore).acquire_many_owned(units).await.expect("our semaphores are never closed")
}

fn malformed(header: &RequestHeader, error: &dyn std::fmt::Display) -> End {
    End::Malformed {
        api_key: header.api_key,
        api_version: header.api_version,
        client_id: header.client_id.as_ref().map(ToString::to_string),
        error: error.to_string(),
    }
}

fn unknown(header: &RequestHeader) -> End {
    End::Unknown {
        api_key: header.api_key,
        api_version: header.api_version,
        client_id: header.client_id.as_ref().map(ToString::to_string),
    }
}
