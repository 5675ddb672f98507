//! Build steps that cargo cannot express, run as `cargo xtask <step>`.
//!
//! * `edges` ([`edges`]): no dependency points up, and few crates name what only they may name.
//!
//! Setting up a machine is `setup.sh` beside this crate: it has to run before there is a Rust toolchain.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

mod edges;
mod mentions;
mod metadata;

const USAGE: &str = "usage: cargo xtask edges";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["edges"] {
        return report(check_edges(&workspace_root()));
    }
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn check_edges(root: &Path) -> Result<Vec<String>, metadata::Error> {
    let mut packages = metadata::packages(&root.join("Cargo.toml"))?;
    packages.extend(metadata::packages(&root.join("bpf/programs/Cargo.toml"))?);
    let mut found = edges::violations(&packages);
    found.extend(mentions::violations(&packages)?);
    Ok(found)
}

fn report(outcome: Result<Vec<String>, metadata::Error>) -> ExitCode {
    match outcome {
        Ok(found) if found.is_empty() => {
            println!("edges: ok");
            ExitCode::SUCCESS
        }
        Ok(found) => {
            for violation in found {
                eprintln!("edges: {violation}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("edges: {error}");
            ExitCode::FAILURE
        }
    }
}

fn workspace_root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("xtask lies in the workspace").to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::{check_edges, workspace_root};

    #[test]
    fn this_workspace_keeps_the_rules() {
        assert_eq!(check_edges(&workspace_root()).expect("cargo describes the workspace"), Vec::<String>::new());
    }
}
