//! Which control plane a command talks to: this machine's, by its socket, or any, by its mesh door and a certificate.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use mesh_tls::{
    ALPN_H2, ClientConfig, Identity, Life, PeerPolicy, TrustBundles, certified, client_config,
    peer_spiffe_id, pem, shared_bundles, shared_identity,
};

use super::{args::DEFAULT_SOCKET, failure::Failure, now_unix, render::age::duration};

/// What `clustermesh admin create` writes into its folder, under the names that Kubernetes gives such files.
pub(crate) const CERTIFICATE: &str = "tls.crt";
pub(crate) const KEY: &str = "tls.key";
pub(crate) const ROOTS: &str = "ca.crt";
/// Bytes of any of these files that are read.
const MAX_FILE: u64 = 1 << 20;

/// Where the control plane is. Without `--server`: on this machine.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// The administrators' socket of a control-plane replica.
    #[arg(long, global = true, env = "CLUSTERMESH_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// The mesh door of a control-plane replica, instead of a socket. Needs an administrator's certificate.
    #[arg(long, global = true, env = "CLUSTERMESH_SERVER", value_name = "HOST:PORT")]
    pub(crate) server: Option<String>,
    /// A folder that 'clustermesh admin create' made: tls.crt, tls.key, ca.crt.
    #[arg(long, global = true, env = "CLUSTERMESH_CREDENTIALS", value_name = "DIR")]
    pub(crate) credentials: Option<PathBuf>,
    /// The administrator's certificate, with its issuer [default: tls.crt of --credentials]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) certificate: Option<PathBuf>,
    /// Its private key [default: tls.key of --credentials]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Roots of the cluster's trust domain [default: ca.crt of --credentials]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

impl ServerArgs {
    /// What was asked for, with its files read.
    pub(crate) fn resolve(&self) -> Result<Server, Failure> {
        match &self.server {
            Some(address) => self.door(address, now_unix()),
            None => Ok(Server::Socket(self.socket.clone())),
        }
    }

    fn door(&self, address: &str, now: u64) -> Result<Server, Failure> {
        let address = address.strip_prefix("https://").unwrap_or(address).trim_end_matches('/').to_owned();
        let file = |given: &Option<PathBuf>, flag: &str, name: &str| match (given, &self.credentials) {
            (Some(path), _) => Ok(path.clone()),
            (None, Some(folder)) => Ok(folder.join(name)),
            (None, None) => Err(Failure::usage(format!(
                "--server needs --credentials or {flag}: 'clustermesh admin create', on a machine of the control \
                 plane, makes what it takes"
            ))),
        };
        let certificate = file(&self.certificate, "--certificate", CERTIFICATE)?;
        let key = file(&self.key, "--key", KEY)?;
        let roots = file(&self.ca, "--ca", ROOTS)?;
        let tls = configuration(&certificate, &key, &roots, now)?;
        Ok(Server::Door { address, tls })
    }
}

/// Whom requests go to.
#[derive(Clone)]
pub(crate) enum Server {
    /// On this machine, by a unix socket.
    Socket(PathBuf),
    /// By mTLS.
    Door {
        /// `host:port`
        address: String,
        /// With the administrator's certificate.
        tls: Arc<ClientConfig>,
    },
}

impl Server {
    /// The socket, for what is done on this machine only.
    pub(crate) fn local(&self, what: &str) -> Result<&Path, Failure> {
        match self {
            Server::Socket(path) => Ok(path),
            Server::Door { address, .. } => Err(Failure::usage(format!(
                "'clustermesh {what}' is about this machine: it does not go with --server {address}"
            ))),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Server::Socket(path) => write!(f, "{}", path.display()),
            Server::Door { address, .. } => f.write_str(address),
        }
    }
}

/// Shows this certificate, and believes replicas of its own trust domain only.
fn configuration(
    certificate: &Path,
    key: &Path,
    roots: &Path,
    now: u64,
) -> Result<Arc<ClientConfig>, Failure> {
    let wrong = |path: &Path, error: mesh_tls::Error| Failure::failed(format!("{}: {error}", path.display()));
    let chain = pem::read_certificates(&text(certificate)?).map_err(|e| wrong(certificate, e))?;
    let id = peer_spiffe_id(&chain).map_err(|e| wrong(certificate, e))?;
    let life = chain.first().map(Life::of).transpose().map_err(|e| wrong(certificate, e))?;
    if let Some(life) = life.filter(|life| life.is_over(now)) {
        let ago = duration(now.saturating_sub(life.not_after_unix));
        return Err(Failure::failed(format!(
            "{}: the certificate of {id} ended {ago} ago; make another with 'clustermesh admin create'",
            certificate.display()
        )));
    }
    let key_der = pem::read_private_key(&text(key)?).map_err(|e| wrong(key, e))?;
    let identity = certified(Identity { chain, key: key_der }).map_err(|e| wrong(key, e))?;
    let mut bundles = TrustBundles::new();
    pem::read_certificates(&text(roots)?)
        .and_then(|read| bundles.insert(id.trust_domain().clone(), read))
        .map_err(|e| wrong(roots, e))?;
    let policy = PeerPolicy::Replicas(id.trust_domain().clone());
    client_config(Some(shared_identity(Some(identity))), shared_bundles(bundles), policy, &[ALPN_H2])
        .map_err(|error| Failure::failed(error.to_string()))
}

fn text(path: &Path) -> Result<String, Failure> {
    let wrong = |reason: String| Failure::failed(format!("{}: {reason}", path.display()));
    let size = fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if size > MAX_FILE {
        return Err(wrong(format!("it has {size} bytes, {MAX_FILE} are read")));
    }
    fs::read_to_string(path).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use mesh_model::identity::{SpiffeId, TrustDomain};
    use mesh_tls::{csr, issue};

    use super::*;

    /// A folder as `admin create` makes it, valid for an hour.
    fn credentials() -> tempfile::TempDir {
        let west = TrustDomain::parse("west.example").unwrap();
        let now = SystemTime::now();
        let root = issue::Root::generate(west.clone(), now).unwrap();
        let issuer = issue::Issuer::generate().unwrap();
        let certificate = root.sign_issuer(&issuer.csr(&west).unwrap(), now).unwrap();
        let issuer = issuer.certified(certificate).unwrap();
        let id = SpiffeId::admin(&west, "kim");
        let (request, key) = csr::generate(&id).unwrap();
        let chain = issuer.sign_for(&request, &id, 7, Duration::from_secs(3600), now).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| fs::write(folder.path().join(name), text).unwrap();
        write(CERTIFICATE, pem::certificates(chain.iter().map(AsRef::as_ref)));
        write(KEY, pem::private_key(key.secret_der()));
        write(ROOTS, pem::certificate(root.certificate()));
        folder
    }

    fn args(credentials: Option<&Path>) -> ServerArgs {
        ServerArgs {
            socket: "/run/x.sock".into(),
            server: Some("https://192.0.2.1:9443/".to_owned()),
            credentials: credentials.map(Into::into),
            certificate: None,
            key: None,
            ca: None,
        }
    }

    #[test]
    fn a_server_is_an_address_and_without_one_it_is_the_socket() {
        let folder = credentials();
        let args = args(Some(folder.path()));
        let server = args.resolve().unwrap_or_else(|failure| panic!("{failure:?}"));
        assert_eq!(server.to_string(), "192.0.2.1:9443");
        assert!(server.local("init").is_err_and(|failure| failure.sentence.contains("--server")));
        let local = ServerArgs { server: None, ..args }.resolve();
        assert!(
            local.is_ok_and(|server| server.to_string() == "/run/x.sock" && server.local("init").is_ok())
        );
    }

    #[test]
    fn what_is_missing_over_or_of_another_is_named() {
        let (folder, other) = (credentials(), credentials());
        let refused = |args: &ServerArgs, now: u64| match args.door("192.0.2.1:9443", now) {
            Ok(_) => panic!("taken"),
            Err(failure) => failure.sentence,
        };
        let now = now_unix();
        assert!(refused(&args(None), now).contains("--credentials"));
        let good = args(Some(folder.path()));
        assert!(refused(&good, now + 3601).contains("admin create"), "it has ended");
        let strange = ServerArgs { key: Some(other.path().join(KEY)), ..args(Some(folder.path())) };
        assert!(refused(&strange, now).contains(KEY));
        let nowhere = ServerArgs { ca: Some("/nonexistent/ca".into()), ..args(Some(folder.path())) };
        assert!(refused(&nowhere, now).contains("/nonexistent/ca"));
        fs::write(folder.path().join(CERTIFICATE), "nothing").unwrap();
        assert!(refused(&good, now).contains("CERTIFICATE"));
    }
}
