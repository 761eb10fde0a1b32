//! The images of the tests, made once and kept in cargo's folder for tests: an OCI layout, and a registry's storage with
//! the same images.
//!
//! `small` has a base with a file, a layer of 6 MiB that does not compress, and a third layer; `arm` is for another
//! architecture; `multi` is an index of both in an index. `plain` is not compressed, `zstd` is `small` in zstd.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use banger_registry::Digest;
use serde_json::{Value, json};

use crate::server::Server;

/// Changes when the images do.
const VERSION: &str = "2";
pub(crate) const BIG_BYTES: usize = 6 << 20;

pub(crate) struct Images {
    folder: PathBuf,
}

impl Images {
    /// Makes them if nobody has: one process does, others wait for it.
    pub(crate) fn get() -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("registry-images");
        fs::create_dir_all(&folder).unwrap();
        let lock = File::create(folder.join("lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let images = Self { folder };
        let done = images.folder.join("done");
        if fs::read_to_string(&done).unwrap_or_default() != VERSION {
            for part in ["layout", "storage", "scratch"] {
                let part = images.folder.join(part);
                if part.exists() {
                    fs::remove_dir_all(part).unwrap();
                }
            }
            images.make();
            fs::write(done, VERSION).unwrap();
        }
        images
    }

    pub(crate) fn layout(&self) -> PathBuf {
        self.folder.join("layout")
    }

    /// What a registry keeps; it is only read by those that serve it.
    pub(crate) fn storage(&self) -> PathBuf {
        self.folder.join("storage")
    }

    fn make(&self) {
        let scratch = self.folder.join("scratch");
        let layout = self.layout();
        fs::create_dir_all(scratch.join("base/etc")).unwrap();
        fs::write(scratch.join("base/etc/name"), "base\n").unwrap();
        symlink("/etc/name", scratch.join("base/etc/link")).unwrap();
        fs::write(scratch.join("big"), noise(BIG_BYTES)).unwrap();
        fs::write(scratch.join("third"), "third\n").unwrap();
        let path = |name: &str| scratch.join(name).display().to_string();
        let layout_text = layout.display().to_string();
        umoci(&["init", "--layout", &layout_text]);
        for (tag, architecture) in [("small", "amd64"), ("arm", "arm64")] {
            let image = format!("{layout_text}:{tag}");
            umoci(&["new", "--image", &image]);
            umoci(&["insert", "--rootless", "--image", &image, &path("base"), "/"]);
            if tag == "small" {
                umoci(&["insert", "--rootless", "--image", &image, &path("big"), "/big"]);
            }
            umoci(&["insert", "--rootless", "--image", &image, &path("third"), "/third"]);
            umoci(&[
                "config",
                "--image",
                &image,
                "--os",
                "linux",
                "--architecture",
                architecture,
                "--config.entrypoint",
                "/init",
                "--config.cmd",
                "-v",
                "--config.env",
                "A=1",
                "--config.user",
                "7:8",
                "--config.workingdir",
                "/etc",
                "--config.exposedports",
                "80/tcp",
                "--config.label",
                "who=test",
                "--config.stopsignal",
                "SIGINT",
            ]);
        }
        self.add_index();
        self.add_plain();
        let registry = Server::start_writable(&self.storage());
        for (from, to, options) in [
            // First, or skopeo takes the layers that are there already.
            ("small", "zstd:1", &["--dest-compress-format", "zstd"][..]),
            ("small", "small:1", &[]),
            ("arm", "arm:1", &[]),
            ("multi", "multi:1", &["--all"]),
            ("plain", "plain:1", &["--preserve-digests"]),
        ] {
            let from = format!("oci:{layout_text}:{from}");
            let to = format!("docker://{}/{to}", registry.address());
            let fixed = ["copy", "--dest-tls-verify=false", &from, &to];
            skopeo(&[&fixed[..1], options, &fixed[1..]].concat());
        }
        fs::remove_dir_all(scratch).unwrap();
    }

    /// An index of both architectures, in an index, as some builders write it.
    fn add_index(&self) {
        let mut index = self.index();
        let manifests = index["manifests"].as_array().unwrap().clone();
        let named = |name: &str| {
            let mut entry = manifests.iter().find(|it| tag_of(it) == name).unwrap().clone();
            entry.as_object_mut().unwrap().remove("annotations");
            let architecture = if name == "arm" { "arm64" } else { "amd64" };
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            entry
        };
        let inner = self.add_index_of(vec![named("small"), named("arm")]);
        let mut entry = inner;
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "multi"});
        index["manifests"].as_array_mut().unwrap().push(entry);
        self.write_index(&index);
    }

    fn add_index_of(&self, manifests: Vec<Value>) -> Value {
        let kind = "application/vnd.oci.image.index.v1+json";
        let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests});
        self.add_blob(kind, &serde_json::to_vec(&index).unwrap())
    }

    /// An image whose layer is not compressed, and is there twice.
    fn add_plain(&self) {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(6);
        header.set_mode(0o644);
        builder.append_data(&mut header, "plain", &b"plain\n"[..]).unwrap();
        let layer = builder.into_inner().unwrap();
        let diff_id = Digest::of(&layer);
        let layer = self.add_blob("application/vnd.oci.image.layer.v1.tar", &layer);
        let config = json!({
            "os": "linux", "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": [diff_id, diff_id]},
        });
        let config = self.add_blob(
            "application/vnd.oci.image.config.v1+json",
            &serde_json::to_vec(&config).unwrap(),
        );
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer, layer]});
        let mut entry = self.add_blob(kind, &serde_json::to_vec(&manifest).unwrap());
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "plain"});
        let mut index = self.index();
        index["manifests"].as_array_mut().unwrap().push(entry);
        self.write_index(&index);
    }

    fn add_blob(&self, kind: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        fs::write(self.layout().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    }

    fn index(&self) -> Value {
        serde_json::from_slice(&fs::read(self.layout().join("index.json")).unwrap()).unwrap()
    }

    fn write_index(&self, index: &Value) {
        fs::write(self.layout().join("index.json"), serde_json::to_vec(index).unwrap()).unwrap();
    }

    /// The manifest of a tag in the layout: its digest, and itself.
    pub(crate) fn manifest(&self, tag: &str) -> (Digest, Value) {
        let index = self.index();
        let manifests = index["manifests"].as_array().unwrap();
        let entry = manifests.iter().find(|it| tag_of(it) == tag).unwrap();
        let digest: Digest = serde_json::from_value(entry["digest"].clone()).unwrap();
        let bytes = fs::read(self.layout().join("blobs/sha256").join(digest.hex())).unwrap();
        (digest, serde_json::from_slice(&bytes).unwrap())
    }

    /// The digests of a tag's layers in the layout.
    pub(crate) fn layers(&self, tag: &str) -> Vec<Digest> {
        let (_, manifest) = self.manifest(tag);
        let layers = manifest["layers"].as_array().unwrap().iter();
        layers.map(|it| serde_json::from_value(it["digest"].clone()).unwrap()).collect()
    }
}

fn tag_of(entry: &Value) -> &str {
    entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap_or_default()
}

/// Bytes that do not compress, the same in every run: xorshift64 (Marsaglia 2003).
pub(crate) fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(count);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

fn umoci(arguments: &[&str]) {
    run("umoci", "umoci", arguments);
}

pub(crate) fn skopeo(arguments: &[&str]) {
    run("skopeo", "skopeo", &[&["--insecure-policy"], arguments].concat());
}

/// Runs a program to its end, which must be good.
pub(crate) fn run(program: &str, package: &str, arguments: &[&str]) {
    #[expect(clippy::disallowed_methods, reason = "the programs that make the test's images")]
    let output = Command::new(format!("/usr/bin/{program}"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program} (Debian package {package}): {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
