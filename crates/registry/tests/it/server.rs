//! Debian's docker-registry, on loopback, at a port that the system chooses. It is killed with its test.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub(crate) struct Server {
    child: Child,
    address: String,
    /// Its configuration.
    _folder: tempfile::TempDir,
}

/// User `tester`, password `sesame`: what `htpasswd -nbB -C 4 tester sesame` (apache2-utils) writes.
const HTPASSWD: &str = "tester:$2y$04$7/BbB47N.VCWP5KKC9dZN.QPdFiIbjOwv2S5kZ5uekBXIuup6A3Fy\n";

impl Server {
    pub(crate) fn start_writable(storage: &Path) -> Self {
        Self::start(storage, "", |_| String::new())
    }

    /// Serves what is in `storage`.
    pub(crate) fn plain(storage: &Path) -> Self {
        Self::start(storage, "", |_| String::new())
    }

    /// Wants a name and a password.
    pub(crate) fn with_password(storage: &Path) -> Self {
        Self::start(storage, "", |folder| {
            let file = folder.join("htpasswd");
            fs::write(&file, HTPASSWD).unwrap();
            format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display())
        })
    }

    /// Sends for tokens to somebody else, and believes those that are signed by this certificate.
    pub(crate) fn with_tokens(storage: &Path, realm: &str, certificate: &Path) -> Self {
        Self::start(storage, "", |_| {
            format!(
                "auth:\n  token:\n    realm: {realm}\n    service: test\n    issuer: test\n    rootcertbundle: {}\n",
                certificate.display()
            )
        })
    }

    /// Speaks TLS.
    pub(crate) fn with_tls(storage: &Path, certificate: &Path, key: &Path) -> Self {
        let tls = format!(
            "  tls:\n    certificate: {}\n    key: {}\n",
            certificate.display(),
            key.display()
        );
        Self::start(storage, &tls, |_| String::new())
    }

    fn start(storage: &Path, http: &str, more: impl FnOnce(&Path) -> String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let more = more(folder.path());
        let config = format!(
            "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n  maintenance:\n    uploadpurging:\n      enabled: false\nhttp:\n  addr: 127.0.0.1:0\n  secret: test\n{http}{more}",
            storage.display()
        );
        let path = folder.path().join("config.yml");
        fs::write(&path, config).unwrap();
        // It dies with the thread that started it, so it outlives no test that is killed.
        #[expect(clippy::disallowed_methods, reason = "the registry of the test")]
        let mut child = Command::new("/usr/bin/setpriv")
            .args(["--pdeathsig", "KILL", "/usr/bin/docker-registry", "serve"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("setpriv (Debian package util-linux): {error}"));
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut log = String::new();
        let address = loop {
            let mut line = String::new();
            if lines.read_line(&mut line).unwrap() == 0 {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("docker-registry (Debian package docker-registry) does not start:\n{log}");
            }
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split(['"', ',']).next().unwrap().trim().to_owned();
            }
            log += &line;
        };
        // It writes a line for each request, and must not stand still for want of a reader.
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while lines.read(&mut piece).is_ok_and(|count| count > 0) {}
        });
        Self { child, address, _folder: folder }
    }

    /// `127.0.0.1:PORT`
    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A test's process, which must not outlive it.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
