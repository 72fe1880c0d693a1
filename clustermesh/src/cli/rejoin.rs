//! `clustermesh replica rejoin`: for a replica that refuses to take part because of its disk.

use std::time::Duration;

use xds_proto::isthmus::admin::v1::{RejoinRequest, recovery_client::RecoveryClient};

use super::{
    client::{channel, within},
    failure::Failure,
    out,
    server::Server,
};

/// The others write it with a majority first.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn run(server: &Server) -> Result<(), Failure> {
    let mut recovery = RecoveryClient::new(channel(server).await?);
    let answer = within(PATIENCE, recovery.rejoin(RejoinRequest {})).await?;
    let kept = match answer.kept.as_str() {
        "" => String::new(),
        folder => format!(" The damaged store is kept in {folder}."),
    };
    out::print(&format!(
        "replica {} comes back as replica {} with an empty log; it votes once it has caught up.{kept}\n",
        answer.old_id, answer.new_id
    ))
}
