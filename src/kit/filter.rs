//! Filters in kit's own grammar (modelkit-spec 4.1).
#![allow(unused_variables, dead_code)]

use super::KitLayer;

/// One `--filter`: `TYPE[,TYPE…][:NAME[,NAME…]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {}

/// Why a text is not a filter; names the wrong word and the allowed ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a filter: {reason}")]
pub struct FilterError {
    /// The text.
    pub text: String,
    /// What is wrong with it and what is expected.
    pub reason: String,
}

impl Filter {
    /// Parses one filter.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        todo!()
    }
}

/// All filters of a command; a layer is taken when any takes it, or there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters(Vec<Filter>);

impl Filters {
    /// Parses every filter of a command.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, FilterError> {
        todo!()
    }

    /// Whether a layer is taken.
    pub fn takes(&self, layer: &KitLayer) -> bool {
        todo!()
    }

    /// Whether the Kitfile is written.
    pub fn takes_kitfile(&self) -> bool {
        todo!()
    }

    /// The filters that apply to the parent; `None` when the parent is not touched at all.
    pub fn for_parent(&self) -> Option<Self> {
        todo!()
    }
}
