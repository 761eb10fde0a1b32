//! Firecracker's API, as far as a toy needs it: one request on each connection.

use std::io::{Read, Write};
use std::time::Duration;

use banger_host::root::API_SOCKET;
use banger_host::{Mark, Root};

/// Its answer's body; the test fails when the answer is not that it was done.
pub(crate) fn call(root: &Root, mark: &Mark, method: &str, path: &str, body: &str) -> String {
    let mut stream = root.connect(mark, API_SOCKET).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = Vec::new();
    let head = loop {
        let mut bytes = [0; 4096];
        let got = stream.read(&mut bytes).unwrap();
        assert_ne!(got, 0, "{method} {path}: no answer");
        answer.extend(&bytes[..got]);
        if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(text.starts_with("HTTP/1.1 2"), "{method} {path}: {text}");
    let wanted = text
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .map_or(0, |length| length.trim().parse().unwrap());
    while answer.len() < head + wanted {
        let mut bytes = [0; 4096];
        let got = stream.read(&mut bytes).unwrap();
        assert_ne!(got, 0, "{method} {path}: the answer is cut short");
        answer.extend(&bytes[..got]);
    }
    String::from_utf8_lossy(&answer[head..]).into_owned()
}

/// Configures the toy with everything that its jail has, and starts it.
pub(crate) fn boot(root: &Root, mark: &Mark) {
    for (path, body) in [
        ("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":32}"#.to_owned()),
        ("/boot-source", r#"{"kernel_image_path":"kernel","boot_args":"x"}"#.to_owned()),
        ("/drives/image", drive("image", true)),
        ("/drives/disk", drive("disk", false)),
        ("/vsock", r#"{"guest_cid":3,"uds_path":"agent.sock"}"#.to_owned()),
        ("/network-interfaces/eth0", format!(r#"{{"iface_id":"eth0","host_dev_name":"{mark}"}}"#)),
        ("/actions", r#"{"action_type":"InstanceStart"}"#.to_owned()),
    ] {
        call(root, mark, "PUT", path, &body);
    }
}

fn drive(name: &str, read_only: bool) -> String {
    format!(
        r#"{{"drive_id":"{name}","path_on_host":"{name}","is_root_device":false,"is_read_only":{read_only}}}"#
    )
}
