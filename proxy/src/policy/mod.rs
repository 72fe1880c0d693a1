//! Who may connect, and who may ask for what: Envoy's RBAC rules (`envoy.config.rbac.v3`). Pure: a decision is a
//! function of the rules, of what is known of the connection, and of the request where there is one.
//!
//! Rules that permit deny whom none of them matches; so no rules at all deny everybody. What can't be told of a
//! connection (no certificate, no server name) fits no condition on it.

pub mod authz;
mod cors;
mod fault;
mod fraction;
pub mod jwt;
pub mod limit;
mod metadata;
mod rules;
mod service;

pub use cors::{CorsPolicy, Crossing};
pub use fault::{Abort, AbortWith, DelayFor, Fault, Faults, Injection, Percentage};
pub use fraction::Fraction;
pub use metadata::{Metadata, MetadataTest, ValueTest};
pub use rules::{Action, Caller, Policy, RequestTest, Rule, Rules, Target};
pub use service::GrpcTarget;

use std::{net::SocketAddr, sync::Arc};

use serde::Serialize;

use crate::{outbound::Behalf, route::RequestView};

/// What is known of a client's connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// This end.
    pub local: SocketAddr,
    /// The client: the other end, or whom its PROXY header names.
    pub remote: SocketAddr,
    /// The other end itself.
    pub direct: SocketAddr,
    /// The SPIFFE ID of its certificate, if that was verified.
    pub peer: Option<String>,
    /// The server name that it asked for.
    pub server_name: Option<String>,
    /// What the way out takes over of it.
    pub behalf: Behalf,
}

/// What rules are about.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    #[allow(missing_docs)]
    pub connection: &'a Connection,
    /// The client behind the proxies that are trusted.
    pub client: SocketAddr,
    /// None: it is about the connection as such.
    pub request: Option<&'a RequestView<'a>>,
    /// What filters have found out.
    pub metadata: Option<&'a Metadata>,
}

impl<'a> Facts<'a> {
    /// Of a connection as such.
    pub fn of(connection: &'a Connection) -> Self {
        Self { connection, client: connection.remote, request: None, metadata: None }
    }
}

/// An RBAC filter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rbac {
    /// Stands in the logs for the policy, where it is none of them that denies.
    pub name: Arc<str>,
    /// None: it denies nothing.
    pub rules: Option<Rules>,
    /// What is tried out: its denials are counted and logged, and nothing else.
    pub shadow: Option<Rules>,
}

/// What several filters say together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Which policy denies, or which filter if it has none that permits. None: permitted.
    pub denied: Option<Arc<str>>,
    /// The same of the rules that are tried out.
    pub would_deny: Vec<Arc<str>>,
    /// Which policies want it told, with the action LOG.
    pub audited: Vec<Arc<str>>,
}

impl Rbac {
    /// Asks this filter.
    fn ask(&self, facts: Facts<'_>, verdict: &mut Verdict) {
        let denied = |rules: &Rules| rules.denies(facts).map(|by| by.unwrap_or(&self.name).clone());
        verdict.would_deny.extend(self.shadow.as_ref().and_then(denied));
        verdict.denied = self.rules.as_ref().and_then(denied);
        verdict.audited.extend(self.rules.as_ref().and_then(|rules| rules.audits(facts)).cloned());
    }
}

/// Asks one filter after the other until one denies.
pub fn decide<'a>(filters: impl IntoIterator<Item = &'a Rbac>, facts: Facts<'_>) -> Verdict {
    let mut verdict = Verdict::default();
    for filter in filters {
        filter.ask(facts, &mut verdict);
        if verdict.denied.is_some() {
            break;
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Text, TextMatch};

    const WEB: &str = "spiffe://west.example/ns/shop/sa/web";

    fn connection(remote: &str, peer: Option<&str>) -> Connection {
        Connection {
            local: "10.1.0.9:8080".parse().unwrap(),
            remote: SocketAddr::new(remote.parse().unwrap(), 40_000),
            direct: SocketAddr::new(remote.parse().unwrap(), 40_000),
            peer: peer.map(str::to_owned),
            server_name: Some("80.pay.shop.svc.mesh.local".to_owned()),
            behalf: Behalf::default(),
        }
    }

    fn named(id: &str) -> Rule<Caller> {
        Rule::Test(Caller::Authenticated(Some(Text::new(TextMatch::Exact(id.to_owned())))))
    }

    fn rules(action: Action, policies: Vec<(&str, Rule<Target>, Rule<Caller>)>) -> Rules {
        let policy = |(name, permission, principal): (&str, _, _)| Policy {
            name: name.into(),
            permissions: vec![permission],
            principals: vec![principal],
        };
        Rules { action, policies: policies.into_iter().map(policy).collect() }
    }

    fn filter(rules: Rules) -> Rbac {
        Rbac { name: "default-deny".into(), rules: Some(rules), shadow: None }
    }

    fn denied(filters: &[Rbac], connection: &Connection) -> Option<String> {
        decide(filters, Facts::of(connection)).denied.map(|by| by.to_string())
    }

    #[test]
    fn rules_that_permit_deny_whom_none_of_them_matches() {
        let only_web = [filter(rules(Action::Allow, vec![("web", Rule::Any, named(WEB))]))];
        assert_eq!(denied(&only_web, &connection("10.1.0.5", Some(WEB))), None);
        for peer in [Some("spiffe://west.example/ns/shop/sa/web2"), Some("spiffe://west.example"), None] {
            assert_eq!(denied(&only_web, &connection("10.1.0.5", peer)).as_deref(), Some("default-deny"));
        }
        let nobody = [filter(rules(Action::Allow, vec![]))];
        assert!(denied(&nobody, &connection("10.1.0.5", Some(WEB))).is_some(), "no rule permits nothing");
    }

    #[test]
    fn rules_that_deny_permit_whom_none_of_them_matches_and_say_which_it_was() {
        let not_web = [filter(rules(Action::Deny, vec![("no-web", Rule::Any, named(WEB))]))];
        assert_eq!(denied(&not_web, &connection("10.1.0.5", Some(WEB))).as_deref(), Some("no-web"));
        assert_eq!(denied(&not_web, &connection("10.1.0.5", None)), None);
        assert_eq!(denied(&[filter(rules(Action::Deny, vec![]))], &connection("10.1.0.5", None)), None);
    }

    #[test]
    fn every_filter_must_permit() {
        let deny = filter(rules(Action::Deny, vec![("no-web", Rule::Any, named(WEB))]));
        let allow = filter(rules(Action::Allow, vec![("all", Rule::Any, Rule::Any)]));
        let web = connection("10.1.0.5", Some(WEB));
        assert_eq!(denied(&[allow.clone(), deny.clone()], &web).as_deref(), Some("no-web"));
        assert_eq!(denied(&[deny, allow], &web).as_deref(), Some("no-web"));
        assert_eq!(denied(&[], &web), None);
    }

    #[test]
    fn what_is_tried_out_is_told_and_denies_nothing() {
        let shadow = Some(rules(Action::Allow, vec![]));
        let filters = [Rbac { name: "later".into(), rules: None, shadow }];
        let web = connection("10.1.0.5", Some(WEB));
        let verdict = decide(&filters, Facts::of(&web));
        assert_eq!(verdict, Verdict { would_deny: vec!["later".into()], ..Verdict::default() });
    }

    #[test]
    fn what_is_to_be_told_is_told_and_permitted() {
        let filters = [filter(rules(Action::Log, vec![("web", Rule::Any, named(WEB))]))];
        let verdict = decide(&filters, Facts::of(&connection("10.1.0.5", Some(WEB))));
        assert_eq!(verdict, Verdict { audited: vec!["web".into()], ..Verdict::default() });
        let verdict = decide(&filters, Facts::of(&connection("10.1.0.5", None)));
        assert_eq!(verdict, Verdict::default());
    }

    #[test]
    fn ports_addresses_and_names_are_compared_with_the_right_end() {
        let block = |text: &str| Rule::Test(Caller::DirectAddress(text.parse().unwrap()));
        let target = |text: &str| Rule::Test(Target::Ip(text.parse().unwrap()));
        let port = |first, last| Rule::Test(Target::Ports(first, last));
        let name = Rule::Test(Target::ServerName(Text::new(TextMatch::Prefix("80.pay.".to_owned()))));
        let allows = |permission: Rule<Target>, principal: Rule<Caller>, remote: &str| {
            let filters = [filter(rules(Action::Allow, vec![("x", permission, principal)]))];
            denied(&filters, &connection(remote, None)).is_none()
        };
        assert!(
            allows(port(8080, 8080), Rule::Any, "10.1.0.5")
                && !allows(port(8081, 9000), Rule::Any, "10.1.0.5")
        );
        assert!(allows(target("10.1.0.9/32"), Rule::Any, "10.1.0.5"));
        assert!(!allows(target("10.1.0.5/32"), Rule::Any, "10.1.0.5"), "the caller is not the destination");
        assert!(allows(name, Rule::Any, "10.1.0.5"));
        assert!(allows(Rule::Any, block("10.1.0.0/24"), "10.1.0.5"));
        assert!(allows(Rule::Any, block("10.1.0.0/24"), "::ffff:10.1.0.5"), "however the socket writes it");
        assert!(
            !allows(Rule::Any, block("10.1.0.0/24"), "10.1.1.5")
                && !allows(Rule::Any, block("::/0"), "10.1.0.5")
        );
        let but = Rule::And(vec![block("10.1.0.0/24"), Rule::Not(Box::new(block("10.1.0.5/32")))]);
        assert!(!allows(Rule::Any, but.clone(), "10.1.0.5") && allows(Rule::Any, but, "10.1.0.6"));
        let either = Rule::Or(vec![block("10.1.0.5/32"), block("10.1.0.6/32")]);
        assert!(allows(Rule::Any, either.clone(), "10.1.0.6") && !allows(Rule::Any, either, "10.1.0.7"));
    }

    #[test]
    fn whoever_asked_for_no_server_name_did_not_ask_for_an_empty_one() {
        let text = |pattern| Rule::Test(Target::ServerName(Text::new(pattern)));
        let nameless = Connection { server_name: None, ..connection("10.1.0.5", None) };
        let empty = Connection { server_name: Some(String::new()), ..nameless.clone() };
        for pattern in [TextMatch::Exact(String::new()), TextMatch::Suffix(String::new())] {
            let filters = [filter(rules(Action::Allow, vec![("x", text(pattern), Rule::Any)]))];
            assert!(denied(&filters, &nameless).is_some() && denied(&filters, &empty).is_none());
        }
    }

    #[test]
    fn a_condition_on_requests_does_not_hold_where_there_is_none() {
        let path = || RequestTest::Path(Text::new(TextMatch::Exact("/v1".to_owned())));
        let filters =
            [filter(rules(Action::Allow, vec![("v1", Rule::Test(Target::Request(path())), Rule::Any)]))];
        let web = connection("10.1.0.5", Some(WEB));
        assert!(denied(&filters, &web).is_some());
        let headers = http::HeaderMap::new();
        let permitted = |path_and_query| {
            let request = RequestView {
                method: "GET",
                scheme: "https",
                authority: "pay.shop",
                path_and_query,
                headers: &headers,
            };
            decide(&filters, Facts { request: Some(&request), ..Facts::of(&web) }).denied.is_none()
        };
        assert!(permitted("/v1") && permitted("/v1?a=b") && permitted("/v1#x") && !permitted("/v1/x"));
    }
}
