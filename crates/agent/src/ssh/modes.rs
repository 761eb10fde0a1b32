//! A terminal's modes as an ssh client asks for them (RFC 4254, 8): its keys, and what the terminal does by itself.

use std::os::fd::OwnedFd;

use russh::Pty;
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, tcgetattr,
    tcsetattr,
};

/// Sets those of the modes that a Linux terminal has. One that cannot be set works all the same.
pub(crate) fn set(terminal: &OwnedFd, modes: &[(Pty, u32)]) {
    if modes.is_empty() {
        return;
    }
    let Ok(mut attributes) = tcgetattr(terminal) else { return };
    for (mode, value) in modes {
        one(&mut attributes, *mode, *value);
    }
    tcsetattr(terminal, OptionalActions::Now, &attributes).ok();
}

fn one(attributes: &mut Termios, mode: Pty, value: u32) {
    let key = match mode {
        Pty::VINTR => Some(SpecialCodeIndex::VINTR),
        Pty::VQUIT => Some(SpecialCodeIndex::VQUIT),
        Pty::VERASE => Some(SpecialCodeIndex::VERASE),
        Pty::VKILL => Some(SpecialCodeIndex::VKILL),
        Pty::VEOF => Some(SpecialCodeIndex::VEOF),
        Pty::VEOL => Some(SpecialCodeIndex::VEOL),
        Pty::VEOL2 => Some(SpecialCodeIndex::VEOL2),
        Pty::VSTART => Some(SpecialCodeIndex::VSTART),
        Pty::VSTOP => Some(SpecialCodeIndex::VSTOP),
        Pty::VSUSP => Some(SpecialCodeIndex::VSUSP),
        Pty::VREPRINT => Some(SpecialCodeIndex::VREPRINT),
        Pty::VWERASE => Some(SpecialCodeIndex::VWERASE),
        Pty::VLNEXT => Some(SpecialCodeIndex::VLNEXT),
        Pty::VDISCARD => Some(SpecialCodeIndex::VDISCARD),
        _ => None,
    };
    if let Some(key) = key {
        // 255 is none (RFC 4254, 8), which is 0 here (_POSIX_VDISABLE).
        let byte = u8::try_from(value).unwrap_or(u8::MAX);
        attributes.special_codes[key] = if byte == u8::MAX { 0 } else { byte };
        return;
    }
    let on = value != 0;
    let Termios { input_modes: input, output_modes: output, local_modes: local, .. } = attributes;
    match mode {
        Pty::IGNPAR => input.set(InputModes::IGNPAR, on),
        Pty::PARMRK => input.set(InputModes::PARMRK, on),
        Pty::INPCK => input.set(InputModes::INPCK, on),
        Pty::ISTRIP => input.set(InputModes::ISTRIP, on),
        Pty::INLCR => input.set(InputModes::INLCR, on),
        Pty::IGNCR => input.set(InputModes::IGNCR, on),
        Pty::ICRNL => input.set(InputModes::ICRNL, on),
        Pty::IXON => input.set(InputModes::IXON, on),
        Pty::IXANY => input.set(InputModes::IXANY, on),
        Pty::IXOFF => input.set(InputModes::IXOFF, on),
        Pty::IMAXBEL => input.set(InputModes::IMAXBEL, on),
        Pty::IUTF8 => input.set(InputModes::IUTF8, on),
        Pty::ISIG => local.set(LocalModes::ISIG, on),
        Pty::ICANON => local.set(LocalModes::ICANON, on),
        Pty::ECHO => local.set(LocalModes::ECHO, on),
        Pty::ECHOE => local.set(LocalModes::ECHOE, on),
        Pty::ECHOK => local.set(LocalModes::ECHOK, on),
        Pty::ECHONL => local.set(LocalModes::ECHONL, on),
        Pty::NOFLSH => local.set(LocalModes::NOFLSH, on),
        Pty::TOSTOP => local.set(LocalModes::TOSTOP, on),
        Pty::IEXTEN => local.set(LocalModes::IEXTEN, on),
        Pty::ECHOCTL => local.set(LocalModes::ECHOCTL, on),
        Pty::ECHOKE => local.set(LocalModes::ECHOKE, on),
        Pty::PENDIN => local.set(LocalModes::PENDIN, on),
        Pty::OPOST => output.set(OutputModes::OPOST, on),
        Pty::ONLCR => output.set(OutputModes::ONLCR, on),
        Pty::OCRNL => output.set(OutputModes::OCRNL, on),
        Pty::ONOCR => output.set(OutputModes::ONOCR, on),
        Pty::ONLRET => output.set(OutputModes::ONLRET, on),
        _ => {}
    }
}
