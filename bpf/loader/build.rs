//! Builds the BPF programs from source and tells the crate where their object is (`HOLDFAST_BPF_OBJECT`).
//!
//! The programs need what the host build does not: a rustc that has its own core library's source (the BPF target comes
//! without a compiled one) and `bpf-linker`. Both are searched here, never installed; `make setup` installs them.
//!
//! * Toolchain, the first that qualifies: `$HOLDFAST_BPF_TOOLCHAIN` (a prefix with `bin/cargo`, `bin/rustc` and the core
//!   source), Debian's in `/usr` (`rustc-web`, `cargo-web`, `rust-web-src`), rustup's `nightly` with `rust-src`.
//! * `bpf-linker`: `target/tools/bin` of this workspace, where `make setup` puts it, then `$PATH`.
//!
//! The inner cargo sees nothing of the outer one's settings: flags, wrappers, profiles or a rustup override meant for the
//! host would either fail for the BPF target or change the object silently. Its intermediate files are shared by every
//! profile of one target directory, as the object is the same for all of them; the object itself is under `OUT_DIR`.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const OBJECT: &str = "holdfast-bpf";
const TOOLCHAIN_VARIABLE: &str = "HOLDFAST_BPF_TOOLCHAIN";
const CORE_SOURCE: &str = "lib/rustlib/src/rust/library/core/Cargo.toml";
/// Cargo settings that say how to reach the registry and how to share the job server, not what to build.
const CARGO_VARIABLES_KEPT: [&str; 8] = [
    "CARGO_HOME",
    "CARGO_HTTP_",
    "CARGO_MAKEFLAGS",
    "CARGO_NET_",
    "CARGO_REGISTRIES_",
    "CARGO_REGISTRY_",
    "CARGO_SOURCE_",
    "CARGO_TERM_",
];

fn main() -> ExitCode {
    match build() {
        Ok(object) => {
            println!("cargo::rustc-env=HOLDFAST_BPF_OBJECT={}", object.display());
            ExitCode::SUCCESS
        }
        Err(message) => {
            for line in message.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<PathBuf, String> {
    let workspace = workspace_root()?;
    watch_sources(&workspace);
    let toolchain = find_toolchain()?;
    let linker = find_linker(&workspace)?;
    // A new compiler or linker makes a new object.
    watch(&toolchain.join("bin/rustc"));
    watch(&linker);

    let target =
        format!("bpf{}-unknown-none", if cargo_variable("CARGO_CFG_TARGET_ENDIAN")? == "big" { "eb" } else { "el" });
    let cache = target_directory()?.join("bpf");
    let mut cargo = inner_cargo(&workspace, &toolchain, &linker)?;
    cargo.args(["build", "--locked", "--release", "-Zbuild-std=core", "--target", &target, "--target-dir"]).arg(&cache);
    let status =
        cargo.status().map_err(|error| format!("cannot run {}: {error}", toolchain.join("bin/cargo").display()))?;
    if !status.success() {
        return Err(format!(
            "the BPF programs did not build ({status}); the compiler's messages are below.\nIf cargo asks for a new lock file: cargo generate-lockfile --manifest-path bpf/programs/Cargo.toml"
        ));
    }
    publish(&cache.join(target).join("release").join(OBJECT))
}

fn workspace_root() -> Result<PathBuf, String> {
    let manifest = PathBuf::from(cargo_variable("CARGO_MANIFEST_DIR")?);
    manifest
        .ancestors()
        .nth(2)
        .map(Path::to_path_buf)
        .ok_or_else(|| format!("{} is not two folders below the workspace", manifest.display()))
}

/// Everything of ours that the object is made from.
fn watch_sources(workspace: &Path) {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={TOOLCHAIN_VARIABLE}");
    for source in [
        "Cargo.toml",
        "bpf/programs/Cargo.toml",
        "bpf/programs/Cargo.lock",
        "bpf/programs/src",
        "bpf/decision/Cargo.toml",
        "bpf/decision/src",
        "storage-schema/Cargo.toml",
        "storage-schema/src/lib.rs",
        "storage-schema/src/map",
    ] {
        watch(&workspace.join(source));
    }
}

fn watch(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
}

/// The prefix of a toolchain that can build for BPF.
fn find_toolchain() -> Result<PathBuf, String> {
    if let Some(prefix) = env::var_os(TOOLCHAIN_VARIABLE) {
        let prefix = PathBuf::from(prefix);
        return qualify(&prefix)
            .map(|()| prefix.clone())
            .map_err(|why| format!("{TOOLCHAIN_VARIABLE}={}: {why}", prefix.display()));
    }
    let mut refused = Vec::new();
    for (name, prefix) in [("Debian's", Some(PathBuf::from("/usr"))), ("rustup's nightly", rustup_nightly())] {
        match prefix.map(|prefix| qualify(&prefix).map(|()| prefix)) {
            Some(Ok(prefix)) => return Ok(prefix),
            Some(Err(why)) => refused.push(format!("  {name}: {why}")),
            None => refused.push(format!("  {name}: not installed")),
        }
    }
    Err(format!(
        "no Rust toolchain here can build the BPF programs:\n{}\n`make setup` installs one, or set {TOOLCHAIN_VARIABLE} to the prefix of one",
        refused.join("\n")
    ))
}

fn qualify(prefix: &Path) -> Result<(), String> {
    for tool in ["bin/cargo", "bin/rustc"] {
        if !prefix.join(tool).is_file() {
            return Err(format!("{} is missing", prefix.join(tool).display()));
        }
    }
    let oldest = cargo_variable("CARGO_PKG_RUST_VERSION")?;
    let rustc = prefix.join("bin/rustc");
    let version = rustc_version(&rustc).ok_or_else(|| format!("{} does not tell its version", rustc.display()))?;
    if parse_version(&version) < parse_version(&oldest) {
        return Err(format!("{} is version {version}, older than {oldest}", rustc.display()));
    }
    let core = prefix.join(CORE_SOURCE);
    if !core.is_file() {
        return Err(format!(
            "{} is missing (the core library's source: package rust-web-src, or component rust-src)",
            core.display()
        ));
    }
    Ok(())
}

/// The third field of `rustc 1.96.0 (…)` and the like.
fn rustc_version(rustc: &Path) -> Option<String> {
    let output = Command::new(rustc).arg("--version").env_remove("RUSTUP_TOOLCHAIN").output().ok()?;
    let line = String::from_utf8(output.stdout).ok()?;
    line.split_whitespace().nth(1).map(str::to_owned)
}

/// `1.97.0-nightly` and `1.91` as (1, 97) and (1, 91); what is no version sorts first.
fn parse_version(text: &str) -> (u32, u32) {
    let mut numbers = text.split(['.', '-']).map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn rustup_nightly() -> Option<PathBuf> {
    let output = Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]).output().ok()?;
    let rustc = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    rustc.ancestors().nth(2).filter(|_| output.status.success()).map(Path::to_path_buf)
}

fn find_linker(workspace: &Path) -> Result<PathBuf, String> {
    let tools = workspace.join("target/tools/bin");
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders = std::iter::once(tools.clone()).chain(env::split_paths(&path));
    folders
        .find_map(|folder| Some(folder.join("bpf-linker")).filter(|linker| linker.is_file()))
        .ok_or_else(|| format!("bpf-linker is neither in {} nor on PATH; `make setup` builds it", tools.display()))
}

/// The directory that holds the profile directories: `OUT_DIR` is `<it>/[<triple>/]<profile>/build/<package>/out`.
fn target_directory() -> Result<PathBuf, String> {
    let out = PathBuf::from(cargo_variable("OUT_DIR")?);
    let triple = cargo_variable("TARGET")?;
    let mut above = out.ancestors().skip(4).skip_while(|folder| folder.ends_with(&triple));
    above.next().map(Path::to_path_buf).ok_or_else(|| format!("{} is no OUT_DIR of cargo's", out.display()))
}

fn inner_cargo(workspace: &Path, toolchain: &Path, linker: &Path) -> Result<Command, String> {
    // BTF names the sources; the same sources make the same object wherever they are checked out.
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    let cargo_home = cargo_home.ok_or("neither CARGO_HOME nor a home directory is known")?;
    let flags = [
        format!("--cfg=bpf_target_arch=\"{}\"", cargo_variable("CARGO_CFG_TARGET_ARCH")?),
        "-Clink-arg=--btf".to_owned(),
        format!("--remap-path-prefix={}=holdfast", workspace.display()),
        format!("--remap-path-prefix={}=cargo", cargo_home.display()),
    ];
    let folders = [linker.parent(), Some(&toolchain.join("bin"))]
        .into_iter()
        .flatten()
        .map(Path::to_path_buf)
        .collect::<Vec<_>>();
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(folders.into_iter().chain(env::split_paths(&path)))
        .map_err(|error| format!("PATH: {error}"))?;

    let mut cargo = Command::new(toolchain.join("bin/cargo"));
    for name in env::vars_os().map(|(name, _)| name).filter(leaks) {
        cargo.env_remove(name);
    }
    cargo
        .current_dir(workspace.join("bpf/programs"))
        .env("PATH", path)
        .env("RUSTC", toolchain.join("bin/rustc"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // build-std is not stable yet; a stable compiler takes it with this.
        .env("RUSTC_BOOTSTRAP", "1");
    Ok(cargo)
}

/// Whether a variable is a setting of the outer build that the inner one must not see.
fn leaks(name: &OsString) -> bool {
    let Some(name) = name.to_str() else { return false };
    let cargo = name.starts_with("CARGO") && !CARGO_VARIABLES_KEPT.iter().any(|kept| name.starts_with(kept));
    let rust = ["RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"].iter().any(|prefix| name.starts_with(prefix));
    cargo || rust || ["TARGET", "HOST", "PROFILE", "OPT_LEVEL", "DEBUG", "OUT_DIR", "NUM_JOBS"].contains(&name)
}

/// Copies the object under `OUT_DIR`, unless it is there: an equal one keeps its time, and nothing is compiled again.
fn publish(built: &Path) -> Result<PathBuf, String> {
    let object = PathBuf::from(cargo_variable("OUT_DIR")?).join(OBJECT);
    let bytes = fs::read(built).map_err(|error| format!("cannot read {}: {error}", built.display()))?;
    if !fs::read(&object).is_ok_and(|present| present == bytes) {
        fs::write(&object, bytes).map_err(|error| format!("cannot write {}: {error}", object.display()))?;
    }
    Ok(object)
}

fn cargo_variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}; cargo sets it for build scripts"))
}
