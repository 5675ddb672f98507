//! Inside a crate that may name an external crate, the files that do: swapping sled or aya must stay a change to a file or two.

use std::fs;
use std::path::{Path, PathBuf};

use crate::metadata::{Error, Package};

/// Crate of ours, external crate, and the files below `src/` that may name it (a folder's name covers what is in it).
const FILES: &[(&str, &str, &[&str])] =
    &[("journal", "sled", &["store.rs", "store/write.rs"]), ("applier", "aya", &["tables/kernel.rs"])];

/// Every line of source outside those files that names the external crate.
pub(crate) fn violations(packages: &[Package]) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    for (name, external, allowed) in FILES {
        let Some(package) = packages.iter().find(|package| package.name == *name) else { continue };
        let sources = package.manifest_path.with_file_name("src");
        for file in rust_files(&sources)? {
            if allowed.iter().any(|allowed| file.starts_with(sources.join(allowed))) {
                continue;
            }
            let text = fs::read_to_string(&file).map_err(|source| Error::Read { path: file.clone(), source })?;
            for line in lines_naming(&text, external) {
                found.push(format!("{}:{line} names {external}; in {name} only {allowed:?} may", file.display()));
            }
        }
    }
    Ok(found)
}

/// Numbers of the lines of code with a path into the crate; comments may speak of it.
fn lines_naming(text: &str, external: &str) -> Vec<usize> {
    let path = format!("{external}::");
    let starts_word =
        |line: &str, at: usize| !line[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_');
    let names = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        code.match_indices(&path).any(|(at, _)| starts_word(code, at))
    };
    text.lines().enumerate().filter(|(_, line)| names(line)).map(|(index, _)| index + 1).collect()
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Read { path: folder.to_path_buf(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::lines_naming;

    #[test]
    fn code_counts_and_comments_do_not() {
        let text = "//! sled::Db is not named here.\nuse sled::Db;\nlet db: ::sled::Db; // sled::\nuse bobsled::Run;\n";
        assert_eq!(lines_naming(text, "sled"), [2, 3]);
    }
}
