//! What the demo prints: headings, lines, and the table at the end. Colours only on a terminal.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table};

/// The demo's output, and what it has shown so far.
#[derive(Debug)]
pub(crate) struct Page {
    out: io::Stdout,
    colours: bool,
    shown: Vec<Shown>,
}

#[derive(Debug)]
struct Shown {
    what: String,
    is_so: bool,
    figure: String,
}

impl Page {
    pub(crate) fn new() -> Self {
        let out = io::stdout();
        Self { colours: out.is_terminal() && std::env::var_os("NO_COLOR").is_none(), out, shown: Vec::new() }
    }

    /// A new part begins.
    pub(crate) fn heading(&self, text: &str) {
        self.print(&format!("\n{}", self.style("1", text)));
    }

    /// A command, as one would type it.
    pub(crate) fn command(&self, text: &str) {
        self.print(&format!("  {}", self.style("36", &format!("$ {text}"))));
    }

    /// Something to know.
    pub(crate) fn note(&self, text: &str) {
        self.print(&format!("  {text}"));
    }

    /// Something that was to be shown: whether it is so, and the figures.
    pub(crate) fn record(&mut self, what: &str, is_so: bool, figure: &str) {
        let mark = if is_so { self.style("32", "✓") } else { self.style("31", "✗") };
        self.print(&format!("  {mark} {what}: {figure}"));
        self.shown.push(Shown { what: what.to_owned(), is_so, figure: figure.to_owned() });
    }

    /// The table of everything, and the verdict.
    pub(crate) fn finish(self) -> ExitCode {
        let mut table = Table::new();
        table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        if !self.colours {
            table.force_no_tty().set_width(140);
        }
        table.set_header(["", "shown", "figures"].map(|title| Cell::new(title).add_attribute(Attribute::Bold)));
        for Shown { what, is_so, figure } in &self.shown {
            let (mark, colour) = if *is_so { ("ok", Color::Green) } else { ("failed", Color::Red) };
            table.add_row([Cell::new(mark).fg(colour), Cell::new(what), Cell::new(figure)]);
        }
        self.print(&format!("\n{}\n", table.trim_fmt()));
        let failed: Vec<&str> = self.shown.iter().filter(|one| !one.is_so).map(|one| one.what.as_str()).collect();
        if failed.is_empty() {
            self.print(&self.style("1;32", "demo: ok"));
            return ExitCode::SUCCESS;
        }
        for what in failed {
            self.print(&self.style("1;31", &format!("demo: failed: {what}")));
        }
        ExitCode::FAILURE
    }

    fn print(&self, text: &str) {
        // Whoever reads may have seen enough; the demo still ends with its verdict as exit code.
        let _ = writeln!(self.out.lock(), "{text}");
    }

    fn style(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}
