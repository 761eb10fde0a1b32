//! What the helper gives up before it serves: capabilities that no claim needs, the way to gain any, and system calls that
//! neither it nor nft nor resolvectl nor Firecracker's jailer nor Firecracker makes. Its children inherit all of it.

use std::collections::BTreeMap;
use std::io;

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// The capabilities that remain (capabilities(7)), each with what fails without it.
pub const CAPABILITIES: [(&str, CapabilitySet, &str); 9] = [
    ("CAP_CHOWN", CapabilitySet::CHOWN, "giving devices, and the jail, to the VM's user"),
    ("CAP_DAC_OVERRIDE", CapabilitySet::DAC_OVERRIDE, "what is the owner's or a VM's user's"),
    ("CAP_FOWNER", CapabilitySet::FOWNER, "the jailer's modes of a jail that was used before"),
    ("CAP_KILL", CapabilitySet::KILL, "signals to VMMs, which are other users'"),
    ("CAP_MKNOD", CapabilitySet::MKNOD, "the devices in a jail, ours and the jailer's"),
    (
        "CAP_NET_ADMIN",
        CapabilitySet::NET_ADMIN,
        "bridges, taps, their addresses and rules, forwarding",
    ),
    ("CAP_SETGID", CapabilitySet::SETGID, "the jailer becomes the VM's group"),
    ("CAP_SETUID", CapabilitySet::SETUID, "the jailer becomes the VM's user"),
    ("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN, "loops, device-mapper, the jailer's mounts"),
];

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {act}")]
pub struct ConfineError {
    act: &'static str,
    #[source]
    cause: io::Error,
}

/// Gives up what is not needed. To be called before any thread is started, since all of it is a thread's.
///
/// # Errors
/// The step that failed: then nothing must be served.
pub fn confine() -> Result<(), ConfineError> {
    let on = |act: &'static str| move |cause: io::Error| ConfineError { act, cause };
    // What is made is for nobody else to read, unless it is said.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    // Every VMM that was started is an open pidfd until it is reaped.
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum })
        .map_err(|e| on("raise the limit of open files")(e.into()))?;
    drop_capabilities().map_err(on("give up capabilities"))?;
    set_no_new_privs(true).map_err(|e| on("give up new privileges")(e.into()))?;
    let program = filter().map_err(on("compile the filter of system calls"))?;
    seccompiler::apply_filter(&program).map_err(|e| on("filter system calls")(io::Error::other(e)))
}

fn drop_capabilities() -> io::Result<()> {
    let kept: CapabilitySet = CAPABILITIES.iter().map(|(_, capability, _)| *capability).collect();
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match capability_is_in_bounding_set(capability) {
            Ok(true) if !kept.contains(capability) => {
                remove_capability_from_bounding_set(capability)?;
            }
            Ok(_) => {}
            // The last one that this kernel knows is behind us.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    clear_ambient_capability_set()?;
    let permitted = capabilities(None)?.permitted & kept;
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: permitted, permitted, inheritable })?;
    Ok(())
}

/// Allows what [`ALLOWED`] lists. Everything else is answered as by a kernel that does not have it (`ENOSYS`), at which a
/// C library takes an older call instead of failing.
fn filter() -> io::Result<BpfProgram> {
    let arch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let (otherwise, listed) = (SeccompAction::Errno(NO_SUCH_CALL), SeccompAction::Allow);
    let rules = rules().map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, otherwise, listed, arch).map_err(io::Error::other)?;
    BpfProgram::try_from(filter).map_err(io::Error::other)
}

const NO_SUCH_CALL: u32 = libc::ENOSYS.unsigned_abs();

/// Each call with what its arguments may be: any, or one of these.
fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(ALLOWED_HERE).map(|call| (*call, Vec::new())).collect();
    let first = |operator, value: i32| {
        let value = u64::from(value.unsigned_abs());
        SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value)?])
    };
    // Requests and APIs; ioctls of network devices; netlink.
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_NETLINK];
    let families = families.map(|family| first(SeccompCmpOp::Eq, family));
    rules.insert(libc::SYS_socket, families.into_iter().collect::<Result<_, _>>()?);
    // The jailer makes a mount namespace; nobody makes a child in a namespace.
    rules.insert(libc::SYS_unshare, vec![first(SeccompCmpOp::Eq, libc::CLONE_NEWNS)?]);
    let namespaces = u64::from(NAMESPACES.unsigned_abs());
    rules.insert(libc::SYS_clone, vec![first(SeccompCmpOp::MaskedEq(namespaces), 0)?]);
    Ok(rules)
}

/// The flags of clone(2) that make namespaces. clone3(2), whose flags a filter cannot see, is not allowed at all.
const NAMESPACES: i32 = libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS;

/// What the helper, the jailer, nft and Firecracker call: what Firecracker's own filters allow from 1.12 to 1.16
/// (resources/seccomp/*.json) but for io_uring, which runs calls behind every filter's back and is used for its `Async`
/// engine only; what the jailer calls (src/jailer/src/{env,chroot}.rs); what nft calls (it waits for the kernel by select(2));
/// what this program, Rust's standard library and the C library call.
const ALLOWED: &[i64] = &[
    // Files.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_sendfile,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
    // Names, modes and owners.
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_linkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    // The jail.
    libc::SYS_chroot,
    libc::SYS_mount,
    libc::SYS_pivot_root,
    libc::SYS_umount2,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_memfd_create,
    libc::SYS_mincore,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munmap,
    // Sockets.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    // Events and time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_gettimeofday,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    // Processes and threads.
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getsid,
    libc::SYS_gettid,
    libc::SYS_kill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_prctl,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_seccomp,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setsid,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_tgkill,
    libc::SYS_tkill,
    libc::SYS_uname,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Users and limits.
    libc::SYS_capget,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getrlimit,
    libc::SYS_getuid,
    libc::SYS_prlimit64,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setrlimit,
    libc::SYS_setuid,
];

/// Older calls, which newer machines do not have.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[i64] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_fork,
    libc::SYS_lchown,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_mknod,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_unlink,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[i64] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_is_a_program_that_the_kernel_takes() {
        // BPF_MAXINSNS of linux/bpf_common.h.
        assert!(filter().unwrap().len() < 4096);
    }

    #[test]
    fn no_call_is_listed_twice_or_both_limited_and_not() {
        let rules = rules().unwrap();
        let limited = [libc::SYS_socket, libc::SYS_unshare, libc::SYS_clone];
        assert_eq!(rules.len(), ALLOWED.len() + ALLOWED_HERE.len() + limited.len());
        for call in limited {
            assert!(!rules[&call].is_empty());
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn what_firecracker_allows_itself_is_allowed_but_for_io_uring() {
        let rules = rules().unwrap();
        // All that any of its threads may call once it runs, in any of 1.12 to 1.16.
        for call in [
            libc::SYS_accept4,
            libc::SYS_brk,
            libc::SYS_clock_gettime,
            libc::SYS_close,
            libc::SYS_connect,
            libc::SYS_epoll_ctl,
            libc::SYS_epoll_pwait,
            libc::SYS_eventfd2,
            libc::SYS_exit,
            libc::SYS_exit_group,
            libc::SYS_fcntl,
            libc::SYS_fstat,
            libc::SYS_fsync,
            libc::SYS_ftruncate,
            libc::SYS_futex,
            libc::SYS_getrandom,
            libc::SYS_gettid,
            libc::SYS_ioctl,
            libc::SYS_lseek,
            libc::SYS_madvise,
            libc::SYS_memfd_create,
            libc::SYS_mincore,
            libc::SYS_mmap,
            libc::SYS_mprotect,
            libc::SYS_mremap,
            libc::SYS_msync,
            libc::SYS_munmap,
            libc::SYS_open,
            libc::SYS_read,
            libc::SYS_readv,
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
            libc::SYS_restart_syscall,
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn,
            libc::SYS_sched_yield,
            libc::SYS_sendmsg,
            libc::SYS_sendto,
            libc::SYS_sigaltstack,
            libc::SYS_socket,
            libc::SYS_stat,
            libc::SYS_timerfd_create,
            libc::SYS_timerfd_settime,
            libc::SYS_tkill,
            libc::SYS_write,
            libc::SYS_writev,
        ] {
            assert!(rules.contains_key(&call), "{call}");
        }
    }

    #[test]
    fn what_could_undo_the_confinement_is_not_allowed() {
        let rules = rules().unwrap();
        for call in [
            libc::SYS_bpf,
            libc::SYS_clone3,
            libc::SYS_delete_module,
            libc::SYS_finit_module,
            libc::SYS_init_module,
            libc::SYS_io_uring_setup,
            libc::SYS_kexec_load,
            libc::SYS_keyctl,
            libc::SYS_open_by_handle_at,
            libc::SYS_perf_event_open,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_ptrace,
            libc::SYS_reboot,
            libc::SYS_setns,
            libc::SYS_swapon,
            libc::SYS_userfaultfd,
        ] {
            assert!(!rules.contains_key(&call), "{call}");
        }
    }
}
