//! Sizes of the maps. Each is a ceiling: hash maps and tries allocate an entry when it is written,
//! LRU maps at once.

/// Version of the layout of every pinned map. Raised by any change to a shared struct or to a map's type.
pub const FORMAT: u32 = 4;

/// Addresses with an identity: workloads of the mesh, nodes, and single addresses that policies name.
pub const HOSTS: u32 = 262_144;
/// Addresses whose names in DNS have run out while somebody is still connected to them.
pub const LINGERING: u32 = 16_384;
/// CIDRs with an identity: what policies name, and the ranges of pods.
pub const CIDRS: u32 = 65_536;
/// Ranges of pods, and addresses of nodes.
pub const NODES: u32 = 65_536;
/// Pods of one node.
pub const ENDPOINTS: u32 = 4_096;
/// Distinct policies of one node, twice: a class may live beside its successor for a moment. Their numbers are less.
pub const CLASSES: u32 = 8_192;
/// Identities that a class has rules of its own for, over all classes.
pub const PEERS: u32 = 524_288;
/// Port prefixes over all rulesets.
pub const RULES: u32 = 262_144;
/// Connections of all pods of one node, about 130 bytes each. The least recently used one is forgotten.
pub const CONNTRACK: u32 = 131_072;
/// Addresses of the node itself.
pub const LOCALS: u32 = 4_096;
/// Addresses and ports of the control plane.
pub const CONTROL: u32 = 1_024;
/// Datagrams in pieces that are on their way to or from a pod at this moment.
pub const FRAGMENTS: u32 = 8_192;
/// Service address, port, protocol and who asks.
pub const SERVICES: u32 = 262_144;
/// Backends over all services.
pub const BACKENDS: u32 = 524_288;
/// Backends of one service.
pub const BACKENDS_PER_SERVICE: u32 = 4_096;
/// Slots over all services' tables: 32 MiB.
pub const MAGLEV: u32 = 8_388_608;
/// Bits of `SERVED`, a power of two: 128 KiB, in which 100,000 services take one bit in ten.
pub const SERVED_BITS: u32 = 1 << 20;
/// Halves of translated flows, two each: 300 bytes for both. The least recently used one is forgotten.
pub const NAT: u32 = 131_072;
/// Interfaces that are told apart by whether they have translated flows, a power of two.
pub const TRANSLATED: u32 = 4_096;
/// Clients that are to stay with their backend.
pub const AFFINITY: u32 = 65_536;
/// Ranges of addresses that may ask for a service, over all services.
pub const SOURCES: u32 = 65_536;
/// Backends of this node, for each address of a service that is answered directly.
pub const ANSWERERS: u32 = 65_536;
/// Sockets that talk to a service address and may ask whom they talk to.
pub const REVERSE: u32 = 131_072;
/// Slots of proxies; their numbers are less.
pub const PROXIES: u32 = 1_024;
/// Network namespaces with a sidecar.
pub const NETNS: u32 = 4_096;
/// Ports taken over by sidecars.
pub const CAPTURED: u32 = 65_536;
/// Bytes of the flow event ring, a power of two: some 47,000 events.
pub const EVENTS: u32 = 1 << 22;
/// Kinds of flows that are told of together under load. The least recently used one is forgotten; what was suppressed
/// of it stays counted by reason.
pub const FLOWS: u32 = 4_096;
