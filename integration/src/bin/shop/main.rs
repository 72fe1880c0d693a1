//! The workload of testbed and demo: an HTTP server that says who it is and whom it sees, and a client that counts.

mod call;
mod serve;

use clap::Parser;

#[derive(Parser)]
#[command(about = "HTTP server and client for the testbed", version)]
enum Shop {
    /// Answers every request with JSON: its name, version, cluster, and the caller's identity as its proxy tells it.
    Serve(serve::Serve),
    /// Sends requests and prints a JSON report. Exits with 0 however the requests fare.
    Call(call::Call),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    match Shop::parse() {
        Shop::Serve(serve) => serve.run().await,
        Shop::Call(call) => {
            println!("{}", serde_json::to_string(&call.run().await)?);
            Ok(())
        }
    }
}
