//! `clustermesh status`

use std::time::Duration;

use xds_proto::isthmus::admin::v1::{StatusRequest, StatusResponse};

use super::{
    args::{StatusArgs, StatusOutput},
    client::{Admin, REQUEST_TIMEOUT, connect, within},
    failure::Failure,
    now_unix,
    out::{self, Paint},
    render,
    server::Server,
};

/// Between two looks with `--watch`.
const INTERVAL: Duration = Duration::from_secs(2);
/// Cursor home, clear to the end of the screen.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

pub(crate) async fn run(server: &Server, args: &StatusArgs) -> Result<(), Failure> {
    let mut admin = connect(server).await?;
    if !args.watch {
        let status = ask(&mut admin).await?;
        out::print(&text(&status, args.output)?)?;
        return quorum(&status);
    }
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        let text = text(&ask(&mut admin).await?, args.output)?;
        if out::stdout_is_terminal() && args.output == StatusOutput::Table {
            out::print(&format!("{CLEAR}{text}"))?;
        } else if args.output == StatusOutput::Yaml {
            out::print(&format!("---\n{text}"))?;
        } else {
            out::line(&text)?;
        }
    }
}

/// Without a quorum the answer stands, and the exit code says what it is worth.
pub(super) fn quorum(status: &StatusResponse) -> Result<(), Failure> {
    status.no_quorum.as_ref().map_or(Ok(()), |lost| Err(Failure::no_quorum(&lost.sentence)))
}

async fn ask(admin: &mut Admin) -> Result<StatusResponse, Failure> {
    within(REQUEST_TIMEOUT, admin.status(StatusRequest {})).await
}

fn text(status: &StatusResponse, output: StatusOutput) -> Result<String, Failure> {
    match output {
        StatusOutput::Table => Ok(render::status::render(status, now_unix(), Paint::for_stdout())),
        StatusOutput::Json => Ok(render::json(&render::status::value(status))),
        StatusOutput::Yaml => render::yaml(&render::status::value(status)),
    }
}
