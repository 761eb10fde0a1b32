//! Which machine this is: its distribution, its processor, who we are on it.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// The distribution, from os-release(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Distribution {
    /// As its makers call it: `Debian GNU/Linux 12 (bookworm)`.
    pub(crate) name: String,
    pub(crate) family: Family,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Debian,
    Ubuntu,
    /// Neither, nor derived from one.
    Other,
}

impl Distribution {
    pub(crate) fn here() -> Self {
        let text = fs::read_to_string("/etc/os-release")
            .or_else(|_| fs::read_to_string("/usr/lib/os-release"));
        Self::parse(&text.unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let value = |key: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            found.map(|value| value.trim_matches(['"', '\'']).to_owned())
        };
        let kinds =
            format!("{} {}", value("ID").unwrap_or_default(), value("ID_LIKE").unwrap_or_default());
        let family = kinds.split_whitespace().find_map(|kind| match kind {
            "ubuntu" => Some(Family::Ubuntu),
            "debian" => Some(Family::Debian),
            _ => None,
        });
        Self {
            name: value("PRETTY_NAME").unwrap_or_else(|| "an unknown system".into()),
            family: family.unwrap_or(Family::Other),
        }
    }
}

/// /proc/self belongs to the effective user (proc(5)).
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|data| data.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_known_by_its_id_or_by_what_it_is_like() {
        for (text, family) in [
            ("ID=debian\n", Family::Debian),
            ("ID=ubuntu\nID_LIKE=debian\n", Family::Ubuntu),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", Family::Ubuntu),
            ("ID=raspbian\nID_LIKE=debian\n", Family::Debian),
            ("ID=fedora\n", Family::Other),
            ("", Family::Other),
        ] {
            assert_eq!(Distribution::parse(text).family, family, "{text:?}");
        }
    }

    #[test]
    fn it_is_called_as_its_makers_call_it() {
        let found =
            Distribution::parse("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n");
        assert_eq!(found.name, "Debian GNU/Linux 12 (bookworm)");
    }
}
