//! Names of images: `[HOST[:PORT]/]PATH[:TAG][@sha256:…]`, with Docker's defaults. The rules are those of the
//! distribution project's grammar (its `reference` package), which Docker, podman and the OCI distribution
//! specification share.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::{Digest, DigestError};

/// The registry of a name that names none.
pub const DEFAULT_HOST: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
/// Where one-word names of the default registry are.
const LIBRARY: &str = "library/";
const LONGEST_NAME: usize = 255;
const LONGEST_TAG: usize = 128;

/// An image's name, whole: nothing is left to defaults.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("an image's name is empty")]
    Empty,
    #[error("{0:?} is no image's name: it is a URL; write it without `{1}`")]
    Url(String, &'static str),
    #[error(
        "{name:?} is no image's name: a host is letters, figures, `-` and `.`, then `:PORT`; {host:?} is not"
    )]
    Host { name: String, host: String },
    #[error(
        "{name:?} is no image's name: between slashes are small letters and figures, with one `.`, one or two `_`, or any `-` inside; {part:?} is not so"
    )]
    Path { name: String, part: String },
    #[error("{name:?} is no image's name: its path is longer than {LONGEST_NAME} bytes")]
    Long { name: String },
    #[error(
        "{name:?} is no image's name: a tag is a letter, a figure or `_`, then up to 127 of these and `.` and `-`; {tag:?} is not so"
    )]
    Tag { name: String, tag: String },
    #[error("{name:?} is no image's name")]
    Digest {
        name: String,
        #[source]
        cause: DigestError,
    },
}

impl Reference {
    /// The registry, as people name it: `docker.io`, `127.0.0.1:5000`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Where in the registry: `library/alpine`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `None` when a digest alone says which image.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// What the manifest must be, whatever the tag says.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What a registry is asked for: the digest when there is one, else the tag.
    pub(crate) fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// The same image by the digest of its manifest.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// The shortest form that means the same and still says the version: `alpine:3.20`, `ghcr.io/a/b:1`.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = String::new();
        if self.host == DEFAULT_HOST {
            let word = self.path.strip_prefix(LIBRARY).filter(|rest| !rest.contains('/'));
            let path = word.unwrap_or(&self.path);
            // A first part that looks like a host would be taken for one.
            let misread = path.split_once('/').is_some_and(|(first, _)| is_host(first));
            text.push_str(if misread { DEFAULT_HOST } else { "" });
            text.push_str(if misread { "/" } else { "" });
            text.push_str(path);
        } else {
            text.push_str(&format!("{}/{}", self.host, self.path));
        }
        text + &self.end()
    }

    fn end(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = self.digest.map(|digest| format!("@{digest}")).unwrap_or_default();
        tag + &digest
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let name = || text.chars().take(300).collect::<String>();
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        for scheme in ["https://", "http://", "docker://"] {
            if text.starts_with(scheme) {
                return Err(ReferenceError::Url(name(), scheme));
            }
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|cause| ReferenceError::Digest { name: name(), cause })?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (host, rest) = match rest.split_once('/') {
            Some((first, rest)) if is_host(first) => (first, rest),
            _ => (DEFAULT_HOST, rest),
        };
        if !is_good_host(host) {
            return Err(ReferenceError::Host { name: name(), host: host.to_owned() });
        }
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag.to_owned())),
            _ => (rest, None),
        };
        if let Some(tag) = tag.as_ref().filter(|tag| !is_good_tag(tag)) {
            return Err(ReferenceError::Tag { name: name(), tag: tag.chars().take(200).collect() });
        }
        let host = match host {
            "index.docker.io" | "registry-1.docker.io" => DEFAULT_HOST,
            other => other,
        };
        if let Some(part) = path.split('/').find(|part| !is_good_part(part)) {
            let part = part.chars().take(200).collect();
            return Err(ReferenceError::Path { name: name(), part });
        }
        let library = if host == DEFAULT_HOST && !path.contains('/') { LIBRARY } else { "" };
        let path = format!("{library}{path}");
        if path.len() + host.len() > LONGEST_NAME {
            return Err(ReferenceError::Long { name: name() });
        }
        let tag = tag.or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
        Ok(Self { host: host.to_owned(), path, tag, digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.host, self.path, self.end())
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What stands before the first slash is a host when it looks like one; else it is part of the path.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

fn is_good_host(host: &str) -> bool {
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match port.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if port.is_empty() => (None, None),
            None => return false,
        }
    } else {
        match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        }
    };
    let port_is_good = port.is_none_or(|port| {
        port.bytes().all(|byte| byte.is_ascii_digit())
            && port.parse().is_ok_and(|port: u16| port > 0)
    });
    let part_is_good = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    port_is_good && name.is_none_or(|name| name.split('.').all(part_is_good))
}

fn is_good_part(part: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !is_word(*first) || !is_word(*last) {
        return false;
    }
    bytes.split(|byte| is_word(*byte)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
    })
}

fn is_good_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= LONGEST_TAG
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> Reference {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_name_gets_dockers_defaults_and_a_short_form() {
        for (text, whole, short) in [
            ("alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20", "alpine:3.20"),
            ("docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("index.docker.io/library/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("me/app:V_1", "docker.io/me/app:V_1", "me/app:V_1"),
            ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
            ("localhost:5000/a", "localhost:5000/a:latest", "localhost:5000/a:latest"),
            ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000/a/b:1", "127.0.0.1:5000/a/b:1"),
            ("[::1]:5000/a:1", "[::1]:5000/a:1", "[::1]:5000/a:1"),
            ("ghcr.io/a/b-c__d.e:1", "ghcr.io/a/b-c__d.e:1", "ghcr.io/a/b-c__d.e:1"),
            ("docker.io/library/b.c/d:1", "docker.io/library/b.c/d:1", "library/b.c/d:1"),
        ] {
            let reference = parse(text);
            assert_eq!(reference.to_string(), whole);
            assert_eq!(reference.short(), short);
            assert_eq!(parse(whole), reference);
        }
        // A part that looks like a host stays where it is.
        assert_eq!(parse("docker.io/b.c/d:1").short(), "docker.io/b.c/d:1");
    }

    #[test]
    fn a_digest_goes_before_the_tag() {
        let both = parse(&format!("alpine:3.20@{DIGEST}"));
        assert_eq!(both.version(), DIGEST);
        assert_eq!(both.short(), format!("alpine:3.20@{DIGEST}"));
        let alone = parse(&format!("alpine@{DIGEST}"));
        assert_eq!(alone.tag(), None);
        assert_eq!(alone.to_string(), format!("docker.io/library/alpine@{DIGEST}"));
    }

    #[test]
    fn a_name_is_refused_with_its_rule() {
        for (text, rule) in [
            ("", "empty"),
            ("https://ghcr.io/a", "without `https://`"),
            ("Alpine", "small letters"),
            ("a//b", "between slashes"),
            ("a/../b", "between slashes"),
            ("ghcr.io/", "between slashes"),
            ("a___b", "one or two `_`"),
            ("a..b/c:1", "a host is letters"),
            ("-a.b/c", "a host is letters"),
            ("ghcr.io:0/a", "a host is letters"),
            ("ghcr.io:99999/a", "a host is letters"),
            ("ghcr.io:+5/a", "a host is letters"),
            ("user@host/a", "is no image's name"),
            ("[::1/a", "a host is letters"),
            ("alpine:", "a tag is"),
            ("alpine:-x", "a tag is"),
            ("alpine:a b", "a tag is"),
            (&format!("alpine:{}", "a".repeat(129)), "a tag is"),
            (&"a/".repeat(140), "between slashes"),
            (&"a".repeat(256), "longer than 255"),
            ("alpine@sha256:00", "is no image's name"),
            ("é", "between slashes"),
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(error.to_string().contains(rule), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_short_means_the_same() {
        for text in
            ["a", "a:1", "x.y/a", "docker.io/x.y/a", "docker.io/library/x.y/a", "localhost/a"]
        {
            let reference = parse(text);
            assert_eq!(parse(&reference.short()), reference, "{text}");
        }
    }
}
