//! The content of a journal file, pure: docs/format/journal.md.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::control::api::{MountDescription, NetworkOptions};
use crate::fuse::MountPlace;
use crate::oci::Digest;

/// The first line, up to the version.
const MAGIC: &str = "kitfs mount ";
/// The version of the format.
const VERSION: u32 = 1;
/// The longest file, in bytes: as long as the longest request on the control socket.
pub(super) const LIMIT_BYTES: u64 = 1024 * 1024;

/// A mount, as the journal has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::daemon) struct Entry {
    /// The boot of the kernel, 32 hexadecimal digits; empty where the kernel does not tell.
    pub(in crate::daemon) boot: String,
    /// The part of the file tree in which the mountpoint lies ([`crate::process::view`]); empty where unknown.
    pub(in crate::daemon) view: String,
    /// The reference with the digest of the manifest.
    pub(in crate::daemon) pinned: String,
    /// Seconds since 1970.
    pub(in crate::daemon) mounted_at: i64,
    pub(in crate::daemon) place: MountPlace,
    /// The options of the command, without secrets.
    pub(in crate::daemon) description: MountDescription,
    /// The secrets that the options had.
    pub(in crate::daemon) left_out: Vec<LeftOut>,
}

/// A secret that never goes to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::daemon) enum LeftOut {
    /// The access key of S3 stores, from the environment.
    S3Keys,
    /// The user and the password in a proxy's URL.
    ProxyPassword,
    /// The user and the password in the URL of an S3 store.
    EndpointPassword,
    /// The credentials that the command has read for a system daemon.
    Credentials,
}

impl LeftOut {
    /// The secret, for a user.
    pub(in crate::daemon) fn words(self) -> &'static str {
        match self {
            Self::S3Keys => "the S3 access key of its command's environment",
            Self::ProxyPassword => "the password of its proxy",
            Self::EndpointPassword => "the password in the URL of its S3 store",
            Self::Credentials => "the credentials of its command",
        }
    }
}

/// The reason why a file is no entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::daemon) enum NoEntry {
    /// Another version of kitfs has written it.
    OtherVersion(u32),
    /// It is damaged.
    Damaged(String),
}

/// The options of a mount without their secrets, and which they had.
pub(super) fn without_secrets(description: &MountDescription) -> (MountDescription, Vec<LeftOut>) {
    let (mut description, mut left_out) = (description.clone(), Vec::new());
    // Each field is named, so that a new one is looked at here.
    let NetworkOptions {
        prefer_local: _,
        plain_http: _,
        insecure_tls: _,
        ca_files: _,
        client_certificate: _,
        client_key: _,
        http_proxy,
        https_proxy,
        no_proxy: _,
        registries_dir: _,
        credential_files: _,
        kitops_home: _,
        registries: _,
        retries: _,
        s3,
        open_timeout_seconds: _,
        carried,
        user: _,
    } = &mut description.kit.network;
    if s3.keys.take().is_some() {
        left_out.push(LeftOut::S3Keys);
    }
    if carried.take().is_some_and(|carried| !carried.configurations.is_empty()) {
        left_out.push(LeftOut::Credentials);
    }
    for (url, secret) in [
        (http_proxy, LeftOut::ProxyPassword),
        (https_proxy, LeftOut::ProxyPassword),
        (&mut s3.endpoint, LeftOut::EndpointPassword),
    ] {
        if let Some(plain) = url.as_deref().filter(|url| url.contains('@')).map(without_password) {
            *url = plain;
            if !left_out.contains(&secret) {
                left_out.push(secret);
            }
        }
    }
    (description, left_out)
}

/// A URL without its user and password; `None` where the URL is ambiguous. The scheme may be missing,
/// as in `ada:secret@proxy:3128`, so this is no matter for a parser of URLs.
fn without_password(url: &str) -> Option<String> {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    let authority_bytes = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_bytes);
    // In a malformed URL, the password may have a slash.
    if path.contains('@') {
        return None;
    }
    let host = authority.rsplit('@').next().unwrap_or_default();
    Some(format!("{scheme}{host}{path}"))
}

/// Encodes an entry.
pub(super) fn encode(entry: &Entry) -> serde_json::Result<Vec<u8>> {
    let mut bytes = format!("{MAGIC}{VERSION}\n").into_bytes();
    serde_json::to_writer(&mut bytes, entry)?;
    bytes.push(b'\n');
    let digest = digest(&bytes);
    bytes.extend_from_slice(format!("{digest}\n").as_bytes());
    Ok(bytes)
}

/// Decodes a file.
pub(super) fn decode(bytes: &[u8]) -> Result<Entry, NoEntry> {
    let damaged = |why: &str| NoEntry::Damaged(why.to_owned());
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("it is no text"))?;
    let (first, _) = text.split_once('\n').ok_or_else(|| damaged("it is cut off"))?;
    let version = first.strip_prefix(MAGIC).and_then(|version| version.parse().ok());
    match version.ok_or_else(|| damaged("it does not begin as a journal file"))? {
        VERSION => {}
        other => return Err(NoEntry::OtherVersion(other)),
    }
    let body = text.strip_suffix('\n').ok_or_else(|| damaged("it is cut off"))?;
    let last = body.rfind('\n').ok_or_else(|| damaged("it is cut off"))? + 1;
    if digest(&bytes[..last]).to_string() != body[last..] {
        return Err(damaged("its digest is wrong"));
    }
    let json = &body[first.len() + 1..last];
    serde_json::from_str(json).map_err(|error| NoEntry::Damaged(error.to_string()))
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::source::credentials::CarriedCredentials;
    use crate::source::s3::Secret;

    pub(in crate::daemon) fn entry() -> Entry {
        Entry {
            boot: "00112233445566778899aabbccddeeff".to_owned(),
            view: "mnt:[4026531841] 1:2".to_owned(),
            pinned: "ghcr.io/org/kit@sha256:00".to_owned(),
            mounted_at: 7,
            place: serde_json::from_value(json!({
                "path": "/models", "device": [0, 44], "made": [1, 2], "view": null,
            }))
            .unwrap(),
            description: serde_json::from_value(json!({
                "kit": {"reference": "ghcr.io/org/kit:v1", "umask": 18}, "mountpoint": "/models",
                "tensor_prefetch": true, "hydrate": "begun", "hydrate_after_seconds": 30,
            }))
            .unwrap(),
            left_out: vec![LeftOut::S3Keys],
        }
    }

    /// The first bytes that version 1 wrote, as docs/format/journal.md has them.
    const GOLDEN: &str = concat!(
        "kitfs mount 1\n",
        r#"{"boot":"00112233445566778899aabbccddeeff","view":"mnt:[4026531841] 1:2","pinned":"#,
        r#""ghcr.io/org/kit@sha256:00","mounted_at":7,"place":{"path":"/models","device":[0,44],"#,
        r#""made":[1,2],"view":null},"description":{"kit":{"#,
        r#""reference":"ghcr.io/org/kit:v1","labels":[],"filters":[],"allow_empty":false,"no_remote":false,"#,
        r#""umask":18,"network":{"prefer_local":false,"plain_http":false,"insecure_tls":false,"ca_files":[],"#,
        r#""client_certificate":null,"client_key":null,"http_proxy":null,"https_proxy":null,"no_proxy":null,"#,
        r#""registries_dir":null,"credential_files":[],"kitops_home":null,"retries":null,"s3":{"endpoint":null,"#,
        r#""region":null,"keys":null,"profile":null,"credentials_file":null,"config_file":null,"#,
        r#""anonymous":false},"open_timeout_seconds":null}},"mountpoint":"/models","allow_other":false,"#,
        r#""nonempty":false,"noexec":false,"no_passthrough":false,"tensor_prefetch":true,"hydrate":"begun","#,
        r#""hydrate_after_seconds":30,"trace":null,"follow_seconds":null,"read_deadline_seconds":300},"left_out":["s3_keys"]}"#,
        "\n",
    );

    #[test]
    fn the_bytes_of_version_1_are_read_and_written() {
        let golden = format!("{GOLDEN}{}\n", digest(GOLDEN.as_bytes()));
        assert_eq!(decode(golden.as_bytes()), Ok(entry()));
        // Commands get options. An entry has them all, and one without an option is of the time before it.
        let written = String::from_utf8(encode(&entry()).unwrap()).unwrap();
        let without_options = |text: &str| {
            let (before, rest) = text.split_once(r#","description":{"#).unwrap();
            (before.to_owned(), rest.split_once(r#","left_out":"#).unwrap().1.trim_end().len())
        };
        assert_eq!(without_options(&written), without_options(&golden));
        let body = &written[..written.trim_end().rfind('\n').unwrap() + 1];
        assert_eq!(written, format!("{body}{}\n", digest(body.as_bytes())));
    }

    #[test]
    fn no_secret_is_written() {
        let mut description = entry().description;
        let network = &mut description.kit.network;
        network.s3 = serde_json::from_value(json!({
            "endpoint": "https://ada:tiger@minio:9000/x", "region": "eu", "profile": "training",
            "keys": {"id": "AKIA", "secret": "tiger", "token": "tiger"}, "credentials_file": "/home/ada/.aws/c",
        }))
        .unwrap();
        network.http_proxy = Some("http://ada:tiger@proxy:3128".to_owned());
        network.https_proxy = Some("ada:ti/ger@proxy:3128".to_owned());
        network.carried = Some(CarriedCredentials {
            host: "registry.example".to_owned(),
            configurations: vec![Secret::new("tiger")],
            at_ms: 1,
        });
        let (plain, left_out) = without_secrets(&description);
        let text = serde_json::to_string(&plain).unwrap();
        for secret in ["tiger", "ti/ger", "ada:", "AKIA"] {
            assert!(!text.contains(secret), "{text}");
        }
        for kept in ["https://minio:9000/x", "http://proxy:3128", "/home/ada/.aws/c", "training"] {
            assert!(text.contains(kept), "{text}");
        }
        let all = [
            LeftOut::S3Keys,
            LeftOut::Credentials,
            LeftOut::ProxyPassword,
            LeftOut::EndpointPassword,
        ];
        assert_eq!(left_out, all);
        assert_eq!(plain.kit.network.carried, None);
        assert_eq!(without_secrets(&plain), (plain, Vec::new()));
    }

    #[test]
    fn another_version_is_told_from_damage() {
        let text = String::from_utf8(encode(&entry()).unwrap()).unwrap();
        let newer = text.replacen("kitfs mount 1", "kitfs mount 2", 1);
        assert_eq!(decode(newer.as_bytes()), Err(NoEntry::OtherVersion(2)));
        let mut unknown = serde_json::to_value(entry()).unwrap();
        unknown["shape"] = json!("round");
        let unknown = format!("kitfs mount 1\n{unknown}\n");
        let unknown = format!("{unknown}{}\n", digest(unknown.as_bytes()));
        assert!(
            matches!(decode(unknown.as_bytes()), Err(NoEntry::Damaged(why)) if why.contains("shape"))
        );
    }

    proptest! {
        #[test]
        fn every_damage_is_found(at: prop::sample::Index, bit in 0u32..8) {
            let whole = encode(&entry()).unwrap();
            let at = at.index(whole.len());
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << bit;
            prop_assert!(decode(&flipped).is_err());
            prop_assert!(decode(&whole[..at]).is_err());
            prop_assert!(decode(&whole[at + 1..]).is_err());
            let mut zeroed = whole.clone();
            zeroed[at..].fill(0);
            prop_assert!(decode(&zeroed).is_err());
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&bytes).is_err());
            prop_assert!(decode(&[b"kitfs mount 1\n", &bytes[..]].concat()).is_err());
        }

        #[test]
        fn passwords_are_cut_off(
            scheme in "(http://|https://|)", user in "[a-z:%]{1,8}", secret in "[A-Z]{4,8}",
            end in "[/@?#]?[a-z]{0,3}", host in "[a-z.]{1,8}(:[0-9]{1,4})?/?",
        ) {
            let plain = format!("{scheme}{host}");
            prop_assert_eq!(without_password(&plain), Some(plain.clone()));
            let found = without_password(&format!("{scheme}{user}{secret}@{host}"));
            prop_assert_eq!(found, Some(plain));
            let malformed = without_password(&format!("{scheme}{user}{secret}{end}@{host}"));
            prop_assert!(malformed.is_none_or(|url| !url.contains(&secret)));
        }
    }
}
