//! Extended attributes of open files, as far as they are copied: `user.*` always; of the system's, file capabilities and
//! access control lists, and only into copies that are exact.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;

/// linux/limits.h: XATTR_LIST_MAX, XATTR_SIZE_MAX.
const LONGEST_LIST: usize = 64 << 10;
const LARGEST: usize = 64 << 10;

const SYSTEM: [&[u8]; 3] =
    [b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"];

pub(crate) fn is_kept(name: &[u8], exact: bool) -> bool {
    name.starts_with(b"user.") || exact && SYSTEM.contains(&name)
}

/// What the file has, by full name; nothing where the file system has none.
pub(crate) fn of(file: impl AsFd) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Errno> {
    let mut list = vec![0; LONGEST_LIST];
    let length = match flistxattr(&file, &mut list[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS | Errno::BADF) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for name in list[..length].split_inclusive(|&byte| byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if !is_kept(name.to_bytes(), true) {
            continue;
        }
        let mut value = vec![0; LARGEST];
        match fgetxattr(&file, name, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                found.push((name.to_bytes().to_vec(), value));
            }
            // It was taken away meanwhile, or is not for us to read.
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// # Errors
/// `OPNOTSUPP` where the file system has none.
pub(crate) fn set(file: impl AsFd, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    let name = [name, b"\0"].concat();
    let name = CStr::from_bytes_with_nul(&name).map_err(|_| Errno::INVAL)?;
    fsetxattr(file, name, value, XattrFlags::empty())
}
