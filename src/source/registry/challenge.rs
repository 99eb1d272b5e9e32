//! `WWW-Authenticate` challenges (RFC 9110, section 11; RFC 6750 for Bearer).
//!
//! ```text
//! WWW-Authenticate = challenge *( "," challenge )
//! challenge        = scheme [ 1*SP ( token68 / parameter *( "," parameter ) ) ]
//! parameter        = token "=" ( token / quoted-string )
//! ```
//!
//! A comma separates both challenges and parameters. A `=` behind the next word shows that the word is the name of
//! a parameter. Pure: text in, challenges out. Text that does not parse ends the list, and the challenges before it
//! count.

/// A method of identification that a server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    /// The scheme in lower case: `bearer`, `basic`.
    pub(super) scheme: String,
    /// Parameters in the order given, names in lower case. A token68 is left out: no scheme that
    /// kitfs speaks has one in a challenge.
    parameters: Vec<(String, String)>,
}

/// The most challenges and parameters that are read. 32: servers send one or two.
const COUNT_LIMIT: usize = 32;

impl Challenge {
    /// Parses the value of one `WWW-Authenticate` header.
    pub(super) fn parse(header: &str) -> Vec<Self> {
        let mut challenges = Vec::new();
        let mut rest = Cursor { text: header };
        rest.skip_separators();
        while let Some(scheme) = rest.token() {
            let mut challenge =
                Self { scheme: scheme.to_ascii_lowercase(), parameters: Vec::new() };
            let ended_well = rest.skip_spaces() == 0 || rest.parameters(&mut challenge.parameters);
            challenges.push(challenge);
            if !ended_well || challenges.len() == COUNT_LIMIT || !rest.skip_separators() {
                break;
            }
        }
        challenges
    }

    /// The value of a parameter; its name is written in lower case.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

struct Cursor<'a> {
    text: &'a str,
}

impl<'a> Cursor<'a> {
    /// Takes a token (RFC 9110, 5.6.2) if one comes next.
    fn token(&mut self) -> Option<&'a str> {
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        let end = self.text.find(|c| !is_token(c)).unwrap_or(self.text.len());
        let (token, rest) = self.text.split_at(end);
        (!token.is_empty()).then(|| {
            self.text = rest;
            token
        })
    }

    /// Skips spaces and tabs, and returns their number.
    fn skip_spaces(&mut self) -> usize {
        let before = self.text.len();
        self.text = self.text.trim_start_matches([' ', '\t']);
        before - self.text.len()
    }

    /// Skips commas and the spaces around them; `false` without a comma.
    fn skip_separators(&mut self) -> bool {
        let before = self.text;
        self.text = self.text.trim_start_matches([' ', '\t', ',']);
        before[..before.len() - self.text.len()].contains(',')
    }

    /// Takes parameters up to the next challenge. False when something does not parse.
    fn parameters(&mut self, into: &mut Vec<(String, String)>) -> bool {
        loop {
            let before = self.text;
            let Some(name) = self.token() else {
                // A token68 with letters that no token has (`/`), or the end of the header.
                self.text = self.text.trim_start_matches(|c| c != ',');
                return true;
            };
            self.skip_spaces();
            let Some(rest) = self.text.strip_prefix('=') else {
                if into.is_empty() && (self.text.is_empty() || self.text.starts_with(',')) {
                    return true; // A token68 without padding.
                }
                if into.is_empty() && self.text.starts_with('/') {
                    self.text = self.text.trim_start_matches(|c| c != ',');
                    return true;
                }
                // The word was the next challenge's scheme; the comma stays with it.
                self.text = before;
                return true;
            };
            self.text = rest;
            self.skip_spaces();
            if into.is_empty() && (self.text.is_empty() || self.text.starts_with([',', '='])) {
                self.text = self.text.trim_start_matches(|c| c != ',');
                return true; // A token68 with padding.
            }
            let Some(value) = self.value() else { return false };
            into.push((name.to_ascii_lowercase(), value));
            let before = self.text;
            if into.len() == COUNT_LIMIT {
                return false;
            }
            if !self.skip_separators() {
                return self.text.is_empty();
            }
            if !self.parameter_follows() {
                self.text = before; // Give the comma back: a challenge follows, or nothing.
                return true;
            }
        }
    }

    /// Whether a word and a `=` come next.
    fn parameter_follows(&self) -> bool {
        let mut ahead = Cursor { text: self.text };
        ahead.token().is_some() && {
            ahead.skip_spaces();
            ahead.text.starts_with('=')
        }
    }

    /// Takes a token or a quoted string (RFC 9110, 5.6.4).
    fn value(&mut self) -> Option<String> {
        let Some(quoted) = self.text.strip_prefix('"') else {
            // Some servers omit the quotes although the value is no token (`realm=https://…`). Then everything up
            // to the comma counts.
            let end = self.text.find([',', ' ', '\t']).unwrap_or(self.text.len());
            let (value, rest) = self.text.split_at(end);
            self.text = rest;
            return (!value.is_empty() && !value.contains('"')).then(|| value.to_owned());
        };
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.text = &quoted[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(characters.next()?.1),
                other => value.push(other),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn challenge(scheme: &str, parameters: &[(&str, &str)]) -> Challenge {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Challenge { scheme: scheme.into(), parameters: parameters.iter().map(own).collect() }
    }

    #[test]
    fn docker_hub() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push",error="invalid_token""#;
        let parsed = Challenge::parse(header);
        assert_eq!(parsed.len(), 1);
        assert_eq!(parsed[0].scheme, "bearer");
        assert_eq!(parsed[0].parameter("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(parsed[0].parameter("scope"), Some("repository:a/b:pull,push"));
        assert_eq!(parsed[0].parameter("error"), Some("invalid_token"));
    }

    #[test]
    fn several_challenges_in_one_header() {
        let parsed = Challenge::parse(
            r#"Negotiate, BASIC Realm = "a \"quoted\", realm" , charset="UTF-8",NTLM dGVzdC8=, Bearer realm=https://x/t"#,
        );
        let expected = [
            challenge("negotiate", &[]),
            challenge("basic", &[("realm", "a \"quoted\", realm"), ("charset", "UTF-8")]),
            challenge("ntlm", &[]),
            challenge("bearer", &[("realm", "https://x/t")]),
        ];
        assert_eq!(parsed, expected);
    }

    #[test]
    fn broken_text_ends_the_list() {
        assert_eq!(Challenge::parse(""), []);
        assert_eq!(Challenge::parse("=, ="), []);
        assert_eq!(Challenge::parse("Basic, \"x\""), [challenge("basic", &[])]);
        let open = Challenge::parse(r#"Basic realm="a", Bearer realm="never closed"#);
        assert_eq!(open[0], challenge("basic", &[("realm", "a")]));
        assert_eq!(open[1..], [challenge("bearer", &[])]);
    }

    fn written(challenge: &Challenge) -> String {
        let quoted = |value: &str| value.replace('\\', r"\\").replace('"', "\\\"");
        let parameters = challenge
            .parameters
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", quoted(value)));
        format!("{} {}", challenge.scheme, parameters.collect::<Vec<_>>().join(", "))
    }

    proptest! {
        #[test]
        fn parsing_returns_what_was_written(
            list in prop::collection::vec(
                ("[a-z][a-z0-9-]{0,8}", prop::collection::vec(("[a-z]{1,8}", "[ -~é]{0,20}"), 1..4)),
                1..4,
            )
        ) {
            let list: Vec<Challenge> = list
                .into_iter()
                .map(|(scheme, parameters)| Challenge { scheme, parameters })
                .collect();
            let header = list.iter().map(written).collect::<Vec<_>>().join(" ,, ");
            prop_assert_eq!(Challenge::parse(&header), list);
        }

        #[test]
        fn any_text_gives_a_bounded_list(header in any::<String>()) {
            let parsed = Challenge::parse(&header);
            prop_assert!(parsed.len() <= COUNT_LIMIT);
            prop_assert!(parsed.iter().all(|one| one.parameters.len() <= COUNT_LIMIT));
        }

        #[test]
        fn separators_in_any_order_do_no_harm(header in r#"[Bb =,"\\/\t]{0,40}"#) {
            Challenge::parse(&header);
        }
    }
}
