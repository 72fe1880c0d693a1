//! GC: what is there of attachments that the runtime does not know any more.

use std::collections::BTreeSet;

use tonic::{Code, Status};
use xds_proto::isthmus::local::v1::CniGcRequest;

use super::{
    CniService, Endpoint, EndpointKey,
    refuse::{key, refuse},
};
use crate::cni_plugin::code;

/// Attachments in one request.
const MOST: usize = 65_536;

/// Which pods go: those of the network that nobody knows. PURE.
pub(crate) fn garbage<'a>(
    pods: impl IntoIterator<Item = &'a Endpoint>,
    network: &str,
    valid: &BTreeSet<EndpointKey>,
) -> Vec<Endpoint> {
    let goes = |pod: &&Endpoint| {
        // Releases that did not remember the network had one.
        (pod.network == network || pod.network.is_empty()) && !valid.contains(&pod.key())
    };
    pods.into_iter().filter(goes).cloned().collect()
}

impl CniService {
    /// Gives how many were removed.
    pub(super) async fn collect_garbage(&self, request: &CniGcRequest) -> Result<u32, Status> {
        let invalid = |what: String| refuse(code::BAD_CONFIG, Code::InvalidArgument, what);
        if request.network.is_empty() {
            return Err(invalid("the network has no name".to_owned()));
        }
        if request.valid.len() > MOST {
            return Err(invalid(format!("{} attachments, at most {MOST} are read", request.valid.len())));
        }
        // One that can't be an attachment is a reason to touch nothing.
        let valid = request.valid.iter().map(|one| key(&one.container_id, &one.ifname));
        let valid: BTreeSet<EndpointKey> = valid.collect::<Result<_, _>>()?;
        let garbage = garbage(self.creator.registry.lock().iter(), &request.network, &valid);
        let (mut removed, mut left) = (0u32, Vec::new());
        for endpoint in garbage {
            // "GC is called when no ADD or DEL is in progress": whoever works on it does not follow that.
            let Ok(_busy) = self.occupy(&endpoint.key()) else {
                left.push(endpoint.container_id);
                continue;
            };
            tracing::warn!(workload = %endpoint.workload, container = endpoint.container_id, "collected");
            if self.release(&endpoint).await {
                removed = removed.saturating_add(1);
            } else {
                left.push(endpoint.container_id);
            }
        }
        if left.is_empty() {
            return Ok(removed);
        }
        let what = format!("{} attachments could not be collected: {}", left.len(), left.join(", "));
        Err(refuse(code::TRY_AGAIN, Code::Unavailable, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::registry_fixture;

    #[test]
    fn what_the_runtime_knows_and_what_other_networks_have_stays() {
        let pods: Vec<Endpoint> = [("c1", "mesh"), ("c2", "mesh"), ("c3", "other"), ("c4", "")]
            .map(|(container, network)| Endpoint {
                network: network.into(),
                ..registry_fixture(container, &format!("shop/{container}"))
            })
            .into();
        let names = |valid: &[Endpoint]| {
            let valid = valid.iter().map(Endpoint::key).collect();
            let gone = garbage(&pods, "mesh", &valid);
            gone.into_iter().map(|pod| pod.container_id).collect::<Vec<_>>()
        };
        assert_eq!(names(&pods[..1]), ["c2", "c4"]);
        assert_eq!(names(&pods), Vec::<String>::new());
        assert_eq!(names(&[]), ["c1", "c2", "c4"]);
        // The same container on another interface is another attachment.
        let second = Endpoint { ifname: "eth1".into(), ..pods[0].clone() };
        assert_eq!(names(&[second]), ["c1", "c2", "c4"]);
    }
}
