//! Environment and standard input, checked. PURE.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::{CniError, SUPPORTED_VERSIONS, code};
use crate::config::dns_label;

/// A larger configuration is refused; ours have a few hundred bytes.
pub const MAX_STDIN: usize = 1 << 20;
/// Longest interface name in Linux, without the closing zero.
const MAX_IFNAME: usize = 15;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// The variables that the specification names, as the process found them.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Takes what begins with `CNI_`. A value that is no UTF-8 counts as absent.
    pub fn new(vars: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(vars.into_iter().filter(|(name, _)| name.starts_with("CNI_")).collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn need(&self, name: &str) -> Result<&str, CniError> {
        self.get(name).ok_or_else(|| CniError::new(code::BAD_ENVIRONMENT, format!("{name} is not set")))
    }
}

/// The network configuration on standard input.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    /// Version of the specification that the result is to follow.
    #[serde(default = "oldest")]
    pub cni_version: String,
    /// Of the network: what GC is about.
    #[serde(default)]
    pub name: String,
    /// The agent's socket.
    #[serde(default)]
    pub agent_socket: Option<PathBuf>,
    /// What a plugin before this one, or the ADD before this CHECK, gave.
    #[serde(default)]
    pub prev_result: Option<Value>,
    /// What the runtime adds for a capability that the configuration claims.
    #[serde(default)]
    pub runtime_config: RuntimeConfig,
    /// With GC: what the runtime knows.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Option<Vec<Attachment>>,
    /// The same under the name that libcni used before the specification had one, and still sends.
    #[serde(default, rename = "cni.dev/attachments")]
    pub attachments: Option<Vec<Attachment>>,
}

/// The capabilities that the plugin has.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeConfig {
    /// Capability `portMappings`: ports of the node that lead to the pod.
    #[serde(default)]
    pub port_mappings: Option<Vec<PortMapping>>,
}

/// A port of the node that leads to the pod (CNI conventions, "portMappings").
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct PortMapping {
    pub host_port: u16,
    pub container_port: u16,
    #[serde(default = "tcp")]
    pub protocol: String,
    #[serde(default, rename = "hostIP")]
    pub host_ip: String,
}

fn tcp() -> String {
    "tcp".to_owned()
}

/// A container's interface, as the runtime names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[allow(missing_docs)]
pub struct Attachment {
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub ifname: String,
}

fn oldest() -> String {
    // "If cniVersion is absent, 0.1.0 is meant", and that one is not supported.
    "0.1.0".to_owned()
}

/// One call of the plugin.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Invocation {
    pub verb: Verb,
    pub config: NetworkConfig,
    pub socket: PathBuf,
    pub container_id: String,
    /// Empty where the verb has none, or DEL comes after the namespace is gone.
    pub netns: String,
    pub ifname: String,
    pub namespace: String,
    pub pod: String,
    /// With GC: every attachment that stays.
    pub valid: Vec<Attachment>,
}

/// Reads one call. Beside an error comes the version that its text is to name.
///
/// # Errors
/// With the specification's codes: 1, 4, 6 and 7.
pub fn parse(environment: &Environment, stdin: &[u8]) -> Result<Invocation, (String, CniError)> {
    let newest = SUPPORTED_VERSIONS[SUPPORTED_VERSIONS.len() - 1].to_owned();
    let verb = match environment.need("CNI_COMMAND").map_err(|error| (newest.clone(), error))? {
        "ADD" => Verb::Add,
        "DEL" => Verb::Del,
        "CHECK" => Verb::Check,
        "GC" => Verb::Gc,
        "STATUS" => Verb::Status,
        "VERSION" => Verb::Version,
        other => {
            let msg = format!("CNI_COMMAND is {other:?}, expected ADD, DEL, CHECK, GC, STATUS or VERSION");
            return Err((newest, CniError::new(code::BAD_ENVIRONMENT, msg)));
        }
    };
    let config = network_config(stdin).map_err(|error| (newest.clone(), error))?;
    let version = config.cni_version.clone();
    read(environment, verb, config).map_err(|error| {
        let known = SUPPORTED_VERSIONS.contains(&version.as_str());
        (if known { version } else { newest }, error)
    })
}

fn network_config(stdin: &[u8]) -> Result<NetworkConfig, CniError> {
    if stdin.len() > MAX_STDIN {
        let msg = format!("the network configuration has more than {MAX_STDIN} bytes");
        return Err(CniError::new(code::DECODE, msg));
    }
    serde_json::from_slice(stdin).map_err(|error| {
        CniError::new(code::DECODE, "the network configuration on standard input is no valid JSON")
            .details(error.to_string())
    })
}

fn read(environment: &Environment, verb: Verb, config: NetworkConfig) -> Result<Invocation, CniError> {
    let empty = PathBuf::new();
    let mut invocation = Invocation {
        verb,
        socket: config.agent_socket.clone().unwrap_or(empty),
        config,
        container_id: String::new(),
        netns: String::new(),
        ifname: String::new(),
        namespace: String::new(),
        pod: String::new(),
        valid: Vec::new(),
    };
    if verb == Verb::Version {
        return Ok(invocation);
    }
    let version = &invocation.config.cni_version;
    if !SUPPORTED_VERSIONS.contains(&version.as_str()) {
        let msg = format!("cniVersion {version:?} is not supported");
        let details = format!("supported are {}", SUPPORTED_VERSIONS.join(", "));
        return Err(CniError::new(code::INCOMPATIBLE_VERSION, msg).details(details));
    }
    if invocation.socket.as_os_str().is_empty() {
        let msg = "agentSocket is not set in the network configuration";
        return Err(
            CniError::new(code::BAD_CONFIG, msg).details("set it to the --socket of this node's node-agent")
        );
    }
    if verb == Verb::Status {
        return Ok(invocation);
    }
    if verb == Verb::Gc {
        invocation.valid = valid_attachments(&invocation.config)?;
        return Ok(invocation);
    }
    invocation.container_id = container_id(environment.need("CNI_CONTAINERID")?)?;
    invocation.ifname = ifname(environment.need("CNI_IFNAME")?)?;
    // "DEL: CNI_NETNS may be empty if the namespace is gone".
    invocation.netns = match verb {
        Verb::Del => environment.get("CNI_NETNS").unwrap_or_default().to_owned(),
        _ => environment.need("CNI_NETNS")?.to_owned(),
    };
    let args = arguments(environment.get("CNI_ARGS").unwrap_or_default())?;
    let arg = |name: &str| match args.get(name) {
        Some(value) => dns_label(value)
            .map_err(|reason| CniError::new(code::BAD_ENVIRONMENT, format!("CNI_ARGS: {name}: {reason}"))),
        // DEL needs no more than the container's id, CHECK neither.
        None if verb != Verb::Add => Ok(String::new()),
        None => Err(CniError::new(code::BAD_ENVIRONMENT, format!("CNI_ARGS has no {name}"))
            .details("it names the Workload that the pod runs")),
    };
    invocation.namespace = arg("K8S_POD_NAMESPACE")?;
    invocation.pod = arg("K8S_POD_NAME")?;
    Ok(invocation)
}

/// What GC leaves alone. A list that is missing is no empty list: that would remove every pod.
fn valid_attachments(config: &NetworkConfig) -> Result<Vec<Attachment>, CniError> {
    if config.name.is_empty() {
        return Err(CniError::new(code::BAD_CONFIG, "name is not set in the network configuration")
            .details("GC removes what belongs to the network of that name"));
    }
    let given = [&config.valid_attachments, &config.attachments];
    if given.iter().all(|list| list.is_none()) {
        return Err(CniError::new(code::BAD_CONFIG, "cni.dev/valid-attachments is not set")
            .details("an empty list says that the runtime knows no container"));
    }
    // Whichever list names it, it stays.
    let mut valid: Vec<Attachment> = given.into_iter().flatten().flatten().cloned().collect();
    valid.sort();
    valid.dedup();
    Ok(valid)
}

/// "Must start with an alphanumeric character, followed by any of alphanumeric, '_', '.' or '-'."
fn container_id(text: &str) -> Result<String, CniError> {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if first && text.len() <= 255 && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    let msg = format!("CNI_CONTAINERID is {text:?}, expected letters, digits, '_', '.' and '-'");
    Err(CniError::new(code::BAD_ENVIRONMENT, msg))
}

/// "Must be a valid Linux interface name": not "." or "..", no '/', ':' or white space, 15 bytes.
fn ifname(text: &str) -> Result<String, CniError> {
    let allowed = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
    if text.len() <= MAX_IFNAME && text != "." && text != ".." && text != "lo" && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    let msg = format!("CNI_IFNAME is {text:?}, expected an interface name of up to 15 characters");
    Err(CniError::new(code::BAD_ENVIRONMENT, msg))
}

/// `KEY=VALUE;KEY=VALUE`. What is not ours is ignored, as `IgnoreUnknown` asks everyone to do.
fn arguments(text: &str) -> Result<BTreeMap<&str, &str>, CniError> {
    let pairs = text.split(';').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            pair.split_once('=').ok_or_else(|| {
                CniError::new(code::BAD_ENVIRONMENT, format!("CNI_ARGS: {pair:?} is not KEY=VALUE"))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn env(pairs: &[(&str, &str)]) -> Environment {
        Environment::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    const ADD: &[(&str, &str)] = &[
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "abc-1"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=pay"),
        ("PATH", "/bin"),
    ];
    const CONFIG: &[u8] = br#"{"cniVersion":"1.1.0","name":"n","type":"isthmus-cni","agentSocket":"/s"}"#;

    fn without(name: &str) -> Environment {
        let pairs: Vec<_> = ADD.iter().copied().filter(|(key, _)| *key != name).collect();
        env(&pairs)
    }

    #[test]
    fn an_add_names_its_workload() {
        let call = parse(&env(ADD), CONFIG).unwrap();
        assert_eq!((call.verb, call.namespace.as_str(), call.pod.as_str()), (Verb::Add, "shop", "pay"));
        assert_eq!(call.socket, PathBuf::from("/s"));
    }

    #[test]
    fn what_is_missing_is_named_with_the_specifications_code() {
        for name in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
            let (version, error) = parse(&without(name), CONFIG).unwrap_err();
            assert_eq!((version.as_str(), error.code), ("1.1.0", code::BAD_ENVIRONMENT));
            assert!(error.msg.contains(name), "{error}");
        }
    }

    #[test]
    fn versions_that_are_not_spoken_are_refused_with_code_1() {
        for version in ["0.3.1", "2.0.0", ""] {
            let config = format!(r#"{{"cniVersion":"{version}","agentSocket":"/s"}}"#);
            let (_, error) = parse(&env(ADD), config.as_bytes()).unwrap_err();
            assert_eq!(error.code, code::INCOMPATIBLE_VERSION);
        }
        let (_, error) = parse(&env(ADD), br#"{"agentSocket":"/s"}"#).unwrap_err();
        assert_eq!(error.code, code::INCOMPATIBLE_VERSION);
    }

    #[test]
    fn bad_json_and_a_missing_socket_are_refused() {
        assert_eq!(parse(&env(ADD), b"{").unwrap_err().1.code, code::DECODE);
        assert_eq!(parse(&env(ADD), &vec![b' '; MAX_STDIN + 1]).unwrap_err().1.code, code::DECODE);
        let error = parse(&env(ADD), br#"{"cniVersion":"1.0.0"}"#).unwrap_err();
        assert_eq!((error.0.as_str(), error.1.code), ("1.0.0", code::BAD_CONFIG));
    }

    #[test]
    fn names_that_could_be_paths_are_refused() {
        for (name, value) in [
            ("CNI_CONTAINERID", "../x"),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "a-name-of-16-byt"),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=../x;K8S_POD_NAME=pay"),
            ("CNI_ARGS", "K8S_POD_NAMESPACE"),
        ] {
            let mut pairs = ADD.to_vec();
            pairs.push((name, value));
            assert_eq!(parse(&env(&pairs), CONFIG).unwrap_err().1.code, code::BAD_ENVIRONMENT, "{value}");
        }
    }

    fn gc(more: &str) -> Result<Vec<Attachment>, CniError> {
        let config = format!(r#"{{"cniVersion":"1.1.0","name":"n","agentSocket":"/s"{more}}}"#);
        let call = parse(&env(&[("CNI_COMMAND", "GC")]), config.as_bytes());
        call.map(|call| call.valid).map_err(|(_, error)| error)
    }

    #[test]
    fn a_gc_without_a_list_is_refused_and_an_empty_list_is_one() {
        assert_eq!(gc("").unwrap_err().code, code::BAD_CONFIG);
        assert_eq!(gc(r#","cni.dev/valid-attachments":[]"#).unwrap(), []);
        let nameless = br#"{"cniVersion":"1.1.0","agentSocket":"/s","cni.dev/valid-attachments":[]}"#;
        assert_eq!(parse(&env(&[("CNI_COMMAND", "GC")]), nameless).unwrap_err().1.code, code::BAD_CONFIG);
    }

    #[test]
    fn an_attachment_that_either_list_names_stays() {
        let one = r#"{"containerID":"c1","ifname":"eth0"}"#;
        let two = r#"{"containerID":"c2","ifname":"eth0"}"#;
        let both =
            gc(&format!(r#","cni.dev/valid-attachments":[{one}],"cni.dev/attachments":[{two},{one}]"#));
        let names: Vec<_> = both.unwrap().into_iter().map(|attachment| attachment.container_id).collect();
        assert_eq!(names, ["c1", "c2"]);
        assert_eq!(gc(r#","cni.dev/attachments":[{"containerID":7}]"#).unwrap_err().code, code::DECODE);
    }

    #[test]
    fn port_mappings_are_read_as_the_conventions_write_them() {
        let config = br#"{"cniVersion":"1.1.0","agentSocket":"/s","runtimeConfig":{"portMappings":
            [{"hostPort":8080,"containerPort":80},
             {"hostPort":53,"containerPort":53,"protocol":"udp","hostIP":"192.0.2.1"}]}}"#;
        let ports = parse(&env(ADD), config).unwrap().config.runtime_config.port_mappings.unwrap();
        assert_eq!((ports[0].host_port, ports[0].protocol.as_str()), (8080, "tcp"));
        assert_eq!((ports[1].protocol.as_str(), ports[1].host_ip.as_str()), ("udp", "192.0.2.1"));
        let wrong = br#"{"cniVersion":"1.1.0","agentSocket":"/s","runtimeConfig":{"portMappings":[{"hostPort":70000,"containerPort":1}]}}"#;
        assert_eq!(parse(&env(ADD), wrong).unwrap_err().1.code, code::DECODE);
    }

    /// Any JSON, under the keys that are read as well as under others.
    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,20}".prop_map(Value::from),
            Just(Value::from("10.1.1.2/32")),
            Just(Value::from("eth0")),
            Just(Value::from("1.1.0")),
        ];
        leaf.prop_recursive(4, 64, 6, |inner| {
            let key = prop::sample::select(vec![
                "cniVersion",
                "name",
                "agentSocket",
                "prevResult",
                "runtimeConfig",
                "portMappings",
                "hostPort",
                "containerPort",
                "protocol",
                "hostIP",
                "cni.dev/valid-attachments",
                "cni.dev/attachments",
                "containerID",
                "ifname",
                "interfaces",
                "ips",
                "address",
                "interface",
                "sandbox",
                "mac",
                "other",
            ]);
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key, inner), 0..8)
                    .prop_map(|pairs| pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_comes_in_is_an_invocation_or_an_error_of_the_specification(
            verb in prop::sample::select(vec!["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "", "ADD "]),
            container in ".{0,300}",
            ifname in ".{0,20}",
            netns in ".{0,40}",
            args in "(IgnoreUnknown=1;)?(K8S_POD_NAMESPACE=.{0,5};)?(K8S_POD_NAME=.{0,5})?.{0,9}",
            config in json(),
            cut in 0usize..400,
        ) {
            let environment = env(&[
                ("CNI_COMMAND", verb), ("CNI_CONTAINERID", &container), ("CNI_IFNAME", &ifname),
                ("CNI_NETNS", &netns), ("CNI_ARGS", &args),
            ]);
            let whole = config.to_string().into_bytes();
            for text in [&whole[..], &whole[..cut.min(whole.len())]] {
                match parse(&environment, text) {
                    Ok(call) => prop_assert!(
                        call.container_id.len() <= 255 && call.ifname.len() <= MAX_IFNAME
                            && !call.ifname.contains('/') && !call.container_id.contains('/')
                    ),
                    Err((version, error)) => prop_assert!(
                        SUPPORTED_VERSIONS.contains(&version.as_str()) && matches!(error.code, 1 | 4 | 6 | 7)
                    ),
                }
            }
            // What a plugin before this one is said to have answered.
            let _ = crate::cni_plugin::PreviousResult::parse(&whole, "eth0");
        }
    }

    #[test]
    fn a_del_needs_no_namespace_and_no_workload() {
        let call = parse(
            &env(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "abc"), ("CNI_IFNAME", "eth0")]),
            CONFIG,
        );
        assert_eq!(call.unwrap().netns, "");
    }
}
