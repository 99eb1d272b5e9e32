//! The Kitfile as YAML, byte for byte as kit writes it with go-yaml v3 (modelkit-spec 2.2).
//!
//! docs/design/004-kitfile-bytes.md gives the reasons for an emitter of our own. The steps:
//!
//! ```text
//! Kitfile --this module: field order, what is left out--> Node --emitter--> bytes
//!                 '-- key_order: maps in parameters        '-- scalar: style, resolve: would it
//!                                                              read as another type, number
//! ```

mod emitter;
mod key_order;
mod number;
mod resolve;
mod scalar;

pub(super) use self::resolve::{is_go_float, is_timestamp};

use super::entry::{Entry, Field, Section};
use super::value::Value;
use super::{GoYaml, Kitfile, Package};

/// A YAML node, in the order in which it is written.
pub(super) enum Node<'a> {
    /// A value that is written as it is: a number, `true`, `null`.
    Literal(String),
    /// A text, in the style that it needs.
    Text(&'a str),
    /// A sequence, one item a line.
    Block(Vec<Node<'a>>),
    /// A sequence of texts on one line.
    Flow(Vec<&'a str>),
    /// A mapping, one key a line.
    Mapping(Vec<(&'a str, Node<'a>)>),
}

/// The bytes of the file `Kitfile`; `None` for more than `limit_bytes`.
pub(super) fn document(kitfile: &Kitfile, go_yaml: GoYaml, limit_bytes: usize) -> Option<Vec<u8>> {
    emitter::emit(&root(kitfile), go_yaml, limit_bytes)
}

fn root(kitfile: &Kitfile) -> Node<'_> {
    let mut fields = vec![("manifestVersion", Node::Text(&kitfile.manifest_version))];
    let package = package(&kitfile.package);
    if !package.is_empty() {
        fields.push(("package", Node::Mapping(package)));
    }
    if let Some(model) = &kitfile.model {
        fields.push(("model", entry(model, &kitfile.parts)));
    }
    for section in Section::LISTS {
        let of_section = kitfile.entries.iter().filter(|entry| entry.section() == section);
        let items: Vec<_> = of_section.map(|item| entry(item, &[])).collect();
        if !items.is_empty() {
            fields.push((section.name(), Node::Block(items)));
        }
    }
    Node::Mapping(fields)
}

fn package(package: &Package) -> Vec<(&str, Node<'_>)> {
    let texts = [
        ("name", &package.name),
        ("version", &package.version),
        ("description", &package.description),
        ("license", &package.license),
    ];
    let present = texts.into_iter().filter(|(_, text)| !text.is_empty());
    let mut fields: Vec<_> = present.map(|(name, text)| (name, Node::Text(text))).collect();
    if !package.authors.is_empty() {
        let authors = package.authors.iter().map(String::as_str).collect();
        fields.push(("authors", Node::Flow(authors)));
    }
    fields
}

fn entry<'a>(entry: &'a Entry, parts: &'a [Entry]) -> Node<'a> {
    let mut fields = Vec::new();
    for &field in entry.section().fields() {
        let node = match field {
            Field::Parts if parts.is_empty() => continue,
            Field::Parts => Node::Block(parts.iter().map(|part| self::entry(part, &[])).collect()),
            Field::Parameters => match entry.parameters() {
                Some(value) => parameters(value),
                None => continue,
            },
            _ => match entry.text(field) {
                "" if !entry.section().always_writes(field) => continue,
                text => Node::Text(text),
            },
        };
        fields.push((field.name(), node));
    }
    Node::Mapping(fields)
}

fn parameters(value: &Value) -> Node<'_> {
    match value {
        Value::Null => Node::Literal("null".into()),
        Value::Bool(value) => Node::Literal(value.to_string()),
        Value::Number(number) => Node::Literal(number::shortest(*number)),
        Value::Text(text) => Node::Text(text),
        Value::List(items) => Node::Block(items.iter().map(parameters).collect()),
        Value::Object(fields) => {
            let keys = key_order::sort(fields.keys().map(String::as_str).collect());
            Node::Mapping(keys.into_iter().map(|key| (key, parameters(&fields[key]))).collect())
        }
    }
}

#[cfg(test)]
mod tests;
