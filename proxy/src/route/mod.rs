//! Which route a request takes, and what happens to it on the way. Pure: no I/O, and randomness is passed in.

pub mod hash;
mod headers;
mod hosts;
mod matching;
mod rewrite;
mod table;

pub use hash::{HashOf, HashPolicy, Rewrite, UpstreamChoice};
pub use headers::{HeaderChange, HeaderOps, OnExisting, Value};
pub use hosts::{HostError, HostIndex};
pub use matching::{
    CookieTest, HeaderMatch, HeaderTest, PathMatch, QueryMatch, RequestView, RouteMatch, cookie, is_grpc,
};
pub(crate) use rewrite::split_port;
pub use rewrite::{redirect_location, rewrite_path};
pub use table::{
    Action, Destination, Direct, Forward, GrpcTimeout, HostRewrite, Mirror, PathRedirect, Picked, Redirect,
    RequireTls, Route, RouteTable, VirtualHost,
};
