//! What is to go wrong with a simulated disk, and whether that excuses an error.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::io;
use std::path::Path;

use tripline_storage::fs::sim::Fault;
use tripline_storage::fs::{Fs as _, SimFs};

/// More than any run takes.
const DISK_BYTES: u64 = 1 << 40;

#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Number of the disk operation that fails.
    planned: Option<u64>,
    disk_full: bool,
}

impl Faults {
    /// Lets the disk operation `number` fail.
    pub(crate) fn plan(&mut self, disk: &SimFs, number: u64, fault: Fault) {
        self.planned = Some(number);
        disk.fail_nth(number, fault);
    }

    /// Leaves so much room and no more, unless the disk is full already.
    pub(crate) fn fill(&mut self, disk: &SimFs, root: &Path, room_bytes: u64) -> io::Result<()> {
        let free_bytes = disk.free_bytes(root)?;
        if !self.disk_full {
            disk.set_capacity(DISK_BYTES - free_bytes + room_bytes);
            self.disk_full = true;
        }
        Ok(())
    }

    /// There is room again, and no fault is planned.
    pub(crate) fn heal(&mut self, disk: &SimFs) {
        disk.heal();
        disk.set_capacity(DISK_BYTES);
        *self = Self::default();
    }

    /// Whether the disk is full, or a fault was planned, met or not.
    pub(crate) const fn are_any(&self) -> bool {
        self.planned.is_some() || self.disk_full
    }

    /// Whether one is still to come.
    pub(crate) fn lie_ahead(&self, disk: &SimFs) -> bool {
        self.planned.is_some_and(|number| number > disk.operations())
    }

    /// Whether the disk has an excuse for an error that came since `before`.
    pub(crate) fn excuse(&self, disk: &SimFs, before: u64) -> bool {
        self.disk_full || self.planned.is_some_and(|number| before < number && number <= disk.operations())
    }
}
