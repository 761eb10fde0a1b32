//! One side of a copy, as it is written: `NAME:PATH`, `PATH` or `-`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Where from, or where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Host(Vec<u8>),
    Guest {
        vm: String,
        path: Vec<u8>,
    },
    /// A tar stream on stdin or stdout.
    Stream,
}

impl Place {
    /// What stands before the first `:` is a VM, unless there is a `/` or a `.` in it: `./a:b` is a file of the host.
    pub(crate) fn parse(text: &OsStr) -> Self {
        let bytes = text.as_bytes();
        if bytes == b"-" {
            return Place::Stream;
        }
        let parts = bytes.iter().position(|&byte| byte == b':').map(|at| bytes.split_at(at));
        match parts {
            Some((vm, path)) if !vm.is_empty() && !vm.contains(&b'/') && !vm.starts_with(b".") => {
                let vm = String::from_utf8_lossy(vm).into_owned();
                Place::Guest { vm, path: path[1..].to_vec() }
            }
            _ => Place::Host(bytes.to_vec()),
        }
    }
}

/// A path as the system takes it.
pub(super) fn os(path: &[u8]) -> OsString {
    OsString::from_vec(path.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_stands_before_the_first_colon() {
        let check = |text: &str, expected: Place| {
            assert_eq!(Place::parse(OsStr::new(text)), expected, "{text}");
        };
        let guest = |vm: &str, path: &str| Place::Guest { vm: vm.into(), path: path.into() };
        let host = |path: &str| Place::Host(path.into());
        check("-", Place::Stream);
        check("web:/etc/motd", guest("web", "/etc/motd"));
        check("web:", guest("web", ""));
        check("web:a:b", guest("web", "a:b"));
        check("./web:a", host("./web:a"));
        check("/tmp/web:a", host("/tmp/web:a"));
        check(":a", host(":a"));
        check("file", host("file"));
        check("./-", host("./-"));
    }
}
