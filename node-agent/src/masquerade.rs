//! What leaves the mesh's own addresses leaves it with the node's address: hosts outside, gateways of peers among
//! them, have no route to pods, and a peer's pods may even have the same addresses.
//!
//! Traffic within the mesh, between pods and nodes, is never rewritten: the kernel programs know a source by its address.
//!
//! An answer to what a proxy asked in a pod's name has been translated back when the pod's door sends it to the proxy, and comes
//! in once more there: that is no connection of its own, and nothing is to be translated again.

use std::{collections::BTreeSet, fmt::Write as _, net::IpAddr, process::Stdio, time::Duration};

use ebpf_shared::redirect::TO_PROXY_UNTRACKED;
use ipnet::IpNet;
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{engine::Engine, subscribe::Resources};

/// The nftables table that is ours: nothing outside it is read or changed.
const TABLE: &str = "isthmus";
/// After a refusal.
const RETRY: Duration = Duration::from_secs(5);

/// Why the rules could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum MasqueradeError {
    /// `nft` is not installed, or can't be started.
    #[error("nft could not be run ({0}): install nftables")]
    Run(#[from] std::io::Error),
    /// It refused the rules.
    #[error("nft refuses the masquerading rules: {0}")]
    Refused(String),
}

/// What pods reach with their own addresses: all pods, on every node, the nodes themselves, and what was excluded. PURE.
pub fn spared(resources: &Resources, excluded: &[IpNet]) -> BTreeSet<IpNet> {
    let mut nets = mesh_addresses(resources);
    // Without a word of the other nodes, their pods would be taken for outsiders.
    if !nets.is_empty() {
        nets.extend(excluded);
    }
    nets
}

fn mesh_addresses(resources: &Resources) -> BTreeSet<IpNet> {
    let each = resources.nodes.values().flat_map(|node| {
        let own = [Some(IpAddr::V4(node.address)), node.address6.map(IpAddr::V6)];
        node.pod_cidrs.iter().copied().chain(own.into_iter().flatten().map(IpNet::from))
    });
    each.collect()
}

/// The whole table of each family that the node's pods have, as one transaction: there is no moment without it. PURE.
pub fn ruleset(own: &[IpNet], mesh: &BTreeSet<IpNet>) -> String {
    own.iter().map(|own| table(own, mesh)).collect()
}

fn table(own: &IpNet, mesh: &BTreeSet<IpNet>) -> String {
    let family = if own.addr().is_ipv4() { "ip" } else { "ip6" };
    let mut inside = String::new();
    let of_family = mesh.iter().filter(|net| net.addr().is_ipv4() == own.addr().is_ipv4());
    // Sets of intervals refuse those that overlap.
    let whole: Vec<IpNet> = of_family.chain([own]).copied().collect();
    for net in IpNet::aggregate(&whole) {
        let separator = if inside.is_empty() { "" } else { ", " };
        let _ = write!(inside, "{separator}{net}");
    }
    format!(
        "table {family} {TABLE} {{}}\n\
         delete table {family} {TABLE}\n\
         table {family} {TABLE} {{\n\
         \tchain leaving {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\t{family} saddr {own} {family} daddr != {{ {inside} }} masquerade\n\
         \t}}\n\
         \tchain aside {{\n\
         \t\ttype filter hook prerouting priority raw; policy accept;\n\
         \t\tmeta mark {TO_PROXY_UNTRACKED:#x} notrack\n\
         \t}}\n\
         }}\n"
    )
}

/// Keeps the rules as they are to be, for ever. Stop it by dropping the future.
pub async fn keep_for_ever(engine: Engine, own: Vec<IpNet>, excluded: Vec<IpNet>) {
    let mut changes = engine.changes();
    let mut held = None;
    loop {
        changes.borrow_and_update();
        let mesh = engine.resources(|resources| spared(resources, &excluded));
        if !mesh.is_empty() && held.as_ref() != Some(&mesh) {
            match load(&ruleset(&own, &mesh)).await {
                Ok(()) => held = Some(mesh),
                Err(error) => {
                    tracing::error!(%error, "pods can't reach what is outside the mesh; trying again in {RETRY:?}");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Removes the table.
///
/// # Errors
/// What `nft` said. That there is no such table is fine.
pub async fn remove() -> Result<(), MasqueradeError> {
    let gone = |family: &str| format!("table {family} {TABLE} {{}}\ndelete table {family} {TABLE}\n");
    load(&gone("ip")).await?;
    match load(&gone("ip6")).await {
        // A kernel without IPv6 has no such table to be removed.
        Err(MasqueradeError::Refused(_)) => Ok(()),
        result => result,
    }
}

async fn load(rules: &str) -> Result<(), MasqueradeError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(rules.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(MasqueradeError::Refused(said.lines().next().unwrap_or_default().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn pods_of_every_node_are_spared_whether_or_not_this_node_is_listed() {
        let rules = ruleset(&[net("10.1.0.0/24")], &[net("10.1.1.0/24")].into());
        assert!(rules.contains("ip saddr 10.1.0.0/24 ip daddr != { 10.1.0.0/23 } masquerade"), "{rules}");
        let listed = ruleset(&[net("10.1.0.0/24")], &[net("10.1.0.0/24"), net("10.1.1.0/24")].into());
        assert_eq!(rules, listed);
    }

    #[test]
    fn each_family_has_a_table_that_names_its_own_addresses_only() {
        let own = [net("10.1.0.0/24"), net("fd00:1::/120")];
        let rules = ruleset(&own, &[net("10.1.1.0/24"), net("fd00:1::100/120")].into());
        for rule in [
            "ip saddr 10.1.0.0/24 ip daddr != { 10.1.0.0/23 } masquerade",
            "ip6 saddr fd00:1::/120 ip6 daddr != { fd00:1::/119 } masquerade",
        ] {
            assert!(rules.contains(rule), "{rules}");
        }
    }

    #[test]
    fn what_is_excluded_is_spared_and_ranges_that_overlap_become_one() {
        let mut resources = Resources::default();
        let excluded = [net("10.0.0.0/8"), net("2001:db8::/32")];
        assert!(spared(&resources, &excluded).is_empty(), "before anything was told of other nodes");
        let node = crate::subscribe::NodeRoute {
            tunnel: None,
            address: [192, 0, 2, 2].into(),
            address6: Some("2001:db8::2".parse().unwrap()),
            pod_cidrs: vec![net("10.1.1.0/24")],
            addresses: Vec::new(),
            zone: String::new(),
        };
        resources.nodes.insert("n2".into(), node);
        let rules = ruleset(&[net("10.1.0.0/24"), net("fd00:1::/120")], &spared(&resources, &excluded));
        let spared4 = "ip saddr 10.1.0.0/24 ip daddr != { 10.0.0.0/8, 192.0.2.2/32 } masquerade";
        assert!(rules.contains(spared4), "{rules}");
        assert!(rules.contains("ip6 daddr != { 2001:db8::/32, fd00:1::/120 } masquerade"), "{rules}");
    }

    #[test]
    fn the_old_table_goes_in_the_transaction_that_brings_the_new_one() {
        let rules = ruleset(&[net("10.1.0.0/24")], &BTreeSet::new());
        let delete = rules.find("delete table ip isthmus").unwrap();
        assert!(rules.find("chain leaving").unwrap() > delete);
    }
}
