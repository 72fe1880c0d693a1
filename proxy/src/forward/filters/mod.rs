//! A request on its way through the HTTP filters of its chain.

mod authz;
mod buffer;
mod cors;
mod fault;
mod jwt;
mod local_limit;
mod rate_limit;
mod rbac;
mod service;
mod values;

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Response};

use super::{
    body::ResponseBody,
    scene::Scene,
    service::{Client, HttpChain, Routed, note, route},
};
use crate::{
    config::{FilterKind, RouteSettings},
    format::Facts,
    policy::{
        Metadata,
        limit::{Descriptor, LimitRule, Subject, descriptors},
    },
    route::RouteTable,
    telemetry::{AccessRecord, Flag},
};

/// A request, and what filters have found out about it.
#[derive(Debug)]
pub(super) struct Exchange<'a> {
    chain: &'a HttpChain,
    client: &'a Client,
    /// The routes of the moment when it came.
    table: Arc<RouteTable>,
    request: Routed,
    record: Option<&'a mut AccessRecord>,
    metadata: Metadata,
    /// For the answer, whoever gives it; whether they are added to what is there.
    response_headers: Vec<(HeaderName, HeaderValue, bool)>,
    /// What filters did, for the log.
    flag: Flag,
}

impl<'a> Exchange<'a> {
    /// What is known of the request, for texts with operators.
    fn facts(&self) -> Facts<'_> {
        let route = self.request.picked.as_ref().map_or("", |picked| &picked.route.name);
        Scene { connection: &self.client.connection, route, cluster: None }.facts(&self.request.head)
    }

    pub(super) fn new(
        chain: &'a HttpChain,
        client: &'a Client,
        table: Arc<RouteTable>,
        request: Routed,
        record: Option<&'a mut AccessRecord>,
    ) -> Self {
        let (metadata, response_headers) = Default::default();
        Self { chain, client, table, request, record, metadata, response_headers, flag: Flag::None }
    }

    /// What the request is counted as: by these rules, or by those of its route and virtual host. `include`: whether both
    /// of those count, where the filter's settings say so.
    fn descriptors(
        &self,
        rules: Option<&[LimitRule]>,
        stage: u32,
        include: Option<bool>,
    ) -> Vec<(Descriptor, Option<u64>)> {
        let Some(picked) = &self.request.picked else { return vec![] };
        let limits = &picked.route.limits;
        let with_vhost = limits.route.is_empty() || include.unwrap_or(limits.include_vhost);
        let of_route = limits.route.iter().chain(limits.vhost.iter().filter(|_| with_vhost));
        let request = self.request.head.view();
        let subject = Subject {
            request: &request,
            client: self.remote().ip(),
            cluster: picked.destination().map_or("", |d| &*d.cluster),
            metadata: &self.metadata,
        };
        match rules {
            Some(rules) => descriptors(rules, stage, subject),
            None => descriptors(of_route, stage, subject),
        }
    }

    /// A header for the answer, whoever gives it.
    fn answer_with(&mut self, name: HeaderName, value: HeaderValue, append: bool) {
        self.response_headers.push((name, value, append));
    }

    /// The client behind the proxies that are trusted.
    fn remote(&self) -> std::net::SocketAddr {
        self.request.head.remote
    }

    /// A filter changed what routes are chosen by.
    fn route_again(&mut self) {
        self.request.picked = self.table.pick(&self.request.head.view(), &mut rand::rng());
    }
}

/// What a filter makes of a request: nothing more, or an answer, which ends its way.
type Outcome = Option<Response<ResponseBody>>;

/// Serves a request by way of the filters.
pub(super) async fn serve(mut exchange: Exchange<'_>) -> Response<ResponseBody> {
    let answer = pass(&mut exchange).await;
    let Exchange { chain, client, request, record, response_headers, flag, .. } = exchange;
    let mut response = match answer {
        Some(response) => {
            if flag != Flag::None {
                note(record, flag);
            }
            response
        }
        None => route(chain, client, request, record).await,
    };
    for (name, value, append) in response_headers {
        if append {
            response.headers_mut().append(name, value);
        } else {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

async fn pass(exchange: &mut Exchange<'_>) -> Outcome {
    for filter in &exchange.chain.manager.filters {
        // Filters may change the route, and so which settings count for the next.
        let picked = exchange.request.picked.clone();
        let route = picked.as_ref().map(|picked| picked.filters());
        let Some((kind, settings)) = filter.on(route) else { continue };
        let answer = one(exchange, kind, settings).await;
        if answer.is_some() {
            return answer;
        }
    }
    None
}

async fn one(exchange: &mut Exchange<'_>, kind: &FilterKind, settings: Option<&RouteSettings>) -> Outcome {
    match (kind, settings) {
        (FilterKind::Rbac(_), Some(RouteSettings::Rbac(rbac))) | (FilterKind::Rbac(rbac), _) => {
            rbac::ask(exchange, rbac)
        }
        (FilterKind::Jwt(authn), Some(RouteSettings::Jwt(route))) => {
            jwt::check(exchange, authn, Some(route)).await
        }
        (FilterKind::Jwt(authn), _) => jwt::check(exchange, authn, None).await,
        (FilterKind::LocalLimit(_), Some(RouteSettings::LocalLimit(limit)))
        | (FilterKind::LocalLimit(limit), _) => local_limit::check(exchange, limit),
        (FilterKind::Cors, Some(RouteSettings::Cors(policy))) => cors::check(exchange, policy),
        (FilterKind::Cors, _) => None,
        (FilterKind::Fault(_), Some(RouteSettings::Fault(fault))) | (FilterKind::Fault(fault), _) => {
            fault::inject(exchange, fault).await
        }
        (FilterKind::Authz(authz), Some(RouteSettings::Authz(route))) => {
            authz::check(exchange, authz, Some(route)).await
        }
        (FilterKind::Authz(authz), _) => authz::check(exchange, authz, None).await,
        (FilterKind::GlobalLimit(limit), Some(RouteSettings::GlobalLimit(route))) => {
            rate_limit::check(exchange, limit, Some(route)).await
        }
        (FilterKind::GlobalLimit(limit), _) => rate_limit::check(exchange, limit, None).await,
        (FilterKind::Buffer(_), Some(RouteSettings::Buffer(None))) => None,
        (FilterKind::Buffer(_), Some(RouteSettings::Buffer(Some(max)))) | (FilterKind::Buffer(max), _) => {
            buffer::wait(exchange, *max).await
        }
    }
}
