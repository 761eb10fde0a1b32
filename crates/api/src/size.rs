//! Sizes of memory and disks, as people write them and as the wire carries them (bytes).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// A positive number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Size(u64);

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a size: {rule}")]
pub struct SizeError {
    text: String,
    rule: &'static str,
}

impl Size {
    #[must_use]
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub const fn mib(mib: u64) -> Self {
        Self(mib * MIB)
    }

    #[must_use]
    pub const fn gib(gib: u64) -> Self {
        Self(gib * GIB)
    }

    #[must_use]
    pub const fn as_bytes(self) -> u64 {
        self.0
    }

    /// Whole MiB, rounded down.
    #[must_use]
    pub const fn as_mib(self) -> u64 {
        self.0 / MIB
    }
}

impl FromStr for Size {
    type Err = SizeError;

    /// `4G`, `4GiB`, `512MiB`, `64K`, `1T`; a bare number is MiB. All units are powers of 1024.
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let refuse = |rule| SizeError { text: text.to_owned(), rule };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number
            .parse()
            .map_err(|_| refuse("write a whole number and a unit, such as 512M or 4G"))?;
        let unit = match unit {
            "" | "M" | "MiB" => MIB,
            "K" | "KiB" => KIB,
            "G" | "GiB" => GIB,
            "T" | "TiB" => TIB,
            _ => {
                return Err(refuse(
                    "the units are K, M, G, T or KiB, MiB, GiB, TiB; a bare number is MiB",
                ));
            }
        };
        match number.checked_mul(unit) {
            Some(0) => Err(refuse("it must be more than zero")),
            Some(bytes) => Ok(Self(bytes)),
            None => Err(refuse("it is larger than any disk")),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            bytes if bytes >= TIB => (TIB, "TiB"),
            bytes if bytes >= GIB => (GIB, "GiB"),
            bytes if bytes >= MIB => (MIB, "MiB"),
            bytes if bytes >= KIB => (KIB, "KiB"),
            bytes => return f.pad(&format!("{bytes} B")),
        };
        if self.0.is_multiple_of(unit) {
            return f.pad(&format!("{} {name}", self.0 / unit));
        }
        // One decimal, rounded down, in whole numbers so that no float is needed.
        let tenths = u128::from(self.0) * 10 / u128::from(unit);
        f.pad(&format!("{}.{} {name}", tenths / 10, tenths % 10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, size) in [
            ("4G", Size::gib(4)),
            ("4GiB", Size::gib(4)),
            ("512MiB", Size::mib(512)),
            ("512", Size::mib(512)),
            ("1T", Size::gib(1024)),
            ("64K", Size::bytes(65536)),
        ] {
            assert_eq!(text.parse::<Size>().unwrap(), size, "{text}");
        }
    }

    #[test]
    fn what_is_no_positive_size_is_refused() {
        for text in [
            "",
            "0",
            "0G",
            "-1",
            "4GB",
            "4g",
            "1.5G",
            "G",
            " 4G",
            "99999999999999999999",
            "20000000000T",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn sizes_are_shown_in_their_largest_unit() {
        assert_eq!(Size::gib(8).to_string(), "8 GiB");
        assert_eq!(Size::mib(1536).to_string(), "1.5 GiB");
        assert_eq!(Size::bytes(7).to_string(), "7 B");
    }
}
