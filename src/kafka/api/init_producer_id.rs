//! InitProducerId: an id for an idempotent producer.

use crate::kafka::codec::{InitProducerIdRequest, InitProducerIdResponse};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::service::KafkaService;

pub(crate) async fn answer(service: &KafkaService, request: &InitProducerIdRequest) -> InitProducerIdResponse {
    match new_id(service, request).await {
        // Whoever asks again to raise its epoch gets a new id instead: as good, and nobody has had it.
        Ok(producer_id) => message!(InitProducerIdResponse { producer_id: producer_id, producer_epoch: 0 }),
        Err(code) => message!(InitProducerIdResponse {
            error_code: service.count_error(code),
            producer_id: -1,
            producer_epoch: -1,
        }),
    }
}

async fn new_id(service: &KafkaService, request: &InitProducerIdRequest) -> Result<i64, ErrorCode> {
    match request.transactional_id.as_deref() {
        None => {}
        Some("") => return Err(ErrorCode::InvalidRequest),
        // Fatal to the client, with a text that a person understands: there are no transactions here.
        Some(_) => return Err(ErrorCode::TransactionalIdAuthorizationFailed),
    }
    service.broker.next_producer_id().await.map_err(|error| {
        tracing::error!(%error, "no producer id");
        ErrorCode::KafkaStorageError
    })
}
