//! What the DNS proxy of this node asks of its agent.

use std::{net::IpAddr, sync::Arc, time::Duration};

use ebpf_shared::redirect::DNS_NAME;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use xds_proto::isthmus::local::v1::{
    DnsAdmitRequest, DnsAdmitResponse, DnsCountRequest, DnsCountResponse, DnsFollowRequest, DnsNames,
    DnsNamesRequest, DnsNote, DnsNoteResponse, DnsRules, dns_server::Dns,
};

use super::{
    MAX_ADDRESSES_OF_A_NAME,
    cluster::{self, Answering},
};
use crate::{
    bootstrap::unix_now,
    desired::Listens,
    engine::Engine,
    flows::{Collector, asked},
    identity::Callers,
};

/// Changes that come within this time are told together.
const SETTLE: Duration = Duration::from_millis(10);

/// Serves the proxy.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct DnsService {
    pub engine: Engine,
    pub callers: Callers,
    /// Takes queries as flows.
    pub flows: Collector,
    /// Names of services.
    pub answering: Answering,
}

#[tonic::async_trait]
impl Dns for DnsService {
    type FollowStream = ReceiverStream<Result<DnsRules, Status>>;
    type NamesStream = ReceiverStream<Result<DnsNames, Status>>;

    async fn names(&self, request: Request<DnsNamesRequest>) -> Result<Response<Self::NamesStream>, Status> {
        self.callers.operator(&request)?;
        let (to, told) = mpsc::channel(1);
        tokio::spawn(cluster::tell(self.engine.clone(), self.answering.clone(), request.into_inner(), to));
        Ok(Response::new(ReceiverStream::new(told)))
    }

    async fn count(&self, request: Request<DnsCountRequest>) -> Result<Response<DnsCountResponse>, Status> {
        self.callers.operator(&request)?;
        self.answering.count(&request.get_ref().counts)?;
        Ok(Response::new(DnsCountResponse {}))
    }

    async fn follow(
        &self,
        request: Request<DnsFollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        self.callers.operator(&request)?;
        let port = u16::try_from(request.get_ref().port).ok().filter(|port| *port != 0);
        let port = port.ok_or_else(|| Status::invalid_argument("port: 1 to 65535 is wanted"))?;
        let (tell, told) = mpsc::channel(1);
        tokio::spawn(follow(self.engine.clone(), port, tell));
        Ok(Response::new(ReceiverStream::new(told)))
    }

    async fn admit(&self, request: Request<DnsAdmitRequest>) -> Result<Response<DnsAdmitResponse>, Status> {
        self.callers.operator(&request)?;
        let request = request.into_inner();
        if request.name.len() > mesh_model::policy::MAX_NAME {
            return Err(Status::invalid_argument(format!("name: {} characters", request.name.len())));
        }
        let pod: IpAddr = request
            .pod
            .parse()
            .map_err(|_| Status::invalid_argument(format!("pod: {:?} is no address", request.pod)))?;
        if request.addresses.len() > MAX_ADDRESSES_OF_A_NAME {
            let count = request.addresses.len();
            return Err(Status::invalid_argument(format!("addresses: {count} of one name")));
        }
        let mut addresses = Vec::with_capacity(request.addresses.len());
        for told in &request.addresses {
            let address: IpAddr = told.address.parse().map_err(|_| {
                Status::invalid_argument(format!("addresses: {:?} is no address", told.address))
            })?;
            addresses.push((address, Duration::from_secs(told.ttl_s.into())));
        }
        let engine = self.engine.clone();
        let admitted =
            tokio::task::spawn_blocking(move || engine.admit(pod, &request.name, &addresses, unix_now()));
        match admitted.await {
            Ok(Ok(())) => Ok(Response::new(DnsAdmitResponse {})),
            Ok(Err(error)) => Err(Status::internal(error.to_string())),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }

    async fn note(&self, request: Request<Streaming<DnsNote>>) -> Result<Response<DnsNoteResponse>, Status> {
        self.callers.operator(&request)?;
        let mut notes = request.into_inner();
        while let Some(note) = notes.next().await {
            let note = note?;
            let Some(ends) = asked(&note) else { continue };
            let parties = self.engine.dns_parties(ends.0.ip(), ends.1.ip(), &note.name);
            self.flows.take_dns(ends, note, parties);
        }
        Ok(Response::new(DnsNoteResponse {}))
    }
}

/// Tells of rules as they change, until the proxy is gone; and the kernel, where the proxy is.
async fn follow(engine: Engine, port: u16, tell: mpsc::Sender<Result<DnsRules, Status>>) {
    let mut changes = engine.changes();
    let mut last: Option<Arc<DnsRules>> = None;
    let mut is_led = false;
    loop {
        changes.borrow_and_update();
        // While a pod's policy is not here, the proxy goes on with what it has.
        if let Some(rules) = engine.dns_rules().map(Arc::new)
            && last.as_ref() != Some(&rules)
        {
            if tell.send(Ok((*rules).clone())).await.is_err() {
                return;
            }
            last = Some(rules);
        }
        // What it is to judge by is on its way to it.
        if !is_led {
            let listens = Listens { v4: port, v6: port, tcp: true, udp: true };
            let leading = engine.clone();
            let led = tokio::task::spawn_blocking(move || leading.set_proxy(DNS_NAME, Some(listens)));
            match led.await {
                Ok(Ok(_)) => is_led = true,
                Ok(Err(error)) => {
                    tracing::error!(%error, "queries are not led to the DNS proxy");
                    let _ = tell.send(Err(Status::internal(error.to_string()))).await;
                    return;
                }
                Err(_) => return,
            }
            continue;
        }
        tokio::select! {
            () = tell.closed() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
        tokio::time::sleep(SETTLE).await;
    }
}
