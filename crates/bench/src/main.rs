//! The `vecmill-bench` binary: all of it is in the library, which `vecmill ab` uses as well.

use std::process::ExitCode;

fn main() -> ExitCode {
    vecmill_bench::main()
}
