//! What a pod asks the DNS proxy, and what a server answers it: both are whoever's.

use dns_proxy::{
    Transport,
    cluster::{Domains, NamedEndpoint, NamedPort, NamedService, Reply, Zone, answer},
    message::{self, Question},
};
use mesh_model::resource::NamespacedName;

pub(crate) fn dns(bytes: &[u8]) {
    let domains =
        Domains { cluster: "cluster.local".into(), mesh: "mesh.local".into(), cluster_id: "west".into() };
    let zone = zone();
    for (over, most) in [(Transport::Udp, 1232), (Transport::Tcp, 65_535)] {
        if let Reply::Answer(answer) = answer(&zone, &domains, over, bytes) {
            assert!(answer.len() <= most, "what {over:?} may carry");
            assert!(answer.len() >= 12 && answer[2] & 0x80 != 0, "an answer");
            assert_eq!(answer[..2], bytes[..2], "to this question");
        }
    }
    let _ = message::answers(bytes, bytes);
    // One input, taken for either: a header is alike in both.
    match Question::parse(bytes) {
        Ok(question) => {
            assert!(question.name.len() <= 253, "a name has its limit");
            assert!(question.name.split('.').all(|label| label.len() <= 63));
        }
        Err(error) => drop(message::refusal(bytes, &error)),
    }
    let Some(asked) = asked() else { return };
    let Ok(answer) = asked.answer(bytes, 0x1234) else { return };
    assert!(answer.addresses.len() <= 17 * message::MAX_RECORDS, "each record counts once for each alias");
    let kept = message::without(bytes, |address| address.is_ipv4());
    if let Ok(Some(kept)) = kept {
        let left = asked.answer(&kept, 0x1234).map(|answer| answer.addresses).unwrap_or_default();
        assert!(left.iter().all(|(address, _)| address.is_ipv4()), "what was taken out is out");
    }
}

/// A service with virtual IPs and a headless one with more endpoints than a datagram carries.
fn zone() -> Zone {
    let mut zone = Zone::default();
    let endpoints = (0..200).map(|last| NamedEndpoint {
        address: std::net::IpAddr::from([10, 1, 2, last]),
        port: 5432,
        hostname: Some(format!("db-{last}")),
    });
    let port = |endpoints| NamedPort { name: "sql".into(), port: 5432, protocol: "tcp", endpoints };
    let db = NamedService {
        headless: true,
        exported: true,
        ports: vec![port(endpoints.collect())],
        ..NamedService::default()
    };
    let web = NamedService {
        addresses: vec![[10, 101, 0, 1].into(), std::net::Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 1).into()],
        ports: vec![port(Vec::new())],
        ..NamedService::default()
    };
    zone.put(NamespacedName::new("shop", "db"), db);
    zone.put(NamespacedName::new("shop", "web"), web);
    zone
}

/// `www.example.com. IN A`, under the number of the seeds.
fn asked() -> Option<Question> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["www", "example", "com"] {
        query.push(u8::try_from(label.len()).ok()?);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    Question::parse(&query).ok()
}
