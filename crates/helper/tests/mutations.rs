//! Requests that were damaged on purpose, from the fuzzer's seeds, for as many seconds of processors as `BANGER_FUZZ_SECONDS` says
//! (2 without): a fuzzer that needs no tool, finds the same every time, and knows what must hold.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/property.rs"]
mod property;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// What text is replaced by, or gets more of.
const WORDS: [&str; 30] = [
    "null",
    "true",
    "-1",
    "0",
    "18446744073709551615",
    "1e9",
    "\"\"",
    "{}",
    "[]",
    "..",
    "/",
    "\\u0000",
    "\\n",
    "images/",
    "vms/",
    "bg0000-00000000",
    "bg1111-00000000",
    "1900000000",
    "\"version\":1",
    "api.sock",
    "loop",
    "dm_snapshot",
    "firecracker",
    "10.213.0.9",
    "172.16.0.1",
    "8.8.8.8",
    "02:00:00:00:00:00",
    "{",
    "}",
    ",",
];

/// The same numbers every time (xorshift64, Marsaglia 2003).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % (end.max(1) as u64)).unwrap()
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/helper_request");
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn damaged(numbers: &mut Numbers, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[numbers.below(seeds.len())].clone();
    for _change in 0..=numbers.below(4) {
        let at = numbers.below(bytes.len() + 1);
        let end = at + numbers.below((bytes.len() - at).min(24) + 1);
        match numbers.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << numbers.below(8),
            1 => drop(bytes.drain(at..end)),
            2 => drop(bytes.splice(at..end, WORDS[numbers.below(WORDS.len())].bytes())),
            3 => {
                let copy = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, copy));
            }
            4 => {
                let other = &seeds[numbers.below(seeds.len())];
                let from = numbers.below(other.len());
                let to = from + numbers.below(other.len() - from + 1);
                drop(bytes.splice(at..end, other[from..to].iter().copied()));
            }
            // A value for a value: what is between two quotes or colons is where the rules are.
            _ => replace_value(&mut bytes, numbers),
        }
    }
    bytes
}

fn replace_value(bytes: &mut Vec<u8>, numbers: &mut Numbers) {
    let colons: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] == b':').collect();
    let Some(&colon) = colons.get(numbers.below(colons.len())) else { return };
    let begin = colon + 1;
    let ends = |b: &u8| b",}]".contains(b);
    let end = bytes[begin..].iter().position(ends).map_or(bytes.len(), |length| begin + length);
    let word = WORDS[numbers.below(WORDS.len())];
    drop(bytes.splice(begin..end, word.bytes()));
}

#[test]
fn every_seed_is_understood_and_most_are_allowed() {
    let all = seeds();
    let allowed = all.iter().filter(|seed| property::holds(seed).1).count();
    assert!(all.iter().all(|seed| property::holds(seed).0));
    assert!(allowed >= 10 && allowed < all.len(), "{allowed} of {}", all.len());
}

/// How many were tried, understood and allowed.
fn try_for(time: Duration, thread: usize, seeds: &[Vec<u8>]) -> [u64; 3] {
    let end = Instant::now() + time;
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 ^ thread as u64);
    let mut counts = [0; 3];
    while Instant::now() < end {
        for _between_looks_at_the_clock in 0..1000 {
            let request = damaged(&mut numbers, seeds);
            let (was_understood, was_allowed) = property::holds(&request);
            counts[0] += 1;
            counts[1] += u64::from(was_understood);
            counts[2] += u64::from(was_allowed);
        }
    }
    counts
}

#[test]
fn no_damaged_request_passes_that_could_do_harm() {
    let seconds = std::env::var("BANGER_FUZZ_SECONDS").map_or(2, |text| text.parse().unwrap());
    let seeds = seeds();
    // Each processor has its share of the time, and numbers of its own.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = Duration::from_secs(seconds) / u32::try_from(threads).unwrap();
    let counted = std::thread::scope(|scope| {
        let begun: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn({
                    let seeds = &seeds;
                    move || try_for(share, thread, seeds)
                })
            })
            .collect();
        begun.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let sum = |of: usize| counted.iter().map(|counts| counts[of]).sum::<u64>();
    let (tried, understood, allowed) = (sum(0), sum(1), sum(2));
    eprintln!("{tried} requests, {understood} understood, {allowed} allowed");
    // Otherwise it tries nothing but garbage.
    assert!(understood * 200 > tried, "{understood} of {tried} were understood");
    assert!(allowed > 0 && allowed < understood);
}
