//! JSON as Go's `encoding/json` writes it, for the config blob (modelkit-spec 1.4).
//!
//! The bytes decide the config's digest: keys of maps are sorted, `<`, `>` and `&` are escaped, and a
//! float has an exponent below 1e-6 and from 1e21 on.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A value of `parameters`. Integers and floats are told apart, as in Go.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    /// From the least signed to the largest unsigned 64-bit number.
    Integer(i128),
    /// Always finite.
    Float(f64),
    Text(String),
    List(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

impl Json {
    pub(super) fn write(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Integer(number) => write!(out, "{number}").expect("a String grows"),
            Self::Float(number) => write_float(*number, out),
            Self::Text(text) => write_text(text, out),
            Self::List(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    item.write(out);
                }
                out.push(']');
            }
            Self::Object(fields) => {
                let mut object = ObjectWriter::begin(out);
                for (key, value) in fields {
                    value.write(object.key(key));
                }
                object.end();
            }
        }
    }
}

/// Writes an object, one field after the other.
pub(super) struct ObjectWriter<'a> {
    out: &'a mut String,
    is_empty: bool,
}

impl<'a> ObjectWriter<'a> {
    pub(super) fn begin(out: &'a mut String) -> Self {
        out.push('{');
        Self { out, is_empty: true }
    }

    /// Writes a key. The caller appends the value to the text that comes back.
    pub(super) fn key(&mut self, key: &str) -> &mut String {
        if !self.is_empty {
            self.out.push(',');
        }
        self.is_empty = false;
        write_text(key, self.out);
        self.out.push(':');
        self.out
    }

    pub(super) fn text(&mut self, key: &str, text: &str) {
        write_text(text, self.key(key));
    }

    /// Writes a list of texts.
    pub(super) fn texts(&mut self, key: &str, texts: &[String]) {
        let texts = texts.iter().map(|text| Json::Text(text.clone())).collect();
        Json::List(texts).write(self.key(key));
    }

    pub(super) fn end(self) {
        self.out.push('}');
    }
}

/// Writes a text with Go's escapes.
pub(super) fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                write!(out, "\\u{:04x}", u32::from(character)).expect("a String grows");
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

fn write_float(number: f64, out: &mut String) {
    let size = number.abs();
    if size != 0.0 && !(1e-6..1e21).contains(&size) {
        let text = format!("{number:e}");
        let (mantissa, exponent) = text.split_once('e').expect("the notation has an exponent");
        let sign = if exponent.starts_with('-') { "" } else { "+" };
        out.push_str(&format!("{mantissa}e{sign}{exponent}"));
    } else {
        write!(out, "{number}").expect("a String grows");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(json: &Json) -> String {
        let mut out = String::new();
        json.write(&mut out);
        out
    }

    #[test]
    fn numbers_and_texts_are_gos_bytes() {
        for (number, expected) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (0.95, "0.95"),
            (1e6, "1000000"),
            (1e-6, "0.000001"),
            (1e-7, "1e-7"),
            (1.5e-9, "1.5e-9"),
            (1e20, "100000000000000000000"),
            (1e21, "1e+21"),
            (-1.25e300, "-1.25e+300"),
        ] {
            assert_eq!(written(&Json::Float(number)), expected);
        }
        let text = Json::Text("<a&b>\"\\\n\t\u{1}\u{8}\u{7f}\u{2028}é🚀".to_owned());
        let expected = "\"\\u003ca\\u0026b\\u003e\\\"\\\\\\n\\t\\u0001\\b\u{7f}\\u2028é🚀\"";
        assert_eq!(written(&text), expected);
        assert_eq!(written(&Json::Integer(i128::from(u64::MAX))), "18446744073709551615");
    }

    fn values() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::Bool),
            any::<i64>().prop_map(|number| Json::Integer(number.into())),
            prop::num::f64::NORMAL.prop_map(Json::Float),
            ".{0,6}".prop_map(Json::Text),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Json::List),
                prop::collection::btree_map(".{0,3}", inner, 0..4).prop_map(Json::Object),
            ]
        })
    }

    proptest! {
        #[test]
        fn written_json_has_the_same_value(json in values()) {
            let text = written(&json);
            let read = super::super::value::Value::decode(text.as_bytes()).unwrap();
            prop_assert_eq!(read, as_value(&json));
        }
    }

    fn as_value(json: &Json) -> super::super::value::Value {
        use super::super::value::Value;
        match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Integer(number) => Value::Number(*number as f64),
            Json::Float(number) => Value::Number(*number),
            Json::Text(text) => Value::Text(text.clone()),
            Json::List(items) => Value::List(items.iter().map(as_value).collect()),
            Json::Object(fields) => Value::Object(
                fields.iter().map(|(key, value)| (key.clone(), as_value(value))).collect(),
            ),
        }
    }
}
