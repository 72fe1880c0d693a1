//! Frames that no honest host sends.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::frames::{DESTINATION, HOP_BY_HOP, ROUTING, fragment, padding};

/// An extension header of IPv6, at its place among them.
pub fn header(rng: &mut StdRng, place: u32) -> (u8, Vec<u8>) {
    match rng.random_range(0..12) {
        0 => fragment(0, rng.random_bool(0.3), rng.random_range(0..4)),
        1 => (ROUTING, vec![0, rng.random_range(0..4), u8::from(rng.random_bool(0.3)), 0, 0, 0, 0]),
        2 => padding(*[50, 51, 59, 135, 139, 140].choose(rng).expect("not empty"), 0),
        3 => padding(HOP_BY_HOP, 0),
        _ if place == 0 => padding(HOP_BY_HOP, rng.random_range(0..2)),
        _ => padding(DESTINATION, rng.random_range(0..3)),
    }
}

/// Spoils a frame, or leaves it.
pub fn mutate(rng: &mut StdRng, frame: &mut Vec<u8>) {
    for _ in 0..rng.random_range(0..4) {
        // Mostly where the headers are.
        let end = if rng.random_bool(0.7) { frame.len().min(14 + 64) } else { frame.len() };
        let at = rng.random_range(14..end.max(15));
        if let Some(byte) = frame.get_mut(at) {
            let near = [0, 1, 6, 17, 43, 44, 58, 60, 128, 255, *byte ^ 1, byte.wrapping_add(1)];
            *byte = if rng.random_bool(0.7) { *near.choose(rng).expect("not empty") } else { rng.random() };
        }
    }
    match rng.random_range(0..10) {
        // A test run wants the IP header whole.
        0 => frame.truncate(rng.random_range(if frame[12] == 8 { 34 } else { 54 }..=frame.len())),
        1 => frame.extend(std::iter::repeat_n(rng.random::<u8>(), rng.random_range(1..40))),
        _ => {}
    }
}
