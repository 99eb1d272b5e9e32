//! The style of a text: plain, quoted or a block.
//!
//! YAML forbids some texts in some styles. Like go-yaml, this module starts with a preferred style
//! and falls back from there. [`Analysis`] is the result of one pass over a text.

use super::resolve;

/// The style of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Single,
    Double,
    /// A literal block: `|`.
    Literal,
}

/// The place of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// As a key, value or item of a block.
    Block,
    /// Between `[` and `]`.
    Flow,
}

/// The style that go-yaml chooses for `text`.
pub(super) fn style(text: &str, place: Place) -> Style {
    let analysis = Analysis::of(text);
    if text.contains('\n') {
        let can_be_block = place == Place::Block && analysis.block_allowed;
        return if can_be_block { Style::Literal } else { Style::Double };
    }
    let plain_allowed = match place {
        Place::Flow => analysis.flow_plain_allowed,
        Place::Block => analysis.block_plain_allowed,
    };
    if resolve::is_other_type(text) {
        Style::Double
    } else if plain_allowed {
        Style::Plain
    } else if analysis.single_allowed {
        Style::Single
    } else {
        Style::Double
    }
}

/// Whether a text can be a key on one line with its value. Other keys are written behind `?`.
pub(super) fn is_simple_key(text: &str) -> bool {
    /// go-yaml's limit; YAML readers must accept simple keys of up to 1,024 characters.
    const MOST_KEY_BYTES: usize = 128;
    text.len() <= MOST_KEY_BYTES && !text.contains(is_break)
}

/// Line breaks of YAML 1.1.
pub(super) fn is_break(c: char) -> bool {
    matches!(c, '\r' | '\n' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Whether go-yaml writes a character without an escape. It escapes everything outside the basic
/// plane.
pub(super) fn is_printable(c: char) -> bool {
    matches!(c, '\n' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}')
        && c != '\u{feff}'
}

/// The result of one pass over a text.
#[derive(Debug)]
struct Analysis {
    flow_plain_allowed: bool,
    block_plain_allowed: bool,
    single_allowed: bool,
    block_allowed: bool,
}

impl Analysis {
    fn of(text: &str) -> Self {
        let indicators = Indicators::of(text);
        let has = |pattern: fn(char) -> bool| text.contains(pattern);
        let ends = |pattern: fn(char) -> bool| text.starts_with(pattern) || text.ends_with(pattern);
        let has_break = has(is_break);
        let has_special = has(|c| c != '\t' && !is_printable(c));
        let pairs = || text.chars().zip(text.chars().skip(1));
        let space_then_break = pairs().any(|(a, b)| a == ' ' && is_break(b));
        let break_then_space = pairs().any(|(a, b)| is_break(a) && b == ' ');
        let single_allowed =
            !break_then_space && !space_then_break && !has_special && !text.contains('\t');
        let plain_allowed = single_allowed && !has_break && !ends(|c| c == ' ');
        Self {
            flow_plain_allowed: plain_allowed && !indicators.flow,
            block_plain_allowed: plain_allowed && !indicators.block,
            single_allowed,
            block_allowed: !text.ends_with(' ') && !space_then_break && !has_special,
        }
    }
}

/// Whether a plain text would be taken for a piece of YAML, in a flow or in a block.
struct Indicators {
    flow: bool,
    block: bool,
}

impl Indicators {
    fn of(text: &str) -> Self {
        let marks_document = text.starts_with("---") || text.starts_with("...");
        let mut found = Self { flow: marks_document, block: marks_document };
        let mut before = None;
        let mut characters = text.chars().peekable();
        while let Some(c) = characters.next() {
            let is_last_or_before_blank = characters.peek().is_none_or(|c| matches!(c, ' ' | '\t'));
            let is_behind_blank = before.is_none_or(|c| matches!(c, ' ' | '\t') || is_break(c));
            let (flow, block) = match (c, before) {
                ('#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>', None)
                | ('\'' | '"' | '%' | '@' | '`', None) => (true, true),
                ('?' | ':', None) | (':', Some(_)) => (true, is_last_or_before_blank),
                ('-', None) => (is_last_or_before_blank, is_last_or_before_blank),
                (',' | '?' | '[' | ']' | '{' | '}', Some(_)) => (true, false),
                ('#', Some(_)) => (is_behind_blank, is_behind_blank),
                _ => (false, false),
            };
            found.flow |= flow;
            found.block |= block;
            before = Some(c);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_style_depends_on_the_text_and_its_place() {
        use Place::{Block, Flow};
        use Style::{Double, Literal, Plain, Single};
        for (text, place, expected) in [
            ("it's", Block, Plain),
            ("a#b", Block, Plain),
            ("a #b", Block, Single),
            ("a, b", Block, Plain),
            ("a, b", Flow, Single),
            ("a:b", Block, Plain),
            ("a:b", Flow, Single),
            ("a: b", Block, Single),
            ("- dash", Block, Single),
            ("-dash", Flow, Plain),
            ("?", Block, Single),
            ("?x", Block, Plain),
            ("?x", Flow, Single),
            ("---x", Block, Single),
            (" lead", Block, Single),
            ("trail ", Block, Single),
            ("a\tb", Block, Double),
            ("\t", Block, Double),
            ("", Block, Double),
            ("yes", Block, Double),
            ("a\nb", Block, Literal),
            ("a\n", Block, Literal),
            ("\n", Block, Literal),
            ("a\tb\nc", Block, Literal),
            ("a \nb", Block, Double),
            ("a\nb ", Block, Double),
            ("a\nb", Flow, Double),
            ("a\nb\u{1f680}", Block, Double),
            ("a\r\nb", Block, Double),
            ("a\u{2028}b", Block, Single),
            ("日本語", Flow, Plain),
            ("\u{1f680}", Block, Double),
            ("\u{7f}", Block, Double),
        ] {
            assert_eq!(style(text, place), expected, "{text:?} {place:?}");
        }
    }

    #[test]
    fn long_and_multiline_keys_are_not_simple() {
        assert!(is_simple_key(&"k".repeat(128)));
        assert!(!is_simple_key(&"k".repeat(129)));
        assert!(!is_simple_key(&"é".repeat(65)));
        assert!(!is_simple_key("a\nb"));
    }
}
