//! Access control lists: from the text that tar archives hold (acl(5), short and long form) to the bytes that the
//! kernel takes (linux/posix_acl_xattr.h). Pure.

use std::collections::BTreeMap;

pub(crate) const ACCESS: &str = "system.posix_acl_access";
pub(crate) const DEFAULT: &str = "system.posix_acl_default";

/// linux/posix_acl_xattr.h: POSIX_ACL_XATTR_VERSION, and the id of entries that name nobody.
const VERSION: u32 = 2;
const NOBODY: u32 = u32::MAX;

/// ext4 has no room for more in a block.
const MOST_ENTRIES: usize = 500;

/// Names of users and groups, as the image's own `passwd` and `group` have them.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub users: BTreeMap<String, u32>,
    pub groups: BTreeMap<String, u32>,
}

/// The third field of each line, by the first: both passwd(5) and group(5).
pub(crate) fn ids(text: &str) -> BTreeMap<String, u32> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            Some((name.to_owned(), fields.nth(1)?.parse().ok()?))
        })
        .collect()
}

/// `None` when the text is no list, or names somebody that `names` does not know.
pub(crate) fn encode(text: &str, names: &Names) -> Option<Vec<u8>> {
    let mut entries = Vec::new();
    for line in text.split([',', '\n']) {
        let line = line.split('#').next()?.trim();
        if !line.is_empty() {
            entries.push(entry(line, names)?);
        }
    }
    if entries.is_empty() || entries.len() > MOST_ENTRIES {
        return None;
    }
    // The kernel takes them in the order of tag and id only.
    entries.sort_unstable();
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    Some(bytes)
}

/// The permission bits that a list says, if it says them of owner, group and others alone (acl(5), "minimal").
pub(crate) fn as_mode(list: &[u8]) -> Option<u16> {
    let entries = list.strip_prefix(&VERSION.to_le_bytes())?;
    if entries.len() != 24 {
        return None;
    }
    let mut mode = 0;
    for (entry, tag) in entries.chunks_exact(8).zip([0x01, 0x04, 0x20]) {
        if entry[..2] != [tag, 0] || entry[2] > 7 || entry[3] != 0 {
            return None;
        }
        mode = mode << 3 | u16::from(entry[2]);
    }
    Some(mode)
}

/// `user:NAME:rwx`, or with the id behind it as star writes it: `user:NAME:rwx:ID`.
fn entry(line: &str, names: &Names) -> Option<(u16, u32, u16)> {
    let fields: Vec<&str> = line.split(':').map(str::trim).collect();
    let (kind, name, permissions) = match fields[..] {
        [kind @ ("mask" | "m" | "other" | "o"), permissions] => (kind, "", permissions),
        [kind, name, permissions, ..] => (kind, name, permissions),
        _ => return None,
    };
    let id = |known: &BTreeMap<String, u32>| {
        let written = fields.get(3).and_then(|id| id.parse().ok());
        written.or_else(|| name.parse().ok()).or_else(|| known.get(name).copied())
    };
    let (tag, id) = match (kind, name) {
        ("user" | "u", "") => (0x01, NOBODY),
        ("user" | "u", _) => (0x02, id(&names.users)?),
        ("group" | "g", "") => (0x04, NOBODY),
        ("group" | "g", _) => (0x08, id(&names.groups)?),
        ("mask" | "m", "") => (0x10, NOBODY),
        ("other" | "o", "") => (0x20, NOBODY),
        _ => return None,
    };
    let mut bits = 0;
    for letter in permissions.chars() {
        bits |= match letter {
            'r' => 4,
            'w' => 2,
            'x' => 1,
            '-' => 0,
            _ => return None,
        };
    }
    Some((tag, id, bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_becomes_what_the_kernel_takes() {
        let names =
            Names { users: ids("root:x:0:0::/:\nlisa:x:502:1::/:\n"), groups: ids("adm:x:4:\n") };
        let expected = [
            2_u32.to_le_bytes().to_vec(),
            [[1, 0, 6, 0], [255; 4]].concat(),
            [[2, 0, 4, 0], 502_u32.to_le_bytes()].concat(),
            [[4, 0, 4, 0], [255; 4]].concat(),
            [[8, 0, 5, 0], 4_u32.to_le_bytes()].concat(),
            [[16, 0, 5, 0], [255; 4]].concat(),
            [[32, 0, 0, 0], [255; 4]].concat(),
        ]
        .concat();
        for text in [
            "user::rw-,user:lisa:r--,group::r--,group:adm:r-x,mask::r-x,other::---",
            "other::---\nmask::r-x\nuser::rw-\nuser:502:r--\ngroup::r--\ngroup:4:r-x\n",
            "u::rw,u:unknown:r:502,g::r,g:adm:rx,m:rx,o:-  # comment",
        ] {
            assert_eq!(encode(text, &names).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn a_list_that_says_no_more_than_the_mode_is_told() {
        let names = Names::default();
        let mode = |text| as_mode(&encode(text, &names).unwrap());
        assert_eq!(mode("user::rwx,group::r-x,other::r--"), Some(0o754));
        assert_eq!(mode("user::rwx,group::r-x,mask::rwx,other::r--"), None);
        assert_eq!(as_mode(b"\x02\0\0\0"), None);
    }

    #[test]
    fn what_is_no_list_or_names_a_stranger_is_refused() {
        for text in
            ["", "user", "user:nobody-here:rwx", "user::rwq", "friend::rwx", "mask:x:rwx", ",,,"]
        {
            assert_eq!(encode(text, &Names::default()), None, "{text:?}");
        }
    }
}
