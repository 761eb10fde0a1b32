//! Our nftables tables on this machine: read and changed by nft(8), whose JSON needs no quoting and whose every run is one
//! transaction.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Mutex;

use banger_api::Cidr;
use serde_json::Value;

use super::rules::{self, Before, FAMILIES, Found, Rules, WayOut};
use super::{netlink, tap, trusted_program};
use crate::command;
use crate::mark::{Installation, Mark};

/// What is there. Needs no nft where no table of ours is.
pub(super) fn read(installation: &Installation) -> io::Result<Found> {
    let table = rules::table(installation);
    let mut listings = Vec::new();
    for (family, number) in FAMILIES {
        if netlink::has_table(number, &table)? {
            listings
                .push(run(&["-j", "--numeric-protocol", "list", "table", family, &table], None)?);
        }
    }
    Ok(rules::read(installation, &listings))
}

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Everybody's tables, as JSON, and as text with the handle of each rule.
pub(super) fn everything() -> io::Result<(Value, String)> {
    let text = command::run_with_input(&program()?, &["-a", "list", "ruleset"], b"")?;
    Ok((run(&["-j", "list", "ruleset"], None)?, text))
}

/// Changes what is there, with nobody else of this process in between, and gives what it was made.
pub(super) fn change(
    installation: &Installation,
    make: impl FnOnce(&mut Rules) -> io::Result<()>,
) -> io::Result<Rules> {
    let _one_at_a_time = ONE_AT_A_TIME.lock().expect("nothing that holds this lock can panic");
    let found = read(installation)?;
    let mut wanted = found.rules.clone();
    make(&mut wanted)?;
    let taps_left =
        wanted.is_empty() && !tap::list(installation).map_err(io::Error::other)?.is_empty();
    if let Some(change) = rules::change(installation, &found, &wanted, taps_left) {
        run(&["-j", "-f", "-"], Some(&change))?;
    }
    Ok(wanted)
}

/// As [`rules::open`], with nobody else of this process in between.
pub(super) fn open(mark: &Mark, addresses: &BTreeSet<Ipv4Addr>, seconds: u32) -> io::Result<()> {
    let _one_at_a_time = ONE_AT_A_TIME.lock().expect("nothing that holds this lock can panic");
    let found = read(mark.installation())?;
    match rules::open(mark, &found, addresses, seconds).map_err(io::Error::other)? {
        Some(change) => run(&["-j", "-f", "-"], Some(&change)).map(drop),
        None => Ok(()),
    }
}

/// Removes the tables when nothing needs them any more.
pub(super) fn remove_unused(installation: &Installation) -> io::Result<()> {
    change(installation, |_| Ok(())).map(drop)
}

/// Whether the rules can be made here: all of them are checked and none is made (nft(8), `--check`). Who is not root learns
/// only whether there is nft.
pub(super) fn ability() -> Result<(), String> {
    program().map_err(|error| error.to_string())?;
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let nobodys = Installation::parse("0000").expect("4 letters of the alphabet");
    let vm = Mark::parse("bg0000-00000000").expect("a mark");
    let before = Before { accepted_redirects: false, forwarding: ["lo".to_owned()].into() };
    let mut some = Rules { before: Some(before), ..Rules::default() };
    let address = [10, 213, 0, 2].into();
    some.guards.insert(vm.clone(), (crate::Mac::of(&vm), address));
    let ipv6 = crate::network::ipv6_below([0xfd00, 0, 0, 0, 0, 0, 0, 0].into(), address);
    some.ipv6.insert(vm.clone(), ipv6);
    let anywhere = WayOut { address, only: None, ipv6: Some(ipv6) };
    let other = Mark::parse("bg0000-00000001").expect("a mark");
    let only = [Cidr::parse("203.0.113.0/24").expect("a subnet")].into();
    some.peers.insert(vm.clone(), (0, address));
    some.exposed.insert((vm.clone(), address, 5432));
    let listed = WayOut { address: [10, 213, 0, 3].into(), only: Some(only), ipv6: None };
    some.ways_out.insert(other, listed);
    some.ways_out.insert(vm, anywhere);
    let Some(change) = rules::change(&nobodys, &Found::default(), &some, false) else {
        return Ok(());
    };
    run(&["-c", "-j", "-f", "-"], Some(&change)).map(drop).map_err(|error| {
        format!("nft cannot make the rules ({error}): does the kernel have nf_tables with nat, reject and fib?")
    })
}

fn run(args: &[&str], input: Option<&Value>) -> io::Result<Value> {
    let input = input.map(Value::to_string).unwrap_or_default();
    let said = command::run_with_input(&program()?, args, input.as_bytes())?;
    if said.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&said)
        .map_err(|error| io::Error::other(format!("nft says what is no JSON: {error}")))
}

/// nft, which only root may have put where it is.
fn program() -> io::Result<PathBuf> {
    let found = command::find("nft").ok_or_else(|| {
        let said = "there is no nft: install the package nftables";
        io::Error::new(io::ErrorKind::NotFound, said)
    })?;
    let real = found.canonicalize()?;
    trusted_program(&real).map_err(|error| io::Error::other(crate::error::chain(&error)))?;
    Ok(real)
}
