//! Which of a kernel's modules a guest needs, and in what order they load. Reads each module's own `.modinfo`
//! (MODULE_INFO in the kernel's include/linux/moduleparam.h): no depmod, no files made by one.
//!
//! The archive holds `/lib/banger/modules/list`, whose lines say `boot FILE` or `late FILE` in load order, and the files
//! themselves, unpacked. `boot` is what the root disk and a serial channel to the agent need; `late` may load after the
//! agent is up; whoever needs one of them sooner (vsock for a channel, virtio_net for a network) loads the list up to it first.
//! A module that is built in, or that this kernel does not have, is not in the list.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use object::LittleEndian;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, SectionHeader};

use crate::compression::{self, Format};
use crate::cpio::Cpio;

/// Without these there is no root disk and no agent: each must be built in or present.
const BOOT: [&str; 8] = [
    "virtio_ring",
    "virtio",
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "ext4",
    "overlay",
];

/// Loaded for boot where there are such: ext4 takes its checksums from whatever crc32c the kernel's crypto has, and the
/// processor's own is many times as fast as the generic one. And what systemd mounts with before anything late can be
/// there on a busy machine: a mount that fails makes it "degraded".
const BOOT_IF_PRESENT: [&str; 4] = ["crc32c_generic", "crc32c_intel", "autofs4", "binfmt_misc"];

/// What systemd, containers, sshfs, VPNs and image tools in a guest ask for, and the guest's devices.
const LATE: [&str; 9] = [
    "vmw_vsock_virtio_transport",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "fuse",
    "tun",
    "loop",
    "squashfs",
    "erofs",
];

/// Where the archive holds them.
const FOLDER: &str = "lib/banger/modules";

/// Debian's largest module has 8 MiB (amdgpu, 20).
const LARGEST_MODULE: u64 = 64 << 20;

/// Debian's kernel has 4,000.
const MOST_MODULES: usize = 20_000;

/// No chain of dependencies is longer; the longest in Debian's kernel has 8.
const DEEPEST: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    #[error("cannot keep the modules in a temporary file")]
    Keep(#[source] io::Error),
    #[error("the module {name} cannot be unpacked")]
    Unpack {
        name: String,
        #[source]
        cause: io::Error,
    },
    #[error("{0} is no kernel module: it has no .modinfo")]
    NotAModule(String),
    #[error("the kernel lacks what a guest needs to boot: {} is neither built in nor a module of it", .0.join(", "))]
    Missing(Vec<String>),
    #[error("the modules depend on each other more than {DEEPEST} deep, at {0}")]
    TooDeep(String),
    #[error("the kernel has more than {MOST_MODULES} modules")]
    TooMany,
    #[error("cannot write the archive of modules")]
    Write(#[source] io::Error),
}

/// What `.modinfo` says of a module.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Modinfo {
    depends: Vec<String>,
    /// `softdep=pre: …`: load these before, if they are there.
    before: Vec<String>,
    aliases: Vec<String>,
}

impl Modinfo {
    /// `None` when the bytes are no ELF object with a `.modinfo`.
    pub(crate) fn parse(elf: &[u8]) -> Option<Self> {
        let header = FileHeader64::<LittleEndian>::parse(elf).ok()?;
        let endian = header.endian().ok()?;
        let sections = header.sections(endian, elf).ok()?;
        let (_, section) = sections.section_by_name(endian, b".modinfo")?;
        let mut modinfo = Self::default();
        for entry in section.data(endian, elf).ok()?.split(|&byte| byte == 0) {
            let Some((key, value)) =
                std::str::from_utf8(entry).ok().and_then(|entry| entry.split_once('='))
            else {
                continue;
            };
            match key {
                "depends" => modinfo
                    .depends
                    .extend(value.split(',').filter(|name| !name.is_empty()).map(module_name)),
                "softdep" => modinfo.before.extend(soft_before(value)),
                "alias" => modinfo.aliases.push(value.to_owned()),
                _ => {}
            }
        }
        Some(modinfo)
    }
}

/// `pre: a b post: c` → a, b.
fn soft_before(value: &str) -> impl Iterator<Item = String> {
    let mut before = false;
    value.split_whitespace().filter_map(move |word| match word {
        "pre:" => {
            before = true;
            None
        }
        "post:" => {
            before = false;
            None
        }
        name => before.then(|| name.to_owned()),
    })
}

/// The kernel writes `-` in a name as `_`, file names have either.
fn module_name(text: &str) -> String {
    text.replace('-', "_")
}

struct Module {
    file: String,
    modinfo: Modinfo,
    format: Format,
    offset: u64,
    length: u64,
}

/// All modules of one kernel, their bytes kept in a temporary file.
pub(crate) struct Modules {
    kept: File,
    end: u64,
    by_name: BTreeMap<String, Module>,
    by_alias: BTreeMap<String, Vec<String>>,
    builtin: BTreeSet<String>,
}

/// A module's file, and whether it is needed to boot.
#[derive(Debug, PartialEq, Eq)]
struct Load<'a> {
    name: &'a str,
    boot: bool,
}

impl Modules {
    /// `kept` is an empty file for the modules' bytes.
    pub(crate) fn new(kept: File) -> Self {
        Self {
            kept,
            end: 0,
            by_name: BTreeMap::new(),
            by_alias: BTreeMap::new(),
            builtin: BTreeSet::new(),
        }
    }

    /// Takes the module that `path` names, if it names one: `NAME.ko`, `NAME.ko.xz`, `.zst`, `.gz`.
    pub(crate) fn add(&mut self, path: &str, content: &mut dyn Read) -> Result<(), ModulesError> {
        let Some(file) = module_file(path) else { return Ok(()) };
        if self.by_name.len() == MOST_MODULES {
            return Err(ModulesError::TooMany);
        }
        let unpack = |cause| ModulesError::Unpack { name: file.to_owned(), cause };
        let mut packed = Vec::new();
        compression::Bounded::new(content, LARGEST_MODULE)
            .read_to_end(&mut packed)
            .map_err(unpack)?;
        let format = Format::detect(&packed);
        let modinfo = match format {
            Format::Plain => Modinfo::parse(&packed),
            _ => Modinfo::parse(
                &compression::unpack(format, &packed, LARGEST_MODULE).map_err(unpack)?,
            ),
        };
        let modinfo = modinfo.ok_or_else(|| ModulesError::NotAModule(file.to_owned()))?;
        self.kept.write_all(&packed).map_err(ModulesError::Keep)?;
        let name = module_name(file.strip_suffix(".ko").expect("module_file gives names with .ko"));
        for alias in &modinfo.aliases {
            self.by_alias.entry(alias.clone()).or_default().push(name.clone());
        }
        let length = packed.len() as u64;
        self.by_name.insert(
            name,
            Module { file: file.to_owned(), modinfo, format, offset: self.end, length },
        );
        self.end += length;
        Ok(())
    }

    /// Takes the kernel's `modules.builtin`: a path a line.
    pub(crate) fn add_builtin(&mut self, text: &str) {
        self.builtin.extend(
            text.lines()
                .filter_map(module_file)
                .filter_map(|file| file.strip_suffix(".ko"))
                .map(module_name),
        );
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Writes the archive; gives the number of modules in it.
    pub(crate) fn write(&self, out: impl Write) -> Result<u32, ModulesError> {
        let loads = self.loads()?;
        let mut cpio = Cpio::new(out);
        let written = (|| {
            for folder in ["lib", "lib/banger", FOLDER] {
                cpio.folder(folder)?;
            }
            let list: String = loads
                .iter()
                .map(|load| {
                    format!(
                        "{} {}\n",
                        if load.boot { "boot" } else { "late" },
                        self.by_name[load.name].file
                    )
                })
                .collect();
            cpio.file(&format!("{FOLDER}/list"), 0o644, list.as_bytes())
        })();
        written.map_err(ModulesError::Write)?;
        for load in &loads {
            let module = &self.by_name[load.name];
            let content = self.content(module)?;
            cpio.file(&format!("{FOLDER}/{}", module.file), 0o644, &content)
                .map_err(ModulesError::Write)?;
        }
        cpio.finish().map_err(ModulesError::Write)?;
        Ok(u32::try_from(loads.len()).expect("there are at most MOST_MODULES"))
    }

    fn content(&self, module: &Module) -> Result<Vec<u8>, ModulesError> {
        let mut packed = Vec::new();
        (&self.kept)
            .seek(SeekFrom::Start(module.offset))
            .and_then(|_| (&self.kept).take(module.length).read_to_end(&mut packed))
            .map_err(ModulesError::Keep)?;
        match module.format {
            Format::Plain => Ok(packed),
            format => compression::unpack(format, &packed, LARGEST_MODULE)
                .map_err(|cause| ModulesError::Unpack { name: module.file.clone(), cause }),
        }
    }

    /// What to load, in order: a module comes after all that it depends on, and once.
    fn loads(&self) -> Result<Vec<Load<'_>>, ModulesError> {
        let mut missing = Vec::new();
        let mut order = Vec::new();
        for name in BOOT {
            if self.builtin.contains(name) {
                continue;
            }
            match self.by_name.get_key_value(name) {
                Some((name, _)) => missing.extend(self.need(name, &mut order)?),
                None => missing.push(name.to_owned()),
            }
        }
        if !missing.is_empty() {
            return Err(ModulesError::Missing(missing));
        }
        self.want(&BOOT_IF_PRESENT, &mut order)?;
        let boot = order.len();
        self.want(&LATE, &mut order)?;
        Ok(order
            .into_iter()
            .enumerate()
            .map(|(index, name)| Load { name, boot: index < boot })
            .collect())
    }

    /// Appends what is there of `names`, and that can be loaded.
    fn want<'a>(&'a self, names: &[&str], order: &mut Vec<&'a str>) -> Result<(), ModulesError> {
        for name in names {
            let Some((name, _)) = self.by_name.get_key_value(*name) else { continue };
            let before = order.len();
            if !self.need(name, order)?.is_empty() {
                order.truncate(before);
            }
        }
        Ok(())
    }

    /// Appends `name` and all that it depends on; gives the names of those that the kernel does not have.
    fn need<'a>(
        &'a self,
        name: &'a str,
        order: &mut Vec<&'a str>,
    ) -> Result<Vec<String>, ModulesError> {
        let mut missing = Vec::new();
        let mut path = Vec::new();
        self.visit(name, order, &mut path, &mut missing)?;
        Ok(missing)
    }

    fn visit<'a>(
        &'a self,
        name: &'a str,
        order: &mut Vec<&'a str>,
        path: &mut Vec<&'a str>,
        missing: &mut Vec<String>,
    ) -> Result<(), ModulesError> {
        // One that is in the path depends on itself in a circle: the kernel loads neither, whatever the order.
        if order.contains(&name) || path.contains(&name) || self.builtin.contains(name) {
            return Ok(());
        }
        let Some((name, module)) = self.by_name.get_key_value(name) else {
            missing.push(name.to_owned());
            return Ok(());
        };
        if path.len() == DEEPEST {
            return Err(ModulesError::TooDeep(name.clone()));
        }
        path.push(name);
        for soft in &module.modinfo.before {
            for name in self.named(soft) {
                let (before, mut absent) = (order.len(), Vec::new());
                self.visit(name, order, path, &mut absent)?;
                if !absent.is_empty() {
                    order.truncate(before);
                }
            }
        }
        for depended in &module.modinfo.depends {
            self.visit(depended, order, path, missing)?;
        }
        path.pop();
        order.push(name);
        Ok(())
    }

    /// The modules that a soft dependency means: by their name, or by an alias such as `crypto-crc32c`.
    fn named(&self, soft: &str) -> Vec<&str> {
        if let Some((name, _)) = self.by_name.get_key_value(&module_name(soft)) {
            return vec![name];
        }
        self.by_alias.get(soft).into_iter().flatten().map(String::as_str).collect()
    }
}

/// `a/b/virtio_net.ko.xz` → `virtio_net.ko`, if it names a module, in characters that a list's line can hold.
fn module_file(path: &str) -> Option<&str> {
    let file = path.rsplit('/').next()?;
    let file =
        [".xz", ".zst", ".gz"].iter().find_map(|suffix| file.strip_suffix(suffix)).unwrap_or(file);
    let stem = file.strip_suffix(".ko")?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-+.".contains(&byte);
    (!stem.is_empty() && stem.len() <= 64 && stem.bytes().all(plain)).then_some(file)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A relocatable ELF that has a `.modinfo` and nothing else.
    pub(crate) fn module(modinfo: &[&str]) -> Vec<u8> {
        let content: Vec<u8> =
            modinfo.iter().flat_map(|entry| [entry.as_bytes(), b"\0"].concat()).collect();
        let names = b"\0.modinfo\0.shstrtab\0";
        let (content_at, names_at) = (64_u64, 64 + content.len() as u64);
        let sections_at = names_at + names.len() as u64;
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\x3e\0\x01\0\0\0".to_vec();
        elf.extend([0; 16]);
        elf.extend(sections_at.to_le_bytes());
        elf.extend([0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 64, 0, 3, 0, 2, 0]);
        elf.extend(&content);
        elf.extend(names);
        let mut section = |name: u32, kind: u32, at: u64, size: u64| {
            elf.extend(name.to_le_bytes());
            elf.extend(kind.to_le_bytes());
            elf.extend([0; 16]);
            elf.extend(at.to_le_bytes());
            elf.extend(size.to_le_bytes());
            elf.extend([0; 24]);
        };
        section(0, 0, 0, 0);
        section(1, 1, content_at, content.len() as u64);
        section(10, 3, names_at, names.len() as u64);
        elf
    }

    fn modules(builtin: &[&str], present: &[(&str, &[&str])]) -> Modules {
        let mut modules = Modules::new(tempfile::tempfile().unwrap());
        let paths: String = builtin.iter().map(|name| format!("kernel/x/{name}.ko\n")).collect();
        modules.add_builtin(&paths);
        for (file, modinfo) in present {
            modules.add(&format!("kernel/{file}"), &mut &module(modinfo)[..]).unwrap();
        }
        modules
    }

    fn order(modules: &Modules) -> Vec<String> {
        let loads = modules.loads().unwrap();
        loads
            .iter()
            .map(|load| format!("{}{}", if load.boot { "" } else { "late:" }, load.name))
            .collect()
    }

    const ALL: [&str; 8] = BOOT;

    #[test]
    fn modinfo_is_read_as_the_kernel_writes_it() {
        let elf = module(&[
            "license=GPL",
            "depends=a-b,c",
            "softdep=pre: x y post: z",
            "softdep=post: w",
            "alias=crypto-crc32c",
            "parm=q:=",
        ]);
        assert_eq!(
            Modinfo::parse(&elf).unwrap(),
            Modinfo {
                depends: vec!["a_b".into(), "c".into()],
                before: vec!["x".into(), "y".into()],
                aliases: vec!["crypto-crc32c".into()],
            }
        );
        assert_eq!(Modinfo::parse(b"\x7fELF"), None);
    }

    #[test]
    fn a_kernel_with_everything_built_in_needs_no_modules() {
        assert_eq!(order(&modules(&ALL, &[])), [""; 0]);
    }

    #[test]
    fn what_a_module_depends_on_comes_before_it_and_once() {
        let found = order(&modules(
            &["ext4", "overlay", "virtio_console"],
            &[
                ("virtio-blk.ko", &["depends=virtio_ring,virtio"]),
                ("virtio_pci.ko", &["depends=virtio_pci_modern_dev,virtio"]),
                ("virtio_pci_modern_dev.ko", &["depends="]),
                ("virtio_mmio.ko", &["depends=virtio"]),
                ("virtio.ko", &["depends="]),
                ("virtio_ring.ko", &["depends="]),
                ("virtio_net.ko", &["depends=net_failover,virtio"]),
                ("net_failover.ko", &["depends="]),
            ],
        ));
        assert_eq!(
            found,
            [
                "virtio_ring",
                "virtio",
                "virtio_mmio",
                "virtio_pci_modern_dev",
                "virtio_pci",
                "virtio_blk",
                "late:net_failover",
                "late:virtio_net",
            ]
        );
    }

    #[test]
    fn what_a_vsock_channel_needs_comes_before_all_that_may_wait() {
        let found = order(&modules(
            &ALL,
            &[
                ("virtio_net.ko", &[]),
                ("vmw_vsock_virtio_transport.ko", &["depends=vsock,virtio_common"]),
                ("virtio_common.ko", &["depends=vsock"]),
                ("vsock.ko", &[]),
            ],
        ));
        assert_eq!(
            found,
            [
                "late:vsock",
                "late:virtio_common",
                "late:vmw_vsock_virtio_transport",
                "late:virtio_net"
            ]
        );
    }

    #[test]
    fn a_soft_dependency_is_found_by_its_alias_and_may_be_absent() {
        let found = order(&modules(
            &ALL[..6],
            &[
                ("ext4.ko", &["depends=jbd2", "softdep=pre: crypto-crc32c no-such"]),
                ("jbd2.ko", &[]),
                ("crc32c_generic.ko", &["alias=crypto-crc32c"]),
                ("overlay.ko", &[]),
            ],
        ));
        assert_eq!(found, ["crc32c_generic", "jbd2", "ext4", "overlay"]);
    }

    #[test]
    fn what_boot_lacks_is_named_and_what_else_lacks_is_left_out() {
        let lacking = modules(&ALL[..6], &[("ext4.ko", &["depends=jbd2"])]);
        let error = lacking.loads().unwrap_err();
        assert_eq!(
            error.to_string(),
            "the kernel lacks what a guest needs to boot: jbd2, overlay is neither built in nor a module of it"
        );
        assert_eq!(
            order(&modules(&ALL, &[("tun.ko", &["depends=no_such"]), ("fuse.ko", &[])])),
            ["late:fuse"]
        );
    }

    #[test]
    fn a_circle_of_dependencies_ends() {
        let found = order(&modules(
            &ALL,
            &[("tun.ko", &["depends=fuse"]), ("fuse.ko", &["depends=tun", "softdep=pre: fuse"])],
        ));
        assert_eq!(found, ["late:tun", "late:fuse"]);
    }

    #[test]
    fn a_chain_that_is_too_long_is_refused() {
        let names: Vec<String> = (0..100).map(|n| format!("m{n}")).collect();
        let mut modules = modules(&ALL, &[("tun.ko", &["depends=m0"])]);
        for pair in names.windows(2) {
            modules
                .add(
                    &format!("{}.ko", pair[0]),
                    &mut &module(&[&format!("depends={}", pair[1])])[..],
                )
                .unwrap();
        }
        assert!(matches!(modules.loads(), Err(ModulesError::TooDeep(_))));
    }

    #[test]
    fn compressed_modules_are_unpacked_into_the_archive() {
        let plain = module(&["depends="]);
        let mut modules = modules(&ALL, &[]);
        modules.add("a/fuse.ko.xz", &mut &liblzma::encode_all(&plain[..], 1).unwrap()[..]).unwrap();
        let mut archive = Vec::new();
        assert_eq!(modules.write(&mut archive).unwrap(), 1);
        let contains = |bytes: &[u8]| archive.windows(bytes.len()).any(|window| window == bytes);
        assert!(contains(b"lib/banger/modules/fuse.ko\0"));
        assert!(contains(b"late fuse.ko\n"));
        assert!(contains(&plain));
    }

    #[test]
    fn names_that_a_list_cannot_hold_are_no_modules() {
        for path in ["a b.ko", "a\n.ko", ".ko", "a.ko.bz2", "a", "x/é.ko"] {
            assert_eq!(module_file(path), None, "{path:?}");
        }
        assert_eq!(module_file("/x/virtio-rng.ko.zst"), Some("virtio-rng.ko"));
    }
}
