//! A runner in a test's hands.

use std::sync::Arc;

use tripline_storage::fs::SimFs;
use uuid::Uuid;

use super::{Clock, Runner};
use crate::broker::{Broker, BrokerConfig};
use crate::function::{FunctionOptions, FunctionService};
use crate::trigger::spec::TriggerSpec;
use crate::trigger::trace::TraceLog;

impl Runner {
    /// One on a disk in memory. Needs a runtime.
    pub(in crate::trigger) fn for_test(definition: &serde_json::Value) -> Arc<Self> {
        Self::for_test_on(Arc::default(), definition)
    }

    /// One on this disk. Needs a runtime.
    pub(in crate::trigger) fn for_test_on(disk: Arc<SimFs>, definition: &serde_json::Value) -> Arc<Self> {
        let (broker, _) = Broker::start_on(disk, BrokerConfig::new("/data")).unwrap();
        let options = FunctionOptions::new(std::env::temp_dir()).unwrap();
        let functions = FunctionService::new(options).unwrap();
        let (traces, _) = TraceLog::start(broker.clone());
        let spec = TriggerSpec::from_json(definition).unwrap();
        let runner = Self::new(Uuid::from_u128(1), spec, broker, functions, Clock::start(), traces, None);
        Arc::new(runner)
    }
}
