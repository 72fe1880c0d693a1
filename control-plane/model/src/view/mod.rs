//! What each client is to have.
