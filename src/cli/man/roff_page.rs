//! A manual page in man(7), built section by section.

use clap_mangen::roff::{Roff, bold, italic, roman};

/// A page that grows.
pub(super) struct RoffPage {
    roff: Roff,
    /// Whether a title was the last line. A paragraph begins there without a macro.
    is_below_title: bool,
}

impl RoffPage {
    /// Begins a page. `about` is the line that apropos(1) finds.
    pub(super) fn new(name: &str, section: &str, about: &str) -> Self {
        let mut roff = Roff::new();
        let version = concat!("kitfs ", env!("CARGO_PKG_VERSION"));
        // Without a date, builds are reproducible.
        roff.control("TH", [name, section, "\"\"", version, "kitfs"]);
        roff.control("SH", ["NAME"]).text([roman(format!("{name} - {about}"))]);
        Self { roff, is_below_title: false }
    }

    /// Begins a section.
    pub(super) fn section(&mut self, title: &str) -> &mut Self {
        self.roff.control("SH", [title]);
        self.is_below_title = true;
        self
    }

    /// Adds a paragraph. Words between backticks are bold.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.paragraph().inline(text)
    }

    /// Adds a term and its explanation.
    pub(super) fn item(&mut self, term: &str, value: &str, text: &str) -> &mut Self {
        self.is_below_title = false;
        self.roff.control("TP", []);
        let value = Some(value).filter(|value| !value.is_empty()).map(italic);
        self.roff.text(std::iter::once(bold(term)).chain(value).collect::<Vec<_>>());
        self.inline(text)
    }

    /// Adds lines that stay as they are.
    pub(super) fn example(&mut self, text: &str) -> &mut Self {
        self.paragraph().roff.control("RS", ["4"]).control("nf", []);
        for line in text.lines() {
            self.roff.text([roman(line)]);
        }
        self.roff.control("fi", []).control("RE", []);
        self
    }

    /// The page in roff.
    pub(super) fn finish(&self) -> String {
        self.roff.render()
    }

    fn paragraph(&mut self) -> &mut Self {
        if !std::mem::take(&mut self.is_below_title) {
            self.roff.control("PP", []);
        }
        self
    }

    fn inline(&mut self, text: &str) -> &mut Self {
        let parts = text.split('`').enumerate().filter(|(_, part)| !part.is_empty());
        let parts = parts.map(|(at, part)| if at % 2 == 1 { bold(part) } else { roman(part) });
        self.roff.text(parts.collect::<Vec<_>>());
        self
    }
}
