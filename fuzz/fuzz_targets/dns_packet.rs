//! Packets that anybody sends to a DNS server, or back to it as a nameserver's answer.
#![no_main]

use std::sync::LazyLock;

use banger_dns::{Names, property};

static NAMES: LazyLock<Names> = LazyLock::new(property::table);

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| property::holds(bytes, &NAMES));
