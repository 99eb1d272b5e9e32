//! The Kitfile as its author writes it, and the config blob that a packer makes of it.
//!
//! ```text
//! YAML --nodes (bounded)--> fields by name, strictly --check--> AuthoredKitfile
//!                                              with the digests of layers --> config blob, as Go writes it
//! ```
//!
//! kit reads the file with go-yaml: an unknown field, a field that is set twice and a text where a list
//! belongs are errors; any scalar is a text where a text belongs. This module does the same, and every
//! error names its line.

mod check;
mod nodes;
mod scalars;

use std::rc::Rc;

pub(in crate::kit) use self::check::is_reference;
use self::nodes::{Content, Document, Node, at};
use super::entry::{Entry, Field, Section};
use super::json::{Json, ObjectWriter};
use super::{KITFILE_LIMIT_BYTES, KitfileError, Package};
use crate::oci::{DiffId, Digest};

/// A Kitfile that somebody wrote, to pack files by it.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthoredKitfile {
    manifest_version: String,
    package: Package,
    has_model: bool,
    /// In the order in which kit packs: the model, its parts, code, data sets, docs, prompts, MCP servers.
    entries: Vec<AuthoredEntry>,
}

/// An entry, and its parameters with integers as they were written.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::kit) struct AuthoredEntry {
    pub(in crate::kit) entry: Entry,
    parameters: Option<Json>,
    line: usize,
}

/// The digests of the layer that an entry became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerDigests {
    /// Of the blob as stored.
    pub digest: Digest,
    /// Of the uncompressed archive or file.
    pub diff_id: DiffId,
}

impl AuthoredKitfile {
    /// Reads a Kitfile.
    ///
    /// # Errors
    /// Fails if the file is too large or too deep, is not the YAML that kit reads, or if its paths cannot be
    /// packed: absolute, outside the folder, or the same twice.
    pub fn parse(yaml: &[u8]) -> Result<Self, KitfileError> {
        if yaml.len() > KITFILE_LIMIT_BYTES {
            return Err(KitfileError(format!(
                "it has {} bytes, and {KITFILE_LIMIT_BYTES} are the limit",
                yaml.len()
            )));
        }
        let text = std::str::from_utf8(yaml)
            .map_err(|error| KitfileError(format!("it is not UTF-8: {error}")))?;
        let document = Document::parse(text.strip_prefix('\u{feff}').unwrap_or(text))?;
        let Some(document) = document else {
            return Err(KitfileError(
                "it is empty; its first line is `manifestVersion: 1.0.0`".into(),
            ));
        };
        let kitfile = Reader { document: &document }.kitfile()?;
        check::check(&kitfile)?;
        Ok(kitfile)
    }

    /// Remarks for the author: what kit accepts, and probably is not meant.
    pub fn warnings(&self) -> Vec<String> {
        let version = &self.manifest_version;
        match version.as_str() {
            "1.0.0" | "1.0" => Vec::new(),
            _ => vec![format!(
                "the Kitfile's manifestVersion is `{}`; the only version is 1.0.0",
                super::super::shown(version)
            )],
        }
    }

    pub(in crate::kit) fn entries(&self) -> &[AuthoredEntry] {
        &self.entries
    }

    /// The number of its entries.
    pub fn entry_count(&self) -> usize {
        self.entries.len()
    }

    /// `model.path`, where that is a reference to another kit (modelkit-spec 2.1).
    pub fn parent(&self) -> Option<&str> {
        let model = self.entries.iter().find(|it| it.entry.section() == Section::Model)?;
        Some(model.entry.text(Field::Path)).filter(|path| is_reference(path))
    }

    /// The cleaned paths of the entries.
    pub fn layer_paths(&self) -> Vec<Vec<u8>> {
        let paths = self.entries.iter().map(|it| it.entry.text(Field::Path).as_bytes());
        paths.map(super::super::ignore::clean_path).collect()
    }

    /// The config of a ModelPack, as kit fills it from a Kitfile (modelkit-spec 6). `created` is RFC 3339.
    pub fn model_pack_config(&self, created: &str, diff_ids: &[Digest]) -> Vec<u8> {
        let Package { name, version, description, license, authors } = &self.package;
        let mut licenses: Vec<String> = vec![license.clone()];
        licenses.extend(self.entries.iter().map(|it| it.entry.text(Field::License).to_owned()));
        licenses.retain(|license| !license.is_empty());
        licenses.sort();
        licenses.dedup();
        let mut out = String::new();
        let mut root = ObjectWriter::begin(&mut out);
        let mut descriptor = ObjectWriter::begin(root.key("descriptor"));
        descriptor.text("createdAt", created);
        if !authors.is_empty() {
            descriptor.texts("authors", authors);
        }
        let text = |object: &mut ObjectWriter<'_>, key: &str, text: &str| {
            if !text.is_empty() {
                object.text(key, text);
            }
        };
        text(&mut descriptor, "name", name);
        text(&mut descriptor, "version", version);
        if !licenses.is_empty() {
            descriptor.texts("licenses", &licenses);
        }
        text(&mut descriptor, "title", name);
        text(&mut descriptor, "description", description);
        descriptor.end();
        let mut layers = ObjectWriter::begin(root.key("modelfs"));
        layers.text("type", "layers");
        let diff_ids: Vec<_> = diff_ids.iter().map(ToString::to_string).collect();
        layers.texts("diffIds", &diff_ids);
        layers.end();
        let mut config = ObjectWriter::begin(root.key("config"));
        let model = self.entries.iter().find(|it| it.entry.section() == Section::Model);
        text(&mut config, "format", model.map_or("", |it| it.entry.text(Field::Format)));
        config.end();
        root.end();
        out.into_bytes()
    }

    /// The config blob. `layers` has the digests for each entry in order; `None` for one without a layer.
    pub fn config(&self, layers: &[Option<LayerDigests>]) -> Vec<u8> {
        assert_eq!(layers.len(), self.entries.len(), "each entry has its place");
        let with_layers: Vec<_> = self.entries.iter().zip(layers).collect();
        let mut out = String::new();
        let mut root = ObjectWriter::begin(&mut out);
        root.text("manifestVersion", &self.manifest_version);
        self.write_package(root.key("package"));
        let of = |section| {
            let is_of = move |(entry, _): &&(&AuthoredEntry, _)| entry.entry.section() == section;
            with_layers.iter().filter(is_of).copied().collect::<Vec<_>>()
        };
        if self.has_model {
            let model = of(Section::Model);
            let (entry, layer) = model.first().expect("a model is an entry");
            write_entry(entry, layer.as_ref(), &of(Section::Parts), root.key("model"));
        }
        for section in Section::LISTS {
            let entries = of(section);
            if !entries.is_empty() {
                write_list(&entries, root.key(section.name()));
            }
        }
        root.end();
        out.into_bytes()
    }

    fn write_package(&self, out: &mut String) {
        let Package { name, version, description, license, authors } = &self.package;
        let mut object = ObjectWriter::begin(out);
        let texts = [
            ("name", name),
            ("version", version),
            ("description", description),
            ("license", license),
        ];
        for (key, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            object.text(key, text);
        }
        if !authors.is_empty() {
            object.texts("authors", authors);
        }
        object.end();
    }
}

type WithLayer<'a> = (&'a AuthoredEntry, &'a Option<LayerDigests>);

fn write_list(entries: &[WithLayer<'_>], out: &mut String) {
    out.push('[');
    for (index, (entry, layer)) in entries.iter().enumerate() {
        out.push_str(if index > 0 { "," } else { "" });
        write_entry(entry, layer.as_ref(), &[], out);
    }
    out.push(']');
}

fn write_entry(
    authored: &AuthoredEntry,
    layer: Option<&LayerDigests>,
    parts: &[WithLayer<'_>],
    out: &mut String,
) {
    let entry = &authored.entry;
    let mut object = ObjectWriter::begin(out);
    for &field in entry.section().fields() {
        match field {
            Field::Parts if parts.is_empty() => {}
            Field::Parts => write_list(parts, object.key(field.name())),
            Field::Parameters => {
                if let Some(parameters) = &authored.parameters {
                    parameters.write(object.key(field.name()));
                }
            }
            _ => match entry.text(field) {
                "" if !entry.section().always_writes(field) => {}
                text => object.text(field.name(), text),
            },
        }
    }
    if let Some(LayerDigests { digest, diff_id }) = layer {
        object.text("digest", &digest.to_string());
        object.text("diffId", &diff_id.0.to_string());
    }
    object.end();
}

/// A field: its name, its key and its value.
type NamedField<'a> = (&'a str, &'a Rc<Node>, &'a Rc<Node>);

/// Reads fields out of nodes.
struct Reader<'a> {
    document: &'a Document,
}

impl<'a> Reader<'a> {
    fn kitfile(&self) -> Result<AuthoredKitfile, KitfileError> {
        let root = self.document.root();
        let mut kitfile = AuthoredKitfile {
            manifest_version: String::new(),
            package: Package::default(),
            has_model: false,
            entries: Vec::new(),
        };
        let mut sections: Vec<(Section, Vec<AuthoredEntry>)> = Vec::new();
        for (name, key, value) in self.fields(root, "the Kitfile")? {
            match name {
                "manifestVersion" => kitfile.manifest_version = self.text(value)?,
                "package" => kitfile.package = self.package(value)?,
                "model" if self.is_nothing(value) => {}
                "model" => {
                    kitfile.has_model = true;
                    let mut parts = Vec::new();
                    let model = self.entry(Section::Model, value, &mut parts)?;
                    sections.push((Section::Model, vec![model]));
                    sections.push((Section::Parts, parts));
                }
                _ => match Section::LISTS.into_iter().find(|section| section.name() == name) {
                    Some(section) => sections.push((section, self.entries(section, value)?)),
                    None => {
                        let lists = Section::LISTS.map(Section::name).join(", ");
                        let known = format!("manifestVersion, package, model, {lists}");
                        return Err(unknown(name, key, "the Kitfile", &known));
                    }
                },
            }
        }
        sections.sort_by_key(|(section, _)| *section as u8);
        kitfile.entries = sections.into_iter().flat_map(|(_, entries)| entries).collect();
        Ok(kitfile)
    }

    fn package(&self, node: &'a Rc<Node>) -> Result<Package, KitfileError> {
        let mut package = Package::default();
        for (name, key, value) in self.fields(node, "`package`")? {
            match name {
                "name" => package.name = self.text(value)?,
                "version" => package.version = self.text(value)?,
                "description" => package.description = self.text(value)?,
                "license" => package.license = self.text(value)?,
                "authors" => {
                    let items = self.items(value)?;
                    package.authors =
                        items.iter().map(|item| self.text(item)).collect::<Result<_, _>>()?;
                }
                _ => {
                    let known = "name, version, description, license, authors";
                    return Err(unknown(name, key, "`package`", known));
                }
            }
        }
        Ok(package)
    }

    fn entries(
        &self,
        section: Section,
        node: &'a Rc<Node>,
    ) -> Result<Vec<AuthoredEntry>, KitfileError> {
        let items = self.items(node)?;
        items.iter().map(|item| self.entry(section, item, &mut Vec::new())).collect()
    }

    fn entry(
        &self,
        section: Section,
        node: &'a Rc<Node>,
        parts: &mut Vec<AuthoredEntry>,
    ) -> Result<AuthoredEntry, KitfileError> {
        let mut texts = Vec::new();
        let mut parameters = None;
        let place = format!("an entry of `{}`", section.name());
        for (name, key, value) in self.fields(node, &place)? {
            let known = section.fields();
            match known.iter().find(|field| field.name() == name) {
                Some(Field::Parts) => *parts = self.entries(Section::Parts, value)?,
                Some(Field::Parameters) => {
                    parameters = Some(self.json(value)?).filter(|json| *json != Json::Null);
                }
                Some(&field) => texts.push((field, self.text(value)?)),
                None => {
                    let known: Vec<_> = known.iter().map(|field| field.name()).collect();
                    return Err(unknown(name, key, &place, &known.join(", ")));
                }
            }
        }
        Ok(AuthoredEntry { entry: Entry::of_texts(section, texts), parameters, line: node.line })
    }

    /// The fields of a mapping; none for a null.
    fn fields(&self, node: &'a Rc<Node>, place: &str) -> Result<Vec<NamedField<'a>>, KitfileError> {
        if self.is_nothing(node) {
            return Ok(Vec::new());
        }
        let Content::Mapping(_) = &node.content else {
            return Err(at(
                node.line,
                format!("{place} is {}, and fields are expected", what(node)),
            ));
        };
        let named = |(key, value): (&'a Rc<Node>, &'a Rc<Node>)| match &key.content {
            Content::Scalar(scalar) => Ok((scalar.text.as_str(), key, value)),
            _ => Err(at(key.line, "a key must be a text")),
        };
        self.document.fields(node)?.into_iter().map(named).collect()
    }

    fn items(&self, node: &'a Rc<Node>) -> Result<&'a [Rc<Node>], KitfileError> {
        self.document.visit(node)?;
        match &node.content {
            Content::Sequence(items) => Ok(items),
            _ if self.is_nothing(node) => Ok(&[]),
            _ => Err(at(node.line, format!("{} stands where a list is expected", what(node)))),
        }
    }

    fn text(&self, node: &Rc<Node>) -> Result<String, KitfileError> {
        self.document.visit(node)?;
        match &node.content {
            Content::Scalar(scalar) => scalars::text(scalar).map_err(|error| at(node.line, error)),
            _ => Err(at(node.line, format!("{} stands where a text is expected", what(node)))),
        }
    }

    fn json(&self, node: &'a Rc<Node>) -> Result<Json, KitfileError> {
        self.document.visit(node)?;
        Ok(match &node.content {
            Content::Scalar(scalar) => {
                scalars::value(scalar).map_err(|error| at(node.line, error))?
            }
            Content::Sequence(items) => {
                Json::List(items.iter().map(|item| self.json(item)).collect::<Result<_, _>>()?)
            }
            Content::Mapping(_) => {
                let mut fields = std::collections::BTreeMap::new();
                for (key, value) in self.document.fields(node)? {
                    let Content::Scalar(scalar) = &key.content else {
                        return Err(at(key.line, "a key must be a text"));
                    };
                    if !matches!(scalars::value(scalar), Ok(Json::Text(text)) if text == scalar.text)
                    {
                        let message = format!(
                            "the key `{}` is not a text, and JSON needs texts: put it into quotes",
                            scalar.text
                        );
                        return Err(at(key.line, message));
                    }
                    fields.insert(scalar.text.clone(), self.json(value)?);
                }
                Json::Object(fields)
            }
        })
    }

    fn is_nothing(&self, node: &Node) -> bool {
        matches!(&node.content, Content::Scalar(scalar) if scalars::is_nothing(scalar))
    }
}

fn unknown(name: &str, key: &Node, place: &str, known: &str) -> KitfileError {
    let name = super::super::shown(name);
    at(key.line, format!("{place} has no field `{name}`; the fields are {known}"))
}

fn what(node: &Node) -> &'static str {
    match node.content {
        Content::Scalar(_) => "a single value",
        Content::Sequence(_) => "a list",
        Content::Mapping(_) => "a mapping",
    }
}

#[cfg(test)]
mod tests;
