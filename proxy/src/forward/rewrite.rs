//! What a route changes of a request before it is sent on.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, uri::Authority};

use super::{request::Head, scene::Scene};
use crate::route::{Destination, Forward, HostRewrite, Route, rewrite_path};

const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The cluster that a request goes to: the destination's, or the one that the request names.
pub(super) fn cluster_name(
    cluster: &Arc<str>,
    header: Option<&HeaderName>,
    headers: &HeaderMap,
) -> Option<Arc<str>> {
    match header {
        None => Some(cluster.clone()),
        Some(name) => headers.get(name)?.to_str().ok().filter(|name| !name.is_empty()).map(Arc::from),
    }
}

pub(super) fn rewrite(
    head: &mut Head,
    route: &Route,
    forward: &Forward,
    destination: &Destination,
    scene: &Scene<'_>,
) {
    if let Some(authority) = host(head, forward, destination) {
        if forward.append_x_forwarded_host
            && let Ok(former) = HeaderValue::from_str(head.authority.as_str())
        {
            head.headers.append(X_FORWARDED_HOST, former);
        }
        head.authority = authority;
    }
    let values = destination.request.values(&scene.facts(head));
    destination.request.apply(&mut head.headers, values);
    let path = head.path.as_str();
    let new = match (&forward.prefix_rewrite, &forward.regex_rewrite) {
        (Some(prefix), _) => rewrite_path(&route.matches.path, prefix, path),
        (None, Some(substitution)) => {
            let (path, query) = path.split_at(path.find('?').unwrap_or(path.len()));
            Some(format!("{}{query}", substitution.apply(path)))
        }
        (None, None) => None,
    };
    // What is no path any more is not sent: a rewrite must not make a request into another.
    if let Some(path) = new.filter(|path| path.starts_with('/')).and_then(|path| path.parse().ok()) {
        head.path = path;
    }
}

fn host(head: &Head, forward: &Forward, destination: &Destination) -> Option<Authority> {
    if let Some(host) = &destination.host_rewrite {
        return Authority::try_from(host.as_bytes()).ok();
    }
    let host = match forward.host_rewrite.as_ref()? {
        HostRewrite::Literal(host) => return host.parse().ok(),
        HostRewrite::Header(name) => head.headers.get(name)?.to_str().ok()?.to_owned(),
        HostRewrite::Path(substitution) => {
            let path = head.path.path();
            substitution.apply(path)
        }
    };
    host.parse::<Authority>().ok().filter(|authority| !authority.as_str().contains('@'))
}
