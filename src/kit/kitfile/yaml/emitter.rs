//! Writes nodes as go-yaml does: indent 2, no folding, sequences indented under their key.
//!
//! go-yaml decides about line breaks and blanks by its own last output, and some of its oddities
//! follow from that. So the emitter keeps the same three facts: the column, whether a blank is
//! there already (`is_blank_before`), and whether the line has nothing but indentation and
//! indicators (`is_line_start`). Lines are never folded: kit's encoder has no width.

use super::scalar::{self, Place, Style, is_break, is_printable};
use super::{GoYaml, Node};

/// The columns of a level of nesting.
const INDENT: usize = 2;

/// Writes a document; `None` when it has more than `limit_bytes`.
pub(super) fn emit(root: &Node<'_>, go_yaml: GoYaml, limit_bytes: usize) -> Option<Vec<u8>> {
    let mut emitter = Emitter {
        out: String::new(),
        go_yaml,
        limit_bytes,
        column: 0,
        is_blank_before: true,
        is_line_start: true,
    };
    emitter.node(root, None);
    emitter.indent(0);
    (emitter.out.len() <= limit_bytes).then(|| emitter.out.into_bytes())
}

struct Emitter {
    out: String,
    go_yaml: GoYaml,
    /// The most bytes. Further output is thrown away.
    limit_bytes: usize,
    /// Characters since the last line break.
    column: usize,
    is_blank_before: bool,
    is_line_start: bool,
}

impl Emitter {
    /// `indent` is that of the collection around the node; `None` for the root.
    fn node(&mut self, node: &Node<'_>, indent: Option<usize>) {
        let inner = indent.map_or(0, |indent| indent + INDENT);
        match node {
            Node::Literal(text) => self.plain(text),
            Node::Text(text) => self.text(text, Place::Block, inner),
            Node::Flow(texts) => self.flow(texts, inner),
            Node::Block(items) if items.is_empty() => self.empty("[", "]"),
            Node::Mapping(fields) if fields.is_empty() => self.empty("{", "}"),
            Node::Block(items) => {
                for item in items {
                    self.indent(inner);
                    self.indicator("-", true);
                    self.node(item, Some(inner));
                }
            }
            Node::Mapping(fields) => {
                for (key, value) in fields {
                    self.key(key, inner);
                    self.node(value, Some(inner));
                }
            }
        }
    }

    fn key(&mut self, key: &str, indent: usize) {
        self.indent(indent);
        if scalar::is_simple_key(key) {
            self.text(key, Place::Block, indent + INDENT);
            self.mark(":");
        } else {
            self.indicator("?", true);
            self.text(key, Place::Block, indent + INDENT);
            self.indent(indent);
            self.indicator(":", true);
        }
    }

    fn flow(&mut self, texts: &[&str], indent: usize) {
        self.indicator("[", false);
        self.is_blank_before = true;
        for (index, text) in texts.iter().enumerate() {
            if index > 0 {
                self.mark(",");
            }
            self.text(text, Place::Flow, indent + INDENT);
        }
        self.mark("]");
    }

    fn empty(&mut self, open: &str, close: &str) {
        self.indicator(open, false);
        self.mark(close);
    }

    fn text(&mut self, text: &str, place: Place, indent: usize) {
        match scalar::style(text, place) {
            Style::Plain => self.plain(text),
            Style::Single => self.single(text, indent),
            Style::Double => self.double(text),
            Style::Literal => self.literal(text, indent),
        }
    }

    fn plain(&mut self, text: &str) {
        self.blank();
        text.chars().for_each(|c| self.put(c));
        self.is_blank_before = false;
        self.is_line_start = false;
    }

    fn single(&mut self, text: &str, indent: usize) {
        self.indicator("'", false);
        let mut is_behind_break = false;
        for c in text.chars() {
            if is_break(c) {
                self.line_break(c);
            } else {
                if is_behind_break && c != ' ' {
                    self.indent(indent);
                }
                if c == '\'' {
                    self.put('\'');
                }
                self.put(c);
                self.is_line_start = false;
            }
            is_behind_break = is_break(c);
        }
        self.mark("'");
    }

    fn double(&mut self, text: &str) {
        self.indicator("\"", false);
        // go-yaml looks for the mark at the start of the text, not at the current character.
        let escapes_all = text.starts_with('\u{feff}');
        for c in text.chars() {
            if escapes_all || !is_printable(c) || is_break(c) || matches!(c, '"' | '\\') {
                escape(c).chars().for_each(|c| self.put(c));
            } else {
                self.put(c);
            }
        }
        self.mark("\"");
    }

    /// A literal block: indentation hint when it starts with a blank or break, and a chomping
    /// hint: `-` without a break at the end, `+` with several.
    fn literal(&mut self, text: &str, indent: usize) {
        self.indicator("|", false);
        if text.starts_with(|c| c == ' ' || is_break(c)) {
            self.mark(&INDENT.to_string());
        }
        let mut from_end = text.chars().rev().map(is_break);
        match (from_end.next(), from_end.next()) {
            (Some(true), Some(false)) => {}
            (Some(true), _) => self.mark("+"),
            _ => self.mark("-"),
        }
        match self.go_yaml {
            // A break at the start of the text ends this line, and is lost as such.
            GoYaml::Older => {}
            GoYaml::Newer => self.line_break('\n'),
        }
        self.is_blank_before = true;
        let mut is_behind_break = true;
        for c in text.chars() {
            if is_break(c) {
                self.line_break(c);
            } else {
                if is_behind_break {
                    self.indent(indent);
                }
                self.put(c);
                self.is_line_start = false;
            }
            is_behind_break = is_break(c);
        }
    }

    /// Goes to column `indent` of an empty line.
    fn indent(&mut self, indent: usize) {
        if !self.is_line_start
            || self.column > indent
            || (self.column == indent && !self.is_blank_before)
        {
            self.line_break('\n');
        }
        while self.column < indent {
            self.put(' ');
        }
        self.is_blank_before = true;
    }

    /// An indicator that wants a blank before it. `keeps_line_start` is for `-`, `?` and `:`: a
    /// collection may go on behind them in the same line.
    fn indicator(&mut self, text: &str, keeps_line_start: bool) {
        self.blank();
        let is_line_start = self.is_line_start && keeps_line_start;
        self.mark(text);
        self.is_line_start = is_line_start;
    }

    /// An indicator without a blank before it.
    fn mark(&mut self, text: &str) {
        text.chars().for_each(|c| self.put(c));
        self.is_blank_before = false;
        self.is_line_start = false;
    }

    fn blank(&mut self) {
        if !self.is_blank_before {
            self.put(' ');
        }
    }

    fn line_break(&mut self, c: char) {
        self.push(c);
        self.column = 0;
        self.is_line_start = true;
    }

    fn put(&mut self, c: char) {
        self.push(c);
        self.column += 1;
    }

    fn push(&mut self, c: char) {
        if self.out.len() <= self.limit_bytes {
            self.out.push(c);
        }
    }
}

/// A character in double quotes (YAML 1.1, section 5.5, "Escape Sequences").
fn escape(c: char) -> String {
    let short = match c {
        '\0' => '0',
        '\u{7}' => 'a',
        '\u{8}' => 'b',
        '\t' => 't',
        '\n' => 'n',
        '\u{b}' => 'v',
        '\u{c}' => 'f',
        '\r' => 'r',
        '\u{1b}' => 'e',
        '"' | '\\' => c,
        '\u{85}' => 'N',
        '\u{a0}' => '_',
        '\u{2028}' => 'L',
        '\u{2029}' => 'P',
        _ => {
            return match u32::from(c) {
                code @ ..=0xff => format!("\\x{code:02X}"),
                code @ ..=0xffff => format!("\\u{code:04X}"),
                code => format!("\\U{code:08X}"),
            };
        }
    };
    format!("\\{short}")
}
