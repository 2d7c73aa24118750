//! DeleteGroups: groups without members, with the offsets that they committed.

use super::group_errors;
use crate::group::error::DeleteError;
use crate::group::id::GroupId;
use crate::kafka::codec::{DeleteGroupsRequest, DeleteGroupsResponse, delete_groups_response};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::service::{KafkaService, Shared};
use crate::kafka::trigger_groups;

pub(crate) async fn answer(service: &KafkaService, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
    let mut results = Vec::with_capacity(request.groups_names.len());
    for id in request.groups_names {
        let code = match GroupId::parse(&id) {
            Ok(group) => delete(service, &group).await.err().unwrap_or(ErrorCode::None),
            Err(_) => ErrorCode::InvalidGroupId,
        };
        results.push(message!(delete_groups_response::DeletableGroupResult {
            group_id: id,
            error_code: service.count_error(code),
        }));
    }
    message!(DeleteGroupsResponse { results: results })
}

async fn delete(service: &Shared, group: &GroupId) -> Result<(), ErrorCode> {
    let known = service.groups.describe(group).is_some();
    let has_offsets = !service.broker.committed_offsets(group.as_str()).is_empty();
    if trigger_groups::owner(&service.triggers, group).is_some() {
        return Err(group_errors::delete(DeleteError::Reserved));
    }
    if !known && !has_offsets {
        return Err(ErrorCode::GroupIdNotFound);
    }
    let forgotten = service.groups.delete(group, || service.broker.forget_group(group.as_str()));
    let next = forgotten.map_err(group_errors::delete)?;
    let journal = |error| {
        tracing::error!(%error, group = %group, "a group was not deleted");
        ErrorCode::CoordinatorNotAvailable
    };
    service.broker.journal().durable(next.map_err(journal)?).await.map_err(journal)
}
