//! How much of a service port's calls goes to peers.

use mesh_model::{
    limits::MAX_OVERFLOW_PERCENT,
    records::{Overflow, ServiceAllocation},
    resource::NamespacedName,
};

use super::{Done, transaction::Transaction, valid};
use crate::{Refusal, limits::MAX_OVERFLOW_CHANGES};

/// A port that is not there any more is passed over: it may have gone since somebody looked.
pub(super) fn set(
    tx: &mut Transaction<'_>,
    shares: &[(NamespacedName, u16, Overflow)],
) -> Result<Done, Refusal> {
    valid::at_most("overflow.shares", shares.len(), MAX_OVERFLOW_CHANGES)?;
    for (service, port, share) in shares {
        if share.percent > MAX_OVERFLOW_PERCENT {
            let field = format!("overflow.{service}:{port}.percent");
            return Err(Refusal::invalid(field, share.percent, "is more than may go to peers"));
        }
        let Some(held) = tx.state().allocations.get(service) else { continue };
        if !held.proxy_ports.contains_key(port) {
            continue;
        }
        let mut allocation = ServiceAllocation::clone(held);
        match share.percent {
            0 => drop(allocation.overflow.remove(port)),
            _ => drop(allocation.overflow.insert(*port, *share)),
        }
        if allocation != **held {
            tx.set_allocation(service, Some(allocation));
        }
    }
    Ok(Done::default())
}
