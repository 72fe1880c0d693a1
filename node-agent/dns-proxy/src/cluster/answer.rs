//! From a query to an answer, as bytes.

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, PTR, SOA, SRV, TXT},
    },
};

use super::{
    MAX_ADDRESSES, TTL,
    lookup::{Data, Found, lookup},
    zone::{Domains, Zone},
};
use crate::{
    Transport,
    message::{self, Code, MessageError},
};

/// RFC 1035, 4.2.1: without EDNS.
const SHORT: usize = 512;
/// What gets through everywhere without being taken apart (DNS flag day 2020).
const LONG: usize = 1232;
/// RFC 1035, 4.2.2.
const LONGEST: usize = 65_535;

/// What becomes of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Of one of our domains, or what can't be read.
    Answer(Vec<u8>),
    /// Somebody else may know.
    Forward,
    /// It is no query.
    Nothing,
}

/// Answers a query from what is known of services.
#[must_use]
pub fn answer(zone: &Zone, domains: &Domains, over: Transport, query: &[u8]) -> Reply {
    let is_response = query.get(2).is_none_or(|flags| flags & 0x80 != 0);
    if is_response {
        return Reply::Nothing;
    }
    let asked = match Message::from_vec(query) {
        Ok(asked) => asked,
        Err(error) => {
            let error = MessageError::Malformed { part: "query", reason: error.to_string() };
            return message::refusal(query, &error).map_or(Reply::Nothing, Reply::Answer);
        }
    };
    if asked.metadata.op_code != OpCode::Query {
        return bare(&asked, ResponseCode::NotImp);
    }
    let [question] = asked.queries.as_slice() else { return bare(&asked, ResponseCode::FormErr) };
    if question.query_class() != DNSClass::IN {
        return Reply::Forward;
    }
    let Some(labels) = labels(question.name()) else { return Reply::Forward };
    let found = lookup(zone, domains, &labels, question.query_type());
    if found != Found::Elsewhere && matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR) {
        return bare(&asked, ResponseCode::Refused);
    }
    match found {
        Found::Elsewhere => Reply::Forward,
        Found::Records(records, further) => whole(&asked, question, records, &further, over),
        Found::NoData(domain) => nothing(&asked, &domain, ResponseCode::NoError, over),
        Found::NoName(domain) => nothing(&asked, &domain, ResponseCode::NXDomain, over),
    }
}

/// The answer that nobody could be asked, or that nobody has answered; `None`: nobody waits for one.
#[must_use]
pub fn failure(query: &[u8], code: Code) -> Option<Vec<u8>> {
    let asked = Message::from_vec(query).ok()?;
    begin(&asked, code.into()).to_vec().ok()
}

/// A name in lower case; `None`: a label has what no name of ours has.
fn labels(name: &Name) -> Option<Vec<String>> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label = |label: &[u8]| {
        let lower = label.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect();
        label.iter().all(plain).then_some(lower)
    };
    name.iter().map(label).collect()
}

fn begin(asked: &Message, code: ResponseCode) -> Message {
    let mut message = Message::new(asked.metadata.id, MessageType::Response, asked.metadata.op_code);
    message.metadata.recursion_desired = asked.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    // As it was asked: some vary its case to see whether the answer does.
    message.add_queries(asked.queries.iter().cloned());
    if asked.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(u16::try_from(LONG).unwrap_or(u16::MAX));
        message.set_edns(edns);
    }
    message
}

fn bare(asked: &Message, code: ResponseCode) -> Reply {
    begin(asked, code).to_vec().map_or(Reply::Nothing, Reply::Answer)
}

/// With the domain's SOA, by which it is known how long to remember that there is nothing (RFC 2308).
fn nothing(asked: &Message, domain: &str, code: ResponseCode, over: Transport) -> Reply {
    let mut message = begin(asked, code);
    message.metadata.authoritative = true;
    if let (Ok(zone), Ok(server), Ok(person)) = (
        Name::from_ascii(format!("{domain}.")),
        Name::from_ascii(format!("ns.dns.{domain}.")),
        Name::from_ascii(format!("hostmaster.{domain}.")),
    ) {
        let soa = SOA::new(server, person, 1, 7_200, 1_800, 86_400, TTL);
        message.add_authority(Record::from_rdata(zone, TTL, RData::SOA(soa)));
    }
    fitting(message, room(asked, over))
}

fn whole(
    asked: &Message,
    question: &Query,
    mut records: Vec<Data>,
    further: &[(String, IpAddr)],
    over: Transport,
) -> Reply {
    let mut message = begin(asked, ResponseCode::NoError);
    message.metadata.authoritative = true;
    // Who takes the first address only is to take another one each time.
    if !records.is_empty() {
        let first = usize::from(asked.metadata.id) % records.len();
        records.rotate_left(first);
    }
    records.truncate(MAX_ADDRESSES);
    let owner = question.name();
    message.add_answers(
        records.into_iter().filter_map(|data| Some(Record::from_rdata(owner.clone(), TTL, rdata(data)?))),
    );
    message.add_additionals(further.iter().filter_map(|(name, address)| {
        let name = Name::from_ascii(name).ok()?;
        Some(Record::from_rdata(name, TTL, rdata(Data::Address(*address))?))
    }));
    fitting(message, room(asked, over))
}

fn rdata(data: Data) -> Option<RData> {
    Some(match data {
        Data::Address(IpAddr::V4(address)) => RData::A(A(address)),
        Data::Address(IpAddr::V6(address)) => RData::AAAA(AAAA(address)),
        Data::Service { weight, port, target } => {
            RData::SRV(SRV::new(0, weight, port, Name::from_ascii(target).ok()?))
        }
        Data::Pointer(name) => RData::PTR(PTR(Name::from_ascii(name).ok()?)),
        Data::Text(text) => RData::TXT(TXT::new(vec![text.to_owned()])),
    })
}

/// How long the answer may be.
fn room(asked: &Message, over: Transport) -> usize {
    match over {
        Transport::Tcp => LONGEST,
        Transport::Udp => {
            let told = asked.edns.as_ref().map_or(SHORT, |edns| usize::from(edns.max_payload()));
            told.clamp(SHORT, LONG)
        }
    }
}

/// What goes in: of what is too long first what nobody asked for is left out, then records, which is said.
fn fitting(mut message: Message, room: usize) -> Reply {
    let fits = |message: &Message| message.to_vec().ok().filter(|bytes| bytes.len() <= room);
    if let Some(bytes) = fits(&message) {
        return Reply::Answer(bytes);
    }
    message.additionals.clear();
    if let Some(bytes) = fits(&message) {
        return Reply::Answer(bytes);
    }
    let all = std::mem::take(&mut message.answers);
    message.metadata.truncation = true;
    let Some(mut best) = fits(&message) else { return Reply::Nothing };
    // The most that fit: `few` do, `many` do not.
    let (mut few, mut many) = (0, all.len());
    while many - few > 1 {
        let middle = few.midpoint(many);
        message.answers = all.iter().take(middle).cloned().collect();
        match fits(&message) {
            Some(bytes) => (few, best) = (middle, bytes),
            None => many = middle,
        }
    }
    Reply::Answer(best)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
