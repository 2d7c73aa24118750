//! `tripline consume`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use tokio::sync::mpsc;

use super::client::{Client, Events, encoded};
use super::failure::Failure;
use super::output::{Output, print};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tripline consume flights                     all records, then the end
  tripline consume flights --from latest --follow
  tripline consume flights --from 2026-01-31T12:00:00Z -n 10
  tripline consume flights -f '%p %o %k %v\\n'   partition, offset, key, value; %t time, %h headers")]
pub(super) struct ConsumeArgs {
    /// The topic.
    topic: String,
    /// Where to begin: earliest, latest, an offset, or a time.
    #[arg(long, default_value = "earliest")]
    from: String,
    /// Only this partition.
    #[arg(long, short)]
    partition: Option<u32>,
    /// Wait for more at the end.
    #[arg(long)]
    follow: bool,
    /// Stop after so many records.
    #[arg(long, short = 'n')]
    count: Option<usize>,
    /// How a record is printed: %p partition, %o offset, %t timestamp, %k key, %v value, %h headers, \n \t \\ %%.
    #[arg(long, short, default_value = "%v\\n")]
    format: String,
}

pub(super) async fn run(args: ConsumeArgs, client: &Client, output: Output) -> Result<(), Failure> {
    let topic = client.get(&format!("/v1/topics/{}", encoded(&args.topic))).await?;
    let partitions = match args.partition {
        Some(partition) => vec![partition],
        None => (0..topic["partitions"].as_u64().and_then(|count| u32::try_from(count).ok()).unwrap_or(0)).collect(),
    };
    let mut printer = Printer { args: &args, output, left: args.count.unwrap_or(usize::MAX) };
    if args.follow {
        follow(&args, client, &partitions, &mut printer).await
    } else {
        read(&args, client, &partitions, &mut printer).await
    }
}

fn path(args: &ConsumeArgs, partition: u32, from: &str, limit: Option<u32>) -> String {
    let limit = limit.map_or_else(String::new, |limit| format!("&limit={limit}"));
    let (topic, from) = (encoded(&args.topic), encoded(from));
    format!("/v1/topics/{topic}/records?partition={partition}&from={from}&encoding=base64{limit}")
}

/// What is there now.
async fn read(
    args: &ConsumeArgs,
    client: &Client,
    partitions: &[u32],
    printer: &mut Printer<'_>,
) -> Result<(), Failure> {
    for &partition in partitions {
        let mut from = args.from.clone();
        let mut end = None;
        while printer.left > 0 {
            let limit = u32::try_from(printer.left.min(1_000)).expect("at most 1,000");
            let page = client.get(&path(args, partition, &from, Some(limit))).await?;
            for record in page["records"].as_array().into_iter().flatten() {
                printer.print(record)?;
            }
            let next = page["next"].as_i64().unwrap_or(0);
            // Records that arrive while we read are for the next time.
            let end = *end.get_or_insert_with(|| page["tail"].as_i64().unwrap_or(0));
            if next >= end {
                break;
            }
            from = next.to_string();
        }
    }
    Ok(())
}

async fn follow(
    args: &ConsumeArgs,
    client: &Client,
    partitions: &[u32],
    printer: &mut Printer<'_>,
) -> Result<(), Failure> {
    let (sender, mut records) = mpsc::channel(100);
    for &partition in partitions {
        let events = client.events(&path(args, partition, &args.from, None)).await?;
        tokio::spawn(pass_on(events, sender.clone()));
    }
    drop(sender);
    while printer.left > 0 {
        match records.recv().await {
            Some(record) => printer.print(&record?)?,
            None => return Err(Failure::new("the broker ended the stream; it may be stopping")),
        }
    }
    Ok(())
}

async fn pass_on(mut events: Events, records: mpsc::Sender<Result<Value, Failure>>) {
    loop {
        let Some(record) = events.next().await.transpose() else { return };
        let failed = record.is_err();
        if records.send(record).await.is_err() || failed {
            return;
        }
    }
}

struct Printer<'a> {
    args: &'a ConsumeArgs,
    output: Output,
    left: usize,
}

impl Printer<'_> {
    fn print(&mut self, record: &Value) -> Result<(), Failure> {
        if self.left == 0 {
            return Ok(());
        }
        self.left -= 1;
        if self.output.json {
            return print(&readable(record).to_string());
        }
        let bytes = formatted(&self.args.format, record)?;
        write_bytes(&bytes)
    }
}

fn write_bytes(bytes: &[u8]) -> Result<(), Failure> {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => Ok(written?),
    }
}

fn bytes_of(record: &Value, field: &str) -> Vec<u8> {
    record[field].as_str().and_then(|text| BASE64.decode(text).ok()).unwrap_or_default()
}

/// Keys and values as text or JSON where they are, as the API shows them by default.
fn readable(record: &Value) -> Value {
    let mut shown = record.clone();
    let Some(fields) = shown.as_object_mut() else { return shown };
    for (encoded, plain) in [("key_base64", "key"), ("value_base64", "value")] {
        if !fields.contains_key(encoded) {
            continue;
        }
        let bytes = bytes_of(record, encoded);
        let json = serde_json::from_slice(&bytes).ok().filter(|_| plain == "value");
        let text = || std::str::from_utf8(&bytes).ok().map(Value::from);
        if let Some(value) = json.or_else(text) {
            fields.remove(encoded);
            fields.insert(plain.to_owned(), value);
        }
    }
    shown
}

fn formatted(format: &str, record: &Value) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        let wrong = |sign: char, next: Option<char>| {
            let next = next.map_or_else(String::new, String::from);
            Failure::wrong_use(format!("--format: found {sign}{next}, allowed: %p %o %t %k %v %h %% \\n \\t \\\\"))
        };
        match character {
            '%' => match characters.next() {
                Some('p') => out.extend(record["partition"].to_string().into_bytes()),
                Some('o') => out.extend(record["offset"].to_string().into_bytes()),
                Some('t') => out.extend(record["timestamp"].to_string().into_bytes()),
                Some('k') => out.extend(bytes_of(record, "key_base64")),
                Some('v') => out.extend(bytes_of(record, "value_base64")),
                Some('h') => {
                    out.extend(record.get("headers").map_or_else(|| "{}".to_owned(), Value::to_string).into_bytes())
                }
                Some('%') => out.push(b'%'),
                next => return Err(wrong('%', next)),
            },
            '\\' => match characters.next() {
                Some('n') => out.push(b'\n'),
                Some('t') => out.push(b'\t'),
                Some('\\') => out.push(b'\\'),
                next => return Err(wrong('\\', next)),
            },
            other => out.extend(other.to_string().into_bytes()),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_format_prints_bytes_as_they_are() {
        let record = json!({"partition": 1, "offset": 7, "timestamp": 5, "key_base64": "aw==", "value_base64": "/wA="});
        assert_eq!(formatted("%p %o %t %k%%\\t%v\\n", &record).unwrap(), b"1 7 5 k%\t\xff\x00\n");
        assert_eq!(formatted("%h", &record).unwrap(), b"{}");
        assert!(formatted("%x", &record).unwrap_err().message().contains("%x"));
        assert!(formatted("a\\", &record).is_err());
    }

    #[test]
    fn json_output_is_readable_where_it_can_be() {
        let record = json!({"offset": 7, "key_base64": "aw==", "value_base64": "WzFd"});
        assert_eq!(readable(&record), json!({"offset": 7, "key": "k", "value": [1]}));
        assert_eq!(readable(&json!({"value_base64": "/w=="})), json!({"value_base64": "/w=="}));
    }
}
