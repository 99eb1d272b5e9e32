//! The check of a host's certificate, and the certificate that kitfs shows.
//!
//! ```text
//! certificate of the server --is one of those given--> dates, name and use are checked --> trusted
//!              '--leads to an authority of this machine, or to one of those given------> trusted
//! ```
//!
//! The first case is a self-signed certificate, which `openssl req -x509` makes by the instructions of registries.
//! Clients get the certificate as an authority, and the server shows the same one. A verifier of chains refuses it,
//! because an authority is no server. Go and OpenSSL accept it, and so does kitfs. The server still proves that it
//! has the key.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature,
    verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::certificate::Statement;
use crate::source::SourceError;

/// The largest PEM file that is read. 4 MiB: Debian's whole bundle of authorities has 0.2 MiB.
const PEM_LIMIT_BYTES: u64 = 4 * 1024 * 1024;

/// The TLS options of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Tls {
    pub(super) insecure: bool,
    pub(super) ca_files: Vec<PathBuf>,
    pub(super) client_identity: Option<(PathBuf, PathBuf)>,
}

/// The authorities that this machine trusts. Their files, some hundred, are read for the first certificate that
/// needs one. So a process that takes mounts over serves readers from the cache without a delay.
#[derive(Debug, Default)]
pub(super) struct Machine(OnceLock<RootCertStore>);

impl Machine {
    /// Whether the machine trusts any authority.
    pub(super) fn has_authorities(&self) -> bool {
        !self.roots().is_empty()
    }

    /// The authorities. A bare container has none. It can still use plain http, and https to hosts whose authority
    /// is given.
    fn roots(&self) -> &RootCertStore {
        self.0.get_or_init(|| {
            let mut roots = RootCertStore::empty();
            let found = rustls_native_certs::load_native_certs();
            let (added, ignored) = roots.add_parsable_certificates(found.certs);
            tracing::debug!(added, ignored, errors = ?found.errors, "read the machine's authorities");
            roots
        })
    }
}

/// The number of authorities that this machine trusts. Reads their files.
pub fn authorities_of_machine() -> usize {
    Machine::default().roots().len()
}

impl Tls {
    /// The settings of a client; reads the files.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] or [`SourceError::Io`], naming the file.
    pub(super) fn configure(&self, machine: &Arc<Machine>) -> Result<ClientConfig, SourceError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Arc::new(self.verifier(machine, provider.clone())?);
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider speaks TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &self.client_identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let (chain, secret) = identity(certificate, key)?;
                builder.with_client_auth_cert(chain, secret).map_err(|error| {
                    let cause = format!("the key does not fit: {error}");
                    unusable(certificate, "a certificate and its key", &cause)
                })?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    fn verifier(
        &self,
        machine: &Arc<Machine>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Verifier, SourceError> {
        let mut roots = RootCertStore::empty();
        let mut given = Vec::new();
        for path in &self.ca_files {
            for certificate in certificates(path)? {
                roots
                    .add(certificate.clone())
                    .map_err(|error| unusable(path, "a certificate", &error.to_string()))?;
                given.push(certificate);
            }
        }
        let (machine, chains) = (machine.clone(), OnceLock::new());
        Ok(Verifier { trusts_all: self.insecure, given, roots, machine, chains, provider })
    }
}

/// Trusts the given certificates, and chains that lead to an authority.
#[derive(Debug)]
struct Verifier {
    /// Whether every certificate passes (`--tls-verify=false`), even if its key cannot be read.
    trusts_all: bool,
    given: Vec<CertificateDer<'static>>,
    /// The given certificates as authorities.
    roots: RootCertStore,
    machine: Arc<Machine>,
    /// The verifier of chains, made for the first certificate. Without an authority there is none.
    chains: OnceLock<Option<Arc<WebPkiServerVerifier>>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.trusts_all {
            return Ok(ServerCertVerified::assertion());
        }
        if self.given.iter().any(|given| given == end_entity) {
            return verify_given(end_entity, server_name, now);
        }
        match self.chains() {
            Some(chains) => chains.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            ),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(|algorithms| verify_tls12_signature(message, cert, signature, algorithms))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(|algorithms| verify_tls13_signature(message, cert, signature, algorithms))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl Verifier {
    fn chains(&self) -> &Option<Arc<WebPkiServerVerifier>> {
        self.chains.get_or_init(|| {
            let mut roots = self.machine.roots().clone();
            roots.extend(self.roots.roots.iter().cloned());
            let provider = self.provider.clone();
            WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().ok()
        })
    }

    /// Checks the signature of a handshake with the algorithms of the provider.
    fn signature(
        &self,
        verify: impl FnOnce(&WebPkiSupportedAlgorithms) -> Result<HandshakeSignatureValid, Error>,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.trusts_all {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => verify(&self.provider.signature_verification_algorithms),
        }
    }
}

/// Checks a certificate that is one of the given ones: its dates, its name and its use. Go's
/// `x509.Certificate.Verify` does the same with a leaf among the roots.
fn verify_given(
    certificate: &CertificateDer<'_>,
    server_name: &ServerName<'_>,
    now: UnixTime,
) -> Result<ServerCertVerified, Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    let statement = Statement::read(certificate).ok_or(CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).ok().and_then(|now| Timestamp::from_second(now).ok());
    let now = now.ok_or(Error::FailedToGetCurrentTime)?;
    if now < statement.not_before {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > statement.not_after {
        return Err(CertificateError::Expired.into());
    }
    if !statement.is_for_servers {
        return Err(CertificateError::InvalidPurpose.into());
    }
    verify_server_name(&parsed, server_name)?;
    Ok(ServerCertVerified::assertion())
}

/// The certificates of a PEM file, one at least.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SourceError> {
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(&read_pem(path)?).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => {
            Err(unusable(path, "a certificate", "it holds none"))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(unusable(path, "a certificate", &error.to_string())),
    }
}

/// The chain that kitfs shows, and its key; both may lie in one file.
fn identity(
    certificate: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), SourceError> {
    let chain = certificates(certificate)?;
    let secret = PrivateKeyDer::from_pem_slice(&read_pem(key)?)
        .map_err(|error| unusable(key, "the key of a certificate", &error.to_string()))?;
    Ok((chain, secret))
}

fn unusable(path: &Path, expected: &str, cause: &str) -> SourceError {
    SourceError::Configuration {
        what: path.display().to_string(),
        detail: format!("{expected} in PEM format is needed here ({cause})"),
    }
}

fn read_pem(path: &Path) -> Result<Vec<u8>, SourceError> {
    use std::io::Read as _;
    let io = |error| SourceError::Io { path: path.display().to_string(), error: Arc::new(error) };
    let mut pem = Vec::new();
    let file = std::fs::File::open(path).map_err(io)?;
    file.take(PEM_LIMIT_BYTES).read_to_end(&mut pem).map_err(io)?;
    Ok(pem)
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};

    use super::*;

    const NAME: &str = "registry.example";
    /// 2026-11-24T18:00:00Z.
    const NOW: u64 = 1_795_543_200;

    /// A self-signed certificate.
    fn own(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec![NAME.to_owned(), "127.0.0.1".into()]).unwrap();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2027, 1, 1);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn verify(
        given: &CertificateDer<'static>,
        shown: &CertificateDer<'static>,
        name: &str,
        now: u64,
    ) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, pem(given)).unwrap();
        let tls = Tls { ca_files: vec![file], ..Tls::default() };
        let machine = Arc::new(Machine(RootCertStore::empty().into()));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = tls.verifier(&machine, provider).unwrap();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let verified = verifier.verify_server_cert(shown, &[], &name, &[], now);
        verified.map(drop).map_err(|error| error.to_string())
    }

    fn pem(certificate: &CertificateDer<'_>) -> String {
        use base64::Engine as _;
        let text = base64::prelude::BASE64_STANDARD.encode(certificate);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    }

    #[test]
    fn the_very_certificate_that_was_given_is_trusted_whether_or_not_it_is_an_authority() {
        for is_ca in [
            IsCa::Ca(BasicConstraints::Unconstrained),
            IsCa::Ca(BasicConstraints::Constrained(0)),
            IsCa::ExplicitNoCa,
            IsCa::NoCa,
        ] {
            let certificate = own(|params| params.is_ca = is_ca);
            for name in [NAME, "127.0.0.1"] {
                assert_eq!(verify(&certificate, &certificate, name, NOW), Ok(()), "{is_ca:?}");
            }
        }
    }

    #[test]
    fn its_dates_its_name_and_its_use_are_checked() {
        let certificate = own(|_| ());
        let refused = |name, now| verify(&certificate, &certificate, name, now).unwrap_err();
        let other = refused("other.example", NOW);
        assert!(other.contains("not valid for name"), "{other}");
        assert!(refused(NAME, NOW + 40 * 86_400).contains("Expired"));
        assert!(refused(NAME, NOW - 400 * 86_400).contains("NotValidYet"));
        let for_clients = own(|params| {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        });
        assert!(verify(&for_clients, &for_clients, NAME, NOW).unwrap_err().contains("Purpose"));
    }

    #[test]
    fn another_certificate_of_the_same_name_is_not_trusted() {
        let (given, shown) = (own(|_| ()), own(|_| ()));
        assert!(verify(&given, &shown, NAME, NOW).is_err());
    }

    #[test]
    fn files_without_certificates_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "nothing of use").unwrap();
        let machine = Arc::new(Machine(RootCertStore::empty().into()));
        let configure = |tls: Tls| tls.configure(&machine).map(drop).unwrap_err();
        let error = configure(Tls { ca_files: vec![empty.clone()], ..Tls::default() });
        assert!(
            matches!(&error, SourceError::Configuration { what, .. } if what.contains("empty.pem"))
        );

        let identity = Some((empty.clone(), empty));
        let error = configure(Tls { client_identity: identity, ..Tls::default() });
        assert!(matches!(error, SourceError::Configuration { .. }));

        let missing = folder.path().join("missing.pem");
        let error = configure(Tls { ca_files: vec![missing], ..Tls::default() });
        assert!(matches!(&error, SourceError::Io { path, .. } if path.contains("missing.pem")));
    }

    #[test]
    fn a_machine_without_authorities_can_be_configured() {
        let machine = Arc::new(Machine(RootCertStore::empty().into()));
        Tls::default().configure(&machine).unwrap();
        Tls { insecure: true, ..Tls::default() }.configure(&machine).unwrap();
    }
}
