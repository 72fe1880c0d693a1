//! Rules as plain data, and what they say of facts.

use std::{net::SocketAddr, sync::Arc};

use ipnet::IpNet;
use serde::Serialize;

use super::{Facts, MetadataTest};
use crate::{
    config::Text,
    route::{HeaderTest, RequestView},
};

/// What the policies do to whom they match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Permit; everybody else is denied.
    Allow,
    /// Deny; everybody else is permitted.
    Deny,
    /// Say so in the log; everybody is permitted.
    Log,
}

/// `envoy.config.rbac.v3.RBAC`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rules {
    #[allow(missing_docs)]
    pub action: Action,
    /// In the order of their names.
    pub policies: Vec<Policy>,
}

/// Matches when one of its permissions and one of its principals do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Policy {
    #[allow(missing_docs)]
    pub name: Arc<str>,
    /// What is asked for.
    pub permissions: Vec<Rule<Target>>,
    /// By whom.
    pub principals: Vec<Rule<Caller>>,
}

/// A condition made of conditions. Decoding limits the depth of messages, and so of this.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule<T> {
    /// Always.
    Any,
    /// All of them.
    And(Vec<Self>),
    /// One of them.
    Or(Vec<Self>),
    /// It does not.
    Not(Box<Self>),
    /// As it says.
    Test(T),
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// This end's address.
    Ip(IpNet),
    /// This end's port, between these or one of them.
    Ports(u16, u16),
    /// The server name of the TLS handshake.
    ServerName(Text),
    #[allow(missing_docs)]
    Request(RequestTest),
    #[allow(missing_docs)]
    Metadata(MetadataTest),
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Caller {
    /// Whoever has a certificate, or one with such a SPIFFE ID.
    Authenticated(Option<Text>),
    /// The client's address: of the other end, or as its PROXY header has it.
    Address(IpNet),
    /// The address of the client behind the proxies that are trusted.
    Client(IpNet),
    /// The address of the other end of the connection itself.
    DirectAddress(IpNet),
    #[allow(missing_docs)]
    Request(RequestTest),
    #[allow(missing_docs)]
    Metadata(MetadataTest),
}

/// A condition on an HTTP request.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestTest {
    #[allow(missing_docs)]
    Header(HeaderTest),
    /// The path without query and fragment.
    Path(Text),
}

impl Rules {
    /// The policy that wants it told, if one does.
    pub fn audits(&self, facts: Facts<'_>) -> Option<&Arc<str>> {
        if self.action != Action::Log {
            return None;
        }
        self.policies.iter().find(|policy| policy.matches(facts)).map(|policy| &policy.name)
    }

    /// None: it is permitted. Otherwise by which policy it is denied, or by none that would permit.
    pub fn denies(&self, facts: Facts<'_>) -> Option<Option<&Arc<str>>> {
        let matching = self.policies.iter().find(|policy| policy.matches(facts));
        match (self.action, matching) {
            (Action::Allow, Some(_)) | (Action::Deny, None) | (Action::Log, _) => None,
            (Action::Allow, None) => Some(None),
            (Action::Deny, Some(policy)) => Some(Some(&policy.name)),
        }
    }
}

impl Policy {
    fn matches(&self, facts: Facts<'_>) -> bool {
        self.permissions.iter().any(|rule| rule.holds(&|target| target.holds(facts)))
            && self.principals.iter().any(|rule| rule.holds(&|caller| caller.holds(facts)))
    }
}

impl<T> Rule<T> {
    fn holds(&self, test: &impl Fn(&T) -> bool) -> bool {
        match self {
            Self::Any => true,
            Self::And(all) => all.iter().all(|rule| rule.holds(test)),
            Self::Or(any) => any.iter().any(|rule| rule.holds(test)),
            Self::Not(rule) => !rule.holds(test),
            Self::Test(one) => test(one),
        }
    }
}

impl Target {
    fn holds(&self, Facts { connection, request, metadata, .. }: Facts<'_>) -> bool {
        match self {
            Self::Ip(block) => inside(block, connection.local),
            Self::Ports(first, last) => (*first..=*last).contains(&connection.local.port()),
            // Whoever asked for no name did not ask for the empty one.
            Self::ServerName(text) => {
                connection.server_name.as_deref().is_some_and(|name| text.matches(name))
            }
            Self::Request(test) => test.holds(request),
            Self::Metadata(test) => test.holds(metadata),
        }
    }
}

impl Caller {
    fn holds(&self, Facts { connection, client, request, metadata }: Facts<'_>) -> bool {
        match self {
            Self::Authenticated(wanted) => connection
                .peer
                .as_deref()
                .is_some_and(|peer| wanted.as_ref().is_none_or(|text| text.matches(peer))),
            Self::Address(block) => inside(block, connection.remote),
            Self::Client(block) => inside(block, client),
            Self::DirectAddress(block) => inside(block, connection.direct),
            Self::Request(test) => test.holds(request),
            Self::Metadata(test) => test.holds(metadata),
        }
    }
}

impl RequestTest {
    fn holds(&self, request: Option<&RequestView<'_>>) -> bool {
        let Some(request) = request else { return false };
        match self {
            Self::Header(test) => test.matches(request),
            Self::Path(text) => text.matches(request.path().split('#').next().unwrap_or_default()),
        }
    }
}

/// IPv4 is IPv4 also on a socket that writes it in IPv6's form.
fn inside(block: &IpNet, address: SocketAddr) -> bool {
    block.contains(&address.ip().to_canonical())
}
