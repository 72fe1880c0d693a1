//! Three replicas of ours, started as the guide says: one founds the cluster, the others join it with a token.

use std::path::Path;

use anyhow::{Context, Result};
use xds_proto::isthmus::admin::v1::{CreateTokenRequest, StatusRequest, admin_client::AdminClient};

use super::{
    Group, MEMBERS, Member, Restart, beside,
    client::{AGAIN, Door, PATIENCE},
};
use crate::process::free_ports;

/// Starts three replicas in a folder, with every default.
pub async fn ours(folder: &Path) -> Result<Group> {
    let program = beside("control-plane")?;
    let ports: [u16; MEMBERS] = free_ports()?;
    let mut members: Vec<Member> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let name = format!("r{index}");
        let socket = folder.join(format!("{name}.sock"));
        let text = |path: &Path| path.display().to_string();
        let mut arguments: Vec<String> =
            ["run", "--name", "bench", "--trust-domain", "bench.example"].map(str::to_owned).to_vec();
        arguments.extend(["--listen".to_owned(), format!("127.0.0.1:{port}")]);
        arguments.extend(["--data-dir".to_owned(), text(&folder.join(&name))]);
        arguments.extend(["--admin-socket".to_owned(), text(&socket)]);
        if let Some(first) = members.first() {
            let Door::Ours(socket) = first.client.door() else { continue };
            arguments.extend(["--join".to_owned(), token(socket).await?]);
        }
        let log = folder.join(format!("{name}.log"));
        let restart = Restart { program: program.clone(), arguments, log };
        members.push(Member::start("control-plane", restart, Door::Ours(socket)).await?);
    }
    let group = Group { name: "isthmus".to_owned(), members };
    tokio::time::timeout(PATIENCE, complete(&group)).await.context("three replicas don't become a group")?;
    Ok(group)
}

async fn token(socket: &Path) -> Result<String> {
    let token = async {
        loop {
            let channel = mesh_tls::grpc::connect_unix(socket).await?;
            let request = CreateTokenRequest { purpose: "replica".to_owned(), ..Default::default() };
            match AdminClient::new(channel).create_token(request).await {
                Ok(answer) => return anyhow::Ok(answer.into_inner().token),
                // Not founded yet.
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, token).await?
}

/// Until the leader counts three members that vote.
async fn complete(group: &Group) {
    loop {
        for member in &group.members {
            let Door::Ours(socket) = member.client.door() else { continue };
            let Ok(channel) = mesh_tls::grpc::connect_unix(socket).await else { continue };
            let Ok(answer) = AdminClient::new(channel).status(StatusRequest {}).await else { continue };
            let votes = |role: &str| matches!(role, "leader" | "follower");
            if answer.into_inner().replicas.iter().filter(|replica| votes(&replica.role)).count() == MEMBERS {
                return;
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}
