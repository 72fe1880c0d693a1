//! The protocol's rules, one test each, as scripts: what the client says, what the model becomes, what is answered.

mod ack;
mod convergence;
mod delta;
mod limits;
mod on_demand;
mod order;
mod revisions;
mod rules;
mod script;
mod sotw;
mod subscriptions;
mod time;
mod unknown;
mod wire;
