//! A gRPC service that is asked, as plain data.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};
use serde::Serialize;

/// `GrpcService`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GrpcTarget {
    /// Where it is.
    pub cluster: Arc<str>,
    /// `:authority` of requests.
    pub authority: Arc<str>,
    /// For the answer.
    pub timeout: Duration,
    /// Goes with each request.
    #[serde(skip)]
    pub metadata: Vec<(HeaderName, HeaderValue)>,
    /// Largest answer, in bytes.
    pub max_answer: usize,
}
