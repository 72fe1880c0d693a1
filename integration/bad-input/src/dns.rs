//! What a pod asks the DNS proxy, and what a server answers it: both are whoever's.

use dns_proxy::{
    Transport,
    cluster::{Domains, Reply, Zone, answer},
    message::{self, Question},
};

pub(crate) fn dns(bytes: &[u8]) {
    let domains =
        Domains { cluster: "cluster.local".into(), mesh: "mesh.local".into(), cluster_id: "west".into() };
    if let Reply::Answer(answer) = answer(&Zone::default(), &domains, Transport::Udp, bytes) {
        assert!(answer.len() <= 1232, "what a datagram may carry");
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
