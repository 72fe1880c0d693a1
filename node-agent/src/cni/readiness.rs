//! Whether workloads take traffic: asked at their ports, and told to the control plane when it changes.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use mesh_model::resource::NamespacedName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use super::{CniService, Endpoint, report::report};
use crate::subscribe::{Asked, Readiness};

/// Between two looks which probes are due.
const LOOK: Duration = Duration::from_millis(200);
/// A probe that is not answered by then has failed.
const PATIENCE: Duration = Duration::from_secs(1);
/// Probes under way; the others wait for the next look.
const MOST: usize = 256;
/// Of an answer, its first line is enough.
const FIRST_LINE: usize = 256;

/// What is known of one workload. PURE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Seen {
    /// `None`: never probed.
    ready: Option<bool>,
    /// Since the last one that succeeded.
    failures: u32,
}

impl Seen {
    /// Takes the outcome of a probe: whether it is ready now. One success makes it ready, and only so many failures in a
    /// row make it not ready, unless it never was.
    fn take(&mut self, answered: bool, most_failures: u32) -> bool {
        self.failures = if answered { 0 } else { self.failures.saturating_add(1) };
        let ready = answered || (self.ready == Some(true) && self.failures < most_failures.max(1));
        self.ready = Some(ready);
        ready
    }
}

struct Watched {
    of: Endpoint,
    seen: Seen,
    due: Instant,
    under_way: bool,
}

/// Probes every pod whose workload says how, for ever. Stop it by dropping the future.
pub async fn probe_for_ever(service: CniService) {
    let mut watched: BTreeMap<NamespacedName, Watched> = BTreeMap::new();
    let mut probes: JoinSet<(Endpoint, Readiness, bool)> = JoinSet::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            Some(Ok((of, how, answered))) = probes.join_next() => {
                let Some(known) = watched.get_mut(&of.workload).filter(|known| known.of == of) else { continue };
                known.under_way = false;
                known.due = Instant::now() + how.period;
                let ready = known.seen.take(answered, how.failures);
                let told = service.told_ready().get(&of.workload).copied();
                if told != Some(ready) && report(&service.upstream, &of.workload, of.addresses(), ready).await.is_ok() {
                    tracing::info!(workload = %of.workload, ready, "readiness changed");
                    service.told_ready().insert(of.workload.clone(), ready);
                }
                continue;
            }
        }
        let pods: Vec<_> = service.creator.registry.lock().iter().filter(|pod| pod.ready).cloned().collect();
        watched
            .retain(|workload, known| pods.iter().any(|pod| pod.workload == *workload && *pod == known.of));
        service.told_ready().retain(|workload, _| watched.contains_key(workload));
        for pod in pods {
            let Some(how) = service.readiness(&pod.workload) else {
                // Not told of (any more): when it is again, the control plane has forgotten what it was told.
                watched.remove(&pod.workload);
                continue;
            };
            let Some(how) = how else {
                // One that had a probe and has none any more is ready.
                let told = service.told_ready().get(&pod.workload).copied();
                if watched.contains_key(&pod.workload)
                    && told != Some(true)
                    && report(&service.upstream, &pod.workload, pod.addresses(), true).await.is_err()
                {
                    continue;
                }
                watched.remove(&pod.workload);
                continue;
            };
            let known = watched.entry(pod.workload.clone()).or_insert_with(|| Watched {
                of: pod.clone(),
                seen: Seen::default(),
                due: Instant::now(),
                under_way: false,
            });
            if known.under_way || known.due > Instant::now() || probes.len() >= MOST {
                continue;
            }
            known.under_way = true;
            probes.spawn(async move {
                let answered = timeout(PATIENCE, probe(&pod, &how)).await == Ok(true);
                (pod, how, answered)
            });
        }
    }
}

/// An answer by one of its addresses is enough: an application may serve one family only.
async fn probe(pod: &Endpoint, how: &Readiness) -> bool {
    let addresses = pod.addresses();
    let asked = addresses.iter().map(|address| {
        Box::pin(
            async move { probe_at(SocketAddr::new(address, how.port), how).await.then_some(()).ok_or(()) },
        )
    });
    futures::future::select_ok(asked).await.is_ok()
}

async fn probe_at(target: SocketAddr, how: &Readiness) -> bool {
    let Ok(mut stream) = TcpStream::connect(target).await else { return false };
    let Asked::Http(path) = &how.asked else { return true };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: isthmus-probe\r\nConnection: close\r\n\r\n"
    );
    if stream.write_all(request.as_bytes()).await.is_err() {
        return false;
    }
    let mut answer = Vec::new();
    let mut limited = stream.take(FIRST_LINE as u64);
    while !answer.contains(&b'\n') {
        match limited.read_buf(&mut answer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    is_success(&answer)
}

/// "Any code greater than or equal to 200 and less than 400 indicates success" (Kubernetes, HTTP probes). PURE.
fn is_success(answer: &[u8]) -> bool {
    let line = answer.split(|byte| *byte == b'\r' || *byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let is_http = words.next().is_some_and(|version| version.starts_with(b"HTTP/1."));
    let code = words.next().and_then(|code| std::str::from_utf8(code).ok()?.parse::<u16>().ok());
    is_http && code.is_some_and(|code| (200..400).contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_success_makes_ready_and_only_failures_in_a_row_make_unready() {
        let mut seen = Seen::default();
        let answers = [false, true, false, false, true, false, false, false, false, true];
        let ready: Vec<_> = answers.map(|answered| seen.take(answered, 3)).into();
        assert_eq!(ready, [false, true, true, true, true, true, true, false, false, true]);
        assert!(!Seen::default().take(false, 0), "never was");
    }

    #[tokio::test]
    async fn an_answer_by_either_family_is_one() {
        use std::net::{Ipv4Addr, Ipv6Addr};
        let pod = crate::cni::registry_fixture("c1", "shop/pay");
        let pod = Endpoint { address: Ipv4Addr::LOCALHOST, address6: Some(Ipv6Addr::LOCALHOST), ..pod };
        for own in [SocketAddr::from((Ipv6Addr::LOCALHOST, 0)), SocketAddr::from((Ipv4Addr::LOCALHOST, 0))] {
            let listener = tokio::net::TcpListener::bind(own).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let how = Readiness { asked: Asked::Tcp, port, period: LOOK, failures: 1 };
            assert!(probe(&pod, &how).await, "{own}");
            let other = Endpoint { address6: own.is_ipv4().then_some(Ipv6Addr::LOCALHOST), ..pod.clone() };
            assert_eq!(probe(&other, &how).await, own.is_ipv4());
            drop(listener);
            assert!(!probe(&pod, &how).await, "nobody listens any more");
        }
    }

    #[test]
    fn an_answer_is_judged_by_its_status_line() {
        for (answer, success) in [
            ("HTTP/1.1 200 OK\r\n", true),
            ("HTTP/1.0 302 Found\r\n", true),
            ("HTTP/1.1 404 Not Found\r\n", false),
            ("HTTP/1.1 503\r\n", false),
            ("SSH-2.0-OpenSSH\r\n", false),
            ("HTTP/1.1\r\n", false),
            ("HTTP/1.1 2000 OK\r\n", false),
            ("", false),
        ] {
            assert_eq!(is_success(answer.as_bytes()), success, "{answer}");
        }
    }
}
