//! AWS Signature Version 4 for requests without a body (AWS, "Authenticating Requests: Using the
//! Authorization Header"). Pure: the time comes in.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use url::Url;

use super::keys::Keys;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "s3";
/// The sha256 of no bytes: the body of a GET or HEAD.
const EMPTY_BODY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// A block of sha256 (FIPS 180-4).
const BLOCK_BYTES: usize = 64;

/// Adds the headers that sign a request: the time, the session token, and the signature over the
/// method, the URL and all of `headers`.
///
/// The URL's path and query must be encoded as S3 encodes them (`address`).
pub(super) fn sign(
    method: &Method,
    url: &Url,
    headers: &mut HeaderMap,
    keys: &Keys,
    region: &str,
    now: Timestamp,
) {
    let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let date = &time[..8];
    let mut put = |name: &'static str, value: &str| {
        let mut value = HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static(""));
        value.set_sensitive(name == "x-amz-security-token");
        headers.insert(HeaderName::from_static(name), value);
    };
    put("x-amz-date", &time);
    put("x-amz-content-sha256", EMPTY_BODY);
    if let Some(token) = &keys.token {
        put("x-amz-security-token", token.expose());
    }
    let (canonical_headers, signed_headers) = canonical_headers(url, headers);
    let request = [
        method.as_str(),
        url.path(),
        url.query().unwrap_or_default(),
        &canonical_headers,
        &signed_headers,
        EMPTY_BODY,
    ]
    .join("\n");
    let scope = format!("{date}/{region}/{SERVICE}/aws4_request");
    let digest = hex(&Sha256::digest(request.as_bytes()));
    let to_sign = [ALGORITHM, &time, &scope, &digest].join("\n");
    let secret = format!("AWS4{}", keys.secret.expose());
    let key = [date, region, SERVICE, "aws4_request"]
        .into_iter()
        .fold(secret.into_bytes(), |key, part| hmac_sha256(&key, part.as_bytes()).to_vec());
    let signature = hex(&hmac_sha256(&key, to_sign.as_bytes()));
    let authorization = format!(
        "{ALGORITHM} Credential={}/{scope}, SignedHeaders={signed_headers}, Signature={signature}",
        keys.id
    );
    if let Ok(mut value) = HeaderValue::from_str(&authorization) {
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
}

/// The headers as they are signed, a line each, and their names; `host` is one of them.
fn canonical_headers(url: &Url, headers: &HeaderMap) -> (String, String) {
    let host = super::address::host(url);
    let mut lines: Vec<(&str, &str)> = vec![("host", &host)];
    lines.extend(
        headers
            .iter()
            .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?.trim()))),
    );
    lines.sort_unstable();
    let names: Vec<_> = lines.iter().map(|(name, _)| *name).collect();
    let text: String = lines.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    (text, names.join(";"))
}

/// HMAC with sha256 (RFC 2104).
fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0; BLOCK_BYTES];
    match key.len() {
        ..=BLOCK_BYTES => block[..key.len()].copy_from_slice(key),
        _ => block[..32].copy_from_slice(&Sha256::digest(key)),
    }
    let pad = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test cases 1, 2, 3 and 6.
    #[test]
    fn hmac_is_that_of_the_rfc() {
        for (key, message, expected) in [
            (
                vec![0x0b; 20],
                b"Hi There".to_vec(),
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
            (
                b"Jefe".to_vec(),
                b"what do ya want for nothing?".to_vec(),
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                vec![0xaa; 20],
                vec![0xdd; 50],
                "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
            ),
            (
                vec![0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First".to_vec(),
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
        ] {
            assert_eq!(hex(&hmac_sha256(&key, &message)), expected);
        }
    }

    /// AWS, "Examples: Signature Calculations": GET Object.
    #[test]
    fn a_signature_is_that_of_the_documentation() {
        let keys =
            Keys::new("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", None);
        let url = Url::parse("https://examplebucket.s3.amazonaws.com/test.txt").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_static("bytes=0-9"));
        let now = "2013-05-24T00:00:00Z".parse().unwrap();
        sign(&Method::GET, &url, &mut headers, &keys, "us-east-1", now);
        assert_eq!(
            headers[header::AUTHORIZATION],
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
             SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, \
             Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
    }

    #[test]
    fn a_session_token_is_signed_too_and_nothing_secret_prints() {
        let keys = Keys::new("AKIA", "secret-key", Some("secret-token"));
        let url = Url::parse("http://127.0.0.1:9000/b/k?versionId=1").unwrap();
        let mut headers = HeaderMap::new();
        sign(&Method::HEAD, &url, &mut headers, &keys, "r", Timestamp::UNIX_EPOCH);
        let signed = headers[header::AUTHORIZATION].to_str().unwrap().to_owned();
        assert!(
            signed.contains(
                "SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token"
            )
        );
        let printed = format!("{headers:?} {keys:?}");
        assert!(!printed.contains("secret-") && !printed.contains("Signature="), "{printed}");
    }
}
