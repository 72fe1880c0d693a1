//! The programs and maps of format 2, as its release has left them.

use std::{net::Ipv4Addr, path::Path, process::Command};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData};
use aya::programs::links::FdLink;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use ebpf_shared::{Addr, Direction, Ip4};

const MAPS: [&str; 17] = [
    "FORMAT",
    "GENERATION",
    "HOSTS",
    "CIDRS",
    "ENDPOINTS",
    "CLASSES",
    "POLICY",
    "CONNTRACK",
    "FRAGMENTS",
    "SERVICES",
    "BACKENDS",
    "REVERSE",
    "NETNS",
    "CAPTURED",
    "EVENTS",
    "LOST",
    "METRICS",
];

/// Which of the programs stands at which hook.
const DOORS: [(&str, TcAttachType); 2] =
    [("from_pod", TcAttachType::Ingress), ("to_pod", TcAttachType::Egress)];

/// A pod that is guarded.
pub struct OldPod {
    /// The host's end of its link.
    pub host: String,
    pub address: Ipv4Addr,
    pub identity: u32,
    /// What its connections are known by.
    pub incarnation: u16,
    /// 1: everybody may talk to it; 2: it denies both ways by default, and lets one identity in.
    pub class: u32,
}

impl OldPod {
    fn ifindex(&self) -> u32 {
        nix::net::if_::if_nametoindex(self.host.as_str()).unwrap()
    }
}

/// Pins maps and links into a BPF file system. `client` is who comes to pods of class 2.
pub fn leave(bpffs: &Path, pods: &[OldPod], client: u32) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-2.o.gz");
    let unpacked = Command::new("gzip").arg("-dc").arg(fixture).output().unwrap();
    assert!(unpacked.status.success());
    for dir in ["maps", "links"] {
        std::fs::create_dir(bpffs.join(dir)).unwrap();
    }
    let mut loader = EbpfLoader::new();
    for name in MAPS {
        loader.map_pin_path(name, bpffs.join("maps").join(name));
    }
    let mut programs = loader.load(&unpacked.stdout).unwrap();
    for (name, _) in DOORS {
        classifier(&mut programs, name).load().unwrap();
    }
    fill(&mut programs, pods, client);
    for (name, place) in DOORS {
        let program = classifier(&mut programs, name);
        for pod in pods {
            let order = TcAttachOptions::TcxOrder(LinkOrder::first());
            let id = program.attach_with_options(&pod.host, place, order).unwrap();
            let link: FdLink = program.take_link(id).unwrap().try_into().unwrap();
            link.pin(bpffs.join("links").join(format!("tc-{}-{name}", pod.ifindex()))).unwrap();
        }
    }
}

fn classifier<'a>(programs: &'a mut Ebpf, name: &str) -> &'a mut SchedClassifier {
    programs.program_mut(name).unwrap().try_into().unwrap()
}

fn fill(programs: &mut Ebpf, pods: &[OldPod], client: u32) {
    let mut format: Array<MapData, u32> = programs.take_map("FORMAT").unwrap().try_into().unwrap();
    format.set(0, 2, 0).unwrap();
    let mut cidrs: LpmTrie<MapData, Addr, u32> = programs.take_map("CIDRS").unwrap().try_into().unwrap();
    cidrs.insert(&Key::new(Addr::V4_BITS, Addr::v4(Ip4::UNSPECIFIED)), 0, 0).unwrap();
    let mut hosts: HashMap<MapData, Addr, u32> = programs.take_map("HOSTS").unwrap().try_into().unwrap();
    let mut endpoints: HashMap<MapData, u32, [u8; 48]> =
        programs.take_map("ENDPOINTS").unwrap().try_into().unwrap();
    for pod in pods {
        hosts.insert(Addr::from(pod.address), pod.identity, 0).unwrap();
        let mut endpoint = [0; 48];
        endpoint[0..4].copy_from_slice(&pod.identity.to_ne_bytes());
        endpoint[4..8].copy_from_slice(&pod.class.to_ne_bytes());
        endpoint[12..14].copy_from_slice(&pod.incarnation.to_ne_bytes());
        endpoint[26..28].copy_from_slice(&[0xff, 0xff]);
        endpoint[28..32].copy_from_slice(&pod.address.octets());
        endpoints.insert(pod.ifindex(), endpoint, 0).unwrap();
    }
    let mut classes: HashMap<MapData, u32, [u32; 3]> =
        programs.take_map("CLASSES").unwrap().try_into().unwrap();
    classes.insert(1, [0, 0, 0], 0).unwrap();
    // Denies ingress and egress by default.
    classes.insert(2, [3, 0, 0], 0).unwrap();
    let mut policy: LpmTrie<MapData, [u8; 12], [u32; 2]> =
        programs.take_map("POLICY").unwrap().try_into().unwrap();
    let mut allowed = [0; 12];
    allowed[0..4].copy_from_slice(&2u32.to_ne_bytes());
    allowed[4..8].copy_from_slice(&client.to_ne_bytes());
    allowed[8] = Direction::Ingress as u8;
    policy.insert(&Key::new(80, allowed), [1, 1], 0).unwrap();
}
