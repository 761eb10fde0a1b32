//! Documents that somebody changed: no parser of this crate panics, whatever byte of its input is another. The changes are
//! random but the same in every run.

use crate::manifest::tests::{sample_config, sample_index, sample_manifest};
use crate::manifest::{self, Document, ImageConfig};
use crate::{Limits, Platform, Reference};

/// xorshift64 (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end as u64).unwrap()
    }

    fn mutate(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(4) {
            match self.below(6) {
                0 => bytes.truncate(self.below(bytes.len() + 1)),
                1 => bytes.extend_from_within(..self.below(bytes.len().min(64) + 1)),
                _ if bytes.is_empty() => {}
                2 => {
                    let (at, value) =
                        (self.below(bytes.len()), b"0-9{}[]\",:\\n\x00\xff"[self.below(14)]);
                    bytes[at] = value;
                }
                3 => {
                    let (at, word) = (
                        self.below(bytes.len()),
                        [
                            &b"null"[..],
                            b"-1",
                            b"1e999",
                            b"9223372036854775808",
                            b"\"\\u0000\"",
                            b"[[[[",
                        ][self.below(6)],
                    );
                    bytes.splice(at..at, word.iter().copied());
                }
                _ => {
                    let at = self.below(bytes.len());
                    bytes[at] ^= 1 << self.below(8);
                }
            }
        }
        bytes
    }
}

fn check(name: &str, sample: &[u8], parse: impl Fn(&[u8]) -> bool) {
    assert!(parse(sample), "{name}: the sample itself must be good");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut refused = 0;
    for _ in 0..3000 {
        if !parse(&random.mutate(sample)) {
            refused += 1;
        }
    }
    assert!(refused > 0, "{name}: no change was noticed");
}

fn parses(bytes: &[u8]) -> bool {
    match manifest::parse(bytes, &Limits::default()) {
        // What is chosen, or why not, is worked out too.
        Ok(Document::Index(index)) => {
            index.choose(&Platform::host()).map_err(|it| it.to_string()).is_ok()
        }
        Ok(Document::Manifest(_)) => true,
        Err(error) => {
            assert!(error.to_string().len() < 1000, "someone else's text fills the message");
            false
        }
    }
}

#[test]
fn manifests() {
    check("manifest", &serde_json::to_vec(&sample_manifest()).unwrap(), parses);
}

#[test]
fn indexes() {
    let host = Platform::host().to_string();
    let index = sample_index(&[&host, "linux/arm/v7", "unknown/unknown"]);
    check("index", &serde_json::to_vec(&index).unwrap(), parses);
}

#[test]
fn configs() {
    check("config", &serde_json::to_vec(&sample_config()).unwrap(), |bytes| {
        ImageConfig::parse(bytes, &Limits::default())
            .map_err(|error| assert!(error.to_string().len() < 1000))
            .is_ok()
    });
}

#[test]
fn nesting_without_end() {
    let deep = [b"{\"annotations\":".repeat(100_000), b"1".to_vec()].concat();
    assert!(!parses(&deep));
}

#[test]
fn names() {
    let name = b"registry.example:5000/some/image:1.2@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    check("name", name, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        // What is taken is written so that it is taken again.
        text.parse::<Reference>().is_ok_and(|it| it.short().parse::<Reference>() == Ok(it))
    });
}
