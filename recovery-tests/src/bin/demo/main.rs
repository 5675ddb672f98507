//! `make demo`: a real mesh on this machine's kernel.
//!
//! Applies Istio's Bookinfo, starts an HTTP backend for each of its workloads, sends requests with curl through the
//! virtual addresses, keeps long-lived connections busy, kills the agent, restarts it, changes a service under traffic,
//! and says with figures what was to be seen. It runs in network and mount namespaces and a cgroup of its own, and leaves
//! nothing behind. Without the privileges for that, it shows what can be shown with `--datapath memory`.

mod backend;
mod bookinfo;
mod curl;
mod in_memory;
mod kernel;
mod page;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use recovery_tests::{requirements, worker};

use crate::page::Page;

/// Shows Holdfast at work with Istio's Bookinfo.
#[derive(Debug, Parser)]
struct Arguments {
    /// The manifest of the mesh.
    #[arg(default_value = "examples/bookinfo.yaml")]
    manifest: PathBuf,
    /// Do not use the kernel, even where that is possible.
    #[arg(long)]
    memory: bool,
}

fn main() -> ExitCode {
    worker::run_if_asked();
    backend::run_if_asked();
    let arguments = Arguments::parse();
    let mut page = Page::new();
    let kernel = if arguments.memory { Err("--memory was given".to_owned()) } else { requirements::check_kernel() };
    let outcome = match kernel {
        Ok(()) => kernel::show(&mut page, &arguments.manifest),
        Err(missing) => {
            page.note(&format!("No kernel datapath: {missing}. This shows what an agent does with --datapath memory."));
            in_memory::show(&mut page, &arguments.manifest)
        }
    };
    if let Err(error) = outcome {
        page.record("the demo runs to its end", false, &format!("{error:#}"));
    }
    page.finish()
}
