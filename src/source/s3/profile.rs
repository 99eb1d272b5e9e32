//! The files of the AWS tools: `~/.aws/credentials` and `~/.aws/config` (AWS SDKs and Tools
//! Reference Guide, "Shared config and credentials files"). Pure: text in, settings out.
//!
//! ```text
//! [default]                        credentials: [NAME]
//! aws_access_key_id = AKIA…        config:      [default] or [profile NAME]
//! ```
//!
//! As in the AWS tools, faults in these files of the user are ignored. A line that is neither a section nor a
//! setting is skipped. Of two equal settings, the last one counts.

use std::collections::HashMap;

use super::keys::Keys;

/// A profile, as the files have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Profile {
    pub(super) keys: Option<Keys>,
    pub(super) region: Option<String>,
    pub(super) endpoint: Option<String>,
    /// A command that prints keys.
    pub(super) process: Option<String>,
    /// The name of a setting for keys that kitfs does not know.
    pub(super) other_setting: Option<&'static str>,
}

/// Settings that lead to keys by methods which kitfs does not have.
const OTHER_SETTINGS: [&str; 5] =
    ["role_arn", "sso_session", "sso_start_url", "web_identity_token_file", "credential_source"];

/// Reads a profile from the text of the two files; `None` where neither has it.
pub(super) fn read(credentials: &str, config: &str, name: &str) -> Option<Profile> {
    let in_config = match name {
        "default" => ["default".to_owned(), "profile default".to_owned()],
        name => [format!("profile {name}"), format!("profile \"{name}\"")],
    };
    let mut settings = HashMap::new();
    let mut is_there = false;
    // Keys in the credentials file win, so they are read last.
    for section in in_config {
        is_there |= collect(config, &section, &mut settings);
    }
    is_there |= collect(credentials, name, &mut settings);
    if !is_there {
        return None;
    }
    let get = |key: &str| settings.get(key).filter(|value| !value.is_empty()).cloned();
    let keys = match (get("aws_access_key_id"), get("aws_secret_access_key")) {
        (Some(id), Some(secret)) => {
            Some(Keys::new(&id, &secret, get("aws_session_token").as_deref()))
        }
        _ => None,
    };
    Some(Profile {
        keys,
        region: get("region"),
        endpoint: get("s3.endpoint_url").or_else(|| get("endpoint_url")),
        process: get("credential_process"),
        other_setting: OTHER_SETTINGS.into_iter().find(|key| get(key).is_some()),
    })
}

/// Adds the settings of a section; nested ones as `OUTER.INNER`. Returns whether the section exists.
fn collect(text: &str, wanted: &str, settings: &mut HashMap<String, String>) -> bool {
    let mut is_wanted = false;
    let mut is_there = false;
    let mut outer = None;
    for line in text.lines() {
        let is_nested = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            let section = section.split_whitespace().collect::<Vec<_>>().join(" ");
            is_wanted = section == wanted;
            is_there |= is_wanted;
            outer = None;
            continue;
        }
        let Some((key, value)) = line.split_once('=').filter(|_| is_wanted) else { continue };
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
        let value = value.split(" #").next().unwrap_or_default().trim();
        match (&outer, is_nested) {
            (Some(outer), true) => drop(settings.insert(format!("{outer}.{key}"), value.into())),
            _ => {
                outer = value.is_empty().then(|| key.clone());
                settings.insert(key, value.to_owned());
            }
        }
    }
    is_there
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CREDENTIALS: &str = "\
# comment
[default]
aws_access_key_id = ID
aws_secret_access_key=SECRET/+=
[ work ]
AWS_ACCESS_KEY_ID = W
aws_secret_access_key = S # not a part
aws_session_token = T
";
    const CONFIG: &str = "\
[default]
region = eu-west-1
s3 =
  endpoint_url = http://127.0.0.1:9000
  max_bandwidth = 1
endpoint_url = http://other
[profile work]
region = us-west-2
[profile process]
credential_process = /usr/bin/print keys
[profile sso]
sso_session = corp
[services x]
region = nowhere
";

    #[test]
    fn profiles_are_put_together_from_both_files() {
        let read = |name| read(CREDENTIALS, CONFIG, name);
        let default = read("default").unwrap();
        assert_eq!(default.keys, Some(Keys::new("ID", "SECRET/+=", None)));
        assert_eq!(default.region.as_deref(), Some("eu-west-1"));
        assert_eq!(default.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
        let work = read("work").unwrap();
        assert_eq!(work.keys, Some(Keys::new("W", "S", Some("T"))));
        assert_eq!((work.region.as_deref(), work.endpoint), (Some("us-west-2"), None));
        assert_eq!(read("process").unwrap().process.as_deref(), Some("/usr/bin/print keys"));
        assert_eq!(read("sso").unwrap().other_setting, Some("sso_session"));
        assert_eq!(read("nobody"), None);
        assert_eq!(super::read("", "", "default"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[\\[\\]a-z_= #\n\t]{0,80}") {
            let _ = read(&text, &text, "default");
        }
    }
}
