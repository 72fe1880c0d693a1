//! One call from beginning to end.

use std::{
    io::{Read, Write},
    time::Duration,
};

use serde_json::Value;
use tonic::transport::Channel;
use xds_proto::isthmus::local::v1::{
    CniAttachment, CniEmpty, CniGcRequest, CniPortMapping, CniRequest, cni_client::CniClient,
};

use super::{
    CniError, Environment, Invocation, SUPPORTED_VERSIONS, Verb, add_result, chained_result, code, parse,
    request::MAX_STDIN, version_result,
};

/// The agent has 30 s for an ADD, and answers in any case; this is for one that is stuck.
const DEADLINE: Duration = Duration::from_secs(45);

/// Runs the plugin and gives the exit code of the process.
pub fn run(vars: impl IntoIterator<Item = (String, String)>, stdin: impl Read, mut stdout: impl Write) -> u8 {
    let environment = Environment::new(vars);
    let mut input = Vec::new();
    let newest = SUPPORTED_VERSIONS[SUPPORTED_VERSIONS.len() - 1].to_owned();
    let answer = match stdin.take(MAX_STDIN as u64 + 1).read_to_end(&mut input) {
        Ok(_) => parse(&environment, &input).and_then(|invocation| {
            execute(&invocation).map_err(|error| (invocation.config.cni_version.clone(), error))
        }),
        Err(error) => {
            Err((newest, CniError::new(code::IO, "standard input cannot be read").details(error.to_string())))
        }
    };
    let (printed, exit) = match answer {
        Ok(None) => return 0,
        Ok(Some(result)) => (result, 0),
        Err((version, error)) => (error.json(&version), 1),
    };
    match writeln!(stdout, "{printed}").and_then(|()| stdout.flush()) {
        Ok(()) => exit,
        Err(_) => 1,
    }
}

fn execute(invocation: &Invocation) -> Result<Option<Value>, CniError> {
    if invocation.verb == Verb::Version {
        return Ok(Some(version_result()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CniError::new(code::IO, "the plugin cannot start").details(error.to_string()))?;
    let stuck = || {
        CniError::new(code::TRY_AGAIN, format!("the agent did not answer within {DEADLINE:?}"))
            .details(invocation.socket.display().to_string())
    };
    runtime.block_on(async {
        tokio::time::timeout(DEADLINE, ask(invocation)).await.unwrap_or_else(|_| Err(stuck()))
    })
}

async fn ask(invocation: &Invocation) -> Result<Option<Value>, CniError> {
    let channel = mesh_tls::grpc::connect_unix(&invocation.socket).await.map_err(|error| {
        let code = if invocation.verb == Verb::Status { code::NOT_AVAILABLE } else { code::TRY_AGAIN };
        CniError::new(code, "the node agent does not run").details(error.to_string())
    })?;
    let mut agent = CniClient::<Channel>::new(channel);
    let request = CniRequest {
        container_id: invocation.container_id.clone(),
        netns: invocation.netns.clone(),
        ifname: invocation.ifname.clone(),
        namespace: invocation.namespace.clone(),
        pod: invocation.pod.clone(),
        cni_version: invocation.config.cni_version.clone(),
        prev_result: invocation
            .config
            .prev_result
            .as_ref()
            .map(|value| value.to_string().into_bytes())
            .unwrap_or_default(),
        network: invocation.config.name.clone(),
        port_mappings: port_mappings(invocation),
    };
    match invocation.verb {
        Verb::Add => {
            let answer = agent.add(request).await.map_err(|status| CniError::from_status(&status))?;
            Ok(Some(match &invocation.config.prev_result {
                // Nothing of it has changed.
                Some(previous) => chained_result(invocation, previous),
                None => add_result(invocation, answer.get_ref()),
            }))
        }
        Verb::Del => {
            agent.del(request).await.map_err(|status| CniError::from_status(&status))?;
            Ok(None)
        }
        Verb::Check => {
            agent.check(request).await.map_err(|status| CniError::from_status(&status))?;
            Ok(None)
        }
        Verb::Status => {
            let failed = |status: tonic::Status| match CniError::from_status(&status) {
                error if error.code == code::LIMITED => error,
                error => CniError { code: code::NOT_AVAILABLE, ..error },
            };
            agent.status(CniEmpty {}).await.map_err(failed)?;
            Ok(None)
        }
        Verb::Gc => {
            let valid = invocation.valid.iter().map(|attachment| CniAttachment {
                container_id: attachment.container_id.clone(),
                ifname: attachment.ifname.clone(),
            });
            let request = CniGcRequest { network: invocation.config.name.clone(), valid: valid.collect() };
            agent.gc(request).await.map_err(|status| CniError::from_status(&status))?;
            Ok(None)
        }
        Verb::Version => Ok(None),
    }
}

fn port_mappings(invocation: &Invocation) -> Vec<CniPortMapping> {
    let given = invocation.config.runtime_config.port_mappings.iter().flatten();
    given
        .map(|port| CniPortMapping {
            host_port: port.host_port.into(),
            container_port: port.container_port.into(),
            protocol: port.protocol.clone(),
            host_ip: port.host_ip.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_with(vars: &[(&str, &str)], stdin: &str) -> (u8, Value) {
        let mut out = Vec::new();
        let vars = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let exit = run(vars, stdin.as_bytes(), &mut out);
        (exit, serde_json::from_slice(&out).unwrap())
    }

    #[test]
    fn version_is_answered_without_an_agent() {
        let (exit, answer) = run_with(&[("CNI_COMMAND", "VERSION")], r#"{"cniVersion":"1.0.0"}"#);
        assert_eq!(exit, 0);
        assert_eq!(answer["supportedVersions"][2], "1.1.0");
    }

    #[test]
    fn an_agent_that_does_not_run_is_a_reason_to_try_again() {
        let vars = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/run/netns/x"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=pay"),
        ];
        let config = r#"{"cniVersion":"1.1.0","agentSocket":"/nonexistent/agent.sock"}"#;
        let (exit, answer) = run_with(&vars, config);
        assert_eq!(
            (exit, &answer["code"], &answer["cniVersion"]),
            (1, &code::TRY_AGAIN.into(), &"1.1.0".into())
        );
        let status = [("CNI_COMMAND", "STATUS")];
        assert_eq!(run_with(&status, config).1["code"], code::NOT_AVAILABLE);
    }

    #[test]
    fn errors_are_one_json_object_with_the_four_fields_of_the_specification() {
        let (exit, answer) = run_with(&[], "{}");
        assert_eq!(exit, 1);
        let keys: Vec<_> = answer.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["cniVersion", "code", "details", "msg"]);
    }
}
