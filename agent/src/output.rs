//! What commands print: tables for people, JSON and YAML for programs. Colours only on terminals.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{Attribute, Cell, ContentArrangement, Table};
use serde::Serialize;

use crate::exit::{Exit, Failure};

/// Prints to standard output. A reader that goes away (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_some(text).map(drop)
}

/// [`print`] for those who have more to say: whether there is still a reader.
pub(crate) fn print_some(text: &str) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(Exit::Failure, format!("cannot write to standard output: {error}"))),
    }
}

/// JSON, indented, with a line end.
pub(crate) fn json(value: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(value).expect("our own values have string keys");
    text + "\n"
}

/// One YAML document.
pub(crate) fn yaml(value: &impl Serialize) -> String {
    serde_saphyr::to_string(value).expect("our own values are YAML")
}

/// A table in the style of the column listings that shells are used to: no lines, a bold header.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [Cell; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    if colours() {
        table.set_content_arrangement(ContentArrangement::Dynamic).enforce_styling();
    } else {
        table.force_no_tty();
    }
    table.set_header(header.map(|title| Cell::new(title).add_attribute(Attribute::Bold)));
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

/// Whether standard output takes colours: a terminal, and nobody has asked for none (<https://no-color.org>).
pub(crate) fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The first few of a list, and how many more there are.
pub(crate) fn few<T: ToString>(items: impl ExactSizeIterator<Item = T>) -> String {
    const SHOWN: usize = 4;
    let more = items.len().saturating_sub(SHOWN);
    let shown: Vec<String> = items.take(SHOWN).map(|item| item.to_string()).collect();
    match (shown.is_empty(), more) {
        (true, _) => "-".to_owned(),
        (false, 0) => shown.join(","),
        (false, more) => format!("{} +{more}", shown.join(",")),
    }
}
