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
    /// What it takes in memory, about.
    pub(crate) fn size_bytes(&self) -> usize {
        let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let header = |header: &(String, Option<Vec<u8>>)| size_of_val(header) + header.0.len() + length(&header.1);
        size_of::<Self>() + length(&self.key) + length(&self.value) + self.headers.iter().map(header).sum::<usize>()
    }

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
        let taken_before = page.records.len();
        if take(&outcome.bytes, partition, limit, &mut left_bytes, &mut page) {
            return Ok(page);
        }
        page.next = page.next.max(outcome.next);
        if page.records.len() == taken_before {
            // The way through what is not shown ends as well.
            left_bytes = left_bytes.saturating_sub(outcome.bytes.len());
            if left_bytes == 0 {
                return Ok(page);
            }
        }
    }
}

/// Takes what fits: at most `limit` records, and beyond the first only as long as bytes are left. What counts is what a
/// record takes in memory: a batch of few bytes may unpack to many. Answers whether the page is full.
fn take(bytes: &[u8], partition: u32, limit: usize, left_bytes: &mut usize, page: &mut Page) -> bool {
    for view in Batches::of(bytes).map_while(Result::ok) {
        let header = view.header();
        let last = header.last_offset();
        if !header.attributes.is_control() {
            // What storage served was checked when it came in; a batch that does not unpack now is passed over.
            if let Ok(records) = view.records(&BatchLimits::default()) {
                let from = page.next;
                for record in records.iter().flatten().filter(|record| record.offset() >= from) {
                    let record = owned(partition, &record);
                    let size_bytes = record.size_bytes();
                    let fits = page.records.is_empty() || size_bytes <= *left_bytes;
                    if page.records.len() >= limit || !fits {
                        return true;
                    }
                    *left_bytes = left_bytes.saturating_sub(size_bytes);
                    page.next = record.offset.next();
                    page.records.push(record);
                }
            }
        }
        page.next = page.next.max(last.next());
    }
    page.records.len() >= limit || *left_bytes == 0
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tripline_storage::batch::{BatchBuilder, BatchOptions, Compression, NewRecord};

    use super::*;

    /// What a read of this log answers: the batch with the offset and those behind it.
    async fn read_log(log: &[Bytes], at: Offset) -> Result<ReadOutcome, ReadError> {
        let offset = |index: usize| Offset::new(index as i64 * 4).unwrap();
        let index = usize::try_from(at.get() / 4).unwrap().min(log.len());
        let bytes = log[index..].concat().into();
        Ok(ReadOutcome { bytes, next: offset(log.len()), tail: offset(log.len()), log_start: Offset::ZERO })
    }

    #[tokio::test]
    async fn a_page_of_batches_that_unpack_to_much_stays_small_and_leads_to_the_rest() {
        let value = vec![b'0'; 3 << 20];
        let log: Vec<Bytes> = (0..4)
            .map(|number| {
                let options = BatchOptions { compression: Compression::Zstd, ..BatchOptions::default() };
                let mut batch = BatchBuilder::new(options);
                for _ in 0..4 {
                    batch.push(&NewRecord { value: Some(&value), ..NewRecord::default() }).unwrap();
                }
                let mut bytes = batch.finish().unwrap().bytes().to_vec();
                // Its base offset, which the log gives it.
                bytes[..8].copy_from_slice(&(number * 4_i64).to_be_bytes());
                bytes.into()
            })
            .collect();
        assert!(log.iter().map(Bytes::len).sum::<usize>() < 64 << 10);
        let mut from = Offset::ZERO;
        let mut seen = Vec::new();
        while from.get() < 16 {
            let page = Page { records: Vec::new(), next: from, tail: from, log_start: from };
            let page = fill(page, 0, 100, |at, _| read_log(&log, at)).await.unwrap();
            let bytes: usize = page.records.iter().map(OwnedRecord::size_bytes).sum();
            assert!(page.records.len() == 1 || bytes <= READ_BYTES_MAX, "{bytes}");
            seen.extend(page.records.iter().map(|record| record.offset.get()));
            from = page.next;
        }
        assert_eq!(seen, (0..16).collect::<Vec<i64>>());
    }

    #[tokio::test]
    async fn headers_count_with_all_that_they_take() {
        let headers = vec![(b"h".as_slice(), None); 30_000];
        let options = BatchOptions { compression: Compression::Zstd, ..BatchOptions::default() };
        let mut batch = BatchBuilder::new(options);
        for _ in 0..40 {
            batch.push(&NewRecord { headers: &headers, ..NewRecord::default() }).unwrap();
        }
        let log = [Bytes::copy_from_slice(batch.finish().unwrap().bytes())];
        let page = Page { records: Vec::new(), next: Offset::ZERO, tail: Offset::ZERO, log_start: Offset::ZERO };
        let page = fill(page, 0, 100, |at, _| read_log(&log, at)).await.unwrap();
        let most = READ_BYTES_MAX / (30_000 * size_of::<(String, Option<Vec<u8>>)>());
        assert!((1..=most).contains(&page.records.len()), "{} of at most {most}", page.records.len());
    }
}
