//! Connections by network options: mounts with the same options share connections and tokens,
//! and all of them share one admission.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;

use crate::control::api::NetworkOptions;
use crate::process::limits::ChildLimits;
use crate::source::admission::{Admission, AdmissionConfig, UserId};
use crate::source::credentials::{CarriedStore, CredentialStore};
use crate::source::mirrors::Mirrors;
use crate::source::registry::{RegistryClient, RegistryConfig, Timing, UploadSizes};
use crate::source::registry_rules::{RegistryRule, RegistryRules};
use crate::source::{SourceError, Sources};

/// Sets of options whose connections are kept; a person uses one or two, and mounts hold theirs.
const MOST_NETWORKS: NonZeroUsize = NonZeroUsize::new(16).expect("16 is not zero");

/// The sources of one command, which does its work without a daemon.
///
/// # Errors
/// As for the options of a mount: a certificate or proxy that cannot be used.
pub fn sources_of_command(options: &NetworkOptions) -> Result<Arc<Sources>, SourceError> {
    let admission = Admission::new(AdmissionConfig::default());
    Networks::new(admission, ChildLimits::default()).sources(options)
}

/// The sources of each set of network options.
pub(super) struct Networks {
    admission: Arc<Admission>,
    child_limits: ChildLimits,
    sources: Mutex<LruCache<NetworkOptions, Arc<Sources>>>,
    /// The credentials that each user of a system daemon has carried here.
    carried: Mutex<HashMap<u32, Arc<CarriedStore>>>,
}

impl Networks {
    /// No sources yet; credential helpers will get `child_limits`.
    pub(super) fn new(admission: Arc<Admission>, child_limits: ChildLimits) -> Self {
        Self {
            admission,
            child_limits,
            carried: Mutex::default(),
            sources: Mutex::new(LruCache::new(MOST_NETWORKS)),
        }
    }

    /// The sources for `options`, made the first time; reads the certificate files then.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] when a certificate or proxy cannot be used.
    pub(super) fn sources(&self, options: &NetworkOptions) -> Result<Arc<Sources>, SourceError> {
        if let (Some(user), Some(carried)) = (options.user, &options.carried) {
            self.carried_by(user).take(carried)?;
        }
        let options = &NetworkOptions { carried: None, ..options.clone() };
        let mut sources = self.sources.lock();
        if let Some(sources) = sources.get(options) {
            return Ok(sources.clone());
        }
        let registries = RegistryClient::new(self.config(options)?)?;
        let made = Sources::new(registries, options.kitops_home.clone(), options.s3.clone());
        let made = made.prefer_pulled(options.prefer_local).for_user(options.user.map(UserId));
        let made = Arc::new(made);
        sources.put(options.clone(), made.clone());
        Ok(made)
    }

    fn carried_by(&self, user: u32) -> Arc<CarriedStore> {
        self.carried.lock().entry(user).or_default().clone()
    }

    fn config(&self, options: &NetworkOptions) -> Result<RegistryConfig, SourceError> {
        let client_identity = match (&options.client_certificate, &options.client_key) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                return Err(SourceError::Configuration {
                    what: "client certificate".to_owned(),
                    detail: "--cert and --key (KITOPS_CLIENT_CERT and KITOPS_CLIENT_KEY) go \
                             together: give both"
                        .to_owned(),
                });
            }
        };
        let credentials = CredentialStore::new(options.credential_files.clone())
            .with_helper_limits(self.child_limits);
        let credentials = match options.user {
            Some(user) => credentials.with_carried(self.carried_by(user)),
            None => credentials,
        };
        // One user of a system daemon must not change addresses and rates for the others.
        let rules = match options.user {
            Some(_) => options.registries.iter().map(RegistryRule::about_credentials).collect(),
            None => options.registries.clone(),
        };
        Ok(RegistryConfig {
            rules: RegistryRules::new(rules),
            plain_http: options.plain_http,
            insecure_tls: options.insecure_tls,
            ca_files: options.ca_files.clone(),
            client_identity,
            http_proxy: options.http_proxy.clone(),
            https_proxy: options.https_proxy.clone(),
            no_proxy: options.no_proxy.clone(),
            credentials,
            mirrors: Mirrors::new(options.registries_dir.clone()),
            admission: self.admission.clone(),
            user: options.user.map_or_else(UserId::of_process, UserId),
            timing: Timing {
                retries: options.retries.unwrap_or(Timing::default().retries),
                open: open_timeout(options),
                ..Timing::default()
            },
            uploads: UploadSizes::default(),
        })
    }
}

/// How long opening and warming wait for a host that is silent.
pub(super) fn open_timeout(options: &NetworkOptions) -> Duration {
    options.open_timeout_seconds.map_or(Timing::default().open, Duration::from_secs)
}
