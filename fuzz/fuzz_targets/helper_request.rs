//! Bytes from whoever is on the other end of the helper's socket: understood, judged, and harmless if allowed.
#![no_main]

#[path = "../../crates/helper/tests/support/property.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _understood_and_allowed = property::holds(bytes);
});
