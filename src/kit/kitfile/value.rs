//! JSON as Go reads it: numbers are 64-bit floats, rounded correctly; the last of equal keys wins.
//!
//! serde_json's own `Value` keeps integers apart and may round a float one bit wrong, which the
//! byte-exact YAML would show. So this module takes the text of each value as it stands, and the
//! standard library parses the numbers. Each level of nesting reads its text once more; the bound
//! on the depth bounds this work too.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::KitfileError;

/// The deepest nesting that is decoded. No Kitfile has more than ten levels. The bound keeps a
/// hostile one from exhausting the stack.
const MOST_LEVELS: usize = 64;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::kit) enum Value {
    Null,
    Bool(bool),
    /// Always finite.
    Number(f64),
    Text(String),
    List(Vec<Value>),
    Object(BTreeMap<String, Value>),
}

impl Value {
    /// Decodes a JSON document.
    pub(super) fn decode(json: &[u8]) -> Result<Self, KitfileError> {
        let raw: &RawValue = serde_json::from_slice(json).map_err(not_json)?;
        Self::parse(raw.get(), 0)
    }

    fn parse(json: &str, level: usize) -> Result<Self, KitfileError> {
        if level > MOST_LEVELS {
            let message = format!("it is nested more than {MOST_LEVELS} levels deep");
            return Err(KitfileError(message));
        }
        Ok(match json.as_bytes().first() {
            Some(b'{') => {
                let fields: BTreeMap<String, &RawValue> =
                    serde_json::from_str(json).map_err(not_json)?;
                let parse =
                    |(key, raw): (String, &RawValue)| Ok((key, Self::parse(raw.get(), level + 1)?));
                Self::Object(fields.into_iter().map(parse).collect::<Result<_, _>>()?)
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(json).map_err(not_json)?;
                let parse = |raw: &RawValue| Self::parse(raw.get(), level + 1);
                Self::List(items.into_iter().map(parse).collect::<Result<_, _>>()?)
            }
            Some(b'"') => Self::Text(serde_json::from_str(json).map_err(not_json)?),
            Some(b't' | b'f') => Self::Bool(json == "true"),
            Some(b'n') => Self::Null,
            _ => match json.parse::<f64>() {
                Ok(number) if number.is_finite() => Self::Number(number),
                _ => {
                    let shown: String = json.chars().take(40).collect();
                    return Err(KitfileError(format!("the number {shown} is too large")));
                }
            },
        })
    }

    fn what(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }

    fn is_not(&self, expected: &str, place: &str) -> KitfileError {
        KitfileError(format!("{place} is {}, and {expected} is expected", self.what()))
    }
}

fn not_json(error: serde_json::Error) -> KitfileError {
    KitfileError(format!("it is not JSON: {error}"))
}

/// An object whose fields are taken by name. Errors give its place in the Kitfile.
///
/// Missing fields, fields that are `null`, and all fields of a `null` are empty.
pub(super) struct Object<'a> {
    fields: Option<&'a BTreeMap<String, Value>>,
    /// The path of the object, `model.parts[3].`; empty for the root.
    prefix: String,
}

impl<'a> Object<'a> {
    /// `value` as an object. The message names `place`.
    pub(super) fn new(value: &'a Value, place: &str) -> Result<Self, KitfileError> {
        Self::at(value, place, String::new())
    }

    fn at(value: &'a Value, place: &str, prefix: String) -> Result<Self, KitfileError> {
        match value {
            Value::Null => Ok(Self { fields: None, prefix }),
            Value::Object(fields) => Ok(Self { fields: Some(fields), prefix }),
            other => Err(other.is_not("an object", place)),
        }
    }

    /// A field as it is; `None` when it is missing or `null`.
    pub(super) fn value(&self, name: &str) -> Option<&'a Value> {
        self.fields?.get(name).filter(|value| **value != Value::Null)
    }

    /// The field's path in the Kitfile, in backquotes.
    pub(super) fn place(&self, name: &str) -> String {
        format!("`{}{name}`", self.prefix)
    }

    /// A field that holds a text.
    pub(super) fn text(&self, name: &str) -> Result<String, KitfileError> {
        match self.value(name) {
            None => Ok(String::new()),
            Some(Value::Text(text)) => Ok(text.clone()),
            Some(other) => Err(other.is_not("a text", &self.place(name))),
        }
    }

    /// A field that holds a list of texts.
    pub(super) fn texts(&self, name: &str) -> Result<Vec<String>, KitfileError> {
        let text = |(index, value): (usize, &Value)| match value {
            Value::Null => Ok(String::new()),
            Value::Text(text) => Ok(text.clone()),
            other => Err(other.is_not("a text", &self.place(&format!("{name}[{index}]")))),
        };
        self.list(name)?.iter().enumerate().map(text).collect()
    }

    /// A field that holds an object; one without fields when it is missing.
    pub(super) fn object(&self, name: &str) -> Result<Self, KitfileError> {
        let empty = || Self { fields: None, prefix: String::new() };
        Ok(self.present_object(name)?.unwrap_or_else(empty))
    }

    /// A field that holds an object; `None` when it is missing.
    pub(super) fn present_object(&self, name: &str) -> Result<Option<Self>, KitfileError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let prefix = format!("{}{name}.", self.prefix);
        Self::at(value, &self.place(name), prefix).map(Some)
    }

    /// A field that holds a list of objects.
    pub(super) fn objects(&self, name: &str) -> Result<Vec<Self>, KitfileError> {
        let object = |(index, value): (usize, &'a Value)| {
            let place = self.place(&format!("{name}[{index}]"));
            Self::at(value, &place, format!("{}{name}[{index}].", self.prefix))
        };
        self.list(name)?.iter().enumerate().map(object).collect()
    }

    fn list(&self, name: &str) -> Result<&'a [Value], KitfileError> {
        match self.value(name) {
            None => Ok(&[]),
            Some(Value::List(items)) => Ok(items),
            Some(other) => Err(other.is_not("a list", &self.place(name))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_of_equal_keys_wins_as_in_go() {
        let value = Value::decode(br#" {"a":1,"b":2,"a":"x"} "#).unwrap();
        let Value::Object(fields) = value else { panic!("{value:?}") };
        assert_eq!(fields["a"], Value::Text("x".into()));
    }

    #[test]
    fn integers_are_rounded_as_floats() {
        assert_eq!(Value::decode(b"9007199254740993").unwrap(), Value::Number(9007199254740992.0));
        assert_eq!(Value::decode(b"-0").unwrap(), Value::Number(0.0));
    }

    proptest! {
        #[test]
        fn floats_are_exact(number in prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL) {
            let json = format!("{number:e}");
            prop_assert_eq!(Value::decode(json.as_bytes()).unwrap(), Value::Number(number));
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(json in "[\\[\\]{}\",:0-9a-z \\\\.-]{0,60}") {
            let _ = Value::decode(json.as_bytes());
        }
    }
}
