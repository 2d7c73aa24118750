//! `tripline produce`.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::Method;
use serde_json::{Map, Value, json};

use super::client::{Client, encoded};
use super::failure::Failure;
use super::output::Output;

/// Records and bytes of one request.
const REQUEST_RECORDS: usize = 1_000;
const REQUEST_BYTES: usize = 1 << 20;
/// The longest line.
const LINE_BYTES_MAX: usize = 16 << 20;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  echo hello | tripline produce greetings
  tripline produce flights --file flights.ndjson
  tripline produce flights --jsonl --file records.jsonl   {\"key\": …, \"value\": …, \"headers\": …} a line
  echo '{\"delay\": 95}' | tripline produce flights -k LH400 -H source=radar")]
pub(super) struct ProduceArgs {
    /// The topic; made if it is missing.
    topic: String,
    /// The key of all records.
    #[arg(long, short, conflicts_with = "jsonl")]
    key: Option<String>,
    /// A header of all records. May be repeated.
    #[arg(long, short = 'H', value_name = "NAME=VALUE", conflicts_with = "jsonl")]
    header: Vec<String>,
    /// The partition of all records [default: by key, else one per request].
    #[arg(long, short)]
    partition: Option<u32>,
    /// Read this file instead of standard input.
    #[arg(long, short)]
    file: Option<PathBuf>,
    /// Each line is a record as JSON with key, value, headers, partition and timestamp.
    #[arg(long)]
    jsonl: bool,
    /// When a request is answered: all = on disk, 1 = in the page cache, 0 = not waited for.
    #[arg(long, default_value = "all", value_parser = ["all", "1", "0"])]
    acks: String,
}

pub(super) async fn run(args: ProduceArgs, client: &Client, output: Output) -> Result<(), Failure> {
    let mut input: Box<dyn BufRead + Send> = match &args.file {
        None => Box::new(BufReader::new(std::io::stdin())),
        Some(path) => {
            let file = std::fs::File::open(path);
            Box::new(BufReader::new(file.map_err(|error| Failure::new(format!("{}: {error}", path.display())))?))
        }
    };
    let mut sender = Sender::new(&args, client)?;
    let appended = append(&args, &mut input, &mut sender).await;
    appended.map_err(|failure| match sender.sent {
        0 => failure,
        sent => failure.said(|what| format!("{what}; {sent} record(s) before it are in {}", args.topic)),
    })?;
    let answer = json!({ "topic": args.topic, "records": sender.sent, "last": sender.last });
    output.show(&answer, |_| match (sender.sent, &sender.last) {
        (1, Some(at)) => format!("1 record to {}, partition {}, offset {}", args.topic, at["partition"], at["offset"]),
        (count, _) => format!("{count} records to {}", args.topic),
    })
}

/// All lines, request by request.
async fn append(args: &ProduceArgs, input: &mut (dyn BufRead + Send), sender: &mut Sender<'_>) -> Result<(), Failure> {
    let (mut line, mut number) = (Vec::new(), 0);
    loop {
        line.clear();
        // Whoever types may take his time.
        if tokio::task::block_in_place(|| read_line(input, &mut line))? == 0 {
            break;
        }
        number += 1;
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        sender.take(text.strip_suffix(b"\r").unwrap_or(text), number)?;
        // What a person types goes off at once; what a program pipes, in batches.
        if sender.is_full()
            || (args.file.is_none() && line.len() < 8 << 10 && std::io::IsTerminal::is_terminal(&std::io::stdin()))
        {
            sender.send().await?;
        }
    }
    sender.send().await
}

/// One line, bounded; answers how many bytes were read.
fn read_line(input: &mut dyn BufRead, line: &mut Vec<u8>) -> Result<usize, Failure> {
    loop {
        let chunk = input.fill_buf()?;
        if chunk.is_empty() {
            return Ok(line.len());
        }
        let end = chunk.iter().position(|&byte| byte == b'\n').map(|at| at + 1);
        let taken = end.unwrap_or(chunk.len());
        line.extend_from_slice(&chunk[..taken]);
        input.consume(taken);
        if line.len() > LINE_BYTES_MAX {
            return Err(Failure::new(format!("a line has more than {LINE_BYTES_MAX} bytes")));
        }
        if end.is_some() {
            return Ok(line.len());
        }
    }
}

/// What the broker says of a record of its request, said of the line that it was.
fn by_line(detail: &str, first_line: usize) -> String {
    let of_record = detail.strip_prefix("the body: ").unwrap_or(detail).strip_prefix("records[");
    let Some((index, rest)) = of_record.and_then(|rest| rest.split_once(']')) else { return detail.to_owned() };
    let Ok(index) = index.parse::<usize>() else { return detail.to_owned() };
    format!(
        "line {}{}",
        first_line + index,
        rest.strip_prefix('.').map_or_else(|| rest.to_owned(), |rest| format!(": {rest}"))
    )
}

struct Sender<'a> {
    args: &'a ProduceArgs,
    client: &'a Client,
    headers: Map<String, Value>,
    waiting: Vec<Value>,
    waiting_bytes: usize,
    sent: usize,
    last: Option<Value>,
}

impl<'a> Sender<'a> {
    fn new(args: &'a ProduceArgs, client: &'a Client) -> Result<Self, Failure> {
        let mut headers = Map::new();
        for text in &args.header {
            let Some((name, value)) = text.split_once('=') else {
                return Err(Failure::wrong_use(format!("--header: found {text:?}, allowed: NAME=VALUE")));
            };
            let values = headers.entry(name.to_owned()).or_insert_with(|| json!([]));
            values.as_array_mut().expect("a list was put there").push(value.into());
        }
        Ok(Self { args, client, headers, waiting: Vec::new(), waiting_bytes: 0, sent: 0, last: None })
    }

    fn take(&mut self, line: &[u8], number: usize) -> Result<(), Failure> {
        let mut record = if self.args.jsonl {
            let record: Map<String, Value> = serde_json::from_slice(line)
                .map_err(|error| Failure::new(format!("line {number} is not a record in JSON: {error}")))?;
            Value::Object(record)
        } else {
            let mut record = json!({ "value_base64": BASE64.encode(line), "headers": self.headers });
            if let Some(key) = &self.args.key {
                record["key"] = key.as_str().into();
            }
            record
        };
        if let Some(partition) = self.args.partition {
            record["partition"] = partition.into();
        }
        self.waiting.push(record);
        self.waiting_bytes += line.len();
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.waiting.len() >= REQUEST_RECORDS || self.waiting_bytes >= REQUEST_BYTES
    }

    async fn send(&mut self) -> Result<(), Failure> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.waiting_bytes = 0;
        let count = self.waiting.len();
        let body = json!({ "records": std::mem::take(&mut self.waiting) });
        let path = format!("/v1/topics/{}/records?acks={}", encoded(&self.args.topic), self.args.acks);
        let answer = self.client.call(Method::POST, &path, Some(&body)).await;
        // Each line is a record, and nothing of a request that is refused is appended.
        let answer = answer.map_err(|failure| failure.said(|detail| by_line(detail, self.sent + 1)))?;
        self.sent += count;
        self.last = answer["records"].as_array().and_then(|records| records.last().cloned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_a_request_is_told_by_its_line() {
        assert_eq!(
            by_line("the body: records[2].partition: expected a number", 11),
            "line 13: partition: expected a number"
        );
        assert_eq!(by_line("records[0] has no key", 1), "line 1 has no key");
        assert_eq!(by_line("topic t does not exist", 1), "topic t does not exist");
        assert_eq!(by_line("records[x]", 1), "records[x]");
    }
}
