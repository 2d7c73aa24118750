//! Saying who we are to a broker: Kafka's SaslHandshake and SaslAuthenticate around SASL's own exchange.
//!
//! The exchange is `rsasl`'s. Each of its steps runs on a thread that may block: a SCRAM proof is thousands of hashes.
//! A step that panics over what a hostile broker says (`rsasl` 2.3 does, over messages with an empty part) is an error
//! of that connection.

use std::time::Duration;

use bytes::Bytes;
use rsasl::callback::{Context, Request, SessionCallback, SessionData};
use rsasl::config::SASLConfig;
use rsasl::mechanisms::scram::properties::Iterations;
use rsasl::prelude::{Mechname, MessageSent, SASLClient, SessionError, State};
use rsasl::property::{AuthId, Password};
use tokio::time::{Instant, timeout_at};

use super::access::Sasl;
use super::wire::schema::{SaslAuthenticateRequest, SaslHandshakeRequest};
use super::wire::{CallError, Connection, StrBytes, message};

/// How often a broker may have us hash. RFC 7677 asks for 4,096 at least: with fewer the password could be guessed from
/// the proof. Kafka goes up to 16,384; more than these take long, which a hostile broker might like.
const ITERATIONS: std::ops::RangeInclusive<u32> = 4_096..=100_000;
/// Kafka's error codes for a mechanism that a listener does not have, and for a listener that has none.
const UNSUPPORTED_MECHANISM: i16 = 33;
const ILLEGAL_SASL_STATE: i16 = 34;
/// Kafka's error code for a name and a password that do not belong together.
const SASL_AUTHENTICATION_FAILED: i16 = 58;
/// Of the mechanisms that a broker offers so many are told.
const MECHANISMS_MAX: usize = 10;
/// No exchange has more steps than this; one that goes on is none.
const STEPS_MAX: usize = 8;

/// Answers what the exchange asks for.
struct Credentials(Sasl);

impl SessionCallback for Credentials {
    fn callback(&self, _: &SessionData, context: &Context<'_>, request: &mut Request<'_>) -> Result<(), SessionError> {
        if let Some(iterations) = context.get_ref::<Iterations>()
            && !ITERATIONS.contains(iterations)
        {
            let (from, to) = (ITERATIONS.start(), ITERATIONS.end());
            let reason = format!("the broker asks for {iterations} iterations, allowed: {from} to {to}");
            return Err(SessionError::Boxed(reason.into()));
        }
        request.satisfy::<AuthId>(&self.0.username)?.satisfy::<Password>(self.0.password.reveal().as_bytes())?;
        Ok(())
    }
}

/// Says who we are over a new connection, until `deadline`. Answers for how long the broker takes that for true, if it
/// says so. A password that is refused is held back for a while, for all connections.
pub(super) async fn authenticate(
    connection: &mut Connection,
    sasl: &Sasl,
    deadline: Instant,
) -> Result<Option<Duration>, CallError> {
    let turn = timeout_at(deadline, sasl.refusals.turn()).await;
    let _turn = match turn {
        Ok(Ok(turn)) => turn,
        Ok(Err(reason)) => return Err(unauthenticated(connection.address(), sasl, reason)),
        Err(_) => return Err(cannot_be_told(connection.address(), sasl, "others are still trying it".to_owned())),
    };
    let told = exchange(connection, sasl, deadline).await;
    match &told {
        Ok(_) => sasl.refusals.accepted(),
        Err(CallError::Unauthenticated { reason, .. }) => sasl.refusals.refused(reason, Instant::now()),
        // It says nothing about the password.
        Err(_) => {}
    }
    told
}

/// What is told of a broker that does not take us for who we say we are.
pub(super) fn unauthenticated(address: &str, sasl: &Sasl, reason: String) -> CallError {
    let (mechanism, username) = (sasl.mechanism.name(), sasl.username.clone());
    CallError::Unauthenticated { address: address.to_owned(), mechanism, username, reason }
}

/// What is told of a broker to which it cannot be said who we are.
fn cannot_be_told(address: &str, sasl: &Sasl, reason: String) -> CallError {
    CallError::Sasl { address: address.to_owned(), mechanism: sasl.mechanism.name(), reason }
}

async fn exchange(connection: &mut Connection, sasl: &Sasl, deadline: Instant) -> Result<Option<Duration>, CallError> {
    let mechanism = sasl.mechanism.name();
    let failed = |address: &str, reason: String| cannot_be_told(address, sasl, reason);
    let request = message!(SaslHandshakeRequest { mechanism: StrBytes::from(mechanism.to_owned()) });
    let answer = connection.call(1..=1, &request, left(deadline)).await?;
    match answer.error_code {
        0 => {}
        UNSUPPORTED_MECHANISM => {
            let offered: Vec<String> =
                answer.mechanisms.iter().take(MECHANISMS_MAX).map(|name| printable(name)).collect();
            return Err(failed(connection.address(), format!("the broker takes {}", offered.join(", "))));
        }
        ILLEGAL_SASL_STATE => {
            return Err(failed(connection.address(), "has this listener no SASL?".to_owned()));
        }
        code => return Err(failed(connection.address(), format!("Kafka's error {code}"))),
    }
    let config = SASLConfig::builder().with_defaults().with_callback(Credentials(sasl.clone()));
    let wanted = Mechname::parse(mechanism.as_bytes()).expect("its name is one");
    let session = config.and_then(|config| SASLClient::new(config).start_suggested(&[wanted]));
    let mut session = session.map_err(|error| failed(connection.address(), error.to_string()))?;
    let mut input: Option<Bytes> = None;
    let mut lifetime = None;
    for _ in 0..STEPS_MAX {
        let step = tokio::task::spawn_blocking(move || {
            let mut output = Vec::new();
            let state = session.step(input.as_deref(), &mut output);
            (session, state, output)
        });
        let Ok((stepped, state, output)) = step.await else {
            return Err(failed(connection.address(), "what the broker says cannot be read".to_owned()));
        };
        session = stepped;
        let state = state.map_err(|error| failed(connection.address(), printable(&reason(&error))))?;
        if matches!(state, State::Finished(MessageSent::No)) {
            return Ok(lifetime);
        }
        let request = message!(SaslAuthenticateRequest { auth_bytes: Bytes::from(output) });
        let answer = connection.call(0..=2, &request, left(deadline)).await?;
        if answer.error_code != 0 {
            let said = answer.error_message.as_deref().map(printable).filter(|said| !said.is_empty());
            let said = said.unwrap_or_else(|| format!("Kafka's error {}", answer.error_code));
            let is_refused = answer.error_code == SASL_AUTHENTICATION_FAILED;
            let told = if is_refused { unauthenticated } else { cannot_be_told };
            return Err(told(connection.address(), sasl, said));
        }
        let for_ms = u64::try_from(answer.session_lifetime_ms).ok().filter(|for_ms| *for_ms > 0);
        lifetime = for_ms.map(Duration::from_millis).or(lifetime);
        if matches!(state, State::Finished(_)) {
            return Ok(lifetime);
        }
        input = Some(answer.auth_bytes);
    }
    Err(failed(connection.address(), "the exchange has no end".to_owned()))
}

/// How long there is until `deadline`.
pub(super) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// An error and what it comes from.
fn reason(error: &SessionError) -> String {
    let mut said = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        said = format!("{said}: {error}");
        cause = error.source();
    }
    said
}

/// What a broker says, in a line.
fn printable(said: &str) -> String {
    said.chars().filter(|c| !c.is_control()).take(200).collect()
}
