//! Kernels of a signed catalog: pulled, and refused when they are not what was signed.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use banger_e2e::{World, in_world, run, template_home};
use sha2::{Digest, Sha256};

/// A web server of one folder on loopback, with range requests. It ends with the test's process.
struct Web {
    address: String,
    /// It sends so much of a file and then hangs up.
    most: Arc<AtomicU64>,
    /// It hangs up on everybody.
    away: Arc<AtomicBool>,
    /// `PATH RANGE` of every request.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Web {
    fn serve(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let web = Self {
            address: listener.local_addr().unwrap().to_string(),
            most: Arc::new(AtomicU64::new(u64::MAX)),
            away: Arc::default(),
            asked: Arc::default(),
        };
        let (most, away) = (Arc::clone(&web.most), Arc::clone(&web.away));
        let (asked, folder) = (Arc::clone(&web.asked), folder.to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if !away.load(Ordering::Relaxed) {
                    let said = |line| asked.lock().unwrap().push(line);
                    answer(&stream.unwrap(), &folder, most.load(Ordering::Relaxed), said);
                }
            }
        });
        web
    }

    fn url(&self, file: &str) -> String {
        format!("http://{}/{file}", self.address)
    }

    fn asked_for(&self, file: &str) -> Vec<String> {
        let mut asked = self.asked.lock().unwrap();
        let (found, others) = asked.drain(..).partition(|line| line.starts_with(file));
        *asked = others;
        found
    }
}

fn answer(mut stream: &TcpStream, folder: &Path, most: u64, said: impl FnOnce(String)) {
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    let first = lines.next().unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
    let headers = lines.take_while(|line| !line.is_empty()).map(|line| line.to_lowercase());
    let range = headers.filter_map(|line| line.strip_prefix("range: bytes=").map(str::to_owned));
    let range = range.last().unwrap_or_default();
    said(format!("{path} {range}"));
    let Ok(content) = fs::read(folder.join(&path)) else {
        let answer = b"HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).unwrap();
        return;
    };
    let from: usize = range.trim_end_matches('-').parse().unwrap_or(0);
    let (status, all) = (if from > 0 { "206 Partial" } else { "200 OK" }, content.len());
    let rest = &content[from..];
    let head = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\ncontent-range: bytes {from}-{}/{all}\r\n\r\n",
        rest.len(),
        all - 1
    );
    let sent = &rest[..rest.len().min(usize::try_from(most).unwrap_or(usize::MAX))];
    // The client may have heard enough.
    drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(sent)));
}

/// A folder with a kernel and a signed catalog of it.
struct Published {
    folder: tempfile::TempDir,
    release: String,
}

impl Published {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernels = fs::read_dir(template_home().join("state/kernels")).unwrap().flatten();
        let vmlinux = kernels.map(|kernel| kernel.path().join("vmlinux")).next().unwrap();
        fs::copy(vmlinux, folder.path().join("vmlinux")).unwrap();
        let published = Self { folder, release: String::new() };
        for name in ["signer", "stranger"] {
            let (public, secret) = published.keys(name);
            run("minisign", &["-G", "-W", "-f", "-p", &public, "-s", &secret]);
        }
        published
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn keys(&self, name: &str) -> (String, String) {
        let file = |end: &str| self.path().join(format!("{name}.{end}")).display().to_string();
        (file("pub"), file("key"))
    }

    fn public_key(&self, name: &str) -> String {
        fs::read_to_string(self.keys(name).0).unwrap().lines().nth(1).unwrap().to_owned()
    }

    fn vmlinux(&self) -> Vec<u8> {
        fs::read(self.path().join("vmlinux")).unwrap()
    }

    /// Writes the catalog of this serial, and signs it.
    fn publish(&self, serial: u32, signer: &str) {
        let bytes = self.vmlinux();
        let hash: String =
            Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let catalog = self.path().join("catalog.toml");
        let text = format!(
            "serial = {serial}\n[[kernel]]\nname = \"guest\"\nrelease = \"{}\"\narchitecture = \"x86_64\"\n\
             url = \"vmlinux\"\nsha256 = \"{hash}\"\nsize_bytes = {}\n[[kernel]]\nname = \"other\"\nrelease = \"1\"\n\
             architecture = \"riscv64\"\nurl = \"other\"\nsha256 = \"{hash}\"\nsize_bytes = 1\n",
            self.release,
            bytes.len()
        );
        fs::write(&catalog, text).unwrap();
        let secret = self.keys(signer).1;
        run("minisign", &["-S", "-s", &secret, "-m", catalog.to_str().unwrap(), "-t", "kernels"]);
    }
}

/// Has the world's daemon go by this catalog.
fn configure(world: &World, source: &str, public_key: &str) {
    world.banger(["daemon", "stop"]).succeeds();
    let path = world.home().join("config/config.toml");
    let before = fs::read_to_string(&path).unwrap();
    let before = before.split("[registry]").next().unwrap();
    let catalog = format!("[catalog]\nsource = \"{source}\"\npublic_key = \"{public_key}\"\n");
    fs::write(&path, format!("{before}[registry]\nretries = 0\n{catalog}")).unwrap();
}

fn partials(world: &World) -> Vec<PathBuf> {
    let folder = fs::read_dir(world.home().join("cache/kernels"));
    folder.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The template's kernel's.
fn release(world: &World) -> String {
    let kernels = world.banger(["kernel", "list", "--format", "json"]).succeeds().json();
    kernels[0]["release"].as_str().unwrap().to_owned()
}

#[test]
fn a_kernel_of_a_signed_catalog_is_pulled_and_a_pull_that_was_cut_goes_on() {
    in_world(|world| {
        let none = world.banger(["kernel", "pull", "guest"]);
        none.exits(1);
        assert!(none.errors().contains("[catalog]"), "{none}");

        let mut published = Published::new();
        published.release = release(world);
        published.publish(3, "signer");
        let web = Web::serve(published.path());
        configure(world, &web.url("catalog.toml"), &published.public_key("signer"));

        let listed = world.banger(["kernel", "catalog"]);
        listed.succeeds();
        assert!(listed.text().contains(&published.release), "{listed}");
        world.banger(["kernel", "catalog", "-q"]).succeeds().prints_only("guest\n");
        let absent = world.banger(["kernel", "pull", "other"]);
        absent.exits(1);
        assert!(absent.errors().contains("it has: guest"), "{absent}");

        web.most.store(1 << 20, Ordering::Relaxed);
        let cut = world.banger(["kernel", "pull", "guest"]);
        cut.exits(1);
        assert!(cut.errors().contains("vmlinux"), "{cut}");
        let [partial] = &partials(world)[..] else { panic!("what came stays") };
        assert_eq!(fs::metadata(partial).unwrap().len(), 1 << 20);
        web.most.store(u64::MAX, Ordering::Relaxed);
        web.asked_for("vmlinux");
        world.banger(["kernel", "pull", "guest"]).succeeds();
        assert_eq!(web.asked_for("vmlinux"), [format!("vmlinux {}-", 1 << 20)]);
        assert!(partials(world).is_empty());

        let shown = world.banger(["kernel", "show", "guest", "--format", "json"]).succeeds().json();
        assert_eq!(shown["release"], published.release.as_str());
        let digest = shown["digest"].as_str().unwrap();
        let kept = world.home().join("state/kernels").join(digest).join("vmlinux");
        assert!(fs::read(kept).unwrap() == published.vmlinux());
        let here = world.banger(["kernel", "catalog", "--format", "json"]).succeeds().json();
        assert_eq!(here[0]["here"][0], "guest");

        // There already; and by a path instead of a URL, under another name.
        let again = world.banger(["kernel", "pull", "guest"]);
        again.succeeds();
        assert!(again.errors().contains("up to date") && web.asked_for("vmlinux").is_empty());
        let path = published.path().join("catalog.toml");
        configure(world, path.to_str().unwrap(), &published.public_key("signer"));
        world.banger(["kernel", "pull", "guest", "--name", "copy"]).succeeds();
        assert!(partials(world).is_empty());
        // Another kernel keeps its name.
        let taken = world.banger(["kernel", "pull", "guest", "--name", &published.release]);
        taken.exits(1);
        assert!(taken.errors().contains("already another kernel"), "{taken}");
    });
}

#[test]
fn a_catalog_or_a_kernel_that_is_not_to_be_believed_is_refused_with_the_reason() {
    in_world(|world| {
        let mut published = Published::new();
        published.release = release(world);
        published.publish(5, "stranger");
        let web = Web::serve(published.path());
        let key = published.public_key("signer");
        configure(world, &web.url("catalog.toml"), &key);
        let refused = |reason: &str| {
            let pull = world.banger(["kernel", "pull", "guest"]);
            pull.exits(1);
            assert!(pull.errors().contains(reason), "{pull}");
            world.banger(["kernel", "show", "guest"]).exits(1);
        };
        refused(&format!("another key than {key}"));

        published.publish(5, "signer");
        let catalog = published.path().join("catalog.toml");
        let signed = fs::read_to_string(&catalog).unwrap();
        fs::write(&catalog, signed.replace("serial = 5", "serial = 6")).unwrap();
        refused("was changed");
        fs::write(&catalog, &signed).unwrap();

        // A kernel of the right length that is another.
        let mut bytes = published.vmlinux();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(published.path().join("vmlinux"), &bytes).unwrap();
        refused("was announced");
        assert!(partials(world).is_empty());
        // One that is too long ends as soon as that is seen.
        bytes[middle] ^= 1;
        bytes.push(0);
        fs::write(published.path().join("vmlinux"), &bytes).unwrap();
        refused("were announced");
        assert!(partials(world).is_empty());
        bytes.pop();
        fs::write(published.path().join("vmlinux"), &bytes).unwrap();
        // One that is not what the catalog says it is.
        let right = std::mem::replace(&mut published.release, "9.9.9".into());
        published.publish(6, "signer");
        refused("the catalog says 9.9.9");
        published.release = right;

        // Serial 6 was accepted, even if its kernel was refused.
        published.publish(5, "signer");
        refused("serial 5, and one with 6 was accepted");
        // The source is away: what was accepted serves, and that is said.
        web.away.store(true, Ordering::Relaxed);
        let listed = world.banger(["kernel", "catalog"]);
        listed.succeeds();
        assert!(listed.errors().contains("last accepted, serial 6"), "{listed}");
        assert!(listed.text().contains("9.9.9"), "{listed}");
    });
}
