//! DNS messages, as far as the proxy looks into them: one question, and the addresses of its answer (RFC 1035).
//!
//! Bytes are carried as they came. They are read only to know what was asked and what was answered, and written only
//! where the proxy itself answers or takes addresses out of an answer.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use hickory_proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{DNSClass, Name, RData, RecordType},
};

/// Queries are short: a name of 255 bytes and a few options.
pub const MAX_QUERY: usize = 4096;
/// Records that are looked at in one answer. More is refused: nobody connects to a thousandth address.
pub const MAX_RECORDS: usize = 1000;
/// Bytes of a header, without which there is nobody to answer.
const HEADER: usize = 12;

/// Why a message is not carried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Shorter than a header, or not a question at all: there is no answer to it.
    #[error("{0} bytes are not a DNS query")]
    NoQuery(usize),
    /// What can't be read.
    #[error("the {part} can't be read: {reason}")]
    Malformed {
        /// "query" or "answer".
        part: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// A query that asks nothing, or several things.
    #[error("a query with {0} questions; one is asked at a time")]
    Questions(usize),
    /// UPDATE, NOTIFY and others.
    #[error("operation {0} is not a lookup")]
    Operation(String),
    /// Zone transfers, and classes other than IN.
    #[error("{field} {value} is not carried")]
    Unsupported {
        /// "type" or "class".
        field: &'static str,
        /// As in the query.
        value: String,
    },
    /// A label with other characters than host names have: policies can't speak of it.
    #[error("{0:?} is not the name of a host")]
    NotAHost(String),
    /// An answer to something else.
    #[error("the answer is to another question")]
    NotOurs,
    /// An answer of more records than are looked at.
    #[error("an answer of {0} records; {MAX_RECORDS} are looked at")]
    TooLong(usize),
}

/// What a pod asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// As the pod numbered it.
    pub id: u16,
    /// Lower case, without the dot at the end; empty: the root.
    pub name: String,
    query: hickory_proto::op::Query,
    recursion_desired: bool,
}

/// What a server answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The addresses of the name that was asked for, each with the time for which it holds: the shortest on the way
    /// to it through aliases.
    pub addresses: Vec<(IpAddr, Duration)>,
}

impl Question {
    /// Reads a query.
    ///
    /// # Errors
    /// It is not a lookup of one name. [`refusal`] makes the answer to it, if there is one.
    pub fn parse(bytes: &[u8]) -> Result<Self, MessageError> {
        let is_response = bytes.get(2).is_none_or(|flags| flags & 0x80 != 0);
        if bytes.len() < HEADER || is_response {
            return Err(MessageError::NoQuery(bytes.len()));
        }
        let mut message = read(bytes, "query")?;
        if message.metadata.op_code != OpCode::Query {
            return Err(MessageError::Operation(format!("{:?}", message.metadata.op_code)));
        }
        let asked = message.queries.len();
        let (Some(query), 1) = (message.queries.pop(), asked) else {
            return Err(MessageError::Questions(asked));
        };
        if query.query_class() != DNSClass::IN {
            return Err(unsupported("class", query.query_class()));
        }
        if matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) {
            return Err(unsupported("type", query.query_type()));
        }
        let name = host(query.name())?;
        Ok(Self {
            id: message.metadata.id,
            name,
            query,
            recursion_desired: message.metadata.recursion_desired,
        })
    }

    /// Reads the answer to this question, which was asked under the number `id`.
    ///
    /// Addresses count if the answer section leads from the name that was asked to them. The names of aliases do not
    /// count as asked: whoever answers for one name could otherwise let pods to any address as any other name.
    ///
    /// # Errors
    /// It is no answer, or one to another question.
    pub fn answer(&self, bytes: &[u8], id: u16) -> Result<Answer, MessageError> {
        let message = read(bytes, "answer")?;
        let answers_this = message.metadata.message_type == MessageType::Response
            && message.metadata.id == id
            && message.metadata.op_code == OpCode::Query;
        // Some servers leave the question out of an error.
        let same_question = match message.queries.as_slice() {
            [] => message.answers.is_empty(),
            [query] => is_same(query, &self.query),
            _ => false,
        };
        if !answers_this || !same_question {
            return Err(MessageError::NotOurs);
        }
        if message.answers.len() > MAX_RECORDS {
            return Err(MessageError::TooLong(message.answers.len()));
        }
        Ok(Answer { addresses: addresses(&message, self.query.name()) })
    }

    /// An answer of nothing but a code.
    #[must_use]
    pub fn says(&self, code: Code) -> Vec<u8> {
        let mut message = Message::response(self.id, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.response_code = code.into();
        message.add_query(self.query.clone());
        message.to_vec().unwrap_or_default()
    }
}

/// What the proxy answers by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The query can't be read.
    FormatError,
    /// Nobody answered, or what was answered can't be let through now: try again.
    ServerFailure,
    /// No policy lets this pod ask for this name.
    Refused,
}

impl From<Code> for ResponseCode {
    fn from(code: Code) -> Self {
        match code {
            Code::FormatError => Self::FormErr,
            Code::ServerFailure => Self::ServFail,
            Code::Refused => Self::Refused,
        }
    }
}

/// The answer to a query that [`Question::parse`] does not take; `None` if nobody waits for one.
#[must_use]
pub fn refusal(bytes: &[u8], error: &MessageError) -> Option<Vec<u8>> {
    let code = match error {
        MessageError::NoQuery(_) => return None,
        MessageError::Malformed { .. } | MessageError::Questions(_) => Code::FormatError,
        _ => Code::Refused,
    };
    let header = bytes.get(..HEADER)?;
    // A header alone: the question may be what can't be read.
    let id = u16::from_be_bytes([header[0], header[1]]);
    let mut message = Message::response(id, OpCode::Query);
    message.metadata.recursion_desired = header[2] & 1 != 0;
    message.metadata.response_code = code.into();
    message.to_vec().ok()
}

/// Whether bytes are an answer to a query: the same number, and the same question if there is one in it, in any case.
/// Nothing else is looked at.
#[must_use]
pub fn answers(query: &[u8], bytes: &[u8]) -> bool {
    let is_response = bytes.get(2).is_some_and(|flags| flags & 0x80 != 0);
    let same_number = bytes.len() >= HEADER && query.get(..2) == bytes.get(..2);
    // Some servers leave the question out of an error.
    let is_bare = bytes.get(4..8).is_some_and(|counts| counts.iter().all(|count| *count == 0));
    let has_question = bytes.get(4..6) == Some(&[0, 1]);
    let asked = question(query).filter(|_| has_question);
    let same_question = match (asked, asked.and_then(|asked| bytes.get(HEADER..HEADER + asked.len()))) {
        (Some(asked), Some(told)) => asked.eq_ignore_ascii_case(told),
        _ => false,
    };
    is_response && same_number && (is_bare || same_question)
}

/// The bytes of the first question: its name, without pointers, its type and its class.
fn question(query: &[u8]) -> Option<&[u8]> {
    let mut end = HEADER;
    loop {
        match *query.get(end)? {
            0 => return query.get(HEADER..end + 5),
            length @ 1..=63 => end += 1 + usize::from(length),
            _ => return None,
        }
    }
}

/// The same bytes under another number. Nothing happens to what has none.
pub fn renumber(bytes: &mut [u8], id: u16) {
    if let Some(at) = bytes.get_mut(..2) {
        at.copy_from_slice(&id.to_be_bytes());
    }
}

/// The answer without the addresses that `keep` does not hold for, wherever they stand; `None` if no address is left.
///
/// # Errors
/// It can't be read.
pub fn without(bytes: &[u8], keep: impl Fn(IpAddr) -> bool) -> Result<Option<Vec<u8>>, MessageError> {
    let mut message = read(bytes, "answer")?;
    let kept = |record: &hickory_proto::rr::Record| address(&record.data).is_none_or(&keep);
    message.answers.retain(kept);
    message.additionals.retain(kept);
    if !message.answers.iter().any(|record| address(&record.data).is_some()) {
        return Ok(None);
    }
    // Whoever validates would find the set of records changed: it is no longer authentic.
    message.metadata.authentic_data = false;
    let bytes = message.to_vec();
    bytes.map(Some).map_err(|error| MessageError::Malformed { part: "answer", reason: error.to_string() })
}

/// A length before the message, as over TCP (RFC 1035, 4.2.2). `None`: longer than the length can say.
#[must_use]
pub fn framed(bytes: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(bytes.len()).ok()?;
    Some([&length.to_be_bytes(), bytes].concat())
}

fn read(bytes: &[u8], part: &'static str) -> Result<Message, MessageError> {
    Message::from_vec(bytes).map_err(|error| MessageError::Malformed { part, reason: error.to_string() })
}

fn unsupported(field: &'static str, value: impl ToString) -> MessageError {
    MessageError::Unsupported { field, value: value.to_string() }
}

/// Case does not matter in names, and some resolvers vary it to see whether the answer does (0x20 encoding).
fn is_same(one: &hickory_proto::op::Query, other: &hickory_proto::op::Query) -> bool {
    one.name() == other.name()
        && one.query_type() == other.query_type()
        && one.query_class() == other.query_class()
}

/// A name as policies write it.
///
/// Labels may hold any byte, a dot among them: only what host and service names have is let through, so that the text
/// can be taken apart at its dots.
fn host(name: &Name) -> Result<String, MessageError> {
    let mut text = String::new();
    for label in name.iter() {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if !label.iter().all(plain) {
            return Err(MessageError::NotAHost(name.to_ascii()));
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    Ok(text)
}

fn address(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(a) => Some(a.0.into()),
        RData::AAAA(aaaa) => Some(aaaa.0.into()),
        _ => None,
    }
}

/// Follows the aliases of `asked` to addresses. Each record is looked at once for each alias, and each alias once.
fn addresses(message: &Message, asked: &Name) -> Vec<(IpAddr, Duration)> {
    let mut found = Vec::new();
    let mut visited = BTreeSet::new();
    let mut at = vec![(asked.to_lowercase(), u32::MAX)];
    while let Some((name, holds)) = at.pop() {
        for record in message.answers.iter().filter(|record| record.name == name) {
            let holds = holds.min(record.ttl);
            if let RData::CNAME(alias) = &record.data {
                let alias = alias.0.to_lowercase();
                if visited.len() < MAX_ALIASES && visited.insert(alias.clone()) {
                    at.push((alias, holds));
                }
            } else if let Some(address) = address(&record.data) {
                found.push((address, Duration::from_secs(holds.into())));
            }
        }
    }
    found
}

/// Aliases that are followed from one name.
const MAX_ALIASES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    use hickory_proto::{
        op::Query,
        rr::{
            Record,
            rdata::{A, AAAA, CNAME, TXT},
        },
    };
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn query(text: &str) -> Message {
        let mut message = Message::new(77, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(name(text), RecordType::A));
        message
    }

    fn question(text: &str) -> Question {
        Question::parse(&query(text).to_vec().unwrap()).unwrap()
    }

    fn answer(text: &str, records: Vec<Record>) -> Message {
        let mut message = query(text);
        message.metadata.message_type = MessageType::Response;
        message.insert_answers(records);
        message
    }

    fn a(owner: &str, ttl: u32, address: [u8; 4]) -> Record {
        Record::from_rdata(name(owner), ttl, RData::A(A(address.into())))
    }

    fn alias(owner: &str, ttl: u32, of: &str) -> Record {
        Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(of))))
    }

    fn read_back(message: &Message, id: u16) -> Result<Vec<(IpAddr, u64)>, MessageError> {
        let asked = message.queries[0].name().to_ascii();
        let read = question(&asked).answer(&message.to_vec().unwrap(), id)?;
        Ok(read.addresses.into_iter().map(|(address, holds)| (address, holds.as_secs())).collect())
    }

    #[test]
    fn a_name_is_read_in_lower_case_and_without_its_last_dot() {
        assert_eq!(question("API.Example.com.").name, "api.example.com");
        assert_eq!(question("_ldap._tcp.example.com.").name, "_ldap._tcp.example.com");
        assert_eq!(question(".").name, "");
    }

    #[test]
    fn an_answer_is_known_by_its_number_and_its_question() {
        let asked = query("www.example.com.").to_vec().unwrap();
        let told = |change: fn(&mut Message)| {
            let mut message = answer("WWW.Example.com.", vec![a("www.example.com.", 5, [192, 0, 2, 1])]);
            change(&mut message);
            answers(&asked, &message.to_vec().unwrap())
        };
        assert!(told(|_| ()));
        assert!(!told(|m| m.metadata.id = 78));
        assert!(!told(|m| m.metadata.message_type = MessageType::Query));
        assert!(!told(|m| m.queries = query("www.example.net.").queries));
        assert!(!told(|m| m.queries.clear()), "of an answer the question is looked at");
        assert!(told(|m| {
            m.queries.clear();
            m.answers.clear();
        }));
        assert!(!answers(&asked, &asked[..11]) && !answers(&[], &[]));
    }

    #[test]
    fn what_is_no_lookup_of_one_name_is_refused() {
        let refused = |change: fn(&mut Message)| {
            let mut message = query("example.com.");
            change(&mut message);
            Question::parse(&message.to_vec().unwrap()).unwrap_err()
        };
        assert_eq!(refused(|m| m.queries.clear()), MessageError::Questions(0));
        assert_eq!(refused(|m| m.queries.push(m.queries[0].clone())), MessageError::Questions(2));
        let update = refused(|m| m.metadata.op_code = OpCode::Notify);
        assert!(matches!(update, MessageError::Operation(_)), "{update}");
        let chaos = refused(|m| {
            m.queries[0].set_query_class(DNSClass::CH);
        });
        assert_eq!(chaos, unsupported("class", "CH"));
        let transfer = refused(|m| {
            m.queries[0].set_query_type(RecordType::AXFR);
        });
        assert_eq!(transfer, unsupported("type", "AXFR"));
        assert!(matches!(
            refused(|m| m.metadata.message_type = MessageType::Response),
            MessageError::NoQuery(_)
        ));
        assert_eq!(Question::parse(&[0; 11]), Err(MessageError::NoQuery(11)));
    }

    #[test]
    fn a_dot_inside_a_label_makes_no_other_name_of_it() {
        let mut message = query("example.com.");
        message.queries.clear();
        let odd = Name::from_labels([b"evil.www".as_slice(), b"example", b"com"]).unwrap();
        message.add_query(Query::query(odd, RecordType::A));
        let refused = Question::parse(&message.to_vec().unwrap()).unwrap_err();
        assert!(matches!(refused, MessageError::NotAHost(_)), "{refused}");
    }

    #[test]
    fn addresses_are_found_through_aliases_with_the_shortest_time_on_the_way() {
        let message = answer(
            "www.example.com.",
            vec![
                alias("www.example.com.", 300, "CDN.example.net."),
                alias("cdn.example.net.", 20, "edge.example.net."),
                a("edge.example.net.", 60, [192, 0, 2, 1]),
                a("edge.example.net.", 10, [192, 0, 2, 2]),
            ],
        );
        let both = vec![([192, 0, 2, 1].into(), 20), ([192, 0, 2, 2].into(), 10)];
        assert_eq!(read_back(&message, 77), Ok(both));
    }

    #[test]
    fn addresses_of_other_names_and_of_other_sections_do_not_count() {
        let mut message = answer("www.example.com.", vec![a("other.example.com.", 60, [192, 0, 2, 1])]);
        message.add_additional(a("www.example.com.", 60, [192, 0, 2, 2]));
        assert_eq!(read_back(&message, 77), Ok(vec![]));
    }

    #[test]
    fn aliases_in_a_circle_end() {
        let records = vec![
            alias("a.example.", 1, "b.example."),
            alias("b.example.", 1, "a.example."),
            a("b.example.", 5, [192, 0, 2, 1]),
        ];
        let found = read_back(&answer("a.example.", records), 77).unwrap();
        assert_eq!(found[0], ([192, 0, 2, 1].into(), 1));
    }

    #[test]
    fn an_answer_to_another_question_is_not_taken() {
        let message = answer("www.example.com.", vec![a("www.example.com.", 60, [192, 0, 2, 1])]);
        assert_eq!(read_back(&message, 78), Err(MessageError::NotOurs));
        let bytes = message.to_vec().unwrap();
        assert_eq!(question("example.com.").answer(&bytes, 77), Err(MessageError::NotOurs));
        let mut other_type = message.clone();
        other_type.queries[0].set_query_type(RecordType::AAAA);
        assert_eq!(
            question("www.example.com.").answer(&other_type.to_vec().unwrap(), 77),
            Err(MessageError::NotOurs)
        );
        let asked = query("www.example.com.").to_vec().unwrap();
        assert_eq!(question("www.example.com.").answer(&asked, 77), Err(MessageError::NotOurs));
        // The letters' case does not matter.
        assert!(question("WWW.example.com.").answer(&bytes, 77).is_ok());
    }

    #[test]
    fn an_error_without_its_question_is_an_answer_but_addresses_without_it_are_not() {
        let mut error = answer("www.example.com.", vec![]);
        error.queries.clear();
        error.metadata.response_code = ResponseCode::ServFail;
        let asked = question("www.example.com.");
        assert_eq!(asked.answer(&error.to_vec().unwrap(), 77), Ok(Answer::default()));
        error.add_answer(a("www.example.com.", 60, [192, 0, 2, 1]));
        assert_eq!(asked.answer(&error.to_vec().unwrap(), 77), Err(MessageError::NotOurs));
    }

    #[test]
    fn an_answer_of_too_many_records_is_refused() {
        let records = vec![a("www.example.com.", 60, [192, 0, 2, 1]); MAX_RECORDS + 1];
        let refused = read_back(&answer("www.example.com.", records), 77);
        assert_eq!(refused, Err(MessageError::TooLong(MAX_RECORDS + 1)));
    }

    #[test]
    fn addresses_are_taken_out_wherever_they_stand_and_the_rest_stays() {
        let v6: std::net::Ipv6Addr = "2001:db8::1".parse().unwrap();
        let mut message = answer(
            "www.example.com.",
            vec![
                alias("www.example.com.", 300, "edge.example.net."),
                a("edge.example.net.", 60, [192, 0, 2, 1]),
                a("edge.example.net.", 60, [192, 0, 2, 2]),
            ],
        );
        message.metadata.authentic_data = true;
        message.add_additional(Record::from_rdata(name("ns.example.net."), 5, RData::AAAA(AAAA(v6))));
        let bytes = message.to_vec().unwrap();
        let kept = without(&bytes, |address| address == IpAddr::from([192, 0, 2, 2])).unwrap().unwrap();
        let kept = Message::from_vec(&kept).unwrap();
        assert_eq!((kept.answers.len(), kept.additionals.len()), (2, 0));
        assert!(!kept.metadata.authentic_data);
        assert_eq!(without(&bytes, |_| false), Ok(None));
    }

    #[test]
    fn what_is_refused_is_answered_under_its_number_unless_it_is_no_query() {
        let bytes = query("example.com.").to_vec().unwrap();
        let cut = &bytes[..bytes.len() - 3];
        let error = Question::parse(cut).unwrap_err();
        let said = Message::from_vec(&refusal(cut, &error).unwrap()).unwrap();
        assert_eq!((said.metadata.id, said.metadata.response_code), (77, ResponseCode::FormErr));
        assert!(said.metadata.recursion_desired);
        let error = Question::parse(&bytes[..5]).unwrap_err();
        assert_eq!(refusal(&bytes[..5], &error), None);
        let refused = Message::from_vec(&question("example.com.").says(Code::Refused)).unwrap();
        assert_eq!(refused.queries[0].name(), &name("example.com."));
        assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
    }

    #[test]
    fn a_message_over_tcp_has_its_length_before_it() {
        assert_eq!(framed(b"abc").unwrap(), b"\0\x03abc");
        assert_eq!(framed(&vec![0; 65_536]), None);
    }

    #[test]
    fn an_answer_without_addresses_has_none() {
        let text =
            Record::from_rdata(name("example.com."), 5, RData::TXT(TXT::new(vec!["192.0.2.1".to_owned()])));
        assert_eq!(read_back(&answer("example.com.", vec![text]), 77), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Err(error) = Question::parse(&bytes) {
                let _ = refusal(&bytes, &error);
            }
            let _ = question("example.com.").answer(&bytes, 77);
            let _ = without(&bytes, |_| true);
        }

        #[test]
        fn no_change_of_an_answer_makes_it_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let records = vec![
                alias("www.example.com.", 300, "edge.example.net."),
                a("edge.example.net.", 60, [192, 0, 2, 1]),
            ];
            let mut bytes = answer("www.example.com.", records).to_vec().unwrap();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            let _ = question("www.example.com.").answer(&bytes, 77);
            let _ = without(&bytes, |_| false);
        }
    }
}
