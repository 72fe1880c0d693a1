//! A request on its way through the HTTP filters of its chain.

mod rbac;

use std::sync::Arc;

use http::Response;

use super::{
    body::ResponseBody,
    service::{Client, HttpChain, Routed, route},
};
use crate::{
    config::{FilterKind, RouteSettings},
    route::RouteTable,
    telemetry::AccessRecord,
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
}

impl<'a> Exchange<'a> {
    pub(super) fn new(
        chain: &'a HttpChain,
        client: &'a Client,
        table: Arc<RouteTable>,
        request: Routed,
        record: Option<&'a mut AccessRecord>,
    ) -> Self {
        Self { chain, client, table, request, record }
    }

    /// A filter changed what routes are chosen by.
    #[allow(dead_code)]
    fn route_again(&mut self) {
        self.request.picked = self.table.pick(&self.request.head.view(), &mut rand::rng());
    }
}

/// What a filter makes of a request: nothing more, or an answer, which ends its way.
type Outcome = Option<Response<ResponseBody>>;

/// Serves a request by way of the filters.
pub(super) async fn serve(mut exchange: Exchange<'_>) -> Response<ResponseBody> {
    match pass(&mut exchange).await {
        Some(response) => response,
        None => route(exchange.chain, exchange.client, exchange.request, exchange.record).await,
    }
}

async fn pass(exchange: &mut Exchange<'_>) -> Outcome {
    for filter in &exchange.chain.manager.filters {
        // Filters may change the route, and so which settings count for the next.
        let picked = exchange.request.picked.clone();
        let route = picked.as_ref().map(|picked| picked.filters());
        let Some((kind, settings)) = filter.on(route) else { continue };
        let answer = match kind {
            FilterKind::Rbac(rbac) => match settings {
                Some(RouteSettings::Rbac(instead)) => rbac::ask(exchange, instead),
                None => rbac::ask(exchange, rbac),
            },
        };
        if answer.is_some() {
            return answer;
        }
    }
    None
}
