//! A random run that its seed names, and what is told when it fails.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tripline_storage::fs::SimFs;

/// Files with their bytes.
pub(crate) type Image = Vec<(std::path::PathBuf, Vec<u8>)>;

/// One run, which notes what it does; the image that it leaves, or what went wrong and how to repeat it.
pub(crate) fn run<O: Debug>(
    seed: u64,
    operate: impl FnOnce(&mut fastrand::Rng, &mut Vec<O>) -> Result<Image, String>,
) -> Result<Image, String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut done = Vec::new();
    let result = catch_unwind(AssertUnwindSafe(|| operate(&mut random, &mut done)));
    let failure = match result {
        Ok(Ok(image)) => return Ok(image),
        Ok(Err(facts)) => facts,
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked".to_owned())
        }
    };
    let operations: Vec<_> = done.iter().map(|operation| format!("  {operation:?}")).collect();
    Err(format!("seed {seed}: {failure}\nafter {} operations:\n{}", done.len(), operations.join("\n")))
}

/// What is on the disk.
pub(crate) fn image(disk: &SimFs) -> Image {
    let read = |path: &std::path::PathBuf| disk.read_image(path).expect("it was listed");
    disk.paths().into_iter().map(|path| (path.clone(), read(&path))).collect()
}
