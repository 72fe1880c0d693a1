//! Join tokens: made by an administrator, shown by a newcomer, used once.

use clustermesh::token::{JoinToken, Purpose, secret_sha256};
use mesh_store::{Applied, Command, State, TokenPurpose, TokenRecord};
use mesh_tls::{CertificateDer, fingerprint};
use rand::Rng;
use tonic::Status;
use xds_proto::isthmus::admin::v1::{CreateTokenRequest, CreateTokenResponse};

use crate::{
    app::{App, write_status},
    authz::Caller,
    raft::WriteError,
};

/// Validity of a token unless told otherwise, and at most.
const DEFAULT_TTL_SECONDS: u32 = 3_600;
const MAX_TTL_SECONDS: u32 = 7 * 24 * 3_600;
/// Doors that a token names at most.
const MAX_DOORS: usize = 8;

/// Makes a token and remembers the hash of its secret.
///
/// # Errors
/// An unknown purpose, a time to live out of bounds, or no quorum.
pub async fn create(
    app: &App,
    caller: &Caller,
    request: &CreateTokenRequest,
) -> Result<CreateTokenResponse, Status> {
    let purpose = Purpose::parse(&request.purpose).map_err(|e| Status::invalid_argument(e.to_string()))?;
    let node = Some(request.node.clone()).filter(|node| !node.is_empty());
    if node.is_some() && purpose != Purpose::Node {
        return Err(Status::invalid_argument(format!("node: a token for a {purpose} is bound to no node")));
    }
    let ttl = match request.ttl_seconds {
        0 => DEFAULT_TTL_SECONDS,
        seconds if seconds <= MAX_TTL_SECONDS => seconds,
        seconds => {
            return Err(Status::invalid_argument(format!(
                "ttl_seconds: {seconds} is more than {MAX_TTL_SECONDS} (a week)"
            )));
        }
    };
    let expires_unix = app.now_unix() + u64::from(ttl);
    let (id, secret) = draw();
    let token = JoinToken {
        purpose,
        node: node.clone(),
        cluster: app.ca.replica().cluster.clone(),
        id,
        secret,
        doors: doors(app, &app.replica.applied()),
        root_sha256: pinned(app)?,
        expires_unix,
    };
    let text = token.encode().map_err(|e| Status::invalid_argument(e.to_string()))?;
    let record = TokenRecord {
        purpose: match purpose {
            Purpose::Peer => TokenPurpose::Peer,
            Purpose::Node => TokenPurpose::Node(node),
            Purpose::Replica => TokenPurpose::Replica,
        },
        secret_sha256: secret_sha256(&token.secret),
        expires_unix,
        used_by: None,
        learner: request.learner,
        asked_by: caller.to_string(),
    };
    let id = token.id.clone();
    let applied = app
        .replica
        .write(Command::CreateToken { id: token.id, token: record })
        .await
        .map_err(write_status)?;
    tracing::info!(%caller, token = id, %purpose, revision = applied.revision, "made a join token");
    Ok(CreateTokenResponse { token: text, expires_unix })
}

/// The root that a newcomer is to find in this replica's chain: the one that its issuer chains to.
fn pinned(app: &App) -> Result<[u8; 32], Status> {
    let used = app.ca.issuer_root();
    let roots = app.ca.roots();
    let root: Option<&CertificateDer<'_>> =
        roots.iter().find(|root| Some(mesh_store::fingerprint_of(root)) == used);
    root.map(fingerprint)
        .ok_or_else(|| Status::internal("this replica's issuer is of no root of the cluster"))
}

/// A public id and a secret, from the operating system's randomness by way of a cryptographic generator.
fn draw() -> (String, [u8; 32]) {
    let mut random = rand::rng();
    let id = (0..16).map(|_| char::from(random.sample(rand::distr::Alphanumeric))).collect();
    (id, random.random())
}

/// The doors that others are told of: this replica's first, it is known to work.
pub fn doors(app: &App, state: &State) -> Vec<String> {
    let own = app.config.advertised();
    let others = state.replicas.values().map(|replica| replica.address.clone()).filter(|a| *a != own);
    std::iter::once(own.clone()).chain(others).take(MAX_DOORS).collect()
}

/// Reads a token that a newcomer shows. Nothing is used up yet.
///
/// # Errors
/// What is wrong with it, without its secret.
pub fn read(app: &App, text: &str, wanted: Purpose) -> Result<JoinToken, Status> {
    let refuse = |e: clustermesh::token::TokenError| Status::invalid_argument(format!("token: {e}"));
    let token = JoinToken::decode(text).map_err(refuse)?;
    token.check(wanted, app.now_unix()).map_err(refuse)?;
    let own = &app.ca.replica().cluster;
    if &token.cluster != own {
        return Err(Status::invalid_argument(format!(
            "token: it is one of the cluster {:?}, this is {own:?}",
            token.cluster
        )));
    }
    Ok(token)
}

/// Uses a token: it admits `bearer` now and nobody again.
///
/// # Errors
/// Unknown, used, expired, for another purpose, or no quorum.
pub async fn redeem(
    app: &App,
    token: &JoinToken,
    purpose: TokenPurpose,
    bearer: String,
) -> Result<(), Status> {
    let command =
        Command::UseToken { id: token.id.clone(), secret_sha256: token.secret_sha256(), purpose, bearer };
    app.replica.write(command).await.map(drop).map_err(refused)
}

/// Uses a token for a replica at an address, and gives the replica its number: both, or neither.
///
/// # Errors
/// As [`redeem`], or another replica has the address.
pub async fn admit_replica(app: &App, token: &JoinToken, address: &str) -> Result<Applied, Status> {
    let command = Command::AdmitReplica {
        token: token.id.clone(),
        secret_sha256: token.secret_sha256(),
        address: address.to_owned(),
    };
    app.replica.write(command).await.map_err(refused)
}

fn refused(error: WriteError) -> Status {
    let status = write_status(error);
    match status.code() {
        tonic::Code::FailedPrecondition => Status::permission_denied(status.message()),
        _ => status,
    }
}
