//! One look into the log for windows that begin together.
//!
//! To read a record means to look up its batch, to ask the kernel whether its pages are in memory, and to unpack the
//! batch: more work than the record itself when windows are small. So small windows that begin in one turn of a poller
//! are read together, by whichever of their attempts runs first; the others find their parcels made.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tripline_storage::Offset;

use super::deliver::{RecordsError, read_offsets};
use super::parcel::{Builder, Parcel, Recipe};
use super::window::Spot;
use crate::function::Payload;
use crate::input::EventInput;

/// Windows are read together up to so many records: more would be built by one thread while others have nothing to do.
pub(super) const RECORDS_MAX: usize = 64;

/// The records of a window, ascending by offset, and where each was found.
pub(super) type Records = Vec<(Offset, Spot)>;

/// Small windows of one lane that begin together.
#[derive(Debug)]
pub(super) struct Group {
    windows: Vec<Records>,
    /// For a function that wants its records so. Empty when the records could not be read, or something of ours broke
    /// down over one of them: then each window is read by itself, and says what is wrong with it.
    parcels: OnceCell<(Payload, Vec<Mutex<Option<Parcel>>>)>,
}

/// A window's place in its group.
#[derive(Clone, Debug)]
pub(super) struct Share {
    group: Arc<Group>,
    place: usize,
}

impl Group {
    /// Windows with these records; none is in two of them. A share for each, in their order.
    pub(super) fn of(windows: Vec<Records>) -> impl Iterator<Item = Share> {
        let places = 0..windows.len();
        let group = Arc::new(Self { windows, parcels: OnceCell::new() });
        places.map(move |place| Share { group: Arc::clone(&group), place })
    }

    async fn read(&self, input: &EventInput, recipe: Recipe<'_>) -> Result<Vec<Mutex<Option<Parcel>>>, RecordsError> {
        let mut wanted: Vec<(Offset, Spot, usize)> = Vec::new();
        for (place, records) in self.windows.iter().enumerate() {
            wanted.extend(records.iter().map(|&(offset, spot)| (offset, spot, place)));
        }
        wanted.sort_unstable_by_key(|(offset, ..)| *offset);
        let (offsets, spots): (Vec<Offset>, Vec<Spot>) =
            wanted.iter().map(|(offset, spot, _)| (*offset, *spot)).unzip();
        let mut builders: Vec<Builder<'_>> = self.windows.iter().map(|_| Builder::new(recipe)).collect();
        let mut wanted = wanted.into_iter();
        read_offsets(input, &offsets, &spots, |record, epoch| {
            // Records that are gone are passed over.
            if let Some((.., place)) = wanted.find(|(offset, ..)| *offset == record.offset()) {
                builders[place].take(record, epoch, input.origin());
            }
        })
        .await?;
        Ok(builders.into_iter().map(|builder| Mutex::new(Some(builder.finish()))).collect())
    }
}

impl Share {
    /// The window's parcel; `None` when it must be built by itself, as when the function wants its records in another
    /// way since. The recipe has no steps that are functions.
    pub(super) async fn take(&self, input: &EventInput, recipe: Recipe<'_>) -> Option<Parcel> {
        let Self { group, place } = self;
        // Boxed: one of the group reads, and the tasks of the others have no room for it.
        let read = || {
            Box::pin(async {
                let read = AssertUnwindSafe(group.read(input, recipe)).catch_unwind().await;
                (recipe.shape, read.ok().and_then(Result::ok).unwrap_or_default())
            })
        };
        let (shape, parcels) = group.parcels.get_or_init(read).await;
        if *shape != recipe.shape {
            return None;
        }
        parcels.get(*place)?.lock().take()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tripline_storage::batch::{BatchBuilder, BatchOptions, NewRecord};

    use super::*;
    use crate::broker::{Broker, BrokerConfig, Topic};
    use crate::function::{FunctionOptions, FunctionService};
    use crate::input::LogInput;
    use crate::topic::name::TopicName;
    use crate::topic::spec::{TopicConfig, TopicSpec};
    use crate::trigger::spec::TriggerSpec;

    struct Stage {
        _directory: tempfile::TempDir,
        broker: Broker,
        topic: Arc<Topic>,
        input: EventInput,
        functions: FunctionService,
        spec: TriggerSpec,
    }

    impl Stage {
        /// Records 0 to 9 in two batches.
        async fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (broker, _) = Broker::start(BrokerConfig::new(directory.path().join("data"))).unwrap();
            let functions = FunctionOptions::new(directory.path().join("functions")).unwrap();
            let functions = FunctionService::new(functions).unwrap();
            let name = TopicName::new("in").unwrap();
            let spec = TopicSpec { name, partitions: 1, config: TopicConfig::default() };
            let topic = broker.create_topic(spec).await.unwrap();
            for batch in [0..6, 6..10] {
                let mut builder = BatchBuilder::new(BatchOptions::default());
                for number in batch {
                    let value = format!(r#"{{"n":{number}}}"#);
                    let value = Some(value.as_bytes());
                    builder.push(&NewRecord { timestamp_ms: 7, key: None, value, headers: &[] }).unwrap();
                }
                broker.append(&topic, 0, builder.finish().unwrap()).unwrap();
            }
            let input = EventInput::Log(LogInput::new(&broker, &topic, 0).unwrap());
            let definition = json!({"trigger": "t", "input": {"topic": "in"}, "function": "f"});
            let spec = TriggerSpec::from_json(&definition).unwrap();
            Self { _directory: directory, broker, topic, input, functions, spec }
        }

        fn recipe(&self) -> Recipe<'_> {
            let transform = &self.spec.transform;
            Recipe { transform, shape: Payload::Events, functions: &self.functions, id: "t/in/0/0", attempt: 1 }
        }

        async fn alone(&self, offsets: &[Offset]) -> Parcel {
            Parcel::build(&self.input, offsets, &[], self.recipe()).await.unwrap()
        }
    }

    fn group(windows: &[Vec<Offset>]) -> impl Iterator<Item = Share> {
        let records = |window: &Vec<Offset>| window.iter().map(|&offset| (offset, Spot::UNKNOWN)).collect();
        Group::of(windows.iter().map(records).collect())
    }

    fn offsets(numbers: &[i64]) -> Vec<Offset> {
        numbers.iter().map(|&number| Offset::new(number).unwrap()).collect()
    }

    #[tokio::test]
    async fn windows_read_together_get_what_each_would_read_by_itself() {
        let stage = Stage::new().await;
        // As in order key: neither ascending nor apart.
        let windows = [offsets(&[3, 7]), offsets(&[1]), offsets(&[4, 5, 9]), offsets(&[8])];
        for (share, window) in group(&windows).zip(&windows) {
            let (shared, alone) = (share.take(&stage.input, stage.recipe()).await.unwrap(), stage.alone(window).await);
            assert_eq!(shared.payloads, alone.payloads);
            assert_eq!(shared.content_type, alone.content_type);
            assert_eq!(shared.offsets().collect::<Vec<_>>(), *window);
            assert!(share.take(&stage.input, stage.recipe()).await.is_none(), "an attempt takes it once");
        }
    }

    #[tokio::test]
    async fn a_window_whose_function_wants_its_records_in_another_way_by_now_is_read_by_itself() {
        let stage = Stage::new().await;
        let windows = [offsets(&[1]), offsets(&[2])];
        let mut shares = group(&windows);
        assert!(shares.next().unwrap().take(&stage.input, stage.recipe()).await.is_some());
        let raw = Recipe { shape: Payload::Raw, ..stage.recipe() };
        assert!(shares.next().unwrap().take(&stage.input, raw).await.is_none());
    }

    #[tokio::test]
    async fn records_that_retention_has_removed_are_missing_from_their_window_alone() {
        let stage = Stage::new().await;
        stage.broker.delete_records(&stage.topic, 0, Some(Offset::new(6).unwrap())).await.unwrap();
        let windows = [offsets(&[0]), offsets(&[5, 6]), offsets(&[7])];
        let mut seen = Vec::new();
        for share in group(&windows) {
            let parcel = share.take(&stage.input, stage.recipe()).await.unwrap();
            seen.push(parcel.offsets().collect::<Vec<_>>());
        }
        assert_eq!(seen, [offsets(&[]), offsets(&[6]), offsets(&[7])]);
    }
}
