//! Who may ask for what.

use std::borrow::Cow;

use super::{Exchange, Outcome};
use crate::{
    forward::reply::Reply,
    policy::{Facts, Rbac, decide},
};

pub(super) fn ask(exchange: &mut Exchange<'_>, rbac: &Rbac) -> Outcome {
    let stats = &exchange.chain.stats;
    let request = exchange.request.head.view();
    // The client may be behind proxies that are trusted.
    let mut connection = Cow::Borrowed(&exchange.client.connection);
    if connection.remote != exchange.request.head.remote {
        connection.to_mut().remote = exchange.request.head.remote;
    }
    let verdict = decide([rbac], Facts { connection: &connection, request: Some(&request) });
    verdict.would_deny.iter().for_each(|policy| stats.shadow_denied.count(policy));
    let policy = verdict.denied?;
    stats.denied.count(&policy);
    if let Some(record) = &mut exchange.record {
        record.denied_by = Some(policy);
    }
    Some(Reply::access_denied().response(exchange.request.grpc))
}
