//! The frames between the broker and the bootstrap of an instance.
//!
//! `[length u32 le][kind u8][body]`, over a socket of their own, so that what a function prints can never be taken for
//! one. The broker sends `Load` once, then one `Invoke` at a time, each answered by `Result` or `Error`; `Stop` ends
//! the talk.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::outcome::Invocation;

/// The longest payload that is handed to an instance.
pub const PAYLOAD_BYTES_MAX: usize = 32 << 20;

/// The longest result that is taken from an instance or an http target.
pub const OUTPUT_BYTES_MAX: usize = 6 << 20;

/// The longest body of a frame that carries facts about the instance instead of a result.
const REPORT_BYTES_MAX: usize = 64 << 10;

/// The receive buffer grows by this much at most per read, so a peer that announces a length and stays silent costs
/// nothing.
const READ_STEP_BYTES: usize = 64 << 10;

const HEAD_BYTES: usize = 5;

/// What the broker tells an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum OrderKind {
    /// Import the handler, run the initializer; the body is a [`Load`] as JSON.
    Load = 1,
    /// Run the handler; the body is `[head length u32 le][InvokeHead as JSON][payload]`.
    Invoke = 2,
    /// Run `pre_stop` and leave.
    Stop = 3,
}

/// What an instance answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnswerKind {
    /// The code is imported, the initializer comes next.
    Loaded,
    /// The initializer returned; the body is a [`Ready`] as JSON.
    Ready,
    /// The code cannot run; the body is a [`Fault`] as JSON.
    Broken,
    /// The handler returned; the body is its result.
    Result,
    /// The handler raised; the body is a [`Fault`] as JSON.
    Error,
    /// `pre_stop` is done, the process leaves.
    Stopped,
}

impl AnswerKind {
    fn from_byte(kind: u8) -> Option<Self> {
        Some(match kind {
            16 => Self::Loaded,
            17 => Self::Ready,
            18 => Self::Broken,
            19 => Self::Result,
            20 => Self::Error,
            21 => Self::Stopped,
            _ => return None,
        })
    }

    const fn body_bytes_max(self) -> usize {
        match self {
            Self::Result => OUTPUT_BYTES_MAX,
            _ => REPORT_BYTES_MAX,
        }
    }
}

/// One answer of an instance.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) kind: AnswerKind,
    pub(super) body: Bytes,
}

/// Why no answer could be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("the instance closed its channel")]
    Closed,
    #[error("the instance sent {length} bytes, the limit is {limit}")]
    TooLong { kind: AnswerKind, length: usize, limit: usize },
    #[error("the instance sent a frame of unknown kind {0}")]
    UnknownKind(u8),
    #[error("the channel of the instance failed: {0}")]
    Io(io::Error),
}

/// What the bootstrap needs to load the code.
#[derive(Serialize)]
pub(super) struct Load<'a> {
    pub(super) code_dir: &'a str,
    pub(super) path: &'a [String],
    pub(super) prefix: &'a str,
    pub(super) exec_prefix: &'a str,
    pub(super) handler: HandlerRef<'a>,
    pub(super) initializer: Option<HandlerRef<'a>>,
    pub(super) function: FunctionFacts<'a>,
    pub(super) version: u64,
    pub(super) instance: &'a str,
    pub(super) output_max: usize,
}

/// A `module.function` reference, taken apart.
#[derive(Serialize)]
pub(super) struct HandlerRef<'a> {
    pub(super) module: &'a str,
    pub(super) function: &'a str,
}

/// What `context.function` shows.
#[derive(Serialize)]
pub(super) struct FunctionFacts<'a> {
    pub(super) name: &'a str,
    pub(super) handler: String,
    pub(super) initializer: Option<String>,
    pub(super) memory_mb: u64,
    pub(super) timeout_s: f64,
}

/// What the context of one invocation shows.
#[derive(Serialize)]
struct InvokeHead<'a> {
    id: &'a str,
    attempt: u32,
    record_count: u32,
    content_type: &'a str,
    timeout_ms: u64,
}

/// How long the parts of a cold start took inside the interpreter.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub(super) struct Ready {
    /// Importing the code.
    pub(super) load_us: u64,
    /// Running the initializer.
    pub(super) initialize_us: u64,
}

/// What the bootstrap says about an error of the function.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) code: String,
    pub(super) message: String,
    /// Whether another try may help; missing where nothing is said about that.
    pub(super) retryable: Option<bool>,
}

/// The head of a frame whose body is `body_bytes` long.
fn head(kind: OrderKind, body_bytes: usize) -> [u8; HEAD_BYTES] {
    let length = u32::try_from(body_bytes).expect("payloads and heads are bounded far below 4 GiB");
    let [a, b, c, d] = length.to_le_bytes();
    [a, b, c, d, kind as u8]
}

/// A `Load` frame.
pub(super) fn load_frame(load: &Load<'_>) -> Bytes {
    let body = serde_json::to_vec(load).expect("strings and numbers always serialise");
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + body.len());
    frame.put_slice(&head(OrderKind::Load, body.len()));
    frame.put_slice(&body);
    frame.freeze()
}

/// A `Stop` frame.
pub(super) fn stop_frame() -> Bytes {
    Bytes::copy_from_slice(&head(OrderKind::Stop, 0))
}

/// All of an `Invoke` frame but the payload, which follows it as it is.
pub(super) fn invoke_frame_head(invocation: &Invocation, timeout_ms: u64) -> Bytes {
    let head_json = serde_json::to_vec(&InvokeHead {
        id: &invocation.id,
        attempt: invocation.attempt,
        record_count: invocation.record_count,
        content_type: invocation.content_type,
        timeout_ms,
    })
    .expect("strings and numbers always serialise");
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + 4 + head_json.len());
    frame.put_slice(&head(OrderKind::Invoke, 4 + head_json.len() + invocation.payload.len()));
    frame.put_u32_le(u32::try_from(head_json.len()).expect("an invocation id is short"));
    frame.put_slice(&head_json);
    frame.freeze()
}

/// Writes a frame: `head`, then `payload`.
pub(super) async fn write_frame(to: &mut (impl AsyncWrite + Unpin), head: &[u8], payload: &[u8]) -> io::Result<()> {
    let mut both = bytes::Buf::chain(head, payload);
    to.write_all_buf(&mut both).await
}

/// Reads one answer; memory grows with the bytes that really arrive.
pub(super) async fn read_answer(from: &mut (impl AsyncRead + Unpin)) -> Result<Answer, FrameError> {
    let mut head = [0; HEAD_BYTES];
    from.read_exact(&mut head).await.map_err(closed_or_io)?;
    let [a, b, c, d, kind_byte] = head;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    let kind = AnswerKind::from_byte(kind_byte).ok_or(FrameError::UnknownKind(kind_byte))?;
    let limit = kind.body_bytes_max();
    if length > limit {
        return Err(FrameError::TooLong { kind, length, limit });
    }
    Ok(Answer { kind, body: read_body(from, length).await? })
}

async fn read_body(from: &mut (impl AsyncRead + Unpin), length: usize) -> Result<Bytes, FrameError> {
    let mut body = BytesMut::with_capacity(length.min(READ_STEP_BYTES));
    while body.len() < length {
        body.reserve((length - body.len()).min(READ_STEP_BYTES));
        let mut rest = (&mut *from).take((length - body.len()) as u64);
        if rest.read_buf(&mut body).await.map_err(FrameError::Io)? == 0 {
            return Err(FrameError::Closed);
        }
    }
    Ok(body.freeze())
}

fn closed_or_io(error: io::Error) -> FrameError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => FrameError::Closed,
        _ => FrameError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer_bytes(length: u32, kind: u8, body: &[u8]) -> Vec<u8> {
        [&length.to_le_bytes()[..], &[kind], body].concat()
    }

    #[test]
    fn an_invoke_frame_has_these_bytes() {
        let invocation = Invocation {
            id: "t/0/5".into(),
            attempt: 2,
            payload: Bytes::from_static(b"[1]"),
            content_type: "application/json",
            record_count: 1,
            trace: None,
        };
        let head = invoke_frame_head(&invocation, 1500);
        let json =
            br#"{"id":"t/0/5","attempt":2,"record_count":1,"content_type":"application/json","timeout_ms":1500}"#;
        let expected =
            [&(4 + json.len() as u32 + 3).to_le_bytes()[..], &[2], &(json.len() as u32).to_le_bytes(), json].concat();
        assert_eq!(head, expected);
        assert_eq!(&stop_frame()[..], &[0, 0, 0, 0, 3]);
    }

    #[tokio::test]
    async fn an_answer_is_read_whole() {
        let bytes = answer_bytes(4, 19, b"null");
        let answer = read_answer(&mut &bytes[..]).await.unwrap();
        assert_eq!(answer, Answer { kind: AnswerKind::Result, body: Bytes::from_static(b"null") });
    }

    #[tokio::test]
    async fn a_result_above_the_limit_is_refused_before_it_is_read() {
        let bytes = answer_bytes(u32::MAX, 19, b"");
        let error = read_answer(&mut &bytes[..]).await.unwrap_err();
        assert!(matches!(error, FrameError::TooLong { kind: AnswerKind::Result, limit: OUTPUT_BYTES_MAX, .. }));
        let bytes = answer_bytes(REPORT_BYTES_MAX as u32 + 1, 20, b"");
        assert!(matches!(read_answer(&mut &bytes[..]).await, Err(FrameError::TooLong { .. })));
    }

    #[tokio::test]
    async fn a_cut_frame_is_a_closed_channel() {
        for bytes in [answer_bytes(9, 19, b"half"), vec![1, 0], Vec::new()] {
            assert!(matches!(read_answer(&mut &bytes[..]).await, Err(FrameError::Closed)), "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn an_unknown_kind_is_refused() {
        for kind in [0, 1, 15, 22, 255] {
            let bytes = answer_bytes(0, kind, b"");
            assert!(matches!(read_answer(&mut &bytes[..]).await, Err(FrameError::UnknownKind(found)) if found == kind));
        }
    }
}
