//! The description of this API, made from the handlers.

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response as Answer, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use super::problem::PROBLEM_TYPE;
use super::{bodies, health, v1};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tripline",
        description = "A single-node event broker with built-in function triggers. Errors are problem details (RFC 9457) with a stable `code`."
    ),
    paths(
        v1::cluster::get,
        v1::topics::list,
        v1::topics::create,
        v1::topics::get,
        v1::topics::put,
        v1::topics::delete,
        v1::topics::delete_records,
        v1::records_in::append,
        v1::records_out::records,
        v1::triggers::list,
        v1::triggers::get,
        v1::triggers::put,
        v1::triggers::delete,
        v1::triggers::pause,
        v1::triggers::resume,
        v1::explain::explain,
        v1::triggers::skip,
        v1::triggers::reset,
        v1::runs::dry_run,
        v1::runs::replay,
        v1::runs::redrive,
        v1::runs::discard,
        v1::runs::list,
        v1::runs::get,
        v1::runs::cancel,
        v1::runs::resume,
        v1::runs::skip,
        v1::schedules::list,
        v1::schedules::get,
        v1::schedules::put,
        v1::schedules::delete,
        v1::schedules::pause,
        v1::schedules::resume,
        v1::schedules::next,
        v1::functions::list,
        v1::functions::get,
        v1::functions::put,
        v1::functions::delete,
        v1::functions::invoke,
        v1::logs::logs,
        v1::groups::list,
        v1::groups::get,
        v1::dead_letters::list,
        v1::dead_letters::get,
        v1::events::get,
        v1::patterns::test,
        v1::transforms::test,
        health::live,
        health::ready,
        health::health,
        health::metrics_text,
        serve,
    ),
    components(schemas(bodies::ProblemBody)),
    modifiers(&Answers)
)]
struct Description;

/// What is the same in all operations: errors are problems, whatever the request was, and answers are JSON unless they
/// say otherwise.
struct Answers;

impl Modify for Answers {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for (path, item) in &mut document.paths.paths {
            let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
            for operation in operations.into_iter().flatten() {
                let answers = &mut operation.responses.responses;
                if path.starts_with("/v1/") {
                    for status in ["4XX", "5XX"] {
                        let problem = || ResponseBuilder::new().description("Problem details").build().into();
                        answers.entry(status.to_owned()).or_insert_with(problem);
                    }
                }
                answers.iter_mut().for_each(|(status, answer)| fill(status, answer));
            }
        }
    }
}

fn fill(status: &str, answer: &mut RefOr<Answer>) {
    let RefOr::T(answer) = answer else { return };
    if !answer.content.is_empty() || status == "204" {
        return;
    }
    let is_error = status.starts_with(['4', '5']);
    let (media_type, schema) =
        if is_error { (PROBLEM_TYPE, Some(Ref::from_schema_name("Problem"))) } else { ("application/json", None) };
    let content = ContentBuilder::new().schema(schema).build();
    answer.content.insert(media_type.to_owned(), content.into());
}

/// The OpenAPI document, as JSON.
#[must_use]
pub fn document() -> &'static str {
    static DOCUMENT: LazyLock<String> =
        LazyLock::new(|| Description::openapi().to_json().expect("the description is JSON"));
    &DOCUMENT
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "health", responses((status = 200, description = "OpenAPI 3.1")))]
pub(crate) async fn serve() -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], document()).into_response()
}
