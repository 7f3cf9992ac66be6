//! Counter-based random numbers: the same bits on every backend, from a key and a position alone.

/// Philox 4x32 with 10 rounds: four random words that depend only on the key and the counter.
///
/// # Source
/// Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3; constants from its Random123.
#[must_use]
pub const fn philox4x32(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
    const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    let [mut k0, mut k1] = key;
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let mut round = 0;
    while round < 10 {
        let product0 = c0 as u64 * MULTIPLIERS[0] as u64;
        let product1 = c2 as u64 * MULTIPLIERS[1] as u64;
        [c0, c1, c2, c3] =
            [(product1 >> 32) as u32 ^ c1 ^ k0, product1 as u32, (product0 >> 32) as u32 ^ c3 ^ k1, product0 as u32];
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
        round += 1;
    }
    [c0, c1, c2, c3]
}

/// One of the random words of a sequence: of `philox4x32` under the seed and the counter
/// `[stream, position, block]`, the lower words first.
///
/// Draws use block 0 (and the number of the round, where a position is drawn for again); the noise of Gumbel-max for
/// token `i` is word `i mod 4` of block `2^31 + i / 4`.
#[must_use]
pub const fn word(seed: u64, stream: u64, position: u32, block: u32, word: usize) -> u32 {
    let key = [seed as u32, (seed >> 32) as u32];
    philox4x32(key, [stream as u32, (stream >> 32) as u32, position, block])[word]
}

#[cfg(test)]
mod tests {
    use super::philox4x32;

    #[test]
    fn philox_agrees_with_the_known_answers_of_random123() {
        assert_eq!(philox4x32([0; 2], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 2], [u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }
}
