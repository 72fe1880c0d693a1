//! Subtraction of CIDR blocks.

use ipnet::IpNet;

/// The fewest blocks that together hold exactly the addresses of `cidr` that no block of `except` holds, in
/// ascending order. The kernel's longest-prefix map knows no exceptions, so they are cut out beforehand.
pub fn cover(cidr: IpNet, except: &[IpNet]) -> Vec<IpNet> {
    let mut out = Vec::new();
    cut(cidr, &except.iter().copied().filter(|e| cidr.contains(e)).collect::<Vec<_>>(), &mut out);
    out
}

/// Halves a block until each part is wholly inside or wholly outside; so no two parts could be merged. The
/// depth is the address's width, and every level keeps only the exceptions that lie inside its block.
fn cut(block: IpNet, except: &[IpNet], out: &mut Vec<IpNet>) {
    if except.is_empty() {
        out.push(block);
        return;
    }
    if except.contains(&block) {
        return;
    }
    let Ok(halves) = block.subnets(block.prefix_len() + 1) else { return };
    for half in halves {
        let inside: Vec<IpNet> = except.iter().copied().filter(|e| half.contains(e)).collect();
        cut(half, &inside, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn the_cover_is_exact_and_minimal() {
        let net = |t: &str| t.parse::<IpNet>().unwrap();
        assert_eq!(cover(net("10.0.0.0/8"), &[]), nets(&["10.0.0.0/8"]));
        assert_eq!(cover(net("10.0.0.0/30"), &nets(&["10.0.0.1/32"])), nets(&["10.0.0.0/32", "10.0.0.2/31"]));
        assert_eq!(cover(net("10.0.0.0/31"), &nets(&["10.0.0.0/32", "10.0.0.1/32"])), nets(&[]));
        assert_eq!(cover(net("10.0.0.0/24"), &nets(&["192.168.0.0/16"])), nets(&["10.0.0.0/24"]));
        assert_eq!(cover(net("0.0.0.0/0"), &nets(&["10.0.0.0/8", "10.1.0.0/16"])).len(), 8);
        assert_eq!(cover(net("::/0"), &nets(&["fd00::1/128"])).len(), 128);
    }
}
