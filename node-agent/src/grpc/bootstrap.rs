//! The bootstrap file of gRPC's xDS clients (gRFC A27, A29). PURE.

use std::{net::SocketAddr, path::Path};

use serde_json::json;

use super::files::{CERTIFICATE, PRIVATE_KEY, ROOTS};

/// The certificate provider that the control plane's clusters name.
const PROVIDER: &str = "default";
/// How often gRPC looks at the files. The agent renews at half life, which is hours.
const REFRESH: &str = "60s";

/// The text for `GRPC_XDS_BOOTSTRAP`. The server is in the same pod, and the agent asks the kernel which pod that is:
/// no credentials.
pub fn bootstrap(server: SocketAddr, dir: &Path, node_id: &str) -> String {
    let file = |name: &str| dir.join(name).display().to_string();
    let value = json!({
        "xds_servers": [{
            "server_uri": server.to_string(),
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"],
        }],
        // Node's implementation insists on a locality.
        "node": {"id": node_id, "locality": {}},
        "certificate_providers": {PROVIDER: {
            "plugin_name": "file_watcher",
            "config": {
                "certificate_file": file(CERTIFICATE),
                "private_key_file": file(PRIVATE_KEY),
                "ca_certificate_file": file(ROOTS),
                "refresh_interval": REFRESH,
            },
        }},
    });
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bootstrap_names_the_server_and_the_files() {
        let server = SocketAddr::from(([127, 0, 0, 1], 15010));
        let text = bootstrap(server, Path::new("/etc/isthmus"), "grpc~shop/web");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["xds_servers"][0]["server_uri"], "127.0.0.1:15010");
        assert_eq!(value["node"]["id"], "grpc~shop/web");
        let config = &value["certificate_providers"]["default"]["config"];
        assert_eq!(config["private_key_file"], "/etc/isthmus/key.pem");
        assert_eq!(config["ca_certificate_file"], "/etc/isthmus/roots.pem");
    }
}
