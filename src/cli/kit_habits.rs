//! Flags as people who know `kit` type them.
//!
//! kit's boolean flags take `--tls-verify=false`; people write `--tls-verify false` as well, and
//! a flag that took an optional value after a blank would swallow the reference behind it. So
//! exactly the words `true` and `false` behind exactly these flags are joined to them.

use std::ffi::OsString;

/// Boolean flags that kit has too.
const FLAGS: [&str; 2] = ["--tls-verify", "--plain-http"];

/// The same arguments, with `--flag false` written as `--flag=false`.
pub(super) fn translate(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut translated: Vec<OsString> = Vec::new();
    let mut is_flag = false;
    let mut are_over = false;
    for argument in arguments {
        if is_flag && (argument == "true" || argument == "false") {
            let flag = translated.last_mut().expect("a flag came before");
            flag.push("=");
            flag.push(&argument);
            is_flag = false;
            continue;
        }
        are_over |= argument == "--";
        is_flag = !are_over && FLAGS.iter().any(|flag| argument == *flag);
        translated.push(argument);
    }
    translated
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(line: &str) -> String {
        let words = translate(line.split(' ').map(OsString::from));
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        words.join(" ")
    }

    #[test]
    fn values_after_a_blank_are_joined_and_references_are_not() {
        assert_eq!(translated("ls --tls-verify false r/e"), "ls --tls-verify=false r/e");
        assert_eq!(translated("ls --plain-http true r/e"), "ls --plain-http=true r/e");
        for same in [
            "ls --tls-verify r/e",
            "ls --tls-verify=false false",
            "ls -l false",
            "ls -- --plain-http false",
        ] {
            assert_eq!(translated(same), same);
        }
    }
}
