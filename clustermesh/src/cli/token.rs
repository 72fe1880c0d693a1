//! `clustermesh token create`, and the way to the others

use serde_json::json;
use xds_proto::isthmus::admin::v1::CreateTokenRequest;

use super::{
    args::{TokenCommand, TokenCreateArgs, TokenOutput, TokenPurpose},
    client::{REQUEST_TIMEOUT, connect, within},
    failure::Failure,
    now_unix, out,
    render::{
        age::{duration, timestamp},
        json,
    },
    server::Server,
};

pub(crate) async fn run(server: &Server, command: &TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Create(args) => create(server, args).await,
        TokenCommand::List(args) => super::tokens::list(server, args).await,
        TokenCommand::Revoke(args) => super::tokens::revoke(server, args).await,
    }
}

async fn create(server: &Server, args: &TokenCreateArgs) -> Result<(), Failure> {
    if args.node.is_some() && args.purpose != TokenPurpose::Node {
        return Err(Failure::usage("--node goes with --for node only"));
    }
    let ttl_seconds = u32::try_from(args.ttl.as_secs())
        .ok()
        .filter(|s| *s > 0)
        .ok_or_else(|| Failure::usage("--ttl must be at least 1s"))?;
    let purpose = match args.purpose {
        TokenPurpose::Peer => "peer",
        TokenPurpose::Node => "node",
        TokenPurpose::Replica => "replica",
    };
    let request = CreateTokenRequest {
        purpose: purpose.to_owned(),
        ttl_seconds,
        node: args.node.clone().unwrap_or_default(),
        learner: false,
    };
    let mut admin = connect(server).await?;
    let answer = within(REQUEST_TIMEOUT, admin.create_token(request)).await?;
    match args.output {
        TokenOutput::Text => {
            out::line(&answer.token)?;
            if out::stdout_is_terminal() {
                let left = duration(answer.expires_unix.saturating_sub(now_unix()));
                out::remark(&format!("\n{} It works once, within {left}.", next_step(args.purpose)));
            }
            Ok(())
        }
        TokenOutput::Json => out::print(&json(&json!({
            "token": answer.token,
            "purpose": purpose,
            "expiresUnix": answer.expires_unix,
            "expires": timestamp(answer.expires_unix),
        }))),
    }
}

fn next_step(purpose: TokenPurpose) -> &'static str {
    match purpose {
        TokenPurpose::Peer => "On the cluster that joins: clustermesh join <token>.",
        TokenPurpose::Node => "On the node, with the token on stdin: node-agent run --join-file - ...",
        TokenPurpose::Replica => {
            "On the new replica's machine, with the token on stdin: control-plane run --join-file - ..."
        }
    }
}
