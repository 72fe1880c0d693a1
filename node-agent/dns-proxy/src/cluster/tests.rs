use hickory_proto::op::Query;
use mesh_model::resource::NamespacedName;
use proptest::prelude::*;

use super::*;
use crate::cluster::{NamedEndpoint, NamedPort, NamedService, SET_DOMAIN};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn endpoint(address: &str, hostname: Option<&str>, port: u16) -> NamedEndpoint {
    NamedEndpoint { address: ip(address), hostname: hostname.map(str::to_owned), port }
}

fn port(name: &str, endpoints: Vec<NamedEndpoint>) -> NamedPort {
    NamedPort { name: name.to_owned(), port: 80, protocol: "tcp", endpoints }
}

fn domains() -> Domains {
    Domains { cluster: "cluster.local".into(), mesh: "mesh.example".into(), cluster_id: "west".into() }
}

/// A service of each kind.
fn zone() -> Zone {
    let mut zone = Zone::default();
    let mut put = |name: &str, service| zone.put(NamespacedName::new("shop", name), service);
    put(
        "web",
        NamedService {
            addresses: vec![ip("10.101.0.1"), ip("fd00:2::1")],
            ports: vec![port("http", vec![]), port("", vec![])],
            ..NamedService::default()
        },
    );
    let members = vec![
        endpoint("10.1.1.2", Some("db-0"), 5432),
        endpoint("fd00:1::2", Some("db-0"), 5432),
        endpoint("10.1.2.3", None, 5432),
    ];
    put(
        "db",
        NamedService {
            headless: true,
            exported: true,
            ports: vec![port("sql", members)],
            ..NamedService::default()
        },
    );
    let bare = vec![endpoint("10.1.1.9", Some("one"), 0)];
    put("bare", NamedService { headless: true, endpoints: bare, ..NamedService::default() });
    put(
        "empty",
        NamedService { headless: true, ports: vec![port("sql", vec![])], ..NamedService::default() },
    );
    put(
        "far",
        NamedService {
            addresses: vec![ip("10.101.0.9")],
            imported: true,
            ports: vec![port("http", vec![])],
            ..NamedService::default()
        },
    );
    zone
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn reply(zone: &Zone, over: Transport, query: &Message) -> Option<Message> {
    match answer(zone, &domains(), over, &query.to_vec().unwrap()) {
        Reply::Answer(bytes) => Some(Message::from_vec(&bytes).unwrap()),
        Reply::Forward | Reply::Nothing => None,
    }
}

/// The code, and the data of the answer as text; `None`: it is for somebody else.
fn ask(name: &str, kind: RecordType) -> Option<(ResponseCode, Vec<String>)> {
    let message = reply(&zone(), Transport::Udp, &query(name, kind))?;
    assert!(message.metadata.authoritative && message.metadata.recursion_desired);
    let is_empty = message.answers.is_empty();
    let has_soa = message.authorities.iter().any(|record| record.record_type() == RecordType::SOA);
    assert_eq!(is_empty, has_soa, "how long nothing is nothing");
    let data = message.answers.iter().map(|record| record.data.to_string());
    Some((message.metadata.response_code, data.collect()))
}

fn records(name: &str, kind: RecordType) -> Vec<String> {
    let (code, data) = ask(name, kind).unwrap();
    assert_eq!(code, ResponseCode::NoError, "{name}");
    data
}

fn is_missing(name: &str) -> bool {
    ask(name, RecordType::A).unwrap().0 == ResponseCode::NXDomain
}

#[test]
fn a_service_is_its_virtual_addresses_and_a_headless_one_its_ready_endpoints() {
    assert_eq!(records("web.shop.svc.cluster.local.", RecordType::A), ["10.101.0.1"]);
    assert_eq!(records("web.shop.svc.cluster.local.", RecordType::AAAA), ["fd00:2::1"]);
    assert_eq!(records("db.shop.svc.cluster.local.", RecordType::A), ["10.1.1.2", "10.1.2.3"]);
    assert_eq!(records("db.shop.svc.cluster.local.", RecordType::AAAA), ["fd00:1::2"]);
    assert_eq!(records("bare.shop.svc.cluster.local.", RecordType::A), ["10.1.1.9"]);
    assert!(records("bare.shop.svc.cluster.local.", RecordType::AAAA).is_empty());
    assert!(records("web.shop.svc.cluster.local.", RecordType::MX).is_empty());
}

#[test]
fn an_endpoint_has_a_name_by_its_hostname_or_else_by_its_address() {
    assert_eq!(records("db-0.db.shop.svc.cluster.local.", RecordType::A), ["10.1.1.2"]);
    assert_eq!(records("db-0.db.shop.svc.cluster.local.", RecordType::AAAA), ["fd00:1::2"]);
    assert_eq!(records("10-1-2-3.db.shop.svc.cluster.local.", RecordType::A), ["10.1.2.3"]);
    assert_eq!(records("one.bare.shop.svc.cluster.local.", RecordType::A), ["10.1.1.9"]);
    assert!(is_missing("db-1.db.shop.svc.cluster.local."));
    assert!(is_missing("10-1-1-2.db.shop.svc.cluster.local."), "it has a hostname");
    assert!(is_missing("x.web.shop.svc.cluster.local."));
}

#[test]
fn named_ports_have_service_records_with_the_addresses_beside_them() {
    let of_web = records("_http._tcp.web.shop.svc.cluster.local.", RecordType::SRV);
    assert_eq!(of_web, ["0 100 80 web.shop.svc.cluster.local."]);
    let mut of_db = records("_sql._tcp.db.shop.svc.cluster.local.", RecordType::SRV);
    of_db.sort();
    assert_eq!(
        of_db,
        ["0 100 5432 10-1-2-3.db.shop.svc.cluster.local.", "0 100 5432 db-0.db.shop.svc.cluster.local."]
    );
    let message =
        reply(&zone(), Transport::Udp, &query("_sql._tcp.db.shop.svc.cluster.local.", RecordType::SRV))
            .unwrap();
    assert_eq!(message.additionals.len(), 3);
    for missing in ["_sql._udp.db", "_http._tcp.db", "__tcp.web", "_._tcp.web", "_udp.db"] {
        assert!(is_missing(&format!("{missing}.shop.svc.cluster.local.")), "{missing}");
    }
    assert!(records("_tcp.db.shop.svc.cluster.local.", RecordType::A).is_empty());
    assert!(records("_sql._tcp.db.shop.svc.cluster.local.", RecordType::A).is_empty());
}

#[test]
fn a_name_that_is_not_there_is_told_from_one_without_such_a_record() {
    for missing in
        ["none.shop.svc", "web.none.svc", "none.svc", "shop", "web.shop", "a.b.c.shop.svc", "x.pod"]
    {
        assert!(is_missing(&format!("{missing}.cluster.local.")), "{missing}");
    }
    assert!(is_missing("empty.shop.svc.cluster.local."), "nobody is ready");
    assert!(is_missing("_sql._tcp.empty.shop.svc.cluster.local."));
    for empty in ["", "svc.", "shop.svc.", "pod.", "dns-version."] {
        assert!(records(&format!("{empty}cluster.local."), RecordType::A).is_empty(), "{empty}");
    }
    assert_eq!(records("dns-version.cluster.local.", RecordType::TXT), ["1.1.0"]);
    assert_eq!(records("10-1-1-7.shop.pod.cluster.local.", RecordType::A), ["10.1.1.7"]);
    assert_eq!(records("fd00-1--7.shop.pod.cluster.local.", RecordType::AAAA), ["fd00:1::7"]);
    for other in ["example.com.", "local.", "xcluster.local.", "4.3.2.1.in-addr.arpa."] {
        assert_eq!(ask(other, RecordType::A), None, "{other}");
    }
}

#[test]
fn each_domain_has_the_services_that_belong_there() {
    let at = |service: &str, domain: &str| {
        let name = format!("{service}.shop.svc.{domain}.");
        ask(&name, RecordType::A).unwrap().0 == ResponseCode::NoError
    };
    let each = |service| ["cluster.local", SET_DOMAIN, "mesh.example"].map(|domain| at(service, domain));
    assert_eq!(each("web"), [true, false, true]);
    assert_eq!(each("db"), [true, true, true]);
    assert_eq!(each("far"), [false, true, true]);
    assert_eq!(records("db-0.west.db.shop.svc.clusterset.local.", RecordType::A), ["10.1.1.2"]);
    assert!(records("west.db.shop.svc.clusterset.local.", RecordType::A).is_empty());
    for missing in ["db-0.db", "db-0.east.db", "east.db"] {
        assert!(is_missing(&format!("{missing}.shop.svc.clusterset.local.")), "{missing}");
    }
    let set = records("_sql._tcp.db.shop.svc.clusterset.local.", RecordType::SRV);
    assert!(set.contains(&"0 100 5432 db-0.west.db.shop.svc.clusterset.local.".to_owned()), "{set:?}");
}

#[test]
fn addresses_have_names() {
    assert_eq!(records("1.0.101.10.in-addr.arpa.", RecordType::PTR), ["web.shop.svc.cluster.local."]);
    assert_eq!(records("2.1.1.10.in-addr.arpa.", RecordType::PTR), ["db-0.db.shop.svc.cluster.local."]);
    assert_eq!(records("9.0.101.10.in-addr.arpa.", RecordType::PTR), ["far.shop.svc.clusterset.local."]);
    let six = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.";
    assert_eq!(records(six, RecordType::PTR), ["db-0.db.shop.svc.cluster.local."]);
    assert!(records("2.1.1.10.in-addr.arpa.", RecordType::A).is_empty());
    let mut zone = zone();
    zone.remove(&NamespacedName::new("shop", "db"));
    assert_eq!(reply(&zone, Transport::Udp, &query("2.1.1.10.in-addr.arpa.", RecordType::PTR)), None);
}

#[test]
fn what_is_too_long_is_cut_and_says_so_and_is_whole_over_tcp() {
    let mut zone = Zone::default();
    let all = (0..200).map(|n| endpoint(&format!("10.1.1.{n}"), None, 80)).collect();
    let service = NamedService { headless: true, ports: vec![port("http", all)], ..NamedService::default() };
    zone.put(NamespacedName::new("shop", "many"), service);
    let asked = query("many.shop.svc.cluster.local.", RecordType::A);
    let told = |over, asked: &Message| {
        let message = reply(&zone, over, asked).unwrap();
        (message.answers.len(), message.metadata.truncation, message.to_vec().unwrap().len())
    };
    let (count, cut, length) = told(Transport::Udp, &asked);
    assert!(count > 20 && cut && length <= SHORT, "{count} {length}");
    let mut wide = asked.clone();
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    wide.set_edns(edns);
    let (wider, cut, length) = told(Transport::Udp, &wide);
    assert!(wider > count && cut && (SHORT..=LONG).contains(&length), "{wider} {length}");
    assert_eq!(told(Transport::Tcp, &asked).0, 200);
    // Another one comes first for another query.
    let mut other = asked.clone();
    other.metadata.id = 7;
    let first = |asked| reply(&zone, Transport::Tcp, asked).unwrap().answers[0].data.to_string();
    assert_ne!(first(&asked), first(&other));
}

#[test]
fn names_are_the_same_in_any_case_and_come_back_as_they_were_asked() {
    let asked = query("WeB.ShOp.SvC.cLuStEr.LoCaL.", RecordType::A);
    let message = reply(&zone(), Transport::Udp, &asked).unwrap();
    assert_eq!(message.answers.len(), 1);
    assert_eq!(message.answers[0].name.to_ascii(), "WeB.ShOp.SvC.cLuStEr.LoCaL.");
}

#[test]
fn what_is_no_query_for_one_name_is_refused() {
    let code = |change: fn(&mut Message)| {
        let mut asked = query("web.shop.svc.cluster.local.", RecordType::A);
        change(&mut asked);
        reply(&zone(), Transport::Udp, &asked).map(|message| message.metadata.response_code)
    };
    assert_eq!(code(|asked| asked.queries.clear()), Some(ResponseCode::FormErr));
    assert_eq!(code(|asked| asked.metadata.op_code = OpCode::Notify), Some(ResponseCode::NotImp));
    assert_eq!(code(|asked| asked.metadata.message_type = MessageType::Response), None);
    let transfer = |asked: &mut Message| {
        asked.queries[0].set_query_type(RecordType::AXFR);
    };
    assert_eq!(code(transfer), Some(ResponseCode::Refused));
}

proptest! {
    #[test]
    fn whatever_comes_is_answered_within_its_length_or_not_at_all(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        if let Reply::Answer(answer) = answer(&zone(), &domains(), Transport::Udp, &bytes) {
            prop_assert!(answer.len() <= LONG);
        }
    }

    #[test]
    fn a_zone_is_what_was_put_last(steps in prop::collection::vec((0_u8..4, 0_u8..4, any::<bool>()), 0..40)) {
        let mut zone = Zone::default();
        let mut last = std::collections::BTreeMap::new();
        for (name, address, stays) in steps {
            let key = NamespacedName::new("a", format!("s{name}"));
            if stays {
                let service = NamedService { addresses: vec![IpAddr::from([10, 0, 0, address])], ..NamedService::default() };
                zone.put(key.clone(), service.clone());
                last.insert(key, service);
            } else {
                zone.remove(&key);
                last.remove(&key);
            }
        }
        let mut anew = Zone::default();
        last.into_iter().for_each(|(key, service)| anew.put(key, service));
        prop_assert_eq!(zone, anew);
    }
}
