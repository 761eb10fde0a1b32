//! The program as systemd starts it: with its socket as an open file, its configuration in /etc and its folders in /var/lib.
//! Both are the test's own, in a mount namespace; so are the network devices, in a network namespace. Block devices are
//! this machine's. Runs as root.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::disallowed_methods, reason = "starts the program under test")]

mod support;

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;

use banger_helper::confine::CAPABILITIES;
use banger_host::{Claim, Guard, Held, Host, Loop, LoopRole, Mac, Mark, Nat, StateFile, Tap};
use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::Uid;
use support::chain;
use support::installed::{OWNER, UID, World, network, program};

fn owned_file(path: &Path, uid: u32) {
    let file = fs::File::create(path).unwrap();
    file.set_len(1 << 20).unwrap();
    chown(path, Some(uid), None).unwrap();
}

fn image(mark: &Mark, name: &str) -> Claim {
    let file = StateFile::parse(&format!("images/{name}")).unwrap();
    Claim::Loop(Loop { mark: mark.clone(), role: LoopRole::Image, file })
}

#[test]
fn it_serves_with_no_more_rights_than_claims_need() {
    World::new().run(|world| {
        let helper = world.start();
        assert_eq!(world.host().list().unwrap(), []);
        let kept = CAPABILITIES.iter().fold(0, |all, (_, capability, _)| all | capability.bits());
        for field in ["CapEff", "CapPrm", "CapBnd"] {
            let set = u64::from_str_radix(&helper.status(field), 16).unwrap();
            assert_eq!(set & !kept, 0, "{field}");
        }
        assert_eq!(helper.status("NoNewPrivs"), "1");
        assert_eq!(helper.status("Seccomp"), "2");
        assert_eq!(helper.status("Umask"), "0077");
    });
}

#[test]
fn real_claims_are_made_found_and_released() {
    World::new().run(|world| {
        let _helper = world.start();
        let (host, mark) = (world.host(), world.mark("1"));
        let images = world.path("lib/banger/state/images");
        owned_file(&images.join("a.ext4"), OWNER);
        let (network, address) = network();
        let claims = [
            image(&mark, "a.ext4"),
            Claim::Bridge { installation: world.installation.clone(), network },
            Claim::Guard(Guard {
                mark: mark.clone(),
                network,
                address,
                mac: Mac::of(&mark),
                exposed: [].into(),
            }),
            Claim::Tap(Tap { mark: mark.clone(), uid: UID + 3, network }),
            Claim::Nat(Nat { mark: mark.clone(), network, address, only: None }),
        ];
        for claim in claims.iter().chain(&claims) {
            host.acquire(claim).unwrap_or_else(|error| panic!("{}", chain(&error)));
        }
        let held: Vec<Held> = claims.iter().map(Claim::held).collect();
        assert_eq!(host.list().unwrap(), held);
        for held in held.iter().chain(&held).rev() {
            host.release(held).unwrap_or_else(|error| panic!("{}", chain(&error)));
        }
        assert_eq!(host.list().unwrap(), []);
    });
}

#[test]
fn files_that_are_not_the_owners_are_not_used_whatever_leads_to_them() {
    World::new().run(|world| {
        let _helper = world.start();
        let (host, mark) = (world.host(), world.mark("2"));
        let state = world.path("lib/banger/state");
        owned_file(&state.join("images/good"), OWNER);
        owned_file(&state.join("images/roots"), 0);
        owned_file(&state.join("images/others"), OWNER + 1);
        symlink("good", state.join("images/link")).unwrap();
        fs::create_dir(state.join("images/folder")).unwrap();
        symlink("/etc", state.join("images/etc")).unwrap();
        for name in ["roots", "others", "link", "folder", "absent", "etc/banger/install.toml"] {
            let error = host.acquire(&image(&mark, name)).expect_err(name);
            assert!(
                !chain(&error).contains("refuses"),
                "only the filesystem can tell: {}",
                chain(&error)
            );
        }
        assert_eq!(host.list().unwrap(), []);
        host.acquire(&image(&mark, "good")).unwrap();
    });
}

#[test]
fn a_helper_that_is_killed_between_two_claims_is_followed_by_one_that_goes_on() {
    World::new().run(|world| {
        let (host, mark) = (world.host(), world.mark("3"));
        let (network, address) = network();
        let bridge = Claim::Bridge { installation: world.installation.clone(), network };
        let tap = Claim::Tap(Tap { mark: mark.clone(), uid: UID, network });
        let nat = Claim::Nat(Nat { mark: mark.clone(), network, address, only: None });
        for act in [
            &(|| host.acquire(&bridge)) as &dyn Fn() -> _,
            &|| host.acquire(&tap),
            &|| host.acquire(&tap),
            &|| host.acquire(&nat),
            &|| host.release(&tap.held()),
            &|| host.release(&nat.held()),
            &|| host.release(&bridge.held()),
        ] {
            let helper = world.start();
            act().unwrap();
            helper.kill();
        }
        let _helper = world.start();
        assert_eq!(host.list().unwrap(), []);
    });
}

#[test]
fn a_second_helper_waits_until_the_first_has_ended() {
    World::new().run(|world| {
        let first = world.start();
        world.host().list().unwrap();
        let mut second = world.start();
        let mut said = String::new();
        BufReader::new(second.0.stderr.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "<4>another helper runs: this one waits until it has ended\n");
        let refused = world.release_all();
        assert!(!refused.status.success());
        let text = String::from_utf8(refused.stderr).unwrap();
        assert!(text.contains("the helper serves: first `systemctl stop"), "{text}");
        first.kill();
        world.host().list().unwrap();
    });
}

#[test]
fn everything_of_the_installation_can_be_released_without_a_daemon() {
    World::new().run(|world| {
        let helper = world.start();
        let mark = world.mark("4");
        let tap = Tap { mark: mark.clone(), uid: UID, network: network().0 };
        world.host().acquire(&Claim::Tap(tap)).unwrap();
        helper.kill();
        let released = world.release_all();
        assert!(released.status.success(), "{released:?}");
        let text = String::from_utf8(released.stdout).unwrap();
        assert!(text.contains(&format!("released the tap of VM {mark}\n")), "{text}");
        let _helper = world.start();
        assert_eq!(world.host().list().unwrap(), []);
    });
}

#[test]
fn another_user_is_refused() {
    World::new().run(|world| {
        world.install(OWNER + 1);
        let helper = world.start();
        fs::set_permissions(world.path("helper.sock"), Permissions::from_mode(0o666)).unwrap();
        // Credentials are a thread's, and those at connect(2) count (unix(7), SO_PEERCRED).
        let listed_as = |uid: u32| {
            let user = Uid::from_raw(uid);
            let list = || {
                rustix::thread::set_thread_res_uid(user, user, user).unwrap();
                world.host().list()
            };
            thread::scope(|scope| scope.spawn(list).join().unwrap())
        };
        let text = chain(&listed_as(OWNER).unwrap_err());
        assert!(text.contains("user 12345 is not 12346, whom banger was installed for"), "{text}");
        assert_eq!(listed_as(OWNER + 1).unwrap(), []);
        assert!(helper.kill().contains("<4>refused to serve this request"));
    });
}

#[test]
fn it_does_not_start_where_it_has_no_business() {
    let world = World::new();
    let said = |mut command: Command| {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    // As a user: the program must be where a user can read it.
    let copy = world.path("banger-helper");
    fs::copy(program(), &copy).unwrap();
    let mut as_user = Command::new(&copy);
    as_user.arg("release-all").uid(OWNER);
    assert!(said(as_user).contains("this is root's program"));
    // Without a socket.
    let text = said(Command::new(program()));
    assert!(text.contains("no socket was passed to this process"), "{text}");
    let mut odd = Command::new(program());
    odd.arg("serve");
    assert!(said(odd).contains("usage: banger-helper"));
    // With a configuration that others could have written, and without one.
    let file = world.path("etc/banger/install.toml");
    fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
    let text = said(world.command(None));
    assert!(text.contains("not to be trusted"), "{text}");
    fs::remove_file(&file).unwrap();
    let text = said(world.command(None));
    assert!(text.contains("`banger system install` makes it"), "{text}");
    world.install(OWNER);
    fs::remove_dir(world.path("lib/banger/jails")).unwrap();
    let text = said(world.command(None));
    assert!(text.contains("cannot lock /var/lib/banger/jails"), "{text}");
    world.run(|_| ());
}

#[test]
fn a_socket_of_another_kind_is_not_served() {
    let world = World::new();
    let (end, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut command = world.command(None);
    command
        .fd_mappings(vec![FdMapping {
            parent_fd: end.as_fd().try_clone_to_owned().unwrap(),
            child_fd: 3,
        }])
        .unwrap();
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("no socket that listens for messages"), "{text}");
    world.run(|_| ());
}
