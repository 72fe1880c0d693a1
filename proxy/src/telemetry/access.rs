//! One line per request, and one per connection that is denied.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use crate::policy::Connection;

/// Why an answer is not an endpoint's, in Envoy's response flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flag {
    /// It is an endpoint's, or wanted so.
    #[default]
    None,
    /// `NR`: no route.
    NoRoute,
    /// `NC`: the cluster does not exist.
    NoCluster,
    /// `UH`: no healthy upstream.
    NoHealthyUpstream,
    /// `UF`: no connection to the upstream.
    ConnectFailure,
    /// `UR`: the upstream reset the stream.
    Reset,
    /// `UO`: a circuit breaker.
    Overflow,
    /// `DO`: the control plane wants a part of the requests turned away.
    DropOverload,
    /// `OM`: this proxy has too much to do.
    Overloaded,
    /// `UT`: the upstream was too slow.
    Timeout,
    /// `DPE`: the client broke the protocol.
    BadRequest,
    /// `RL`: a limit of requests.
    RateLimited,
    /// `RLSE`: the service that counts requests cannot be asked.
    RateLimitService,
    /// `UAEX`: a service that decides denies it.
    Unauthorized,
    /// `DI`: a delay was wanted.
    DelayInjected,
    /// `FI`: a failure was wanted.
    FaultInjected,
}

impl Flag {
    /// Envoy's abbreviation, `-` for none.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::NoRoute => "NR",
            Self::NoCluster => "NC",
            Self::NoHealthyUpstream => "UH",
            Self::ConnectFailure => "UF",
            Self::Reset => "UR",
            Self::Overflow => "UO",
            Self::DropOverload => "DO",
            Self::Overloaded => "OM",
            Self::Timeout => "UT",
            Self::BadRequest => "DPE",
            Self::RateLimited => "RL",
            Self::RateLimitService => "RLSE",
            Self::Unauthorized => "UAEX",
            Self::DelayInjected => "DI",
            Self::FaultInjected => "FI",
        }
    }
}

/// What the line says. It is written when the answer's body is through, or given up.
#[derive(Debug)]
pub struct AccessRecord {
    /// When the request's head was there.
    pub start: Instant,
    /// Name of the listener.
    pub listener: Arc<str>,
    /// The client.
    pub client: SocketAddr,
    /// `GET` and so on.
    pub method: String,
    /// As routed.
    pub authority: String,
    /// As it came.
    pub path: String,
    /// HTTP status.
    pub status: u16,
    /// See [`Flag`].
    pub flag: Flag,
    /// The policy that denied it.
    pub denied_by: Option<Arc<str>>,
    /// Where it went.
    pub cluster: Option<Arc<str>>,
    /// Which endpoint answered.
    pub upstream: Option<SocketAddr>,
    /// Attempts that were made.
    pub attempts: u32,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// Whether it goes out at level info (asked for) or debug.
    pub wanted: bool,
}

impl AccessRecord {
    /// Whether a line would be written at all.
    pub fn enabled(wanted: bool) -> bool {
        wanted || tracing::enabled!(target: "access", tracing::Level::DEBUG)
    }
}

impl Drop for AccessRecord {
    fn drop(&mut self) {
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "access",
                    listener = %self.listener,
                    client = %self.client,
                    method = %self.method,
                    authority = %self.authority,
                    path = %self.path,
                    status = self.status,
                    flag = self.flag.as_str(),
                    denied_by = self.denied_by.as_deref().unwrap_or("-"),
                    cluster = self.cluster.as_deref().unwrap_or("-"),
                    upstream = %self.upstream.map_or_else(|| "-".to_owned(), |u| u.to_string()),
                    attempts = self.attempts,
                    bytes = self.bytes,
                    ms = self.start.elapsed().as_secs_f64() * 1e3,
                )
            };
        }
        if self.wanted { line!(info) } else { line!(debug) }
    }
}

/// A connection that a rule denies.
#[derive(Debug, Clone, Copy)]
pub struct AccessDenial<'a> {
    /// Name of the listener.
    pub listener: &'a str,
    /// Whose it is.
    pub connection: &'a Connection,
    /// Which policy denies it, or which filter if none permits it.
    pub policy: &'a str,
    /// Whether it goes out at level info (asked for) or debug.
    pub wanted: bool,
}

impl AccessDenial<'_> {
    /// Tells that a policy with the action LOG matches.
    pub fn audit(listener: &str, connection: &Connection, policy: &str) {
        tracing::info!(
            target: "audit",
            listener,
            client = %connection.remote,
            peer = connection.peer.as_deref().unwrap_or("-"),
            policy,
            "matches an audit policy"
        );
    }

    /// Writes the line.
    pub fn log(&self) {
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "access",
                    listener = self.listener,
                    client = %self.connection.remote,
                    peer = self.connection.peer.as_deref().unwrap_or("-"),
                    denied_by = self.policy,
                    "connection denied"
                )
            };
        }
        if self.wanted { line!(info) } else { line!(debug) }
    }
}
