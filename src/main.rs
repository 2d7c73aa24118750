//! Tripline.

use std::process::ExitCode;

use tripline::cli;
use tripline::function::launch;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|command| command == launch::LAUNCH_COMMAND) {
        return launch::main(args);
    }
    cli::main()
}
