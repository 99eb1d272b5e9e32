//! One pattern of a `.kitignore`.
//!
//! ```text
//! text --no wildcard--> the whole path     `name**` --> its beginning     `**name` --> its end
//!    '-- else --> tokens, matched one character at a time
//! ```

/// A pattern.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    /// Whether it takes files back.
    pub is_exclusion: bool,
    text: Vec<u8>,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// The text is the path.
    Exact,
    /// The path begins with the text before `**`.
    Prefix,
    /// The path ends with the text behind `**`.
    Suffix,
    Tokens(Vec<Token>),
}

#[derive(Clone, Debug)]
enum Token {
    Literal(char),
    /// `?`: one character but `/`.
    Any,
    /// `*`: any number of characters but `/`.
    Star,
    /// `**` at the end: anything but a line break, as Go's `.` has it.
    Rest,
    /// `**` before more: nothing, or anything up to a `/`.
    Folders,
    /// `^`: the start of the path, which Go's regular expressions know.
    Start,
    Class {
        is_negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Pattern {
    /// Parses a cleaned pattern without its `!`.
    pub(super) fn parse(text: &[u8], is_exclusion: bool) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a pattern is missing behind the `!`".to_owned());
        }
        let characters = characters(text);
        let mut parser =
            Parser { rest: &characters, tokens: Vec::new(), detected: Detected::Exact };
        parser.run()?;
        let kind = match parser.detected {
            Detected::Exact => Kind::Exact,
            Detected::Prefix => Kind::Prefix,
            Detected::Suffix => Kind::Suffix,
            Detected::Tokens => Kind::Tokens(parser.tokens),
        };
        Ok(Self { is_exclusion, text: text.to_vec(), kind })
    }

    /// Whether the pattern matches the whole path.
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        match &self.kind {
            Kind::Exact => path == self.text,
            Kind::Prefix => path.starts_with(&self.text[..self.text.len() - 2]),
            Kind::Suffix => {
                let suffix = &self.text[2..];
                path.ends_with(suffix) || suffix.strip_prefix(b"/") == Some(path)
            }
            Kind::Tokens(tokens) => match_tokens(tokens, &characters(path)),
        }
    }
}

/// The kinds that moby tells apart while it reads a pattern.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Detected {
    Exact,
    Prefix,
    Suffix,
    Tokens,
}

struct Parser<'a> {
    rest: &'a [char],
    tokens: Vec<Token>,
    detected: Detected,
}

impl Parser<'_> {
    fn run(&mut self) -> Result<(), String> {
        let mut is_first = true;
        while let Some(character) = self.next() {
            match character {
                '*' if self.rest.first() == Some(&'*') => self.double_star(is_first),
                '*' => self.push(Token::Star),
                '?' => self.push(Token::Any),
                '[' => {
                    let class = self.class()?;
                    self.push(class);
                }
                // A bracket that closes nothing is itself.
                ']' => self.push(Token::Literal(']')),
                '\\' => {
                    let escaped = self.escaped()?;
                    self.push(Token::Literal(escaped));
                }
                '^' => self.tokens.push(Token::Start),
                character => self.tokens.push(Token::Literal(character)),
            }
            is_first = false;
        }
        Ok(())
    }

    fn double_star(&mut self, is_first: bool) {
        self.next();
        if self.rest.first() == Some(&'/') {
            self.next();
        }
        match (self.rest.is_empty(), self.detected) {
            (true, Detected::Exact) => self.detected = Detected::Prefix,
            (true, _) => self.push(Token::Rest),
            (false, _) => self.push(Token::Folders),
        }
        if is_first {
            self.detected = Detected::Suffix;
        }
    }

    /// The class behind `[`.
    fn class(&mut self) -> Result<Token, String> {
        let malformed = || "the class in `[…]` is malformed".to_owned();
        let is_negated = self.rest.first() == Some(&'^');
        if is_negated {
            self.next();
        }
        let mut ranges = Vec::new();
        loop {
            if self.rest.first() == Some(&']') && !ranges.is_empty() {
                self.next();
                return Ok(Token::Class { is_negated, ranges });
            }
            let low = self.class_end()?;
            let high = match self.rest.first() {
                Some('-') => {
                    self.next();
                    self.class_end()?
                }
                _ => low,
            };
            if low > high || self.rest.is_empty() {
                return Err(malformed());
            }
            ranges.push((low, high));
        }
    }

    /// One end of a range.
    fn class_end(&mut self) -> Result<char, String> {
        match self.next() {
            None | Some('-' | ']') => Err("the class in `[…]` is malformed".to_owned()),
            // Go's regular expressions read `[:alpha:]` in it.
            Some('[') if self.rest.first() == Some(&':') => {
                Err("a class of the form `[[:…:]]` is not supported".to_owned())
            }
            // moby rewrites wildcards before it knows of the class.
            Some(wildcard @ ('*' | '?')) => {
                Err(format!("`{wildcard}` in a class needs a backslash before it"))
            }
            Some('\\') => self.escaped(),
            Some(character) => Ok(character),
        }
    }

    /// The character behind a backslash.
    fn escaped(&mut self) -> Result<char, String> {
        match self.next() {
            None => Err("a backslash is its last character".to_owned()),
            // Letters and digits are classes and assertions of Go's regular expressions there.
            Some(character) if character.is_ascii_punctuation() => Ok(character),
            Some(character) => Err(format!(
                "a backslash before `{}` is not supported; write the character alone",
                character.escape_default()
            )),
        }
    }

    fn next(&mut self) -> Option<char> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn push(&mut self, token: Token) {
        self.tokens.push(token);
        self.detected = Detected::Tokens;
    }
}

/// The characters as Go counts them: each byte that is not UTF-8 is U+FFFD.
fn characters(text: &[u8]) -> Vec<char> {
    let mut characters = Vec::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        characters.extend(chunk.valid().chars());
        characters.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    characters
}

/// Whether the tokens match all of the path. The set of reached positions is kept for each token, so the
/// cost is at most the product of both lengths.
fn match_tokens(tokens: &[Token], path: &[char]) -> bool {
    let mut reached = vec![false; path.len() + 1];
    reached[0] = true;
    for token in tokens {
        let mut next = vec![false; path.len() + 1];
        match token {
            Token::Start => next[0] = reached[0],
            Token::Star | Token::Rest => {
                let stops = |c: char| match token {
                    Token::Star => c == '/',
                    _ => c == '\n',
                };
                let mut is_open = false;
                for at in 0..=path.len() {
                    is_open = reached[at] || (is_open && !stops(path[at - 1]));
                    next[at] = is_open;
                }
            }
            Token::Folders => {
                let mut is_open = false;
                for at in 0..=path.len() {
                    is_open &= at == 0 || path[at - 1] != '\n';
                    let is_behind_slash = at > 0 && path[at - 1] == '/';
                    next[at] = reached[at] || (is_open && is_behind_slash);
                    is_open |= reached[at];
                }
            }
            Token::Literal(_) | Token::Any | Token::Class { .. } => {
                for (at, &character) in path.iter().enumerate() {
                    next[at + 1] = reached[at] && matches_one(token, character);
                }
            }
        }
        reached = next;
    }
    reached[path.len()]
}

fn matches_one(token: &Token, character: char) -> bool {
    match token {
        Token::Literal(literal) => *literal == character,
        Token::Any => character != '/',
        Token::Class { is_negated, ranges } => {
            let is_in = ranges.iter().any(|(low, high)| (*low..=*high).contains(&character));
            is_in != *is_negated
        }
        Token::Star | Token::Rest | Token::Folders | Token::Start => false,
    }
}
