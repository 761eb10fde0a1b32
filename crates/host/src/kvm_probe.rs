//! Does /dev/kvm really run a guest here?
//!
//! That it exists, opens and makes a VM says nothing: a software KVM (as in some nested clouds) does all that and then
//! emulates a kernel instruction by instruction. So a tiny guest counts down 200,000 times and its CPU time is looked
//! at: hardware needs 0.3 ms, nested hardware or emulated SVM some 5 ms, a software KVM 180 ms and more.
//! The guest's loop cannot be interrupted from within this process, so the probe runs in a process of its own, which
//! the caller gives [`DEADLINE`] to answer.

use std::process::ExitCode;
use std::time::Duration;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use rustix::time::{ClockId, clock_gettime};

use crate::command;

/// CPU time within which the count must be done.
const BUDGET: Duration = Duration::from_millis(60);
/// Wall time for the whole probe.
pub const DEADLINE: Duration = Duration::from_secs(2);

const LOOPS: u32 = 200_000;
const MEMORY_BYTES: usize = 0x4_0000;
const CODE: usize = 0x1000;
const TABLES: usize = 0x9000;

/// The argument with which a program that calls [`answer`] is the probe.
pub const ARGUMENT: &str = "probe-kvm";

/// Runs the probe in a process of this very program, which must call [`answer`] when [`ARGUMENT`] is its only argument.
///
/// # Errors
/// Why KVM runs no guest here.
pub fn in_own_process() -> Result<(), String> {
    let own = std::env::current_exe().map_err(|e| format!("the probe cannot be started: {e}"))?;
    match command::run_within(&own, &[ARGUMENT], DEADLINE) {
        Ok((true, _)) => Ok(()),
        Ok((false, said)) => Err(said.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Err(format!(
            "KVM is emulated in software here: the probe was not done after {} s",
            DEADLINE.as_secs()
        )),
        Err(error) => Err(format!("the probe cannot be run: {error}")),
    }
}

/// The probe's process: says on stdout what is wrong, if anything is.
#[must_use]
pub fn answer() -> ExitCode {
    match probe() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // The caller reads it; if it has gone, the status still says no.
            drop(std::io::Write::write_all(&mut std::io::stdout(), why.as_bytes()));
            ExitCode::FAILURE
        }
    }
}

/// Runs the guest; the error says what is missing, in words for `doctor`.
///
/// # Errors
/// When /dev/kvm cannot be used or is too slow to be real.
pub fn probe() -> Result<(), String> {
    let kvm = Kvm::new().map_err(|e| format!("/dev/kvm cannot be opened: {e}"))?;
    let vm = kvm.create_vm().map_err(|e| format!("KVM makes no VM: {e}"))?;
    let mut memory = Memory::new()?;
    memory.load();
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY_BYTES as u64,
        userspace_addr: memory.address(),
    };
    memory.give(&vm, region)?;
    let mut vcpu = vm.create_vcpu(0).map_err(|e| format!("KVM makes no CPU: {e}"))?;
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|e| format!("KVM tells no CPUID: {e}"))?;
    vcpu.set_cpuid2(&cpuid).map_err(|e| format!("KVM takes no CPUID: {e}"))?;
    enter_long_mode(&vcpu).map_err(|e| format!("KVM takes no registers: {e}"))?;
    let before = cpu_time();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(0x10, b"K")) => break,
            Ok(other) => return Err(format!("the probe's guest ended with {other:?}")),
            Err(error) if error.errno() == rustix::io::Errno::INTR.raw_os_error() => {}
            Err(error) => return Err(format!("KVM does not run: {error}")),
        }
    }
    let used = cpu_time().saturating_sub(before);
    if used <= BUDGET {
        return Ok(());
    }
    Err(format!(
        "KVM is emulated in software here: {LOOPS} loops took {} ms of CPU time",
        used.as_millis()
    ))
}

/// 64-bit mode with the first 2 MiB mapped one to one (Intel SDM vol. 3, 4.5 and 9.8.5).
fn enter_long_mode(vcpu: &kvm_ioctls::VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut special = vcpu.get_sregs()?;
    special.cr3 = TABLES as u64;
    special.cr4 = 1 << 5; // PAE
    special.cr0 = 0x8005_0033; // PE, MP, ET, NE, WP, AM, PG
    special.efer = 0x500; // LME, LMA
    let code = kvm_segment {
        limit: !0,
        selector: 8,
        type_: 11,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment { type_: 3, l: 0, db: 1, selector: 16, ..code };
    special.cs = code;
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.tr = kvm_segment {
        limit: 0xffff,
        selector: 24,
        type_: 11,
        present: 1,
        ..kvm_segment::default()
    };
    vcpu.set_sregs(&special)?;
    let mut registers = vcpu.get_regs()?;
    registers.rip = CODE as u64;
    registers.rsp = 0x8000;
    registers.rflags = 2;
    vcpu.set_regs(&registers)
}

/// This process's CPU time: the caller's own machine may be busy.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

use memory::Memory;

mod memory {
    //! The guest's memory: the only unsafe part, since the kernel writes to it behind the compiler's back.
    #![expect(unsafe_code, reason = "guest memory is mapped and handed to the kernel by address")]

    use super::{CODE, LOOPS, MEMORY_BYTES, TABLES, kvm_userspace_memory_region};

    pub(super) struct Memory(*mut u8);

    impl Memory {
        pub(super) fn new() -> Result<Self, String> {
            use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
            // SAFETY: a new private mapping at an address of the kernel's choice overlaps nothing.
            let address = unsafe {
                mmap_anonymous(
                    std::ptr::null_mut(),
                    MEMORY_BYTES,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::PRIVATE,
                )
            };
            address
                .map(|address| Self(address.cast()))
                .map_err(|e| format!("no memory for the probe's guest: {e}"))
        }

        pub(super) fn address(&self) -> u64 {
            self.0 as u64
        }

        /// The guest's program and page tables.
        pub(super) fn load(&mut self) {
            let mut code = vec![0xb9]; // mov ecx, LOOPS
            code.extend(LOOPS.to_le_bytes());
            code.extend([0xff, 0xc9]); // 1: dec ecx
            code.extend([0x75, 0xfc]); // jnz 1b
            code.extend([0xb0, b'K', 0xe6, 0x10, 0xf4]); // mov al, 'K'; out 0x10, al; hlt
            self.put(CODE, &code);
            for (at, entry) in
                [(TABLES, 0xa003_u64), (TABLES + 0x1000, 0xb003), (TABLES + 0x2000, 0x83)]
            {
                self.put(at, &entry.to_le_bytes());
            }
        }

        fn put(&mut self, at: usize, bytes: &[u8]) {
            assert!(at + bytes.len() <= MEMORY_BYTES, "the program fits its memory");
            // SAFETY: the range is inside the mapping (asserted) and no guest runs yet.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(at), bytes.len()) }
        }

        pub(super) fn give(
            &self,
            vm: &kvm_ioctls::VmFd,
            region: kvm_userspace_memory_region,
        ) -> Result<(), String> {
            // SAFETY: the region is this mapping, which is never unmapped: the probe's process ends soon.
            unsafe { vm.set_user_memory_region(region) }
                .map_err(|e| format!("KVM takes no memory: {e}"))
        }
    }
}
