//! What the process that answers names of services is told of them, and what it says of itself.

use std::{
    array,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dns_proxy::serve::Fate;
use tokio::sync::mpsc;
use tonic::Status;
use xds_proto::isthmus::{
    agent::v1::Service,
    local::v1::{ClusterDns, DnsCount, DnsNames, DnsNamesRequest},
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
    /// Questions that this agent was told of, as in [`Fate::ALL`].
    counts: Arc<[AtomicU64; Fate::ALL.len()]>,
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
        Self {
            addresses: addresses.into(),
            heard: Arc::new(Mutex::new(heard)),
            counts: Arc::new(array::from_fn(|_| AtomicU64::new(0))),
        }
    }

    /// Questions by what became of them.
    pub fn counts(&self) -> impl Iterator<Item = (Fate, u64)> {
        Fate::ALL
            .into_iter()
            .zip(self.counts.iter())
            .map(|(fate, count)| (fate, count.load(Ordering::Relaxed)))
    }

    /// So many more; all of them, or none.
    ///
    /// # Errors
    /// A fate that is none.
    pub(super) fn count(&self, more: &[DnsCount]) -> Result<(), Status> {
        let place = |told: &DnsCount| Fate::ALL.iter().position(|fate| fate.name() == told.fate);
        if let Some(strange) = more.iter().find(|told| place(told).is_none()) {
            let shown: String = strange.fate.chars().take(40).collect();
            return Err(Status::invalid_argument(format!("counts.fate: {shown:?} is none")));
        }
        for told in more {
            if let Some(count) = place(told).and_then(|at| self.counts.get(at)) {
                count.fetch_add(told.more, Ordering::Relaxed);
            }
        }
        Ok(())
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
    fn questions_add_up_and_a_fate_that_is_none_adds_nothing() {
        let answering = Answering::new(&[]);
        let told = |fate: &str, more| DnsCount { fate: fate.to_owned(), more };
        answering.count(&[told("answered", 3), told("no-name", 1)]).unwrap();
        answering.count(&[told("answered", 2)]).unwrap();
        let refused = answering.count(&[told("answered", 9), told("eaten", 1)]).unwrap_err();
        assert!(refused.message().contains("eaten"), "{refused:?}");
        let counts: Vec<_> = answering.counts().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counts, [(Fate::Answered, 5), (Fate::NoName, 1)]);
    }

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
