//! A session as an `envoy.service.status.v3.ClientConfig`.

use std::time::{SystemTime, UNIX_EPOCH};

use clustermesh::csds::{ACKED_REVISION, CLIENT, PROTOCOL, REPLICA};
use xds_proto::{
    envoy::{
        admin::v3::{ClientResourceStatus, UpdateFailureState},
        config::core::v3::Node,
        service::status::v3::{ClientConfig, ConfigStatus, client_config::GenericXdsConfig},
    },
    google::protobuf::{Struct, Timestamp, Value, value::Kind},
};

use super::journal::Journal;
use crate::xds::session::{Holding, Inspection, Session};

/// Metadata of a node that is kept, in bytes: for matching and display only.
const MAX_METADATA_BYTES: usize = 4_096;

/// What is kept of the node that a client says it is: Envoy's is 61 KB, most of it a list of its extensions.
pub fn trimmed(node: Node) -> Node {
    let small = |metadata: &Struct| prost_size(metadata) <= MAX_METADATA_BYTES;
    Node {
        id: node.id,
        cluster: node.cluster,
        metadata: node.metadata.filter(small),
        locality: node.locality,
        user_agent_name: node.user_agent_name,
        user_agent_version_type: node.user_agent_version_type,
        client_features: node.client_features,
        ..Default::default()
    }
}

fn prost_size(message: &Struct) -> usize {
    xds_proto::Message::encoded_len(message)
}

/// Who the client is, beside what it says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Whose<'a> {
    /// As it gave itself, trimmed.
    pub node: &'a Node,
    /// As it was authorized.
    pub client: &'a str,
    /// Identifier of this replica.
    pub replica: &'a str,
}

/// Everything that a client has, should have or has refused; with the resources themselves if `contents` says so.
pub fn client_config(whose: Whose<'_>, session: &Session, journal: &Journal, contents: bool) -> ClientConfig {
    let mut node = whose.node.clone();
    let acked =
        session.status().iter().map(|status| status.acked_revision).min().unwrap_or(session.revision());
    let mut fields = node.metadata.take().unwrap_or_default().fields;
    let said = [
        (CLIENT, whose.client.to_owned()),
        (REPLICA, whose.replica.to_owned()),
        (PROTOCOL, session.protocol().as_str().to_owned()),
        (ACKED_REVISION, acked.to_string()),
    ];
    for (key, text) in said {
        fields.insert(key.to_owned(), Value { kind: Some(Kind::StringValue(text)) });
    }
    node.metadata = Some(Struct { fields });
    let mut generic_xds_configs = Vec::new();
    session.inspect(|inspection| generic_xds_configs.push(config(&inspection, journal, contents)));
    ClientConfig { node: Some(node), generic_xds_configs, ..Default::default() }
}

fn config(inspection: &Inspection<'_>, journal: &Journal, contents: bool) -> GenericXdsConfig {
    let Inspection { type_url, name, version, resource, holding, .. } = inspection;
    let status = match holding {
        Holding::Acked | Holding::Absent => ConfigStatus::Synced,
        Holding::Sent => ConfigStatus::Stale,
        Holding::Unsent => ConfigStatus::NotSent,
        Holding::Refused { .. } => ConfigStatus::Error,
    };
    let body = || resource.as_ref().filter(|_| contents).map(|resource| resource.any.clone());
    let error_state = match holding {
        Holding::Refused { version, error } => Some(UpdateFailureState {
            failed_configuration: body(),
            last_update_attempt: journal.refused_at(type_url).map(timestamp),
            details: (*error).to_owned(),
            version_info: version.to_string(),
        }),
        _ => None,
    };
    let client_status = match holding {
        Holding::Absent => ClientResourceStatus::DoesNotExist,
        _ => ClientResourceStatus::Unknown,
    };
    GenericXdsConfig {
        type_url: type_url.to_string(),
        name: name.to_string(),
        version_info: version.as_deref().unwrap_or_default().to_owned(),
        xds_config: if error_state.is_some() { None } else { body() },
        last_updated: journal.sent_at(type_url, name).filter(|_| version.is_some()).map(timestamp),
        config_status: status.into(),
        client_status: client_status.into(),
        error_state,
        is_static_resource: false,
    }
}

fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}
