//! Flags in the form that users of `kit` type.
//!
//! kit has boolean flags with values, `--tls-verify=false`, and people also write `--tls-verify
//! false`. clap's optional values after a blank would swallow the reference after the flag. So only
//! the words `true` and `false` after these flags are joined to the flag.

use std::ffi::OsString;

/// Boolean flags of kit.
const FLAGS: [&str; 2] = ["--tls-verify", "--plain-http"];

/// Rewrites `--flag false` to `--flag=false`.
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
    fn true_and_false_are_joined_to_their_flag_and_references_are_not() {
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
