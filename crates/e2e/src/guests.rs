//! Guests that answer, and what they are told: for tests of networks.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::world::World;

/// What an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A VM that answers on port 7 with what it is sent.
#[track_caller]
pub fn echoing(world: &World, name: &str, more: &[&str]) -> String {
    let fixed = ["vm", "run", "-d", "--name", name, "--image", crate::BUSYBOX, "--memory", "256M"];
    world.banger_with(&[&fixed[..], more].concat(), b"").succeeds();
    let serve = "busybox nc -ll -p 7 -e cat & until busybox netstat -tln | grep -q :7; do :; done";
    world.banger(["vm", "exec", name, "--", "sh", "-c", serve]).succeeds();
    world.vm(name)["address"].as_str().unwrap().to_owned()
}

/// What the host gets back from port 7 of a VM.
#[must_use]
pub fn echo(address: &str) -> String {
    let mut stream = TcpStream::connect((address, 7)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// What a guest is told by a server, or how its attempt ended.
#[must_use]
pub fn told(world: &World, name: &str, address: &str, port: u16) -> (i32, String) {
    let command = format!("busybox nc -w 20 {address} {port} </dev/null");
    let outcome = world.banger(["vm", "exec", name, "--", "sh", "-c", &command]);
    (outcome.status.unwrap_or(-1), outcome.text().trim().to_owned())
}
