//! From a kernel as it is distributed to what a VM boots: `vmlinux` (the x86-64 ELF) and `modules.cpio` (what its guest
//! needs and has not built in). Takes a bzImage, a vmlinux, or a Debian or Ubuntu package.
//!
//! A kernel that comes without modules (a vmlinux, a bzImage) is trusted to have all built in: its archive is empty.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use object::LittleEndian;
use object::elf::{EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, NoteType, PT_LOAD, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};
use sha2::{Digest, Sha256};

use crate::apt::{self, AptError};
use crate::artifact::{self, ArtifactError, failed};
use crate::bzimage::{self, BzImageError, LARGEST};
use crate::compression::Bounded;
use crate::cpio::Cpio;
use crate::deb::{self, DebError};
use crate::modules::{Modules, ModulesError};
use crate::{Progress, Trouble, Watch};

const ELF: &[u8] = b"\x7fELF";

/// A kernel in its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedKernel {
    /// As `uname -r` prints it.
    pub release: String,
    /// SHA-256 of the vmlinux, hex.
    pub digest: String,
    /// Of the vmlinux.
    pub size_bytes: u64,
    /// How many modules the archive holds.
    pub modules: u32,
    /// Of the archive.
    pub modules_bytes: u64,
    /// It has the entry that QEMU's microvm boots a vmlinux by (PVH). Firecracker does without.
    pub pvh: bool,
    pub vmlinux: PathBuf,
    pub modules_cpio: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{0} is neither a bzImage, nor a vmlinux, nor a Debian package")]
    NotAKernel(PathBuf),
    #[error("{path} is no bzImage that can be read")]
    BzImage {
        path: PathBuf,
        #[source]
        cause: BzImageError,
    },
    #[error("{path} is no package that can be read")]
    Deb {
        path: PathBuf,
        #[source]
        cause: DebError,
    },
    #[error("the files in {path} cannot be read")]
    Data {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{0} holds no boot/vmlinuz-RELEASE")]
    NoKernelInPackage(PathBuf),
    #[error("{path} holds the kernel {release}, but none of its modules")]
    NoModulesInPackage { path: PathBuf, release: String },
    #[error("the kernel in {path} is none that boots here: {why}")]
    NotBootable { path: PathBuf, why: &'static str },
    #[error("{0} does not say its release (no \"Linux version\" in it)")]
    NoRelease(PathBuf),
    #[error("the modules of {path} do not serve a guest")]
    Modules {
        path: PathBuf,
        #[source]
        cause: ModulesError,
    },
    #[error(transparent)]
    Apt(#[from] AptError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

impl KernelError {
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Artifact(error) if error.is_no_space() => Trouble::NoSpace,
            Self::Modules {
                cause: ModulesError::Keep(cause) | ModulesError::Write(cause), ..
            } => {
                if artifact::is_no_space(cause) {
                    Trouble::NoSpace
                } else {
                    Trouble::Host
                }
            }
            Self::Apt(error) => error.trouble(),
            Self::Artifact(_) => Trouble::Host,
            _ => Trouble::Input,
        }
    }

    /// What to do next, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::NoKernelInPackage(_) => Some(
                "a metapackage holds no kernel itself: import the linux-image package that it depends on, or let apt find it".into(),
            ),
            Self::NoModulesInPackage { release, .. } => Some(format!(
                "Ubuntu keeps them in linux-modules-{release}: import the kernel through apt, which fetches both"
            )),
            Self::Apt(error) => error.remedy(),
            _ => None,
        }
    }
}

/// Imports the kernel in the file `source` into the folder `into`, which is there.
///
/// # Errors
/// When `source` is no kernel that boots a guest, or `into` cannot be written.
pub fn import_kernel(
    source: &Path,
    into: &Path,
    watch: Watch<'_>,
) -> Result<ImportedKernel, KernelError> {
    import(&[source.to_owned()], into, watch)
}

/// Imports the kernel that `package` of the host's configured apt is, or stands for (as `linux-image-cloud-amd64`
/// stands for the newest), into the folder `into`, which is there.
///
/// # Errors
/// When apt does not know the package or cannot fetch it, or it holds no kernel that boots a guest.
pub fn import_kernel_from_apt(
    package: &str,
    into: &Path,
    watch: Watch<'_>,
) -> Result<ImportedKernel, KernelError> {
    artifact::in_scratch(into, |scratch| {
        watch(Progress::Stage {
            name: "download",
            text: &format!("downloading {package} with the host's apt"),
        });
        let packages = apt::download_kernel(package, scratch, watch)?;
        import(&packages, into, watch)
    })
}

/// The first of `sources` holds the kernel; the others, if any, are packages that hold modules of it.
fn import(
    sources: &[PathBuf],
    into: &Path,
    watch: Watch<'_>,
) -> Result<ImportedKernel, KernelError> {
    let source = &sources[0];
    artifact::in_scratch(into, |scratch| {
        watch(Progress::Stage {
            name: "unpack",
            text: &format!("unpacking the kernel of {}", name_of(source)),
        });
        let start = start_of(source)?;
        let found = if start.starts_with(deb::MAGIC) {
            from_packages(sources, scratch, watch)?
        } else {
            if !bzimage::is_bzimage(&start) && !start.starts_with(ELF) {
                return Err(KernelError::NotAKernel(source.clone()));
            }
            Found { kernel: bare(source, whole(source)?)?, modules: None }
        };
        let pvh = check_bootable(source, &found.kernel.vmlinux)?;
        watch(Progress::Stage {
            name: "write",
            text: &format!("writing kernel {}", found.kernel.release),
        });
        write(found, into, pvh, source)
    })
}

/// A file as people call it: its last name.
fn name_of(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()
}

struct Kernel {
    vmlinux: Vec<u8>,
    release: String,
}

struct Found {
    kernel: Kernel,
    modules: Option<Modules>,
}

/// Enough to tell what a file is.
const START: u64 = 4096;

fn start_of(source: &Path) -> Result<Vec<u8>, KernelError> {
    let mut start = Vec::new();
    let read = File::open(source).and_then(|file| file.take(START).read_to_end(&mut start));
    read.map_err(|cause| KernelError::Read { path: source.to_owned(), cause })?;
    Ok(start)
}

fn whole(source: &Path) -> Result<Vec<u8>, KernelError> {
    let mut bytes = Vec::new();
    let read =
        File::open(source).and_then(|file| Bounded::new(file, LARGEST).read_to_end(&mut bytes));
    read.map_err(|cause| KernelError::Read { path: source.to_owned(), cause })?;
    Ok(bytes)
}

/// A bzImage or a vmlinux.
fn bare(path: &Path, bytes: Vec<u8>) -> Result<Kernel, KernelError> {
    let (vmlinux, release) = if bzimage::is_bzimage(&bytes) {
        let image = bzimage::unpack(&bytes)
            .map_err(|cause| KernelError::BzImage { path: path.to_owned(), cause })?;
        (image.vmlinux, image.release)
    } else if bytes.starts_with(ELF) {
        (bytes, None)
    } else {
        return Err(KernelError::NotAKernel(path.to_owned()));
    };
    let release = release
        .or_else(|| release_in(&vmlinux))
        .filter(|release| is_release(release))
        .ok_or_else(|| KernelError::NoRelease(path.to_owned()))?;
    Ok(Kernel { vmlinux, release })
}

/// The word after `Linux version `, which the kernel's banner begins with.
fn release_in(vmlinux: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let mut rest = vmlinux;
    while let Some(at) = rest.iter().position(|&byte| byte == BANNER[0]) {
        rest = &rest[at..];
        if let Some(text) = rest.strip_prefix(BANNER) {
            let word: Vec<u8> =
                text.iter().take(65).copied().take_while(u8::is_ascii_graphic).collect();
            if let Some(release) = String::from_utf8(word).ok().filter(|word| is_release(word)) {
                return Some(release);
            }
        }
        rest = &rest[1..];
    }
    None
}

/// `__NEW_UTS_LEN` is 64; it names a folder of modules and a kernel of ours.
fn is_release(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|first: char| first.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-+~".contains(&byte))
}

fn from_packages(
    sources: &[PathBuf],
    scratch: &Path,
    watch: Watch<'_>,
) -> Result<Found, KernelError> {
    let source = &sources[0];
    let kept = scratch.join("modules");
    let create = File::options().read(true).write(true).create_new(true).open(&kept);
    let mut modules = Modules::new(create.map_err(failed("create", &kept))?);
    let mut image = None;
    let mut releases = Vec::new();
    for path in sources {
        let data = |cause| KernelError::Data { path: path.clone(), cause };
        let mut archive =
            deb::open(path).map_err(|cause| KernelError::Deb { path: path.clone(), cause })?;
        for entry in archive.entries().map_err(data)? {
            let mut entry = entry.map_err(data)?;
            let name =
                String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
            let is_file = entry.header().entry_type().is_file();
            match Part::of(&name) {
                Some(Part::Kernel) if is_file && image.is_none() => {
                    let mut bytes = Vec::new();
                    Bounded::new(&mut entry, LARGEST).read_to_end(&mut bytes).map_err(data)?;
                    image = Some(bytes);
                }
                Some(Part::Builtin) if is_file => {
                    let mut text = String::new();
                    Bounded::new(&mut entry, 1 << 20).read_to_string(&mut text).map_err(data)?;
                    modules.add_builtin(&text);
                }
                Some(Part::Module { release }) if is_file => {
                    if !releases.iter().any(|known| known == release) {
                        releases.push(release.to_owned());
                    }
                    modules
                        .add(&name, &mut entry)
                        .map_err(|cause| KernelError::Modules { path: path.clone(), cause })?;
                }
                _ => {}
            }
        }
        watch(Progress::Stage {
            name: "modules",
            text: &format!("choosing modules of {}", name_of(path)),
        });
    }
    let image = image.ok_or_else(|| KernelError::NoKernelInPackage(source.clone()))?;
    let kernel = bare(source, image)?;
    if modules.is_empty() || releases != [kernel.release.as_str()] {
        return Err(KernelError::NoModulesInPackage {
            path: source.clone(),
            release: kernel.release,
        });
    }
    Ok(Found { kernel, modules: Some(modules) })
}

/// What a package's file is to us.
enum Part<'a> {
    Kernel,
    Module { release: &'a str },
    Builtin,
}

impl<'a> Part<'a> {
    fn of(name: &'a str) -> Option<Self> {
        if name.starts_with("boot/vmlinuz-") {
            return Some(Self::Kernel);
        }
        let in_modules = name.strip_prefix("usr/").unwrap_or(name).strip_prefix("lib/modules/")?;
        let (release, file) = in_modules.split_once('/')?;
        match file {
            "modules.builtin" => Some(Self::Builtin),
            file if file.contains(".ko") => Some(Self::Module { release }),
            _ => None,
        }
    }
}

/// What a VMM checks before it boots an ELF, so that it is said here; whether it has a PVH entry.
pub(crate) fn check_bootable(path: &Path, vmlinux: &[u8]) -> Result<bool, KernelError> {
    let refuse = |why| KernelError::NotBootable { path: path.to_owned(), why };
    let broken = |_| refuse("its ELF headers are damaged");
    let header = FileHeader64::<LittleEndian>::parse(vmlinux)
        .map_err(|_| refuse("it is no 64-bit little-endian ELF"))?;
    let endian = header.endian().map_err(broken)?;
    if header.e_machine(endian) != EM_X86_64 {
        return Err(refuse("it is for another processor than x86-64"));
    }
    if ![ET_EXEC, ET_DYN].contains(&header.e_type(endian)) {
        return Err(refuse("it is no executable ELF"));
    }
    let mut segments = 0;
    let mut pvh = false;
    for segment in header.program_headers(endian, vmlinux).map_err(broken)? {
        match segment.p_type(endian) {
            PT_LOAD => {
                segment.data(endian, vmlinux).map_err(|()| refuse("it is cut short"))?;
                segments += 1;
            }
            PT_NOTE => pvh |= has_pvh_note(segment, endian, vmlinux),
            _ => {}
        }
    }
    if segments == 0 {
        return Err(refuse("it has nothing to load"));
    }
    Ok(pvh)
}

/// XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h), by the owner `Xen`.
fn has_pvh_note(
    segment: &object::elf::ProgramHeader64<LittleEndian>,
    endian: LittleEndian,
    vmlinux: &[u8],
) -> bool {
    const PHYS32_ENTRY: NoteType = NoteType(18);
    let Ok(Some(mut notes)) = segment.notes(endian, vmlinux) else { return false };
    while let Ok(Some(note)) = notes.next() {
        if note.name() == b"Xen" && note.n_type(endian) == PHYS32_ENTRY {
            return true;
        }
    }
    false
}

fn write(
    found: Found,
    into: &Path,
    pvh: bool,
    source: &Path,
) -> Result<ImportedKernel, KernelError> {
    let Found { kernel, modules } = found;
    let modules_cpio = into.join("modules.cpio");
    let (modules, modules_bytes) = artifact::write(&modules_cpio, |file, draft| {
        let mut out = io::BufWriter::new(file);
        let count = match &modules {
            Some(modules) => modules
                .write(&mut out)
                .map_err(|cause| KernelError::Modules { path: source.to_owned(), cause })?,
            None => {
                Cpio::new(&mut out).finish().map_err(failed("write", draft))?;
                0
            }
        };
        out.flush().map_err(failed("write", draft))?;
        let length = out.get_ref().metadata().map_err(failed("look at", draft))?.len();
        Ok::<_, KernelError>((count, length))
    })?;
    let vmlinux = into.join("vmlinux");
    artifact::write(&vmlinux, |file, draft| {
        file.write_all(&kernel.vmlinux).map_err(failed("write", draft))
    })?;
    Ok(ImportedKernel {
        release: kernel.release,
        digest: hex(&Sha256::digest(&kernel.vmlinux)),
        size_bytes: kernel.vmlinux.len() as u64,
        modules,
        modules_bytes,
        pvh,
        vmlinux,
        modules_cpio,
    })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The smallest ELF that is taken for a kernel: one segment, a PVH note, a banner.
    pub(crate) fn vmlinux() -> Vec<u8> {
        let banner = b"Linux version 9.8.7-test (x@y) #1\0\0\0";
        let note = [&[4, 0, 0, 0, 8, 0, 0, 0, 18, 0, 0, 0][..], b"Xen\0", &[0; 8]].concat();
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        elf.extend([0; 8]);
        elf.extend(64_u64.to_le_bytes());
        elf.extend([0; 12]);
        elf.extend([64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        let contents = [(1_u32, &banner[..]), (4, &note[..])];
        let mut at = 64 + 2 * 56;
        for (kind, content) in contents {
            elf.extend(kind.to_le_bytes());
            elf.extend(5_u32.to_le_bytes());
            for value in [at, 0, 0, content.len() as u64, content.len() as u64, 4] {
                elf.extend(value.to_le_bytes());
            }
            at += content.len() as u64;
        }
        elf.extend(contents.iter().flat_map(|(_, content)| *content));
        elf
    }

    fn import_bytes(bytes: &[u8]) -> (tempfile::TempDir, Result<ImportedKernel, KernelError>) {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        let into = folder.path().join("kernel");
        std::fs::write(&source, bytes).unwrap();
        std::fs::create_dir(&into).unwrap();
        let imported = import_kernel(&source, &into, &|_| {});
        let left = std::fs::read_dir(&into).unwrap().count();
        assert_eq!(left, if imported.is_ok() { 2 } else { 0 }, "nothing else is left");
        (folder, imported)
    }

    fn deb_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        let data = liblzma::encode_all(&builder.into_inner().unwrap()[..], 1).unwrap();
        deb::tests::package(&[
            ("debian-binary", b"2.0\n"),
            ("control.tar.xz", b"c"),
            ("data.tar.xz", &data),
        ])
    }

    fn bzimage_of_vmlinux() -> Vec<u8> {
        bzimage::tests::image(&liblzma::encode_all(&vmlinux()[..], 1).unwrap(), "9.8.7-test")
    }

    const BUILTIN: &[u8] =
        b"kernel/virtio_ring.ko\nkernel/virtio.ko\nkernel/virtio_mmio.ko\nkernel/virtio_pci.ko\n\
        kernel/virtio_blk.ko\nkernel/virtio_console.ko\nkernel/ext4.ko\n";

    #[test]
    fn a_vmlinux_is_taken_as_it_is() {
        let (_folder, imported) = import_bytes(&vmlinux());
        let imported = imported.unwrap();
        assert_eq!(
            (imported.release.as_str(), imported.modules, imported.pvh),
            ("9.8.7-test", 0, true)
        );
        assert_eq!(std::fs::read(&imported.vmlinux).unwrap(), vmlinux());
        assert_eq!(imported.modules_bytes % 4, 0);
    }

    #[test]
    fn a_bzimage_gives_the_vmlinux_in_it() {
        let (_folder, imported) = import_bytes(&bzimage_of_vmlinux());
        assert_eq!(std::fs::read(imported.unwrap().vmlinux).unwrap(), vmlinux());
    }

    #[test]
    fn a_package_gives_the_kernel_and_the_modules_that_a_guest_needs() {
        let overlay = crate::modules::tests::module(&["depends="]);
        for folder in ["./lib", "./usr/lib"] {
            let (_folder, imported) = import_bytes(&deb_of(&[
                (&format!("{folder}/modules/9.8.7-test/kernel/fs/overlay.ko"), &overlay),
                (&format!("{folder}/modules/9.8.7-test/kernel/other.ko"), &overlay),
                (&format!("{folder}/modules/9.8.7-test/modules.builtin"), BUILTIN),
                ("./boot/vmlinuz-9.8.7-test", &bzimage_of_vmlinux()),
            ]));
            let imported = imported.unwrap();
            assert_eq!((imported.release.as_str(), imported.modules), ("9.8.7-test", 1));
        }
    }

    #[test]
    fn a_package_without_its_modules_or_its_kernel_is_refused_with_a_remedy() {
        let (_folder, imported) =
            import_bytes(&deb_of(&[("./boot/vmlinuz-9.8.7-test", &bzimage_of_vmlinux())]));
        let error = imported.unwrap_err();
        assert!(matches!(&error, KernelError::NoModulesInPackage { .. }), "{error}");
        assert!(error.remedy().unwrap().contains("linux-modules-9.8.7-test"));
        let (_folder, imported) = import_bytes(&deb_of(&[("./usr/share/doc/x", b"")]));
        assert!(imported.unwrap_err().remedy().unwrap().contains("metapackage"));
    }

    #[test]
    fn a_package_whose_kernel_cannot_boot_a_guest_names_the_modules_it_lacks() {
        let module = crate::modules::tests::module(&["depends="]);
        let (_folder, imported) = import_bytes(&deb_of(&[
            ("./lib/modules/9.8.7-test/kernel/fuse.ko", &module),
            ("./lib/modules/9.8.7-test/modules.builtin", BUILTIN),
            ("./boot/vmlinuz-9.8.7-test", &bzimage_of_vmlinux()),
        ]));
        let Err(KernelError::Modules { cause, .. }) = imported else { panic!("it was taken") };
        assert!(cause.to_string().contains("overlay"), "{cause}");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let mut for_arm = vmlinux();
        for_arm[18] = 0xb7;
        let cut = vmlinux()[..200].to_vec();
        for bytes in [b"".to_vec(), b"text".to_vec(), vec![0; 4096], for_arm, cut] {
            let (_folder, imported) = import_bytes(&bytes);
            assert_eq!(imported.unwrap_err().trouble(), Trouble::Input);
        }
    }
}
