//! A proxy, played in a process of its own: what it is told, and who it is told to be.

use std::path::Path;

use tonic::transport::Channel;
use xds_proto::envoy::{
    config::core::v3::Node,
    extensions::transport_sockets::tls::v3::{Secret, secret},
    service::{
        discovery::v3::{
            DiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
        secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
    },
};

use crate::{NODE_ID, SOCKET};

#[test]
#[ignore = "run by the other test, in a pod's network namespace"]
fn plays_a_proxy() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let node_id = std::env::var(NODE_ID).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let channel = mesh_tls::grpc::connect_unix(Path::new(&socket)).await.unwrap();
        match ads(channel.clone(), &node_id).await {
            Ok(version) => println!("\nproxy: ads {version}"),
            Err(status) => println!("\nproxy: ads {:?}", status.code()),
        }
        match secret(channel.clone(), &node_id, "default").await {
            Ok(own) => println!("proxy: sds {}", spiffe_id(&own)),
            Err(status) => println!("proxy: sds {:?}", status.code()),
        }
        if let Ok(roots) = secret(channel, &node_id, "ROOTCA").await {
            println!("proxy: roots {}", trust_domains(&roots));
        }
    });
}

fn request(node_id: &str, names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        node: Some(Node { id: node_id.into(), ..Default::default() }),
        resource_names: names.iter().map(|name| (*name).into()).collect(),
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".into(),
        ..Default::default()
    }
}

async fn ads(channel: Channel, node_id: &str) -> Result<String, tonic::Status> {
    let requests =
        futures::StreamExt::chain(futures::stream::iter([request(node_id, &[])]), futures::stream::pending());
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let mut responses = client.stream_aggregated_resources(requests).await?.into_inner();
    Ok(responses.message().await?.map(|response| response.version_info).unwrap_or_default())
}

async fn secret(channel: Channel, node_id: &str, name: &str) -> Result<Secret, tonic::Status> {
    let mut first = request(node_id, &[name]);
    first.type_url = xds_proto::type_url::<Secret>();
    let requests = futures::StreamExt::chain(futures::stream::iter([first]), futures::stream::pending());
    let mut responses =
        SecretDiscoveryServiceClient::new(channel).stream_secrets(requests).await?.into_inner();
    let response = responses.message().await?.expect("the stream is open");
    Ok(xds_proto::Message::decode(response.resources[0].value.as_slice()).expect("a secret"))
}

fn spiffe_id(own: &Secret) -> String {
    let Some(secret::Type::TlsCertificate(certificate)) = &own.r#type else { panic!("{own:?}") };
    let pem = inline(certificate.certificate_chain.as_ref());
    assert!(inline(certificate.private_key.as_ref()).starts_with("-----BEGIN PRIVATE KEY-----"));
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect();
    mesh_tls::peer_spiffe_id(&chain).unwrap().to_string()
}

fn trust_domains(roots: &Secret) -> String {
    use xds_proto::envoy::extensions::transport_sockets::tls::v3::SpiffeCertValidatorConfig;
    let Some(secret::Type::ValidationContext(context)) = &roots.r#type else { panic!("{roots:?}") };
    let validator = context.custom_validator_config.as_ref().unwrap();
    assert_eq!(validator.name, "envoy.tls.cert_validator.spiffe");
    let config: SpiffeCertValidatorConfig =
        xds_proto::Message::decode(validator.typed_config.as_ref().unwrap().value.as_slice()).unwrap();
    config.trust_domains.iter().map(|domain| domain.name.clone()).collect::<Vec<_>>().join(",")
}

fn inline(source: Option<&xds_proto::envoy::config::core::v3::DataSource>) -> String {
    use xds_proto::envoy::config::core::v3::data_source::Specifier;
    match source.and_then(|source| source.specifier.clone()) {
        Some(Specifier::InlineString(text)) => text,
        other => panic!("{other:?}"),
    }
}
