//! `tripline demo`.
use super::failure::Failure;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tripline demo")]
pub(super) struct DemoArgs {}

pub(super) async fn run(_args: DemoArgs) -> Result<(), Failure> {
    Ok(())
}
