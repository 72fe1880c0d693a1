//! The subscriber's half of xDS, shared by node agent, proxy and federation.
