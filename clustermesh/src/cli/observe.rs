//! `clustermesh observe`

use xds_proto::isthmus::{admin::v1::ObserveRequest, bootstrap::v1::FlowSource};

use super::{
    args::{ObserveArgs, ObserveOutput, Verdict},
    client::{REQUEST_TIMEOUT, connect, within},
    failure::Failure,
    out::{self, Paint},
    render::flow,
    server::Server,
};

pub(crate) async fn run(server: &Server, args: &ObserveArgs) -> Result<(), Failure> {
    let mut admin = connect(server).await?;
    let mut flows = within(REQUEST_TIMEOUT, admin.observe(request(args))).await?;
    let paint = Paint::for_stdout();
    while let Some(batch) = flows.message().await? {
        for flow in &batch.flows {
            out::line(&match args.output {
                ObserveOutput::Table => flow::line(flow, paint),
                ObserveOutput::Json => flow::json_line(flow),
            })?;
        }
        if batch.lost > 0 {
            out::remark(&format!(
                "({} flows were lost: they came faster than they could be reported)",
                batch.lost
            ));
        }
        batch.sources.iter().for_each(|source| out::remark(&remark(source)));
    }
    if args.follow {
        return Err(Failure::unreachable("the control plane ended the stream; run the command again"));
    }
    Ok(())
}

fn request(args: &ObserveArgs) -> ObserveRequest {
    let verdict = match args.verdict {
        None => "",
        Some(Verdict::Forwarded) => "FORWARDED",
        Some(Verdict::Dropped) => "DROPPED",
        Some(Verdict::Audit) => "AUDIT",
        Some(Verdict::Redirected) => "REDIRECTED",
    };
    ObserveRequest {
        last: args.last,
        follow: args.follow,
        verdict: verdict.to_owned(),
        namespace: args.namespace.clone().unwrap_or_default(),
        workload: args.workload.clone().unwrap_or_default(),
        this_replica_only: false,
    }
}

fn remark(FlowSource { replica, address, silent }: &FlowSource) -> String {
    if silent.is_empty() {
        return format!(
            "(replica {replica} at {address} tells of its flows again; those meanwhile are missing)"
        );
    }
    format!("(the flows of replica {replica} at {address} are missing: {silent})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_does_not_tell_of_its_flows_is_named_with_the_reason() {
        let mut source =
            FlowSource { replica: 2, address: "192.0.2.2:7000".to_owned(), silent: "no answer".to_owned() };
        assert_eq!(remark(&source), "(the flows of replica 2 at 192.0.2.2:7000 are missing: no answer)");
        source.silent.clear();
        assert!(remark(&source).contains("replica 2 at 192.0.2.2:7000 tells of its flows again"));
    }
}
