//! A YAML document as nodes, bounded in size, depth and the work that aliases cause.
//!
//! `granit-parser` gives events; this module builds the nodes and resolves aliases and merges (`<<`) as
//! go-yaml does. An alias shares the node of its anchor, so the nodes are as many as the file has. Each
//! visit of a node is counted instead: a "billion laughs" file ends at the bound.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use granit_parser::{Event, Parser, ScalarStyle, Tag};

use super::super::KitfileError;

/// The deepest nesting, as for the config blob.
const LEVELS_LIMIT: usize = 64;
/// The most visits of nodes. A Kitfile of 1,000 entries has about 10,000 nodes.
const VISITS_LIMIT: u32 = 500_000;
/// YAML's own types.
const CORE_TAGS: &str = "tag:yaml.org,2002:";

/// A node, with the line it begins on.
#[derive(Debug)]
pub(super) struct Node {
    pub line: usize,
    pub content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    Scalar(Scalar),
    Sequence(Vec<Rc<Node>>),
    Mapping(Vec<(Rc<Node>, Rc<Node>)>),
}

#[derive(Debug)]
pub(super) struct Scalar {
    pub text: String,
    /// Without quotes and not a block: it may be read as a number.
    pub is_plain: bool,
    /// The explicit type: `int` for `!!int`; empty for a type that YAML does not define.
    pub tag: Option<String>,
}

/// The key and the value of a field.
pub(super) type Field<'a> = (&'a Rc<Node>, &'a Rc<Node>);

/// A document, and the count of visits.
pub(super) struct Document {
    root: Rc<Node>,
    visits: Cell<u32>,
}

pub(super) fn at(line: usize, message: impl std::fmt::Display) -> KitfileError {
    KitfileError(format!("line {line}: {message}"))
}

impl Document {
    /// Parses the first document of a text; `None` for a text without any.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, KitfileError> {
        let mut builder = Builder::default();
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| KitfileError(error.to_string()))?;
            if matches!(event, Event::DocumentEnd) {
                break;
            }
            builder.take(event, span.start.line())?;
        }
        Ok(builder.root.map(|root| Self { root, visits: Cell::new(0) }))
    }

    pub(super) fn root(&self) -> &Rc<Node> {
        &self.root
    }

    /// Counts a visit of a node.
    pub(super) fn visit(&self, node: &Node) -> Result<(), KitfileError> {
        let visits = self.visits.get() + 1;
        self.visits.set(visits);
        match visits > VISITS_LIMIT {
            true => Err(at(node.line, "aliases make the file too large")),
            false => Ok(()),
        }
    }

    /// The fields of a mapping, by the text of their keys, with merged ones behind the mapping's own.
    /// Each field is a key node and a value node.
    pub(super) fn fields<'a>(&self, node: &'a Rc<Node>) -> Result<Vec<Field<'a>>, KitfileError> {
        let mut fields: Vec<Field<'a>> = Vec::new();
        let mut known: BTreeMap<&'a str, usize> = BTreeMap::new();
        self.add_fields(node, 0, &mut fields, &mut known)?;
        Ok(fields)
    }

    fn add_fields<'a>(
        &self,
        node: &'a Rc<Node>,
        level: usize,
        fields: &mut Vec<Field<'a>>,
        known: &mut BTreeMap<&'a str, usize>,
    ) -> Result<(), KitfileError> {
        let Content::Mapping(pairs) = &node.content else {
            return Err(at(node.line, "a merge (`<<`) needs a mapping"));
        };
        if level > LEVELS_LIMIT {
            return Err(at(node.line, "merges (`<<`) are nested too deep"));
        }
        self.visit(node)?;
        let mut merges = Vec::new();
        let mut own: BTreeMap<&str, usize> = BTreeMap::new();
        for (key, value) in pairs {
            self.visit(key)?;
            let Content::Scalar(scalar) = &key.content else {
                return Err(at(key.line, "a key must be a text"));
            };
            let is_merge = scalar.text == "<<" && scalar.is_plain && scalar.tag.is_none();
            if is_merge || scalar.tag.as_deref() == Some("merge") {
                merges.push(value);
                continue;
            }
            if let Some(line) = own.insert(&scalar.text, key.line) {
                let message = format!("`{}` is already set on line {line}", scalar.text);
                return Err(at(key.line, message));
            }
            if !known.contains_key(scalar.text.as_str()) {
                known.insert(&scalar.text, key.line);
                fields.push((key, value));
            }
        }
        for merge in merges {
            match &merge.content {
                Content::Sequence(items) => {
                    for item in items {
                        self.add_fields(item, level + 1, fields, known)?;
                    }
                }
                _ => self.add_fields(merge, level + 1, fields, known)?,
            }
        }
        Ok(())
    }
}

/// A collection whose end has not come.
struct Open {
    line: usize,
    anchor: usize,
    is_mapping: bool,
    items: Vec<Rc<Node>>,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
    root: Option<Rc<Node>>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), KitfileError> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_plain = style == ScalarStyle::Plain;
                let scalar =
                    Scalar { text: text.into_owned(), is_plain, tag: tag.as_deref().map(name) };
                self.add(anchor, Node { line, content: Content::Scalar(scalar) });
            }
            Event::SequenceStart(_, anchor, _) | Event::MappingStart(_, anchor, _) => {
                if self.open.len() == LEVELS_LIMIT {
                    let message = format!("it is nested more than {LEVELS_LIMIT} levels deep");
                    return Err(at(line, message));
                }
                let is_mapping = matches!(event, Event::MappingStart(..));
                self.open.push(Open { line, anchor, is_mapping, items: Vec::new() });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else { return Ok(()) };
                let content = match open.is_mapping {
                    false => Content::Sequence(open.items),
                    true => {
                        let (pairs, _) = open.items.as_chunks::<2>();
                        let pair = |[key, value]: &[Rc<Node>; 2]| (key.clone(), value.clone());
                        Content::Mapping(pairs.iter().map(pair).collect())
                    }
                };
                self.add(open.anchor, Node { line: open.line, content });
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(node) => self.place(node),
                None => return Err(at(line, "an alias inside its own anchor")),
            },
            _ => {}
        }
        Ok(())
    }

    fn add(&mut self, anchor: usize, node: Node) {
        let node = Rc::new(node);
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        self.place(node);
    }

    fn place(&mut self, node: Rc<Node>) {
        match self.open.last_mut() {
            Some(open) => open.items.push(node),
            None => self.root = Some(node),
        }
    }
}

fn name(tag: &Tag) -> String {
    let whole = format!("{}{}", tag.handle(), tag.suffix());
    whole.strip_prefix(CORE_TAGS).unwrap_or_default().to_owned()
}
