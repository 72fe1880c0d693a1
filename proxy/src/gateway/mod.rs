//! The first bytes of connections, and connections that only pass: chosen by the server name, and never decrypted.

mod client_hello;
mod copy;
mod http_hello;
mod inspect;
mod proxy_protocol;
mod tunnel;

pub use client_hello::{Hello, Wishes, parse};
pub use copy::copy;
pub use http_hello::{Spoken, spoken};
pub use inspect::{Inspected, inspect};
pub use proxy_protocol::{Header, HeaderVersion, Passed, header, parse_header, read_header};
pub use tunnel::tunnel;
