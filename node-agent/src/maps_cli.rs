//! `node-agent maps`: what the kernel holds, and whether it is what it is to hold.

use std::{io::Write, path::Path};

use anyhow::Context;
use serde_json::{Value, json};
use xds_proto::isthmus::local::v1::{VerifiedMap, VerifyMapsRequest, agent_client::AgentClient};

use crate::{
    config::{DumpArgs, Output, VerifyArgs},
    kernel::dump::{self, Dump, Entry, plain},
    local::told,
    maps::verify_offline,
};

/// Prints the entries of one map, or of all.
///
/// # Errors
/// No such map, or it can't be read.
pub fn print(args: &DumpArgs, mut out: impl Write) -> anyhow::Result<()> {
    let all = dump::all();
    let chosen: Vec<&dyn Dump> = match &args.map {
        None => all.iter().map(AsRef::as_ref).collect(),
        Some(name) => {
            let found = all.iter().find(|how| how.name().eq_ignore_ascii_case(name));
            let names = || all.iter().map(|how| how.name()).collect::<Vec<_>>().join(", ");
            vec![found.with_context(|| format!("there is no map {name:?}; there are {}", names()))?.as_ref()]
        }
    };
    let mut maps = Vec::new();
    for how in chosen {
        maps.push((how.name(), dump::dump(&args.bpffs, how)?, dump::capacity(&args.bpffs, how.name())?));
    }
    match args.output {
        Output::Json => {
            let json: Vec<Value> = maps
                .iter()
                .map(|(name, entries, most)| {
                    let entries: Vec<_> = entries.iter().map(Entry::json).collect();
                    json!({ "map": name, "capacity": most, "entries": entries })
                })
                .collect();
            writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?;
        }
        Output::Table => {
            for (name, entries, most) in &maps {
                writeln!(out, "{name}: {} of {most}", entries.len())?;
                table(entries, &mut out)?;
            }
        }
    }
    Ok(())
}

fn table(entries: &[Entry], out: &mut impl Write) -> std::io::Result<()> {
    let Some(first) = entries.first() else { return Ok(()) };
    let names = first.key.iter().chain(&first.value).map(|(name, _)| name.to_uppercase());
    let mut rows = vec![names.collect::<Vec<_>>()];
    rows.extend(entries.iter().map(|entry| {
        entry.key.iter().chain(&entry.value).map(|(_, value)| plain(value)).collect::<Vec<_>>()
    }));
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max();
    let widths: Vec<usize> = (0..rows[0].len()).map(|column| width(column).unwrap_or(0)).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        writeln!(out, "  {}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// Has the agent compare the kernel with what it is to hold, or does so itself where a state directory is given, and
/// prints what differs.
///
/// # Errors
/// No agent runs, or something differs.
pub async fn verify(args: &VerifyArgs, mut out: impl Write) -> anyhow::Result<()> {
    let maps = match (&args.state_dir, &args.bpffs) {
        (Some(state_dir), Some(bpffs)) => verify_offline(state_dir, bpffs)?.into_iter().map(told).collect(),
        _ => ask(&args.socket).await?,
    };
    let differences: u64 = maps.iter().map(|map| map.differences).sum();
    for map in &maps {
        let what = if map.differences == 0 { String::new() } else { format!(", {} wrong", map.differences) };
        writeln!(out, "{:<10} {} entries{what}", map.map, map.entries)?;
        for difference in &map.first {
            let (key, found, wanted) = (&difference.key, &difference.found, &difference.wanted);
            writeln!(out, "  {key}: the kernel has {found}, wanted is {wanted}")?;
        }
    }
    if differences > 0 {
        anyhow::bail!("{differences} entries of the kernel are not as they are to be");
    }
    Ok(())
}

async fn ask(socket: &Path) -> anyhow::Result<Vec<VerifiedMap>> {
    let channel = mesh_tls::grpc::connect_unix(socket).await?;
    let asked = AgentClient::new(channel).verify_maps(VerifyMapsRequest {}).await;
    Ok(asked.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner().maps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_the_fields_of_key_and_value_as_columns() {
        let entry = |address: &str, identity: u32| Entry {
            key: vec![("address", address.into())],
            value: vec![("identity", identity.into())],
        };
        let mut out = Vec::new();
        table(&[entry("10.1.1.2", 300), entry("fd00::2", 7)], &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "  ADDRESS   IDENTITY\n  10.1.1.2  300\n  fd00::2   7\n");
    }
}
