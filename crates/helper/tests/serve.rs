//! The helper's socket: who is answered and with what, what never reaches the hands, who waits for whom. The daemon's side
//! is the real one.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::{self, ErrorKind, Read};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use banger_api::Zone;
use banger_helper::policy::Policy;
use banger_host::helper_wire::{self as wire, Act, Failure, LONGEST, Reply};
use banger_host::root::{Firewalls, Routed};
use banger_host::{Claim, Held, Host, HostError, JailedVmm, Mark, Network, Tap, VmSocket};
use rustix::fs::Uid;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};
use rustix::process::Signal;
use support::{Noted, SOON, World, chain, listener, mark, policy};

fn tap(mark: &Mark) -> Claim {
    let network = Network {
        number: 0,
        gateway: [10, 213, 0, 1].into(),
        prefix: 22,
        mtu: 1500,
        peers: false,
        ipv6: None,
    };
    Claim::Tap(Tap { mark: mark.clone(), uid: 1_900_000_000, network })
}

fn jailed(mark: &Mark) -> Claim {
    Claim::JailedVmm(JailedVmm { mark: mark.clone(), uid: 1_900_000_000, log_limit_bytes: 4096 })
}

fn acquire_tap(mark: &Mark) -> Vec<u8> {
    wire::request(&Act::Acquire { claim: tap(mark) })
}

fn reply_on(connection: &OwnedFd) -> Reply {
    let message = wire::receive(connection, SOON).unwrap().expect("an answer");
    wire::parse_reply(&message.bytes).unwrap()
}

fn refusal_on(connection: &OwnedFd) -> Failure {
    match reply_on(connection) {
        Reply::Failed(failure) if failure.refused => failure,
        other => panic!("it was not refused: {other:?}"),
    }
}

/// The answer to this, with these open files beside it.
fn ask(world: &World, bytes: &[u8], files: &[BorrowedFd<'_>]) -> OwnedFd {
    let connection = world.connect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(files.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(files)));
    sendmsg(&connection, &[io::IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    connection
}

#[test]
fn what_the_daemon_asks_is_done_and_answered() {
    let world = World::new();
    let (host, mark) = (world.host(), mark("1"));
    host.acquire(&tap(&mark)).unwrap();
    host.release(&tap(&mark).held()).unwrap();
    let mut socket = host.connect(&mark, &VmSocket::Jail("api.sock".to_owned())).unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello from the socket");
    host.open(&mark, &[Ipv4Addr::new(203, 0, 113, 7)].into(), 60).unwrap();
    let denied = host.denied(&mark).unwrap();
    assert_eq!(
        denied.iter().map(|denied| (denied.ago_s, denied.port)).collect::<Vec<_>>(),
        [(7, 443)]
    );
    host.open(&mark, &[Ipv4Addr::new(10, 0, 0, 1)].into(), 60).unwrap_err();
    assert_eq!(
        world.hands.log(),
        [
            "acquire the tap of VM bg0000-00000001",
            "release the tap of VM bg0000-00000001",
            "connect bg0000-00000001 api.sock",
            "open bg0000-00000001 {203.0.113.7} 60",
            "denied bg0000-00000001",
        ]
    );
}

#[test]
fn what_needs_no_root_never_reaches_the_helper() {
    let world = World::new();
    let (host, mark) = (world.host(), mark("1"));
    for claim in [Claim::VmFolder { mark: mark.clone() }, Claim::RunFolder { mark: mark.clone() }] {
        host.acquire(&claim).unwrap();
        assert!(host.list().unwrap().contains(&claim.held()));
        host.release(&claim.held()).unwrap();
    }
    let absent = host.connect(&mark, &VmSocket::RunFolder("agent.sock".to_owned()));
    assert!(absent.is_err());
    assert_eq!(world.hands.log(), ["list", "list"]);
}

#[test]
fn what_is_held_is_what_the_daemon_and_the_helper_hold_however_much_it_is() {
    let world = World::new();
    let host = world.host();
    let mut all: Vec<Held> =
        (0..1500).map(|vm| Held::Tap { mark: mark(&vm.to_string()) }).collect();
    world.hands.hold_these(all.clone());
    let folder = Claim::VmFolder { mark: mark("7") };
    host.acquire(&folder).unwrap();
    all.push(folder.held());
    all.sort();
    assert_eq!(host.list().unwrap(), all);
}

#[test]
fn what_the_helper_sees_of_firewalls_and_of_the_resolver_arrives() {
    let world = World::new();
    let host = world.host();
    let network = Network {
        number: 0,
        gateway: [10, 213, 0, 1].into(),
        prefix: 22,
        mtu: 1500,
        peers: false,
        ipv6: None,
    };
    let seen = Firewalls { obstacles: Vec::new(), legacy: true };
    assert_eq!(host.firewalls(&network).unwrap(), seen);
    assert_eq!(host.route_names(7, &Zone::default()).unwrap(), Routed::Yes);
    assert_eq!(world.hands.log(), ["firewalls 10.213.0.0/22", "route names of network 7"]);
    let public = Network { gateway: [8, 8, 8, 1].into(), ..network };
    assert!(chain(&host.firewalls(&public).unwrap_err()).contains("is not private"));
    assert_eq!(world.hands.log().len(), 2, "nobody has looked");
}

#[test]
fn a_jailed_vmms_words_are_in_its_log() {
    let world = World::new();
    let (host, mark) = (world.host(), mark("2"));
    host.acquire(&Claim::VmFolder { mark: mark.clone() }).unwrap();
    host.acquire(&jailed(&mark)).unwrap();
    host.release(&jailed(&mark).held()).unwrap();
    let log = world.path().join("vms").join(mark.to_string()).join("console.log");
    assert_eq!(std::fs::read_to_string(log).unwrap(), "hello from the VMM\n");
    assert_eq!(host.list().unwrap(), [Held::VmFolder { mark }], "no log is left");
}

#[test]
fn an_error_arrives_with_its_kind_and_its_causes() {
    let world = World::new();
    let mark = mark("3");
    world.hands.fail(&mark, || {
        Err(HostError::new(
            "remove the tap",
            io::Error::new(ErrorKind::ResourceBusy, "a process has it"),
        ))
    });
    let error = world.host().release(&tap(&mark).held()).unwrap_err();
    assert_eq!(chain(&error), "cannot remove the tap: a process has it");
    assert_eq!(error.kind(), ErrorKind::ResourceBusy);
}

#[test]
fn a_refusal_says_who_refuses_what_and_why_and_nothing_was_done() {
    let world = World::new();
    let theirs = Mark::parse("bg1111-00000000").unwrap();
    let error = world.host().acquire(&tap(&theirs)).unwrap_err();
    assert_eq!(
        chain(&error),
        "cannot make the tap of VM bg1111-00000000: root's helper refuses it: mark: it is of installation 1111, not of \
         0000"
    );
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(world.hands.log().is_empty());
}

#[test]
fn what_is_no_request_is_refused_by_name() {
    let world = World::new();
    let good = String::from_utf8(acquire_tap(&mark("4"))).unwrap();
    let cases = [
        (b"\0\xff\xfe".to_vec(), "not what this version understands"),
        (b"{}".to_vec(), "missing field `version`"),
        (good.replace("\"version\":1", "\"version\":2").into_bytes(), "it is of version 2"),
        (good.replace("\"version\":1", "\"version\":-1").into_bytes(), "invalid value"),
        (format!("{good}{good}").into_bytes(), "trailing characters"),
        (good.as_bytes()[..good.len() - 1].to_vec(), "EOF"),
        (good.replace("\"uid\"", "\"x\":1,\"uid\"").into_bytes(), "unknown field `x`"),
        (good.replace("\"tap\"", "\"cat\"").into_bytes(), "unknown variant `cat`"),
        (good.replace("\"acquire\"", "\"run\"").into_bytes(), "unknown variant `run`"),
        (format!("{}{}", "[".repeat(5000), "]".repeat(5000)).into_bytes(), "invalid type"),
        (vec![b' '; LONGEST + 1], "longer than 65536 bytes"),
    ];
    for (bytes, why) in cases {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        let failure = refusal_on(&ask(&world, &bytes, &[]));
        assert!(failure.causes[0].contains(why), "{shown}: {:?}", failure.causes);
    }
    assert!(world.hands.log().is_empty());
}

#[test]
fn a_request_has_the_open_files_that_belong_to_it_and_no_others() {
    let world = World::new();
    let (read_end, write_end) = io::pipe().unwrap();
    let file = tempfile::tempfile().unwrap();
    let vmm = wire::request(&Act::Acquire { claim: jailed(&mark("5")) });
    let tap = acquire_tap(&mark("5"));
    let (pipe, read_end, file) = (write_end.as_fd(), read_end.as_fd(), file.as_fd());
    let cases: [(&[u8], Vec<BorrowedFd<'_>>, &str); 6] = [
        (&vmm, vec![pipe, pipe], "2 open files came with it, which has 1 at most"),
        (&vmm, vec![pipe; 8], "more open files came with the message than any has"),
        (&vmm, vec![file], "the open file is no pipe"),
        (&vmm, vec![read_end], "not the end of a pipe that is written to"),
        (&tap, vec![pipe], "1 open files came with it, which has 0 at most"),
        (&tap, vec![file; 3], "open files"),
    ];
    for (bytes, files, why) in cases {
        let count = files.len();
        let failure = refusal_on(&ask(&world, bytes, &files));
        assert!(failure.causes[0].contains(why), "{count} files: {:?}", failure.causes);
    }
    assert!(world.hands.log().is_empty());
    assert_eq!(reply_on(&ask(&world, &vmm, &[pipe])), Reply::Done {});
}

#[test]
fn refused_open_files_are_closed() {
    let world = World::new();
    let (mut read_end, write_end) = io::pipe().unwrap();
    let connection = ask(&world, &acquire_tap(&mark("5")), &[write_end.as_fd()]);
    refusal_on(&connection);
    drop((connection, write_end));
    let mut rest = Vec::new();
    // Ends only when nobody has the other end any more.
    read_end.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
}

#[test]
fn another_user_is_refused_before_what_it_says_is_read() {
    let world = World::with_policy(Policy { owner_uid: 12_345, ..policy() });
    for path in [world.path().to_owned(), world.socket()] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
    }
    // Credentials are a thread's, and those at connect(2) count (unix(7), SO_PEERCRED).
    let asked_as = |uid: u32| {
        let user = Uid::from_raw(uid);
        thread::scope(|scope| {
            let ask = || {
                rustix::thread::set_thread_res_uid(user, user, user).unwrap();
                ask(&world, b"no request at all", &[])
            };
            scope.spawn(ask).join().unwrap()
        })
    };
    let failure = refusal_on(&asked_as(54_321));
    assert_eq!(
        failure.causes,
        ["root's helper refuses it: user 54321 is not 12345, whom banger was installed for"]
    );
    for allowed in [12_345, 0] {
        let failure = refusal_on(&asked_as(allowed));
        assert!(failure.causes[0].contains("not what this version understands"), "{failure:?}");
    }
}

#[test]
fn who_says_nothing_is_let_go_and_nobody_waits_for_it() {
    let world = World::new();
    let begun = Instant::now();
    // More than are worked on at once would keep others waiting, for this long at most.
    let silent: Vec<OwnedFd> = (0..70).map(|_| world.connect()).collect();
    world.host().acquire(&tap(&mark("6"))).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let failure = refusal_on(&silent[0]);
    assert!(failure.causes[0].contains("nothing was asked within 5 s"), "{failure:?}");
}

#[test]
fn two_hundred_requests_at_once_are_all_answered() {
    let world = World::new();
    let host = world.host();
    thread::scope(|scope| {
        for vm in 0..200 {
            let host = &host;
            scope.spawn(move || {
                let mark = mark(&(vm % 50).to_string());
                host.acquire(&tap(&mark)).unwrap();
                host.release(&tap(&mark).held()).unwrap();
            });
        }
    });
    assert_eq!(world.hands.log().len(), 400);
}

#[test]
fn a_slow_vm_keeps_no_other_waiting_and_its_own_requests_come_one_by_one() {
    let world = World::new();
    let (slow, other) = (mark("8"), mark("9"));
    world.hands.hold(&slow);
    let host = world.host();
    thread::scope(|scope| {
        let first = scope.spawn(|| host.acquire(&tap(&slow)));
        world.hands.wait_for("acquire the tap of VM bg0000-00000008");
        let second = scope.spawn(|| host.release(&tap(&slow).held()));
        host.acquire(&tap(&other)).unwrap();
        host.list().unwrap();
        assert_eq!(
            world.hands.log(),
            [
                "acquire the tap of VM bg0000-00000008",
                "acquire the tap of VM bg0000-00000009",
                "list"
            ]
        );
        world.hands.let_go(&slow);
        first.join().unwrap().unwrap();
        second.join().unwrap().unwrap();
    });
    assert_eq!(world.hands.log()[3], "release the tap of VM bg0000-00000008");
}

#[test]
fn what_nobody_waits_for_any_more_is_not_begun() {
    let world = World::new();
    let slow = mark("10");
    world.hands.hold(&slow);
    let host = world.host();
    thread::scope(|scope| {
        let first = scope.spawn(|| host.acquire(&tap(&slow)));
        world.hands.wait_for("acquire the tap of VM bg0000-00000010");
        // It asks, and is gone before it is its turn: as a daemon that was killed, or that has waited too long.
        drop(ask(
            &world,
            &wire::request(&Act::Signal { mark: slow.clone(), signal: wire::VmmSignal::Term }),
            &[],
        ));
        world.hands.let_go(&slow);
        first.join().unwrap().unwrap();
    });
    host.release(&tap(&slow).held()).unwrap();
    assert_eq!(
        world.hands.log(),
        ["acquire the tap of VM bg0000-00000010", "release the tap of VM bg0000-00000010"]
    );
}

#[test]
fn a_defect_in_one_request_ends_no_other() {
    let world = World::new();
    let (bad, good) = (mark("11"), mark("12"));
    world.hands.fail(&bad, || panic!("on purpose"));
    let host = world.host();
    for _more_than_are_worked_on_at_once in 0..70 {
        let error = host.acquire(&tap(&bad)).unwrap_err();
        assert!(chain(&error).contains("root's helper ended before it answered"), "{error:?}");
    }
    host.acquire(&tap(&good)).unwrap();
}

#[test]
fn where_no_helper_listens_the_error_says_how_to_see() {
    let world = World::without_helper();
    let error = world.host().acquire(&tap(&mark("13"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(chain(&error).contains("systemctl status banger-helper.socket"), "{}", chain(&error));
    drop(listener(&world.socket()));
    let error = world.host().acquire(&tap(&mark("13"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_helper_that_does_not_answer_is_not_waited_for_and_one_that_ends_is_noticed() {
    let world = World::without_helper();
    let listener = listener(&world.socket());
    let host = world.host().with_deadline(Duration::from_millis(100));
    let error = host.acquire(&tap(&mark("14"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let (say, heard) = mpsc::channel();
    thread::spawn(move || {
        drop(rustix::net::accept(&listener).unwrap());
        let second = rustix::net::accept(&listener).unwrap();
        let mut byte = [0; 1];
        recv(&second, &mut byte, RecvFlags::empty()).unwrap();
        say.send(()).unwrap();
    });
    let error = world.host().acquire(&tap(&mark("14"))).unwrap_err();
    heard.recv_timeout(SOON).unwrap();
    assert!(chain(&error).contains("ended before it answered"), "{}", chain(&error));
}

#[test]
fn only_signals_that_vmms_are_sent_leave_the_daemon() {
    let world = World::new();
    let host = world.host();
    // Nothing runs: no error, and nobody is asked.
    host.signal(&mark("15"), Signal::TERM).unwrap();
    assert!(world.hands.log().is_empty());
}

#[test]
fn releasing_all_goes_on_past_what_fails_and_tells_what_stays() {
    let hands = Noted::default();
    let (good, bad) = (mark("16"), mark("17"));
    let held =
        |mark: &Mark| [Held::Cgroup { mark: mark.clone() }, Held::Tap { mark: mark.clone() }];
    hands.hold_these([held(&good), held(&bad)].concat());
    hands.fail(&bad, || Err(HostError::because("undo it", "on purpose")));
    let mut out = Vec::new();
    let stays = banger_helper::release_all::release_all(&hands, &mut out).unwrap();
    assert_eq!(stays, held(&bad));
    let text = String::from_utf8(out).unwrap();
    assert_eq!(
        text,
        "NOT released the tap of VM bg0000-00000017: cannot undo it: on purpose\n\
         NOT released the cgroup of VM bg0000-00000017: cannot undo it: on purpose\n\
         released the tap of VM bg0000-00000016\n\
         released the cgroup of VM bg0000-00000016\n\
         stays: the cgroup of VM bg0000-00000017\n\
         stays: the tap of VM bg0000-00000017\n"
    );
}
