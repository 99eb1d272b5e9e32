//! Certificates, plain http, and proxies.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kitfs::source::SourceError;
use kitfs::source::mirrors::Mirrors;
use kitfs::source::registry::RegistryConfig;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::setup::{NAME, client_with, content, manifest, open, read, repository};
use crate::support::registry_double::{Access, Fault, Options, RegistryDouble, Rule, Tokens};

/// A host name that no resolver knows: only a proxy leads there.
const FAR: &str = "registry.example";

/// An authority, and the certificates of a server and of a client that it signed.
struct Authority {
    folder: TempDir,
    server: (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
    roots: Arc<RootCertStore>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let issue = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let key = KeyPair::generate().unwrap();
            let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &ca).unwrap();
            (certificate, key)
        };
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, pem: String| std::fs::write(folder.path().join(name), pem).unwrap();
        write("ca.pem", ca.pem());
        let (client, client_key) = issue(&["client"]);
        write("client.pem", client.pem());
        write("client.key", client_key.serialize_pem());
        let (server, server_key) = issue(&["127.0.0.1", FAR]);
        let server_key = PrivateKeyDer::try_from(server_key.serialize_der()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        Self { folder, server: (vec![server.der().clone()], server_key), roots: Arc::new(roots) }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Options of a registry that speaks TLS, and may want a client certificate.
    fn options(&self, wants_client: bool) -> Options {
        let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if wants_client {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let (chain, key) = (self.server.0.clone(), self.server.1.clone_key());
        let tls = builder.with_single_cert(chain, key).unwrap();
        Options { tls: Some(Arc::new(tls)), ..Options::default() }
    }
}

async fn registry(options: Options) -> RegistryDouble {
    let registry = RegistryDouble::start(options).await;
    registry.push_manifest(NAME, "latest", manifest());
    registry
}

async fn ask(host: &str, change: impl FnOnce(&mut RegistryConfig)) -> Result<(), SourceError> {
    let client = client_with(|config| {
        config.timing.retries = 1;
        change(config);
    });
    repository(&client, host).manifest(None).await.map(drop)
}

/// A proxy that leads all requests to one address, and records their heads.
struct OneWayProxy {
    url: String,
    heads: Arc<Mutex<Vec<String>>>,
}

impl OneWayProxy {
    async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heads = Arc::new(Mutex::new(Vec::new()));
        let own = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Self::serve(stream, target.clone(), Arc::clone(&own)));
            }
        });
        Self { url, heads }
    }

    async fn serve(mut stream: TcpStream, target: String, heads: Arc<Mutex<Vec<String>>>) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(byte);
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let is_tunnel = text.starts_with("CONNECT ");
        heads.lock().unwrap().push(text);
        let mut far = TcpStream::connect(target).await.unwrap();
        if is_tunnel {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        } else {
            far.write_all(&head).await.unwrap();
        }
        let _ = copy_bidirectional(&mut stream, &mut far).await;
    }

    /// The first lines of the requests.
    fn lines(&self) -> Vec<String> {
        let first = |head: &String| head.lines().next().unwrap_or_default().to_owned();
        self.heads.lock().unwrap().iter().map(first).collect()
    }
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_with_ca_file() {
    let authority = Authority::new();
    let registry = registry(authority.options(false)).await;
    ask(&registry.host(), |config| config.ca_files = vec![authority.file("ca.pem")]).await.unwrap();
}

#[tokio::test]
async fn an_unknown_authority_is_refused_and_the_message_names_ca_file() {
    let authority = Authority::new();
    let registry = registry(authority.options(false)).await;
    // No TLS option: the loopback host is asked in http first, and says that it wants https.
    let error = ask(&registry.host(), |_| {}).await.unwrap_err();
    assert!(matches!(error, SourceError::Untrusted { .. }), "{error}");
    assert!(!error.is_retryable(), "an earlier result must not take its place");
    assert!(error.to_string().contains("--ca-file"), "{error}");
    assert!(error.to_string().contains("--tls-verify=false"), "{error}");
    assert!(registry.requests().is_empty());
}

/// A server with a self-signed certificate, as registries' own instructions make it, and the file of
/// the certificate.
fn self_signed(is_ca: IsCa, names: &[&str]) -> (TempDir, Options) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.is_ca = is_ca;
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("own.pem"), certificate.pem()).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (folder, Options { tls: Some(Arc::new(tls)), ..Options::default() })
}

#[tokio::test]
async fn a_self_signed_certificate_is_trusted_where_that_very_certificate_is_given() {
    for is_ca in [IsCa::Ca(BasicConstraints::Unconstrained), IsCa::ExplicitNoCa, IsCa::NoCa] {
        let (folder, options) = self_signed(is_ca, &["localhost", "127.0.0.1"]);
        let registry = registry(options).await;
        let file = folder.path().join("own.pem");
        ask(&registry.host(), |config| config.ca_files = vec![file.clone()]).await.unwrap();

        let mirrors = tempfile::tempdir().unwrap();
        let own = mirrors.path().join(registry.host());
        std::fs::create_dir(&own).unwrap();
        let text = format!(
            "server = \"https://{0}\"\n[host.\"https://{0}\"]\nca = {1:?}\n",
            registry.host(),
            file
        );
        std::fs::write(own.join("hosts.toml"), text).unwrap();
        let folder = Some(mirrors.path().to_owned());
        ask(&registry.host(), |config| config.mirrors = Mirrors::new(folder)).await.unwrap();
    }
}

#[tokio::test]
async fn a_certificate_that_was_given_is_refused_for_another_host_and_another_one_altogether() {
    let ca = || IsCa::Ca(BasicConstraints::Unconstrained);
    let (folder, options) = self_signed(ca(), &["other.example"]);
    let other_host = registry(options).await;
    let file = folder.path().join("own.pem");
    let error = ask(&other_host.host(), |config| config.ca_files = vec![file.clone()]).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("another host name"), "{error}");

    let (_folder, options) = self_signed(ca(), &["127.0.0.1"]);
    let other = registry(options).await;
    let error = ask(&other.host(), |config| config.ca_files = vec![file]).await.unwrap_err();
    assert!(matches!(error, SourceError::Untrusted { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("nor is it in the files of --ca-file"), "{message}");
    assert!(!message.contains("with --ca-file"), "that advice was followed already: {message}");
}

#[tokio::test]
async fn a_port_for_https_is_recognised_by_any_answer_to_plain_http() {
    let authority = Authority::new();
    for answer in [
        "HTTP/1.1 400 Bad Request\r\nContent-Length: 4\r\n\r\nwhat",
        "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 301 Moved\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        "\x15\x03\x01\x00\x02\x02\x46",
        "",
    ] {
        let options = Options { plain_answer: Some(answer), ..authority.options(false) };
        let registry = registry(options).await;
        let error = ask(&registry.host(), |_| {}).await.unwrap_err();
        // The port of the redirect is another one: that is an http registry which redirects.
        match answer.contains("301") {
            true => assert!(matches!(error, SourceError::Unavailable { .. }), "{error}"),
            false => assert!(matches!(error, SourceError::Untrusted { .. }), "{answer}: {error}"),
        }
    }
}

#[tokio::test]
async fn a_registry_in_plain_http_may_answer_400_to_the_request_for_its_api() {
    let registry = registry(Options::default()).await;
    registry.script(Rule::on("/v2/").times(1).then(Fault::Status(400)));
    ask(&registry.host(), |_| {}).await.unwrap();
}

#[tokio::test]
async fn tls_verify_false_trusts_every_certificate() {
    let registry = registry(Authority::new().options(false)).await;
    ask(&registry.host(), |config| config.insecure_tls = true).await.unwrap();
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let authority = Authority::new();
    let registry = registry(authority.options(true)).await;
    let ca = vec![authority.file("ca.pem")];
    let error = ask(&registry.host(), |config| config.ca_files = ca.clone()).await.unwrap_err();
    assert!(matches!(error, SourceError::Unauthorized { .. }), "{error}");
    assert!(error.to_string().contains("--cert and --key"), "{error}");
    let identity = (authority.file("client.pem"), authority.file("client.key"));
    ask(&registry.host(), |config| {
        config.ca_files = ca;
        config.client_identity = Some(identity);
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_loopback_host_that_speaks_http_is_found_out_even_with_tls_options() {
    let registry = registry(Options::default()).await;
    let authority = Authority::new();
    ask(&registry.host(), |config| config.ca_files = vec![authority.file("ca.pem")]).await.unwrap();
}

#[tokio::test]
async fn other_hosts_are_asked_in_https_only_and_the_message_names_plain_http() {
    let registry = registry(Options::default()).await;
    let proxy = OneWayProxy::start(registry.host()).await;
    let error = ask(FAR, |config| config.https_proxy = Some(proxy.url.clone())).await.unwrap_err();
    assert!(error.to_string().contains("--plain-http"), "{error}");
    assert!(error.to_string().contains(FAR), "{error}");
    assert!(!error.is_retryable(), "{error}");
    assert_eq!(proxy.lines(), ["CONNECT registry.example:443 HTTP/1.1"]);
    assert!(registry.requests().is_empty());
}

#[tokio::test]
async fn http_and_https_go_through_their_proxies() {
    let authority = Authority::new();
    let secure = registry(authority.options(false)).await;
    let plain = registry(Options::default()).await;
    let [https_proxy, http_proxy] =
        [OneWayProxy::start(secure.host()).await, OneWayProxy::start(plain.host()).await];
    for plain_http in [false, true] {
        ask(FAR, |config| {
            config.plain_http = plain_http;
            config.ca_files = vec![authority.file("ca.pem")];
            config.https_proxy = Some(https_proxy.url.clone());
            config.http_proxy = Some(http_proxy.url.replace("http://", ""));
        })
        .await
        .unwrap();
    }
    assert_eq!(https_proxy.lines(), ["CONNECT registry.example:443 HTTP/1.1"]);
    let expected = "GET http://registry.example/v2/org/model/manifests/latest HTTP/1.1";
    assert_eq!(http_proxy.lines(), [expected]);
}

#[tokio::test]
async fn the_password_of_a_proxy_goes_to_the_proxy() {
    let authority = Authority::new();
    let secure = registry(authority.options(false)).await;
    let plain = registry(Options::default()).await;
    for (plain_http, target) in [(false, secure.host()), (true, plain.host())] {
        let proxy = OneWayProxy::start(target).await;
        let url = Some(proxy.url.replace("http://", "http://user:pass%20word@"));
        ask(FAR, |config| {
            config.plain_http = plain_http;
            config.ca_files = vec![authority.file("ca.pem")];
            config.https_proxy.clone_from(&url);
            config.http_proxy = url;
        })
        .await
        .unwrap();
        let head = proxy.heads.lock().unwrap()[0].to_ascii_lowercase();
        // user:pass word
        assert!(head.contains("proxy-authorization: basic dxnlcjpwyxnzihdvcmq="), "{head}");
    }
}

#[tokio::test]
async fn no_proxy_and_loopback_hosts_are_reached_directly() {
    let registry = registry(Options::default()).await;
    let proxy = OneWayProxy::start(registry.host()).await;
    ask(&registry.host(), |config| config.http_proxy = Some(proxy.url.clone())).await.unwrap();
    // The unspecified address leads to this machine without being a loopback address.
    let local = registry.host().replace("127.0.0.1", "0.0.0.0");
    for no_proxy in [Some("elsewhere.example,0.0.0.0/8".to_owned()), None] {
        assert_eq!(proxy.lines().len(), 0);
        ask(&local, |config| {
            config.plain_http = true;
            config.http_proxy = Some(proxy.url.clone());
            config.no_proxy = no_proxy;
        })
        .await
        .unwrap();
    }
    assert_eq!(proxy.lines().len(), 1, "without NO_PROXY it is asked");
}

#[tokio::test]
async fn a_redirect_from_https_to_http_is_not_followed() {
    let authority = Authority::new();
    let secure = registry(authority.options(false)).await;
    let plain = registry(Options::default()).await;
    let blob = secure.push_blob(NAME, content(1000));
    plain.push_blob(NAME, content(1000));
    let target = format!("http://{}/v2/{NAME}/blobs/{}", plain.host(), blob.digest);
    secure.script(Rule::on("/blobs/").then(Fault::Redirect(target)));
    let client = client_with(|config| config.ca_files = vec![authority.file("ca.pem")]);
    let error = read(&repository(&client, &secure.host()), blob, 0..100).await.unwrap_err();
    assert!(matches!(error, SourceError::Protocol { .. }), "{error}");
    assert!(plain.requests().is_empty());
    // The same redirect between hosts that speak plain http is.
    let first = RegistryDouble::start(Options::default()).await;
    first.push_blob(NAME, content(1000));
    let target = format!("http://{}/v2/{NAME}/blobs/{}", plain.host(), blob.digest);
    first.script(Rule::on("/blobs/").then(Fault::Redirect(target)));
    read(&open(&first), blob, 0..100).await.unwrap();
}

#[tokio::test]
async fn a_token_server_in_plain_http_gets_no_password_for_a_registry_in_https() {
    let authority = Authority::new();
    let access = Access::Bearer(Tokens::default());
    let registry = registry(Options { access, ..authority.options(false) }).await;
    let ca = vec![authority.file("ca.pem")];
    let error = ask(&registry.host(), |config| config.ca_files = ca).await.unwrap_err();
    assert!(matches!(error, SourceError::Protocol { .. }), "{error}");
    assert!(error.to_string().contains("does not speak https"), "{error}");
    assert_eq!(registry.token_requests(), 0);
}
