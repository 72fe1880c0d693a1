//! The hash functions that Envoy's consistent-hashing balancers are defined by: with others, a proxy and an Envoy
//! side by side would send the same request to different endpoints.

use serde::Serialize;

/// `RingHashLbConfig.hash_function`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HashFunction {
    /// xxHash, 64 bits, seed 0.
    XxHash,
    /// `MurmurHash64A` with the seed of libstdc++'s `std::hash`.
    Murmur2,
}

impl HashFunction {
    /// The hash of some bytes.
    pub fn hash(self, bytes: &[u8]) -> u64 {
        match self {
            Self::XxHash => xx(bytes, 0),
            Self::Murmur2 => murmur2(bytes),
        }
    }
}

/// xxHash of 64 bits.
pub fn xx(bytes: &[u8], seed: u64) -> u64 {
    twox_hash::XxHash64::oneshot(seed, bytes)
}

/// Adds the hash of a further policy to those before it: the order counts (Envoy's `HashPolicyImpl`).
pub fn combine(so_far: Option<u64>, next: u64) -> u64 {
    so_far.map_or(next, |hash| hash.rotate_left(1) ^ next)
}

fn murmur2(bytes: &[u8]) -> u64 {
    const M: u64 = 0xc6a4_a793_5bd1_e995;
    const SEED: u64 = 0xc70f_6907;
    let shift_mix = |v: u64| v ^ (v >> 47);
    let mut hash = SEED ^ (bytes.len() as u64).wrapping_mul(M);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        let data = shift_mix(u64::from_le_bytes(*word).wrapping_mul(M)).wrapping_mul(M);
        hash = (hash ^ data).wrapping_mul(M);
    }
    if !rest.is_empty() {
        let tail = rest.iter().rev().fold(0_u64, |tail, byte| (tail << 8) | u64::from(*byte));
        hash = (hash ^ tail).wrapping_mul(M);
    }
    shift_mix(shift_mix(hash).wrapping_mul(M))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_envoys_own_tests() {
        for (text, xx_hash, murmur) in [
            ("foo", 3_728_699_739_546_630_719, 9_631_199_822_919_835_226),
            ("bar", 5_234_164_152_756_840_025, 11_474_628_671_133_349_555),
            ("foo\nbar", 8_917_841_378_505_826_757, 16_306_510_975_912_980_159),
            ("lyft", 4_400_747_396_090_729_504, 12_847_078_931_730_529_320),
            ("", 17_241_709_254_077_376_921, 6_142_509_188_972_423_790),
        ] {
            assert_eq!(HashFunction::XxHash.hash(text.as_bytes()), xx_hash, "{text}");
            assert_eq!(HashFunction::Murmur2.hash(text.as_bytes()), murmur, "{text}");
        }
    }

    #[test]
    fn the_order_of_policies_counts() {
        let both = |a, b| combine(Some(combine(None, a)), b);
        assert_ne!(both(1, 2), both(2, 1));
        assert_eq!(combine(None, 7), 7);
    }
}
