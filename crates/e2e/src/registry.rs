//! A real registry on loopback (Debian's docker-registry), and images to push to it: folders packed by GNU tar, or tars as
//! they are, put into an OCI layout here, sent by skopeo.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::programs::{must, new};

/// A registry that runs. It is ended with its value.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    address: String,
    folder: tempfile::TempDir,
}

impl Registry {
    /// At a port that the system chooses.
    #[must_use]
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let storage = folder.path().join("storage");
        let config = format!(
            "version: 0.1\nlog:\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: 127.0.0.1:0\n  secret: test\n",
            storage.display()
        );
        let file = folder.path().join("config.yml");
        fs::write(&file, config).unwrap();
        let mut child = new("setpriv")
            .args(["--pdeathsig", "KILL", "/usr/bin/docker-registry", "serve"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            let count = lines.read_line(&mut line).unwrap();
            assert!(count > 0, "docker-registry does not start: apt-get install docker-registry");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split(['"', ',']).next().unwrap().trim().to_owned();
            }
        };
        // It must not stand still for want of a reader.
        std::thread::spawn(move || drop(lines.read_to_end(&mut Vec::new())));
        Self { child, address, folder }
    }

    /// `127.0.0.1:PORT/NAME`
    #[must_use]
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Pushes an image of these folders and tars, a layer each, the lowest first; `config` is the `config` of its OCI configuration.
    #[track_caller]
    pub fn push(&self, name: &str, layers: &[&Path], config: &Value) -> String {
        let layout = self.folder.path().join("layout");
        if layout.exists() {
            fs::remove_dir_all(&layout).unwrap();
        }
        write_layout(&layout, layers, config);
        let reference = self.reference(name);
        let from = format!("oci:{}:image", layout.display());
        let to = format!("docker://{reference}");
        must("skopeo", &["copy", "--quiet", "--dest-tls-verify=false", &from, &to], &layout);
        reference
    }

    /// What the registry has stored of blobs, by digest: to be spoiled on purpose.
    #[must_use]
    pub fn storage(&self) -> std::path::PathBuf {
        self.folder.path().join("storage/docker/registry/v2/blobs/sha256")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // A test's process, which must not outlive it.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// An OCI image layout (image-layout.md of the OCI image specification) with one image, tagged `image`.
pub fn write_layout(layout: &Path, layers: &[&Path], config: &Value) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let (mut diff_ids, mut descriptors) = (Vec::new(), Vec::new());
    for layer in layers {
        let tar = layout.join("layer.tar");
        let text = tar.to_str().unwrap();
        if layer.is_dir() {
            let fixed = ["--create", "--file", text, "--numeric-owner", "--xattrs", "--sparse"];
            must("tar", &[&fixed[..], &["--xattrs-include=*", "."]].concat(), layer);
        } else {
            fs::copy(layer, &tar).unwrap();
        }
        let descriptor = add_file(&blobs, &tar, "application/vnd.oci.image.layer.v1.tar");
        diff_ids.push(descriptor["digest"].clone());
        descriptors.push(descriptor);
    }
    let config = add(
        &blobs,
        "application/vnd.oci.image.config.v1+json",
        &json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        }),
    );
    let mut manifest = add(
        &blobs,
        "application/vnd.oci.image.manifest.v1+json",
        &json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": descriptors,
        }),
    );
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "image" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
}

fn add(blobs: &Path, kind: &str, document: &Value) -> Value {
    let file = blobs.join("new");
    fs::write(&file, document.to_string()).unwrap();
    add_file(blobs, &file, kind)
}

fn add_file(blobs: &Path, file: &Path, kind: &str) -> Value {
    let mut hash = Sha256::new();
    let (mut source, mut size) = (fs::File::open(file).unwrap(), 0);
    let mut piece = vec![0; 1 << 20];
    loop {
        let count = source.read(&mut piece).unwrap();
        if count == 0 {
            break;
        }
        hash.update(&piece[..count]);
        size += count;
    }
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    fs::rename(file, blobs.join(&digest)).unwrap();
    json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": size })
}
