//! POSIX access control lists: from the form of getxattr(2) (linux/posix_acl_xattr.h, version 2, 8 bytes an entry) to
//! ext4's (fs/ext4/acl.h, version 1), which leaves out the id where it means nothing.

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// `Ok(None)`: a list without entries, which Linux takes for no list. The error is the rule that the list breaks.
pub(crate) fn on_disk(value: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    let (version, entries) = value.split_at_checked(4).ok_or("it is too short")?;
    if version != 2_u32.to_le_bytes() {
        return Err("its version is not 2");
    }
    if !entries.len().is_multiple_of(8) {
        return Err("it ends inside an entry");
    }
    if entries.is_empty() {
        return Ok(None);
    }
    let mut disk = 1_u32.to_le_bytes().to_vec();
    let mut tags = Vec::new();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let permissions = u16::from_le_bytes([entry[2], entry[3]]);
        if permissions > 7 {
            return Err("a permission is not one of rwx");
        }
        disk.extend(&entry[..4]);
        match tag {
            USER_OBJ | GROUP_OBJ | MASK | OTHER => {}
            USER | GROUP => disk.extend(&entry[4..]),
            _ => return Err("an entry is for nobody that Linux knows"),
        }
        tags.push(tag);
    }
    // As Linux wants them: ascending, each but users and groups once, a mask if there are any of those.
    if !tags.is_sorted() {
        return Err("its entries are not in order");
    }
    let count = |tag| tags.iter().filter(|&&each| each == tag).count();
    let named = count(USER) + count(GROUP) > 0;
    if [USER_OBJ, GROUP_OBJ, OTHER].into_iter().any(|tag| count(tag) != 1)
        || count(MASK) > 1
        || named && count(MASK) == 0
    {
        return Err("owner, group, others or mask are not there once");
    }
    Ok(Some(disk))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    const NOBODY: u32 = u32::MAX;

    #[test]
    fn only_named_users_and_groups_keep_an_id() {
        let value = list(&[
            (USER_OBJ, 7, NOBODY),
            (USER, 6, 1000),
            (GROUP_OBJ, 5, NOBODY),
            (MASK, 7, NOBODY),
            (OTHER, 0, NOBODY),
        ]);
        let disk = [
            &[1, 0, 0, 0][..],
            &[1, 0, 7, 0],
            &[2, 0, 6, 0, 0xe8, 3, 0, 0],
            &[4, 0, 5, 0],
            &[16, 0, 7, 0],
            &[32, 0, 0, 0],
        ]
        .concat();
        assert_eq!(on_disk(&value), Ok(Some(disk)));
    }

    #[test]
    fn a_list_that_linux_would_refuse_is_refused() {
        let minimal = [(USER_OBJ, 7, NOBODY), (GROUP_OBJ, 5, NOBODY), (OTHER, 0, NOBODY)];
        assert!(on_disk(&list(&minimal)).is_ok());
        assert_eq!(on_disk(&list(&[])), Ok(None));
        let of = |entries: &[_]| on_disk(&list(entries)).unwrap_err();
        assert_eq!(of(&minimal[..2]), "owner, group, others or mask are not there once");
        assert_eq!(of(&[minimal[1], minimal[0], minimal[2]]), "its entries are not in order");
        assert_eq!(of(&[(USER_OBJ, 8, 0)]), "a permission is not one of rwx");
        assert_eq!(of(&[(3, 7, 0)]), "an entry is for nobody that Linux knows");
        let unmasked = [minimal[0], (USER, 7, 1), minimal[1], minimal[2]];
        assert_eq!(of(&unmasked), "owner, group, others or mask are not there once");
        assert_eq!(on_disk(&[2, 0, 0]), Err("it is too short"));
        assert_eq!(on_disk(&[1, 0, 0, 0]), Err("its version is not 2"));
        assert_eq!(on_disk(&[2, 0, 0, 0, 1]), Err("it ends inside an entry"));
    }
}
