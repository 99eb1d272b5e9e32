//! Members of a gzip blob, one behind the other.
//!
//! ```text
//! Start --first byte--> Member --its trailer--> Border --1f--> Member
//!                                                  '----00--> Padding (zeros to the end)
//! ```

use super::inflate::{Inflater, Step};

/// The first byte of a member (RFC 1952, 2.3.1, ID1).
const MEMBER_START: u8 = 0x1f;

/// Decodes any number of members.
pub(super) struct GzipDecoder {
    inflater: Inflater,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    Member,
    Border,
    Padding,
}

impl GzipDecoder {
    pub(super) fn new() -> Self {
        Self { inflater: Inflater::new(), state: State::Start }
    }

    /// As [`super::Decoder::decode`].
    pub(super) fn decode(
        &mut self,
        compressed: &mut &[u8],
        output: &mut [u8],
    ) -> Result<usize, String> {
        match self.state {
            State::Start | State::Border if compressed.is_empty() => return Ok(0),
            State::Start => self.state = State::Member,
            State::Border if compressed[0] == MEMBER_START => {
                self.inflater.reset();
                self.state = State::Member;
            }
            // Tapes and block devices pad with zeros. gzip passes such padding over too.
            State::Border | State::Padding => {
                self.state = State::Padding;
                let zeros = compressed.iter().take_while(|&&byte| byte == 0).count();
                *compressed = &compressed[zeros..];
                return match compressed.is_empty() {
                    true => Ok(0),
                    false => {
                        Err("bytes follow the last member that are neither a member nor zeros"
                            .to_owned())
                    }
                };
            }
            State::Member => {}
        }
        let (written, step) = self.inflater.inflate(compressed, output)?;
        if step == Step::MemberEnd {
            self.state = State::Border;
        }
        Ok(written)
    }

    /// Whether the bytes so far end where a blob may end.
    pub(super) fn is_at_border(&self) -> bool {
        matches!(self.state, State::Border | State::Padding)
    }
}
