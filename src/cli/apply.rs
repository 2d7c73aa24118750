//! `tripline apply`: files with topics, functions, triggers and schedules.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::Method;
use serde_json::{Value, json};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::client::Client;
use super::failure::Failure;
use super::output::{Output, cell, print};
use super::resource::Kind;
use super::topic::array;
use crate::config::manifest::{self, Definition};
use crate::function::Runtime;
use crate::function::spec::FunctionDefinition;
use crate::source::schedule::service::ApplyScheduleError;
use crate::topic::name::TopicName;
use crate::trigger::spec::TopicSelection;

/// The largest code that is read for an upload: what a request may hold, in base64.
const CODE_BYTES_MAX: u64 = 23 << 20;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tripline apply -f app.yaml
  tripline apply -f topics.yaml -f triggers.yaml --dry-run")]
pub(super) struct ApplyArgs {
    /// A YAML file with documents that begin with topic:, function:, trigger: or schedule:. May be repeated.
    #[arg(long, short, required = true, value_name = "FILE", num_args = 1..)]
    file: Vec<PathBuf>,
    /// Only print what would change.
    #[arg(long)]
    dry_run: bool,
}

/// How much of a value is shown where it changed.
const VALUE_CHARS: usize = 60;

/// A definition, ready to be sent.
struct Planned {
    kind: Kind,
    name: String,
    body: Value,
    file: PathBuf,
    /// What it needs to be there, as the broker names it: `function/notify`.
    needs: Vec<String>,
    /// What it reads.
    reads: Option<TopicSelection>,
}

impl Planned {
    /// What it asks for, of all that is planned. Of a pattern, one topic that matches says that there is any.
    fn wanted_of(&self, planned: &[Self]) -> Vec<String> {
        let is_needed = |one: &&Self| self.needs.contains(&one.as_needed());
        let is_read = |one: &&Self| {
            matches!(one.kind, Kind::Topic) && self.reads.as_ref().is_some_and(|reads| reads.selects(&one.name))
        };
        let is_pattern = self.reads.as_ref().is_some_and(|reads| reads.named().is_empty());
        let read = planned.iter().filter(is_read).take(if is_pattern { 1 } else { usize::MAX });
        planned.iter().filter(is_needed).chain(read).map(Self::as_needed).collect()
    }

    fn place(&self) -> String {
        format!("{}: {} {}", self.file.display(), self.kind.as_str(), self.name)
    }

    /// As others need it.
    fn as_needed(&self) -> String {
        format!("{}/{}", self.kind.as_str(), self.name)
    }
}

pub(super) async fn run(args: ApplyArgs, client: &Client, output: Output) -> Result<(), Failure> {
    let mut definitions = Vec::new();
    for file in &args.file {
        definitions.extend(read(file)?.into_iter().map(|definition| (definition, file)));
    }
    if definitions.is_empty() {
        let files: Vec<String> = args.file.iter().map(|file| file.display().to_string()).collect();
        return Err(Failure::new(format!("no definitions in {}", files.join(", "))));
    }
    check_names(&definitions)?;
    check_fit(&definitions)?;
    let mut planned =
        definitions.into_iter().map(|(definition, file)| plan(definition, file)).collect::<Result<Vec<_>, _>>()?;
    // A trigger needs its topic and its function, a schedule its topic.
    planned.sort_by_key(|one| one.kind as u8);
    // Nothing is done when the broker refuses one of them. Limits that only several reach together, as that of all
    // partitions, are seen when it comes to them.
    let tried = try_all(&planned, client).await?;
    if args.dry_run {
        return show(&planned, &tried, output);
    }
    let mut answers = Vec::new();
    let mut failed = None;
    for one in &planned {
        let answer = client.call(Method::PUT, &one.kind.path(&one.name), Some(&one.body)).await;
        let answer = answer.map_err(|failure| {
            let (done, all) = (answers.len(), planned.len());
            failure.at(&one.place()).said(|what| format!("{what}; {done} of {all} definitions were applied before it"))
        })?;
        if !output.json {
            print(&line(one, &answer))?;
        }
        if answer["state"] == "Failed" {
            let message = answer["error"]["message"].as_str().unwrap_or("its code does not run").trim_end().to_owned();
            failed.get_or_insert_with(|| Failure::new(format!("{} does not run:\n{message}", one.place())));
        }
        answers.push(answer);
    }
    if output.json {
        print(&format!("{:#}", json!(answers)))?;
    }
    failed.map_or(Ok(()), Err)
}

fn show(planned: &[Planned], answers: &[Value], output: Output) -> Result<(), Failure> {
    let lines: Vec<String> = planned.iter().zip(answers).map(|(one, answer)| line(one, answer)).collect();
    output.show(&json!(answers), |_| lines.join("\n"))
}

/// What the broker would answer to each, or all that it would refuse.
async fn try_all(planned: &[Planned], client: &Client) -> Result<Vec<Value>, Failure> {
    let mut answers = Vec::new();
    let mut refused: Option<Failure> = None;
    for one in planned {
        let there = one.wanted_of(planned);
        let path = format!("{}?dry_run=true&planned={}", one.kind.path(&one.name), there.join(","));
        match client.call(Method::PUT, &path, Some(&one.body)).await {
            Ok(answer) => answers.push(answer),
            Err(failure) if failure.code().is_none() => return Err(failure),
            Err(failure) => {
                let failure = failure.at(&one.place());
                refused = Some(match refused {
                    None => failure,
                    Some(first) => first.said(|what| format!("{what}\n{}", failure.message())),
                });
            }
        }
    }
    refused.map_or(Ok(answers), |failure| Err(failure.said(|what| format!("{what}\nnothing was applied"))))
}

/// Each definition is there once, whatever file it stands in.
fn check_names(definitions: &[(Definition, &PathBuf)]) -> Result<(), Failure> {
    let mut seen = BTreeMap::new();
    for (definition, file) in definitions {
        let (kind, name) = definition.kind_and_name();
        if let Some(first) = seen.insert((kind, name), file) {
            let (file, first) = (file.display(), first.display());
            return Err(Failure::new(format!("{file}: {kind} {name}: it is defined in {first} already")));
        }
    }
    Ok(())
}

/// What only the files know together: a trigger and a function, or a schedule and a topic, that come at once must fit.
fn check_fit(definitions: &[(Definition, &PathBuf)]) -> Result<(), Failure> {
    let functions = || {
        definitions.iter().filter_map(|(definition, _)| match definition {
            Definition::Function(function) => Some(&function.spec),
            _ => None,
        })
    };
    for (definition, file) in definitions {
        let Definition::Trigger(trigger) = definition else { continue };
        let Some(function) = functions().find(|function| function.name == trigger.function.label()) else { continue };
        let fits = trigger.check_function(function);
        fits.map_err(|error| Failure::new(format!("{}: trigger {}: {error}", file.display(), trigger.name)))?;
    }
    let compacts = |name: &TopicName| {
        definitions.iter().any(|(definition, _)| {
            matches!(definition, Definition::Topic(topic) if topic.name == *name && topic.config.cleanup_policy.compacts())
        })
    };
    for (definition, file) in definitions {
        let Definition::Schedule(schedule) = definition else { continue };
        if schedule.key.is_none() && compacts(&schedule.topic) {
            let (file, name) = (file.display(), &schedule.name);
            let error = ApplyScheduleError::KeyMissing(schedule.topic.to_string());
            return Err(Failure::new(format!("{file}: schedule {name}: {error}")));
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<Vec<Definition>, Failure> {
    let text = fs::read_to_string(file).map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
    manifest::parse(&text).map_err(|error| Failure::new(format!("{}: {error}", file.display())))
}

fn plan(definition: Definition, file: &Path) -> Result<Planned, Failure> {
    let folder = file.parent().unwrap_or_else(|| Path::new(""));
    let name = definition.kind_and_name().1.to_owned();
    let (mut needs, mut reads) = (Vec::new(), None);
    let (kind, body) = match definition {
        Definition::Topic(spec) => (Kind::Topic, spec.to_json()),
        Definition::Function(definition) => (Kind::Function, function(&definition, file, folder)?),
        Definition::Trigger(spec) => {
            let steps = spec.transform.functions().map(ToString::to_string);
            needs.extend(steps.chain([spec.function.label().to_owned()]).map(|name| format!("function/{name}")));
            reads = Some(spec.input.topics.clone());
            (Kind::Trigger, spec.to_json())
        }
        Definition::Schedule(spec) => {
            needs.push(format!("topic/{}", spec.topic));
            (Kind::Schedule, spec.to_json())
        }
    };
    Ok(Planned { kind, name, body, file: file.to_owned(), needs, reads })
}

/// The definition with its code, read from where the file says, relative to the file.
fn function(definition: &FunctionDefinition, file: &Path, folder: &Path) -> Result<Value, Failure> {
    let mut body = definition.spec.to_json();
    let (Some(code), Runtime::Python3 { .. }) = (&definition.code, &definition.spec.runtime) else { return Ok(body) };
    let path = folder.join(code);
    let place = format!("{}: function {}: code {}", file.display(), definition.spec.name, path.display());
    let failed = |error: std::io::Error| Failure::new(format!("{place}: {error}; the path is relative to the file"));
    let metadata = fs::metadata(&path).map_err(failed)?;
    let bytes = if metadata.is_dir() { zipped(&path).map_err(failed)? } else { fs::read(&path).map_err(failed)? };
    if bytes.len() as u64 > CODE_BYTES_MAX {
        return Err(Failure::new(format!("{place}: {} bytes, allowed are {CODE_BYTES_MAX}", bytes.len())));
    }
    body["code_base64"] = BASE64.encode(bytes).into();
    Ok(body)
}

/// A folder as a zip archive, the same bytes for the same files. Hidden files and caches stay behind.
fn zipped(folder: &Path) -> std::io::Result<Vec<u8>> {
    let mut files = Vec::new();
    collect(folder, String::new(), &mut files)?;
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let mut left_bytes = CODE_BYTES_MAX;
    for (name, path) in files {
        let size_bytes = fs::metadata(&path)?.len();
        left_bytes = left_bytes
            .checked_sub(size_bytes)
            .ok_or_else(|| std::io::Error::other(format!("the folder has more than {CODE_BYTES_MAX} bytes")))?;
        writer.start_file(name, SimpleFileOptions::default())?;
        writer.write_all(&fs::read(&path)?)?;
    }
    Ok(writer.finish()?.into_inner())
}

fn collect(folder: &Path, prefix: String, files: &mut Vec<(String, PathBuf)>) -> std::io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let Ok(name) = entry.file_name().into_string() else {
            return Err(std::io::Error::other(format!("{} is not UTF-8", entry.path().display())));
        };
        if name.starts_with('.') || name == "__pycache__" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), format!("{prefix}{name}/"), files)?;
        } else {
            files.push((format!("{prefix}{name}"), entry.path()));
        }
    }
    Ok(())
}

fn line(one: &Planned, answer: &Value) -> String {
    let what = match (answer["created"] == true, answer["changed"] == true) {
        (true, _) => "created",
        (false, true) => "changed",
        (false, false) => "unchanged",
    };
    let would = if answer["dry_run"] == true { " (dry run)" } else { "" };
    let mut line = format!("{} {}: {what}{would}", one.kind.as_str(), one.name);
    for change in array(&answer["changes"]) {
        let (from, to) = (shortened(&change["from"]), shortened(&change["to"]));
        line.push_str(&format!("\n  {}: {from} -> {to}", cell(&change["path"])));
    }
    for warning in answer["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        line.push_str(&format!("\n  warning: {warning}"));
    }
    line
}

/// A value as it stands in a definition, or its beginning.
fn shortened(value: &Value) -> String {
    let text = if value.is_null() { "nothing".to_owned() } else { cell(value) };
    let shown: String = text.chars().take(VALUE_CHARS).collect();
    if shown.len() < text.len() { shown + "…" } else { shown }
}
