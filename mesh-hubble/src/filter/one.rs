//! One filter: every field that is set has to fit, by any of its values.

use regex::Regex;
use xds_proto::hubble::flow::{
    Endpoint, Flow, FlowFilter, HttpHeader, IpVersion, TcpFlags, TrafficDirection, Verdict, Workload,
    layer4::Protocol, layer7::Record,
};

use super::{
    FilterError, MAX_TEXT, MAX_VALUES,
    text::{Domain, Named, NodeName, Selector, StatusCode, network, regex},
};

/// One value of one field.
type Test = Box<dyn Fn(&Flow) -> bool + Send + Sync>;

/// A filter that was read.
#[derive(Clone, Default)]
pub(super) struct Filter {
    fields: Vec<std::sync::Arc<[Test]>>,
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter").field("fields", &self.fields.len()).finish()
    }
}

/// What is wrong with one field.
#[derive(Debug)]
pub(super) enum Wrong {
    Value { field: &'static str, value: String, wanted: String },
    NotServed(&'static str),
    TooManyValues(usize),
}

impl Wrong {
    pub(super) fn at(self, list: &'static str, index: usize) -> FilterError {
        match self {
            Self::Value { field, value, wanted } => FilterError::Value { list, index, field, value, wanted },
            Self::NotServed(field) => FilterError::NotServed { list, index, field },
            Self::TooManyValues(count) => FilterError::TooManyValues { count },
        }
    }
}

impl Filter {
    pub(super) fn new(from: &FlowFilter) -> Result<Self, Wrong> {
        let f = from;
        not_served("source_ip_xlated", f.source_ip_xlated.is_empty())?;
        not_served("node_labels", f.node_labels.is_empty())?;
        not_served("ip_trace_id", f.ip_trace_id.is_empty())?;
        let cel = f.experimental.as_ref().is_some_and(|more| !more.cel_expression.is_empty());
        not_served("experimental.cel_expression", !cel)?;

        let mut filter = Self::default();
        filter.both("source_ip", "destination_ip", [&f.source_ip, &f.destination_ip], |text, end| {
            let net = network(text)?;
            Ok(Box::new(move |flow| {
                let address = flow.ip.as_ref().map(|ip| end.pick(&ip.source, &ip.destination));
                address
                    .and_then(|text| text.parse().ok())
                    .is_some_and(|ip: std::net::IpAddr| net.contains(&ip))
            }))
        })?;
        filter.both("source_pod", "destination_pod", [&f.source_pod, &f.destination_pod], |text, end| {
            let named = Named::new(text)?;
            Ok(Box::new(move |flow| end.of(flow).is_some_and(|e| named.fits(&e.namespace, &e.pod_name))))
        })?;
        filter.both(
            "source_fqdn",
            "destination_fqdn",
            [&f.source_fqdn, &f.destination_fqdn],
            |text, end| {
                let domain = Domain::new(text)?;
                Ok(Box::new(move |flow| {
                    end.pick(&flow.source_names, &flow.destination_names).iter().any(|name| domain.fits(name))
                }))
            },
        )?;
        filter.both(
            "source_label",
            "destination_label",
            [&f.source_label, &f.destination_label],
            |text, end| {
                let selector = Selector::new(text)?;
                Ok(Box::new(move |flow| end.of(flow).is_some_and(|e| selector.fits(&e.labels))))
            },
        )?;
        let services = [&f.source_service, &f.destination_service];
        filter.both("source_service", "destination_service", services, |text, end| {
            let named = Named::new(text)?;
            Ok(Box::new(move |flow| {
                let service = end.pick(&flow.source_service, &flow.destination_service).as_ref();
                service.is_some_and(|s| named.fits(&s.namespace, &s.name))
            }))
        })?;
        let clusters = [&f.source_cluster_name, &f.destination_cluster_name];
        filter.both("source_cluster_name", "destination_cluster_name", clusters, |text, end| {
            let name = text.to_owned();
            Ok(Box::new(move |flow| end.of(flow).is_some_and(|e| e.cluster_name == name)))
        })?;
        filter.both(
            "source_port",
            "destination_port",
            [&f.source_port, &f.destination_port],
            |text, end| {
                let port: u16 = text.parse().map_err(|_| "is no port".to_owned())?;
                Ok(Box::new(move |flow| {
                    ports(flow).is_some_and(|(source, destination)| {
                        *end.pick(&source, &destination) == u32::from(port)
                    })
                }))
            },
        )?;
        for (end, wanted) in [(End::Source, &f.source_identity), (End::Destination, &f.destination_identity)]
        {
            filter
                .plain(wanted, move |wanted: &u32, flow| end.of(flow).is_some_and(|e| e.identity == *wanted));
        }
        for (end, wanted) in [(End::Source, &f.source_workload), (End::Destination, &f.destination_workload)]
        {
            filter.plain(wanted, move |wanted: &Workload, flow| {
                end.of(flow).is_some_and(|e| e.workloads.iter().any(|known| is_workload(wanted, known)))
            });
        }

        filter.plain(&f.verdict, |wanted: &i32, flow| flow.verdict == *wanted);
        known("verdict", &f.verdict, |n| Verdict::try_from(n).is_ok())?;
        filter.plain(&f.traffic_direction, |wanted: &i32, flow| flow.traffic_direction == *wanted);
        known("traffic_direction", &f.traffic_direction, |n| TrafficDirection::try_from(n).is_ok())?;
        filter.plain(&f.ip_version, |wanted: &i32, flow| {
            flow.ip.as_ref().is_some_and(|ip| ip.ip_version == *wanted)
        });
        known("ip_version", &f.ip_version, |n| IpVersion::try_from(n).is_ok())?;
        // Reasons that we do not know are reasons that no flow has.
        filter.plain(&f.drop_reason_desc, |wanted: &i32, flow| {
            flow.verdict == Verdict::Dropped as i32 && flow.drop_reason_desc == *wanted
        });
        filter.plain(&f.event_type, |wanted, flow| {
            flow.event_type.as_ref().is_some_and(|event| {
                event.r#type == wanted.r#type && (!wanted.match_sub_type || event.sub_type == wanted.sub_type)
            })
        });
        filter.plain(&f.reply, |wanted: &bool, flow| flow.is_reply == Some(*wanted));
        filter.plain(&f.encrypted, |wanted: &bool, flow| {
            flow.ip.as_ref().is_some_and(|ip| ip.encrypted == *wanted)
        });
        filter.plain(&f.tcp_flags, |wanted: &TcpFlags, flow| has_flags(wanted, flow));
        filter.plain(&f.interface, |wanted, flow| {
            flow.interface.as_ref().is_some_and(|known| {
                (wanted.index == 0 || known.index == wanted.index)
                    && (wanted.name.is_empty() || known.name == wanted.name)
            })
        });
        filter.plain(&f.uuid, |wanted: &String, flow| flow.uuid == *wanted);
        filter.plain(&f.trace_id, |wanted: &String, flow| {
            let parent = flow.trace_context.as_ref().and_then(|context| context.parent.as_ref());
            parent.is_some_and(|parent| parent.trace_id == *wanted)
        });
        filter.texts("protocol", &f.protocol, |text| {
            let name = text.to_ascii_lowercase();
            let known = ["tcp", "udp", "sctp", "icmp", "icmpv4", "icmpv6", "dns", "http"];
            if !known.contains(&name.as_str()) {
                return Err(format!("is none of {}", known.join(", ")));
            }
            Ok(Box::new(move |flow| has_protocol(&name, flow)))
        })?;
        filter.texts("node_name", &f.node_name, |text| {
            let name = NodeName::new(text)?;
            Ok(Box::new(move |flow| name.fits(&flow.node_name)))
        })?;
        filter.layer7(f)?;
        Ok(filter)
    }

    fn layer7(&mut self, f: &FlowFilter) -> Result<(), Wrong> {
        self.texts("http_status_code", &f.http_status_code, |text| {
            let code = StatusCode::new(text)?;
            Ok(Box::new(move |flow| http(flow).is_some_and(|http| code.fits(http.code))))
        })?;
        self.texts("http_method", &f.http_method, |text| {
            let method = text.to_owned();
            Ok(Box::new(move |flow| http(flow).is_some_and(|http| http.method.eq_ignore_ascii_case(&method))))
        })?;
        self.texts("http_path", &f.http_path, |text| {
            let path: Regex = regex(text)?;
            Ok(Box::new(move |flow| http(flow).is_some_and(|http| path.is_match(path_of(&http.url)))))
        })?;
        self.texts("http_url", &f.http_url, |text| {
            let url = regex(text)?;
            Ok(Box::new(move |flow| http(flow).is_some_and(|http| url.is_match(&http.url))))
        })?;
        self.plain(&f.http_header, |wanted: &HttpHeader, flow| {
            http(flow).is_some_and(|http| {
                http.headers
                    .iter()
                    .any(|known| known.key.eq_ignore_ascii_case(&wanted.key) && known.value == wanted.value)
            })
        });
        self.texts("dns_query", &f.dns_query, |text| {
            let query = regex(text)?;
            Ok(Box::new(move |flow| match record(flow) {
                Some(Record::Dns(dns)) => query.is_match(&dns.query),
                _ => false,
            }))
        })
    }

    pub(super) fn fits(&self, flow: &Flow) -> bool {
        self.fields.iter().all(|values| values.iter().any(|fits| fits(flow)))
    }

    /// How much there is to compare with.
    pub(super) fn values(&self) -> usize {
        self.fields.iter().map(|values| values.len()).sum()
    }

    /// A field whose values are compared as they are.
    fn plain<T: Clone + Send + Sync + 'static>(
        &mut self,
        values: &[T],
        fits: impl Fn(&T, &Flow) -> bool + Clone + Send + Sync + 'static,
    ) {
        if values.is_empty() {
            return;
        }
        // One more than is allowed is enough to be refused.
        let values = values.iter().take(MAX_VALUES + 1).cloned();
        let tests = values.map(|value| {
            let fits = fits.clone();
            Box::new(move |flow: &Flow| fits(&value, flow)) as Test
        });
        self.fields.push(tests.collect());
    }

    /// A field whose values are read first.
    fn texts(
        &mut self,
        field: &'static str,
        values: &[String],
        read: impl Fn(&str) -> Result<Test, String>,
    ) -> Result<(), Wrong> {
        if values.is_empty() {
            return Ok(());
        }
        if values.len() > MAX_VALUES {
            return Err(Wrong::TooManyValues(values.len()));
        }
        let mut tests = Vec::with_capacity(values.len());
        for value in values {
            let wrong = |wanted| Wrong::Value { field, value: value.chars().take(64).collect(), wanted };
            if value.len() > MAX_TEXT {
                return Err(wrong(format!("has {} bytes, at most {MAX_TEXT} are allowed", value.len())));
            }
            tests.push(read(value).map_err(wrong)?);
        }
        self.fields.push(tests.into());
        Ok(())
    }

    /// The same field of both ends.
    fn both(
        &mut self,
        source: &'static str,
        destination: &'static str,
        values: [&Vec<String>; 2],
        read: impl Fn(&str, End) -> Result<Test, String>,
    ) -> Result<(), Wrong> {
        self.texts(source, values[0], |text| read(text, End::Source))?;
        self.texts(destination, values[1], |text| read(text, End::Destination))
    }
}

#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

impl End {
    fn pick<'a, T>(self, source: &'a T, destination: &'a T) -> &'a T {
        match self {
            Self::Source => source,
            Self::Destination => destination,
        }
    }

    fn of(self, flow: &Flow) -> Option<&Endpoint> {
        self.pick(&flow.source, &flow.destination).as_ref()
    }
}

fn not_served(field: &'static str, is_empty: bool) -> Result<(), Wrong> {
    if is_empty { Ok(()) } else { Err(Wrong::NotServed(field)) }
}

fn known(field: &'static str, values: &[i32], is_known: impl Fn(i32) -> bool) -> Result<(), Wrong> {
    match values.iter().find(|value| !is_known(**value)) {
        None => Ok(()),
        Some(value) => {
            Err(Wrong::Value { field, value: value.to_string(), wanted: "is not known".to_owned() })
        }
    }
}

fn is_workload(wanted: &Workload, known: &Workload) -> bool {
    (wanted.name.is_empty() || wanted.name == known.name)
        && (wanted.kind.is_empty() || wanted.kind == known.kind)
}

fn protocol(flow: &Flow) -> Option<&Protocol> {
    flow.l4.as_ref()?.protocol.as_ref()
}

fn ports(flow: &Flow) -> Option<(u32, u32)> {
    match protocol(flow)? {
        Protocol::Tcp(l4) => Some((l4.source_port, l4.destination_port)),
        Protocol::Udp(l4) => Some((l4.source_port, l4.destination_port)),
        Protocol::Sctp(l4) => Some((l4.source_port, l4.destination_port)),
        Protocol::IcmPv4(_) | Protocol::IcmPv6(_) => None,
    }
}

fn has_protocol(name: &str, flow: &Flow) -> bool {
    match (name, protocol(flow)) {
        ("tcp", Some(Protocol::Tcp(_)))
        | ("udp", Some(Protocol::Udp(_)))
        | ("sctp", Some(Protocol::Sctp(_)))
        | ("icmp" | "icmpv4", Some(Protocol::IcmPv4(_)))
        | ("icmp" | "icmpv6", Some(Protocol::IcmPv6(_))) => true,
        _ => matches!((name, record(flow)), ("dns", Some(Record::Dns(_))) | ("http", Some(Record::Http(_)))),
    }
}

fn has_flags(wanted: &TcpFlags, flow: &Flow) -> bool {
    let Some(Protocol::Tcp(tcp)) = protocol(flow) else { return false };
    let Some(has) = &tcp.flags else { return false };
    let all = [
        (wanted.fin, has.fin),
        (wanted.syn, has.syn),
        (wanted.rst, has.rst),
        (wanted.psh, has.psh),
        (wanted.ack, has.ack),
        (wanted.urg, has.urg),
        (wanted.ece, has.ece),
        (wanted.cwr, has.cwr),
        (wanted.ns, has.ns),
    ];
    all.iter().all(|(wanted, has)| !wanted || *has)
}

fn record(flow: &Flow) -> Option<&Record> {
    flow.l7.as_ref()?.record.as_ref()
}

fn http(flow: &Flow) -> Option<&xds_proto::hubble::flow::Http> {
    match record(flow) {
        Some(Record::Http(http)) => Some(http),
        _ => None,
    }
}

/// The path of a URL or of a request target.
fn path_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest.find('/').map_or("/", |at| &rest[at..]));
    rest.split(['?', '#']).next().unwrap_or(rest)
}
