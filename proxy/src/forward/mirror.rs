//! Copies of requests that are sent elsewhere, and whose answers nobody waits for.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, uri::Authority};
use http_body_util::BodyExt;

use super::{
    attempts::{form, want},
    request::Head,
    rewrite::cluster_name,
};
use crate::{
    limits,
    outbound::{ClientBody, UpstreamBody, UpstreamCluster, acquire},
    route::{Forward, Mirror},
    shared::Shared,
};

/// Time for the answer to a copy where the route gives none.
const PATIENCE: Duration = Duration::from_secs(15);

/// Sends copies where the route wants them. For that a body is read in whole first; one that is too large is not copied.
pub(super) async fn send(
    shared: &Arc<Shared>,
    forward: &Forward,
    head: &Head,
    body: &mut ClientBody,
    http2_client: bool,
    idle: Option<Duration>,
) {
    let chosen: Vec<&Mirror> =
        forward.mirrors.iter().filter(|mirror| mirror.fraction.takes(&mut rand::rng())).collect();
    if chosen.is_empty() || head.switch.is_some() {
        return;
    }
    let whole = body.is_end_stream() || body.read(limits::MIRROR_BYTES, idle).await.unwrap_or(false);
    if !whole {
        tracing::debug!("a body is too large to be mirrored");
        return;
    }
    let bytes = body.seen(limits::MIRROR_BYTES);
    for mirror in chosen {
        let name = cluster_name(&mirror.cluster, mirror.cluster_header.as_ref(), &head.headers);
        let Some(cluster) = name.and_then(|name| shared.cluster(&name)) else { continue };
        let mut head = head.clone();
        if let Some(authority) = host(mirror, &head.authority) {
            head.authority = authority;
        }
        let limit = forward.timeout.unwrap_or(PATIENCE);
        let copy = copy(cluster, head, bytes.clone(), http2_client);
        tokio::spawn(async move {
            if tokio::time::timeout(limit, copy).await.is_err() {
                tracing::debug!("a mirrored request is not answered in time");
            }
        });
    }
}

fn host(mirror: &Mirror, authority: &Authority) -> Option<Authority> {
    let host = mirror.host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or(authority.as_str());
    if !mirror.shadow_host || mirror.host.is_some() {
        return host.parse().ok();
    }
    match crate::route::split_port(host) {
        (host, Some(port)) => format!("{host}-shadow:{port}").parse().ok(),
        (host, None) => format!("{host}-shadow").parse().ok(),
    }
}

async fn copy(cluster: Arc<UpstreamCluster>, head: Head, bytes: Bytes, http2_client: bool) {
    // The same limit as for requests that matter: a mirror must not take more.
    let Some(_permit) = cluster.requests.try_take() else { return };
    let Some(host) = cluster.choose(&[]) else { return };
    let _serving = cluster.begin(&host);
    let Ok(mut lease) = acquire(&cluster, &host, want(&cluster, http2_client)).await else { return };
    let body = if bytes.is_empty() { UpstreamBody::Empty } else { UpstreamBody::Bytes(Some(bytes)) };
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.headers_mut() = head.headers.clone();
    request.headers_mut().remove(http::header::CONTENT_LENGTH);
    form(&mut request, &head, lease.is_http2());
    let Ok(response) = lease.send(request).await else { return };
    cluster.stats.codes.count(response.status().as_u16());
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return;
        }
    }
    lease.finish();
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::policy::Fraction;

    #[test]
    fn a_copy_says_in_its_host_that_it_is_one() {
        let mut mirror = Mirror {
            cluster: "a".into(),
            cluster_header: None,
            fraction: Fraction::ALL,
            shadow_host: true,
            host: None,
        };
        let of =
            |mirror: &Mirror, host: &str| host.parse().ok().and_then(|h| self::host(mirror, &h)).unwrap();
        assert_eq!(of(&mirror, "pay.shop"), "pay.shop-shadow");
        assert_eq!(of(&mirror, "pay.shop:80"), "pay.shop-shadow:80");
        mirror.shadow_host = false;
        assert_eq!(of(&mirror, "pay.shop"), "pay.shop");
        mirror.host = Some(HeaderValue::from_static("other"));
        assert_eq!(of(&mirror, "pay.shop"), "other");
    }
}
