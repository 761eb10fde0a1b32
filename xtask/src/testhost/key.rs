//! Names for what is kept: a hash of all that it depends on.

/// FNV-1a, 64 bits: the same everywhere and for ever, and against accidents only.
#[derive(Debug, Clone)]
pub(super) struct Key(u64);

impl Key {
    pub(super) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Takes in one thing more. Two things are never the same as one that is both.
    pub(super) fn with(mut self, thing: impl AsRef<[u8]>) -> Self {
        let thing = thing.as_ref();
        for byte in thing.len().to_le_bytes().iter().chain(thing) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self
    }

    pub(super) fn text(&self) -> String {
        format!("{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thing_counts_and_so_does_where_it_ends() {
        let key =
            |things: &[&str]| things.iter().fold(Key::new(), |key, thing| key.with(thing)).text();
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
        assert_ne!(key(&["a", "b"]), key(&["ab"]));
        assert_ne!(key(&["a", "b"]), key(&["b", "a"]));
        assert_ne!(key(&["a"]), key(&["a", ""]));
    }
}
