//! What data planes were sent.

use clustermesh::csds::{ACKED_REVISION, CLIENT, PROTOCOL, REPLICA};
use serde_json::{Value, json};
use xds_proto::{
    envoy::service::status::v3::{ClientConfig, ConfigStatus, client_config::GenericXdsConfig},
    google::protobuf::{Timestamp, value::Kind},
};

use super::{
    age::{age, timestamp},
    table::{Cell, Table},
};
use crate::cli::out::{Paint, Tone};

/// Types with a column of their own, by the last part of their URL.
const COLUMNS: [(&str, &str); 5] = [
    ("CDS", "Cluster"),
    ("LDS", "Listener"),
    ("EDS", "ClusterLoadAssignment"),
    ("RDS", "RouteConfiguration"),
    ("SDS", "Secret"),
];

/// A line for each data plane.
pub(crate) fn overview(clients: &[ClientConfig], paint: Paint) -> String {
    let headings = ["CLIENT"].into_iter().chain(COLUMNS.map(|(heading, _)| heading));
    let mut table = Table::new(headings.chain(["OTHERS", "ACKED", "PROTOCOL", "REPLICA"]));
    for client in clients {
        let mut row = vec![said(client, CLIENT).into()];
        let configs = || client.generic_xds_configs.iter();
        for (_, column) in COLUMNS {
            row.push(summary(configs().filter(|config| kind(config) == column)));
        }
        row.push(summary(
            configs().filter(|config| COLUMNS.iter().all(|(_, column)| kind(config) != *column)),
        ));
        row.extend([ACKED_REVISION, PROTOCOL, REPLICA].map(|key| Cell::from(said(client, key))));
        table.row(row);
    }
    table.render(true, paint)
}

/// A line for each resource.
pub(crate) fn resources(clients: &[ClientConfig], now: u64, paint: Paint) -> String {
    let mut out = String::new();
    for client in clients {
        let title = format!("{} at {}", said(client, CLIENT), said(client, REPLICA));
        let mut table = Table::new(["TYPE", "NAME", "STATUS", "VERSION", "SENT", "ERROR"]);
        for config in &client.generic_xds_configs {
            let (word, tone) = status(config.config_status());
            let sent =
                config.last_updated.as_ref().map_or_else(String::new, |at| age(Some(seconds(at)), now));
            let error = config.error_state.as_ref().map(|state| state.details.as_str()).unwrap_or_default();
            table.row(vec![
                kind(config).into(),
                config.name.as_str().into(),
                Cell::toned(word, tone),
                config.version_info.as_str().into(),
                sent.into(),
                error.into(),
            ]);
        }
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&format!(
            "{}\n{}",
            paint.paint(Tone::Heading, &clean(&title)),
            table.render(true, paint)
        ));
    }
    out
}

/// Clients by name, and streams of the same client by replica.
pub(crate) fn order(client: &ClientConfig) -> (String, String) {
    (said(client, CLIENT), said(client, REPLICA))
}

/// For programs.
pub(crate) fn value(clients: &[ClientConfig]) -> Value {
    let resource = |config: &GenericXdsConfig| {
        let mut value = json!({
            "typeUrl": config.type_url,
            "name": config.name,
            "status": config.config_status().as_str_name(),
            "version": config.version_info,
        });
        if let Some(at) = &config.last_updated {
            value["lastUpdated"] = timestamp(seconds(at)).into();
        }
        if let Some(state) = &config.error_state {
            value["error"] = json!({ "details": state.details, "version": state.version_info });
        }
        value
    };
    let client = |client: &ClientConfig| {
        json!({
            "client": said(client, CLIENT),
            "nodeId": client.node.as_ref().map(|node| node.id.as_str()).unwrap_or_default(),
            "protocol": said(client, PROTOCOL),
            "replica": said(client, REPLICA),
            "ackedRevision": said(client, ACKED_REVISION).parse::<u64>().unwrap_or(0),
            "resources": client.generic_xds_configs.iter().map(resource).collect::<Vec<_>>(),
        })
    };
    json!({ "clients": clients.iter().map(client).collect::<Vec<_>>() })
}

/// The worst of them, and how many there are.
fn summary<'a>(configs: impl Iterator<Item = &'a GenericXdsConfig>) -> Cell {
    let all: Vec<ConfigStatus> = configs.map(GenericXdsConfig::config_status).collect();
    let worst = [ConfigStatus::Error, ConfigStatus::NotSent, ConfigStatus::Stale, ConfigStatus::Unknown];
    match worst.into_iter().find(|status| all.contains(status)) {
        _ if all.is_empty() => Cell::toned("-", Tone::Faint),
        None => Cell::toned(format!("SYNCED ({})", all.len()), Tone::Good),
        Some(found) => {
            let (word, tone) = status(found);
            let of = all.iter().filter(|status| **status == found).count();
            Cell::toned(format!("{word} ({of} of {})", all.len()), tone)
        }
    }
}

fn status(status: ConfigStatus) -> (&'static str, Tone) {
    match status {
        ConfigStatus::Synced => ("SYNCED", Tone::Good),
        ConfigStatus::Stale => ("STALE", Tone::Warning),
        ConfigStatus::NotSent => ("NOT SENT", Tone::Warning),
        ConfigStatus::Error => ("ERROR", Tone::Bad),
        ConfigStatus::Unknown => ("UNKNOWN", Tone::Warning),
    }
}

fn kind(config: &GenericXdsConfig) -> &str {
    config.type_url.rsplit('.').next().unwrap_or_default()
}

fn said(client: &ClientConfig, key: &str) -> String {
    let metadata = client.node.as_ref().and_then(|node| node.metadata.as_ref());
    match metadata.and_then(|metadata| metadata.fields.get(key)).and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => text.clone(),
        _ => String::new(),
    }
}

fn seconds(at: &Timestamp) -> u64 {
    u64::try_from(at.seconds).unwrap_or(0)
}

/// Names come from users: a title has no escape sequences.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use xds_proto::{
        envoy::{admin::v3::UpdateFailureState, config::core::v3::Node},
        google::protobuf,
    };

    use super::*;

    fn config(type_url: &str, name: &str, status: ConfigStatus) -> GenericXdsConfig {
        GenericXdsConfig {
            type_url: format!("type.googleapis.com/envoy.config.x.v3.{type_url}"),
            name: name.into(),
            version_info: "ab12".into(),
            last_updated: Some(Timestamp { seconds: 90, nanos: 0 }),
            config_status: status.into(),
            ..Default::default()
        }
    }

    fn client() -> ClientConfig {
        let text = |text: &str| protobuf::Value { kind: Some(Kind::StringValue(text.into())) };
        let fields = [
            (CLIENT.to_owned(), text("envoy~shop/web")),
            (REPLICA.to_owned(), text("replica-1")),
            (PROTOCOL.to_owned(), text("delta")),
            (ACKED_REVISION.to_owned(), text("7")),
        ];
        let mut refused = config("RouteConfiguration", "web", ConfigStatus::Error);
        refused.error_state = Some(UpdateFailureState { details: "no domains".into(), ..Default::default() });
        ClientConfig {
            node: Some(Node {
                id: "sidecar".into(),
                metadata: Some(protobuf::Struct { fields: fields.into() }),
                ..Default::default()
            }),
            generic_xds_configs: vec![
                config("Cluster", "pay", ConfigStatus::Synced),
                config("Cluster", "web", ConfigStatus::Synced),
                config("ClusterLoadAssignment", "pay", ConfigStatus::Stale),
                config("ClusterLoadAssignment", "web", ConfigStatus::Synced),
                refused,
                config("VirtualHost", "r/x", ConfigStatus::NotSent),
            ],
            ..Default::default()
        }
    }

    #[test]
    fn the_overview_says_the_worst_of_each_type() {
        let text = overview(&[client()], Paint::PLAIN);
        let words: Vec<&str> =
            text.lines().nth(1).unwrap().split("   ").filter(|word| !word.is_empty()).collect();
        let words: Vec<&str> = words.into_iter().map(str::trim).collect();
        assert_eq!(
            words,
            [
                "envoy~shop/web",
                "SYNCED (2)",
                "-",
                "STALE (1 of 2)",
                "ERROR (1 of 1)",
                "-",
                "NOT SENT (1 of 1)",
                "7",
                "delta",
                "replica-1"
            ]
        );
    }

    #[test]
    fn one_data_plane_is_shown_resource_by_resource_with_its_words() {
        let text = resources(&[client()], 100, Paint::PLAIN);
        assert!(text.starts_with("envoy~shop/web at replica-1\nTYPE"), "{text}");
        let refused = text.lines().find(|line| line.starts_with("RouteConfiguration")).unwrap();
        assert!(refused.contains("ERROR") && refused.ends_with("10s    no domains"), "{refused:?}");
    }

    #[test]
    fn programs_get_everything() {
        let value = value(&[client()]);
        let client = &value["clients"][0];
        assert_eq!(
            (client["client"].as_str(), client["ackedRevision"].as_u64()),
            (Some("envoy~shop/web"), Some(7))
        );
        assert_eq!(client["resources"][4]["error"]["details"], "no domains");
        assert_eq!(client["resources"][0]["status"], "SYNCED");
    }
}
