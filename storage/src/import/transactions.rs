//! How the transactions in a log ended. Pure.

use std::collections::HashMap;

use crate::batch::{BatchError, BatchHeader, BatchLimits, BatchView};
use crate::limits::BATCH_BYTES_MAX;
use crate::offset::Offset;

/// What becomes of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is taken over as it is.
    Kept,
    /// It is taken over as an ordinary one: its transaction was committed.
    Committed,
    /// Its offsets stay empty: its transaction was aborted, or it only says how one ended.
    Dropped,
}

/// A transaction in one partition.
#[derive(Clone, Copy, Debug)]
struct Transaction {
    first: Offset,
    records: u64,
}

/// The transactions of one partition.
#[derive(Debug, Default)]
pub(super) struct Transactions {
    /// By producer.
    open: HashMap<i64, Transaction>,
    /// By producer, in order: first offset, the offset of the marker.
    aborted: HashMap<i64, Vec<(Offset, Offset)>>,
    committed_count: u64,
    aborted_count: u64,
    aborted_records: u64,
}

impl Transactions {
    /// Takes note of the next batch of the log, and reads its records.
    pub(super) fn note(&mut self, header: &BatchHeader, bytes: &[u8]) -> Result<(), BatchError> {
        let marker = read_records(bytes, header.attributes.is_control())?;
        let producer_id = header.producer_id;
        if !header.attributes.is_transactional() {
            return Ok(());
        }
        match marker {
            None if header.attributes.is_control() => {}
            None => {
                let open = self.open.entry(producer_id);
                let transaction = open.or_insert(Transaction { first: header.base_offset, records: 0 });
                transaction.records += u64::from(header.record_count.unsigned_abs());
            }
            Some(is_commit) => self.end(producer_id, header.base_offset, is_commit),
        }
        Ok(())
    }

    fn end(&mut self, producer_id: i64, marker: Offset, is_commit: bool) {
        // A marker of a transaction that wrote nothing here, or whose records compaction took.
        let Some(transaction) = self.open.remove(&producer_id) else { return };
        if is_commit {
            self.committed_count += 1;
            return;
        }
        self.aborted_count += 1;
        self.aborted_records += transaction.records;
        self.aborted.entry(producer_id).or_default().push((transaction.first, marker));
    }

    /// The transaction without an end that begins first: its producer and its first offset.
    pub(super) fn open(&self) -> Option<(i64, Offset)> {
        let open = self.open.iter().map(|(&producer_id, transaction)| (producer_id, transaction.first));
        open.min_by_key(|(_, first)| *first)
    }

    /// How many were committed and how many aborted.
    pub(super) const fn ended(&self) -> (u64, u64) {
        (self.committed_count, self.aborted_count)
    }

    pub(super) const fn aborted_records(&self) -> u64 {
        self.aborted_records
    }

    /// What becomes of a batch, once all of them were noted.
    pub(super) fn fate(&self, header: &BatchHeader) -> Fate {
        if header.attributes.is_control() {
            return Fate::Dropped;
        }
        if !header.attributes.is_transactional() {
            return Fate::Kept;
        }
        let aborted = self.aborted.get(&header.producer_id).map_or(&[][..], Vec::as_slice);
        let at = aborted.partition_point(|(_, marker)| *marker < header.base_offset);
        let is_aborted = aborted.get(at).is_some_and(|(first, _)| *first <= header.base_offset);
        if is_aborted { Fate::Dropped } else { Fate::Committed }
    }
}

/// Reads every record. Of a control batch answers whether it is a commit; `None` for one of another kind.
fn read_records(bytes: &[u8], is_control: bool) -> Result<Option<bool>, BatchError> {
    const COMMIT: &[u8] = &[0, 1];
    const ABORT: &[u8] = &[0, 0];
    let limits = BatchLimits { batch_bytes_max: BATCH_BYTES_MAX, ..BatchLimits::default() };
    let (view, _) = BatchView::parse(bytes)?;
    let records = view.records(&limits)?;
    let mut marker = None;
    for record in &records {
        let record = record?;
        // The key of a control record: version i16, type i16.
        let kind = record.key().filter(|_| is_control).and_then(|key| key.get(2..4));
        marker = match kind {
            Some(COMMIT) => Some(true),
            Some(ABORT) => Some(false),
            _ => marker,
        };
    }
    Ok(marker)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, BatchOptions, BatchProducer, NewRecord, TransactionResult};
    use crate::offset::LeaderEpoch;

    /// The batches of a log one by one, each behind the one before.
    #[derive(Default)]
    struct Log {
        next: i64,
        transactions: Transactions,
        headers: Vec<BatchHeader>,
    }

    impl Log {
        fn note(&mut self, bytes: &[u8]) {
            let (view, _) = BatchView::parse(bytes).unwrap();
            self.transactions.note(view.header(), bytes).unwrap();
            self.next = view.header().next_offset().get();
            self.headers.push(*view.header());
        }

        fn data(&mut self, producer_id: i64, transactional: bool) {
            let producer = Some(BatchProducer { id: producer_id, epoch: 0, base_sequence: 0 });
            let mut builder = BatchBuilder::new(BatchOptions { producer, transactional, ..BatchOptions::default() });
            for _ in 0..2 {
                builder.push(&NewRecord { value: Some(b"v"), ..NewRecord::default() }).unwrap();
            }
            let base = Offset::new(self.next).unwrap();
            self.note(&builder.finish().unwrap().appended_bytes(base, LeaderEpoch::NONE));
        }

        fn marker(&mut self, producer_id: i64, result: TransactionResult) {
            let base = Offset::new(self.next).unwrap();
            let marker = BatchBuilder::transaction_end(producer_id, 0, result, 0, 1);
            self.note(&marker.appended_bytes(base, LeaderEpoch::NONE));
        }

        fn fates(&self) -> Vec<Fate> {
            self.headers.iter().map(|header| self.transactions.fate(header)).collect()
        }
    }

    #[test]
    fn transactions_of_several_producers_end_each_by_its_own_marker() {
        let mut log = Log::default();
        log.data(1, true);
        log.data(2, true);
        log.data(3, false);
        log.data(1, true);
        log.marker(2, TransactionResult::Abort);
        log.marker(1, TransactionResult::Commit);
        log.data(2, true);
        log.marker(2, TransactionResult::Commit);
        log.data(1, true);
        log.marker(1, TransactionResult::Abort);
        use Fate::{Committed, Dropped, Kept};
        let expected = [Committed, Dropped, Kept, Committed, Dropped, Dropped, Committed, Dropped, Dropped, Dropped];
        assert_eq!(log.fates(), expected);
        assert_eq!((log.transactions.ended(), log.transactions.aborted_records()), ((2, 2), 4));
        assert_eq!(log.transactions.open(), None);
    }

    #[test]
    fn a_transaction_without_an_end_is_known_and_a_marker_without_one_is_nothing() {
        let mut log = Log::default();
        log.marker(5, TransactionResult::Abort);
        log.data(7, true);
        log.data(6, true);
        assert_eq!(log.transactions.open(), Some((7, Offset::new(1).unwrap())));
        assert_eq!(log.transactions.ended(), (0, 0));
    }
}
