//! Policy: classes, rules and the ruling.
//!
//! Endpoints whose policy is equal share a *class*, so memory grows with distinct policies, not with pods.
//!
//! ## Where a rule is found
//!
//! `POLICY` is a longest-prefix trie over (class, direction, protocol, identity, port). Everything but the
//! port is always matched in full, so a port range is a handful of prefixes (at most 30) and a rule for all
//! ports is one. A hash would need one lookup for the port and one for "any port", and could not hold ranges.
//!
//! A lookup answers with the *narrowest* prefix around the port. So that deny still beats allow within one
//! (identity, protocol), whoever writes the trie spreads a deny over all narrower allows inside it
//! (`node_agent::kernel::rules` does).
//!
//! ## The order of the verdict
//!
//! Four lookups, always in this order; the first deny ends it:
//!
//! | # | identity | protocol | port |
//! |---|----------|----------|------|
//! | 1 | the peer's | the packet's | exact, else narrowest range, else any |
//! | 2 | the peer's | any | exact, else narrowest range, else any |
//! | 3 | any | the packet's | exact, else narrowest range, else any |
//! | 4 | any | any | exact, else narrowest range, else any |
//!
//! | what the four found | ruling | policy named |
//! |---|---|---|
//! | a deny | drop, `PolicyDenied` | the deny's |
//! | an allow, no deny | pass | the first allow's |
//! | nothing, class denies this direction by default | drop, `DefaultDeny` | the class's default deny |
//! | nothing otherwise | pass | none |
//! | no class entry at all | drop, `PolicyMissing` | none |

use crate::Reason;
use crate::packet::protocol;

/// Which way, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Direction {
    /// To the pod.
    Ingress = 0,
    /// From the pod.
    Egress = 1,
}

impl Direction {
    #[inline(always)]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }
}

/// Value of `CLASSES`; the key is the class number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Class {
    pub flags: u32,
    /// Named when ingress is denied by default.
    pub ingress_policy: u32,
    /// Named when egress is denied by default.
    pub egress_policy: u32,
}

impl Class {
    pub const DENY_INGRESS: u32 = 1;
    pub const DENY_EGRESS: u32 = 2;

    #[inline(always)]
    const fn default_deny(&self, direction: Direction) -> (bool, u32) {
        match direction {
            Direction::Ingress => (self.flags & Self::DENY_INGRESS != 0, self.ingress_policy),
            Direction::Egress => (self.flags & Self::DENY_EGRESS != 0, self.egress_policy),
        }
    }
}

/// Key of `POLICY`, after the prefix length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct PolicyKey {
    pub class: u32,
    /// [`crate::identity::ANY`]: whoever.
    pub identity: u32,
    /// A [`Direction`].
    pub direction: u8,
    /// [`protocol::ANY`]: whichever.
    pub protocol: u8,
    /// Big-endian, because a prefix begins at the most significant bit.
    pub port: [u8; 2],
}

impl PolicyKey {
    /// Bits before the port: these always match in full.
    pub const FIXED_BITS: u32 = 80;
    /// Bits of a whole key, i.e. of an exact port.
    pub const BITS: u32 = 96;

    #[inline(always)]
    pub const fn new(class: u32, identity: u32, direction: Direction, protocol: u8, port: u16) -> Self {
        Self { class, identity, direction: direction as u8, protocol, port: port.to_be_bytes() }
    }
}

/// Value of `POLICY`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PolicyValue {
    /// The rule, as the agent numbered it.
    pub policy_id: u32,
    /// [`PolicyValue::DENY`] or [`PolicyValue::ALLOW`]; what is neither, denies.
    pub action: u32,
}

impl PolicyValue {
    pub const DENY: u32 = 0;
    pub const ALLOW: u32 = 1;

    #[inline(always)]
    pub const fn allows(&self) -> bool {
        self.action == Self::ALLOW
    }
}

/// What the verdict reads. In the kernel these are BPF maps, in tests and in the agent plain collections.
pub trait PolicyMaps {
    fn class(&self, class: u32) -> Option<Class>;
    /// The entry with the longest prefix around the key; the key's port is complete.
    fn rule(&self, key: &PolicyKey) -> Option<PolicyValue>;
    /// That of the address itself, else of the narrowest CIDR around it; [`crate::identity::ANY`] if there is
    /// none. (Not an `Option<u32>`: the verifier refuses to see its value copied where there is none.)
    fn identity(&self, addr: &crate::Addr) -> u32;
}

/// Who asks what of whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub class: u32,
    pub direction: Direction,
    /// The peer's, never [`crate::identity::ANY`].
    pub identity: u32,
    pub protocol: u8,
    /// The port that the flow goes to, whichever side it is on; 0 for ICMP.
    pub port: u16,
}

/// The answer, and the rule it rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    pub reason: Reason,
    pub policy_id: u32,
}

impl Ruling {
    #[inline(always)]
    pub const fn pass(policy_id: u32) -> Self {
        Self { reason: Reason::Forwarded, policy_id }
    }

    #[inline(always)]
    pub const fn drop(reason: Reason, policy_id: u32) -> Self {
        Self { reason, policy_id }
    }

    #[inline(always)]
    pub const fn passes(&self) -> bool {
        matches!(self.reason, Reason::Forwarded)
    }
}

/// Rules on a new flow, as the module's tables say.
#[inline(always)]
pub fn judge<M: PolicyMaps>(maps: &M, question: &Question) -> Ruling {
    let Some(class) = maps.class(question.class) else {
        return Ruling::drop(Reason::PolicyMissing, 0);
    };
    let mut key = PolicyKey::new(
        question.class,
        question.identity,
        question.direction,
        question.protocol,
        question.port,
    );
    // Not an Option<u32>, see `PolicyMaps::identity`.
    let (mut allowed, mut allowed_by) = (false, 0);
    let mut place = 0;
    while place < 4 {
        // The places of the module's first table.
        key.identity = if place < 2 { question.identity } else { crate::identity::ANY };
        key.protocol = if place & 1 == 0 { question.protocol } else { protocol::ANY };
        match maps.rule(&key) {
            Some(rule) if !rule.allows() => return Ruling::drop(Reason::PolicyDenied, rule.policy_id),
            Some(rule) if !allowed => (allowed, allowed_by) = (true, rule.policy_id),
            Some(_) => {}
            None => {}
        }
        place += 1;
    }
    let (denies, policy_id) = class.default_deny(question.direction);
    if allowed {
        Ruling::pass(allowed_by)
    } else if denies {
        Ruling::drop(Reason::DefaultDeny, policy_id)
    } else {
        Ruling::pass(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_here_has_implicit_padding() {
        assert_eq!(size_of::<Class>(), 3 * 4);
        assert_eq!(size_of::<PolicyKey>() as u32 * 8, PolicyKey::BITS);
        assert_eq!(core::mem::offset_of!(PolicyKey, port) as u32 * 8, PolicyKey::FIXED_BITS);
        assert_eq!(size_of::<PolicyValue>(), 2 * 4);
    }
}
