//! The data-plane proxy: mTLS and L7 routing from Envoy's own types.
