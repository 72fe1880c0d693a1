//! Attestation: who is at the other end of the unix socket, by the kernel's word. A process can choose what it
//! sends, but not which network namespace it is in, nor, outside of pods, which cgroup.
//!
//! Numbers come back: of a process when it has ended, of a namespace when it is gone. So the process is held by a
//! descriptor while it is looked at, and the namespace has to be the one that the socket was made in as well, by its
//! cookie, which never comes back.

use std::{
    collections::{BTreeMap, BTreeSet},
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

use super::process::{Process, is_below};
use crate::cni::{Endpoint, NetnsId, SharedRegistry, cookie_of, own_cookie};

/// Connections from one network namespace. A proxy needs a handful.
const MAX_CONNECTIONS: usize = 128;

/// How the node id of a proxy of this node begins, which is for all its pods: `node-proxy~<name>`.
const NODE_PROXY_ID: &str = "node-proxy~";
/// The namespace of what stands for such a proxy among workloads. None can be called so.
const NODE_PROXIES: &str = "~";

/// What stands for a proxy of this node where the name of a workload is expected. It has no certificate.
fn node_proxy(name: &str) -> Result<NamespacedName, Status> {
    if crate::redirect::is_name(name) {
        return Ok(NamespacedName::new(NODE_PROXIES, name));
    }
    Err(Status::permission_denied(format!("node id {NODE_PROXY_ID}{name:?}: the name is no DNS label")))
}

/// Whether a name is that of a proxy of this node, and of no workload.
pub(crate) fn is_node_proxy(name: &NamespacedName) -> bool {
    name.namespace == NODE_PROXIES
}

/// What the kernel says of a caller, as of its connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerInfo {
    /// Effective user of the process.
    pub uid: u32,
    /// `None`: the process was gone before it could be looked at.
    pub netns: Option<NetnsId>,
    /// `SO_NETNS_COOKIE` of the namespace that its socket was made in.
    pub cookie: u64,
    /// Path within the cgroup 2 hierarchy.
    pub cgroup: Option<Arc<str>>,
}

impl CallerInfo {
    fn of(stream: &UnixStream) -> io::Result<Self> {
        let uid = stream.peer_cred()?.uid();
        let cookie = cookie_of(stream)?;
        let process = Process::at(stream);
        let (netns, cgroup) = process.map_or((None, None), |found| (Some(found.netns), found.cgroup));
        Ok(Self { uid, netns, cookie, cgroup })
    }

    /// The caller of a request that came over [`attest`].
    ///
    /// # Errors
    /// It came by another way.
    pub fn from_request<T>(request: &Request<T>) -> Result<Self, Status> {
        let missing = || Status::permission_denied("the caller is not known");
        request.extensions().get::<Self>().cloned().ok_or_else(missing)
    }
}

impl CallerInfo {
    fn is_below(&self, cgroup: &str) -> bool {
        self.cgroup.as_deref().is_some_and(|own| is_below(own, cgroup))
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
        self.caller.clone()
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
#[derive(Debug, Clone)]
pub struct Callers {
    own_netns: NetnsId,
    own_cookie: u64,
    own_uid: u32,
    registry: SharedRegistry,
    /// With the cgroup that a process of it is in, if that is known.
    gateways: Arc<BTreeMap<NamespacedName, Option<String>>>,
}

impl Callers {
    /// `gateways` are the workloads that run in the node's own namespace, which is that of the calling thread.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn new(registry: SharedRegistry, gateways: BTreeSet<NamespacedName>) -> io::Result<Self> {
        let own_uid = nix::unistd::geteuid().as_raw();
        let gateways = Arc::new(gateways.into_iter().map(|name| (name, None)).collect());
        Ok(Self { own_netns: NetnsId::own()?, own_cookie: own_cookie()?, own_uid, registry, gateways })
    }

    /// Says which cgroup the processes of a gateway are in: none outside of it is that gateway.
    #[must_use]
    pub fn with_cgroups(mut self, cgroups: impl IntoIterator<Item = (NamespacedName, String)>) -> Self {
        Arc::make_mut(&mut self.gateways)
            .extend(cgroups.into_iter().map(|(name, cgroup)| (name, Some(cgroup))));
        self
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
        let Some(netns) = caller.netns else {
            return Err(Status::permission_denied("the calling process is gone"));
        };
        let registry = self.registry.lock();
        let is_of = |pod: &&Endpoint| pod.netns_id == netns || pod.netns_cookie == caller.cookie;
        match registry.iter().find(is_of) {
            Some(pod) => {
                let what = format!("pod {} may not operate its node", pod.workload);
                Err(Status::permission_denied(what))
            }
            None => Ok(()),
        }
    }

    /// The workload that a caller is: the pod whose network namespace it is in. A process of root in the node's own
    /// namespace may be a gateway, and says which by its xDS node id (`proxy~<namespace>/<name>`), or a proxy for all pods of
    /// the node (`node-proxy~<name>`), which is no workload.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` with the reason.
    pub fn workload(&self, caller: &CallerInfo, node_id: &str) -> Result<NamespacedName, Status> {
        if let Some(pod) = self.pod_or_root(caller)? {
            return Ok(pod);
        }
        if let Some(proxy) = node_id.strip_prefix(NODE_PROXY_ID) {
            return node_proxy(proxy);
        }
        let claimed = node_id.split_once('~').and_then(|(_, name)| NamespacedName::parse(name));
        let Some(name) = claimed else {
            return Err(Status::permission_denied(format!(
                "node id {node_id:?} names no gateway; expected proxy~<namespace>/<name>"
            )));
        };
        match self.gateways.get(&name) {
            Some(Some(cgroup)) if !caller.is_below(cgroup) => Err(Status::permission_denied(format!(
                "the caller is not in the cgroup of gateway {name}, which is {cgroup}"
            ))),
            Some(_) => Ok(name),
            None => Err(Status::permission_denied(format!(
                "{name} is no gateway of this node; start node-agent with --gateway-workload {name}"
            ))),
        }
    }

    /// The workload that a caller is, whatever it says: the pod whose network namespace it is in, or, in the node's own,
    /// the gateway in whose cgroup it is.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` with the reason.
    pub fn attested(&self, caller: &CallerInfo) -> Result<NamespacedName, Status> {
        if let Some(pod) = self.pod(caller)? {
            return Ok(pod);
        }
        let known = self.gateways.iter().filter_map(|(name, cgroup)| Some((name, cgroup.as_ref()?)));
        // Where one is within another's, it is the inner one.
        let inside = known.filter(|(_, cgroup)| caller.is_below(cgroup));
        let found = inside.max_by_key(|(_, cgroup)| cgroup.len()).map(|(name, _)| name.clone());
        found.ok_or_else(|| {
            Status::permission_denied(
                "the caller is in no pod of this node, and in no cgroup that --gateway-cgroup names",
            )
        })
    }

    /// The pod that a caller is in; `None`: it is in the node's own namespace, and may be a gateway.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` with the reason: it is neither.
    pub fn pod_or_root(&self, caller: &CallerInfo) -> Result<Option<NamespacedName>, Status> {
        let pod = self.pod(caller)?;
        if pod.is_none() && caller.uid != 0 && caller.uid != self.own_uid {
            return Err(Status::permission_denied(format!("user {} is no gateway", caller.uid)));
        }
        Ok(pod)
    }

    /// `None`: it is in the node's own namespace.
    fn pod(&self, caller: &CallerInfo) -> Result<Option<NamespacedName>, Status> {
        let Some(netns) = caller.netns else {
            return Err(Status::permission_denied("the calling process is gone"));
        };
        if netns == self.own_netns && caller.cookie == self.own_cookie {
            return Ok(None);
        }
        let registry = self.registry.lock();
        let pod = registry.iter().find(|pod| pod.is_in(netns, caller.cookie));
        match pod {
            Some(pod) => Ok(Some(pod.workload.clone())),
            None => {
                Err(Status::permission_denied("the caller's network namespace is none of this node's pods"))
            }
        }
    }

    /// Whether a workload still runs on this node.
    pub fn is_here(&self, workload: &NamespacedName) -> bool {
        is_node_proxy(workload)
            || self.gateways.contains_key(workload)
            || self.registry.lock().by_workload(workload).is_some()
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

    const OWN_COOKIE: u64 = 1;

    fn callers(dir: &std::path::Path) -> Callers {
        let mut registry = Registry::open(dir, "10.1.1.0/24".parse().unwrap()).unwrap();
        registry.begin(registry_fixture("c1", "shop/web")).unwrap();
        let gateways = [("gw", None), ("edge", Some("/edge")), ("inner", Some("/edge/inner"))];
        let named = |(name, cgroup): (&str, Option<&str>)| {
            (NamespacedName::new("mesh", name), cgroup.map(str::to_owned))
        };
        Callers {
            own_netns: NetnsId::for_test(1),
            own_cookie: OWN_COOKIE,
            own_uid: 500,
            registry: SharedRegistry::new(registry),
            gateways: Arc::new(gateways.into_iter().map(named).collect()),
        }
    }

    fn caller(uid: u32, netns: Option<NetnsId>) -> CallerInfo {
        let cookie = if netns == Some(NetnsId::for_test(1)) { OWN_COOKIE } else { 7 };
        CallerInfo { uid, netns, cookie, cgroup: None }
    }

    fn in_cgroup(cgroup: &str) -> CallerInfo {
        CallerInfo { cgroup: Some(cgroup.into()), ..caller(1000, Some(NetnsId::for_test(1))) }
    }

    #[test]
    fn a_process_in_a_pod_is_that_pod_whatever_it_claims_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let callers = callers(dir.path());
        let pod = registry_fixture("c1", "shop/web").netns_id;
        for (uid, claim) in [(0, "proxy~mesh/gw"), (1000, "proxy~shop/pay"), (1000, "")] {
            let workload = callers.workload(&caller(uid, Some(pod)), claim).unwrap();
            assert_eq!(workload, NamespacedName::new("shop", "web"));
        }
        let inside = CallerInfo { cgroup: Some("/edge".into()), ..caller(0, Some(pod)) };
        assert_eq!(callers.attested(&inside).unwrap(), NamespacedName::new("shop", "web"));
        assert!(
            callers.check_operator(caller(0, Some(pod))).is_err(),
            "root of a pod is not root of the node"
        );
    }

    #[test]
    fn a_namespace_with_the_number_of_a_pods_and_another_cookie_is_none_of_this_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let callers = callers(dir.path());
        let pod = registry_fixture("c1", "shop/web").netns_id;
        let own = NetnsId::for_test(1);
        for (netns, cookie) in [(pod, 8), (pod, OWN_COOKIE), (own, 7), (own, 99)] {
            let caller = CallerInfo { cookie, ..in_cgroup("/edge") };
            let caller = CallerInfo { netns: Some(netns), uid: 0, ..caller };
            assert!(callers.workload(&caller, "proxy~mesh/gw").is_err(), "{caller:?}");
            assert!(callers.attested(&caller).is_err(), "{caller:?}");
        }
        let reused = CallerInfo { cookie: OWN_COOKIE, ..caller(0, Some(pod)) };
        assert!(callers.check_operator(reused).is_err());
    }

    #[test]
    fn only_root_of_the_node_is_a_gateway_and_only_one_that_this_node_has() {
        let dir = tempfile::tempdir().unwrap();
        let callers = callers(dir.path());
        let own = Some(NetnsId::for_test(1));
        assert!(callers.workload(&caller(0, own), "proxy~mesh/gw").is_ok());
        assert!(callers.workload(&caller(1000, own), "proxy~mesh/gw").is_err());
        for claim in ["proxy~shop/web", "mesh/gw", "", "proxy~", "proxy~mesh/edge"] {
            assert!(callers.workload(&caller(0, own), claim).is_err(), "{claim}");
        }
        let edge = CallerInfo { uid: 0, ..in_cgroup("/edge/worker") };
        assert!(callers.workload(&edge, "proxy~mesh/edge").is_ok());
    }

    #[test]
    fn a_proxy_of_the_node_is_root_of_the_node_and_no_workload() {
        let dir = tempfile::tempdir().unwrap();
        let callers = callers(dir.path());
        let own = Some(NetnsId::for_test(1));
        let proxy = callers.workload(&caller(0, own), "node-proxy~l7").unwrap();
        assert!(is_node_proxy(&proxy) && callers.is_here(&proxy));
        assert_eq!(proxy.to_string(), "~/l7");
        assert!(callers.workload(&caller(1000, own), "node-proxy~l7").is_err());
        for id in ["node-proxy~", "node-proxy~L7", "node-proxy~a/b", "node-proxy~../x"] {
            assert!(callers.workload(&caller(0, own), id).is_err(), "{id}");
        }
        // A pod is itself, whatever it says.
        let pod = caller(0, Some(registry_fixture("c1", "shop/web").netns_id));
        let pod = CallerInfo { cookie: registry_fixture("c1", "shop/web").netns_cookie, ..pod };
        assert_eq!(callers.workload(&pod, "node-proxy~l7").unwrap().to_string(), "shop/web");
        for claim in ["proxy~~/l7", "proxy~/l7"] {
            assert!(callers.workload(&caller(0, own), claim).is_err(), "{claim}");
        }
    }

    #[test]
    fn a_process_of_the_node_is_the_gateway_whose_cgroup_it_is_in() {
        let dir = tempfile::tempdir().unwrap();
        let callers = callers(dir.path());
        let name = |cgroup: &str| callers.attested(&in_cgroup(cgroup)).map(|name| name.name.clone());
        assert_eq!(name("/edge").unwrap(), "edge");
        assert_eq!(name("/edge/worker").unwrap(), "edge");
        assert_eq!(name("/edge/inner/x").unwrap(), "inner");
        for other in ["/", "/edgex", "/gw", "/other/edge"] {
            assert_eq!(name(other).unwrap_err().code(), tonic::Code::PermissionDenied, "{other}");
        }
        assert!(callers.attested(&caller(0, Some(NetnsId::for_test(1)))).is_err());
    }

    #[test]
    fn whoever_is_in_no_pod_or_gone_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let callers = callers(dir.path());
        for netns in [None, Some(NetnsId::for_test(99))] {
            let status = callers.workload(&caller(0, netns), "proxy~shop/web").unwrap_err();
            assert_eq!(status.code(), tonic::Code::PermissionDenied);
        }
        assert!(callers.check_operator(caller(1000, Some(NetnsId::for_test(1)))).is_err());
        assert!(callers.check_operator(caller(0, None)).is_err());
        let nowhere = CallerInfo { cookie: 98, ..caller(0, Some(NetnsId::for_test(99))) };
        assert!(callers.check_operator(nowhere).is_ok());
    }

    /// Where the process that ends at once connects to.
    const SOCKET: &str = "ISTHMUS_TEST_ATTESTED_SOCKET";

    #[allow(clippy::zombie_processes, reason = "it is to outlive its parent")]
    #[test]
    #[ignore = "run by the next test, as a process of its own"]
    fn connects_leaves_its_socket_to_another_and_ends() {
        let Some(path) = std::env::var_os(SOCKET) else { return };
        let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        // Lives on with the socket as its standard input, until the test closes the other end.
        let inherited = std::os::fd::OwnedFd::from(stream);
        std::process::Command::new("cat")
            .stdin(inherited)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
    }

    #[tokio::test]
    async fn a_socket_whose_process_has_ended_is_nobodys_whoever_has_its_number_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let own = UnixStream::connect(&path).await.unwrap();
        let accepted = listener.accept().await.unwrap().0;
        let info = CallerInfo::of(&accepted).unwrap();
        assert_eq!((info.netns, info.cookie), (NetnsId::own().ok(), own_cookie().unwrap()));
        drop(own);
        let ended = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "identity::callers::tests::connects_leaves_its_socket_to_another_and_ends"])
            .arg("--ignored")
            .env(SOCKET, &path)
            .stdout(std::process::Stdio::null())
            .status();
        assert!(ended.unwrap().success());
        let accepted = listener.accept().await.unwrap().0;
        let info = CallerInfo::of(&accepted).unwrap();
        assert_eq!((info.netns, info.cgroup), (None, None));
    }
}
