//! `tripline get`, `delete` and `export`: definitions of any kind.

use http::Method;
use serde_json::{Value, json};

use super::client::{Client, encoded};
use super::failure::Failure;
use super::output::{Output, print};
use super::topic::array;

/// What stands first where a function has code.
const WITHOUT_CODE: &str = "\
# The code of functions is not in here. Applied where it is, this changes nothing; to make the functions anew, name their
# files in `code`.
";

/// The kinds of definitions, in the order in which they can be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// Topics.
    #[value(alias = "topics")]
    Topic,
    /// Functions.
    #[value(alias = "functions")]
    Function,
    /// Triggers.
    #[value(alias = "triggers")]
    Trigger,
    /// Schedules.
    #[value(alias = "schedules")]
    Schedule,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Topic, Self::Function, Self::Trigger, Self::Schedule];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::Function => "function",
            Self::Trigger => "trigger",
            Self::Schedule => "schedule",
        }
    }

    pub(super) fn path(self, name: &str) -> String {
        format!("/v1/{}s/{}", self.as_str(), encoded(name))
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tripline get\n  tripline get triggers\n  tripline get trigger slow-flights --json"
)]
pub(super) struct GetArgs {
    /// Only this kind.
    kind: Option<Kind>,
    /// Only this name.
    name: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tripline delete trigger slow-flights\n  tripline delete function notify")]
pub(super) struct DeleteArgs {
    /// Which kind.
    kind: Kind,
    /// Its name.
    name: String,
}

pub(super) async fn get(args: GetArgs, client: &Client, output: Output) -> Result<(), Failure> {
    let kinds = args.kind.map_or_else(|| Kind::ALL.to_vec(), |kind| vec![kind]);
    let mut definitions = Vec::new();
    for kind in kinds {
        match &args.name {
            Some(name) => definitions.push(definition(kind, &client.get(&kind.path(name)).await?)),
            None => definitions.extend(all(kind, client).await?),
        }
    }
    output.show(&json!(definitions), |_| documents(&definitions))
}

pub(super) async fn delete(args: DeleteArgs, client: &Client, output: Output) -> Result<(), Failure> {
    client.call(Method::DELETE, &args.kind.path(&args.name), None).await?;
    if output.json { Ok(()) } else { print(&format!("{} {} deleted", args.kind.as_str(), args.name)) }
}

pub(super) async fn export(client: &Client, output: Output) -> Result<(), Failure> {
    let mut definitions = Vec::new();
    for kind in Kind::ALL {
        definitions.extend(all(kind, client).await?);
    }
    if output.json {
        return output.show(&json!({ "definitions": definitions }), |_| String::new());
    }
    let text = documents(&definitions);
    let has_code = definitions.iter().any(|definition| definition["runtime"] == "python3");
    print(&if has_code { format!("{WITHOUT_CODE}{text}") } else { text })
}

async fn all(kind: Kind, client: &Client) -> Result<Vec<Value>, Failure> {
    let plural = format!("{}s", kind.as_str());
    let answer = client.get(&format!("/v1/{plural}")).await?;
    let own = |item: &&Value| item["internal"] != json!(true);
    Ok(array(&answer[&plural]).iter().filter(own).map(|item| definition(kind, item)).collect())
}

/// What would make it again.
fn definition(kind: Kind, item: &Value) -> Value {
    match kind {
        Kind::Topic => {
            let mut topic = json!({ "topic": item["topic"], "partitions": item["partitions"] });
            if let Some(config) = item.get("config") {
                topic["config"] = config.clone();
            }
            topic
        }
        Kind::Function | Kind::Trigger | Kind::Schedule => item["definition"].clone(),
    }
}

/// YAML documents. JSON is YAML, and block style needs only mappings to be unfolded.
fn documents(definitions: &[Value]) -> String {
    let texts: Vec<String> = definitions
        .iter()
        .map(|definition| {
            let kind = ["trigger", "schedule", "function", "topic"]
                .into_iter()
                .find(|kind| definition.get(kind).is_some())
                .unwrap_or("topic");
            let mut text = format!("{kind}: {}\n", definition[kind]);
            for (name, value) in definition.as_object().into_iter().flatten().filter(|(name, _)| *name != kind) {
                text.push_str(&format!("{name}: {value}\n"));
            }
            text
        })
        .collect();
    texts.join("---\n")
}
