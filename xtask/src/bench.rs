//! `cargo xtask bench image`: the image of the figure in the documentation, in a registry on loopback, and `banger bench
//! image` with it, all built for release. The image is made once and kept in target/bench. `cargo xtask bench start`: what
//! crates/e2e/src/bin/bench-start.rs says in the test host, built for release. And `cargo xtask bench network` and `ssh`:
//! what crates/e2e/src/bin/bench-network.rs and bench-ssh.rs say.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::build::{self, Profile};
use crate::failure::Failure;
use crate::log::Log;
use crate::packages;
use crate::programs::{Call, Talk};
use crate::test_programs::TestProgram;
use crate::{e2e, project, testhost};

/// The image: so many layers of so many folders with so many files each, 30,000 files of 500 MB in all.
const LAYERS: usize = 3;
const FOLDERS: usize = 100;
const FILES: usize = 100;
const MEAN_BYTES: usize = 500_000_000 / (LAYERS * FOLDERS * FILES);

/// How long the registry may take until it listens.
const LISTENS: Duration = Duration::from_secs(30);

pub(crate) fn image(rounds: &str) -> Result<(), Failure> {
    let target = project::target()?;
    let mut log = Log::create(&target, "bench")?;
    packages::ensure(packages::TO_RUN, None, &mut log)?;
    packages::ensure(packages::TO_TEST, None, &mut log)?;
    let folder = build::all(Profile::Release, &target, &mut log)?;
    let work = target.join("bench");
    let layout = work.join("layout");
    if !work.join("made").exists() {
        make(&work, &layout, &mut log)?;
        fs::write(work.join("made"), "").map_err(failed("mark the image as made"))?;
    }
    let (registry, address) = serve(&work)?;
    let measured = measure(&folder.join("banger"), &work, &address, rounds, &mut log);
    registry.end();
    measured
}

pub(crate) fn start(rounds: &str) -> Result<(), Failure> {
    let target = project::target()?;
    let mut log = Log::create(&target, "bench")?;
    packages::ensure(&testhost::needs(), None, &mut log)?;
    let debug = build::all(Profile::Dev, &target, &mut log)?;
    e2e::ensure_cache(&target, &debug, &mut log)?;
    let packages = ["--package", "banger-bare", "--package", "banger-e2e"];
    Call::cargo()
        .args(["build", "--release", "--bins"])
        .args(packages)
        .in_folder(project::root())
        .run(&mut log)?;
    let program = |of: &str, name: &str| TestProgram {
        of: of.to_owned(),
        name: name.to_owned(),
        executable: target.join("release").join(name),
    };
    let (bare, bench) = (program("bare", "banger-bare"), program("e2e", "bench-start"));
    let arguments = [rounds.to_owned(), testhost::path_there(&bare).display().to_string()];
    testhost::run_there(Profile::Release, &bench, &[bare], &arguments, &target, &mut log)
}

/// Runs one of the programs in crates/e2e/src/bin that measure.
pub(crate) fn of_guests(program: &str, rounds: &str) -> Result<(), Failure> {
    let target = project::target()?;
    let mut log = Log::create(&target, "bench")?;
    packages::ensure(packages::TO_RUN, None, &mut log)?;
    packages::ensure(packages::TO_TEST, None, &mut log)?;
    let built = build::all(Profile::Dev, &target, &mut log)?;
    Call::cargo()
        .args(["run", "--quiet", "--package", "banger-e2e", "--bin", program, "--", rounds])
        .env("BANGER_BIN_DIR", built)
        .in_folder(project::root())
        .run(&mut log)
}

fn measure(
    banger: &Path,
    work: &Path,
    address: &str,
    rounds: &str,
    log: &mut Log,
) -> Result<(), Failure> {
    let reference = format!("{address}/bench:1");
    let (from, to) =
        (format!("oci:{}:image", work.join("layout").display()), format!("docker://{reference}"));
    Call::new("skopeo")
        .args(["copy", "--quiet", "--dest-tls-verify=false", &from, &to])
        .run(log)?;
    let home = work.join("home");
    let call = |args: &[&str]| Call::new(banger).args(args).env("BANGER_HOME", &home);
    let measured = call(&["bench", "image", &reference, "--rounds", rounds]).run(log);
    let stopped = call(&["daemon", "stop"]).run(log);
    measured.and(stopped)
}

/// Layers of files of different sizes, whose content compresses to about half.
fn make(work: &Path, layout: &Path, log: &mut Log) -> Result<(), Failure> {
    if layout.exists() {
        fs::remove_dir_all(layout).map_err(failed("remove a half-made image"))?;
    }
    fs::create_dir_all(work).map_err(failed("make target/bench"))?;
    let image = format!("{}:image", layout.display());
    let umoci = |args: &[&str]| Call::new("umoci").args(args);
    umoci(&["init", "--layout", &layout.display().to_string()]).run(log)?;
    umoci(&["new", "--image", &image]).run(log)?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for layer in 0..LAYERS {
        let root = work.join("layer");
        if root.exists() {
            fs::remove_dir_all(&root).map_err(failed("remove a layer"))?;
        }
        log.line(&format!("making layer {} of {LAYERS}", layer + 1));
        write_layer(&root, layer, &mut random).map_err(failed("write a layer"))?;
        let root = root.display().to_string();
        umoci(&["insert", "--image", &image, &root, "/"]).run(log)?;
    }
    fs::remove_dir_all(work.join("layer")).map_err(failed("remove a layer"))
}

fn write_layer(root: &Path, layer: usize, random: &mut Random) -> io::Result<()> {
    const LETTERS: &[u8; 16] = b"etaoin shrdlucm\n";
    for folder in 0..FOLDERS {
        let folder = root.join(format!("opt/layer-{layer}/folder-{folder}"));
        fs::create_dir_all(&folder)?;
        for file in 0..FILES {
            // Two thirds of the files are small, as they are in real images.
            let most = if file % 3 == 0 { MEAN_BYTES * 5 } else { MEAN_BYTES / 2 };
            let length = usize::try_from(random.next()).unwrap_or(usize::MAX) % most;
            let mut bytes = Vec::with_capacity(length + 16);
            while bytes.len() < length {
                let number = random.next();
                bytes.extend((0..16).map(|n| LETTERS[(number >> (4 * n) & 15) as usize]));
            }
            File::create(folder.join(format!("file-{file}")))?.write_all(&bytes[..length])?;
        }
    }
    Ok(())
}

/// Starts a registry of nothing on loopback; gives its address.
fn serve(work: &Path) -> Result<(Talk, String), Failure> {
    let storage = work.join("registry");
    if storage.exists() {
        fs::remove_dir_all(&storage).map_err(failed("remove an old registry"))?;
    }
    let config = work.join("registry.yml");
    let text = format!(
        "version: 0.1\nlog:\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
         http:\n  addr: 127.0.0.1:0\n  secret: bench\n",
        storage.display()
    );
    fs::write(&config, text).map_err(failed("write the registry's configuration"))?;
    // Its log is on stderr.
    let script = "exec setpriv --pdeathsig KILL docker-registry serve \"$0\" 2>&1";
    let talk = Call::new("sh")
        .args(["-c", script, &config.display().to_string()])
        .talk(&work.join("registry.errors"))?;
    let until = Instant::now() + LISTENS;
    loop {
        match talk.hear(until) {
            Ok(line) => {
                if let Some((_, rest)) = line.split_once("listening on ") {
                    let address = rest.split(['"', ',']).next().unwrap_or_default().trim();
                    return Ok((talk, address.to_owned()));
                }
            }
            Err(_) => {
                talk.end();
                return Err(Failure::new("the registry does not listen"));
            }
        }
    }
}

fn failed(act: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::new(format!("cannot {act}")).cause(&error)
}

/// Marsaglia's xorshift: the same image for everybody.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
