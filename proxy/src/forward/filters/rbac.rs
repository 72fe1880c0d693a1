//! Who may ask for what.

use super::{Exchange, Outcome};
use crate::{
    forward::reply::Reply,
    policy::{Facts, Rbac, decide},
    telemetry::AccessDenial,
};

pub(super) fn ask(exchange: &mut Exchange<'_>, rbac: &Rbac) -> Outcome {
    let stats = &exchange.chain.stats;
    let request = exchange.request.head.view();
    let connection = &exchange.client.connection;
    let facts = Facts {
        request: Some(&request),
        metadata: Some(&exchange.metadata),
        client: exchange.remote(),
        connection,
    };
    let verdict = decide([rbac], facts);
    for policy in &verdict.audited {
        AccessDenial::audit(&exchange.chain.listener, connection, policy);
    }
    verdict.would_deny.iter().for_each(|policy| stats.shadow_denied.count(policy));
    let policy = verdict.denied?;
    stats.denied.count(&policy);
    if let Some(record) = &mut exchange.record {
        record.denied_by = Some(policy);
    }
    Some(Reply::access_denied().response(exchange.request.grpc))
}
