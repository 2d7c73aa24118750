//! FindCoordinator: this node, for each group.

use crate::group::id::GroupId;
use crate::kafka::advertised::HostPort;
use crate::kafka::codec::{FindCoordinatorRequest, FindCoordinatorResponse, StrBytes, find_coordinator_response};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::service::{KafkaService, NODE_ID};

const GROUP: i8 = 0;
const TRANSACTION: i8 = 1;
/// Versions that ask for many at once.
const MANY_SINCE: i16 = 4;

pub(crate) fn answer(
    service: &KafkaService,
    request: FindCoordinatorRequest,
    version: i16,
    advertised: &HostPort,
) -> FindCoordinatorResponse {
    if version >= MANY_SINCE {
        let keys = request.coordinator_keys.into_iter();
        let coordinators = keys.map(|key| {
            let (code, reason) = split(check(&key, request.key_type));
            let found = code == ErrorCode::None;
            message!(find_coordinator_response::Coordinator {
                key: key,
                node_id: if found { NODE_ID } else { -1 },
                host: if found { StrBytes::from(advertised.host.as_str()) } else { StrBytes::default() },
                port: if found { i32::from(advertised.port) } else { -1 },
                error_code: service.count_error(code),
                error_message: reason,
            })
        });
        return message!(FindCoordinatorResponse { coordinators: coordinators.collect() });
    }
    let (code, reason) = split(check(&request.key, request.key_type));
    let found = code == ErrorCode::None;
    message!(FindCoordinatorResponse {
        error_code: service.count_error(code),
        error_message: reason,
        node_id: if found { NODE_ID } else { -1 },
        host: if found { StrBytes::from(advertised.host.as_str()) } else { StrBytes::default() },
        port: if found { i32::from(advertised.port) } else { -1 },
    })
}

fn split(checked: Result<(), (ErrorCode, String)>) -> (ErrorCode, Option<StrBytes>) {
    match checked {
        Ok(()) => (ErrorCode::None, None),
        Err((code, reason)) => (code, Some(StrBytes::from(reason))),
    }
}

fn check(key: &str, key_type: i8) -> Result<(), (ErrorCode, String)> {
    match key_type {
        GROUP => match GroupId::parse(key) {
            Ok(_) => Ok(()),
            Err(error) => Err((ErrorCode::InvalidGroupId, error.to_string())),
        },
        TRANSACTION => {
            Err((ErrorCode::TransactionalIdAuthorizationFailed, "this broker has no transactions".to_owned()))
        }
        other => Err((ErrorCode::InvalidRequest, format!("key_type is {other}, allowed is {GROUP} (group)"))),
    }
}
