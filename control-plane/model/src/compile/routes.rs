//! HTTPRoutes on the service ports they name, in the order in which they are to be tried.

use std::cmp::Reverse;

use super::{Input, MeshRoute, MeshService, MeshServicePort};
use crate::resource::{
    AppProtocol, HttpRoute, HttpRouteMatch, HttpRouteRule, Kind, NamespacedName, ObjectKey, ParentRef,
    PathMatch, Protocol,
};

/// The Gateway API's order of precedence (HTTPRouteRule.matches): the least is tried first. Among hostnames the
/// exact come before the wildcards, and the longer before the shorter. Where regular expressions come is left to the
/// implementation: after every prefix, as in Istio (`getURIRank`).
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Precedence {
    hostname: (u8, Reverse<usize>),
    path: (u8, Reverse<usize>),
    without_method: bool,
    headers: Reverse<usize>,
    query: Reverse<usize>,
    created: u64,
    name: NamespacedName,
    rule: usize,
    one_match: usize,
}

/// Puts routes on the ports of a service that they name as their parent.
pub(super) fn attach(input: &Input, service: &mut MeshService, routes: &[&HttpRoute]) {
    for port in service.ports.iter_mut().filter(|port| speaks_http(port)) {
        let mut found: Vec<(Precedence, MeshRoute)> = Vec::new();
        for route in routes {
            let key = ObjectKey { kind: Kind::HttpRoute, name: route.meta.name.clone() };
            // A route whose age is unknown counts as the youngest.
            let created = input.object_meta.get(&key).map_or(u64::MAX, |meta| meta.created_unix);
            let here = |parent: &&ParentRef| {
                parent.service == service.name && parent.port.is_none_or(|wanted| wanted == port.port)
            };
            for _ in route.parents.iter().filter(here) {
                found.extend(split(route, created));
            }
        }
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        port.routes = found.into_iter().map(|(_, route)| route).collect();
    }
}

fn speaks_http(port: &MeshServicePort) -> bool {
    port.protocol == Protocol::Tcp && port.app_protocol != AppProtocol::Tcp
}

/// One entry per match and hostname: each has a precedence of its own.
fn split(route: &HttpRoute, created: u64) -> Vec<(Precedence, MeshRoute)> {
    let hostnames: Vec<Option<&String>> =
        if route.hostnames.is_empty() { vec![None] } else { route.hostnames.iter().map(Some).collect() };
    let mut out = Vec::new();
    for hostname in hostnames {
        for (i, rule) in route.rules.iter().enumerate() {
            for (j, one_match) in rule.matches.iter().enumerate() {
                let precedence = Precedence {
                    hostname: hostname_rank(hostname),
                    path: path_rank(&one_match.path),
                    without_method: one_match.method.is_none(),
                    headers: Reverse(one_match.headers.len()),
                    query: Reverse(one_match.query.len()),
                    created,
                    name: route.meta.name.clone(),
                    rule: i,
                    one_match: j,
                };
                out.push((precedence, mesh_route(route, i, rule, one_match, hostname)));
            }
        }
    }
    out
}

fn mesh_route(
    route: &HttpRoute,
    index: usize,
    rule: &HttpRouteRule,
    one_match: &HttpRouteMatch,
    hostname: Option<&String>,
) -> MeshRoute {
    MeshRoute {
        provenance: format!("httproute/{}#rules[{index}]", route.meta.name),
        hostnames: hostname.into_iter().cloned().collect(),
        rule: HttpRouteRule { matches: vec![one_match.clone()], ..rule.clone() },
    }
}

fn hostname_rank(hostname: Option<&String>) -> (u8, Reverse<usize>) {
    match hostname {
        Some(name) if !name.starts_with('*') => (0, Reverse(name.len())),
        Some(wildcard) => (1, Reverse(wildcard.len())),
        None => (2, Reverse(0)),
    }
}

fn path_rank(path: &PathMatch) -> (u8, Reverse<usize>) {
    match path {
        PathMatch::Exact(path) => (0, Reverse(path.len())),
        PathMatch::Prefix(prefix) => (1, Reverse(prefix.len())),
        PathMatch::Regex(pattern) => (2, Reverse(pattern.len())),
    }
}
