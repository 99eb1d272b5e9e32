//! Labels of a ModelKit index, and the choice of an entry by them (modelkit-spec 9.1).
//!
//! A label's value is any JSON value. It is compared as kit shows it: a text without its quotes,
//! anything else as compact JSON with numbers and escapes as written (`gpuArchs=["sm_80"]`).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// The labels of a ModelKit in an index: `quantization=q4_0`, `vramRequirement=6GB`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(BTreeMap<String, String>);

/// The labels of `--label KEY=VALUE`. An entry must have all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(BTreeMap<String, String>);

/// The error for a text that is no label to choose by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a label: {reason}")]
pub struct LabelError {
    /// The text.
    pub text: String,
    /// The fault, and what is expected.
    pub reason: String,
}

impl Labels {
    /// The keys and the values as kit shows them, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl LabelSelector {
    /// Parses `key=value` texts.
    ///
    /// # Errors
    /// Without `=`, with an empty key, and where one key is given twice.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, LabelError> {
        let mut labels = BTreeMap::new();
        for text in texts.iter().map(AsRef::as_ref) {
            let refuse = |reason| LabelError { text: text.to_owned(), reason };
            let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.is_empty()) else {
                return Err(refuse("write KEY=VALUE, for example quantization=q4_0".to_owned()));
            };
            if let Some(value) = labels.insert(key.to_owned(), value.to_owned()) {
                return Err(refuse(format!("`{key}` is `{value}` already, and has one value")));
            }
        }
        Ok(Self(labels))
    }

    /// The keys and values, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether the selector has no labels, so that every entry matches.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `labels` has every label of the selector.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|(key, value)| labels.0.get(key) == Some(value))
    }
}

impl fmt::Display for Labels {
    /// Writes `a=1, b=2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_pairs(&self.0, f)
    }
}

impl fmt::Display for LabelSelector {
    /// Writes `a=1, b=2`, in the same order however the labels were given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_pairs(&self.0, f)
    }
}

fn write_pairs(pairs: &BTreeMap<String, String>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (index, (key, value)) in pairs.iter().enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        write!(f, "{separator}{key}={value}")?;
    }
    Ok(())
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = Option::<BTreeMap<String, Box<RawValue>>>::deserialize(deserializer)?;
        let shown = |(key, value): (String, Box<RawValue>)| (key, shown(value.get()));
        Ok(Self(wire.unwrap_or_default().into_iter().map(shown).collect()))
    }
}

/// A JSON value as kit shows it.
fn shown(json: &str) -> String {
    match serde_json::from_str::<String>(json) {
        Ok(text) => text,
        Err(_) => compact(json),
    }
}

/// Valid JSON without the white space between its tokens, and otherwise as written.
fn compact(json: &str) -> String {
    let mut compact = String::with_capacity(json.len());
    let (mut is_in_text, mut is_escaped) = (false, false);
    for character in json.chars() {
        match character {
            ' ' | '\t' | '\n' | '\r' if !is_in_text => continue,
            '"' if !is_escaped => is_in_text = !is_in_text,
            _ => {}
        }
        is_escaped = character == '\\' && !is_escaped;
        compact.push(character);
    }
    compact
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn labels(json: &str) -> Labels {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn values_are_shown_as_kit_shows_them() {
        let all = labels(
            r#"{"quantization": "q4_0", "targetAccelerator": ["cuda", "metal"],
                "totalParameters": 1.50e9, "text": "a \"b\"", "o": {"a b": [1, null, true]}}"#,
        );
        assert_eq!(
            all.to_string(),
            r#"o={"a b":[1,null,true]}, quantization=q4_0, targetAccelerator=["cuda","metal"], text=a "b", totalParameters=1.50e9"#
        );
        assert!(labels("null").is_empty() && labels("{}").is_empty());
        assert!(serde_json::from_str::<Labels>("[]").is_err());
    }

    #[test]
    fn every_label_must_match_and_no_label_matches_all() {
        let entry = labels(r#"{"a": "1", "b": [1, 2]}"#);
        let selector = |texts: &[&str]| LabelSelector::parse(texts).unwrap();
        assert!(selector(&[]).matches(&entry));
        assert!(selector(&["a=1"]).matches(&entry));
        assert!(selector(&["b=[1,2]", "a=1"]).matches(&entry));
        assert!(!selector(&["a=1", "c=1"]).matches(&entry));
        assert!(!selector(&["a="]).matches(&entry));
        assert_eq!(selector(&["b=x=y", "a="]).to_string(), "a=, b=x=y");
    }

    #[test]
    fn a_text_that_is_no_label_is_refused_with_the_reason() {
        for (texts, words) in [
            (vec!["a"], "KEY=VALUE"),
            (vec![""], "KEY=VALUE"),
            (vec!["=b"], "KEY=VALUE"),
            (vec!["a=1", "a=2"], "`a` is `1` already"),
        ] {
            let error = LabelSelector::parse(&texts).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..4)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn white_space_between_tokens_does_not_count(value in any_json()) {
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(compact(&pretty), value.to_string());
        }
    }
}
