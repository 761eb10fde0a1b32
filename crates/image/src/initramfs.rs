//! The initramfs of a VM: the archive of its kernel's modules, and after it an archive with the agent as `/init`. The
//! kernel unpacks archives one after the other, each beginning at a multiple of 4 bytes.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use object::LittleEndian;
use object::elf::{EM_X86_64, FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};

use crate::artifact::{self, ArtifactError, failed};
use crate::compression::Bounded;
use crate::cpio::Cpio;

/// Every VM holds the agent in its memory.
const LARGEST_AGENT: u64 = 64 << 20;

/// What the agent mounts on before anything else is there.
const FOLDERS: [&str; 4] = ["dev", "proc", "run", "sys"];

#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{path} cannot be a guest's /init: {why}")]
    NotAnInit { path: PathBuf, why: &'static str },
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

/// Writes the initramfs `out` from the modules of a kernel and the agent.
///
/// # Errors
/// When the agent is no static program for x86-64, or a file cannot be read or written; then `out` is as it was.
pub fn write_initramfs(
    modules_cpio: &Path,
    agent: &Path,
    out: &Path,
) -> Result<(), InitramfsError> {
    let read = |path: &Path, cause| InitramfsError::Read { path: path.to_owned(), cause };
    let mut init = Vec::new();
    File::open(agent)
        .and_then(|file| Bounded::new(file, LARGEST_AGENT).read_to_end(&mut init))
        .map_err(|cause| read(agent, cause))?;
    check_static(&init).map_err(|why| InitramfsError::NotAnInit { path: agent.to_owned(), why })?;
    let modules = fs::read(modules_cpio).map_err(|cause| read(modules_cpio, cause))?;
    artifact::write(out, |file, draft| {
        let padding = modules.len().wrapping_neg() % 4;
        let written = file
            .write_all(&modules)
            .and_then(|()| file.write_all(&[0; 3][..padding]))
            .and_then(|()| write_agent(&mut *file, &init));
        written.map_err(|cause| failed("write", draft)(cause).into())
    })
}

fn write_agent(out: &mut File, init: &[u8]) -> io::Result<()> {
    let mut cpio = Cpio::new(out);
    for folder in FOLDERS {
        cpio.folder(folder)?;
    }
    cpio.file("init", 0o755, init)?;
    cpio.finish().map(|_| ())
}

/// In an initramfs there is no dynamic linker and no library.
fn check_static(elf: &[u8]) -> Result<(), &'static str> {
    let broken = "its ELF headers are damaged";
    let header = FileHeader64::<LittleEndian>::parse(elf)
        .map_err(|_| "it is no 64-bit little-endian ELF")?;
    let endian = header.endian().map_err(|_| broken)?;
    if header.e_machine(endian) != EM_X86_64 {
        return Err("it is for another processor than x86-64");
    }
    let segments = header.program_headers(endian, elf).map_err(|_| broken)?;
    if segments.is_empty() {
        return Err("it is no program");
    }
    if segments.iter().any(|segment| segment.p_type(endian) == PT_INTERP) {
        return Err("it is linked dynamically, and an initramfs has no libraries");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;
    use crate::programs::tests::command;

    #[test]
    fn the_kernel_finds_modules_and_agent_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut modules = Cpio::new(Vec::new());
        modules.file("module", 0o644, b"m").unwrap();
        let modules = modules.finish().unwrap();
        fs::write(path("modules"), &modules).unwrap();
        fs::write(path("agent"), crate::kernel::tests::vmlinux()).unwrap();
        write_initramfs(&path("modules"), &path("agent"), &path("out")).unwrap();

        let whole = fs::read(path("out")).unwrap();
        assert_eq!(&whole[..modules.len()], modules);
        assert_eq!(modules.len() % 4, 0);
        let mut cpio = command("cpio")
            .args(["--list", "--verbose", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        cpio.stdin.take().unwrap().write_all(&whole[modules.len()..]).unwrap();
        let listed = String::from_utf8(cpio.wait_with_output().unwrap().stdout).unwrap();
        let names: Vec<_> =
            listed.lines().map(|line| (&line[..10], line.rsplit(' ').next().unwrap())).collect();
        let folder = |name| ("drwxr-xr-x", name);
        assert_eq!(
            names,
            [folder("dev"), folder("proc"), folder("run"), folder("sys"), ("-rwxr-xr-x", "init")]
        );
    }

    #[test]
    fn an_agent_that_needs_libraries_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("modules"), b"").unwrap();
        for (agent, expected) in [("/bin/sh", "linked dynamically"), ("/etc/passwd", "no 64-bit")] {
            let error =
                write_initramfs(&path("modules"), Path::new(agent), &path("out")).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert!(!path("out").exists());
        }
    }
}
