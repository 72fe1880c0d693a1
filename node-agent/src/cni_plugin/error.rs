//! Errors as the CNI specification wants them printed.

use serde_json::{Value, json};
use thiserror::Error;

/// Error codes of the CNI specification, section 5 "Error".
#[allow(missing_docs)]
pub mod code {
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    pub const UNSUPPORTED_FIELD: u32 = 2;
    pub const UNKNOWN_CONTAINER: u32 = 3;
    pub const BAD_ENVIRONMENT: u32 = 4;
    pub const IO: u32 = 5;
    pub const DECODE: u32 = 6;
    pub const BAD_CONFIG: u32 = 7;
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: no container can be added.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: the same, and containers that exist may lack connectivity.
    pub const LIMITED: u32 = 51;
    /// From 100 on they are the plugin's own: the node refused.
    pub const REFUSED: u32 = 100;
    /// CHECK found a pod that is not as ADD left it.
    pub const CHECK_FAILED: u32 = 101;
}

/// What went wrong, for the runtime and for the person who reads its log.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{msg}{}", if details.is_empty() { String::new() } else { format!(": {details}") })]
pub struct CniError {
    /// One of [`code`].
    pub code: u32,
    /// One short sentence.
    pub msg: String,
    /// What to do, or what the cause said.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// Adds what to do, or the cause.
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// As it is printed.
    pub fn json(&self, cni_version: &str) -> Value {
        json!({ "cniVersion": cni_version, "code": self.code, "msg": self.msg, "details": self.details })
    }

    /// From the agent's answer. The agent sends the code in the metadata, see `crate::cni::service`.
    pub fn from_status(status: &tonic::Status) -> Self {
        let sent =
            status.metadata().get("isthmus-cni-code").and_then(|value| value.to_str().ok()?.parse().ok());
        let code = sent.unwrap_or(match status.code() {
            // Of an agent that ended in the middle of the call there is no answer: the next one does it again.
            tonic::Code::Unavailable
            | tonic::Code::DeadlineExceeded
            | tonic::Code::ResourceExhausted
            | tonic::Code::Cancelled
            | tonic::Code::Aborted
            | tonic::Code::Unknown => code::TRY_AGAIN,
            tonic::Code::NotFound => code::UNKNOWN_CONTAINER,
            tonic::Code::InvalidArgument => code::BAD_ENVIRONMENT,
            _ => code::REFUSED,
        });
        Self::new(code, status.message())
    }
}
