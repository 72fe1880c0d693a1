//! The CNI plugin: environment and standard input in, one JSON object on standard output and an exit code
//! out. It holds no state and touches no network: the agent does, asked over its socket.
//!
//! Source: <https://github.com/containernetworking/cni/blob/v1.3.0/SPEC.md> (specification 1.1.0).

mod call;
mod error;
mod output;
mod previous;
mod request;

pub use call::run;
pub use error::{CniError, code};
pub use output::{SUPPORTED_VERSIONS, add_result, chained_result, version_result};
pub use previous::{PreviousError, PreviousResult};
pub use request::{Attachment, Environment, Invocation, NetworkConfig, PortMapping, Verb, parse};
