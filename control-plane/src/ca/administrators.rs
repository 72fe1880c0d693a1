//! Certificates of administrators: signed on request, listed, withdrawn by name.
//!
//! The number is in the replicated state before anything is signed under it, so that there is no certificate that can't
//! be withdrawn; who asked is remembered with it and in the log.

use std::{collections::BTreeSet, time::Duration, time::SystemTime};

use mesh_model::identity::SpiffeId;
use mesh_store::{AdministratorRecord, AuthorityCommand, Command, Granted, State, TokenRecord, limits};
use mesh_tls::{CertificateDer, csr};
use tonic::Status;
use xds_proto::isthmus::ca::v1::{
    Administrator, CreateAdministratorRequest, CreateAdministratorResponse, RevokeAdministratorResponse,
};

use super::{admission, certificates::ca_status};
use crate::{
    app::{App, read_status, write_status},
    authz::Caller,
};

/// Validity unless told otherwise: a working day.
const DEFAULT_SECONDS: u64 = 12 * 3600;

/// Signs a certificate for an administrator.
///
/// # Errors
/// A name, request or validity that can't be, too many, or no quorum.
pub async fn create(
    app: &App,
    caller: &Caller,
    request: CreateAdministratorRequest,
) -> Result<CreateAdministratorResponse, Status> {
    let CreateAdministratorRequest { name, csr, valid_seconds } = request;
    csr::check(&csr).map_err(|error| Status::invalid_argument(format!("csr: {error}")))?;
    let seconds = if valid_seconds == 0 { DEFAULT_SECONDS } else { u64::from(valid_seconds) };
    if seconds > limits::MAX_ADMINISTRATOR_SECONDS {
        let most = limits::MAX_ADMINISTRATOR_SECONDS;
        return Err(Status::invalid_argument(format!(
            "valid_seconds: {seconds} is more than {most} (30 days)"
        )));
    }
    let command =
        AuthorityCommand::AdmitAdministrator { name: name.clone(), asked_by: caller.to_string(), seconds };
    let applied = app.replica.write(Command::Authority(command)).await.map_err(write_status)?;
    let Granted::Administrator(number) = applied.granted else {
        return Err(Status::internal("the store gave the certificate no number"));
    };
    // The store has checked that the name is a segment.
    let id = SpiffeId::admin(app.trust_domain(), &name);
    let chain =
        app.ca.sign(&csr, &id, number, Duration::from_secs(seconds), SystemTime::now()).map_err(ca_status)?;
    app.gate.has_signed("administrator");
    let leaf = chain.first().cloned().map(CertificateDer::from);
    let not_after_unix =
        leaf.and_then(|leaf| mesh_tls::Life::of(&leaf).ok()).map_or(0, |life| life.not_after_unix);
    tracing::warn!(
        %caller, administrator = name, number, not_after_unix, revision = applied.revision,
        "signed an administrator's certificate"
    );
    Ok(CreateAdministratorResponse {
        chain,
        roots: app.ca.roots().iter().map(|root| root.to_vec()).collect(),
        not_after_unix,
        number,
        revision: applied.revision,
        doors: admission::doors(app, &app.replica.applied()),
    })
}

/// Those of the state, in the order in which they end.
pub fn list(state: &State) -> Vec<Administrator> {
    let one = |(number, record): (&u64, &AdministratorRecord)| Administrator {
        number: *number,
        name: record.name.clone(),
        asked_by: record.asked_by.clone(),
        issued_unix: record.issued_unix,
        not_after_unix: record.until_unix,
        withdrawn_by: record.withdrawn.as_ref().map(|end| end.by.clone()).unwrap_or_default(),
        withdrawn_unix: record.withdrawn.as_ref().map_or(0, |end| end.at_unix),
    };
    let mut all: Vec<Administrator> = state.authority.administrators.iter().map(one).collect();
    all.sort_by_key(|certificate| (certificate.not_after_unix, certificate.number));
    all
}

/// Withdraws every certificate of a name.
///
/// # Errors
/// There is none that is good, or no quorum.
pub async fn revoke(app: &App, caller: &Caller, name: String) -> Result<RevokeAdministratorResponse, Status> {
    let state = app.replica.linearizable().await.map_err(read_status)?;
    let now = app.now_unix();
    let good = |record: &&AdministratorRecord| record.admits(&record.name, now);
    let of_name = |record: &&AdministratorRecord| record.name == name;
    let count = state.authority.administrators.values().filter(good).filter(of_name).count();
    if count == 0 {
        let shown: String = name.chars().take(limits::MAX_ADMINISTRATOR_NAME).collect();
        return Err(Status::not_found(format!(
            "no certificate of an administrator {shown:?} is good: `clustermesh admin list` shows those that are"
        )));
    }
    // Whoever had the certificate may have made others with it: that has to be looked at by a person.
    let theirs = Caller::Admin(name.clone()).to_string();
    let granted: BTreeSet<String> = state
        .authority
        .administrators
        .values()
        .filter(good)
        .filter(|record| record.asked_by == theirs && record.name != name)
        .map(|record| record.name.clone())
        .collect();
    let open = |token: &&TokenRecord| token.used_by.is_none() && token.asked_by == theirs;
    let tokens = state.tokens.values().filter(open).count();
    drop(state);
    let (by, tokens_of) = (caller.to_string(), theirs);
    let command = AuthorityCommand::WithdrawAdministrator { name: name.clone(), by, tokens_of };
    let applied = app.replica.write(Command::Authority(command)).await.map_err(write_status)?;
    tracing::warn!(
        %caller, administrator = name, revision = applied.revision, "withdrew an administrator's certificates"
    );
    Ok(RevokeAdministratorResponse {
        revision: applied.revision,
        withdrawn: u32::try_from(count).unwrap_or(u32::MAX),
        granted: granted.into_iter().collect(),
        tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
    })
}
