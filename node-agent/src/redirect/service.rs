//! Where proxies register.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use ebpf_shared::redirect::{DNS_NAME, MARK, NO_SLOT};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use xds_proto::isthmus::local::v1::{RegisterProxyRequest, RegisteredProxy, redirects_server::Redirects};

use super::{MAX_NAME, is_name};
use crate::{desired::Listens, engine::Engine, identity::Callers};

/// Serves proxies.
#[derive(Clone)]
pub struct Registrar {
    engine: Engine,
    callers: Callers,
    holders: Holders,
}

impl Registrar {
    /// Nobody has registered yet. What the kernel knows of proxies that were there before an agent's restart, it goes
    /// on with, until they come again.
    pub fn new(engine: Engine, callers: Callers) -> Self {
        Self { engine, callers, holders: Holders::default() }
    }
}

#[tonic::async_trait]
impl Redirects for Registrar {
    type RegisterStream = ReceiverStream<Result<RegisteredProxy, Status>>;

    async fn register(
        &self,
        request: Request<RegisterProxyRequest>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        self.callers.operator(&request)?;
        let (name, listens) =
            parse(request.into_inner()).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let held = self.holders.take(&name);
        match set(self.engine.clone(), name.clone(), Some(listens)).await {
            Ok(NO_SLOT) => {
                return Err(Status::resource_exhausted(
                    "there are more names of proxies than can be told apart",
                ));
            }
            Ok(slot) => tracing::info!(name, slot, ?listens, "a proxy has registered"),
            Err(error) => return Err(error),
        }
        let (tell, told) = mpsc::channel(1);
        let _ = tell.try_send(Ok(RegisteredProxy { mark: MARK }));
        let (engine, holders) = (self.engine.clone(), self.holders.clone());
        tokio::spawn(async move {
            tell.closed().await;
            if !holders.leave(&name, held) {
                return;
            }
            match set(engine, name.clone(), None).await {
                Ok(_) => tracing::warn!(name, "a proxy is gone: what policy lets only through it is refused"),
                // It is tried again with all that the kernel has refused; and nothing is handed to closed sockets.
                Err(error) => tracing::error!(name, %error, "a proxy is gone, and the kernel does not know"),
            }
        });
        Ok(Response::new(ReceiverStream::new(told)))
    }
}

async fn set(engine: Engine, name: String, listens: Option<Listens>) -> Result<u16, Status> {
    let written = tokio::task::spawn_blocking(move || engine.set_proxy(&name, listens)).await;
    match written {
        Ok(Ok(slot)) => Ok(slot),
        Ok(Err(error)) => Err(Status::internal(error.to_string())),
        Err(error) => Err(Status::internal(error.to_string())),
    }
}

/// Who has a name at the moment: the last that registered by it.
#[derive(Clone, Default)]
struct Holders(Arc<Mutex<BTreeMap<String, u64>>>);

impl Holders {
    /// Takes a name over. With what is returned it is left again.
    fn take(&self, name: &str) -> u64 {
        let mut holders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held = holders.entry(name.to_owned()).or_default();
        *held = held.wrapping_add(1);
        *held
    }

    /// Whether it was still this one's.
    fn leave(&self, name: &str, held: u64) -> bool {
        let holders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        holders.get(name) == Some(&held)
    }
}

/// A registration that says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs)]
enum RegistrationError {
    #[error("name: {0:?} is no DNS label")]
    Name(String),
    #[error("name: {DNS_NAME} is the agent's own proxy")]
    Reserved,
    #[error("{field}: {port} is no port")]
    Port { field: &'static str, port: u32 },
    #[error("port4, port6: one of them is wanted")]
    NoPort,
    #[error("tcp, udp: one of them is wanted")]
    NoTransport,
}

fn parse(message: RegisterProxyRequest) -> Result<(String, Listens), RegistrationError> {
    let RegisterProxyRequest { name, port4, port6, tcp, udp } = message;
    if !is_name(&name) {
        // As much of it as makes a line.
        return Err(RegistrationError::Name(name.chars().take(MAX_NAME).collect()));
    }
    if name == DNS_NAME {
        return Err(RegistrationError::Reserved);
    }
    let port = |field, port: u32| u16::try_from(port).map_err(|_| RegistrationError::Port { field, port });
    let listens = Listens { v4: port("port4", port4)?, v6: port("port6", port6)?, tcp, udp };
    if listens.v4 == 0 && listens.v6 == 0 {
        return Err(RegistrationError::NoPort);
    }
    if !tcp && !udp {
        return Err(RegistrationError::NoTransport);
    }
    Ok((name, listens))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> RegisterProxyRequest {
        RegisterProxyRequest { name: "l7".into(), port4: 4000, port6: 6000, tcp: true, udp: false }
    }

    #[test]
    fn a_registration_says_where_the_proxy_listens() {
        let (name, listens) = parse(request()).unwrap();
        assert_eq!(name, "l7");
        assert_eq!(listens, Listens { v4: 4000, v6: 6000, tcp: true, udp: false });
    }

    #[test]
    fn what_says_nothing_is_refused_by_its_field() {
        let refused = |change: &dyn Fn(&mut RegisterProxyRequest)| {
            let mut message = request();
            change(&mut message);
            parse(message).unwrap_err().to_string()
        };
        for name in ["", "-a", "a-", "A", "a.b", &"a".repeat(64), "dns"] {
            assert!(refused(&|message| message.name = name.into()).starts_with("name: "), "{name}");
        }
        assert!(refused(&|message| message.port4 = 65_536).starts_with("port4: 65536"));
        assert!(refused(&|message| message.port6 = 65_536).starts_with("port6: 65536"));
        assert!(refused(&|message| (message.port4, message.port6) = (0, 0)).starts_with("port4, port6"));
        assert!(refused(&|message| message.tcp = false).starts_with("tcp, udp"));
    }

    #[test]
    fn a_proxy_that_was_replaced_takes_nothing_with_it() {
        let holders = Holders::default();
        let first = holders.take("l7");
        let second = holders.take("l7");
        assert!(!holders.leave("l7", first));
        assert!(holders.leave("l7", second));
        assert!(!holders.leave("other", second));
    }
}
