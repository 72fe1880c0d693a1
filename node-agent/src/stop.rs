//! `node-agent stop`: ends the agent, and says what stays as it is without one.

use std::{io::Write, path::Path, time::Duration};

use anyhow::Context;
use ebpf_shared::redirect::DNS_SLOT;
use tokio::time::{Instant, sleep};
use xds_proto::isthmus::local::v1::{StopRequest, agent_client::AgentClient};

use crate::{config::StopArgs, desired::Desired, kernel};

/// The agent gives calls in progress 3 s.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two looks whether it is gone.
const LOOK: Duration = Duration::from_millis(50);

/// Ends the agent, if one runs. With `--open` nothing is enforced any more afterwards.
///
/// # Errors
/// It does not end, or the programs can't be taken out.
pub async fn stop(args: &StopArgs, mut out: impl Write) -> anyhow::Result<()> {
    match ask(&args.socket).await? {
        Some(enforced) => {
            writeln!(out, "The agent is stopped. It stays enforced, as it is now:")?;
            for sentence in enforced {
                writeln!(out, "  {sentence}")?;
            }
        }
        None => writeln!(out, "No agent serves {}.", args.socket.display())?,
    }
    let Some(bpffs) = args.bpffs.as_ref().filter(|_| args.open) else {
        writeln!(out, "Until an agent runs again, no pod is added, and nothing follows the control plane.")?;
        writeln!(
            out,
            "`node-agent stop --open --bpffs DIR` lets go of it, `node-agent cleanup` removes it."
        )?;
        return Ok(());
    };
    let guarded = kernel::guarded(bpffs)?;
    kernel::unload(bpffs)?;
    writeln!(
        out,
        "Nothing is enforced any more: {} interfaces are open, and service addresses are addresses like any other.",
        guarded.len()
    )?;
    Ok(())
}

/// What the agent says stays enforced, after it has ended; `None` if there is none.
async fn ask(socket: &Path) -> anyhow::Result<Option<Vec<String>>> {
    let Ok(channel) = mesh_tls::grpc::connect_unix(socket).await else { return Ok(None) };
    let asked = AgentClient::new(channel).stop(StopRequest {}).await;
    let enforced = asked.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner().enforced;
    let deadline = Instant::now() + PATIENCE;
    while socket.exists() {
        if Instant::now() > deadline {
            return Err(anyhow::anyhow!("the agent has not ended within {PATIENCE:?}"))
                .with_context(|| socket.display().to_string());
        }
        sleep(LOOK).await;
    }
    Ok(Some(enforced))
}

/// What goes on without an agent, in sentences. PURE.
pub fn stays(kernel: &Desired, closed: usize) -> Vec<String> {
    let mut sentences = vec![
        format!(
            "policy of {} pods, which know {} addresses and ranges; {closed} more have no traffic",
            kernel.endpoints.len(),
            kernel.identities.len()
        ),
        format!("{} service addresses with the backends of this moment", kernel.services.len()),
        "routes to the pods of other nodes, and masquerading".to_owned(),
    ];
    let dns = kernel.proxies.get(&DNS_SLOT).is_some_and(|proxy| proxy.listens.is_some());
    if dns {
        sentences.push(
            "the DNS proxy, a process of its own: names that are allowed already are answered, new addresses are not told"
                .to_owned(),
        );
    }
    if !kernel.netns.is_empty() {
        sentences.push(format!(
            "capture of {} pods' ports; their proxies get no new configuration, and certificates end within a day",
            kernel.netns.len()
        ));
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::NetnsEntry;

    #[test]
    fn what_stays_names_the_sidecars_only_where_there_are_some() {
        let mut kernel = Desired::default();
        assert!(!stays(&kernel, 0).iter().any(|sentence| sentence.contains("proxies")));
        kernel.netns.insert(7, NetnsEntry::default());
        let sentences = stays(&kernel, 2);
        assert!(sentences.iter().any(|sentence| sentence.contains("capture of 1 pods")), "{sentences:?}");
        assert!(sentences[0].contains("2 more have no traffic"), "{sentences:?}");
    }

    #[tokio::test]
    async fn where_no_agent_runs_it_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let args = StopArgs { socket: dir.path().join("agent.sock"), bpffs: None, open: false };
        let mut out = Vec::new();
        stop(&args, &mut out).await.unwrap();
        assert!(String::from_utf8(out).unwrap().starts_with("No agent serves"));
    }
}
