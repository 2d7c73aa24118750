//! The command line: `tripline` and its commands.
//!
//! All commands but `serve`, `demo`, `inspect`, `verify`, `repair`, `import` and `completions` are clients of the HTTP
//! API. Exit codes: 0 done, 1 failed, 2 wrong use.

mod apply;
mod client;
mod consume;
mod dead_letter;
mod demo;
mod dry_run;
mod failure;
mod function;
mod group;
mod import;
mod inspect;
mod offline;
mod output;
mod produce;
mod repair;
mod resource;
mod runs;
mod schedule;
mod serve;
mod settings;
mod topic;
mod trace;
mod trigger;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use client::Client;
use failure::Failure;
use output::Output;

use crate::config::fields::nearest;

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("TRIPLINE_COMMIT"), ")");

/// What the environment may set, behind `TRIPLINE_`.
const VARIABLES: [&str; 15] = [
    "ALLOW_HOST",
    "COMPACTION_INTERVAL",
    "CONFIG",
    "DATA",
    "EGRESS_ALLOW",
    "HTTP",
    "INSECURE",
    "INSTANCE",
    "KAFKA",
    "KAFKA_ADVERTISED",
    "LOG",
    "PYTHON3",
    "RETENTION_INTERVAL",
    "SCRUB",
    "SERVER",
];

/// An event broker with built-in function triggers: Kafka and HTTP in, functions out.
#[derive(Debug, Parser)]
#[command(name = "tripline", version = VERSION, propagate_version = true, max_term_width = 100, after_help = "\
Examples:
  tripline demo                                see a topic, a function and a trigger at work
  tripline                                     run the broker, data in ./tripline-data
  echo '{\"delay\": 95}' | tripline produce flights
  tripline consume flights --follow
  tripline apply -f app.yaml                   topics, functions, triggers and schedules from a file")]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What all commands take.
#[derive(Clone, Debug, clap::Args)]
struct Common {
    /// The broker to talk to.
    #[arg(long, global = true, env = "TRIPLINE_SERVER", value_name = "URL", default_value = client::DEFAULT_SERVER)]
    server: String,
    /// Answer in JSON, for programs.
    #[arg(long, global = true)]
    json: bool,
    /// Tell more: the broker's log, the whole error.
    #[arg(long, short, global = true)]
    verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the broker.
    Serve(serve::ServeArgs),
    /// Show the main job: a topic, a function and a trigger at work, in half a minute.
    Demo(demo::DemoArgs),
    /// Make, list, describe and delete topics.
    #[command(subcommand)]
    Topic(topic::TopicCommand),
    /// Append records to a topic, one a line.
    Produce(produce::ProduceArgs),
    /// Print the records of a topic.
    Consume(consume::ConsumeArgs),
    /// Make the broker match files with topics, functions, triggers and schedules.
    Apply(apply::ApplyArgs),
    /// Show definitions: of all kinds, one kind or one name.
    Get(resource::GetArgs),
    /// Delete a topic, a function, a trigger or a schedule.
    Delete(resource::DeleteArgs),
    /// Print all definitions as one YAML file; the code of functions stays where it is.
    #[command(after_help = "\
Examples:
  tripline export > all.yaml
  tripline apply -f all.yaml                   on a broker that has the functions' code already")]
    Export,
    /// List, describe, pause, resume, reset and skip triggers, run them again over a range, and explain their filters.
    #[command(subcommand)]
    Trigger(trigger::TriggerCommand),
    /// List, describe, pause, resume and delete schedules, and show their next ticks.
    #[command(subcommand)]
    Schedule(schedule::ScheduleCommand),
    /// List, describe and invoke functions, and show what they print.
    #[command(subcommand)]
    Function(function::FunctionCommand),
    /// Show what a function prints.
    Logs(function::LogsArgs),
    /// List, redrive and discard records that triggers gave up.
    #[command(subcommand)]
    Dlq(dead_letter::DlqCommand),
    /// Tell the whole story of one event: produced, matched or why not, attempts, what is still to come.
    Trace(trace::TraceArgs),
    /// Show what consumer groups have committed.
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Show what a data directory or one of its files holds; changes nothing and needs no broker.
    Inspect(inspect::InspectArgs),
    /// Check every byte of a data directory; changes nothing and needs no broker.
    Verify(verify::VerifyArgs),
    /// Mend a data directory: shows each step, asks, and keeps what it replaces.
    Repair(repair::RepairArgs),
    /// Make a topic from the folders of one that Kafka wrote; needs no broker.
    Import(import::ImportArgs),
    /// Print the completions for a shell.
    #[command(
        after_help = "Example:\n  tripline completions bash > ~/.local/share/bash-completion/completions/tripline"
    )]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    let cli = parsed();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::new(format!("no threads to run on: {error}")).report(&cli.common),
    };
    warn_of_variables(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()));
    let common = cli.common.clone();
    let ran = runtime.block_on(run(cli));
    // Whoever still reads standard input must not hold the process up.
    runtime.shutdown_background();
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(&common),
    }
}

/// The command line. Without a command it is that of `serve`, whose settings the environment may have.
fn parsed() -> Cli {
    let mut matches = Cli::command().get_matches();
    if matches.subcommand().is_none() {
        matches = Cli::command().get_matches_from(std::env::args_os().chain(["serve".into()]));
    }
    if let Some(serve) = matches.subcommand_matches("serve") {
        // Flags win over the environment: only a flag contradicts another.
        let names_data = serve.value_source("data") == Some(ValueSource::CommandLine);
        if names_data && serve.get_flag("ephemeral") {
            let reason = "the argument '--data <DIR>' cannot be used with '--ephemeral'";
            Cli::command().error(ErrorKind::ArgumentConflict, reason).exit();
        }
    }
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// A variable that is nearly one of ours was meant to be it; others with our prefix may be anybody's.
fn warn_of_variables(names: impl Iterator<Item = String>) {
    for line in names.filter_map(|name| variable_meant(&name)) {
        let _ = writeln!(std::io::stderr(), "warning: {line}");
    }
}

fn variable_meant(name: &str) -> Option<String> {
    let written = name.strip_prefix("TRIPLINE_").filter(|written| !VARIABLES.contains(written))?;
    let meant = nearest(written, VARIABLES)?;
    Some(format!("the environment has {name}, which nothing reads; did you mean `TRIPLINE_{meant}`?"))
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { common, command } = cli;
    let client = || Client::new(&common.server);
    let output = Output { json: common.json };
    match command.unwrap_or_else(|| Command::Serve(serve::ServeArgs::default())) {
        Command::Serve(args) => Box::pin(serve::run(args, common.verbose)).await,
        Command::Demo(args) => Box::pin(demo::run(args)).await,
        Command::Topic(command) => topic::run(command, &client()?, output).await,
        Command::Produce(args) => produce::run(args, &client()?, output).await,
        Command::Consume(args) => consume::run(args, &client()?, output).await,
        Command::Apply(args) => apply::run(args, &client()?, output).await,
        Command::Get(args) => resource::get(args, &client()?, output).await,
        Command::Delete(args) => resource::delete(args, &client()?, output).await,
        Command::Export => resource::export(&client()?, output).await,
        Command::Trigger(command) => trigger::run(command, &client()?, output).await,
        Command::Schedule(command) => schedule::run(command, &client()?, output).await,
        Command::Function(command) => function::run(command, &client()?, output).await,
        Command::Logs(args) => function::logs(args, &client()?, output).await,
        Command::Dlq(command) => dead_letter::run(command, &client()?, output).await,
        Command::Trace(args) => trace::run(args, &client()?, output).await,
        Command::Group(command) => group::run(command, &client()?, output).await,
        Command::Inspect(args) => inspect::run(&args, output),
        Command::Verify(args) => verify::run(&args, output),
        Command::Repair(args) => repair::run(&args, output),
        Command::Import(args) => Box::pin(import::run(&args, output)).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "tripline", &mut std::io::stdout());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_is_nearly_ours_is_told_and_every_one_of_ours_is_known() {
        let told = variable_meant("TRIPLINE_SERVR").unwrap();
        assert!(told.ends_with("did you mean `TRIPLINE_SERVER`?"), "{told}");
        for silent in ["TRIPLINE_SERVER", "TRIPLINE_SHARED", "TRIPLINE_X", "PATH", "SERVR"] {
            assert_eq!(variable_meant(silent), None, "{silent}");
        }
        let serve = Cli::command();
        let arguments = serve.get_subcommands().flat_map(clap::Command::get_arguments).chain(serve.get_arguments());
        for variable in arguments.filter_map(clap::Arg::get_env) {
            let name = variable.to_str().unwrap().strip_prefix("TRIPLINE_").unwrap();
            assert!(VARIABLES.contains(&name), "{name}");
        }
    }

    /// Each command that does something itself, with its words.
    fn leaves(command: &clap::Command, words: &str, found: &mut Vec<(String, String)>) {
        let words = format!("{words} {}", command.get_name()).trim().to_owned();
        if command.get_subcommands().next().is_none() {
            found.push((words.clone(), command.get_after_help().map(ToString::to_string).unwrap_or_default()));
        }
        command.get_subcommands().for_each(|command| leaves(command, &words, found));
    }

    #[test]
    fn the_commands_are_well_formed_and_each_shows_examples_that_can_be_typed() {
        Cli::command().debug_assert();
        let mut found = Vec::new();
        leaves(&Cli::command(), "", &mut found);
        assert!(found.len() > 40, "{}", found.len());
        for (words, help) in found {
            assert!(help.contains("Example"), "{words} shows none");
            // `serve` may be left out, and `function logs` is `logs` for short.
            let short = words.replace("function logs", "logs");
            let own = help.lines().any(|line| line.contains(&short));
            assert!(own, "{words} shows examples of something else: {help}");
        }
    }
}
