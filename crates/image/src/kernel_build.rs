//! A guest's kernel from the source package of the host's distribution: what every kernel must have (`make tinyconfig`),
//! then what guests need (guest.config), then what the user wants. Everything is built in, so its guests load no module.
//!
//! Kconfig turns an option off without a word when something that it depends on is off. So what was asked for is compared
//! with what came out, before anything is compiled.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::apt::{self, AptError};
use crate::artifact::{self, ArtifactError, failed};
use crate::compression::{self, Bounded, Format};
use crate::deb::{self, DebError};
use crate::kernel::{self, ImportedKernel, KernelError};
use crate::programs::{BC, BISON, Call, FLEX, GCC, LD, MAKE, PERL, ProgramError};
use crate::{Progress, Trouble, Watch};

/// The package that stands for the distribution's newest source.
pub const DEFAULT_SOURCE: &str = "linux-source";
const GUEST: &str = include_str!("kernel_build/guest.config");

/// A user's fragment is refused when it is larger: a whole .config has 300 KB.
pub const LARGEST_FRAGMENT: usize = 1 << 20;
const CONFIGURE: Duration = Duration::from_secs(600);
const COMPILE: Duration = Duration::from_secs(2 * 60 * 60);
/// Linux 6.1 unpacks to 1.3 GB.
const LARGEST_SOURCE: u64 = 8 << 30;
/// Room for the source and for what is compiled of it.
const NEEDED_BYTES: u64 = 3 << 30;

/// Headers that the build compiles against, and in which Debian package each is.
const HEADERS: [(&str, &str); 2] =
    [("/usr/include/stdlib.h", "libc6-dev"), ("/usr/include/libelf.h", "libelf-dev")];

#[derive(Debug, thiserror::Error)]
pub enum KernelBuildError {
    #[error("line {number} of the fragment is no line of a kernel's configuration: {line:?}")]
    Line { number: usize, line: String },
    #[error("the fragment has more than {LARGEST_FRAGMENT} bytes")]
    LargeFragment,
    #[error("the fragment asks for modules, and none are built: {}", .0.join(", "))]
    Modules(Vec<String>),
    #[error("the host lacks what a kernel is built with: {}", .0.join(", "))]
    Tools(Vec<String>),
    #[error("a build needs {needed} bytes, and {folder} has room for {free}")]
    Room { needed: u64, free: u64, folder: PathBuf },
    #[error("{path} is no package that can be read")]
    Deb {
        path: PathBuf,
        #[source]
        cause: DebError,
    },
    #[error("{0} holds no usr/src/linux-source-VERSION.tar with a kernel's source in it")]
    NoSource(PathBuf),
    #[error("cannot unpack the source in {path}")]
    Unpack {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("this kernel cannot be configured as asked: {} did not come out so", .0.join(", "))]
    Unmet(Vec<String>),
    #[error("cannot configure the kernel")]
    Configure(#[source] ProgramError),
    #[error("cannot compile the kernel")]
    Compile(#[source] ProgramError),
    #[error(transparent)]
    Apt(#[from] AptError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

impl KernelBuildError {
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Line { .. } | Self::LargeFragment | Self::Modules(_) | Self::Unmet(_) => {
                Trouble::Input
            }
            Self::Deb { .. } | Self::NoSource(_) => Trouble::Input,
            Self::Tools(_) => Trouble::Missing,
            Self::Room { .. } => Trouble::NoSpace,
            Self::Unpack { cause, .. } if artifact::is_no_space(cause) => Trouble::NoSpace,
            Self::Artifact(error) if error.is_no_space() => Trouble::NoSpace,
            Self::Configure(cause) | Self::Compile(cause) if cause.is_no_space() => {
                Trouble::NoSpace
            }
            Self::Configure(ProgramError::Deadline { .. })
            | Self::Compile(ProgramError::Deadline { .. }) => Trouble::Timeout,
            Self::Apt(error) => error.trouble(),
            Self::Kernel(error) => error.trouble(),
            Self::Unpack { .. } | Self::Artifact(_) | Self::Configure(_) | Self::Compile(_) => {
                Trouble::Host
            }
        }
    }

    /// What to do next, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Tools(missing) => {
                let packages = missing.iter().filter_map(|text| text.split(['(', ')']).nth(1));
                let packages: Vec<&str> = packages.collect();
                Some(format!("apt-get install {}", packages.join(" ")))
            }
            Self::Modules(_) => Some("ask for =y: everything is built in".into()),
            Self::Unmet(_) => Some(
                "an option may not exist in this source, or may depend on another that is off: the source's Kconfig files \
                 say which; ask for that one too"
                    .into(),
            ),
            Self::Apt(error) => error.remedy(),
            Self::Kernel(error) => error.remedy(),
            _ => None,
        }
    }
}

/// Builds a kernel from the source package that `package` of the host's apt is or stands for, into the folder `into`,
/// which is there. `fragment` has lines of a kernel's configuration, which count more than ours.
///
/// # Errors
/// When the fragment is none or cannot be met, a program or a package is missing, or the compilation fails.
pub fn build_kernel(
    package: &str,
    fragment: &str,
    into: &Path,
    watch: Watch<'_>,
) -> Result<ImportedKernel, KernelBuildError> {
    let wanted = Wanted::of(fragment)?;
    apt::check_package_name(package)?;
    check_tools()?;
    let free = artifact::free_bytes(into)?;
    if free < NEEDED_BYTES {
        let folder = into.to_owned();
        return Err(KernelBuildError::Room { needed: NEEDED_BYTES, free, folder });
    }
    artifact::in_scratch(into, |scratch| {
        let text = format!("downloading {package} with the host's apt");
        watch(Progress::Stage { name: "download", text: &text });
        let deb = apt::download_source(package, scratch, watch)?;
        watch(Progress::Stage { name: "unpack", text: "unpacking the kernel's source" });
        let source = unpack(&deb, scratch)?;
        fs::remove_file(&deb).map_err(failed("remove", &deb))?;
        watch(Progress::Stage { name: "configure", text: "configuring the kernel" });
        configure(&source, &wanted, watch)?;
        watch(Progress::Stage { name: "compile", text: "compiling the kernel" });
        let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        make(&source, COMPILE, watch)
            .and_then(|call| call.args([format!("-j{jobs}"), "vmlinux".into()]).told())
            .map_err(KernelBuildError::Compile)?;
        Ok(kernel::import_kernel(&source.join("vmlinux"), into, watch)?)
    })
}

/// Everything that is missing at once, with its package.
fn check_tools() -> Result<(), KernelBuildError> {
    let programs = [BC, BISON, FLEX, GCC, LD, MAKE, PERL].into_iter();
    let programs = programs.filter(|program| !program.exists());
    let headers = HEADERS.into_iter().filter(|(path, _)| !Path::new(path).exists());
    let missing: Vec<String> = programs
        .map(|program| (program.name, program.package))
        .chain(headers)
        .map(|(name, package)| format!("{name} ({package})"))
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(KernelBuildError::Tools(missing)) }
}

/// The source's folder in `scratch`.
fn unpack(deb: &Path, scratch: &Path) -> Result<PathBuf, KernelBuildError> {
    let cannot = |cause| KernelBuildError::Unpack { path: deb.to_owned(), cause };
    let folder = scratch.join("source");
    fs::create_dir(&folder).map_err(failed("create", &folder))?;
    let mut package =
        deb::open(deb).map_err(|cause| KernelBuildError::Deb { path: deb.to_owned(), cause })?;
    for entry in package.entries().map_err(cannot)? {
        let mut entry = entry.map_err(cannot)?;
        let Some(format) = source_format(&entry.path_bytes()) else { continue };
        let packed = scratch.join("source.tar");
        let mut file = File::create_new(&packed).map_err(failed("create", &packed))?;
        io::copy(&mut entry, &mut file).map_err(cannot)?;
        let file = File::open(&packed).map_err(failed("open", &packed))?;
        let data = compression::reader(format, BufReader::new(file)).map_err(cannot)?;
        tar::Archive::new(Bounded::new(data, LARGEST_SOURCE)).unpack(&folder).map_err(cannot)?;
        fs::remove_file(&packed).map_err(failed("remove", &packed))?;
        break;
    }
    let entries = fs::read_dir(&folder).map_err(failed("read", &folder))?;
    let found = entries.flatten().map(|entry| entry.path());
    let mut found = found.filter(|path| path.join("Kconfig").is_file());
    found.next().ok_or_else(|| KernelBuildError::NoSource(deb.to_owned()))
}

/// How the source in the package's file of this name is compressed; `None` when it is another file.
fn source_format(name: &[u8]) -> Option<Format> {
    let name = std::str::from_utf8(name).ok()?;
    let name = name.trim_start_matches("./").strip_prefix("usr/src/linux-source-")?;
    match name.split_once(".tar")?.1 {
        "" => Some(Format::Plain),
        ".gz" => Some(Format::Gzip),
        ".xz" => Some(Format::Xz),
        ".zst" => Some(Format::Zstd),
        _ => None,
    }
}

fn make<'a>(
    source: &'a Path,
    deadline: Duration,
    watch: Watch<'a>,
) -> Result<Call<'a>, ProgramError> {
    // Who built it, and where, is nothing that a guest must know.
    let call = Call::new(MAKE, deadline)?.in_folder(source).watched(watch);
    Ok(call.env("KBUILD_BUILD_USER", "banger").env("KBUILD_BUILD_HOST", "banger"))
}

fn configure(source: &Path, wanted: &Wanted, watch: Watch<'_>) -> Result<(), KernelBuildError> {
    let run = |target: &str| {
        make(source, CONFIGURE, watch)
            .and_then(|call| call.args([target]).told())
            .map_err(KernelBuildError::Configure)
    };
    run("tinyconfig")?;
    let config = source.join(".config");
    let tiny = fs::read_to_string(&config).map_err(failed("read", &config))?;
    fs::write(&config, wanted.on_top_of(&tiny)?).map_err(failed("write", &config))?;
    run("olddefconfig")?;
    let made = fs::read_to_string(&config).map_err(failed("read", &config))?;
    let unmet = wanted.unmet(&made);
    if unmet.is_empty() { Ok(()) } else { Err(KernelBuildError::Unmet(unmet)) }
}

/// What each option is to be, by its symbol: the last line about it counts, as it does for Kconfig.
#[derive(Debug)]
struct Wanted(BTreeMap<String, String>);

impl Wanted {
    /// Ours, and what the user's fragment has on top of it or instead.
    fn of(fragment: &str) -> Result<Self, KernelBuildError> {
        if fragment.len() > LARGEST_FRAGMENT {
            return Err(KernelBuildError::LargeFragment);
        }
        let users = read(fragment)?;
        let modules = users.iter().filter(|(_, value)| *value == "m");
        let modules: Vec<String> =
            modules.map(|(symbol, value)| format!("{symbol}={value}")).collect();
        if !modules.is_empty() {
            return Err(KernelBuildError::Modules(modules));
        }
        let mut wanted = read(GUEST)?;
        wanted.extend(users);
        Ok(Self(wanted))
    }

    /// A `.config` with all of this, and with what this one says of other options. Ours come last, since the last of
    /// several that exclude each other counts.
    fn on_top_of(&self, config: &str) -> Result<String, KernelBuildError> {
        let others = read(config)?.into_iter().filter(|(symbol, _)| !self.0.contains_key(symbol));
        let all = others.chain(self.0.clone());
        Ok(all
            .map(|(symbol, value)| match value.as_str() {
                "n" => format!("# {symbol} is not set\n"),
                value => format!("{symbol}={value}\n"),
            })
            .collect())
    }

    /// What is not so in this `.config`, as lines.
    fn unmet(&self, config: &str) -> Vec<String> {
        let set: BTreeMap<&str, &str> = config
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once('='))
            .collect();
        let unmet = self.0.iter().filter(|(symbol, value)| {
            set.get(symbol.as_str()).copied().unwrap_or("n") != value.as_str()
        });
        unmet.map(|(symbol, value)| format!("{symbol}={value}")).collect()
    }
}

/// `CONFIG_X=VALUE` and `# CONFIG_X is not set`, which is `=n`; other comments and empty lines say nothing.
fn read(fragment: &str) -> Result<BTreeMap<String, String>, KernelBuildError> {
    let mut found = BTreeMap::new();
    for (index, line) in fragment.lines().enumerate() {
        let line = line.trim();
        let unset = line.strip_prefix("# ").and_then(|rest| rest.strip_suffix(" is not set"));
        let pair = match unset.filter(|symbol| is_symbol(symbol)) {
            Some(symbol) => Some((symbol, "n")),
            None if line.is_empty() || line.starts_with('#') => continue,
            None => {
                line.split_once('=').filter(|(symbol, value)| is_symbol(symbol) && is_value(value))
            }
        };
        let Some((symbol, value)) = pair else {
            let line = line.chars().take(100).collect();
            return Err(KernelBuildError::Line { number: index + 1, line });
        };
        found.insert(symbol.to_owned(), value.to_owned());
    }
    Ok(found)
}

fn is_symbol(text: &str) -> bool {
    text.strip_prefix("CONFIG_").is_some_and(|name| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

/// y, m, n, a number, or a text in quotes.
fn is_value(text: &str) -> bool {
    let quoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    let is_number = || {
        let figures = text.strip_prefix('-').unwrap_or(text);
        let hex = figures.strip_prefix("0x").unwrap_or(figures);
        !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    match quoted {
        Some(inner) => inner.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'"'),
        None => matches!(text, "y" | "m" | "n") || is_number(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(fragment: &str) -> String {
        Wanted::of(fragment).unwrap_err().to_string()
    }

    #[test]
    fn our_own_fragment_is_one_and_names_nothing_twice() {
        let wanted = read(GUEST).unwrap();
        let lines = GUEST.lines().filter(|line| line.starts_with("CONFIG_")).count();
        assert_eq!(wanted.len(), lines);
        assert_eq!(wanted["CONFIG_PVH"], "y");
        assert!(wanted.values().all(|value| value != "m"));
    }

    #[test]
    fn what_did_not_come_out_as_asked_is_named() {
        let wanted = Wanted(
            read(
                "CONFIG_A=y\nCONFIG_B=n\n# CONFIG_C is not set\nCONFIG_D=\"x=1\"\nCONFIG_E=0x1F\n",
            )
            .unwrap(),
        );
        let met =
            "# CONFIG_B is not set\nCONFIG_A=y\nCONFIG_D=\"x=1\"\nCONFIG_E=0x1F\nCONFIG_AB=y\n";
        assert!(wanted.unmet(met).is_empty());
        let unmet = "# CONFIG_A=y\nCONFIG_A=m\nCONFIG_B=y\nCONFIG_C=y\nCONFIG_D=\"x\"\n";
        let named = wanted.unmet(unmet);
        assert_eq!(
            named,
            ["CONFIG_A=y", "CONFIG_B=n", "CONFIG_C=n", "CONFIG_D=\"x=1\"", "CONFIG_E=0x1F"]
        );
    }

    #[test]
    fn the_users_line_counts_more_than_ours_and_the_last_more_than_the_first() {
        let wanted = Wanted::of("CONFIG_BRIDGE=y\n# CONFIG_BRIDGE is not set\n").unwrap();
        assert_eq!(wanted.0["CONFIG_BRIDGE"], "n");
        assert_eq!(Wanted::of("").unwrap().0["CONFIG_BRIDGE"], "y");
    }

    #[test]
    fn lines_that_are_none_are_refused_by_their_number() {
        for bad in [
            "CONFIG_A",
            "CONFIG_=y",
            "A=y",
            "CONFIG_A=yes",
            "CONFIG_A=",
            "CONFIG_A = y",
            "CONFIG_A=\"x",
            "CONFIG_A=$(shell id)",
            "source \"x\"",
            "CONFIG_Ä=y",
        ] {
            let text = format!("# a remark\n\n{bad}\n");
            assert!(refused(&text).starts_with("line 3 "), "{bad}");
        }
        assert!(refused(&"#\n".repeat(1 << 20)).contains("more than"));
    }

    #[test]
    fn modules_are_refused_since_none_are_built() {
        let text = refused("CONFIG_XFS_FS=m\nCONFIG_A=y\nCONFIG_B=m\n");
        assert!(text.contains("CONFIG_B=m, CONFIG_XFS_FS=m"), "{text}");
    }

    #[test]
    fn the_source_is_known_by_its_name() {
        for (name, format) in [
            ("./usr/src/linux-source-6.1.tar.xz", Some(Format::Xz)),
            ("usr/src/linux-source-6.12.tar.zst", Some(Format::Zstd)),
            ("./usr/src/linux-patch-6.1-rt.patch.xz", None),
            ("./usr/src/linux-config-6.1/config.amd64.xz", None),
            ("./usr/share/doc/linux-source-6.1/copyright", None),
        ] {
            assert_eq!(source_format(name.as_bytes()), format, "{name}");
        }
    }

    #[test]
    fn the_source_in_a_package_is_unpacked_and_its_absence_named() {
        let folder = tempfile::tempdir().unwrap();
        let tar = |files: &[(&str, &[u8])]| {
            let mut builder = tar::Builder::new(Vec::new());
            for (name, content) in files {
                let mut header = tar::Header::new_gnu();
                header.set_size(content.len() as u64);
                header.set_mode(0o755);
                builder.append_data(&mut header, name, *content).unwrap();
            }
            liblzma::encode_all(&builder.into_inner().unwrap()[..], 1).unwrap()
        };
        let package = |name: &str, file: &str| {
            let inner = tar(&[(file, b"mainmenu"), ("linux-source-9.8/Makefile", b"all:")]);
            let data = tar(&[("usr/src/readme", b"x"), (name, &inner)]);
            deb::tests::package(&[("debian-binary", b"2.0\n"), ("data.tar.xz", &data)])
        };
        let deb = folder.path().join("a.deb");
        for (number, (name, file, found)) in [
            ("usr/src/linux-source-9.8.tar.xz", "linux-source-9.8/Kconfig", true),
            ("usr/src/linux-source-9.8.tar.xz", "linux-source-9.8/Other", false),
            ("usr/src/else.tar.xz", "linux-source-9.8/Kconfig", false),
        ]
        .into_iter()
        .enumerate()
        {
            let scratch = folder.path().join(number.to_string());
            fs::create_dir(&scratch).unwrap();
            fs::write(&deb, package(name, file)).unwrap();
            match unpack(&deb, &scratch) {
                Ok(source) => {
                    assert!(found && source == scratch.join("source/linux-source-9.8"));
                    assert_eq!(fs::read(source.join("Makefile")).unwrap(), b"all:");
                }
                Err(error) => assert!(!found && error.to_string().contains("linux-source-VERSION")),
            }
        }
    }

    /// A tree with a Makefile that plays Kconfig: it takes what is asked for but for what it does not know.
    #[test]
    fn what_kconfig_drops_ends_the_build_before_anything_is_compiled() {
        let folder = tempfile::tempdir().unwrap();
        let makefile = "tinyconfig:\n\techo CONFIG_TINY=y > .config\n\
            olddefconfig:\n\tgrep -v DROPPED .config | grep -v '=n$$' > new; mv new .config; echo done\n";
        fs::write(folder.path().join("Makefile"), makefile).unwrap();
        let lines = std::sync::Mutex::new(Vec::new());
        let watch = |progress: Progress<'_>| {
            if let Progress::Line(line) = progress {
                lines.lock().unwrap().push(line.to_owned());
            }
        };
        let configured =
            |fragment: &str| configure(folder.path(), &Wanted::of(fragment).unwrap(), &watch);
        configured("CONFIG_KEPT=y\n# CONFIG_ABSENT is not set\nCONFIG_NOT=n").unwrap();
        assert!(lines.lock().unwrap().iter().any(|line| line == "done"), "stdout is told");
        let made = fs::read_to_string(folder.path().join(".config")).unwrap();
        assert!(made.contains("CONFIG_TINY=y") && made.contains("CONFIG_KEPT=y"));
        let error = configured("CONFIG_KEPT=y\nCONFIG_DROPPED=y\n").unwrap_err();
        assert!(error.to_string().contains(": CONFIG_DROPPED=y did not"), "{error}");
        assert_eq!(error.trouble(), Trouble::Input);
    }

    #[test]
    fn what_a_build_lacks_is_named_with_its_packages() {
        let error = KernelBuildError::Tools(vec![
            "bc (bc)".into(),
            "/usr/include/libelf.h (libelf-dev)".into(),
        ]);
        assert_eq!(error.remedy().unwrap(), "apt-get install bc libelf-dev");
        assert_eq!(error.trouble(), Trouble::Missing);
    }

    #[test]
    fn a_build_that_is_refused_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for (package, fragment) in
            [("linux-source", "CONFIG_A=m"), ("--option", ""), ("no-such-package-here", "")]
        {
            build_kernel(package, fragment, folder.path(), &|_| {}).unwrap_err();
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{package}");
        }
    }
}
