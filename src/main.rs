//! Tripline.

use std::process::ExitCode;

use tripline::cli;
use tripline::function::launch;

/// What one task allocates another often frees, on another thread: glibc takes the lock of the other's arena for that,
/// which costs each window of one record to an HTTP target two futex calls and a fifth of its CPU time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|command| command == launch::LAUNCH_COMMAND) {
        return launch::main(args);
    }
    cli::main()
}
