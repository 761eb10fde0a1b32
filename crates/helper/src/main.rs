//! `banger-helper`: root's part of banger, started by systemd for its socket. `banger-helper release-all` undoes everything
//! that this host's installation holds, when no helper serves.

use std::io::{self, Write};
use std::process::ExitCode;

use banger_api::install::{self, Install};
use banger_helper::release_all::{chain, release_all};
use banger_helper::{alone, confine, policy, said, serve};
use banger_host::root::RootPlaces;
use banger_host::{Root, listen_fd};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => serve_socket().map(|()| ExitCode::SUCCESS),
        ["release-all"] => release_everything(),
        _ => {
            Err("usage: banger-helper [release-all] (systemd starts it for its socket)".to_owned())
        }
    };
    done.unwrap_or_else(|error| {
        said::error(&error);
        ExitCode::FAILURE
    })
}

fn serve_socket() -> Result<(), String> {
    // Before anything is opened: see there.
    let listener = listen_fd::take()?;
    let (policy, places) = policy::of(&installed()?)?;
    let _alone = alone::wait(&places.jails)
        .map_err(|e| format!("cannot lock {}: {e}", places.jails.display()))?;
    confine::confine().map_err(|error| chain(&error))?;
    serve::serve(&listener, policy, Root::new(places))
        .map_err(|error| format!("the socket failed: {error}"))
}

fn release_everything() -> Result<ExitCode, String> {
    let (_, places) = policy::of(&installed()?)?;
    let RootPlaces { jails, .. } = &places;
    let _alone = alone::now(jails).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            "the helper serves: first `systemctl stop banger-helper.socket \
                                      banger-helper.service`"
                .to_owned()
        }
        _ => format!("cannot lock {}: {error}", jails.display()),
    })?;
    confine::confine().map_err(|error| chain(&error))?;
    let mut out = io::stdout();
    let stays = release_all(&Root::new(places), &mut out).map_err(|error| chain(&error))?;
    out.flush().map_err(|error| error.to_string())?;
    Ok(if stays.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The installation of this host, by which only root goes.
fn installed() -> Result<Install, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("this is root's program: it does nothing for anybody else".to_owned());
    }
    install::read()
        .map_err(|error| chain(&error))?
        .ok_or_else(|| format!("there is no {}: `banger system install` makes it", install::FILE))
}
