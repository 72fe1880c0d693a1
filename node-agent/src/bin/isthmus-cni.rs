//! The CNI plugin binary: see `node_agent::cni_plugin`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let vars = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    ExitCode::from(node_agent::cni_plugin::run(vars, std::io::stdin().lock(), std::io::stdout().lock()))
}
