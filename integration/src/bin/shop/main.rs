//! The workload of testbed and demo: a server (HTTP, datagrams) that says who it is and whom it sees, and clients that count.

mod call;
mod datagrams;
mod serve;

use clap::Parser;

#[derive(Parser)]
#[command(about = "HTTP server and client for the testbed", version)]
enum Shop {
    /// Answers every request with JSON: its name, version, cluster, and the caller's identity as its proxy tells it; and
    /// every datagram with what it says and the server's name.
    Serve(serve::Serve),
    /// Sends requests and prints a JSON report. Exits with 0 however the requests fare.
    Call(call::Call),
    /// Sends datagrams, each with a number, and prints which were answered.
    Datagrams(datagrams::Datagrams),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    match Shop::parse() {
        Shop::Serve(serve) => serve.run().await,
        Shop::Call(call) => {
            println!("{}", serde_json::to_string(&call.run().await)?);
            Ok(())
        }
        Shop::Datagrams(datagrams) => {
            println!("{}", serde_json::to_string(&datagrams.run().await?)?);
            Ok(())
        }
    }
}

/// Writes a count where somebody waits for it. That it can't be written is seen by who waits.
fn tell(progress: Option<&std::path::Path>, count: u64) {
    if let Some(file) = progress {
        let _ = std::fs::write(file, count.to_string());
    }
}
