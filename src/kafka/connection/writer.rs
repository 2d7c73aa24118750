//! The writing half: awaits answers in order and sends what is ready in one go.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout_at};

use super::{Begun, End, Shared, allowance};
use crate::kafka::handler::{Answer, Response};
use crate::kafka::metrics::KafkaMetrics;

/// Responses are joined into one write until it has so many bytes.
const COALESCED_BYTES: usize = 256 * 1024;
/// Most slices of one write.
const SLICES_MAX: usize = 64;

/// Sends the responses of one connection until the reader ends; an error closes the connection.
pub(super) async fn write_responses(
    socket: OwnedWriteHalf,
    mut queue: UnboundedReceiver<Begun>,
    shared: Arc<Shared>,
) -> Result<(), End> {
    let mut writer = Writer { socket, shared, parts: VecDeque::new(), size_bytes: 0, sent: Vec::new(), closing: None };
    while let Some(begun) = queue.recv().await {
        let mut next = Some(begun);
        while let Some(begun) = next.take() {
            writer.settle(begun).await?;
            next = writer.take_ready(&mut queue)?;
            writer.flush().await?;
            if let Some(reason) = writer.closing {
                return Err(End::Refused(reason));
            }
        }
    }
    Ok(())
}

struct Writer {
    socket: OwnedWriteHalf,
    shared: Arc<Shared>,
    /// Ready and not yet sent.
    parts: VecDeque<Bytes>,
    size_bytes: usize,
    /// What the requests behind `parts` hold until they are sent.
    sent: Vec<Begun>,
    /// Why the connection ends, once what is ready is sent.
    closing: Option<&'static str>,
}

impl Writer {
    /// Awaits one response.
    async fn settle(&mut self, mut begun: Begun) -> Result<(), End> {
        let answer = std::mem::replace(&mut begun.answer, Answer::Now(Response::Silence));
        let response = match answer {
            Answer::Now(response) => response,
            Answer::Later(future) | Answer::Detached(future) => guarded(future).await?,
        };
        self.push(response, begun);
        Ok(())
    }

    /// Takes the responses that need no waiting; returns the first request that does, if it came to one.
    fn take_ready(&mut self, queue: &mut UnboundedReceiver<Begun>) -> Result<Option<Begun>, End> {
        while self.size_bytes < COALESCED_BYTES && self.closing.is_none() {
            let Ok(mut begun) = queue.try_recv() else { return Ok(None) };
            match std::mem::replace(&mut begun.answer, Answer::Now(Response::Silence)) {
                Answer::Now(response) => self.push(response, begun),
                Answer::Later(mut future) | Answer::Detached(mut future) => match poll_now(&mut future)? {
                    Poll::Ready(response) => self.push(response, begun),
                    Poll::Pending => {
                        begun.answer = Answer::Later(future);
                        return Ok(Some(begun));
                    }
                },
            }
        }
        Ok(None)
    }

    fn push(&mut self, response: Response, begun: Begun) {
        match response {
            Response::Frame(frame) => {
                self.size_bytes += frame.size_bytes();
                self.parts.extend(frame.into_parts());
                self.sent.push(begun);
            }
            Response::Silence => {}
            Response::Close(reason) => self.closing = Some(reason),
        }
    }

    /// Sends all that is ready.
    async fn flush(&mut self) -> Result<(), End> {
        let allowed = allowance(self.shared.config.write_timeout, self.size_bytes);
        let deadline = Instant::now() + allowed;
        while !self.parts.is_empty() {
            match self.write_some() {
                Ok(count) => self.advance(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let writable = timeout_at(deadline, self.socket.writable()).await;
                    writable.map_err(|_| End::TimedOut { what: "sending a response", allowed })??;
                }
                Err(error) => return Err(End::Io(error)),
            }
        }
        self.size_bytes = 0;
        self.sent.clear();
        Ok(())
    }

    fn write_some(&self) -> std::io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = self.parts.len().min(SLICES_MAX);
        for (slice, part) in slices.iter_mut().zip(&self.parts) {
            *slice = IoSlice::new(part);
        }
        self.socket.try_write_vectored(&slices[..count])
    }

    fn advance(&mut self, mut count: usize) {
        KafkaMetrics::add(&self.shared.metrics.sent_bytes_total, count);
        while let Some(part) = self.parts.front_mut() {
            if count < part.len() {
                part.advance(count);
                return;
            }
            count -= part.len();
            // A slice that is sent is let go at once: it holds a map of the log.
            self.parts.pop_front();
        }
        debug_assert_eq!(count, 0, "no more is sent than there was");
    }
}

async fn guarded(future: BoxFuture<'static, Response>) -> Result<Response, End> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(|_| End::Panicked)
}

/// Polls once. The task is woken when the future moves on, which at worst costs one more look.
fn poll_now(future: &mut BoxFuture<'static, Response>) -> Result<Poll<Response>, End> {
    match AssertUnwindSafe(future).catch_unwind().now_or_never() {
        None => Ok(Poll::Pending),
        Some(Ok(response)) => Ok(Poll::Ready(response)),
        Some(Err(_)) => Err(End::Panicked),
    }
}
