//! Every gRPC method that a replica serves, and the right that it takes: what is asked of a call's headers, before a byte
//! of its body is read.

use std::{collections::HashMap, sync::LazyLock};

use xds_proto::{
    envoy::service::status::v3::client_status_discovery_service_server as csds,
    hubble::observer::observer_server as observer,
};

use crate::{
    authz::{self, Action, Role},
    xds::server,
};

/// How a method is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// By one message.
    Once,
    /// By a stream of them, for as long as the caller likes.
    Streaming,
}

/// One method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Method {
    /// With its package.
    pub service: String,
    #[allow(missing_docs)]
    pub name: &'static str,
    #[allow(missing_docs)]
    pub asked: Asked,
    /// Whoever may take one of these actions may call it. Of others the last one is refused. Never empty.
    pub actions: &'static [Action],
}

/// What is called `package.Service.Method`, with `isthmus.` left out.
#[rustfmt::skip]
const OURS: &[(&str, Asked, Action)] = &[
    ("admin.v1.Admin.Apply", Asked::Once, Action::Write),
    ("admin.v1.Admin.Delete", Asked::Once, Action::Write),
    ("admin.v1.Admin.List", Asked::Once, Action::Read),
    ("admin.v1.Admin.Watch", Asked::Once, Action::Read),
    ("admin.v1.Admin.Status", Asked::Once, Action::Status),
    ("admin.v1.Admin.CreateToken", Asked::Once, Action::CreateToken),
    ("admin.v1.Admin.Join", Asked::Once, Action::JoinMesh),
    ("admin.v1.Admin.Observe", Asked::Once, Action::Observe),
    ("admin.v1.Admin.Wait", Asked::Once, Action::Read),
    ("admin.v1.Admin.WaitHere", Asked::Once, Action::Status),
    ("admin.v1.Admin.LoadHere", Asked::Once, Action::Status),
    ("admin.v1.Explain.Flow", Asked::Once, Action::Read),
    ("admin.v1.Recovery.Backup", Asked::Once, Action::Backup),
    ("admin.v1.Recovery.Rejoin", Asked::Once, Action::Backup),
    ("admin.v1.Recovery.Replace", Asked::Once, Action::Raft),
    ("admin.v1.Replicas.Remove", Asked::Once, Action::ManageReplicas),
    ("admin.v1.Replicas.SetRole", Asked::Once, Action::ManageReplicas),
    ("admin.v1.Tokens.List", Asked::Once, Action::CreateToken),
    ("admin.v1.Tokens.Revoke", Asked::Once, Action::CreateToken),
    ("bootstrap.v1.Bootstrap.RegisterNode", Asked::Once, Action::Bootstrap),
    ("bootstrap.v1.Bootstrap.RegisterReplica", Asked::Once, Action::Bootstrap),
    ("bootstrap.v1.Certificates.SignWorkload", Asked::Once, Action::SignWorkload),
    ("bootstrap.v1.Certificates.SignJwt", Asked::Once, Action::SignWorkload),
    ("bootstrap.v1.Certificates.RenewNode", Asked::Once, Action::RenewNode),
    ("bootstrap.v1.Certificates.ReportTrust", Asked::Once, Action::ReportTrust),
    ("bootstrap.v1.Endpoints.Report", Asked::Once, Action::ReportEndpoints),
    ("bootstrap.v1.Endpoints.Remove", Asked::Once, Action::ReportEndpoints),
    ("bootstrap.v1.Endpoints.ReportNode", Asked::Once, Action::ReportEndpoints),
    ("bootstrap.v1.Endpoints.ReportFlows", Asked::Streaming, Action::ReportEndpoints),
    ("ca.v1.CertificateAuthority.Status", Asked::Once, Action::InspectAuthority),
    ("ca.v1.CertificateAuthority.ListNodes", Asked::Once, Action::InspectAuthority),
    ("ca.v1.CertificateAuthority.RevokeNode", Asked::Once, Action::EndRegistration),
    ("ca.v1.CertificateAuthority.RemoveNode", Asked::Once, Action::EndRegistration),
    ("ca.v1.CertificateAuthority.Rotate", Asked::Once, Action::RotateRoot),
    ("ca.v1.CertificateAuthority.CreateAdministrator", Asked::Once, Action::ManageAdministrators),
    ("ca.v1.CertificateAuthority.ListAdministrators", Asked::Once, Action::ManageAdministrators),
    ("ca.v1.CertificateAuthority.RevokeAdministrator", Asked::Once, Action::ManageAdministrators),
    ("federation.v1.Federation.Join", Asked::Once, Action::AcceptPeer),
    ("federation.v1.Federation.ConfirmTrust", Asked::Once, Action::ConfirmTrust),
    ("raft.v1.Raft.AppendEntries", Asked::Once, Action::Raft),
    ("raft.v1.Raft.Vote", Asked::Once, Action::Raft),
    ("raft.v1.Raft.InstallSnapshot", Asked::Once, Action::Raft),
    ("raft.v1.Raft.Forward", Asked::Once, Action::Raft),
    ("raft.v1.Raft.ReadIndex", Asked::Once, Action::Raft),
    ("raft.v1.Raft.PreVote", Asked::Once, Action::Raft),
    ("raft.v1.Raft.TakeOver", Asked::Once, Action::Raft),
];

const CSDS: &[(&str, Asked)] =
    &[("StreamClientStatus", Asked::Streaming), ("FetchClientStatus", Asked::Once)];

/// Of Hubble's `observer.Observer`, all asked by one message.
const HUBBLE: &[&str] =
    &["GetFlows", "GetAgentEvents", "GetDebugEvents", "GetNodes", "GetNamespaces", "ServerStatus"];

const XDS: &[Action] = &[Action::SubscribeAsPeer, Action::SubscribeAsNode];

static BY_PATH: LazyLock<HashMap<String, Method>> =
    LazyLock::new(|| all().map(|method| (method.path(), method)).collect());

impl Method {
    /// As in a request's URI.
    pub fn path(&self) -> String {
        format!("/{}/{}", self.service, self.name)
    }

    /// Whether anybody may call it, without a certificate.
    pub fn is_open(&self) -> bool {
        self.actions.iter().any(|action| authz::allowed(Role::Anonymous, *action))
    }

    /// Raft's own door knows its callers in a way of its own.
    pub fn is_raft(&self) -> bool {
        self.service == "isthmus.raft.v1.Raft"
    }
}

/// The method of a request's path. None: it is served by nobody here.
pub fn by_path(path: &str) -> Option<&'static Method> {
    BY_PATH.get(path)
}

/// All of them.
pub fn all() -> impl Iterator<Item = Method> {
    let ours = OURS.iter().filter_map(|(name, asked, action)| {
        let (service, name) = name.rsplit_once('.')?;
        let service = format!("isthmus.{service}");
        Some(Method { service, name, asked: *asked, actions: std::slice::from_ref(action) })
    });
    let csds = CSDS.iter().map(|(name, asked)| Method {
        service: csds::SERVICE_NAME.to_owned(),
        name,
        asked: *asked,
        actions: &[Action::ClientStatus],
    });
    let hubble = HUBBLE.iter().map(|name| Method {
        service: observer::SERVICE_NAME.to_owned(),
        name,
        asked: Asked::Once,
        actions: &[Action::Observe],
    });
    let xds = server::methods().into_iter().map(|(service, name)| Method {
        service: service.to_owned(),
        name,
        asked: Asked::Streaming,
        actions: XDS,
    });
    ours.chain(csds).chain(hubble).chain(xds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_found_by_its_path_and_takes_some_right() {
        assert_eq!(BY_PATH.len(), all().count(), "one is there twice");
        for method in all() {
            assert_eq!(by_path(&method.path()), Some(&method));
            assert!(!method.actions.is_empty() && !method.service.is_empty());
        }
        assert_eq!(OURS.len() + CSDS.len() + HUBBLE.len() + server::methods().len(), all().count());
        assert!(by_path("/isthmus.raft.v1.Raft/Vote").is_some_and(Method::is_raft));
        let open: Vec<_> = all().filter(Method::is_open).map(|method| method.name).collect();
        assert_eq!(open, ["RegisterNode", "RegisterReplica", "Join"], "what is open to everybody is small");
        for nobodys in ["", "/", "/isthmus.admin.v1.Admin/", "isthmus.admin.v1.Admin/Apply", "/x/Apply"] {
            assert_eq!(by_path(nobodys), None, "{nobodys}");
        }
    }
}
