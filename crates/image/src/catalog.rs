//! Catalogs of kernels: a TOML text that says where kernels can be had, and a detached minisign signature of it. Nothing
//! here fetches anything: bytes and a key come in, a catalog that its key's owner has signed comes out, or a refusal.
//!
//! ```toml
//! serial = 7                                  # grows with every catalog that is published
//! [[kernel]]
//! name = "guest"
//! release = "6.1.192-banger"                  # as `uname -r` prints it
//! architecture = "x86_64"
//! url = "vmlinux-6.1.192-banger"              # http, https, or relative to the catalog
//! sha256 = "…"                                # of the file there: a vmlinux, a bzImage or a .deb
//! size_bytes = 26428976
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use minisign_verify::{PublicKey, Signature};
use serde::Deserialize;

use crate::bzimage;

/// A catalog is refused when it is larger; one kernel takes some 300 bytes.
pub const LARGEST_CATALOG: u64 = 1 << 20;
/// A signature has some 300 bytes; its comments may be longer.
pub const LARGEST_SIGNATURE: u64 = 16 << 10;
/// What stands behind a catalog's name in its signature's, as minisign has it.
pub const SIGNATURE_SUFFIX: &str = ".minisig";
/// What this program's guests run on.
pub const ARCHITECTURE: &str = "x86_64";
const MOST_KERNELS: usize = 1000;
const LONGEST_TEXT: usize = 128;
const LONGEST_URL: usize = 2048;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    #[error(
        "{0:?} is no public key of minisign: one is the second line of a .pub file, and begins with RW"
    )]
    Key(String),
    #[error("{0:?} is no place of a catalog: one is a URL with http or https, or an absolute path")]
    Source(String),
    #[error("the catalog's signature is not one of minisign's")]
    NoSignature,
    #[error("the catalog is signed by another key than {0}")]
    OtherKey(String),
    #[error(
        "the catalog is not what the owner of the key {0} has signed: it was changed on its way or where it lies"
    )]
    BadSignature(String),
    #[error("the catalog does not fit: {0}")]
    Form(String),
    #[error("the catalog's kernel {name:?} does not fit: {why}")]
    Kernel { name: String, why: &'static str },
    #[error(
        "the catalog has the serial {found}, and one with {accepted} was accepted before: it is an older one"
    )]
    Older { found: u64, accepted: u64 },
}

/// Whose catalogs are believed.
#[derive(Clone, PartialEq, Eq)]
pub struct TrustedKey {
    text: String,
    key: PublicKey,
}

impl TrustedKey {
    /// From the text that `minisign -G` prints and writes to the second line of a `.pub` file.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Self, CatalogError> {
        let refused = || CatalogError::Key(text.chars().take(LONGEST_TEXT).collect());
        let key = PublicKey::from_base64(text).map_err(|_| refused())?;
        Ok(Self { text: text.to_owned(), key })
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for TrustedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Where a catalog, or a file that it names, lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// With http or https.
    Url(String),
    /// Absolute.
    File(PathBuf),
}

impl Place {
    /// # Errors
    /// When it is neither a URL without a query nor an absolute path.
    pub fn parse(text: &str) -> Result<Self, CatalogError> {
        let refused = || CatalogError::Source(text.chars().take(LONGEST_TEXT).collect());
        if is_url(text) {
            return Ok(Self::Url(text.to_owned()));
        }
        let path = Path::new(text);
        if !path.is_absolute() || path.file_name().is_none() {
            return Err(refused());
        }
        Ok(Self::File(path.to_owned()))
    }

    /// Where the signature of what lies here is.
    #[must_use]
    pub fn signature(&self) -> Self {
        match self {
            Self::Url(url) => Self::Url(format!("{url}{SIGNATURE_SUFFIX}")),
            Self::File(path) => {
                let mut path = path.clone().into_os_string();
                path.push(SIGNATURE_SUFFIX);
                Self::File(path.into())
            }
        }
    }

    /// What a catalog that lies here means by a kernel's `url`.
    fn beside(&self, url: &str) -> Self {
        if is_url(url) {
            return Self::Url(url.to_owned());
        }
        match self {
            Self::Url(base) => {
                let folder = base.rsplit_once('/').map_or(base.as_str(), |(folder, _)| folder);
                Self::Url(format!("{folder}/{url}"))
            }
            Self::File(base) => Self::File(base.with_file_name(url)),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// `http(s)://HOST…/…` without a password, a query and a fragment.
fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let Some((host, path)) = rest.and_then(|rest| rest.split_once('/')) else { return false };
    let is_plain =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#@\\".contains(&byte));
    text.len() <= LONGEST_URL && !host.is_empty() && is_plain(host) && is_plain(path)
}

/// Names below the catalog's own folder: nothing that leads out of it, on a disk or on a server.
fn is_relative(text: &str) -> bool {
    let is_name = |name: &str| {
        !matches!(name, "" | "." | "..")
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-+~".contains(&byte))
    };
    text.len() <= LONGEST_URL && text.split('/').all(is_name)
}

/// A catalog that was signed by the key it was opened with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalog {
    /// Grows with every catalog that is published: a lower one than before is an old one.
    pub serial: u64,
    pub kernels: Vec<CatalogKernel>,
}

/// A kernel that can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogKernel {
    pub name: String,
    /// As `uname -r` prints it.
    pub release: String,
    pub architecture: String,
    pub place: Place,
    /// Of the file at `place`: 64 small hexadecimal figures.
    pub sha256: String,
    pub size_bytes: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    serial: u64,
    #[serde(default, rename = "kernel")]
    kernels: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    release: String,
    architecture: String,
    url: String,
    sha256: String,
    size_bytes: u64,
}

/// The catalog in `bytes`, which lies at `place`, if `signature` is its signature by `key`. Nothing of it is read before
/// that is known.
///
/// # Errors
/// When it is not signed by the key, or not of the right form.
pub fn open(
    bytes: &[u8],
    signature: &[u8],
    key: &TrustedKey,
    place: &Place,
) -> Result<Catalog, CatalogError> {
    let signature = std::str::from_utf8(signature).map_err(|_| CatalogError::NoSignature)?;
    let signature = Signature::decode(signature).map_err(|_| CatalogError::NoSignature)?;
    key.key.verify(bytes, &signature, false).map_err(|error| match error {
        minisign_verify::Error::UnexpectedKeyId => CatalogError::OtherKey(key.text.clone()),
        _ => CatalogError::BadSignature(key.text.clone()),
    })?;
    parse(bytes, place)
}

fn parse(bytes: &[u8], place: &Place) -> Result<Catalog, CatalogError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| CatalogError::Form("it is no text (UTF-8)".into()))?;
    let file: File = toml::from_str(text)
        .map_err(|error| CatalogError::Form(error.to_string().trim().to_owned()))?;
    if file.kernels.len() > MOST_KERNELS {
        return Err(CatalogError::Form(format!("it has more than {MOST_KERNELS} kernels")));
    }
    let mut seen = BTreeSet::new();
    let mut kernels = Vec::new();
    for entry in file.kernels {
        let name: String = entry.name.chars().take(LONGEST_TEXT).collect();
        let refused = |why| CatalogError::Kernel { name, why };
        let is_new = seen.insert((entry.architecture.clone(), entry.name.clone()));
        let fits = if is_new { check(&entry) } else { Err("there are two of that name") };
        fits.map_err(refused)?;
        kernels.push(CatalogKernel {
            place: place.beside(&entry.url),
            name: entry.name,
            release: entry.release,
            architecture: entry.architecture,
            sha256: entry.sha256,
            size_bytes: entry.size_bytes,
        });
    }
    Ok(Catalog { serial: file.serial, kernels })
}

fn check(entry: &Entry) -> Result<(), &'static str> {
    let is_word = |text: &str| {
        (1..=LONGEST_TEXT).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
    };
    if ![&entry.name, &entry.release, &entry.architecture].into_iter().all(|text| is_word(text)) {
        return Err(
            "its name, its release and its architecture are words of 1 to 128 letters of ASCII",
        );
    }
    if !is_url(&entry.url) && !is_relative(&entry.url) {
        return Err(
            "its url is neither one with http or https nor a path below the catalog's folder",
        );
    }
    let is_figure = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if entry.sha256.len() != 64 || !entry.sha256.bytes().all(is_figure) {
        return Err("its sha256 is not 64 of 0-9 and a-f");
    }
    if !(1..=bzimage::LARGEST).contains(&entry.size_bytes) {
        return Err("its size_bytes is not of 1 byte to 512 MiB");
    }
    Ok(())
}

impl Catalog {
    /// Refuses a catalog that is older than one that was accepted: somebody holds back what came since.
    ///
    /// # Errors
    /// When it is.
    pub fn not_older_than(&self, accepted: u64) -> Result<(), CatalogError> {
        let found = self.serial;
        if found < accepted { Err(CatalogError::Older { found, accepted }) } else { Ok(()) }
    }

    /// The kernels for this architecture.
    pub fn here(&self) -> impl Iterator<Item = &CatalogKernel> {
        self.kernels.iter().filter(|kernel| kernel.architecture == ARCHITECTURE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "RWQD/N8pQFPJsYzGTmBJwNKJoZfb7r23xM94b3vuOJc9u7zOxLjKqTRZ";
    const OTHER_KEY: &str = "RWSnFZGynkT5/GygPiadLciDMLTGN2snn4yVuEseIm42pnDVo/OX091i";
    const GOOD: &str = "serial = 7\n\n[[kernel]]\nname = \"guest\"\nrelease = \"6.1.192-banger\"\n\
        architecture = \"x86_64\"\nurl = \"kernels/vmlinux-6.1.192-banger\"\n\
        sha256 = \"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"\nsize_bytes = 26428976\n";
    /// Made by `minisign -S` with the secret half of `KEY`.
    const SIGNATURE: &str = "untrusted comment: test\n\
        RUQD/N8pQFPJsZB6OpsRGS1rAOzX0jjsCGXysJ7s0Peo5Z5alxZKqM83m9JaTsrmo8rx4KeOvXIdww//8MPMngaL6oqwwFbAvgk=\n\
        trusted comment: catalog\n\
        Ys8oTZcTyQjMwqU25S3EnYYVJxD5b2LvIlpdhWjrEBJV2upf4NmLgP03XHX4XminBntOCuk/WczWnp8yvfkWCA==\n";

    fn key(text: &str) -> TrustedKey {
        TrustedKey::parse(text).unwrap()
    }

    fn url() -> Place {
        Place::parse("https://kernels.example/v1/catalog.toml").unwrap()
    }

    fn read(text: &str) -> Result<Catalog, CatalogError> {
        parse(text.as_bytes(), &url())
    }

    #[test]
    fn what_the_keys_owner_has_signed_is_read() {
        let catalog = open(GOOD.as_bytes(), SIGNATURE.as_bytes(), &key(KEY), &url()).unwrap();
        assert_eq!(catalog.serial, 7);
        let kernel = catalog.here().next().unwrap();
        assert_eq!((kernel.name.as_str(), kernel.size_bytes), ("guest", 26_428_976));
        let place = "https://kernels.example/v1/kernels/vmlinux-6.1.192-banger";
        assert_eq!(kernel.place.to_string(), place);
        let file = Place::parse("/srv/kernels/catalog.toml").unwrap();
        let catalog = open(GOOD.as_bytes(), SIGNATURE.as_bytes(), &key(KEY), &file).unwrap();
        let path = "/srv/kernels/kernels/vmlinux-6.1.192-banger";
        assert_eq!(catalog.kernels[0].place, Place::File(path.into()));
    }

    #[test]
    fn every_changed_byte_of_a_catalog_is_noticed() {
        for at in 0..GOOD.len() {
            let mut bytes = GOOD.as_bytes().to_vec();
            bytes[at] ^= 1;
            let refused = open(&bytes, SIGNATURE.as_bytes(), &key(KEY), &url()).unwrap_err();
            assert_eq!(refused, CatalogError::BadSignature(KEY.into()), "{at}");
        }
    }

    #[test]
    fn a_signature_that_was_changed_or_is_none_is_refused() {
        let lines: Vec<&str> = SIGNATURE.lines().collect();
        let without = |line: usize| {
            let kept = lines.iter().enumerate().filter(|(index, _)| *index != line);
            kept.map(|(_, line)| format!("{line}\n")).collect::<String>()
        };
        let mut changed = vec![String::new(), "\n\n\n\n".into(), GOOD.into()];
        changed.extend((0..4).map(without));
        changed.push(SIGNATURE.replace("trusted comment: catalog", "trusted comment: newer"));
        changed.push(SIGNATURE.replace("VXIdww", "VXIdwx"));
        changed.push(SIGNATURE.replace("WCA==", "WDA=="));
        // The form before minisign 0.6, which signs the text and not its hash.
        changed.push(SIGNATURE.replacen("RUQD", "RWQD", 1));
        for text in changed.iter().filter(|text| text.as_str() != SIGNATURE) {
            let opened = open(GOOD.as_bytes(), text.as_bytes(), &key(KEY), &url());
            assert!(opened.is_err(), "{text}");
        }
        assert!(open(GOOD.as_bytes(), b"\xff", &key(KEY), &url()).is_err());
    }

    #[test]
    fn another_keys_signature_is_refused_and_the_trusted_key_named() {
        let refused = open(GOOD.as_bytes(), SIGNATURE.as_bytes(), &key(OTHER_KEY), &url());
        assert_eq!(refused.unwrap_err(), CatalogError::OtherKey(OTHER_KEY.into()));
    }

    #[test]
    fn an_older_catalog_than_one_that_was_accepted_is_refused() {
        let catalog = read(GOOD).unwrap();
        catalog.not_older_than(7).unwrap();
        let older = catalog.not_older_than(8).unwrap_err().to_string();
        assert!(older.contains("serial 7") && older.contains("with 8"), "{older}");
    }

    #[test]
    fn a_catalog_that_does_not_fit_is_refused_with_the_reason() {
        let hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let twice = format!("{GOOD}{}", GOOD.strip_prefix("serial = 7\n").unwrap());
        for (text, reason) in [
            (GOOD.replace("serial = 7", ""), "serial"),
            (GOOD.replace("serial = 7", "serial = -7"), "serial"),
            (format!("colour = 1\n{GOOD}"), "colour"),
            (format!("{GOOD}colour = 1\n"), "colour"),
            (GOOD.replace("\"guest\"", "\"gu est\""), "are words"),
            (GOOD.replace("\"guest\"", "\"\""), "are words"),
            (GOOD.replace("\"guest\"", &format!("\"{}\"", "a".repeat(200))), "are words"),
            (GOOD.replace("\"guest\"", "\"a\\u001bb\""), "are words"),
            (GOOD.replace(hash, &hash[1..]), "sha256"),
            (GOOD.replace(hash, &hash.to_uppercase()), "sha256"),
            (GOOD.replace("26428976", "0"), "size_bytes"),
            (GOOD.replace("26428976", "536870913"), "size_bytes"),
            (twice, "two of that name"),
            ("serial".into(), "serial"),
        ] {
            let refused = read(&text).unwrap_err().to_string();
            assert!(refused.contains(reason), "{text}: {refused}");
        }
        let many: String = (0..=MOST_KERNELS)
            .map(|n| GOOD.replace("serial = 7\n", "").replace("guest", &format!("k{n}")))
            .collect();
        assert!(
            read(&format!("serial = 7\n{many}")).unwrap_err().to_string().contains("more than")
        );
        assert!(parse(b"serial = 1 # \xff", &url()).is_err());
    }

    #[test]
    fn a_kernels_place_is_a_url_or_below_the_catalogs_folder() {
        let with = |url: &str| read(&GOOD.replace("kernels/vmlinux-6.1.192-banger", url));
        for good in ["http://127.0.0.1:8000/a", "https://x.example/a/b", "a", "a/b-1.0+x~y_z"] {
            with(good).unwrap();
        }
        for bad in [
            "/etc/passwd",
            "../a",
            "a/../b",
            "a//b",
            "",
            ".",
            "file:///a",
            "ftp://a/b",
            "a%2e",
            "a b",
            "a?b",
            "https://u:p@x/y",
            "https://x",
            "https:///y",
        ] {
            assert!(with(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_and_places_are_refused_not_rewritten() {
        for bad in ["", "RW", "x", &KEY[1..], &format!("{KEY} "), &KEY.replace("RWQ", "AAA")] {
            assert!(TrustedKey::parse(bad).is_err(), "{bad:?} was taken");
        }
        for bad in [
            "",
            "/",
            "catalog.toml",
            "./c",
            "file:///c",
            "https://x",
            "https://x/c?a=b",
            "http://u:p@x/c",
        ] {
            assert!(Place::parse(bad).is_err(), "{bad:?} was taken");
        }
        let place = Place::parse("/srv/catalog.toml").unwrap();
        assert_eq!(place.signature(), Place::File("/srv/catalog.toml.minisig".into()));
        assert_eq!(url().signature().to_string(), format!("{}.minisig", url()));
    }
}
