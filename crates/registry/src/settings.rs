//! How registries are reached: the `[registry]` part of `config.toml`, and the proxies of the environment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// `[registry]` of `config.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// For a registry, by its host as in image names: base URLs of mirrors, asked in this order before the registry
    /// itself. A path in the URL stands before the image's: `https://mirror.example/dockerhub`.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Registries that speak plain HTTP, by host (`HOST:PORT`). Loopback addresses need not be here.
    pub insecure: Vec<String>,
    /// Certificates (PEM) that are trusted beside the host's own.
    pub ca_files: Vec<PathBuf>,
    /// A connection is made within this time.
    pub connect_timeout_ms: u64,
    /// A transfer that brings no byte for so long is ended, and tried again.
    pub stall_timeout_ms: u64,
    /// A request that failed in a way that may pass is repeated so often.
    pub retries: u32,
    /// The pause before the first repetition; each further one is twice as long, up to 20 times the first.
    pub retry_pause_ms: u64,
    /// Layers of one image that are downloaded at the same time.
    pub parallel_downloads: usize,
    /// A manifest, an index or a config is refused when it is larger.
    pub largest_manifest_bytes: u64,
    pub most_layers: usize,
    /// A layer is refused when it is larger, as it is stored.
    pub largest_blob_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mirrors: BTreeMap::new(),
            insecure: Vec::new(),
            ca_files: Vec::new(),
            connect_timeout_ms: 10_000,
            stall_timeout_ms: 30_000,
            retries: 4,
            retry_pause_ms: 500,
            parallel_downloads: 3,
            // Docker and the registries themselves refuse more.
            largest_manifest_bytes: 4 << 20,
            // No more fit into Docker's own overlay.
            most_layers: 127,
            largest_blob_bytes: 32 << 30,
        }
    }
}

impl Settings {
    /// What an image may be at most, by these settings.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            largest_manifest_bytes: self.largest_manifest_bytes,
            most_layers: self.most_layers,
            largest_blob_bytes: self.largest_blob_bytes,
        }
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub(crate) fn stall_timeout(&self) -> Duration {
        Duration::from_millis(self.stall_timeout_ms)
    }

    /// How long to wait before repetition number `attempt`, counted from 0.
    pub(crate) fn pause(&self, attempt: u32) -> Duration {
        let factor = 2_u64.saturating_pow(attempt).min(20);
        Duration::from_millis(self.retry_pause_ms.saturating_mul(factor))
    }
}

/// What an image may be at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub largest_manifest_bytes: u64,
    pub most_layers: usize,
    pub largest_blob_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Settings::default().limits()
    }
}

/// The proxies to use; loopback addresses are reached without any.
#[derive(Clone, Default)]
pub struct Proxies {
    pub http: Option<String>,
    pub https: Option<String>,
    /// Hosts, domains and networks that are reached without, with commas between.
    pub none: Option<String>,
}

impl Proxies {
    /// From `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, in capitals or not.
    pub fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let read = |name: &str| {
            let value = variable(name).or_else(|| variable(&name.to_lowercase()))?;
            value.into_string().ok().filter(|value| !value.is_empty())
        };
        Self { http: read("HTTP_PROXY"), https: read("HTTPS_PROXY"), none: read("NO_PROXY") }
    }
}

/// A proxy's URL may hold a password.
impl std::fmt::Debug for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxies")
            .field("http", &self.http.is_some())
            .field("https", &self.https.is_some())
            .field("none", &self.none)
            .finish()
    }
}

/// Whether the host of an image name is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_what_is_unknown_is_refused() {
        let settings: Settings = toml::from_str(
            "insecure = [\"a:5000\"]\nretries = 1\n[mirrors]\n\"docker.io\" = [\"http://127.0.0.1:5000\"]\n",
        )
        .unwrap();
        assert_eq!(settings.retries, 1);
        assert_eq!(settings.mirrors["docker.io"], ["http://127.0.0.1:5000"]);
        assert_eq!(settings.parallel_downloads, 3);
        assert!(toml::from_str::<Settings>("mirror = 1").is_err());
    }

    #[test]
    fn pauses_double_up_to_a_bound() {
        let settings = Settings::default();
        let pauses: Vec<u128> = (0..7).map(|n| settings.pause(n).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        assert_eq!(settings.pause(u32::MAX).as_millis(), 10_000);
    }

    #[test]
    fn this_machine_is_known_by_its_names() {
        for host in ["localhost", "localhost:5000", "127.0.0.1", "127.9.9.9:1", "[::1]", "[::1]:5"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["10.0.0.1", "localhost.example", "[::2]:5", "docker.io", "127.example"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_proxys_password_is_not_shown() {
        let proxies = Proxies::from_environment(|name| {
            (name == "https_proxy").then(|| "http://u:secret@p:1".into())
        });
        assert!(proxies.https.is_some());
        assert!(!format!("{proxies:?}").contains("secret"));
    }
}
