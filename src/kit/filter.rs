//! Filters in kit's own grammar (modelkit-spec 4.1): `TYPE[,TYPE…][:NAME[,NAME…]]`.
//!
//! A filter takes whole layers, never single files. A NAME is compared, byte for byte, with the `name` of a layer's
//! Kitfile entry and with its `path` as written there: `docs:docs/` and `docs:docs` take different layers. An empty
//! NAME is refused as a typing error. (kit lets it stand for entries without a name.)

use std::collections::BTreeSet;
use std::fmt;

use super::{KitLayer, Role};

/// The types that a filter can name, in kit's words and kit's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Kitfile,
    Model,
    Datasets,
    Code,
    Prompts,
    Docs,
    McpServers,
}

const KINDS: [(&str, Kind); 7] = [
    ("kitfile", Kind::Kitfile),
    ("model", Kind::Model),
    ("datasets", Kind::Datasets),
    ("code", Kind::Code),
    ("prompts", Kind::Prompts),
    ("docs", Kind::Docs),
    ("mcpservers", Kind::McpServers),
];

impl Kind {
    fn of(role: Role) -> Self {
        match role {
            Role::Model | Role::ModelPart => Self::Model,
            Role::Code => Self::Code,
            Role::Dataset => Self::Datasets,
            Role::Docs => Self::Docs,
            Role::Prompt => Self::Prompts,
            Role::McpServer => Self::McpServers,
        }
    }

    fn parse(word: &str) -> Result<Self, String> {
        if let Some((_, kind)) = KINDS.iter().find(|(name, _)| *name == word) {
            return Ok(*kind);
        }
        let words: Vec<_> = KINDS.iter().map(|(name, _)| *name).collect();
        Err(format!("`{word}` is not a type; the types are {}", words.join(", ")))
    }
}

/// One `--filter`: `TYPE[,TYPE…][:NAME[,NAME…]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    kinds: Vec<Kind>,
    /// Empty: every name.
    names: Vec<String>,
    /// The filter's number in the command, from 0. A narrowed filter keeps it.
    index: usize,
}

/// Writes the filter as a user types it.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word =
            |kind: &Kind| KINDS.iter().find(|(_, it)| it == kind).map_or("", |(word, _)| word);
        f.write_str(&self.kinds.iter().map(word).collect::<Vec<_>>().join(","))?;
        match self.names.is_empty() {
            true => Ok(()),
            false => write!(f, ":{}", self.names.join(",")),
        }
    }
}

/// The error for a text that is no filter, with the wrong word and the allowed ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a filter: {reason}")]
pub struct FilterError {
    /// The text.
    pub text: String,
    /// The fault, and the expected form.
    pub reason: String,
}

impl Filter {
    /// Parses one filter.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        Self::parse_parts(text).map_err(|reason| FilterError { text: text.to_owned(), reason })
    }

    fn parse_parts(text: &str) -> Result<Self, String> {
        let (kinds, names) = match text.split_once(':') {
            Some((kinds, names)) => (kinds, Some(names)),
            None => (text, None),
        };
        let kinds = kinds.split(',').map(Kind::parse).collect::<Result<_, _>>()?;
        let Some(names) = names else { return Ok(Self { kinds, names: Vec::new(), index: 0 }) };
        if names.contains(':') {
            return Err(
                "it has more than one `:`; TYPE[,TYPE...][:NAME[,NAME...]] is expected".into()
            );
        }
        let names: Vec<_> = names.split(',').map(str::to_owned).collect();
        if names.iter().any(String::is_empty) {
            return Err("a name behind `:` is empty; leave the `:` out to take every name".into());
        }
        Ok(Self { kinds, names, index: 0 })
    }

    fn takes(&self, role: Role, name: Option<&str>, path: Option<&str>) -> bool {
        let is_named = |given: &str| self.names.iter().any(|name| name == given);
        self.kinds.contains(&Kind::of(role))
            && (self.names.is_empty() || [name, path].into_iter().flatten().any(is_named))
    }
}

/// All filters of a command; a layer is taken when any takes it, or there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters(Vec<Filter>);

impl Filters {
    /// Parses every filter of a command.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, FilterError> {
        let filters = texts.iter().enumerate().map(|(index, text)| {
            let filter = Filter::parse(text.as_ref())?;
            Ok(Filter { index, ..filter })
        });
        filters.collect::<Result<_, _>>().map(Self)
    }

    /// The number of filters.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none, so that every layer is taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The filters of these numbers as the user typed them, for messages.
    pub fn shown(&self, indexes: &BTreeSet<usize>) -> String {
        let shown = self.0.iter().filter(|filter| indexes.contains(&filter.index));
        let shown: Vec<_> = shown.map(|filter| format!("--filter `{filter}`")).collect();
        shown.join(" and ")
    }

    /// The numbers of the command's filters that take an entry of the Kitfile.
    pub fn taking(
        &self,
        role: Role,
        name: Option<&str>,
        path: Option<&str>,
    ) -> impl Iterator<Item = usize> {
        let taking = self.0.iter().filter(move |filter| filter.takes(role, name, path));
        taking.map(|filter| filter.index)
    }

    /// The numbers of the command's filters that take the Kitfile.
    pub fn taking_kitfile(&self) -> impl Iterator<Item = usize> {
        let taking = self.0.iter().filter(|filter| filter.kinds.contains(&Kind::Kitfile));
        taking.map(|filter| filter.index)
    }

    /// Whether a layer is taken.
    pub fn takes(&self, layer: &KitLayer) -> bool {
        self.takes_entry(layer.role, layer.entry_name.as_deref(), layer.entry_path.as_deref())
    }

    /// Whether an entry of the Kitfile is taken.
    pub(super) fn takes_entry(&self, role: Role, name: Option<&str>, path: Option<&str>) -> bool {
        self.0.is_empty() || self.0.iter().any(|filter| filter.takes(role, name, path))
    }

    /// Whether the Kitfile is written.
    pub fn takes_kitfile(&self) -> bool {
        self.0.is_empty() || self.0.iter().any(|filter| filter.kinds.contains(&Kind::Kitfile))
    }

    /// The filters for the parent; `None` when nothing of the parent is taken.
    ///
    /// A parent gives its model only (modelkit-spec 4.2): each filter that includes `model` is
    /// narrowed to it and keeps its names; the result never takes the parent's Kitfile.
    pub fn for_parent(&self) -> Option<Self> {
        self.narrowed_to(Kind::Model)
    }

    /// The filters for the kit that a data set's `remotePath` names; `None` when nothing of it is
    /// taken.
    ///
    /// Such a kit gives its data sets only (modelkit-spec 9.2). As with parents, each filter that
    /// includes `datasets` is narrowed to it and keeps its names. The names then stand for that
    /// kit's own data sets.
    pub fn for_remote(&self) -> Option<Self> {
        self.narrowed_to(Kind::Datasets)
    }

    fn narrowed_to(&self, kind: Kind) -> Option<Self> {
        let narrow =
            |names: &[String], index| Filter { kinds: vec![kind], names: names.to_vec(), index };
        if self.0.is_empty() {
            return Some(Self(vec![narrow(&[], 0)]));
        }
        let of_kind = self.0.iter().filter(|filter| filter.kinds.contains(&kind));
        let filters: Vec<_> = of_kind.map(|filter| narrow(&filter.names, filter.index)).collect();
        (!filters.is_empty()).then_some(Self(filters))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kit::Placement;
    use crate::oci::{BlobId, Digest, Encoding};

    fn layer(role: Role, name: Option<&str>, path: &str) -> KitLayer {
        KitLayer {
            blob: BlobId { digest: Digest::of(b""), size: 0 },
            encoding: Encoding::RAW,
            media_type: String::new(),
            role,
            entry_name: name.map(str::to_owned),
            entry_path: Some(path.to_owned()),
            placement: Placement::Tar { below: None },
        }
    }

    fn filters(texts: &[&str]) -> Filters {
        Filters::parse(texts).unwrap()
    }

    #[test]
    fn without_filters_everything_is_taken() {
        let none = filters(&[]);
        assert!(none.takes(&layer(Role::Docs, None, "README.md")));
        assert!(none.takes_kitfile());
    }

    #[test]
    fn a_type_takes_its_roles_and_model_covers_parts() {
        for (text, role) in [
            ("model", Role::Model),
            ("model", Role::ModelPart),
            ("datasets", Role::Dataset),
            ("code", Role::Code),
            ("docs", Role::Docs),
            ("prompts", Role::Prompt),
            ("mcpservers", Role::McpServer),
            ("docs,code", Role::Code),
        ] {
            assert!(filters(&[text]).takes(&layer(role, None, "x")), "{text} {role:?}");
        }
        assert!(!filters(&["code"]).takes(&layer(Role::Prompt, None, "x")));
        assert!(!filters(&["kitfile"]).takes(&layer(Role::Model, None, "x")));
    }

    #[test]
    fn a_name_is_the_entrys_name_or_its_path_as_written() {
        let docs = layer(Role::Docs, None, "docs/");
        assert!(filters(&["docs:docs/"]).takes(&docs));
        assert!(!filters(&["docs:docs"]).takes(&docs));
        let model = layer(Role::Model, Some("base"), "./model");
        assert!(filters(&["model:base"]).takes(&model));
        assert!(filters(&["model:x,./model"]).takes(&model));
        assert!(!filters(&["datasets:base"]).takes(&model));
    }

    #[test]
    fn several_filters_take_what_any_takes() {
        let both = filters(&["docs", "model:a"]);
        assert!(both.takes(&layer(Role::Docs, None, "b")));
        assert!(both.takes(&layer(Role::Model, Some("a"), "b")));
        assert!(!both.takes(&layer(Role::Model, Some("c"), "b")));
        assert!(!both.takes_kitfile());
        assert!(filters(&["docs", "kitfile"]).takes_kitfile());
    }

    #[test]
    fn a_parent_gives_its_model_only() {
        let all = filters(&[]).for_parent().unwrap();
        assert!(all.takes(&layer(Role::ModelPart, None, "x")));
        assert!(!all.takes(&layer(Role::Code, None, "x")));
        assert!(!all.takes_kitfile());
        let named = filters(&["kitfile,model,code:a", "docs"]).for_parent().unwrap();
        assert!(named.takes(&layer(Role::Model, Some("a"), "x")));
        assert!(!named.takes(&layer(Role::Model, Some("b"), "x")));
        assert!(!named.takes_kitfile());
        assert_eq!(named.for_parent().as_ref(), Some(&named));
        assert_eq!(filters(&["docs", "kitfile"]).for_parent(), None);
    }

    #[test]
    fn a_wrong_word_is_named_with_the_right_ones() {
        let error = Filter::parse("model,dataset:a").unwrap_err().to_string();
        assert_eq!(
            error,
            "`model,dataset:a` is not a filter: `dataset` is not a type; the types are kitfile, \
             model, datasets, code, prompts, docs, mcpservers"
        );
        for text in ["", ":a", "model,", "Model", "model:a:b", "model:", "model:a,"] {
            assert_eq!(Filter::parse(text).unwrap_err().text, text);
        }
    }
}
