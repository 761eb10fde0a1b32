//! ioctl(2) for devices that no crate of ours knows: loop devices, device-mapper, taps.

use std::io;
use std::os::fd::AsFd;

use rustix::ffi::c_void;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};

struct Call {
    opcode: Opcode,
    arg: *mut c_void,
}

#[expect(unsafe_code, reason = "only the caller knows what the kernel does with the argument")]
// SAFETY: nothing is read through the pointer here, and `IS_MUTATING` assumes the most. That opcode and argument belong
// together is what the only function that makes a `Call` demands of its caller.
unsafe impl Ioctl for Call {
    type Output = u32;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.arg
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _arg: *mut c_void) -> rustix::io::Result<u32> {
        u32::try_from(out).map_err(|_| rustix::io::Errno::RANGE)
    }
}

/// What the kernel returns, which is 0 for most.
///
/// # Safety
/// `arg` is what `opcode` wants on this file: a number, or the address of as many bytes as the kernel reads and writes.
#[expect(unsafe_code, reason = "only the caller knows what the kernel does with the argument")]
pub(super) unsafe fn ioctl<T>(fd: impl AsFd, opcode: Opcode, arg: *mut T) -> io::Result<u32> {
    // SAFETY: the caller's promise.
    Ok(unsafe { rustix::ioctl::ioctl(fd, Call { opcode, arg: arg.cast() })? })
}
