//! `clustermesh observe`

use xds_proto::isthmus::admin::v1::ObserveRequest;

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
