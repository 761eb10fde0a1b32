//! Names for VMs that nobody named: two words that can be said aloud.

use std::io;

use banger_api::VmName;
use banger_api::ids::random_text;

const FIRST: [&str; 32] = [
    "amber", "bold", "brisk", "calm", "clear", "cosy", "crisp", "deft", "eager", "fair", "fleet",
    "fresh", "glad", "grand", "keen", "kind", "light", "lively", "lucid", "mellow", "merry",
    "neat", "plain", "proud", "quick", "quiet", "sharp", "sleek", "snug", "swift", "warm", "wise",
];

const SECOND: [&str; 32] = [
    "aspen", "badger", "beacon", "birch", "brook", "cedar", "comet", "coral", "crane", "delta",
    "ember", "falcon", "fern", "finch", "fjord", "grove", "harbor", "heron", "juniper", "lark",
    "maple", "meadow", "otter", "pebble", "pine", "quartz", "raven", "reef", "sparrow", "spruce",
    "tern", "willow",
];

/// # Errors
/// When the kernel gives no randomness.
pub fn random() -> io::Result<VmName> {
    let text = random_text(2)?;
    // The id alphabet has 32 characters, as each list has words.
    let index = |byte: u8| {
        banger_api::ids::ID_ALPHABET.iter().position(|&b| b == byte).expect("it is of the alphabet")
    };
    let [first, second] = [0, 1].map(|at| index(text.as_bytes()[at]));
    let name = format!("{}-{}", FIRST[first], SECOND[second]);
    Ok(VmName::parse(&name).expect("the words are lower case"))
}
