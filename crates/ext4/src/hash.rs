//! How a name is hashed for the index of a folder: the half of MD4 that ext4 takes, over unsigned bytes
//! (`DX_HASH_HALF_MD4_UNSIGNED`).

/// Four words from the superblock's hash seed; all zeros means MD4's own.
pub(crate) fn seed(bytes: &[u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    if words == [0; 4] { [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476] } else { words }
}

/// Hash and minor hash. The lowest bit of the hash is free: in the index it says that the hash goes on in the next block.
pub(crate) fn half_md4(name: &[u8], seed: [u32; 4]) -> (u32, u32) {
    /// The largest means "end of the folder" as a position.
    const END: u32 = 0xffff_fffe;
    let mut state = seed;
    let mut rest = name;
    while !rest.is_empty() {
        mix(&mut state, words(rest));
        rest = &rest[rest.len().min(32)..];
    }
    let hash = state[1] & !1;
    (if hash == END { END - 2 } else { hash }, state[2])
}

/// The next 32 bytes as words, the first byte highest. What is missing is filled up with the length of what is left.
fn words(rest: &[u8]) -> [u32; 8] {
    let length = u32::try_from(rest.len()).unwrap_or(u32::MAX) & 0xff;
    let filling = length * 0x0101_0101;
    let mut words = [filling; 8];
    for (word, bytes) in words.iter_mut().zip(rest.chunks(4)) {
        *word = bytes.iter().fold(filling, |word, &byte| (word << 8) | u32::from(byte));
    }
    words
}

/// Three rounds of eight steps. A round has a function, a constant, an order of the words and four rotations.
fn mix(state: &mut [u32; 4], words: [u32; 8]) {
    type Round = (fn(u32, u32, u32) -> u32, u32, [usize; 8], [u32; 4]);
    const ROUNDS: [Round; 3] = [
        (|x, y, z| z ^ (x & (y ^ z)), 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (
            |x, y, z| (x & y).wrapping_add((x ^ y) & z),
            0x5a82_7999,
            [1, 3, 5, 7, 0, 2, 4, 6],
            [3, 5, 9, 13],
        ),
        (|x, y, z| x ^ y ^ z, 0x6ed9_eba1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (function, constant, order, rotations) in ROUNDS {
        for (step, word) in order.into_iter().enumerate() {
            let sum = a
                .wrapping_add(function(b, c, d))
                .wrapping_add(words[word])
                .wrapping_add(constant)
                .rotate_left(rotations[step % 4]);
            (a, b, c, d) = (d, sum, b, c);
        }
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(add);
    }
}
