//! Records out of a partition, decoded and owned.

use std::sync::Arc;
use std::time::Duration;

use tripline_storage::batch::{BatchLimits, Batches};
use tripline_storage::error::ReadError;
use tripline_storage::partition::ReadOutcome;
use tripline_storage::{Offset, Partition};

use super::limits::READ_BYTES_MAX;
use crate::broker::Broker;
use crate::input::EventInput;

/// A record as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnedRecord {
    pub(crate) partition: u32,
    pub(crate) offset: Offset,
    pub(crate) timestamp_ms: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

impl OwnedRecord {
    /// The text of the first header with this name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(known, _)| known == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }
}

/// Some records, and where to go on.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) records: Vec<OwnedRecord>,
    pub(crate) next: Offset,
    pub(crate) tail: Offset,
    pub(crate) log_start: Offset,
}

/// At most `limit` records from `from` on.
pub(crate) async fn read(partition: &Arc<Partition>, from: Offset, limit: usize) -> Result<Page, ReadError> {
    let page = Page { records: Vec::new(), next: from, tail: partition.tail(), log_start: partition.log_start() };
    fill(page, partition.id().partition, limit, |at, max_bytes| Broker::read(partition, at, max_bytes)).await
}

/// The same of what triggers read, here or on a cluster.
pub(crate) async fn read_input(input: &EventInput, from: Offset, limit: usize) -> Result<Page, ReadError> {
    let page = Page { records: Vec::new(), next: from, tail: input.tail(), log_start: input.log_start() };
    fill(page, input.origin().partition, limit, |at, max_bytes| input.read(at, max_bytes)).await
}

async fn fill<R>(
    mut page: Page,
    partition: u32,
    limit: usize,
    read: impl Fn(Offset, usize) -> R + Send,
) -> Result<Page, ReadError>
where
    R: Future<Output = Result<ReadOutcome, ReadError>> + Send,
{
    let mut left_bytes = READ_BYTES_MAX;
    loop {
        let outcome = read(page.next, left_bytes).await?;
        (page.tail, page.log_start) = (outcome.tail, outcome.log_start);
        if outcome.bytes.is_empty() {
            // On a cluster all of what was fetched may have been left out: what aborted transactions wrote.
            page.next = page.next.max(outcome.next);
            return Ok(page);
        }
        left_bytes = left_bytes.saturating_sub(outcome.bytes.len());
        take(&outcome.bytes, partition, limit, &mut page);
        if page.records.len() >= limit || left_bytes == 0 {
            return Ok(page);
        }
        page.next = page.next.max(outcome.next);
    }
}

fn take(bytes: &[u8], partition: u32, limit: usize, page: &mut Page) {
    for view in Batches::of(bytes).map_while(Result::ok) {
        let header = view.header();
        let last = header.last_offset();
        if !header.attributes.is_control() {
            // What storage served was checked when it came in; a batch that does not unpack now is passed over.
            if let Ok(records) = view.records(&BatchLimits::default()) {
                let from = page.next;
                for record in records.iter().flatten().filter(|record| record.offset() >= from) {
                    if page.records.len() >= limit {
                        return;
                    }
                    page.next = record.offset().next();
                    page.records.push(owned(partition, &record));
                }
            }
        }
        page.next = page.next.max(last.next());
    }
}

fn owned(partition: u32, record: &tripline_storage::batch::RecordView<'_>) -> OwnedRecord {
    let header = |header: tripline_storage::batch::HeaderView<'_>| {
        (String::from_utf8_lossy(header.name).into_owned(), header.value.map(<[u8]>::to_vec))
    };
    OwnedRecord {
        partition,
        offset: record.offset(),
        timestamp_ms: record.timestamp_ms(),
        key: record.key().map(<[u8]>::to_vec),
        value: record.value().map(<[u8]>::to_vec),
        headers: record.headers().into_iter().map(header).collect(),
    }
}

/// Waits until `partition` has records behind `from`, at most `wait`.
pub(crate) async fn wait_for_records(partition: &Partition, from: Offset, wait: Duration) {
    let arrived = async {
        loop {
            let listener = partition.listen_tail();
            if partition.tail() > from {
                return;
            }
            listener.await;
        }
    };
    let _ = tokio::time::timeout(wait, arrived).await;
}
