//! What changed at a revision.

use std::sync::Arc;

use mesh_model::resource::{NamespacedName, Object, ObjectKey};

use crate::StoredMeta;

/// One change. A command yields any number of them, all of one revision.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The state's revision once this is in effect.
    pub revision: u64,
    /// What changed.
    pub change: Change,
}

/// What changed. Records are named, not copied: whoever cares reads the state.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// An object is new or was replaced.
    Put {
        /// As stored.
        object: Arc<Object>,
        /// Its revision, uid and age.
        meta: StoredMeta,
        /// It was not there before.
        created: bool,
    },
    /// An object is gone.
    Deleted {
        /// As it was.
        object: Arc<Object>,
        /// As it was.
        meta: StoredMeta,
    },
    /// The cluster was initialised.
    Cluster,
    /// A node was registered, changed or removed.
    Node(String),
    /// A workload was bound, unbound, or became ready or unready.
    Binding(NamespacedName),
    /// A service's virtual IP or proxy ports changed.
    Allocation(NamespacedName),
    /// A peer was added, changed or removed.
    Peer(String),
    /// A service that a peer exports is new, changed or gone.
    Import {
        /// The peer.
        cluster: String,
        /// Its service.
        service: NamespacedName,
    },
    /// A token was made, used or forgotten.
    Token(String),
    /// A certificate of an administrator was granted, withdrawn or forgotten, by its number.
    Administrator(u64),
    /// A replica was added, changed or removed.
    Replica(u64),
}

impl Change {
    /// The object that this is about, if it is about one.
    pub fn object_key(&self) -> Option<ObjectKey> {
        match self {
            Change::Put { object, .. } | Change::Deleted { object, .. } => Some(object.key()),
            _ => None,
        }
    }
}
