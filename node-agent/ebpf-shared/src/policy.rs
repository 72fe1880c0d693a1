//! Policy as the kernel has it: resolved.
//!
//! The kernel knows no order of rules, no tiers, no "deny beats allow" and no audited policies. For each policy
//! *class* (endpoints whose policy is equal share one), each direction and each identity that a rule names, the agent
//! computes the whole function (protocol, port) → [`RuleValue`] beforehand (`node_agent::kernel::flatten`), and gives
//! equal functions one number, a *ruleset*. Identities that no rule of a class names all have the class's own functions:
//! one for workloads of the mesh, so that a rule about all of them costs no more than one about whoever, and one for others.
//!
//! | map | key | value | holds |
//! |---|---|---|---|
//! | `CLASSES` | class | [`Unnamed`] | the functions of whoever is not named; never changed under one number |
//! | `PEERS` | [`PeerKey`]: class, identity | [`Sides`] | the functions of an identity, where they are others; changed in place |
//! | `RULES` | [`RuleKey`]: ruleset, protocol, port | [`RuleValue`] | the functions; never changed under one number |
//!
//! A function that says the same of all traffic needs no ruleset: it is written into the reference to it
//! ([`RuleRef::uniform`]). So a new flow costs one or two hash lookups and at most one in a trie, whatever policy says.
//!
//! `RULES` is a longest-prefix trie over (ruleset, protocol, port). Every ruleset has an entry for all protocols, may have one
//! for all ports of a protocol, and a port range is a handful of prefixes (at most 30). ICMP has types and codes
//! where others have ports: `type << 8 | code`, so that a type is a prefix as well.
//!
//! ## Why one packet never meets a mixture
//!
//! What a packet is judged by is one entry of `PEERS`, or the absence of one and the entry of `CLASSES`. The first is
//! changed by one write, and the second never, so it does not matter in which order a program and the agent get there.
//! A ruleset is written before anything refers to it, and removed when no running program can have its number any more.

use crate::Reason;
use crate::redirect::Led;

/// Which way, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// Where the function for one direction is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct RuleRef {
    /// The number of a ruleset; from [`Self::UNIFORM`] on there is none, and the lowest byte is the verdict on everything.
    pub set: u32,
    /// What a verdict on everything rests on; else 0.
    pub policy_id: u32,
}

impl RuleRef {
    pub const UNIFORM: u32 = 1 << 31;

    /// The same for all traffic: one of the verdicts of [`RuleValue`].
    #[inline(always)]
    pub const fn uniform(verdict: u8, policy_id: u32) -> Self {
        Self { set: Self::UNIFORM | verdict as u32, policy_id }
    }

    /// What a ruleset says. Number 0 is none's: whoever has it gets nothing.
    #[inline(always)]
    pub const fn ruleset(set: u32) -> Self {
        Self { set, policy_id: 0 }
    }

    #[inline(always)]
    pub const fn is_uniform(&self) -> bool {
        self.set >= Self::UNIFORM
    }
}

/// Value of `PEERS`: the functions for both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Sides {
    pub ingress: RuleRef,
    pub egress: RuleRef,
}

impl Sides {
    /// Both ways everything.
    pub const ALLOW_ALL: Self = Self {
        ingress: RuleRef::uniform(RuleValue::ALLOW, 0),
        egress: RuleRef::uniform(RuleValue::ALLOW, 0),
    };

    #[inline(always)]
    pub const fn of(&self, direction: Direction) -> RuleRef {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

/// Value of `CLASSES`: the functions of whoever has no entry in `PEERS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Unnamed {
    /// Of who is no workload of the mesh.
    pub others: Sides,
    /// Of who is one: [`crate::identity::is_workload`].
    pub workloads: Sides,
}

impl Unnamed {
    /// The same for whoever it is.
    pub const fn alike(sides: Sides) -> Self {
        Self { others: sides, workloads: sides }
    }

    #[inline(always)]
    pub const fn of(&self, identity: u32) -> &Sides {
        if crate::identity::is_workload(identity) { &self.workloads } else { &self.others }
    }
}

/// Key of `PEERS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PeerKey {
    pub class: u32,
    /// The peer's.
    pub identity: u32,
}

/// Key of `RULES`, after the prefix length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct RuleKey {
    pub ruleset: u32,
    pub protocol: u8,
    /// Big-endian, because a prefix begins at the most significant bit.
    pub port: [u8; 2],
    pub padding: u8,
}

impl RuleKey {
    /// Bits of the ruleset's number: these always match in full, and alone for what nothing else is said of.
    pub const SET_BITS: u32 = 32;
    /// With the protocol.
    pub const PROTOCOL_BITS: u32 = 40;
    /// With the whole port.
    pub const BITS: u32 = 56;

    #[inline(always)]
    pub const fn new(ruleset: u32, protocol: u8, port: u16) -> Self {
        Self { ruleset, protocol, port: port.to_be_bytes(), padding: 0 }
    }
}

/// Value of `RULES`: what is said of some traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct RuleValue {
    /// [`Self::DENY`], [`Self::ALLOW`], [`Self::REDIRECT`] or [`Self::DEFAULT_DENY`]; what is none of them, denies.
    pub verdict: u8,
    /// [`Self::AUDIT`].
    pub flags: u8,
    /// For [`Self::REDIRECT`]: the slot of the proxy, see [`crate::redirect`].
    pub proxy: u16,
    /// The rule or default deny, as the agent numbered it; 0: none.
    pub policy_id: u32,
    /// With [`Self::AUDIT`]: what would have denied.
    pub audit_id: u32,
}

impl RuleValue {
    /// A rule denies it.
    pub const DENY: u8 = 0;
    /// A rule allows it, or nothing speaks against it.
    pub const ALLOW: u8 = 1;
    /// Only through a proxy of this node.
    pub const REDIRECT: u8 = 2;
    /// The class denies by default, and no rule allowed it.
    pub const DEFAULT_DENY: u8 = 3;

    /// Allowed, but audited policies would have denied it.
    pub const AUDIT: u8 = 1;

    #[inline(always)]
    pub const fn new(verdict: u8, policy_id: u32) -> Self {
        Self { verdict, flags: 0, proxy: 0, policy_id, audit_id: 0 }
    }

    /// What it means for a packet.
    #[inline(always)]
    pub const fn ruling(&self) -> Ruling {
        match self.verdict {
            Self::ALLOW if self.flags & Self::AUDIT != 0 => {
                Ruling { reason: Reason::Audited, policy_id: self.audit_id, proxy: 0 }
            }
            Self::ALLOW => Ruling::pass(self.policy_id),
            Self::DEFAULT_DENY => Ruling::drop(Reason::DefaultDeny, self.policy_id),
            Self::REDIRECT => {
                Ruling { reason: Reason::Redirected, policy_id: self.policy_id, proxy: self.proxy }
            }
            _ => Ruling::drop(Reason::PolicyDenied, self.policy_id),
        }
    }
}

/// What the verdict reads. In the kernel these are BPF maps, in tests and in the agent plain collections.
pub trait PolicyMaps {
    /// A number that goes up whenever anything changes that a flow of this class with this peer is judged by, after the
    /// change: see [`crate::epochs`].
    fn stamp(&self, class: u32, peer: &crate::Addr) -> u64;
    /// What a class says of an identity that has no entry in `PEERS`.
    fn unnamed(&self, key: &PeerKey) -> Option<Sides>;
    fn peer(&self, key: &PeerKey) -> Option<Sides>;
    /// The entry with the longest prefix around the key; the key's port is complete.
    fn rule(&self, key: &RuleKey) -> Option<RuleValue>;
    /// That of the address itself, else of the narrowest CIDR around it; [`crate::identity::ANY`] if there is
    /// none. (Not an `Option<u32>`: the verifier refuses to see its value copied where there is none.)
    fn identity(&self, addr: &crate::Addr) -> u32;
    /// That which the address has for flows that are there already, where it is another than for new ones;
    /// [`crate::identity::ANY`]: it is the same. So a connection outlives the DNS answer that it was made by.
    fn lingering(&self, addr: &crate::Addr) -> u32;
    /// The service that the packet goes to, if pods reach that by a proxy of the node only. Of what a pod sends.
    #[inline(always)]
    fn led(&self) -> Led {
        Led::NOWHERE
    }

    /// The same ruling. In the kernel, the verifier forgets here by which way it came about, and walks what follows once.
    #[inline(always)]
    fn forget_why(&self, ruling: Ruling) -> Ruling {
        ruling
    }
}

/// Who asks what of whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub class: u32,
    pub direction: Direction,
    /// The peer's, never [`crate::identity::ANY`].
    pub identity: u32,
    pub protocol: u8,
    /// The port that the flow goes to, whichever side it is on; ICMP: `type << 8 | code`.
    pub port: u16,
}

/// The answer, and the rule it rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Ruling {
    pub reason: Reason,
    pub policy_id: u32,
    /// With [`Reason::Redirected`]: the slot.
    pub proxy: u16,
}

impl Ruling {
    #[inline(always)]
    pub const fn pass(policy_id: u32) -> Self {
        Self { reason: Reason::Forwarded, policy_id, proxy: 0 }
    }

    #[inline(always)]
    pub const fn drop(reason: Reason, policy_id: u32) -> Self {
        Self { reason, policy_id, proxy: 0 }
    }

    #[inline(always)]
    pub const fn passes(&self) -> bool {
        self.reason.passes()
    }

    /// The same for an endpoint whose policy is only audited: what policy denies is told of, and passes. What is
    /// missing, forged or malformed does not.
    #[inline(always)]
    #[must_use]
    pub const fn audited(self) -> Self {
        match self.reason {
            Reason::DefaultDeny | Reason::PolicyDenied => Self { reason: Reason::Audited, ..self },
            _ => self,
        }
    }
}

/// Rules on a new flow, as the module says.
#[inline(always)]
pub fn judge<M: PolicyMaps>(maps: &M, question: &Question) -> Ruling {
    maps.forget_why(look(maps, question))
}

#[inline(always)]
fn look<M: PolicyMaps>(maps: &M, question: &Question) -> Ruling {
    let key = PeerKey { class: question.class, identity: question.identity };
    let sides = match maps.peer(&key) {
        Some(sides) => sides,
        None => match maps.unnamed(&key) {
            Some(sides) => sides,
            None => return Ruling::drop(Reason::PolicyMissing, 0),
        },
    };
    let by = sides.of(question.direction);
    if by.is_uniform() {
        return RuleValue::new(by.set as u8, by.policy_id).ruling();
    }
    match maps.rule(&RuleKey::new(by.set, question.protocol, question.port)) {
        Some(value) => value.ruling(),
        None => Ruling::drop(Reason::PolicyMissing, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_here_has_implicit_padding() {
        assert_eq!(size_of::<RuleRef>(), 2 * 4);
        assert_eq!(size_of::<Sides>(), 2 * size_of::<RuleRef>());
        assert_eq!(size_of::<Unnamed>(), 2 * size_of::<Sides>());
        assert_eq!(size_of::<PeerKey>(), 2 * 4);
        assert_eq!(size_of::<RuleKey>(), 4 + 1 + 2 + 1);
        assert_eq!(core::mem::offset_of!(RuleKey, protocol) as u32 * 8, RuleKey::SET_BITS);
        assert_eq!(core::mem::offset_of!(RuleKey, port) as u32 * 8, RuleKey::PROTOCOL_BITS);
        assert_eq!(core::mem::offset_of!(RuleKey, padding) as u32 * 8, RuleKey::BITS);
        assert_eq!(size_of::<RuleValue>(), 1 + 1 + 2 + 2 * 4);
    }

    #[test]
    fn what_no_value_says_is_denied() {
        assert!(!RuleValue::default().ruling().passes());
        assert!(!RuleValue::new(77, 1).ruling().passes());
        assert!(!RuleRef::default().is_uniform());
        assert!(RuleRef::uniform(RuleValue::DENY, 3).is_uniform());
    }

    #[test]
    fn only_what_policy_denies_is_audited() {
        for reason in Reason::ALL {
            let is_policy = matches!(reason, Reason::DefaultDeny | Reason::PolicyDenied);
            let passes = Ruling::drop(reason, 1).audited().passes();
            assert_eq!(passes, is_policy || reason.passes(), "{reason:?}");
        }
    }
}
