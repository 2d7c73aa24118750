//! `tripline apply`: files with topics, functions, triggers and schedules.

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
use super::output::{Output, print};
use super::resource::Kind;
use crate::config::manifest::{self, Definition};
use crate::function::Runtime;
use crate::function::spec::FunctionDefinition;

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

/// A definition, ready to be sent.
struct Planned {
    kind: Kind,
    name: String,
    body: Value,
    file: PathBuf,
}

pub(super) async fn run(args: ApplyArgs, client: &Client, output: Output) -> Result<(), Failure> {
    let mut planned = Vec::new();
    for file in &args.file {
        planned.extend(plan(file)?);
    }
    if planned.is_empty() {
        let files: Vec<String> = args.file.iter().map(|file| file.display().to_string()).collect();
        return Err(Failure::new(format!("no definitions in {}", files.join(", "))));
    }
    // A trigger needs its topic and its function, a schedule its topic.
    planned.sort_by_key(|one| one.kind as u8);
    let mut answers = Vec::new();
    let mut failed = None;
    for one in &planned {
        let place = format!("{}: {} {}", one.file.display(), one.kind.as_str(), one.name);
        let answer = if args.dry_run { compare(one, client).await } else { send(one, client).await };
        let answer = answer.map_err(|failure| failure.at(&place))?;
        if !output.json {
            print(&line(one, &answer, args.dry_run))?;
        }
        if answer["state"] == "Failed" {
            let message = answer["error"]["message"].as_str().unwrap_or("its code does not run").trim_end().to_owned();
            failed.get_or_insert_with(|| Failure::new(format!("{place} does not run:\n{message}")));
        }
        answers.push(answer);
    }
    if output.json {
        print(&format!("{:#}", json!(answers)))?;
    }
    failed.map_or(Ok(()), Err)
}

fn plan(file: &Path) -> Result<Vec<Planned>, Failure> {
    let text = fs::read_to_string(file).map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
    let definitions = manifest::parse(&text).map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
    let folder = file.parent().unwrap_or_else(|| Path::new(""));
    definitions.into_iter().map(|definition| plan_one(definition, file, folder)).collect()
}

fn plan_one(definition: Definition, file: &Path, folder: &Path) -> Result<Planned, Failure> {
    let name = definition.kind_and_name().1.to_owned();
    let (kind, body) = match definition {
        Definition::Topic(spec) => (Kind::Topic, spec.to_json()),
        Definition::Function(definition) => (Kind::Function, function(&definition, file, folder)?),
        Definition::Trigger(spec) => (Kind::Trigger, spec.to_json()),
        Definition::Schedule(spec) => (Kind::Schedule, spec.to_json()),
    };
    Ok(Planned { kind, name, body, file: file.to_owned() })
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

async fn send(one: &Planned, client: &Client) -> Result<Value, Failure> {
    let before = exists(one, client).await?.is_some();
    let mut answer = client.call(Method::PUT, &one.kind.path(&one.name), Some(&one.body)).await?;
    answer["created"] = json!(!before);
    Ok(answer)
}

async fn exists(one: &Planned, client: &Client) -> Result<Option<Value>, Failure> {
    match client.get(&one.kind.path(&one.name)).await {
        Ok(found) => Ok(Some(found)),
        Err(failure) if failure.code().is_some_and(|code| code.starts_with("unknown-")) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// What sending would do, as far as it can be seen from outside: code is not compared.
async fn compare(one: &Planned, client: &Client) -> Result<Value, Failure> {
    let found = exists(one, client).await?;
    let mut wanted = one.body.clone();
    let has_code = wanted.as_object_mut().is_some_and(|fields| fields.remove("code_base64").is_some());
    let changed = found.as_ref().is_none_or(|found| match one.kind {
        Kind::Topic => found["partitions"] != wanted["partitions"] || found.get("config") != wanted.get("config"),
        Kind::Function | Kind::Trigger | Kind::Schedule => found["definition"] != wanted,
    });
    Ok(
        json!({ one.kind.as_str(): one.name, "created": found.is_none(), "changed": changed, "code_not_compared": has_code }),
    )
}

fn line(one: &Planned, answer: &Value, dry_run: bool) -> String {
    let what = match (answer["created"] == true, answer["changed"] == true) {
        (true, _) => "created",
        (false, true) => "changed",
        (false, false) => "unchanged",
    };
    let would = match (dry_run, answer["code_not_compared"] == true) {
        (true, true) => " (dry run; code not compared)",
        (true, false) => " (dry run)",
        (false, _) => "",
    };
    let mut line = format!("{} {}: {what}{would}", one.kind.as_str(), one.name);
    for warning in answer["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        line.push_str(&format!("\n  warning: {warning}"));
    }
    line
}
