//! SPIFFE identities over TLS 1.3: verifiers, configurations, certificates.
