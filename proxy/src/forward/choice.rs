//! What the choice of an endpoint goes by: the route's word, and the request's.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use http::{HeaderValue, Response, header};

use super::{attempts::Job, body::ResponseBody, reply::Reply};
use crate::{
    config::Priority,
    outbound::{Ask, Host, UpstreamCluster},
    route::{
        Destination,
        hash::{Hashable, hash},
    },
};

/// See the module.
pub(super) struct Choice<'a> {
    /// Which circuit breakers count.
    pub(super) priority: Priority,
    hash: Option<u64>,
    cookie: Option<HeaderValue>,
    named: Option<SocketAddr>,
    destination: &'a Destination,
}

impl<'a> Choice<'a> {
    pub(super) fn of(job: &Job<'a>) -> Self {
        let choice = &job.forward.choice;
        let connection = if choice.hash.is_empty() { String::new() } else { job.head.remote.to_string() };
        let hashable = Hashable {
            headers: &job.head.headers,
            path_and_query: job.head.path.as_str(),
            client: job.head.remote.ip(),
            connection: &connection,
        };
        let hashed = hash(&choice.hash, hashable);
        Self {
            priority: choice.priority,
            hash: hashed.hash,
            cookie: hashed.cookie,
            named: named(job),
            destination: job.destination,
        }
    }

    /// An endpoint; not one of those that were tried, while another is left.
    pub(super) fn host(&self, cluster: &UpstreamCluster, tried: &[Arc<Host>]) -> Option<Arc<Host>> {
        cluster.choose_for(&Ask {
            hash: self.hash,
            wanted: self.destination.wanted.as_deref(),
            // One that failed is not asked for twice.
            named: self.named.filter(|_| tried.is_empty()),
            tried,
        })
    }

    /// What the client needs to come back to the same endpoint.
    pub(super) fn tell(self, response: &mut Response<ResponseBody>) {
        if let Some(cookie) = self.cookie {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
    }
}

/// The answer to a request that the control plane wants turned away.
pub(super) fn dropped(cluster: &UpstreamCluster) -> Option<Reply> {
    let category = cluster.drops()?;
    cluster.stats.dropped.fetch_add(1, Ordering::Relaxed);
    tracing::debug!(cluster = %cluster.config.name, category, "request is dropped");
    Some(Reply::drop_overload())
}

/// The endpoint that a header asks for, where the cluster believes it (`override_host`).
fn named(job: &Job<'_>) -> Option<SocketAddr> {
    let mut headers = job.cluster.config.balancing.override_headers.iter();
    headers.find_map(|name| {
        let text = job.head.headers.get(name)?.to_str().ok()?;
        // The first of a list: what follows is for retries, which this proxy chooses itself.
        text.split(',').next()?.trim().parse().ok()
    })
}
