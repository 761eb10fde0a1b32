//! How any server is reached over HTTP, by the settings: certificates, proxies, time to connect, redirects.

use std::sync::Arc;
use std::time::Duration;

use crate::error::RegistryError;
use crate::settings::{Proxies, Settings};

const USER_AGENT: &str = concat!("banger/", env!("CARGO_PKG_VERSION"));
const MOST_REDIRECTS: usize = 10;

/// What all clients share.
pub(crate) struct Transport {
    tls: rustls::ClientConfig,
    proxies: Vec<reqwest::Proxy>,
    connect_timeout: Duration,
}

impl Transport {
    /// # Errors
    /// When a setting cannot be used.
    pub(crate) fn new(settings: &Settings, proxies: &Proxies) -> Result<Self, RegistryError> {
        Ok(Self {
            tls: tls(settings)?,
            proxies: proxies_of(proxies)?,
            connect_timeout: settings.connect_timeout(),
        })
    }

    pub(crate) fn client(
        &self,
        redirects: reqwest::redirect::Policy,
    ) -> Result<reqwest::Client, RegistryError> {
        let builder = reqwest::Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .user_agent(USER_AGENT)
            .connect_timeout(self.connect_timeout)
            .redirect(redirects)
            .no_proxy();
        let builder = self.proxies.iter().cloned().fold(builder, reqwest::ClientBuilder::proxy);
        builder.build().map_err(RegistryError::Client)
    }
}

/// The host's certificates and the configured ones. A host without any can still use registries by plain HTTP.
fn tls(settings: &Settings) -> Result<rustls::ClientConfig, RegistryError> {
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    // Certificates of the host that cannot be read are no certificates of the host.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for path in &settings.ca_files {
        let refused = |why: String| RegistryError::Setting {
            setting: "ca_files",
            why: format!("{}: {why}", path.display()),
        };
        let found = rustls::pki_types::CertificateDer::pem_file_iter(path)
            .map_err(|error| refused(error.to_string()))?;
        let mut count = 0;
        for certificate in found {
            let certificate = certificate.map_err(|error| refused(error.to_string()))?;
            roots.add(certificate).map_err(|error| refused(error.to_string()))?;
            count += 1;
        }
        if count == 0 {
            return Err(refused("there is no certificate (PEM) in it".into()));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the ciphers of the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

/// The client itself takes the credentials away when the host changes. What began encrypted stays so.
pub(crate) fn redirects() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(|attempt| {
        let was_encrypted = attempt.previous().iter().any(|url| url.scheme() == "https");
        if attempt.previous().len() > MOST_REDIRECTS {
            attempt.error("it is redirected too often")
        } else if was_encrypted && attempt.url().scheme() != "https" {
            attempt.error("it is redirected from https to plain http")
        } else {
            attempt.follow()
        }
    })
}

fn proxies_of(proxies: &Proxies) -> Result<Vec<reqwest::Proxy>, RegistryError> {
    // As in Go's net/http: this machine is reached without.
    let none = [proxies.none.as_deref().unwrap_or_default(), "localhost,127.0.0.0/8,::1"].join(",");
    let none = reqwest::NoProxy::from_string(&none);
    let refused = |_| RegistryError::Setting {
        setting: "proxy",
        why: "HTTP_PROXY or HTTPS_PROXY of the daemon is no URL".into(),
    };
    let http = proxies.http.as_deref().map(reqwest::Proxy::http);
    let https = proxies.https.as_deref().map(reqwest::Proxy::https);
    let proxies = [http, https].into_iter().flatten();
    proxies.map(|proxy| Ok(proxy.map_err(refused)?.no_proxy(none.clone()))).collect()
}
