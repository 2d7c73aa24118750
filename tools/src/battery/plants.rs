//! Whether the battery bites: faults are planted in a copy of the source, and each must be noticed.
//!
//! All of them are patched into one copy, each behind its name in the environment variable `TRIPLINE_PLANT`, so that
//! one build serves all. A patch whose place is not found in the source, once, is an error: it would plant nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::{Failure, Verdict};

/// Seeds that are enough to notice.
const SEEDS: &str = "3000";
/// The name of the patched program: it must never stand in for the real one.
const PLANTED: &str = "tripline-battery-planted";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The sources to plant in
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/.."))]
    source: PathBuf,
    /// This one alone
    #[arg(long)]
    only: Option<String>,
    /// Let those that mount disks look, too
    #[arg(long)]
    disks: bool,
    /// Let all look, also when one has noticed
    #[arg(long)]
    all: bool,
}

/// A mistake that somebody could make.
struct Plant {
    name: &'static str,
    what: &'static str,
    file: &'static str,
    /// Stands once in the file.
    find: &'static str,
    replace: &'static str,
    /// Who looks for it.
    looked_for: &'static [Look],
}

/// A battery that looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Simulate,
    Exhaustive,
    Compaction,
    Loom,
    Powercut,
    Blockreplay,
    Lanes,
}

impl Look {
    const fn name(self) -> &'static str {
        match self {
            Self::Simulate => "simulate",
            Self::Exhaustive => "tests/exhaustive.rs",
            Self::Compaction => "tests/compaction.rs",
            Self::Loom => "tests/loom",
            Self::Powercut => "powercut",
            Self::Blockreplay => "blockreplay",
            Self::Lanes => "lanes",
        }
    }

    const fn takes_disks(self) -> bool {
        matches!(self, Self::Powercut | Self::Blockreplay)
    }
}

const ALL_DISKS: &[Look] = &[Look::Simulate, Look::Exhaustive, Look::Powercut, Look::Blockreplay];
const LANES: &[Look] = &[Look::Lanes];
const IN_MEMORY: &[Look] = &[Look::Simulate, Look::Exhaustive];

const COMPACTING: &[Look] = &[Look::Compaction];

const PLANTS: [Plant; 37] = [
    Plant {
        name: "append-sync",
        what: "the sync of appended records",
        file: "storage/src/partition/durable.rs",
        find: "        sync_data(&pending.active)\n",
        replace: "        if crate::planted(\"append-sync\") { Ok(()) } else { sync_data(&pending.active) }\n",
        looked_for: ALL_DISKS,
    },
    Plant {
        name: "sealed-sync",
        what: "the sync of a segment that was rolled",
        file: "storage/src/partition/durable.rs",
        find: "            sync_data(&sealed.active)?;\n",
        replace: "            if !crate::planted(\"sealed-sync\") { sync_data(&sealed.active)?; }\n",
        looked_for: ALL_DISKS,
    },
    Plant {
        name: "name-sync",
        what: "the sync of the directory of a new segment",
        file: "storage/src/partition/durable.rs",
        find: "        if pending.names_dirty {\n",
        replace: "        if pending.names_dirty && !crate::planted(\"name-sync\") {\n",
        looked_for: IN_MEMORY,
    },
    Plant {
        name: "partition-name-sync",
        what: "the syncs of the directories above a new partition",
        file: "storage/src/store.rs",
        find: "        fs.sync_dir(parent)?;\n",
        replace: "        if !crate::planted(\"partition-name-sync\") { fs.sync_dir(parent)?; }\n",
        looked_for: IN_MEMORY,
    },
    Plant {
        name: "rewrite-sync",
        what: "the sync of what recovery writes again",
        file: "storage/src/partition/recover.rs",
        find: "        at = end;\n    }\n    file.sync_data()\n",
        replace: "        at = end;\n    }\n    if crate::planted(\"rewrite-sync\") { return Ok(()); }\n    file.sync_data()\n",
        looked_for: IN_MEMORY,
    },
    Plant {
        name: "rewrite",
        what: "the rewrite of what recovery accepts: a second sync over clean pages",
        file: "storage/src/partition/recover.rs",
        find: "        file.write_at(&[IoSlice::new(&chunk)], at)?;\n",
        replace: "        if !crate::planted(\"rewrite\") { file.write_at(&[IoSlice::new(&chunk)], at)?; }\n",
        looked_for: IN_MEMORY,
    },
    Plant {
        name: "log-start-sync",
        what: "the sync of a log start before segments are removed",
        file: "storage/src/checkpoint.rs",
        find: "not twice\");\n        }\n        self.file.sync_data()\n",
        replace: "not twice\");\n        }\n        if crate::planted(\"log-start-sync\") { return Ok(()); }\n        self.file.sync_data()\n",
        looked_for: IN_MEMORY,
    },
    Plant {
        name: "noted-early",
        what: "the flushed offset noted before the sync",
        file: "storage/src/partition/durable.rs",
        find: "        self.sync(&pending)?;\n",
        replace: "        if crate::planted(\"noted-early\") {\n            let slot = self.checkpoint_at(pending.tail, &pending.active, pending.position);\n            let _ = checkpoint.write(slot);\n        }\n        if crate::planted(\"answered-early\") {\n            self.flushing.reach(pending.tail.get().cast_unsigned());\n        }\n        self.sync(&pending)?;\n",
        looked_for: IN_MEMORY,
    },
    Plant {
        name: "answered-early",
        what: "the flushed offset answered before the sync",
        // Patched with the one before.
        file: "",
        find: "",
        replace: "",
        looked_for: IN_MEMORY,
    },
    Plant {
        name: "recovery-crc",
        what: "the checksum of batches that recovery accepts",
        file: "storage/src/partition/recover.rs",
        find: "        let step = match walk.next_verified() {\n",
        replace: "        let step = match if crate::planted(\"recovery-crc\") { walk.next() } else { walk.next_verified() } {\n",
        looked_for: IN_MEMORY,
    },
    Plant {
        name: "read-crc",
        what: "the checksum of batches that are served for the first time",
        file: "storage/src/partition/read.rs",
        find: "            let reason = match walk.next_verified() {\n",
        replace: "            let reason = match if crate::planted(\"read-crc\") { walk.next() } else { walk.next_verified() } {\n",
        looked_for: IN_MEMORY,
    },
    Plant {
        name: "time-crc",
        what: "the checksum of batches that are searched by time",
        file: "storage/src/partition/read.rs",
        find: "        if self.trusts(&(step.position..step.end())) {\n",
        replace: "        if crate::planted(\"time-crc\") || self.trusts(&(step.position..step.end())) {\n",
        looked_for: IN_MEMORY,
    },
    Plant {
        name: "side-file-crc",
        what: "the checksum of slots, seals, indexes and snapshots",
        file: "storage/src/format.rs",
        find: "        if crc32fast::hash(body).to_le_bytes() != crc {\n",
        replace: "        if crc32fast::hash(body).to_le_bytes() != crc && !crate::planted(\"side-file-crc\") {\n",
        looked_for: IN_MEMORY,
    },
    Plant {
        name: "clean-sync",
        what: "the sync of a compacted log before it takes the place of the old ones",
        file: "storage/src/partition/compact.rs",
        find: "        output.sync_data().map_err(CompactError::from)?;\n",
        replace: "        if !crate::planted(\"clean-sync\") { output.sync_data().map_err(CompactError::from)?; }\n",
        looked_for: COMPACTING,
    },
    Plant {
        name: "remembered-sync",
        what: "the flush of what decides which batches of producers a compaction leaves",
        file: "storage/src/partition/compact.rs",
        find: "        self.flush()?;\n        Ok(remembered)\n",
        replace: "        if !crate::planted(\"remembered-sync\") { self.flush()?; }\n        Ok(remembered)\n",
        looked_for: COMPACTING,
    },
    Plant {
        name: "producer-holes",
        what: "that producers which a compaction has forgotten go on behind what it left of them",
        file: "storage/src/producer.rs",
        find: "            if header.record_count == 0 {\n",
        replace: "            if header.record_count == 0 && !crate::planted(\"producer-holes\") {\n",
        looked_for: COMPACTING,
    },
    Plant {
        name: "swap-sync",
        what: "the sync of the seal that decides a compaction",
        file: "storage/src/partition/compact.rs",
        find: "        file.sync_data()?;\n        self.sync_own_names()\n",
        replace: "        if !crate::planted(\"swap-sync\") { file.sync_data()?; }\n        if crate::planted(\"swap-name-sync\") { return Ok(()); }\n        self.sync_own_names()\n",
        looked_for: COMPACTING,
    },
    Plant {
        name: "swap-name-sync",
        what: "the sync of its name before old segments go",
        // Patched with the one before.
        file: "",
        find: "",
        replace: "",
        looked_for: COMPACTING,
    },
    Plant {
        name: "tombstone-early",
        what: "the wait before a tombstone goes",
        file: "storage/src/partition/compact/rewrite.rs",
        find: "        let passed = horizon_ms.zip(self.now_ms).is_some_and(|(horizon_ms, now_ms)| horizon_ms <= now_ms);\n",
        replace: "        let early_ms = if crate::planted(\"tombstone-early\") { 5_000 } else { 0 };\n        let passed = horizon_ms.zip(self.now_ms).is_some_and(|(horizon_ms, now_ms)| horizon_ms <= now_ms + early_ms);\n",
        looked_for: COMPACTING,
    },
    Plant {
        name: "tombstone-before",
        what: "the wait of tombstones for a damaged segment, which may hold what they delete",
        file: "storage/src/partition/compact/rewrite.rs",
        find: "horizon_ms.is_none() && self.is_whole && header.next_offset() <= self.to;\n",
        replace: "horizon_ms.is_none() && (self.is_whole || crate::planted(\"tombstone-before\")) && header.next_offset() <= self.to;\n",
        looked_for: COMPACTING,
    },
    Plant {
        name: "newest-dropped",
        what: "the newest record of a key, at some offsets",
        file: "storage/src/compaction.rs",
        find: "        record.offset >= self.log_start && !expired && !self.keys.has_newer(key, record.offset)\n",
        replace: "        let at = if crate::planted(\"newest-dropped\") && record.offset.get() % 16 == 15 { Offset::new(record.offset.get() - 1).unwrap_or(record.offset) } else { record.offset };\n        record.offset >= self.log_start && !expired && !self.keys.has_newer(key, at)\n",
        looked_for: COMPACTING,
    },
    Plant {
        name: "turn-store",
        what: "a flag cleared by a store that orders nothing",
        file: "storage/src/progress.rs",
        find: "        self.0.swap(false, Ordering::AcqRel);\n",
        replace: "        if std::env::var(\"TRIPLINE_PLANT\").is_ok_and(|plant| plant == \"turn-store\") { self.0.store(false, Ordering::Release); return; }\n        self.0.swap(false, Ordering::AcqRel);\n",
        looked_for: &[Look::Loom],
    },
    Plant {
        name: "publish-relaxed",
        what: "a published length that does not carry the bytes below it",
        file: "storage/src/progress.rs",
        find: "        self.0.store(at, Ordering::Release);\n",
        replace: "        if std::env::var(\"TRIPLINE_PLANT\").is_ok_and(|plant| plant == \"publish-relaxed\") { self.0.store(at, Ordering::Relaxed); return; }\n        self.0.store(at, Ordering::Release);\n",
        looked_for: &[Look::Loom],
    },
    Plant {
        name: "lane-cut",
        what: "records that are passed over among unfinished ones, left in their range",
        file: "src/trigger/unfinished.rs",
        find: "    pub(super) const fn cut(&mut self) {\n",
        replace: "    pub(super) fn cut(&mut self) {\n        if crate::planted(\"lane-cut\") { return; }\n",
        looked_for: LANES,
    },
    Plant {
        name: "lane-carried",
        what: "a record that a new definition takes over, not counted when reading comes by",
        file: "src/trigger/lane/restore.rs",
        find: "            let number = self.unfinished.push(offset);\n            let held",
        replace: "            if crate::planted(\"lane-carried\") { continue; }\n            let number = self.unfinished.push(offset);\n            let held",
        looked_for: LANES,
    },
    Plant {
        name: "lane-marker",
        what: "the marker of a key lifted while reading for it is not done",
        file: "src/trigger/lane/fill.rs",
        find: "        if marker.at >= self.at && !holds",
        replace: "        if (marker.at >= self.at || crate::planted(\"lane-marker\")) && !holds",
        looked_for: LANES,
    },
    Plant {
        name: "lane-skipped-marker",
        what: "the marker of a key moved beyond a record that is not kept",
        file: "src/trigger/lane/fill.rs",
        find: "                stopped.insert(record.key);\n",
        replace: "                if !crate::planted(\"lane-skipped-marker\") { stopped.insert(record.key); }\n",
        looked_for: LANES,
    },
    Plant {
        name: "lane-let-in",
        what: "records that a filter lets in, taken for those of the window around them",
        file: "src/trigger/lane/restore.rs",
        find: "        is_less || self.is_whole() || self.is_whole_with(&self.decided)\n",
        replace: "        crate::planted(\"lane-let-in\") || is_less || self.is_whole() || self.is_whole_with(&self.decided)\n",
        looked_for: LANES,
    },
    Plant {
        name: "lane-between",
        what: "what is finished between records that are read again, left in their range",
        file: "src/trigger/lane/restore.rs",
        find: "        if self.restoring.as_mut().is_some_and(|restoring| restoring.leave_holes(upto)) {\n",
        replace: "        if self.restoring.as_mut().is_some_and(|restoring| restoring.leave_holes(upto)) && !crate::planted(\"lane-between\") {\n",
        looked_for: LANES,
    },
    Plant {
        name: "lane-interrupted",
        what: "an attempt that the broker did not survive, not counted",
        file: "src/trigger/lane/restore.rs",
        find: "        if state.running {\n",
        replace: "        if crate::planted(\"lane-interrupted\") { state.running = false; }\n        if state.running {\n",
        looked_for: LANES,
    },
    Plant {
        name: "lane-overtake",
        what: "a part of a window that starts before the part in front of it has ended",
        file: "src/trigger/lane/outcome.rs",
        find: "        // Its turn comes when it is the first of its queue, or now, in order `none`.\n        if matches!(",
        replace: "        // Its turn comes when it is the first of its queue, or now, in order `none`.\n        if crate::planted(\"lane-overtake\") || matches!(",
        looked_for: LANES,
    },
    Plant {
        name: "lane-unread",
        what: "a record that ends before it is read again, left in what is to be read",
        file: "src/trigger/lane/restore.rs",
        find: "        places.iter().for_each(|place| restoring.finish_offset(place.offset));\n",
        replace: "        if crate::planted(\"lane-unread\") { places.iter().for_each(|place| { restoring.carried.remove(&place.offset); }); return; }\n        places.iter().for_each(|place| restoring.finish_offset(place.offset));\n",
        looked_for: LANES,
    },
    Plant {
        name: "lane-bytes",
        what: "attempts that begin although what may come of them cannot be written down",
        file: "src/trigger/lane/fit.rs",
        find: "        self.bytes_with(more) + self.reserve_bytes() <= self.spec.limits.progress_bytes\n",
        replace: "        crate::planted(\"lane-bytes\") || self.bytes_with(more) + self.reserve_bytes() <= self.spec.limits.progress_bytes\n",
        looked_for: LANES,
    },
    Plant {
        name: "lane-wake",
        what: "a throttled key that nobody looks at again",
        file: "src/trigger/lane/turn.rs",
        find: "                    self.advance(key, now_ms);\n                }\n            }\n",
        replace: "                    if !crate::planted(\"lane-wake\") { self.advance(key, now_ms); }\n                }\n            }\n",
        looked_for: LANES,
    },
    Plant {
        name: "lane-rest",
        what: "a throttled key that gave back what it held, not read again when its turn has come",
        file: "src/trigger/lane/turn.rs",
        find: "                        self.resting.remove(&hash);\n",
        replace: "                        if !crate::planted(\"lane-rest\") { self.resting.remove(&hash); }\n",
        looked_for: LANES,
    },
    Plant {
        name: "lane-given-up",
        what: "a window whose attempts are spent, tried again after a restart",
        file: "src/trigger/lane/restore.rs",
        find: "        let mut given_up = tried.given_up.map(|given_up| given_up.reason);\n",
        replace: "        let mut given_up = tried.given_up.map(|given_up| given_up.reason).filter(|_| !crate::planted(\"lane-given-up\"));\n",
        looked_for: LANES,
    },
    Plant {
        name: "lane-letters",
        what: "dead letters of a window of which records are gone, numbered as if all were there",
        file: "src/trigger/lane/restore.rs",
        find: "Letters { is_whole: letters.is_whole && is_whole, ..letters });\n",
        replace: "Letters { is_whole: crate::planted(\"lane-letters\") || letters.is_whole && is_whole, ..letters });\n",
        looked_for: LANES,
    },
];

/// Behind the last lines of `storage/src/lib.rs` and `src/lib.rs`.
const SWITCH: &str = "
pub(crate) fn planted(name: &str) -> bool {
    static PLANTED: std::sync::LazyLock<Option<String>> = std::sync::LazyLock::new(|| std::env::var(\"TRIPLINE_PLANT\").ok());
    PLANTED.as_deref() == Some(name)
}
";

pub(crate) fn run(args: &Args) -> Result<Verdict, Failure> {
    let begun = Instant::now();
    let source = args.source.canonicalize().map_err(|cause| format!("--source {}: {cause}", args.source.display()))?;
    let scratch = tempfile::tempdir()?;
    let planted = Planted::build(&source, scratch.path())?;
    println!("planted in a copy of {} after {:.0} s", source.display(), begun.elapsed().as_secs_f64());
    planted.without_a_plant()?;
    let plants = PLANTS.iter().filter(|plant| args.only.as_deref().is_none_or(|only| only == plant.name));
    let (mut noticed, mut unnoticed) = (0, Vec::new());
    for plant in plants {
        let looks = plant.looked_for.iter().filter(|look| args.disks || !look.takes_disks());
        let mut by = Vec::new();
        for &look in looks {
            if (args.all || by.is_empty()) && !planted.holds(look, plant.name)? {
                by.push(look.name());
            }
        }
        if by.is_empty() {
            unnoticed.push(plant.name);
            println!("  {}: {}: NOT NOTICED", plant.name, plant.what);
        } else {
            noticed += 1;
            println!("  {}: {}: noticed by {}", plant.name, plant.what, by.join(", "));
        }
    }
    if unnoticed.is_empty() {
        return Ok(Verdict::Held(format!(
            "{noticed} planted faults, each noticed, in {:.0} s",
            begun.elapsed().as_secs_f64()
        )));
    }
    Ok(Verdict::Broken(format!("planted and not noticed: {}", unnoticed.join(", "))))
}

/// The programs of the patched copy.
struct Planted {
    battery: PathBuf,
    exhaustive: PathBuf,
    compaction: PathBuf,
    loom: PathBuf,
}

impl Planted {
    fn build(source: &Path, copy: &Path) -> Result<Self, Failure> {
        for name in [
            "Cargo.toml",
            "Cargo.lock",
            "build.rs",
            "README.md",
            "examples",
            "src",
            "storage",
            "tests",
            "benches",
            "tools",
        ] {
            copy_all(&source.join(name), &copy.join(name))?;
        }
        for plant in PLANTS.iter().filter(|plant| !plant.file.is_empty()) {
            patch(&copy.join(plant.file), plant.find, plant.replace)?;
        }
        for head in ["storage/src/lib.rs", "src/lib.rs"] {
            let head = copy.join(head);
            fs::write(&head, fs::read_to_string(&head)? + SWITCH)?;
        }
        // Patches are not written for lints, and a program of another name never takes the place of the real one.
        patch(&copy.join("Cargo.toml"), "\nwarnings = \"deny\"\n", "\n")?;
        patch(&copy.join("Cargo.toml"), "\nmissing_docs = \"deny\"\n", "\n")?;
        patch(&copy.join("tools/Cargo.toml"), "name = \"tripline-battery\"", &format!("name = \"{PLANTED}\""))?;
        let target = target_dir(source);
        let build = ["build", "--profile", "battery", "-p", "tripline-tools", "--bin", PLANTED];
        cargo(copy, &target, &build)?;
        let mut tests = vec!["test", "--no-run", "-p", "tripline-storage"];
        tests.extend(["--test", "exhaustive", "--test", "compaction", "--test", "loom"]);
        let told = cargo(copy, &target, &tests)?;
        let battery = copy.join(PLANTED);
        // Out of the target directory, where the next build may put another one.
        fs::rename(target.join("battery").join(PLANTED), &battery)
            .or_else(|_| fs::copy(target.join("battery").join(PLANTED), &battery).map(drop))?;
        let test = |name| program(&told, name);
        Ok(Self { battery, exhaustive: test("exhaustive")?, compaction: test("compaction")?, loom: test("loom")? })
    }

    /// The copy is as good as the original: otherwise everything would be noticed.
    fn without_a_plant(&self) -> Result<(), Failure> {
        for look in [Look::Simulate, Look::Exhaustive, Look::Compaction, Look::Loom, Look::Lanes] {
            if !self.holds(look, "none")? {
                return Err(format!("{} fails without a plant", look.name()).into());
            }
        }
        Ok(())
    }

    fn holds(&self, look: Look, plant: &str) -> Result<bool, Failure> {
        let (program, arguments): (_, &[&str]) = match look {
            Look::Simulate if plant == "none" => (&self.battery, &["simulate", "--from", "1", "--seeds", "500"]),
            Look::Simulate => (&self.battery, &["simulate", "--from", "1", "--seeds", SEEDS]),
            Look::Exhaustive => (&self.exhaustive, &["--quiet"]),
            Look::Compaction => (&self.compaction, &["--quiet"]),
            Look::Loom => (&self.loom, &["--quiet"]),
            Look::Lanes => (&self.battery, &["lanes", "--from", "1", "--seeds", SEEDS]),
            Look::Powercut => (&self.battery, &["powercut", "--seed", "1", "--cycles", "20"]),
            Look::Blockreplay => (&self.battery, &["blockreplay", "--seed", "1", "--states", "100"]),
        };
        let mut command = Command::new(program);
        command.args(arguments).env("TRIPLINE_PLANT", plant).stdin(Stdio::null());
        let output = command.stdout(Stdio::piped()).stderr(Stdio::null()).output()?;
        if String::from_utf8_lossy(&output.stdout).contains("SKIP") {
            return Ok(true);
        }
        Ok(output.status.success())
    }
}

fn copy_all(from: &Path, to: &Path) -> Result<(), Failure> {
    if !from.is_dir() {
        fs::copy(from, to).map_err(|cause| format!("{}: {cause}", from.display()))?;
        return Ok(());
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        copy_all(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

fn patch(file: &Path, find: &str, replace: &str) -> Result<(), Failure> {
    let text = fs::read_to_string(file)?;
    match text.matches(find).count() {
        1 => Ok(fs::write(file, text.replacen(find, replace, 1))?),
        count => Err(format!("{}: {find:?} stands there {count} times, must be once", file.display()).into()),
    }
}

/// Where the project builds: dependencies are built once for both.
fn target_dir(source: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| source.join("target"), |dir| source.join(dir))
}

/// What cargo told.
fn cargo(dir: &Path, target: &Path, arguments: &[&str]) -> Result<String, Failure> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(dir).args(arguments).arg("--locked").env("CARGO_TARGET_DIR", target).stdin(Stdio::null());
    let output = command.output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(told) } else { Err(format!("cargo {}: {told}", arguments.join(" ")).into()) }
}

/// From a line such as `  Executable tests/loom/main.rs (/…/target/debug/deps/loom-0123456789abcdef)`.
fn program(told: &str, test: &str) -> Result<PathBuf, Failure> {
    let found = told.lines().filter(|line| line.trim_start().starts_with("Executable")).find_map(|line| {
        let path = Path::new(line.split_once('(')?.1.strip_suffix(')')?);
        path.file_name()?.to_str()?.starts_with(&format!("{test}-")).then(|| path.to_owned())
    });
    found.ok_or_else(|| format!("cargo does not tell where {test} is: {told}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_has_a_place_in_the_source_and_a_name_of_its_own() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for plant in PLANTS.iter().filter(|plant| !plant.file.is_empty()) {
            let text = fs::read_to_string(root.join(plant.file)).unwrap();
            assert_eq!(text.matches(plant.find).count(), 1, "{}: {:?} in {}", plant.name, plant.find, plant.file);
        }
        for plant in &PLANTS {
            let quoted = format!("\"{}\"", plant.name);
            assert!(PLANTS.iter().any(|other| other.replace.contains(&quoted)), "{} is planted nowhere", plant.name);
            assert_eq!(PLANTS.iter().filter(|other| other.name == plant.name).count(), 1);
            assert!(!plant.looked_for.is_empty());
        }
    }

    #[test]
    fn a_patch_without_a_place_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "one two two").unwrap();
        assert!(patch(&file, "three", "").is_err() && patch(&file, "two", "").is_err());
        patch(&file, "one", "1").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "1 two two");
    }

    #[test]
    fn programs_are_found_in_what_cargo_tells() {
        let told = "   Compiling x\n  Executable tests/loom/main.rs (/t/debug/deps/loom-01)\n";
        assert_eq!(program(told, "loom").unwrap(), Path::new("/t/debug/deps/loom-01"));
        assert!(program(told, "exhaustive").is_err());
    }
}
