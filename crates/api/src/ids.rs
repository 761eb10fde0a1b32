//! Names and ids: each a type of its own, parsed once where it enters.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::labels::{check_key, check_value};

/// Why a text is not a name or an id. The text is quoted, the rule is said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {kind}: {rule}")]
pub struct NameError {
    kind: &'static str,
    text: String,
    rule: &'static str,
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Takes the text as it is or refuses it; never rewrites it.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                match $check(text) {
                    Ok(()) => Ok(Self(text.to_owned())),
                    Err(rule) => Err(NameError { kind: $kind, text: text.to_owned(), rule }),
                }
            }

            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

text_type! {
    /// A VM's name: one DNS label (RFC 1123, section 2.1), lower case, since `NAME.vm` is to resolve.
    VmName, "a VM name", check_label
}
text_type! {
    /// A VM's id: 8 random characters of [`ID_ALPHABET`]. Device names, process marks and folders are made of it.
    VmId, "a VM id", check_id
}
text_type! {
    /// An operation's id, as in errors, logs and `/v1/operations/ID`.
    OperationId, "an operation id", check_id
}
text_type! {
    /// An image's name, such as `debian:bookworm`.
    ImageName, "an image name", check_artifact
}
text_type! {
    /// A kernel's name, such as `6.1.0-56-cloud-amd64`.
    KernelName, "a kernel name", check_artifact
}

text_type! {
    /// A network's name: made as a VM's is.
    NetworkName, "a network name", check_label
}
text_type! {
    /// What the names of VMs end with: one or more DNS labels, lower case, of which nobody else makes something of its own.
    Zone, "a zone for names of VMs", check_zone
}

text_type! {
    /// The key of a label, such as `ci` or `example.com/team`.
    LabelKey, "a label's key", check_key
}
text_type! {
    /// The value of a label: up to 128 bytes of text without control characters; may be empty.
    LabelValue, "a label's value", check_value
}

impl Default for Zone {
    fn default() -> Self {
        Self("vm".to_owned())
    }
}

/// Digits and letters without the look-alikes i, l, o, u (Crockford's base 32, lower case).
pub const ID_ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// How many characters an id has: 40 bits.
pub const ID_LENGTH: usize = 8;

/// `length` random characters of [`ID_ALPHABET`], from the kernel's generator (getrandom(2)).
///
/// # Errors
/// When the kernel gives no randomness.
pub fn random_text(length: usize) -> std::io::Result<String> {
    let mut bytes = vec![0_u8; length];
    let got = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
    if got != length {
        return Err(std::io::Error::other("getrandom returned fewer bytes than were asked for"));
    }
    Ok(bytes.iter().map(|byte| char::from(ID_ALPHABET[usize::from(byte % 32)])).collect())
}

impl VmId {
    /// A new random id. The store refuses one that it has already.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn random() -> std::io::Result<Self> {
        random_text(ID_LENGTH).map(Self)
    }
}

impl OperationId {
    /// A new random id.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn random() -> std::io::Result<Self> {
        random_text(ID_LENGTH).map(Self)
    }
}

fn check_label(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > 63 {
        return Err("it needs 1 to 63 characters");
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return Err("only a-z, 0-9 and - are allowed (a DNS label)");
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err("it must not begin or end with -");
    }
    Ok(())
}

/// Top-level names that resolvers treat otherwise than by asking: multicast DNS (RFC 6762), the host itself and nothing
/// (RFC 6761), Tor (RFC 7686), and what belongs to addresses (RFC 3172), but for that which is everybody's at home (RFC 8375).
const NO_ZONES: [&str; 5] = ["local", "localhost", "invalid", "onion", "arpa"];
const HOME: &str = "home.arpa";

fn check_zone(text: &str) -> Result<(), &'static str> {
    if text.len() > 100 {
        return Err("it is longer than 100 characters");
    }
    text.split('.').try_for_each(check_label)?;
    let last = text.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return Err("it must not end as an address does");
    }
    let is_home =
        text.strip_suffix(HOME).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    if NO_ZONES.contains(&last) && !is_home {
        return Err(
            "what ends with local, localhost, invalid, onion or arpa (but for home.arpa) is no DNS server's to name",
        );
    }
    Ok(())
}

fn check_id(text: &str) -> Result<(), &'static str> {
    if text.len() == ID_LENGTH && text.bytes().all(|b| ID_ALPHABET.contains(&b)) {
        Ok(())
    } else {
        Err("an id is 8 characters of 0-9a-z without i, l, o, u")
    }
}

fn check_artifact(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > 128 {
        return Err("it needs 1 to 128 characters");
    }
    if !text
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-:/+~".contains(&b))
    {
        return Err("only a-z, 0-9 and . _ - : / + ~ are allowed");
    }
    if !text.as_bytes()[0].is_ascii_alphanumeric() {
        return Err("it must begin with a letter or a digit");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_name_is_one_dns_label_and_is_never_rewritten() {
        for good in ["a", "web-1", "0", &"a".repeat(63)] {
            assert_eq!(VmName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "Web", "-a", "a-", "a.b", "a_b", "ä", "a b", &"a".repeat(64)] {
            assert!(VmName::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_zone_is_labels_that_mean_nothing_else() {
        for good in ["vm", "banger", "vm.example.com", "lab-1", "home.arpa", "vm.home.arpa"] {
            assert_eq!(Zone::parse(good).unwrap().as_str(), good);
        }
        let long = ["a"; 60].join(".");
        for bad in [
            "",
            ".",
            "vm.",
            ".vm",
            "a..b",
            "VM",
            "v_m",
            "local",
            "a.local",
            "localhost",
            "invalid",
            "arpa",
            "in-addr.arpa",
            "xhome.arpa",
            "onion",
            "7",
            "10.0.0.1",
            "-vm",
            &long,
        ] {
            assert!(Zone::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_refusal_quotes_the_text_and_says_the_rule() {
        let error = VmName::parse("Web").unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"Web\" is not a VM name: only a-z, 0-9 and - are allowed (a DNS label)"
        );
    }

    #[test]
    fn random_ids_are_ids() {
        for _ in 0..100 {
            let id = VmId::random().unwrap();
            assert_eq!(VmId::parse(id.as_str()).unwrap(), id);
        }
    }

    #[test]
    fn names_are_checked_when_they_come_off_the_wire() {
        assert!(serde_json::from_str::<VmName>("\"../etc\"").is_err());
        assert!(serde_json::from_str::<ImageName>("\"debian:bookworm\"").is_ok());
    }
}
