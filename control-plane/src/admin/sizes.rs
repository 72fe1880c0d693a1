//! Policies that nodes could not be told of are refused before they are stored. Those that have become so since, as more
//! workloads came, are named by the status.

use std::collections::BTreeSet;

use mesh_model::{
    compile::{MeshModel, may_be_too_large, too_large},
    policy::{Namespaces, NormalPolicy},
    resource::Object,
};
use mesh_store::{Command, Envelope, State};
use tonic::Status;

use crate::app::App;

/// Looks at what these objects would make of the policies that are there.
///
/// # Errors
/// Names the policy, how large it would be and what is possible.
pub async fn check(app: &App, objects: &[Object]) -> Result<(), Status> {
    let Some(model) = app.views.model() else { return Ok(()) };
    let state = app.replica.applied();
    if !is_in_doubt(&state, &model, objects) {
        return Ok(());
    }
    let (objects, now_ms) = (objects.to_vec(), app.now_unix() * 1000);
    let looked = tokio::task::spawn_blocking(move || refusal((*state).clone(), objects, now_ms)).await;
    match looked {
        Ok(None) => Ok(()),
        Ok(Some(sentence)) => Err(Status::failed_precondition(sentence)),
        Err(error) => Err(Status::internal(format!("the size of the policies could not be told: {error}"))),
    }
}

fn is_in_doubt(state: &State, model: &MeshModel, objects: &[Object]) -> bool {
    let policies = policies(state, objects);
    !policies.is_empty() && may_be_too_large(model, &policies)
}

fn policies(state: &State, objects: &[Object]) -> Vec<NormalPolicy> {
    let namespaces = Namespaces::of(&state.objects);
    objects.iter().flat_map(|object| NormalPolicy::all_of(object, namespaces)).collect()
}

/// Why the objects are not to be stored, if their policies are the reason.
fn refusal(mut state: State, objects: Vec<Object>, now_unix_ms: u64) -> Option<String> {
    let applied: BTreeSet<String> =
        policies(&state, &objects).into_iter().map(|policy| policy.provenance).collect();
    let command = Command::Apply { objects, dry_run: false };
    let (key, random) = (Default::default(), Default::default());
    let envelope = Envelope { key, now_unix_ms, first_unix_ms: None, random, command };
    // What else is wrong with it is said where it is written.
    mesh_store::apply(&mut state, &envelope).outcome.ok()?;
    let found = too_large(&state.input()?);
    found.iter().find_map(|(error, policies)| {
        let own = policies.intersection(&applied).next()?;
        Some(if *own == error.policy { error.to_string() } else { format!("{own}: {error}") })
    })
}

/// What nodes are not told of, and nodes whose kernels have no room for what they are told, in sentences.
pub fn sentences(model: &MeshModel) -> Vec<String> {
    let classes = model.oversized().into_iter().map(|(error, workload)| match workload {
        Some(name) => format!("{error}: nodes keep what they have for workload {name} and those like it"),
        None => error.to_string(),
    });
    classes.chain(model.full_nodes().iter().map(ToString::to_string)).collect()
}

#[cfg(test)]
mod tests {
    use mesh_model::compile::Compiler;
    use mesh_store::Bytes16;
    use serde_json::{Value, json};

    use super::*;

    /// A cluster of workloads that are all told apart.
    fn cluster(workloads: u32) -> State {
        let mut state = State::default();
        let mut number = 0_u8;
        let mut run = |command| {
            number += 1;
            let (key, random) = (Bytes16([number; 16]), Bytes16([number; 16]));
            let envelope = Envelope { key, now_unix_ms: 1, first_unix_ms: None, random, command };
            mesh_store::apply(&mut state, &envelope).outcome.unwrap();
        };
        run(crate::raft::testing::init());
        let objects: Vec<Object> = (0..workloads).map(workload).collect();
        for some in objects.chunks(500) {
            run(Command::Apply { objects: some.to_vec(), dry_run: false });
        }
        state
    }

    fn object(value: Value) -> Object {
        Object::parse(&value).unwrap()
    }

    fn workload(n: u32) -> Object {
        object(json!({
            "apiVersion": "isthmus.io/v1", "kind": "Workload",
            "metadata": {"namespace": "shop", "name": format!("w{n}"), "labels": {"app": format!("a{n}"), "tier": "x"}},
            "spec": {"serviceAccount": "default"},
        }))
    }

    fn policy(selector: &Value, ports: u32) -> Object {
        let ports: Vec<Value> =
            (0..ports).map(|n| json!({"port": 1000 + 2 * n, "protocol": "TCP"})).collect();
        let ingress: Vec<Value> =
            ports.chunks(100).map(|some| json!({"from": [selector], "ports": some})).collect();
        object(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "shop", "name": "wide"},
            "spec": {"podSelector": {}, "ingress": ingress},
        }))
    }

    #[test]
    fn a_policy_that_no_node_takes_is_refused_by_name_and_number_and_others_are_not() {
        let state = cluster(1_000);
        let (model, _) = Compiler::default().compile(state.input().unwrap());
        let in_doubt = |policy: &Object| is_in_doubt(&state, &model, std::slice::from_ref(policy));
        let by_label = |ports| policy(&json!({"podSelector": {"matchLabels": {"tier": "x"}}}), ports);
        assert!(!in_doubt(&by_label(2)), "not even looked at");
        assert!(in_doubt(&by_label(400)));
        assert_eq!(refusal(state.clone(), vec![by_label(400)], 2), None);
        let sentence = refusal(state.clone(), vec![by_label(600)], 2).unwrap();
        assert!(sentence.starts_with("networkpolicy/shop/wide: "), "{sentence}");
        assert!(sentence.contains(" 600000 rules") && sentence.contains("at most 524288"), "{sentence}");
        // Every workload is one peer.
        let everybody = policy(&json!({"namespaceSelector": {}}), 600);
        assert_eq!(refusal(state, vec![everybody], 2), None);
    }

    #[test]
    fn what_has_become_too_large_is_named_with_whom_it_concerns() {
        let mut state = cluster(1_000);
        let command = Command::Apply {
            objects: vec![policy(&json!({"podSelector": {"matchLabels": {"tier": "x"}}}), 600)],
            dry_run: false,
        };
        let (key, random) = (Bytes16([200; 16]), Bytes16([200; 16]));
        let envelope = Envelope { key, now_unix_ms: 2, first_unix_ms: None, random, command };
        mesh_store::apply(&mut state, &envelope).outcome.unwrap();
        let (model, _) = Compiler::default().compile(state.input().unwrap());
        let [sentence] = &sentences(&model)[..] else { panic!("{:?}", sentences(&model)) };
        assert!(sentence.contains("networkpolicy/shop/wide: ") && sentence.contains("600000"), "{sentence}");
        assert!(sentence.contains("workload shop/w0"), "{sentence}");
    }
}
