//! One endpoint changes: how long until thousands of clients have ACKed it, and what that costs. The area `propagation`
//! of `bench-control`, at any size.

use std::path::PathBuf;

use anyhow::Result;
use bench::{
    machine, report,
    xds::{Plan, measure},
};
use clap::Parser;

/// Measures propagation with simulated clients over real TLS.
#[derive(Debug, Parser)]
struct Arguments {
    /// Streams; measured one after the other, 50 to a connection; at most 12,800.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000")]
    streams: Vec<usize>,
    /// Streams with a connection each; 0: not measured.
    #[arg(long, default_value_t = 1_000)]
    alone: usize,
    /// Services of the mesh.
    #[arg(long, default_value_t = 100)]
    services: usize,
    /// Services of the large mesh, in which a change is to be as small; 0: not measured.
    #[arg(long, default_value_t = 5_000)]
    large: usize,
    /// Streams in the large mesh.
    #[arg(long, default_value_t = 200)]
    large_streams: usize,
    /// Changes that are followed.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Without Envoy.
    #[arg(long)]
    skip_envoy: bool,
    /// Where the store lives.
    #[arg(long, default_value = "target/bench")]
    folder: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments { streams, alone, services, large, large_streams, rounds, skip_envoy, folder } =
        Arguments::parse();
    mesh_tls::install_provider();
    println!("{}", machine::describe());
    std::fs::create_dir_all(&folder)?;
    // Absolute: sockets and logs are named in flags.
    let folder = std::path::absolute(folder)?;
    let skip_envoy = skip_envoy || Plan::default().skip_envoy;
    let plan = Plan { streams, services, large, large_streams, alone, rounds, skip_envoy };
    let rows = measure(&plan, &folder, || ()).await?;
    report::write(&folder.join("xds.json"), &rows)?;
    println!("{}", report::table(&rows));
    Ok(())
}
