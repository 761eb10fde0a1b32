//! The program in the guest. As `/init` of the initramfs it builds the root and starts the image's own init; as that
//! init's sibling it serves the host; as `/shutdown` it takes apart what an init cannot take apart under itself.
//!
//! It is one static binary, so it needs nothing of the image, and nothing of it is ever written into the image.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

mod boot;
mod clock;
mod cmdline;
mod console;
mod disks;
mod entrypoint;
mod exec;
mod ext4;
mod files;
mod guest_port;
#[cfg(test)]
mod host;
mod init;
mod job_log;
mod jobs;
mod loopback;
mod modules;
mod mounts;
mod names;
mod netlink;
mod network;
mod network_daemons;
mod output;
mod pid1;
mod port;
mod probe;
mod processes;
mod replaced;
mod resolver;
mod root;
mod serve;
mod server;
mod session;
mod shutdown;
mod sockets;
mod spawn;
mod ssh;
mod uevents;
mod usage;
mod users;
mod vsock;
mod watched;
mod wire;

use crate::spawn::Inheritance;

/// What this process is for: told by its arguments, and decided before anything is done.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    /// `/init`: the first process of the initramfs.
    Boot,
    /// `/shutdown`: PID 1 again, after systemd-shutdown has pivoted into /run/initramfs.
    Shutdown(shutdown::End),
    /// `@banger-agent guest INIT MODULES LISTENER`: the guest's server, and what it inherits, by number or `-`.
    Guest { init: OsString, modules: OsString, listener: OsString },
    /// `banger-agent serve --listen PATH`: the same server on a unix socket.
    Listen(PathBuf),
    /// `banger-ssh ssh`: one ssh connection.
    Ssh,
    /// `banger-sftp sftp`: the files of whoever runs it, for an ssh connection.
    Sftp,
}

impl Role {
    fn of(arguments: &[OsString], is_pid1: bool) -> Option<Self> {
        let words: Vec<&[u8]> = arguments.iter().map(|word| word.as_bytes()).collect();
        match words[..] {
            [b"/shutdown", ref rest @ ..] if is_pid1 => {
                Some(Role::Shutdown(shutdown::End::of(rest.first().copied())))
            }
            _ if is_pid1 => Some(Role::Boot),
            [_, b"guest", _, _, _] => Some(Role::Guest {
                init: arguments[2].clone(),
                modules: arguments[3].clone(),
                listener: arguments[4].clone(),
            }),
            [_, b"serve", b"--listen", _] => Some(Role::Listen(PathBuf::from(&arguments[3]))),
            [_, b"ssh"] => Some(Role::Ssh),
            [_, b"sftp"] => Some(Role::Sftp),
            _ => None,
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match Role::of(&arguments, rustix::process::getpid().is_init()) {
        Some(Role::Boot) => boot::run(),
        Some(Role::Shutdown(end)) => shutdown::finish(end),
        Some(Role::Guest { init, modules, listener }) => {
            serve::in_guest(&init, Inheritance::from_arguments(&modules, &listener))
        }
        Some(Role::Listen(path)) => serve::on_socket(&path),
        Some(Role::Ssh) => ssh::connection::run(),
        Some(Role::Sftp) => ssh::sftp::run(),
        None => {
            console::say(&format!(
                "{} runs in a guest, or as: banger-agent serve --listen PATH",
                env!("CARGO_PKG_NAME")
            ));
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(words: &[&str], is_pid1: bool) -> Option<Role> {
        Role::of(&words.iter().map(OsString::from).collect::<Vec<_>>(), is_pid1)
    }

    #[test]
    fn pid_1_boots_whatever_the_kernel_command_line_adds_to_its_arguments() {
        assert_eq!(role(&["/init", "serve", "--listen", "x"], true), Some(Role::Boot));
        assert_eq!(role(&["/shutdown", "poweroff"], false), None);
    }

    #[test]
    fn systemd_shutdown_says_how_to_end() {
        assert_eq!(
            role(&["/shutdown", "reboot"], true),
            Some(Role::Shutdown(shutdown::End::Reboot))
        );
        assert_eq!(
            role(&["/shutdown", "halt"], true),
            Some(Role::Shutdown(shutdown::End::PowerOff))
        );
        assert_eq!(role(&["/shutdown"], true), Some(Role::Shutdown(shutdown::End::PowerOff)));
    }
}
