//! Attestation: who is at the other end of the unix socket, by the kernel's word. A process can choose what it
//! sends, but not which network namespace it is in.

use std::{
    collections::BTreeSet,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::Stream;
use mesh_model::resource::NamespacedName;
use mesh_tls::{Entered, Sources};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
};
use tonic::{Request, Status, transport::server::Connected};

use crate::cni::{NetnsId, SharedRegistry, netns_of_process};

/// Connections from one network namespace. A proxy needs a handful.
const MAX_CONNECTIONS: usize = 128;

/// What the kernel says of a caller, as of its connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallerInfo {
    /// Effective user of the process.
    pub uid: u32,
    /// `None`: the process was gone before it could be looked at.
    pub netns: Option<NetnsId>,
}

impl CallerInfo {
    fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
        // Read at once, because numbers of processes are reused.
        Ok(Self { uid: credentials.uid(), netns: pid.and_then(|pid| netns_of_process(pid).ok()) })
    }

    /// The caller of a request that came over [`attest`].
    ///
    /// # Errors
    /// It came by another way.
    pub fn from_request<T>(request: &Request<T>) -> Result<Self, Status> {
        let missing = || Status::permission_denied("the caller is not known");
        request.extensions().get::<Self>().copied().ok_or_else(missing)
    }
}

/// A connection whose caller was looked at when it was accepted.
#[derive(Debug)]
pub struct Attested {
    stream: UnixStream,
    caller: CallerInfo,
    _counted: Entered<Option<NetnsId>>,
}

impl Connected for Attested {
    type ConnectInfo = CallerInfo;

    fn connect_info(&self) -> CallerInfo {
        self.caller
    }
}

/// Connections for tonic's `serve_with_incoming`; requests carry [`CallerInfo`].
pub fn attest(listener: UnixListener) -> impl Stream<Item = io::Result<Attested>> + Send + 'static {
    // One pod must not use up the agent's file descriptors.
    let connections = Sources::at_most(MAX_CONNECTIONS);
    futures::stream::unfold((listener, connections), |(listener, connections)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => match CallerInfo::of(&stream) {
                    Ok(caller) => {
                        let Some(_counted) = connections.enter(caller.netns) else {
                            tracing::warn!(?caller, "connection closed: the caller has too many");
                            continue;
                        };
                        return Some((Ok(Attested { stream, caller, _counted }), (listener, connections)));
                    }
                    Err(error) => tracing::debug!(%error, "a caller has no credentials"),
                },
                // Out of file descriptors, mostly: wait for others to end.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the agent's socket");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
    })
}

/// Decides who a caller is.
#[derive(Clone)]
pub struct Callers {
    own_netns: NetnsId,
    own_uid: u32,
    registry: SharedRegistry,
    gateways: Arc<BTreeSet<NamespacedName>>,
}

impl Callers {
    /// `gateways` are the workloads that run in the node's own namespace.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn new(registry: SharedRegistry, gateways: BTreeSet<NamespacedName>) -> io::Result<Self> {
        let own_uid = nix::unistd::geteuid().as_raw();
        Ok(Self { own_netns: NetnsId::own()?, own_uid, registry, gateways: Arc::new(gateways) })
    }

    /// Lets root (or the agent's own user) of the node pass, but not of a pod.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` with the reason.
    pub fn operator<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.check_operator(CallerInfo::from_request(request)?)
    }

    /// The same of a caller that is known.
    pub(crate) fn check_operator(&self, caller: CallerInfo) -> Result<(), Status> {
        if caller.uid != 0 && caller.uid != self.own_uid {
            return Err(Status::permission_denied(format!(
                "user {} may not operate this node; only root may",
                caller.uid
            )));
        }
        match caller.netns {
            None => Err(Status::permission_denied("the calling process is gone")),
            Some(netns) => match self.registry.lock().by_netns(netns) {
                Some(pod) => {
                    let what = format!("pod {} may not operate its node", pod.workload);
                    Err(Status::permission_denied(what))
                }
                None => Ok(()),
            },
        }
    }

    /// The workload that a caller is: the pod whose network namespace it is in. A process of root in the node's own
    /// namespace may be a gateway, and says which by its xDS node id (`proxy~<namespace>/<name>`).
    ///
    /// # Errors
    /// `PERMISSION_DENIED` with the reason.
    pub fn workload(&self, caller: CallerInfo, node_id: &str) -> Result<NamespacedName, Status> {
        let Some(netns) = caller.netns else {
            return Err(Status::permission_denied("the calling process is gone"));
        };
        if netns != self.own_netns {
            let registry = self.registry.lock();
            let pod = registry.by_netns(netns).map(|pod| pod.workload.clone());
            return pod.ok_or_else(|| {
                Status::permission_denied("the caller's network namespace is none of this node's pods")
            });
        }
        if caller.uid != 0 && caller.uid != self.own_uid {
            return Err(Status::permission_denied(format!("user {} is no gateway", caller.uid)));
        }
        let claimed = node_id.split_once('~').and_then(|(_, name)| NamespacedName::parse(name));
        match claimed {
            Some(name) if self.gateways.contains(&name) => Ok(name),
            Some(name) => Err(Status::permission_denied(format!(
                "{name} is no gateway of this node; start node-agent with --gateway-workload {name}"
            ))),
            None => Err(Status::permission_denied(format!(
                "node id {node_id:?} names no gateway; expected proxy~<namespace>/<name>"
            ))),
        }
    }

    /// Whether a workload still runs on this node.
    pub fn is_here(&self, workload: &NamespacedName) -> bool {
        self.gateways.contains(workload) || self.registry.lock().by_workload(workload).is_some()
    }
}

impl AsyncRead for Attested {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Attested {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::{Registry, registry_fixture};

    fn callers(dir: &std::path::Path) -> Callers {
        let mut registry = Registry::open(dir, "10.1.1.0/24".parse().unwrap()).unwrap();
        registry.begin(registry_fixture("c1", "shop/web")).unwrap();
        Callers {
            own_netns: NetnsId::for_test(1),
            own_uid: 500,
            registry: SharedRegistry::new(registry),
            gateways: Arc::new([NamespacedName::new("mesh", "gw")].into()),
        }
    }

    fn caller(uid: u32, netns: Option<NetnsId>) -> CallerInfo {
        CallerInfo { uid, netns }
    }

    #[test]
    fn a_process_in_a_pod_is_that_pod_whatever_it_claims_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let callers = callers(dir.path());
        let pod = registry_fixture("c1", "shop/web").netns_id;
        for (uid, claim) in [(0, "proxy~mesh/gw"), (1000, "proxy~shop/pay"), (1000, "")] {
            let workload = callers.workload(caller(uid, Some(pod)), claim).unwrap();
            assert_eq!(workload, NamespacedName::new("shop", "web"));
        }
        assert!(
            callers.check_operator(caller(0, Some(pod))).is_err(),
            "root of a pod is not root of the node"
        );
    }

    #[test]
    fn only_root_of_the_node_is_a_gateway_and_only_one_that_this_node_has() {
        let dir = tempfile::tempdir().unwrap();
        let callers = callers(dir.path());
        let own = Some(NetnsId::for_test(1));
        assert!(callers.workload(caller(0, own), "proxy~mesh/gw").is_ok());
        assert!(callers.workload(caller(1000, own), "proxy~mesh/gw").is_err());
        for claim in ["proxy~shop/web", "mesh/gw", "", "proxy~"] {
            assert!(callers.workload(caller(0, own), claim).is_err(), "{claim}");
        }
    }

    #[test]
    fn whoever_is_in_no_pod_or_gone_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let callers = callers(dir.path());
        for netns in [None, Some(NetnsId::for_test(99))] {
            let status = callers.workload(caller(0, netns), "proxy~shop/web").unwrap_err();
            assert_eq!(status.code(), tonic::Code::PermissionDenied);
        }
        assert!(callers.check_operator(caller(1000, Some(NetnsId::for_test(1)))).is_err());
        assert!(callers.check_operator(caller(0, None)).is_err());
        assert!(callers.check_operator(caller(0, Some(NetnsId::for_test(99)))).is_ok());
    }
}
