//! What is done with a query and with its answer.

use std::net::IpAddr;

use crate::{
    Event, GateError, Outcome, Rules, Seen, Sight, Way,
    message::{self, Code, MessageError, Question},
};

/// What becomes of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// It goes to the server.
    Forward(Question),
    /// The proxy answers; `None`: nobody waits.
    Answer(Option<Vec<u8>>, Event),
}

/// What becomes of what the server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    /// Not an answer to this: the right one may still come.
    Unrelated(MessageError),
    /// It goes to the pod as it is: there are no addresses in it.
    Pass,
    /// It waits until the kernel lets the pod to these.
    Hold(Seen),
}

/// Decides on a query.
pub fn ask(rules: &Rules, sight: &impl Sight, way: Way, bytes: &[u8]) -> Ask {
    let (pod, server, transport) = way;
    let event = |name: &str, outcome| Event::of(way, name, outcome);
    match Question::parse(bytes) {
        Err(error @ MessageError::NotAHost(_)) => {
            Ask::Answer(message::refusal(bytes, &error), event("", Outcome::Refused))
        }
        Err(error) => Ask::Answer(message::refusal(bytes, &error), event("", Outcome::Malformed)),
        Ok(question) => {
            let identity = sight.identity(server.ip());
            if rules.allow(pod.ip(), server, identity, transport, &question.name) {
                Ask::Forward(question)
            } else {
                let refused = event(&question.name, Outcome::Refused);
                Ask::Answer(Some(question.says(Code::Refused)), refused)
            }
        }
    }
}

/// Decides on an answer, which was asked for under the number `id`.
pub fn answered(question: &Question, pod: IpAddr, id: u16, bytes: &[u8]) -> Answered {
    match question.answer(bytes, id) {
        Err(error) => Answered::Unrelated(error),
        Ok(answer) if answer.addresses.is_empty() => Answered::Pass,
        Ok(answer) => Answered::Hold(Seen { pod, name: question.name.clone(), addresses: answer.addresses }),
    }
}

/// What the pod gets of an answer that was held.
///
/// While the agent is away nothing new is let through, but addresses that the kernel knows go on: the pod gets those
/// alone, so that it does not choose one that it can't reach. A name that no policy names is answered as ever: whether
/// the pod reaches its addresses does not depend on who knows of them.
pub fn released(
    rules: &Rules,
    question: &Question,
    sight: &impl Sight,
    admitted: Result<(), GateError>,
    bytes: Vec<u8>,
) -> (Vec<u8>, Outcome) {
    match admitted {
        Ok(()) => (bytes, Outcome::Answered),
        Err(GateError::Refused(_)) => (question.says(Code::ServerFailure), Outcome::Held),
        Err(GateError::Away) if !rules.gates(&question.name) => (bytes, Outcome::Answered),
        Err(GateError::Away) => match message::without(&bytes, |address| sight.knows(address)) {
            Ok(Some(known)) => (known, Outcome::Shortened),
            Ok(None) | Err(_) => (question.says(Code::ServerFailure), Outcome::Held),
        },
    }
}
