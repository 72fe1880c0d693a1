//! Changes in which addresses that share an identity part, or others meet in one, while endpoints change their classes.
//!
//! A class that is left, or one that is about to be had, can say of an identity what it says of another one (see
//! [`plan`](super::plan())), but only of one other. Names in DNS group addresses by what policies name, so with the policies the
//! groups change. Then the change is made in three: the addresses that are to change get identities by
//! what they are *and* what they will be, of which every class says what it says now; the classes change, and say of these
//! what they will say; and the addresses get the identities that they are to have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ebpf_shared::identity::LOCAL;
use ipnet::IpNet;

use super::{Delta, Desired, Dictionary, MapOp, diff::changes, plan, plan::conflicts, table::is_host};

/// The writes that make of `current` what it is to be, whatever changes at once.
pub fn steps(current: &Desired, desired: &Desired, dictionary: &mut Dictionary) -> Vec<MapOp> {
    let delta = Delta::between(current, desired);
    if conflicts(current, &delta) { staged(current, desired, dictionary) } else { plan(current, &delta) }
}

/// Who an address is, to what begins and to what is there.
fn both(maps: &Desired, address: IpAddr) -> [u32; 2] {
    let begins = maps.identities.identity(&address.into());
    [begins, maps.lingering.get(&address).copied().unwrap_or(begins)]
}

fn staged(current: &Desired, desired: &Desired, dictionary: &mut Dictionary) -> Vec<MapOp> {
    let hosts = changes(&current.identities, &desired.identities).into_keys();
    let hosts = hosts.filter(is_host).map(|net| net.addr());
    let lasting = changes(&current.lingering, &desired.lingering).into_keys();
    let moving: BTreeSet<IpAddr> = hosts.chain(lasting).collect();
    let mut between: BTreeMap<(u32, u32), u32> = BTreeMap::new();
    let (mut before, mut after) = (current.clone(), desired.clone());
    for address in moving {
        let [now, then] = [both(current, address), both(desired, address)];
        if [now, then].as_flattened().iter().all(|identity| identity & LOCAL == 0) {
            continue;
        }
        let mut number = |n: usize| *between.entry((now[n], then[n])).or_insert_with(|| dictionary.passing());
        let (begins, lasts) = (number(0), number(1));
        for maps in [&mut before, &mut after] {
            maps.identities.insert(IpNet::from(address), begins);
            if lasts == begins {
                maps.lingering.remove(&address);
            } else {
                maps.lingering.insert(address, lasts);
            }
        }
    }
    for ((now, then), number) in between {
        for (maps, like) in [(&mut before, now), (&mut after, then)] {
            for class in maps.classes.values_mut() {
                let sides = class.sides(like);
                if sides == *class.own.of(number) {
                    class.peers.remove(&number);
                } else {
                    class.peers.insert(number, sides);
                }
            }
        }
    }
    let mut ops = Vec::new();
    for [from, to] in [[current, &before], [&before, &after], [&after, desired]] {
        ops.extend(plan(from, &Delta::between(from, to)));
    }
    ops
}
