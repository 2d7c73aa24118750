//! `tripline repair`: tells what it would do to a data directory, and does it when told to.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

use serde_json::json;
use tripline_storage::offline::{RepairPlan, RepairStep};
use uuid::Uuid;

use super::failure::Failure;
use super::offline::{Opened, ProgressLine, log_bytes};
use super::output::{Output, print};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Shows each step, then asks; --yes does not ask, --dry-run does nothing. Nothing is destroyed: what is replaced or cut is
copied to quarantine/ in the data directory before. Records that cannot be put right are lost in any case: empty batches
take their place, and consumers go on behind them. Doing it twice changes nothing the second time.
Exit code 0: nothing to do, done, or a dry run. 1: failed, or the directory is in use. 2: wrong use, or nobody to ask.

Examples:
  tripline repair tripline-data --dry-run
  tripline repair tripline-data --yes")]
pub(super) struct RepairArgs {
    /// The data directory.
    directory: PathBuf,
    /// Only show what would be done.
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Do it without asking.
    #[arg(long, short)]
    yes: bool,
}

pub(super) fn run(args: &RepairArgs, output: Output) -> Result<(), Failure> {
    if output.json && !args.yes && !args.dry_run {
        return Err(Failure::wrong_use("--json asks nobody; say --yes to do this, or --dry-run to look only"));
    }
    let opened = if args.dry_run { Opened::look(&args.directory)? } else { Opened::change(&args.directory)? };
    let failed = |error: std::io::Error| Failure::new(format!("{}: {error}", args.directory.display()));
    let plan = {
        let (mut done_bytes, total_bytes) = (0, log_bytes(&opened));
        let mut line = ProgressLine::new("reading", output.json);
        let mut walked = |count| {
            done_bytes += count;
            line.show(done_bytes, total_bytes);
        };
        opened.directory.plan_repair(Uuid::new_v4(), &mut walked).map_err(failed)?
    };
    let goes_on = !args.dry_run && !plan.steps.is_empty();
    if !output.json {
        print(&text_of(&opened, &plan))?;
    }
    if goes_on && !args.yes {
        ask()?;
    }
    if goes_on {
        let mut number = 0;
        let total = plan.steps.len();
        let told = |step: &RepairStep| {
            number += 1;
            if !output.json {
                let _ = print(&format!("step {number} of {total}: {}", line_of(&opened, step)));
            }
        };
        let mut told = told;
        opened.directory.repair(&plan, &mut told).map_err(|error| {
            let directory = args.directory.display();
            Failure::new(format!(
                "{directory}: {error}; what was done stays done, `tripline repair {directory}` does the rest"
            ))
        })?;
    }
    if output.json {
        return output.show(&json_of(&opened, &plan, goes_on), |_| String::new());
    }
    let last = match (goes_on, plan.steps.is_empty()) {
        (true, _) => format!("{} step(s) done\n", plan.steps.len()),
        (false, true) => "nothing to repair\n".to_owned(),
        (false, false) => "nothing was changed (dry run)\n".to_owned(),
    };
    print(&last)
}

fn line_of(opened: &Opened, step: &RepairStep) -> String {
    let place = step.partition.map(|id| format!(" [{}]", opened.journal.name_of(id))).unwrap_or_default();
    format!("{}{place}: {}", step.file.display(), step.what)
}

fn text_of(opened: &Opened, plan: &RepairPlan) -> String {
    let mut text = String::new();
    for (number, step) in (1..).zip(&plan.steps) {
        text.push_str(&format!("{number}. {}\n", line_of(opened, step)));
    }
    for lost in &plan.lost {
        let range = lost.offsets;
        text.push_str(&format!(
            "lost: {}, offsets {}..{}\n",
            opened.journal.name_of(lost.partition),
            range.from,
            range.to
        ));
    }
    let more = plan.lost_unlisted;
    if more.places > 0 {
        text.push_str(&format!(
            "lost: {} more places, of {} offsets, which are not listed\n",
            more.places, more.offsets
        ));
    }
    for refused in &plan.refused {
        text.push_str(&format!("left: {refused}\n"));
    }
    text
}

fn json_of(opened: &Opened, plan: &RepairPlan, done: bool) -> serde_json::Value {
    let name = |id| opened.journal.name_of(id);
    let steps: Vec<_> = plan
        .steps
        .iter()
        .map(|step| json!({ "file": step.file, "partition": step.partition.map(name), "what": step.what }))
        .collect();
    let lost: Vec<_> = plan
        .lost
        .iter()
        .map(|lost| {
            let (from, to) = (lost.offsets.from.get(), lost.offsets.to.get());
            json!({ "partition": name(lost.partition), "offsets": { "from": from, "to": to } })
        })
        .collect();
    let more = json!({ "places": plan.lost_unlisted.places, "offsets": plan.lost_unlisted.offsets });
    json!({ "steps": steps, "lost": lost, "lost_unlisted": more, "left": plan.refused, "done": done })
}

fn ask() -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::wrong_use("nobody is there to be asked; say --yes to do this, or --dry-run to look only"));
    }
    let mut stderr = std::io::stderr();
    write!(stderr, "Do this? [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::new("nothing was changed")),
    }
}
