//! A host in one process, with the real Firecracker: jailed as root, and unjailed as anybody could run it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::path::Path;

use banger_host::root::API_SOCKET;
use banger_host::{Claim, Host, LocalHost, Mark, Places, Root, VmSocket, Vmm};
use common::{World, api, console, in_world, toy};
use rustix::process::Signal;

/// The host of this world's installation. Its logs are written by `cat`.
fn local(world: &World, root: Option<Root>) -> LocalHost {
    let folder = world.folder.path();
    let installation = world.root.places().installation.clone();
    let places = Places::new(installation, world.state(), folder, folder);
    for needed in [&places.vms, &places.runs] {
        fs::create_dir_all(needed).unwrap();
    }
    let write = r#"cat >"$0""#;
    LocalHost::new(places, ("/bin/sh".into(), vec!["-c".into(), write.into()]), root)
}

fn folders(mark: &Mark) -> [Claim; 2] {
    [Claim::VmFolder { mark: mark.clone() }, Claim::RunFolder { mark: mark.clone() }]
}

fn log(host: &LocalHost, mark: &Mark) -> String {
    fs::read_to_string(host.places().log(mark)).unwrap()
}

fn firecracker(world: &World, mark: &Mark, host: &LocalHost) -> Vmm {
    let socket = host.places().run_folder(mark).join(API_SOCKET);
    Vmm {
        mark: mark.clone(),
        program: world.root.places().firecracker.firecracker.clone(),
        args: ["--api-sock", socket.to_str().unwrap(), "--level", "Error"].map(Into::into).into(),
        sockets: Vec::new(),
        connects: Vec::new(),
        makes: Some(API_SOCKET.into()),
        log_limit_bytes: 1 << 20,
    }
}

#[test]
fn a_jailed_vmm_is_logged_watched_and_released_with_its_log() {
    in_world(|world| {
        let host = local(world, Some(world.another_root()));
        let vm = world.toy_vm(1_900_000_200);
        let mut claims = folders(&vm.mark).to_vec();
        claims.extend(vm.claims.clone());
        claims.push(Claim::JailedVmm(vm.vmm.clone()));
        for _ in 0..2 {
            for claim in &claims {
                host.acquire(claim).unwrap();
            }
        }
        api::boot(&world.root, &vm.mark);
        host.connect(&vm.mark, &VmSocket::Jail(API_SOCKET.into())).unwrap();
        console::until(|| log(&host, &vm.mark).contains(toy::UP));
        let watched = host.watch(&vm.mark).unwrap().unwrap();
        host.signal(&vm.mark, Signal::KILL).unwrap();
        watched.wait(std::time::Duration::from_secs(10)).unwrap();
        assert!(host.watch(&vm.mark).unwrap().is_none());
        for claim in claims.iter().rev() {
            host.release(&claim.held()).unwrap();
        }
        assert_eq!(host.list().unwrap(), []);
    });
}

#[test]
fn an_unjailed_vmm_is_started_when_the_socket_that_it_makes_accepts() {
    in_world(|world| {
        let host = local(world, None);
        let mark = world.mark();
        folders(&mark).iter().for_each(|claim| host.acquire(claim).unwrap());
        // One from before must not pass for the new one.
        let socket = host.places().run_folder(&mark).join(API_SOCKET);
        let _old = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let vmm = Claim::Vmm(firecracker(world, &mark, &host));
        host.acquire(&vmm).unwrap();
        host.connect(&mark, &VmSocket::RunFolder(API_SOCKET.into())).unwrap();
        host.acquire(&vmm).unwrap();
        host.release(&vmm.held()).unwrap();
        assert!(host.watch(&mark).unwrap().is_none());
        folders(&mark).iter().for_each(|claim| host.release(&claim.held()).unwrap());
        assert_eq!(host.list().unwrap(), []);
    });
}

#[test]
fn a_vmm_that_ends_before_it_makes_its_socket_is_an_error() {
    in_world(|world| {
        let host = local(world, None);
        let mark = world.mark();
        folders(&mark).iter().for_each(|claim| host.acquire(claim).unwrap());
        for (program, args) in [("/bin/false", vec![]), ("/bin/sleep", vec!["0.2".to_owned()])] {
            let program = Path::new(program).canonicalize().unwrap();
            let vmm = Vmm { program, args, ..firecracker(world, &mark, &host) };
            let error = host.acquire(&Claim::Vmm(vmm.clone())).unwrap_err();
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert!(cause.contains("has ended"), "{cause}");
            host.release(&Claim::Vmm(vmm).held()).unwrap();
        }
    });
}

#[test]
fn without_root_what_needs_it_is_refused_and_the_rest_can_be_listed() {
    in_world(|world| {
        let host = local(world, None);
        let vm = world.toy_vm(1_900_000_201);
        for claim in &vm.claims {
            let error = host.acquire(claim).unwrap_err();
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert!(cause.contains("helper"), "{cause}");
            assert!(host.release(&claim.held()).is_err());
        }
        assert!(host.list().unwrap().iter().all(|held| !held.needs_root()));
    });
}
