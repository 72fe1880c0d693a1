//! Every map. Names and sizes are what the agent finds them by: `node_agent::kernel::maps`.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_sock_tuple};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, LruPerCpuHashMap, PerCpuArray, RingBuf};
use ebpf_shared::fragment::{FragmentKey, Head};
use ebpf_shared::nat::{NatKey, NatValue, NodeConfig};
use ebpf_shared::overlay::Hop;
use ebpf_shared::service::{AffinityKey, AffinityValue, AnswererKey, ReverseValue, Slots, SourceKey};
use ebpf_shared::{
    Addr, Backend, CapturedKey, ConnEntry, ConnKey, Endpoint, FlowCell, FlowKind, Metric, Netns, PeerKey,
    Proxy, ReverseKey, RuleKey, RuleValue, ServiceKey, ServiceValue, Sides, SockAddr, Unnamed, epochs,
    limits, metrics,
};

use crate::established::{self, Recent};
use crate::host::HostStage;
use crate::nat::Stage;
use crate::nat::known::{self, Known};
use crate::verdict::Scratch;

/// The layout of all other pinned maps; written by the agent that created them.
#[map]
pub static FORMAT: Array<u32> = Array::with_max_entries(1, 0);

/// Raised after each change to what a verdict reads; the agent has them in its memory.
#[map]
pub static EPOCHS: Array<u64> = Array::with_max_entries(epochs::COUNT, BPF_F_MMAPABLE);

/// Identities of single addresses: a hash, because its cost does not grow with their number.
#[map]
pub static HOSTS: HashMap<Addr, u32> = HashMap::with_max_entries(limits::HOSTS, BPF_F_NO_PREALLOC);

/// Identities that single addresses have for connections that are there already, where it is another for new ones.
#[map]
pub static LINGERING: HashMap<Addr, u32> = HashMap::with_max_entries(limits::LINGERING, BPF_F_NO_PREALLOC);

/// Identities of ranges. There is always an entry for all of IPv4 ([`ebpf_shared::identity::ANY`] if nobody names
/// it), so that an IPv6 range around its mapped form does not hold for it.
#[map]
pub static CIDRS: LpmTrie<Addr, u32> = LpmTrie::with_max_entries(limits::CIDRS, 0);

/// Which node has which pods, for the tunnel: ranges of pods, and the nodes' own addresses.
#[map]
pub static NODES: LpmTrie<Addr, Hop> = LpmTrie::with_max_entries(limits::NODES, 0);

#[map]
pub static ENDPOINTS: HashMap<u32, Endpoint> =
    HashMap::with_max_entries(limits::ENDPOINTS, BPF_F_NO_PREALLOC);

#[map]
pub static CLASSES: HashMap<u32, Unnamed> = HashMap::with_max_entries(limits::CLASSES, BPF_F_NO_PREALLOC);

#[map]
pub static PEERS: HashMap<PeerKey, Sides> = HashMap::with_max_entries(limits::PEERS, BPF_F_NO_PREALLOC);

#[map]
pub static RULES: LpmTrie<RuleKey, RuleValue> = LpmTrie::with_max_entries(limits::RULES, 0);

#[map]
pub static CONNTRACK: LruHashMap<ConnKey, ConnEntry> = LruHashMap::with_max_entries(limits::CONNTRACK, 0);

#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, Head> = LruHashMap::with_max_entries(limits::FRAGMENTS, 0);

#[map]
pub static SERVICES: HashMap<ServiceKey, ServiceValue> =
    HashMap::with_max_entries(limits::SERVICES, BPF_F_NO_PREALLOC);

/// The tables of all services, one after the other. The agent writes to its memory.
#[map]
pub static MAGLEV: Array<Slots> = Array::with_max_entries(limits::MAGLEV / 2, BPF_F_MMAPABLE);

/// A bit for each address of a service ([`ServiceKey::bit`]): what has none need not be looked up.
#[map]
pub static SERVED: Array<u64> = Array::with_max_entries(limits::SERVED_BITS / 64, BPF_F_MMAPABLE);

#[map]
pub static BACKENDS: HashMap<u32, Backend> = HashMap::with_max_entries(limits::BACKENDS, BPF_F_NO_PREALLOC);

/// Two numbers that tell of what a translated flow rests on that it has changed: the agent raises the first after it has removed a
/// backend, and programs write the time to the second when a flow is about to be translated otherwise than it was.
#[map]
pub static BACKEND_EPOCH: Array<u64> = Array::with_max_entries(2, BPF_F_MMAPABLE);

#[map]
pub static AFFINITY: LruHashMap<AffinityKey, AffinityValue> =
    LruHashMap::with_max_entries(limits::AFFINITY, 0);

#[map]
pub static SOURCES: LpmTrie<SourceKey, u8> = LpmTrie::with_max_entries(limits::SOURCES, 0);

/// Who may answer by an address of a service, see `ebpf_shared::nat::answer_for`.
#[map]
pub static ANSWERERS: HashMap<AnswererKey, u8> =
    HashMap::with_max_entries(limits::ANSWERERS, BPF_F_NO_PREALLOC);

#[map]
pub static REVERSE: LruHashMap<ReverseKey, ReverseValue> = LruHashMap::with_max_entries(limits::REVERSE, 0);

/// What translated packets become, see `ebpf_shared::nat`.
#[map]
pub static NAT: LruHashMap<NatKey, NatValue> = LruHashMap::with_max_entries(limits::NAT, 0);

/// Translated flows whose packets have passed here lately, see `crate::nat::known`.
#[map]
pub static KNOWN: PerCpuArray<Known> = PerCpuArray::with_max_entries(known::FLOWS, 0);

/// Whether the pod behind an interface (modulo the size) ever had one: then its answers are looked at.
#[map]
pub static TRANSLATED: Array<u32> = Array::with_max_entries(limits::TRANSLATED, 0);

/// Packets that took the short cut.
#[map]
pub static ACCELERATED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

#[map]
pub static CONFIG: Array<NodeConfig> = Array::with_max_entries(1, 0);

#[map]
pub static NETNS: HashMap<u64, Netns> = HashMap::with_max_entries(limits::NETNS, BPF_F_NO_PREALLOC);

#[map]
pub static CAPTURED: HashMap<CapturedKey, u8> =
    HashMap::with_max_entries(limits::CAPTURED, BPF_F_NO_PREALLOC);

/// Where proxies listen, by slot.
#[map]
pub static PROXIES: HashMap<u32, Proxy> = HashMap::with_max_entries(limits::PROXIES, BPF_F_NO_PREALLOC);
/// The node's own addresses, with a number for each: part of the keys of its connections.
#[map]
pub static LOCALS: HashMap<Addr, u32> = HashMap::with_max_entries(limits::LOCALS, BPF_F_NO_PREALLOC);

/// Where the control plane listens: no policy for the node itself cuts it off.
#[map]
pub static CONTROL: HashMap<SockAddr, u8> = HashMap::with_max_entries(limits::CONTROL, BPF_F_NO_PREALLOC);

/// 1 while a policy selects the node, see `crate::host`.
#[map]
pub static GUARDED: Array<u32> = Array::with_max_entries(1, 0);

/// As [`SCRATCH`], see `crate::host`.
#[map]
pub static HOST_STAGE: PerCpuArray<HostStage> = PerCpuArray::with_max_entries(1, 0);

/// Flows whose packets have passed here lately, see `crate::established`.
#[map]
pub static RECENT: PerCpuArray<Recent> = PerCpuArray::with_max_entries(established::FLOWS, 0);

/// Where a parsed packet lies for a moment, see `crate::verdict`.
#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// As [`SCRATCH`], see `crate::nat`.
#[map]
pub static STAGE: PerCpuArray<Stage> = PerCpuArray::with_max_entries(1, 0);

/// What a socket is looked up by, for a moment: see `crate::redirect`.
#[map]
pub static LOOKUP: PerCpuArray<bpf_sock_tuple> = PerCpuArray::with_max_entries(1, 0);

#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(limits::EVENTS, 0);

/// What was told of each kind of flow, so that many are told of together.
#[map]
pub static FLOWS: LruPerCpuHashMap<FlowKind, FlowCell> = LruPerCpuHashMap::with_max_entries(limits::FLOWS, 0);

/// News that were counted and not told, by direction and reason: exact, whatever `FLOWS` forgets.
#[map]
pub static SUPPRESSED: PerCpuArray<Metric> = PerCpuArray::with_max_entries(metrics::CELLS, 0);

/// Events that found the ring full, by direction and reason.
#[map]
pub static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(metrics::CELLS, 0);

#[map]
pub static METRICS: PerCpuArray<Metric> = PerCpuArray::with_max_entries(metrics::CELLS, 0);
