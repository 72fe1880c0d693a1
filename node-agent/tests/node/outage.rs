//! The agent dies while pods are made; the machine starts anew; the control plane is away.

use std::{net::Ipv4Addr, sync::Arc};

use serde_json::Value;
use tokio::{runtime::Runtime, task::JoinHandle};

use crate::{
    Host, connects,
    control_plane::{State, eventually},
    links, name, refused, run, serve_in,
};

/// Pods that are being made when the agent dies.
const HALF: usize = 16;

/// What was answered holds, what was not is gone, and the same once more makes all of them.
pub fn dies_while_pods_are_made(host: &mut Host<'_>, state: &Arc<State>) {
    let before = links().len();
    let pods: Vec<String> = (0..HALF).map(|number| format!("half{number}")).collect();
    for pod in &pods {
        state.declare(&format!("shop/{pod}"));
        run(&["ip", "netns", "add", &name(pod)]);
    }
    let agent = host.agent.as_ref().unwrap().id().to_string();
    let answers: Vec<(bool, Value)> = std::thread::scope(|scope| {
        let host = &*host;
        let adding: Vec<_> = pods.iter().map(|pod| scope.spawn(move || host.cni("ADD", pod))).collect();
        let any = |_: &()| pods.iter().any(|pod| state.reported(&format!("shop/{pod}")).is_some());
        eventually("one is being made", || Some(()).filter(any));
        run(&["kill", "-KILL", &agent]);
        adding.into_iter().map(|one| one.join().unwrap()).collect()
    });
    host.agent.take().unwrap().wait().unwrap();
    for (fine, answer) in &answers {
        assert!(*fine || answer["code"] == 11, "to be tried again: {answer}");
    }
    host.start();
    let made = answers.iter().filter(|(fine, _)| *fine).count();
    println!("{made} of {HALF} were made when the agent died");
    // One that was finished and not answered any more is there as well: to the runtime it is the same call once more.
    assert!((before + made..=before + HALF).contains(&links().len()), "{:?}", links());
    for (pod, (fine, first)) in pods.iter().zip(&answers) {
        let (again, answer) = host.cni("ADD", pod);
        assert!(again, "{pod}: {answer}");
        assert!(!fine || answer["ips"] == first["ips"], "what was answered holds: {answer}");
        assert!(host.cni("CHECK", pod).0, "{pod}");
    }
    assert_eq!(links().len(), before + HALF);
    for pod in &pods {
        assert!(host.cni("DEL", pod).0, "{pod}");
        run(&["ip", "netns", "delete", &name(pod)]);
    }
    assert_eq!(links().len(), before);
}

/// Nothing is left but the disk, and nobody is there to be asked: pods that were here come back with their policy.
pub fn machine_starts_anew_without_a_control_plane(
    host: &mut Host<'_>,
    state: &Arc<State>,
    runtime: &Runtime,
    serving: &mut JoinHandle<()>,
) -> Ipv4Addr {
    serving.abort();
    host.kill("-KILL");
    for link in links() {
        let link = link.split([':', '@']).nth(1).unwrap().trim().to_owned();
        run(&["ip", "link", "delete", &link]);
    }
    for pod in ["pay", "web", "evil"] {
        run(&["ip", "netns", "delete", &name(pod)]);
    }
    nix::mount::umount2(&host.sandbox.bpffs(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    let socket = host.socket();
    let status = |host: &Host<'_>| host.agent(&["status", "--socket", socket.to_str().unwrap()]);

    host.start();
    let (fine, text) = status(host);
    assert!(fine && text.contains("away since 2") && text.contains("policy of 0 pods"), "{text}");
    // From the first moment on, with the policy that was told last.
    let pay = host.add("pay");
    serve_in("pay", 8080);
    host.add("web");
    host.add("evil");
    assert!(connects("web", pay, 8080) && refused("evil", pay, 8080));
    assert!(host.cni("CHECK", "pay").0);
    // Of this one nobody has ever told.
    state.declare("shop/unheard");
    run(&["ip", "netns", "add", &name("unheard")]);
    let (fine, answer) = host.cni("ADD", "unheard");
    assert!(!fine && answer["code"] == 11, "{answer}");
    let (fine, answer) = host.cni("STATUS", "pay");
    assert!(!fine && answer["code"] == 50, "{answer}");

    *serving = runtime.spawn(state.clone().serve());
    eventually("it is told where the pod is", || {
        (state.reported("shop/pay") == Some(pay.to_string())).then_some(())
    });
    eventually("the pods are ready", || {
        ["pay", "web", "evil"].iter().all(|pod| state.is_ready(&format!("shop/{pod}"))).then_some(())
    });
    eventually("it is heard", || (!status(host).1.contains("away since")).then_some(()));
    assert!(host.cni("ADD", "unheard").0 && host.cni("DEL", "unheard").0);
    run(&["ip", "netns", "delete", &name("unheard")]);
    assert!(connects("web", pay, 8080) && refused("evil", pay, 8080));
    pay
}
