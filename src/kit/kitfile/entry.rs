//! Entries of a Kitfile, and the table of their fields (modelkit-spec 2).

use super::KitfileError;
use super::value::{Object, Value};
use crate::oci::Digest;

/// A section of the Kitfile that has entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::kit) enum Section {
    Model,
    Parts,
    Code,
    Datasets,
    Docs,
    Prompts,
    McpServers,
}

/// A field of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kit) enum Field {
    Name,
    Path,
    RemotePath,
    RemoteHash,
    License,
    Type,
    Framework,
    Format,
    Version,
    Description,
    /// The parts of the model: entries of their own.
    Parts,
    /// Any JSON.
    Parameters,
}

impl Field {
    /// The field's name in JSON and YAML.
    pub(in crate::kit) fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Path => "path",
            Self::RemotePath => "remotePath",
            Self::RemoteHash => "remoteHash",
            Self::License => "license",
            Self::Type => "type",
            Self::Framework => "framework",
            Self::Format => "format",
            Self::Version => "version",
            Self::Description => "description",
            Self::Parts => "parts",
            Self::Parameters => "parameters",
        }
    }
}

impl Section {
    /// The lists at the root, in the Kitfile's order.
    pub(super) const LISTS: [Self; 5] =
        [Self::Code, Self::Datasets, Self::Docs, Self::Prompts, Self::McpServers];

    /// The section's name in JSON and YAML.
    pub(in crate::kit) fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Parts => "parts",
            Self::Code => "code",
            Self::Datasets => "datasets",
            Self::Docs => "docs",
            Self::Prompts => "prompts",
            Self::McpServers => "mcpServers",
        }
    }

    /// The fields of its entries, in the order in which kit writes them.
    pub(super) fn fields(self) -> &'static [Field] {
        use Field::*;
        match self {
            Self::Model => {
                &[Name, Path, License, Framework, Format, Version, Description, Parts, Parameters]
            }
            Self::Parts => &[Name, Path, License, Type],
            Self::Code => &[Path, Description, License],
            Self::Datasets => {
                &[Name, Path, RemotePath, RemoteHash, Description, License, Parameters]
            }
            Self::Docs => &[Path, Description],
            Self::Prompts | Self::McpServers => &[Name, Path, Description],
        }
    }

    /// Whether kit writes the field even when it is empty.
    pub(super) fn always_writes(self, field: Field) -> bool {
        self == Self::Docs && field == Field::Path
    }

    pub(super) fn decode_list(self, parent: &Object<'_>) -> Result<Vec<Entry>, KitfileError> {
        parent.objects(self.name())?.iter().map(|object| Entry::decode(self, object)).collect()
    }
}

/// One entry of a section.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::kit) struct Entry {
    section: Section,
    /// The fields that are not empty.
    texts: Vec<(Field, String)>,
    parameters: Option<Value>,
    digest: Option<Digest>,
}

impl Entry {
    pub(super) fn decode(section: Section, object: &Object<'_>) -> Result<Self, KitfileError> {
        let mut texts = Vec::new();
        let mut parameters = None;
        for &field in section.fields() {
            match field {
                Field::Parts => {}
                Field::Parameters => parameters = object.value(field.name()).cloned(),
                _ => match object.text(field.name())? {
                    text if text.is_empty() => {}
                    text => texts.push((field, text)),
                },
            }
        }
        let digest =
            match object.text("digest")? {
                text if text.is_empty() => None,
                text => Some(Digest::parse(&text).map_err(|error| {
                    KitfileError(format!("{}: {error}", object.place("digest")))
                })?),
            };
        Ok(Self { section, texts, parameters, digest })
    }

    /// An entry that only has a path.
    pub(super) fn of_path(section: Section, path: &str) -> Self {
        let path = Some((Field::Path, path.to_owned())).filter(|(_, path)| !path.is_empty());
        Self { section, texts: path.into_iter().collect(), parameters: None, digest: None }
    }

    /// An entry with these fields and no layer.
    pub(super) fn of_texts(section: Section, texts: Vec<(Field, String)>) -> Self {
        let texts = texts.into_iter().filter(|(_, text)| !text.is_empty()).collect();
        Self { section, texts, parameters: None, digest: None }
    }

    /// The entry's section.
    pub(in crate::kit) fn section(&self) -> Section {
        self.section
    }

    /// A field that holds a text; empty when it is missing.
    pub(in crate::kit) fn text(&self, field: Field) -> &str {
        let found = self.texts.iter().find(|(name, _)| *name == field);
        found.map_or("", |(_, text)| text)
    }

    /// `parameters`.
    pub(super) fn parameters(&self) -> Option<&Value> {
        self.parameters.as_ref()
    }

    /// The digest of the entry's layer; kits from before v0.5.0 have none.
    pub(in crate::kit) fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The entry as messages name it: ``code `src/` ``.
    pub(in crate::kit) fn title(&self) -> String {
        let name = match self.text(Field::Path) {
            "" => self.text(Field::Name),
            path => path,
        };
        format!("{} `{name}`", self.section.name())
    }
}
