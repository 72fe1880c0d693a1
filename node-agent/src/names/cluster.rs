//! What the process that answers names of services is told of them, and what it says of itself.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::mpsc;
use tonic::Status;
use xds_proto::isthmus::{
    agent::v1::Service,
    local::v1::{ClusterDns, DnsNames, DnsNamesRequest},
};

use crate::{dns::named, engine::Engine};

/// Changes that come within this time are told together.
const SETTLE: Duration = Duration::from_millis(20);

/// Whether names are answered, as far as the agent has heard. Cheap to clone.
#[derive(Clone)]
pub struct Answering {
    /// At which they are to be.
    addresses: Arc<[IpAddr]>,
    heard: Arc<Mutex<Heard>>,
}

#[derive(Default)]
struct Heard {
    /// Of processes that have come.
    count: u64,
    /// Why the last one does not answer.
    trouble: String,
}

impl Answering {
    /// Nobody has said anything yet.
    pub fn new(addresses: &[IpAddr]) -> Self {
        let heard = Heard { count: 0, trouble: "the DNS process has not come yet".to_owned() };
        Self { addresses: addresses.into(), heard: Arc::new(Mutex::new(heard)) }
    }

    /// For status; `None` if it is not asked for.
    pub fn status(&self) -> Option<ClusterDns> {
        let trouble = self.heard().trouble.clone();
        let addresses = self.addresses.iter().map(ToString::to_string).collect();
        (!self.addresses.is_empty()).then_some(ClusterDns { addresses, trouble })
    }

    /// A process has come; its number.
    fn come(&self, trouble: String) -> u64 {
        let mut heard = self.heard();
        *heard = Heard { count: heard.count + 1, trouble };
        heard.count
    }

    /// It is gone. (The next one may have come before that is noticed.)
    fn gone(&self, number: u64) {
        let mut heard = self.heard();
        if heard.count == number {
            "the DNS process is gone".clone_into(&mut heard.trouble);
        }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells of services as they change, until the process is gone.
pub(super) async fn tell(
    engine: Engine,
    answering: Answering,
    request: DnsNamesRequest,
    to: mpsc::Sender<Result<DnsNames, Status>>,
) {
    let number = answering.come(request.trouble);
    let mut changes = engine.changes();
    let mut last = None;
    loop {
        changes.borrow_and_update();
        // Until services were told of, what the process remembers is better than nothing.
        let news = engine.resources(|resources| {
            resources.heard::<Service>().then(|| named::difference(&mut last, &resources.services)).flatten()
        });
        if let Some(news) = news
            && to.send(Ok(news)).await.is_err()
        {
            break;
        }
        tokio::select! {
            () = to.closed() => break,
            changed = changes.changed() => if changed.is_err() { break },
        }
        tokio::time::sleep(SETTLE).await;
    }
    answering.gone(number);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_last_process_says_counts() {
        let answering = Answering::new(&[[169, 254, 20, 10].into()]);
        let trouble = || answering.status().unwrap().trouble;
        assert!(!trouble().is_empty());
        let first = answering.come("in use".to_owned());
        let second = answering.come(String::new());
        answering.gone(first);
        assert_eq!(trouble(), "");
        answering.gone(second);
        assert!(!trouble().is_empty());
        assert_eq!(Answering::new(&[]).status(), None);
    }
}
