//! What `cargo metadata` says about our crates, as far as the rules need it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

/// One crate of ours.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    /// As in its manifest.
    pub(crate) name: String,
    /// The manifest's path.
    pub(crate) manifest_path: PathBuf,
    /// What the manifest names, for every target, feature and kind.
    pub(crate) dependencies: Vec<Dependency>,
}

/// An edge of the graph.
#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    /// The package's real name, whatever the manifest renames it to.
    pub(crate) name: String,
    /// `dev` and `build` in cargo's words, `None` for an ordinary one.
    pub(crate) kind: Option<String>,
}

/// Why the graph is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot run {cargo}")]
    Run {
        cargo: String,
        #[source]
        source: std::io::Error,
    },
    #[error("cargo metadata refused {}: {message}", manifest.display())]
    Refused { manifest: PathBuf, message: String },
    #[error("cargo metadata for {} is not what this step knows: {source}", manifest.display())]
    Parse {
        manifest: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("cannot read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// The workspace's own packages; needs no network, as nothing is resolved.
pub(crate) fn packages(manifest: &Path) -> Result<Vec<Package>, Error> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }

    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(&cargo)
        .args(["metadata", "--no-deps", "--format-version=1", "--manifest-path"])
        .arg(manifest)
        .output()
        .map_err(|source| Error::Run { cargo, source })?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Refused { manifest: manifest.to_path_buf(), message });
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout)
        .map_err(|source| Error::Parse { manifest: manifest.to_path_buf(), source })?;
    Ok(metadata.packages)
}
