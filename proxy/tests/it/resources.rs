//! Hand-made resources.

use std::{net::SocketAddr, time::SystemTime};

use mesh_model::identity::{SpiffeId, TrustDomain};
use mesh_tls::{
    issue::{self, Issuer, Root},
    pem,
};
use rustls::pki_types::PrivateKeyDer;
use xds_proto::{
    Name,
    envoy::{
        config::{
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig},
            },
            core::v3::{
                Address, AggregatedConfigSource, ApiConfigSource, ConfigSource, DataSource, SocketAddress,
                TransportSocket, TypedExtensionConfig, address, config_source, data_source, socket_address,
                transport_socket,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
            listener::v3::{Filter, FilterChain, FilterChainMatch, Listener, filter},
            route::v3::{
                RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route,
                route_action::ClusterSpecifier, route_match::PathSpecifier,
            },
        },
        extensions::{
            filters::{
                http::router::v3::Router,
                network::{
                    http_connection_manager::v3::{
                        HttpConnectionManager, HttpFilter, Rds,
                        http_connection_manager::{RouteSpecifier, SetCurrentClientCertDetails},
                        http_filter,
                    },
                    tcp_proxy::v3::{TcpProxy, tcp_proxy},
                },
            },
            transport_sockets::tls::v3::{
                CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
                Secret, SpiffeCertValidatorConfig, SubjectAltNameMatcher, TlsCertificate, UpstreamTlsContext,
                common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
                secret, spiffe_cert_validator_config,
            },
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions,
                    explicit_http_config::ProtocolConfig,
                },
            },
        },
        r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::{BoolValue, Duration, UInt32Value},
    to_any,
};

pub const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

pub fn address(at: SocketAddr) -> Option<Address> {
    Some(Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: at.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(at.port().into())),
            ..SocketAddress::default()
        })),
    })
}

pub fn ads() -> Option<ConfigSource> {
    Some(ConfigSource {
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        resource_api_version: 2,
        ..ConfigSource::default()
    })
}

fn sds() -> Option<ConfigSource> {
    let api = ApiConfigSource { api_type: 3, transport_api_version: 2, ..ApiConfigSource::default() };
    Some(ConfigSource {
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::ApiConfigSource(api)),
        resource_api_version: 2,
        ..ConfigSource::default()
    })
}

// Listeners

pub fn listener(name: &str, filter_chains: Vec<FilterChain>) -> Listener {
    Listener { name: name.to_owned(), address: address(LOCAL), filter_chains, ..Listener::default() }
}

pub fn chain(filter: Filter) -> FilterChain {
    FilterChain { filters: vec![filter], ..FilterChain::default() }
}

pub fn with_tls(mut chain: FilterChain, sni: &[&str], tls: &DownstreamTlsContext) -> FilterChain {
    chain.transport_socket = Some(transport_socket(tls));
    with_names(chain, sni)
}

pub fn with_names(mut chain: FilterChain, sni: &[&str]) -> FilterChain {
    chain.filter_chain_match = Some(FilterChainMatch {
        server_names: sni.iter().map(|s| (*s).to_owned()).collect(),
        transport_protocol: "tls".to_owned(),
        ..FilterChainMatch::default()
    });
    chain
}

fn transport_socket<M: Name>(context: &M) -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(to_any(context))),
    }
}

pub fn hcm(routes: RouteSpecifier) -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: "test".to_owned(),
        http_filters: vec![HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(to_any(&Router::default()))),
            ..HttpFilter::default()
        }],
        route_specifier: Some(routes),
        ..HttpConnectionManager::default()
    }
}

pub fn rds(name: &str) -> RouteSpecifier {
    RouteSpecifier::Rds(Rds { config_source: ads(), route_config_name: name.to_owned() })
}

pub fn inline(routes: RouteConfiguration) -> RouteSpecifier {
    RouteSpecifier::RouteConfig(routes)
}

pub fn http_filter(manager: &HttpConnectionManager) -> Filter {
    filter("envoy.filters.network.http_connection_manager", manager)
}

pub fn tcp_filter(cluster: &str) -> Filter {
    let tcp = TcpProxy {
        stat_prefix: "test".to_owned(),
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..TcpProxy::default()
    };
    filter("envoy.filters.network.tcp_proxy", &tcp)
}

pub fn filter<M: Name>(name: &str, config: &M) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(to_any(config))) }
}

/// A listener without TLS, whose routes come by RDS under its own name.
pub fn plain_listener(name: &str) -> Listener {
    listener(name, vec![chain(http_filter(&hcm(rds(name))))])
}

// Routes

pub fn routes(name: &str, hosts: Vec<(&[&str], Vec<Route>)>) -> RouteConfiguration {
    let vhost = |(domains, routes): (&[&str], Vec<Route>)| VirtualHost {
        name: domains[0].to_owned(),
        domains: domains.iter().map(|d| (*d).to_owned()).collect(),
        routes,
        ..VirtualHost::default()
    };
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: hosts.into_iter().map(vhost).collect(),
        ..RouteConfiguration::default()
    }
}

pub fn prefix(path: &str) -> RouteMatch {
    RouteMatch { path_specifier: Some(PathSpecifier::Prefix(path.to_owned())), ..RouteMatch::default() }
}

pub fn to(matches: RouteMatch, action: RouteAction) -> Route {
    Route { r#match: Some(matches), action: Some(route::Action::Route(action)), ..Route::default() }
}

pub fn cluster_action(cluster: &str) -> RouteAction {
    RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..RouteAction::default()
    }
}

pub fn retrying(cluster: &str, on: &str, retries: u32) -> RouteAction {
    RouteAction {
        retry_policy: Some(RetryPolicy {
            retry_on: on.to_owned(),
            num_retries: Some(UInt32Value { value: retries }),
            ..RetryPolicy::default()
        }),
        ..cluster_action(cluster)
    }
}

/// Everything to one cluster.
pub fn all_to(name: &str, cluster: &str) -> RouteConfiguration {
    routes(name, vec![(&["*"], vec![to(prefix("/"), cluster_action(cluster))])])
}

// Clusters

pub fn eds_cluster(name: &str) -> Cluster {
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: ads(), service_name: String::new() }),
        connect_timeout: Some(Duration { seconds: 5, nanos: 0 }),
        ..Cluster::default()
    }
}

pub fn static_cluster(name: &str, endpoints: &[SocketAddr]) -> Cluster {
    let endpoints: Vec<_> = endpoints.iter().map(|at| (*at, 0)).collect();
    Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        eds_cluster_config: None,
        load_assignment: Some(assignment(name, &endpoints)),
        ..eds_cluster(name)
    }
}

pub fn speaking_http2(mut cluster: Cluster) -> Cluster {
    let explicit = ExplicitHttpConfig {
        protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(Default::default())),
    };
    set_options(&mut cluster, UpstreamProtocolOptions::ExplicitHttpConfig(explicit));
    cluster
}

pub fn over_tls(mut cluster: Cluster, tls: &UpstreamTlsContext) -> Cluster {
    cluster.transport_socket = Some(transport_socket(tls));
    set_options(&mut cluster, UpstreamProtocolOptions::AutoConfig(AutoHttpConfig::default()));
    cluster
}

fn set_options(cluster: &mut Cluster, options: UpstreamProtocolOptions) {
    let options =
        HttpProtocolOptions { upstream_protocol_options: Some(options), ..HttpProtocolOptions::default() };
    let key = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned();
    cluster.typed_extension_protocol_options.insert(key, to_any(&options));
}

/// Endpoints with their priorities.
pub fn assignment(cluster: &str, endpoints: &[(SocketAddr, u32)]) -> ClusterLoadAssignment {
    let locality = |(at, priority): &(SocketAddr, u32)| LocalityLbEndpoints {
        priority: *priority,
        lb_endpoints: vec![LbEndpoint {
            host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
                address: address(*at),
                ..Endpoint::default()
            })),
            ..LbEndpoint::default()
        }],
        ..LocalityLbEndpoints::default()
    };
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: endpoints.iter().map(locality).collect(),
        ..ClusterLoadAssignment::default()
    }
}

// TLS

fn tls(peers: &[&str], alpn: &[&str]) -> CommonTlsContext {
    let secret = |name: &str| SdsSecretConfig { name: name.to_owned(), sds_config: sds() };
    let matcher = |id: &&str| SubjectAltNameMatcher {
        san_type: 3,
        matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Exact((*id).to_owned())),
            ..StringMatcher::default()
        }),
        oid: String::new(),
    };
    CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![secret("default")],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(CertificateValidationContext {
                    match_typed_subject_alt_names: peers.iter().map(matcher).collect(),
                    ..CertificateValidationContext::default()
                }),
                validation_context_sds_secret_config: Some(secret("ROOTCA")),
                ..CombinedCertificateValidationContext::default()
            },
        )),
        alpn_protocols: alpn.iter().map(|a| (*a).to_owned()).collect(),
        ..CommonTlsContext::default()
    }
}

pub fn downstream_tls(peers: &[&str]) -> DownstreamTlsContext {
    DownstreamTlsContext {
        common_tls_context: Some(tls(peers, &["h2", "http/1.1"])),
        require_client_certificate: Some(BoolValue { value: true }),
        ..DownstreamTlsContext::default()
    }
}

pub fn upstream_tls(sni: &str, peers: &[&str]) -> UpstreamTlsContext {
    UpstreamTlsContext {
        common_tls_context: Some(tls(peers, &["h2", "http/1.1"])),
        sni: sni.to_owned(),
        ..UpstreamTlsContext::default()
    }
}

/// Sets `x-forwarded-client-cert`.
pub fn telling_the_peer(mut manager: HttpConnectionManager) -> HttpConnectionManager {
    manager.forward_client_cert_details = 3;
    manager.set_current_client_cert_details =
        Some(SetCurrentClientCertDetails { uri: true, ..SetCurrentClientCertDetails::default() });
    manager
}

/// A certificate authority.
pub struct Ca {
    root: Root,
    issuer: Issuer,
}

impl Ca {
    pub fn new(domain: &str) -> Self {
        let domain = TrustDomain::parse(domain).unwrap();
        let now = SystemTime::now();
        let root = Root::generate(domain.clone(), now).unwrap();
        let key = Issuer::generate().unwrap();
        let certificate = root.sign_issuer(&key.csr(&domain).unwrap(), now).unwrap();
        Self { root, issuer: key.certified(certificate).unwrap() }
    }

    /// The secret `default` of a workload.
    pub fn identity(&self, id: &str) -> Secret {
        self.certificate("default", &SpiffeId::parse(id).unwrap(), &[])
    }

    /// The secret of that name: a certificate for a DNS name.
    pub fn named(&self, secret: &str, dns_name: &str) -> Secret {
        let id = format!("spiffe://{}/ns/edge/sa/gateway", self.issuer.trust_domain());
        self.certificate(secret, &SpiffeId::parse(&id).unwrap(), &[dns_name.to_owned()])
    }

    fn certificate(&self, secret: &str, id: &SpiffeId, dns_names: &[String]) -> Secret {
        let (csr, key) = mesh_tls::csr::generate(id).unwrap();
        let now = SystemTime::now();
        let chain = self.issuer.sign_named(&csr, id, dns_names, 0, issue::LEAF_TTL, now).unwrap();
        let chain: String = pem::certificates(chain.iter().map(AsRef::as_ref));
        let certificate = TlsCertificate {
            certificate_chain: bytes(chain),
            private_key: bytes(key_pem(&key)),
            ..TlsCertificate::default()
        };
        Secret { name: secret.to_owned(), r#type: Some(secret::Type::TlsCertificate(certificate)) }
    }
}

impl Ca {
    /// Its root as `trusted_ca`.
    pub fn plain_roots(&self) -> Secret {
        trusted_ca(pem::certificate(self.root.certificate()))
    }
}

pub fn trusted_ca(pem: String) -> Secret {
    let context =
        CertificateValidationContext { trusted_ca: bytes(pem), ..CertificateValidationContext::default() };
    Secret { name: "ROOTCA".to_owned(), r#type: Some(secret::Type::ValidationContext(context)) }
}

/// The secret `ROOTCA`.
pub fn roots(cas: &[&Ca]) -> Secret {
    let domain = |ca: &&Ca| spiffe_cert_validator_config::TrustDomain {
        name: ca.root.trust_domain().to_string(),
        trust_bundle: bytes(pem::certificate(ca.root.certificate())),
        ..Default::default()
    };
    let validator = SpiffeCertValidatorConfig {
        trust_domains: cas.iter().map(domain).collect(),
        ..SpiffeCertValidatorConfig::default()
    };
    let context = CertificateValidationContext {
        custom_validator_config: Some(TypedExtensionConfig {
            name: "envoy.tls.cert_validator.spiffe".to_owned(),
            typed_config: Some(to_any(&validator)),
        }),
        ..CertificateValidationContext::default()
    };
    Secret { name: "ROOTCA".to_owned(), r#type: Some(secret::Type::ValidationContext(context)) }
}

fn bytes(text: String) -> Option<DataSource> {
    let specifier = Some(data_source::Specifier::InlineBytes(text.into_bytes()));
    Some(DataSource { specifier, ..DataSource::default() })
}

fn key_pem(key: &PrivateKeyDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(key.secret_der());
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|c| std::str::from_utf8(c).unwrap()).collect();
    let label = match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
