//! Which slot of a service's table a connection takes.

/// The hash of a tuple, the same on every node: 32-bit MurmurHash3 over its words.
#[inline(always)]
pub const fn tuple<const N: usize>(words: &[[u32; 4]; N]) -> u32 {
    let mut hash = 0x15_7a_05_u32;
    let mut at = 0;
    while at < N {
        hash = mix(mix(mix(mix(hash, words[at][0]), words[at][1]), words[at][2]), words[at][3]);
        at += 1;
    }
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

/// Scales a hash (or a random number) to a slot. Not a division: no bias towards the first slots, and cheaper.
#[inline(always)]
pub const fn slot(hash: u32, size: u32) -> u32 {
    ((hash as u64 * size as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tuples_are_spread_evenly_over_the_slots() {
        let mut counts = [0_u32; 16];
        for port in 0..16_000_u32 {
            counts[slot(tuple(&[[10, 1, 2, 3], [port, 6, 0, 0]]), 16) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (880..1120).contains(count)), "{counts:?}");
        assert_eq!((slot(0, 7), slot(u32::MAX, 7)), (0, 6));
    }
}
