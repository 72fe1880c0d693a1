//! Builds the parts, runs them, and stops them.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use clustermesh::token_source::join_token;
use ebpf_shared::{Addr, nat::NodeConfig};
use ipnet::IpNet;
use mesh_model::resource::NamespacedName;
use mesh_tls::{SharedBundles, TrustBundles, certified, shared_bundles, shared_identity};
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use xds_proto::{
    envoy::service::{
        discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
        load_stats::v3::load_reporting_service_server::LoadReportingServiceServer,
        secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer,
    },
    isthmus::local::v1::{
        agent_server::AgentServer, cni_server::CniServer, dns_server::DnsServer,
        redirects_server::RedirectsServer,
    },
    spiffe::spiffe_workload_api_server::SpiffeWorkloadApiServer,
};

use crate::{
    bootstrap::{
        NodeState, RegisterError, Upstream, register, renew_for_ever, report_facts_for_ever, unix_now,
    },
    cni::{self, CniService, Creator, HostNet, Registry, SharedRegistry, pod_of, ports_of},
    config::RunArgs,
    desired::PodAddresses,
    dns,
    engine::Engine,
    flows::{self, Collector, Namer, NodeFlows, Queue, Ring},
    health,
    host::Known,
    identity::{
        Callers, MAX_SPIFFE_REQUEST, SdsService, Secrets, Tokens, WorkloadApi, attest, cgroup_path,
        report_trust_for_ever,
    },
    kernel::{self, Grace, Kernel, ShortCut},
    local::StatusService,
    made::{Ledger, LedgerError, Made},
    maps::KernelMaps,
    masquerade,
    metrics::Metrics,
    migrate::{self, Waiting},
    names::{self, Answering, DnsService, Log},
    persist,
    redirect::Registrar,
    relay::{MAX_MESSAGE, Relay},
    routes::{self, RouteKeeper},
    subscribe::{Cache, Progress, Subscriber, log_connection_for_ever, subscribe_for_ever},
    tunnel,
};

/// A first start waits this long for a control plane that is still starting itself.
const REGISTER_PATIENCE: Duration = Duration::from_secs(60);
/// Between attempts.
const RETRY: Duration = Duration::from_secs(1);
/// Calls in progress are given this long when the agent stops.
const DRAIN: Duration = Duration::from_secs(3);

/// Calls in progress on one connection to the SPIFFE Workload API.
const SPIFFE_CALLS: usize = 16;

/// Runs the agent until SIGTERM or SIGINT. Programs, maps, links and routes stay: traffic goes on.
///
/// # Errors
/// The agent can't start.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    mesh_tls::install_provider();
    persist::private_dir(&args.state_dir)
        .with_context(|| format!("--state-dir {}", args.state_dir.display()))?;
    let metrics = match args.metrics {
        Some(at) => Some(TcpListener::bind(at).await.with_context(|| format!("--metrics {at}"))?),
        None => None,
    };
    let hubble = match args.hubble {
        Some(at) => Some(TcpListener::bind(at).await.with_context(|| format!("--hubble {at}"))?),
        None => None,
    };
    let state = node_state(&args).await?;
    cni::prepare_host()?;
    // A node that can't be reached by IPv6 gives its pods none.
    let pod_cidr6 = state.pod_cidr6.filter(|_| args.address6.is_some());
    if pod_cidr6.is_some() {
        cni::prepare_host6()?;
    }
    let addresses = PodAddresses { v4: args.address, v6: args.address6 };
    let own_pods: Vec<IpNet> =
        [Some(state.pod_cidr.into()), pod_cidr6.map(IpNet::V6)].into_iter().flatten().collect();

    if let Some(taken) = args.cluster_dns.addresses.iter().find(|address| {
        let service_cidr = IpNet::V4(state.service_cidr);
        own_pods.iter().chain([&service_cidr]).any(|range| range.contains(*address))
    }) {
        anyhow::bail!("--cluster-dns {taken}: is of a range for pods or services, one of which may have it");
    }

    let identity = shared_identity(Some(certified(state.identity()?)?));
    let bundles = shared_bundles(own_bundle(&state)?);
    let replicas = if args.replicas.is_empty() { state.replicas.clone() } else { args.replicas.clone() };
    let upstream = Upstream::new(&state, replicas, identity.clone(), bundles.clone())?;

    let mut ledger = Ledger::open(&args.state_dir)?;
    note_pins(&mut ledger, &args.bpffs)?;
    let mut kernel = Kernel::load(&args.bpffs, &args.cgroup)?;
    // Also to undo what an agent that died has left, if it is not to be used any more.
    let grace = Grace::open(&args.state_dir).context("/sys/kernel/rcu_expedited")?;
    let grace = if args.expedite_rcu { grace } else { Grace::off() };
    kernel.set_grace(grace.clone());
    let events = kernel.events()?.into_stream().context("flow events")?;
    let host = HostNet::new().context("netlink")?;
    let underlay_mtu = match args.underlay_mtu {
        Some(told) => told,
        None => host.uplink_mtu(args.address).await?,
    };
    let mtu = args.tunnel.inner_mtu(underlay_mtu);
    let tunnel =
        open_tunnel(&args, &host, &mut kernel, pod_cidr6.is_some(), mtu).await.context("--tunnel")?;
    let net = NodeConfig {
        v4: args.address.into(),
        v6: args.address6.map_or(Addr::UNSPECIFIED, Addr::from),
        first_port: args.snat_ports.first,
        last_port: args.snat_ports.last,
        tunnel: tunnel.unwrap_or(0),
        ..NodeConfig::default()
    };
    let short_cuts = kernel.set_net(&args.net_interfaces, net, args.net_xdp.map(ShortCut::from))?;
    let connections = kernel.connections()?;
    let mut engine = Engine::new(addresses, Box::new(KernelMaps::new(kernel)))?;
    if args.net_interfaces.is_empty() {
        engine = engine.without_net();
    }
    let floor = Duration::from_secs(args.dns_min_ttl.into());
    engine.keep_names(Log::open(&args.state_dir).context("names")?, floor, unix_now());
    // Before any policy for the node itself is in force.
    let served: BTreeSet<IpAddr> = args.cluster_dns.addresses.iter().copied().collect();
    let mut known = Known::with(served.clone());
    known.refresh(&host, &upstream, &engine, true).await.context("this node's addresses")?;
    let cache = Cache::new(&args.state_dir).context("resource cache")?;
    let held = cache.adopt(|update| engine.load(update)).context("resource cache")?;
    refresh_bundles(&engine, &state, &bundles);

    let registry = SharedRegistry::new(Registry::open(&args.state_dir, state.pod_cidr)?);
    let creator = Creator {
        host: host.clone(),
        engine: engine.clone(),
        registry: registry.clone(),
        grace,
        tunnel: args.tunnel,
        underlay_mtu: args.underlay_mtu,
        addresses,
        slice: state.pod_cidr,
        slices: pod_cidr6.map(|slice6| (state.pod_cidr, slice6)),
        names: (!args.cluster_dns.addresses.is_empty()).then(|| args.cluster_dns.clone()),
    };
    // Pods have routes as well.
    for made in [Made::Routes, Made::Tables] {
        ledger.note(made)?;
    }
    let older = engine.migrates_from();
    routes::to_proxy::ensure(&host, pod_cidr6.is_some()).await.context("the way to proxies of this node")?;
    routes::to_itself::ensure(&host, &served).await.context("--cluster-dns")?;
    let mut waiting = Waiting::new();
    let lost = adopt(&creator, older.is_some().then_some(&mut waiting)).await?;
    // Now the kernel is what cache and pods say, and what an earlier agent left beside it is gone.
    engine.synchronise()?;

    let gateways: BTreeSet<NamespacedName> = args.gateway_workloads.iter().cloned().collect();
    let callers = Callers::new(registry.clone(), gateways.clone()).context("own network namespace")?;
    let callers = callers.with_cgroups(gateway_cgroups(&args)?);
    let secrets = Secrets::new(&args.state_dir, engine.clone(), upstream.clone()).context("workload keys")?;
    let queue = Queue::default();
    let ring = Ring::default();
    let namer = Namer::new(state.node.clone(), engine.clone(), registry.clone());
    let progress = Progress::default();
    let connection = progress.status().subscribe();
    let cni = CniService::new(creator, upstream.clone(), callers.clone(), secrets.clone(), connection);
    cni.untold().extend(lost);

    let mut tasks = JoinSet::new();
    if let Some(from) = older {
        tracing::info!(from, "the kernel's maps have an older format; pods change over one by one");
        if !migrate::step(&engine, &mut waiting)? {
            tasks.spawn(migrate::go_on(engine.clone(), waiting));
        }
    }
    tasks.spawn(known.refresh_for_ever(host.clone(), upstream.clone(), engine.clone()));
    tasks.spawn(log_connection_for_ever(progress.clone()));
    let subscriber = Subscriber {
        node: state.node.clone(),
        cluster: state.cluster.clone(),
        upstream: upstream.clone(),
        engine: engine.clone(),
        cache: cache.clone(),
        held,
        progress: progress.clone(),
    };
    let (engine_of_trust, state_of_trust, told_bundles) = (engine.clone(), state.clone(), bundles.clone());
    tasks.spawn(subscribe_for_ever(subscriber, move || {
        refresh_bundles(&engine_of_trust, &state_of_trust, &told_bundles);
    }));
    tasks.spawn(renew_for_ever(
        state.clone(),
        args.state_dir.clone(),
        upstream.clone(),
        engine.clone(),
        identity.clone(),
    ));
    tasks.spawn(report_trust_for_ever(
        state.trust_domain.clone(),
        engine.clone(),
        secrets.clone(),
        identity.clone(),
        upstream.clone(),
    ));
    let route_keeper =
        RouteKeeper { node: state.node.clone(), addresses, own_pods: own_pods.clone(), tunnel };
    tasks.spawn(route_keeper.keep_for_ever(host, engine.clone()));
    tasks.spawn(tunnel::keep_for_ever(
        engine.clone(),
        state.node.clone(),
        addresses,
        own_pods.clone(),
        args.tunnel,
    ));
    tasks.spawn(masquerade::keep_for_ever(engine.clone(), own_pods, args.masquerade_exclude.clone()));
    let collector =
        Collector { engine: engine.clone(), namer: namer.clone(), ring: ring.clone(), queue: queue.clone() };
    tasks.spawn(collector.clone().collect_for_ever(events));
    tasks.spawn(names::keep_for_ever(engine.clone(), connections));
    tasks.spawn(health::keep_for_ever(engine.clone()));
    tasks.spawn(flows::report_for_ever(queue.clone(), upstream.clone()));
    tasks.spawn(report_facts_for_ever(args.facts.clone(), args.tunnel.kind(), upstream.clone()));
    tasks.spawn(cni::watch_for_ever(cni.clone()));
    tasks.spawn(cni::probe_for_ever(cni.clone()));
    for gateway in gateways {
        tasks.spawn(bind_gateway(engine.clone(), upstream.clone(), gateway, args.address.into()));
    }
    let retrying = engine.clone();
    tasks.spawn(async move { retrying.retry_for_ever().await });
    let writing = cache.clone();
    tasks.spawn(async move { writing.write_for_ever().await });

    for path in [Some(&args.socket), args.spiffe_socket.as_ref(), args.ready_file.as_ref()] {
        path.map_or(Ok(()), |path| note_file(&mut ledger, path))?;
    }
    let listener = listen(&args.socket)?;
    let hubble_socket = args.hubble_socket();
    note_file(&mut ledger, &hubble_socket)?;
    let node_flows = NodeFlows {
        node: state.node.clone(),
        cluster: state.cluster.clone(),
        mesh_domain: state.mesh_domain.clone(),
        trust_domain: state.trust_domain.clone(),
        address: format!("unix://{}", hubble_socket.display()),
        tls: false,
        ring: ring.clone(),
        namer,
        callers: callers.clone(),
        bundles: bundles.clone(),
        started: Instant::now(),
    };
    let hubble_listener = mesh_tls::grpc::bind_unix(&hubble_socket, 0o600)?;
    let hubble_port = hubble.as_ref().map(TcpListener::local_addr).transpose()?.map(|at| at.port());
    let peers = flows::Peers::new(node_flows.clone(), engine.clone(), hubble_port);
    let (hubble_service, peer_service) = (node_flows.clone().service(), peers.clone().service());
    tasks.spawn(async move {
        let served = Server::builder()
            .concurrency_limit_per_connection(32)
            .add_service(hubble_service)
            .add_service(peer_service)
            .serve_with_incoming(attest(hubble_listener))
            .await;
        tracing::error!(?served, "Hubble's socket is not served any more");
    });
    if let Some(listener) = hubble {
        let (identity, bundles) = (identity.clone(), bundles.clone());
        let over_tls = NodeFlows { address: listener.local_addr()?.to_string(), tls: true, ..node_flows };
        tasks.spawn(async move {
            let served = flows::serve_tls(listener, identity, bundles, over_tls, peers).await;
            tracing::error!(?served, "--hubble is not served any more");
        });
    }
    let dns_dir = args.state_dir.join("dns");
    persist::private_dir(&dns_dir).context("--state-dir")?;
    ledger.note(Made::DnsProxy(dns::lock::path(&dns_dir)))?;
    let supervisor = dns::Supervisor {
        socket: args.socket.clone(),
        bpffs: args.bpffs.clone(),
        state_dir: dns_dir,
        agent_state: args.state_dir.clone(),
        mesh_domain: state.mesh_domain.clone(),
        cluster: state.cluster.clone(),
        names: args.cluster_dns.clone(),
        starts: Arc::default(),
    };
    let dns_starts = supervisor.starts.clone();
    let answering = Answering::new(&args.cluster_dns.addresses);
    let dns = DnsService {
        engine: engine.clone(),
        callers: callers.clone(),
        flows: collector,
        answering: answering.clone(),
    };
    tasks.spawn(supervisor.keep_for_ever(engine.clone()));
    let limit = MAX_MESSAGE;
    let redirects = Registrar::new(engine.clone(), callers.clone());
    let relay = Relay::new(callers.clone(), upstream.clone(), engine.clone());
    let sds = SdsService::new(callers.clone(), secrets.clone(), engine.clone());
    let asked_to_stop = CancellationToken::new();
    let spiffe = WorkloadApi::new(
        callers.clone(),
        secrets.clone(),
        engine.clone(),
        Tokens::new(upstream.clone(), engine.clone()),
    );
    let status = StatusService {
        node: state.node.clone(),
        upstream,
        engine,
        registry,
        secrets,
        callers,
        flows: queue,
        ring,
        progress,
        bpffs: args.bpffs.clone(),
        way: (args.tunnel, mtu),
        short_cuts,
        answering,
        stop: asked_to_stop.clone(),
    };
    if let Some(path) = &args.spiffe_socket {
        let api = SpiffeWorkloadApiServer::new(spiffe).max_decoding_message_size(MAX_SPIFFE_REQUEST);
        let served = Server::builder()
            .concurrency_limit_per_connection(SPIFFE_CALLS)
            .add_service(api)
            .serve_with_incoming(attest(listen(path)?));
        tasks.spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "the SPIFFE Workload API is not served any more");
            }
        });
    }
    if let Some(listener) = metrics {
        let told =
            Metrics { status: status.clone(), identity, relay: relay.clone(), sds: sds.clone(), dns_starts };
        tasks.spawn(mesh_telemetry::serve(listener, Box::new(told), CancellationToken::new()));
    }
    let (stop, stopped) = watch::channel(false);
    let mut stopping = stopped.clone();
    let server = Server::builder()
        .concurrency_limit_per_connection(256)
        .add_service(CniServer::new(cni))
        .add_service(AgentServer::new(status))
        .add_service(DnsServer::new(dns))
        .add_service(RedirectsServer::new(redirects))
        .add_service(LoadReportingServiceServer::new(relay.clone()).max_decoding_message_size(limit))
        .add_service(AggregatedDiscoveryServiceServer::new(relay).max_decoding_message_size(limit))
        .add_service(SecretDiscoveryServiceServer::new(sds).max_decoding_message_size(limit))
        .serve_with_incoming_shutdown(attest(listener), async move {
            let _ = stopping.wait_for(|stop| *stop).await;
        });
    let mut server = tokio::spawn(server);
    if let Some(path) = &args.ready_file {
        fs::write(path, std::process::id().to_string()).with_context(|| format!("{}", path.display()))?;
    }
    tracing::info!(node = state.node, pod_cidr = %state.pod_cidr, socket = %args.socket.display(), "ready");

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = asked_to_stop.cancelled() => Ok(()),
        ended = &mut server => match ended {
            Ok(Ok(())) => Err(anyhow::anyhow!("the agent's socket is not served any more")),
            Ok(Err(error)) => Err(error.into()),
            Err(error) => Err(error.into()),
        },
        Some(ended) = tasks.join_next() => Err(match ended {
            Ok(()) => anyhow::anyhow!("a part of the agent ended"),
            Err(error) => anyhow::anyhow!("a part of the agent failed: {error}"),
        }),
    };
    tracing::info!("stopping; traffic goes on");
    stop.send_replace(true);
    tasks.abort_all();
    if result.is_ok() && tokio::time::timeout(DRAIN, &mut server).await.is_err() {
        server.abort();
    }
    cache.flush();
    if let Some(path) = &args.ready_file {
        let _ = fs::remove_file(path);
    }
    for socket in
        [Some(&args.socket), Some(&hubble_socket), args.spiffe_socket.as_ref()].into_iter().flatten()
    {
        let _ = fs::remove_file(socket);
    }
    result
}

/// The device of the tunnel with its programs, if there is to be one; without, that of an earlier agent goes.
async fn open_tunnel(
    args: &RunArgs,
    host: &HostNet,
    kernel: &mut Kernel,
    has_ipv6: bool,
    mtu: u32,
) -> anyhow::Result<Option<u32>> {
    if !args.tunnel.is_tunnel() {
        tunnel::remove(host).await?;
        return Ok(None);
    }
    if args.tunnel == tunnel::Mode::VxlanIpv6 && args.address6.is_none() {
        return Err(tunnel::DeviceError::NoIpv6.into());
    }
    let index = tunnel::ensure(host, mtu, has_ipv6).await?;
    kernel.attach_tunnel(tunnel::DEVICE)?;
    tunnel::open(host, index).await?;
    Ok(Some(index))
}

/// The state of an earlier start, or a registration.
async fn node_state(args: &RunArgs) -> anyhow::Result<NodeState> {
    if let Some(state) = NodeState::load(&args.state_dir)? {
        if state.node != args.node {
            anyhow::bail!(
                "--state-dir {} belongs to node {}, not to {}; use another directory",
                args.state_dir.display(),
                state.node,
                args.node
            );
        }
        let leaf = state.chain.first().cloned().map(mesh_tls::CertificateDer::from);
        let info = leaf.and_then(|leaf| mesh_tls::certificate_info(&leaf).ok());
        if info.is_some_and(|info| info.not_after_unix > unix_now()) {
            return Ok(state);
        }
        tracing::warn!("the node's certificate has expired; the node must register again");
    }
    let Some(token) = join_token(args.join.as_deref(), args.join_file.as_deref())? else {
        anyhow::bail!(
            "this node has no valid certificate: give --join-file the output of `clustermesh token create --for node`"
        );
    };
    let deadline = tokio::time::Instant::now() + REGISTER_PATIENCE;
    loop {
        match register(&token, &args.node, args.address, args.address6).await {
            Ok(state) => {
                // What was signed for an earlier registration may be refused by now.
                Secrets::discard(&args.state_dir)?;
                state.save(&args.state_dir)?;
                tracing::info!(node = state.node, cluster = state.cluster, "registered");
                return Ok(state);
            }
            Err(error @ RegisterError::Unreachable(_)) if tokio::time::Instant::now() < deadline => {
                tracing::warn!(%error, "registration is tried again");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes over the pods of an earlier agent. Those that are gone, or were never finished, are removed; it says which
/// workloads they ran.
async fn adopt(creator: &Creator, mut waiting: Option<&mut Waiting>) -> anyhow::Result<Vec<NamespacedName>> {
    let known: Vec<_> = creator.registry.lock().iter().cloned().collect();
    let mut lost = Vec::new();
    for endpoint in known {
        let index = creator.host.index(&endpoint.host_interface).await?;
        if endpoint.ready && index == Some(endpoint.ifindex) {
            if let Some(waiting) = &mut waiting {
                waiting
                    .insert(endpoint.workload.clone(), (endpoint.host_interface.clone(), endpoint.ifindex));
            } else {
                creator.engine.attach(&endpoint.host_interface, endpoint.ifindex)?;
            }
            creator.engine.lead_ports(endpoint.workload.clone(), ports_of(&endpoint));
            creator.engine.load_pod(endpoint.workload.clone(), pod_of(&endpoint));
            continue;
        }
        tracing::warn!(workload = %endpoint.workload, "the pod went away while no agent ran");
        // An interface that another plugin has made stays, closed, until that one removes it.
        if !endpoint.chained {
            creator.host.remove(&endpoint.host_interface).await?;
        }
        creator.registry.lock().remove(&endpoint.key())?;
        lost.push(endpoint.workload);
    }
    creator.tell_gateways();
    creator.sweep_programs().await?;
    Ok(lost)
}

fn own_bundle(state: &NodeState) -> anyhow::Result<TrustBundles> {
    let mut bundles = TrustBundles::new();
    bundles.insert(state.trust_domain.clone(), state.root_certificates())?;
    Ok(bundles)
}

/// The replicas are verified with the roots that the control plane last told; at first, with those of registration.
fn refresh_bundles(engine: &Engine, state: &NodeState, bundles: &SharedBundles) {
    let told = engine.resources(|resources| resources.bundles.get(&state.trust_domain).cloned());
    let Some(told) = told else { return };
    let mut fresh = TrustBundles::new();
    let roots = told.roots.into_iter().map(mesh_tls::CertificateDer::from).collect();
    match fresh.insert_but(state.trust_domain.clone(), roots, told.revoked) {
        Ok(()) => bundles.store(std::sync::Arc::new(fresh)),
        Err(error) => tracing::error!(%error, "the trust bundle of this cluster is not used"),
    }
}

/// Tells the control plane that a gateway runs on this node's own address, whenever it does not know: at the
/// start, and when the Workload is applied later or anew.
async fn bind_gateway(engine: Engine, upstream: Upstream, gateway: NamespacedName, addresses: PodAddresses) {
    let mut changes = engine.changes();
    let mut told = String::new();
    loop {
        changes.borrow_and_update();
        if engine.resources(|resources| resources.locals.contains_key(&gateway)) {
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        }
        match cni::report(&upstream, &gateway, addresses, true).await {
            Ok(()) => {
                tracing::info!(%gateway, "gateway bound to this node");
                told.clear();
            }
            Err(status) if status.message() != told => {
                told = status.message().to_owned();
                tracing::warn!(%gateway, reason = told, "gateway not bound yet");
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Writes down what loading the programs will make.
fn note_pins(ledger: &mut Ledger, bpffs: &Path) -> Result<(), LedgerError> {
    note_directories(ledger, bpffs)?;
    if !kernel::is_bpffs(bpffs) {
        ledger.note(Made::Mount(bpffs.to_owned()))?;
    }
    ledger.note(Made::Pins(bpffs.to_owned()))
}

fn note_file(ledger: &mut Ledger, path: &Path) -> Result<(), LedgerError> {
    path.parent().map_or(Ok(()), |dir| note_directories(ledger, dir))?;
    ledger.note(Made::File(path.to_owned()))
}

/// Those that are not there yet, the outermost first.
fn note_directories(ledger: &mut Ledger, dir: &Path) -> Result<(), LedgerError> {
    let missing: Vec<_> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    missing.into_iter().rev().try_for_each(|dir| ledger.note(Made::Directory(dir.to_owned())))
}

/// The cgroups of gateways as their processes name them.
fn gateway_cgroups(args: &RunArgs) -> anyhow::Result<Vec<(NamespacedName, String)>> {
    let of = |(name, dir): &(NamespacedName, std::path::PathBuf)| {
        let path = cgroup_path(&args.cgroup.join(dir));
        let path = path.with_context(|| format!("--gateway-cgroup {name}={}", dir.display()))?;
        Ok((name.clone(), path))
    };
    args.gateway_cgroups.iter().map(of).collect()
}

/// Anyone may connect: who it is, is looked at by [`Callers`].
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("{}", parent.display()))?;
    }
    mesh_tls::grpc::bind_unix(path, 0o666).map_err(Into::into)
}
