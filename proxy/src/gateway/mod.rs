//! Connections that only pass: chosen by the server name in their first bytes, and never decrypted.

mod client_hello;
mod copy;
mod inspect;
mod tunnel;

pub use client_hello::{Hello, parse};
pub use copy::copy;
pub use inspect::{Inspected, inspect};
pub use tunnel::tunnel;
