//! ssh: who a guest is to its clients, and who may come. Keys are made here and known here, so no client ever has to trust
//! a key at first sight: `known_hosts` is written from the records, whole, whenever it would say something else.
//!
//! The user's own `~/.ssh` is neither read nor written.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use banger_api::ssh::{GuestSsh, PORT, SshAccess};
use banger_api::{Code, Problem};
use banger_store::VmRecord;
use banger_vmm::Channel;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{LineEnding, PrivateKey};

use crate::agent;
use crate::daemon::Daemon;
use crate::problems;

/// The folder of ssh clients' files, in the state.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    /// Held while one of them is compared and written.
    turn: Mutex<()>,
}

impl Files {
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, turn: Mutex::default() }
    }

    fn identity(&self) -> PathBuf {
        self.folder.join("id_ed25519")
    }

    fn known_hosts(&self) -> PathBuf {
        self.folder.join("known_hosts")
    }
}

impl Daemon {
    /// What ssh clients need, as it is by the records now.
    ///
    /// # Errors
    /// When a file of it cannot be written, or the owner's key cannot be read.
    pub(crate) fn ssh_access(&self) -> Result<SshAccess, Problem> {
        let _turn = self.ssh.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.owners_key()?;
        let zone = &self.config.network.zone;
        let mut known = String::new();
        for (name, private) in self.store.host_keys().map_err(problems::store)? {
            let public = public(&private).map_err(|e| damaged("the host key of a VM", &e))?;
            known.push_str(&format!("{name}.{zone} {public}\n"));
        }
        let path = self.ssh.known_hosts();
        if fs::read_to_string(&path).ok().as_ref() != Some(&known) {
            write(&path, &known).map_err(|e| unwritable(&path, &e))?;
        }
        Ok(SshAccess { zone: zone.clone(), identity: self.ssh.identity(), known_hosts: path })
    }

    /// The owner's public key, as a line. The pair is made at its first use.
    fn owners_key(&self) -> Result<String, Problem> {
        let path = self.ssh.identity();
        match fs::read_to_string(&path) {
            Ok(private) => public(&private).map_err(|e| {
                let what = path.display().to_string();
                damaged(&what, &e)
                    .remedy(format!("remove it: another is made, and VMs learn it ({what})"))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let private = made("banger")?;
                let public = public(&private).map_err(|e| damaged("a new key", &e))?;
                let beside = path.with_extension("pub");
                write(&beside, &format!("{public}\n")).map_err(|e| unwritable(&beside, &e))?;
                write(&path, &private).map_err(|e| unwritable(&path, &e))?;
                Ok(public)
            }
            Err(error) => {
                let message = format!("cannot read {}", path.display());
                Err(Problem::new(Code::Internal, message).cause(&error))
            }
        }
    }

    /// Gives a guest that is ready its key and the owner's. Where it listens, it does from now on.
    ///
    /// # Errors
    /// When its agent does not take them: one of an older banger does not know ssh.
    pub(crate) async fn tell_ssh(
        self: &Arc<Self>,
        vm: &VmRecord,
        channel: &Channel,
    ) -> Result<(), Problem> {
        let (id, listen) = (vm.id.clone(), vm.place.map(|place| (place.address, PORT).into()));
        let said = self.blocking(move |daemon| {
            let known = daemon.store.known_host_key(&id).map_err(problems::store)?;
            let host_key = match known {
                Some(key) => key,
                None => daemon.store.host_key(&id, &made("")?).map_err(problems::store)?,
            };
            daemon.ssh_access()?;
            Ok::<_, Problem>(GuestSsh {
                host_key,
                authorized_keys: vec![daemon.owners_key()?],
                listen,
            })
        });
        agent::put_ssh(channel, &said.await??).await
    }

    /// In the background: nobody waits for it, and whoever comes by [`Daemon::ssh_stream`] tells it again.
    pub(crate) fn tell_ssh_meanwhile(self: &Arc<Self>, vm: &VmRecord, channel: Channel) {
        let (daemon, vm) = (Arc::clone(self), vm.clone());
        drop(tokio::spawn(async move {
            if let Err(problem) = daemon.tell_ssh(&vm, &channel).await {
                tracing::warn!(vm = %vm.name, %problem, "the guest does not serve ssh");
            }
        }));
    }

    /// A stream to a guest's ssh server.
    pub(crate) async fn ssh_stream(
        self: &Arc<Self>,
        vm: &VmRecord,
    ) -> Result<TokioIo<Upgraded>, Problem> {
        let channel = self.channel(vm).await?;
        self.tell_ssh(vm, &channel).await?;
        agent::ssh(&channel).await
    }
}

/// A new key, as OpenSSH writes a private one.
fn made(comment: &str) -> Result<String, Problem> {
    let mut seed = [0; Ed25519Keypair::BYTE_SIZE / 2];
    let mut filled = 0;
    while filled < seed.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut seed[filled..], flags)
            .map_err(|e| Problem::new(Code::Internal, "no randomness for a key").cause(&e))?;
    }
    let pair = KeypairData::from(Ed25519Keypair::from_seed(&seed));
    let key = PrivateKey::new(pair, comment).and_then(|key| key.to_openssh(LineEnding::LF));
    let key = key.map_err(|e| Problem::new(Code::Internal, "cannot make a key").cause(&e))?;
    Ok(key.to_string())
}

/// The public part of a private key, as a line.
fn public(private: &str) -> Result<String, ssh_key::Error> {
    PrivateKey::from_openssh(private)?.public_key().to_openssh()
}

/// Whole or not at all, and 0600: OpenSSH takes no key that others could read.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder)?;
    let half = path.with_extension("new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&half)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&half, path)
}

fn damaged(what: &str, error: &ssh_key::Error) -> Problem {
    Problem::new(Code::Damaged, format!("{what} is no private key of OpenSSH's")).cause(error)
}

fn unwritable(path: &Path, error: &io::Error) -> Problem {
    Problem::new(Code::Internal, format!("cannot write {}", path.display())).cause(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_of_its_own_that_openssh_reads() {
        let (one, other) = (made("banger").unwrap(), made("").unwrap());
        assert!(one.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n"), "{one}");
        let (one, other) = (public(&one).unwrap(), public(&other).unwrap());
        assert!(one.starts_with("ssh-ed25519 AAAA") && one.ends_with(" banger"), "{one}");
        assert_ne!(one.split(' ').nth(1), other.split(' ').nth(1));
    }
}
