//! A whole route configuration, ready to be asked.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue};
use rand::Rng;
use serde::Serialize;

use super::{HeaderOps, HostIndex, PathMatch, RequestView, RouteMatch, UpstreamChoice, rewrite::split_port};
use crate::{
    balance::Criteria,
    config::{RouteFilters, Substitution},
    policy::{Fraction, limit::RouteLimits},
    retry::RetryPolicy,
};

/// `RouteConfiguration`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouteTable {
    /// Name of the resource.
    pub name: String,
    /// In the order of the resource.
    pub vhosts: Vec<VirtualHost>,
    /// Whether `a:80` is looked up as `a`.
    pub ignore_port: bool,
    /// Domains to positions in `vhosts`.
    #[serde(skip)]
    pub index: HostIndex,
}

/// Routes of some domains.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VirtualHost {
    /// For people.
    pub name: String,
    /// As in the resource.
    pub domains: Vec<String>,
    /// Who is sent to `https`.
    pub require_tls: RequireTls,
    /// The first that matches is taken.
    pub routes: Vec<Arc<Route>>,
}

/// Whose requests without TLS are answered with a redirect to `https`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RequireTls {
    /// Nobody's.
    #[default]
    Nobody,
    /// Those that are not from one's own clients (`x-envoy-internal`).
    Strangers,
    /// Everybody's.
    Everybody,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Route {
    /// For people; may be empty.
    pub name: String,
    /// Its conditions.
    pub matches: RouteMatch,
    /// What it does.
    pub action: Action,
    /// Settings of filters.
    pub filters: Arc<RouteFilters>,
    /// What its requests are counted as.
    pub limits: RouteLimits,
}

/// What a route does.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Sends the request on.
    Forward(Box<Forward>),
    /// Answers with a `location`.
    Redirect {
        /// Where to.
        to: Redirect,
        /// Changes to the answer's headers.
        response: HeaderOps,
    },
    /// Answers itself.
    Direct {
        /// The answer.
        answer: Direct,
        /// Changes to the answer's headers.
        response: HeaderOps,
    },
}

/// `DirectResponseAction`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Direct {
    /// HTTP status.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

/// `RedirectAction`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// Another scheme.
    pub scheme: Option<String>,
    /// Another host.
    pub host: Option<String>,
    /// Another port.
    pub port: Option<u16>,
    /// Another path.
    pub path: Option<PathRedirect>,
    /// Whether the query is left out.
    pub strip_query: bool,
}

/// The path of a redirect.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathRedirect {
    /// All of it.
    Full(String),
    /// Only what the route matched.
    Prefix(String),
    /// Every match of an expression.
    Regex(Substitution),
}

/// A cluster that requests of a route go to, with the header changes of all levels: destination, route, virtual
/// host, table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Destination {
    /// Name of the cluster. Empty: `cluster_header` says it.
    pub cluster: Arc<str>,
    /// The request's header that names the cluster.
    #[serde(skip)]
    pub cluster_header: Option<HeaderName>,
    /// Share in the sum of the weights.
    pub weight: u32,
    /// Changes to the request's headers.
    pub request: HeaderOps,
    /// Changes to the answer's headers.
    pub response: HeaderOps,
    /// Another host for this destination only.
    #[serde(skip)]
    pub host_rewrite: Option<HeaderValue>,
    /// Metadata that the endpoint must have.
    pub wanted: Option<Criteria>,
    /// Settings of filters.
    pub filters: Arc<RouteFilters>,
}

/// `RouteAction`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forward {
    /// At least one, with a sum of weights above zero.
    pub destinations: Vec<Destination>,
    /// Sum of the weights.
    pub total_weight: u64,
    /// From the end of the request to the end of the answer. `None`: for ever.
    pub timeout: Option<Duration>,
    /// Without any byte in either direction. `None`: the listener's.
    pub idle_timeout: Option<Duration>,
    /// Protocols that may be switched to, lower case; `false`: may not, whatever the listener says.
    pub upgrades: Vec<(String, bool)>,
    /// `CONNECT` is answered here, and the endpoint gets the bytes.
    pub terminates_connect: bool,
    /// Further attempts.
    pub retry: Option<Arc<RetryPolicy>>,
    /// From the beginning of the request to the end of the answer. `None`: the listener's.
    pub max_stream: Option<Duration>,
    /// See there.
    pub grpc_timeout: Option<GrpcTimeout>,
    /// Copies of requests.
    pub mirrors: Vec<Mirror>,
    /// Replaces what the route matched.
    pub prefix_rewrite: Option<String>,
    /// Replaces what the expression matches.
    pub regex_rewrite: Option<Substitution>,
    /// Another host.
    pub host_rewrite: Option<HostRewrite>,
    /// Whether the former host goes into `x-forwarded-host`.
    pub append_x_forwarded_host: bool,
    /// Status when the cluster is unknown: 404 or 503.
    pub cluster_not_found_status: u16,
    /// How the endpoint is chosen.
    pub choice: UpstreamChoice,
    /// `x-envoy-attempt-count` in the request.
    pub attempt_count_in_request: bool,
    /// `x-envoy-attempt-count` in the answer.
    pub attempt_count_in_response: bool,
}

/// Where another host is taken from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HostRewrite {
    /// This one.
    Literal(String),
    /// A header of the request.
    Header(String),
    /// The path, without its query, after this.
    Path(Substitution),
}

/// What is made of `grpc-timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct GrpcTimeout {
    /// The most that a client gets. `None`: what it asks for.
    pub max: Option<Duration>,
    /// Taken off, so that the client hears of it in time.
    pub offset: Duration,
}

impl GrpcTimeout {
    /// The time of a request; `None`: for ever. A client that says nothing gets the most that is given.
    pub fn limit(&self, headers: &HeaderMap) -> Option<Duration> {
        let asked = headers.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(grpc_timeout);
        let limit = match (asked, self.max) {
            (Some(asked), Some(max)) => Some(asked.min(max)),
            (asked, max) => asked.or(max),
        }?;
        // Something has to be left.
        Some(limit.checked_sub(self.offset).filter(|left| !left.is_zero()).unwrap_or(limit))
    }
}

/// At most eight digits and a unit (gRPC over HTTP/2).
fn grpc_timeout(text: &str) -> Option<Duration> {
    let unit = text.char_indices().next_back()?;
    let digits =
        text.get(..unit.0).filter(|d| (1..=8).contains(&d.len()) && d.bytes().all(|b| b.is_ascii_digit()))?;
    let number: u64 = digits.parse().ok()?;
    Some(match unit.1 {
        'H' => Duration::from_secs(number * 3600),
        'M' => Duration::from_secs(number * 60),
        'S' => Duration::from_secs(number),
        'm' => Duration::from_millis(number),
        'u' => Duration::from_micros(number),
        'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// `RequestMirrorPolicy`: a copy of requests is sent elsewhere, and its answer is not waited for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mirror {
    /// Name of the cluster. Empty: `cluster_header` says it.
    pub cluster: Arc<str>,
    /// The request's header that names the cluster.
    #[serde(skip)]
    pub cluster_header: Option<HeaderName>,
    /// Of which requests.
    pub fraction: Fraction,
    /// Whether `-shadow` is added to the host.
    pub shadow_host: bool,
    /// Another host.
    #[serde(skip)]
    pub host: Option<HeaderValue>,
}

/// The route that a request takes, and which of its destinations.
#[derive(Debug, Clone)]
pub struct Picked {
    /// It is this request's, even when the table is replaced meanwhile.
    pub route: Arc<Route>,
    /// Position of the destination; 0 for routes that send nothing on.
    pub destination: usize,
}

impl Picked {
    /// The destination, if the route has any.
    pub fn destination(&self) -> Option<&Destination> {
        match &self.route.action {
            Action::Forward(forward) => forward.destinations.get(self.destination),
            Action::Redirect { .. } | Action::Direct { .. } => None,
        }
    }

    /// Settings of filters.
    pub fn filters(&self) -> &RouteFilters {
        self.destination().map_or(&self.route.filters, |destination| &destination.filters)
    }
}

impl Forward {
    /// Chooses a destination by weight: its position.
    pub fn draw(&self, rng: &mut impl Rng) -> usize {
        if self.destinations.len() < 2 {
            return 0;
        }
        let mut ticket = rng.random_range(0..self.total_weight.max(1));
        for (at, destination) in self.destinations.iter().enumerate() {
            match ticket.checked_sub(destination.weight.into()) {
                Some(left) => ticket = left,
                None => return at,
            }
        }
        0
    }
}

static TO_HTTPS: LazyLock<Arc<Route>> = LazyLock::new(|| {
    let to = Redirect {
        status: 301,
        scheme: Some("https".to_owned()),
        host: None,
        port: None,
        path: None,
        strip_query: false,
    };
    Arc::new(Route {
        name: String::new(),
        matches: RouteMatch {
            path: PathMatch::Prefix("/".to_owned()),
            case_sensitive: true,
            headers: vec![],
            query: vec![],
            cookies: vec![],
            grpc: false,
            fraction: None,
        },
        action: Action::Redirect { to, response: HeaderOps::default() },
        filters: Arc::default(),
        limits: RouteLimits::default(),
    })
});

impl RouteTable {
    /// The route that a request takes. `ticket` is a random number.
    pub fn find(&self, request: &RequestView<'_>, ticket: u64) -> Option<&Arc<Route>> {
        let host = if self.ignore_port { split_port(request.authority).0 } else { request.authority };
        let vhost = self.vhosts.get(self.index.find(host)?)?;
        let internal = || request.headers.get("x-envoy-internal").is_some_and(|v| v == "true");
        let required = match vhost.require_tls {
            RequireTls::Nobody => false,
            RequireTls::Strangers => !internal(),
            RequireTls::Everybody => true,
        };
        if required && request.scheme != "https" {
            return Some(&TO_HTTPS);
        }
        vhost.routes.iter().find(|route| route.matches.matches(request, ticket))
    }

    /// The route that a request takes, with a destination.
    pub fn pick(&self, request: &RequestView<'_>, rng: &mut impl Rng) -> Option<Picked> {
        let route = self.find(request, rng.random())?.clone();
        let destination = match &route.action {
            Action::Forward(forward) => forward.draw(rng),
            Action::Redirect { .. } | Action::Direct { .. } => 0,
        };
        Some(Picked { route, destination })
    }

    /// Every cluster that a request could go to.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<str>> {
        self.vhosts.iter().flat_map(|v| &v.routes).flat_map(|route| {
            let destinations = match &route.action {
                Action::Forward(forward) => forward.destinations.as_slice(),
                Action::Redirect { .. } | Action::Direct { .. } => &[],
            };
            destinations.iter().map(|d| &d.cluster).filter(|cluster| !cluster.is_empty())
        })
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn a_grpc_timeout_is_taken_up_to_a_limit() {
        let limit = |text: &'static str, max: Option<u64>, offset: u64| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_static(text));
            let timeout =
                GrpcTimeout { max: max.map(Duration::from_secs), offset: Duration::from_millis(offset) };
            timeout.limit(&headers)
        };
        assert_eq!(limit("2S", None, 0), Some(Duration::from_secs(2)));
        assert_eq!(limit("2H", Some(60), 100), Some(Duration::from_millis(59_900)));
        assert_eq!(limit("50m", None, 100), Some(Duration::from_millis(50)));
        for wrong in ["", "S", "123456789S", "-1S", "1s", "1 S"] {
            assert_eq!(limit(wrong, Some(7), 0), Some(Duration::from_secs(7)), "{wrong}");
        }
    }

    #[test]
    fn weights_are_shares_of_their_sum_and_zero_is_never_taken() {
        let destination = |name: &str, weight| Destination {
            cluster: name.into(),
            cluster_header: None,
            weight,
            request: HeaderOps::default(),
            response: HeaderOps::default(),
            host_rewrite: None,
            wanted: None,
            filters: Arc::default(),
        };
        let forward = Forward {
            destinations: vec![destination("none", 0), destination("a", 9), destination("b", 1)],
            total_weight: 10,
            timeout: None,
            idle_timeout: None,
            upgrades: vec![],
            terminates_connect: false,
            retry: None,
            max_stream: None,
            grpc_timeout: None,
            mirrors: vec![],
            prefix_rewrite: None,
            regex_rewrite: None,
            host_rewrite: None,
            append_x_forwarded_host: false,
            cluster_not_found_status: 503,
            choice: UpstreamChoice::default(),
            attempt_count_in_request: false,
            attempt_count_in_response: false,
        };
        let mut rng = StdRng::seed_from_u64(7);
        let taken =
            (0..10_000).filter(|_| &*forward.destinations[forward.draw(&mut rng)].cluster == "b").count();
        assert!((900..1100).contains(&taken), "{taken}");
        assert!((0..1000).all(|_| &*forward.destinations[forward.draw(&mut rng)].cluster != "none"));
    }
}
