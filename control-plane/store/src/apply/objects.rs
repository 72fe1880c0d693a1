//! What users write.

use std::collections::BTreeSet;

use mesh_model::resource::{Object, ObjectKey};
use sha2::{Digest, Sha256};

use super::{Done, identities, services, transaction::Transaction, valid};
use crate::{
    Granted, ObjectChange, ObjectOutcome, Refusal, StoredMeta,
    limits::{MAX_OBJECT_BYTES, MAX_OBJECTS_PER_COMMAND, max_objects},
};

pub(super) fn apply(tx: &mut Transaction<'_>, objects: &[Object]) -> Result<Done, Refusal> {
    valid::at_most("objects in one request", objects.len(), MAX_OBJECTS_PER_COMMAND)?;
    let mut seen = BTreeSet::new();
    let mut outcomes = Vec::with_capacity(objects.len());
    for object in objects {
        let key = object.key();
        if !seen.insert(key.clone()) {
            return Err(Refusal::Twice { key });
        }
        let change = put(tx, &key, object)?;
        outcomes.push(ObjectOutcome { key, change });
    }
    allocate(tx, objects, &outcomes)?;
    Ok(Done { outcomes, granted: Granted::Nothing })
}

pub(super) fn delete(tx: &mut Transaction<'_>, keys: &[ObjectKey]) -> Result<Done, Refusal> {
    valid::at_most("objects in one request", keys.len(), MAX_OBJECTS_PER_COMMAND)?;
    let mut outcomes = Vec::with_capacity(keys.len());
    for key in keys {
        let change = if tx.delete_object(key) { ObjectChange::Deleted } else { ObjectChange::NotFound };
        // Also when it was not found: costs a look-up, and an allocation can never outlive its service.
        if key.kind == mesh_model::resource::Kind::Service {
            services::reallocate(tx, &key.name)?;
        }
        outcomes.push(ObjectOutcome { key: key.clone(), change });
    }
    Ok(Done { outcomes, granted: Granted::Nothing })
}

/// Stores one object, if it is not there already as it is.
fn put(tx: &mut Transaction<'_>, key: &ObjectKey, object: &Object) -> Result<ObjectChange, Refusal> {
    let stored = tx.state().object(key);
    let found = stored.map(|(_, meta)| meta.revision);
    if let Some(expected) = object.meta().resource_version
        && found != Some(expected)
    {
        return Err(Refusal::Conflict { key: key.clone(), expected, found });
    }
    let object = without_precondition(object);
    let meta = match stored {
        Some((same, _)) if *same == object => return Ok(ObjectChange::Unchanged),
        Some((old, meta)) => {
            if let (Object::Service(new), Object::Service(old)) = (&object, old) {
                services::check_fixed(tx, new, old)?;
                services::check_outside(tx, new)?;
            }
            StoredMeta { revision: tx.revision(), ..meta.clone() }
        }
        None => {
            if let Object::Service(new) = &object {
                services::check_outside(tx, new)?;
            }
            let limit = max_objects(key.kind);
            valid::at_most(
                &format!("objects of kind {}", key.kind),
                tx.state().index.count(key.kind) + 1,
                limit,
            )?;
            StoredMeta {
                revision: tx.revision(),
                created_revision: tx.revision(),
                uid: uid(tx, key),
                created_unix: tx.now_unix(),
            }
        }
    };
    check_size(key, &object)?;
    let created = found.is_none();
    tx.put_object(key, object, meta);
    Ok(if created { ObjectChange::Created } else { ObjectChange::Configured })
}

/// Gives the changed objects what they need besides their own record.
fn allocate(tx: &mut Transaction<'_>, objects: &[Object], outcomes: &[ObjectOutcome]) -> Result<(), Refusal> {
    let changed = || {
        objects
            .iter()
            .zip(outcomes)
            .filter(|(_, o)| o.change != ObjectChange::Unchanged)
            .map(|(object, _)| object)
    };
    // Requested addresses and ports first, so that no other service of the same request is given one of them; nor is one
    // that has asked for something else.
    let services = || {
        changed().filter_map(|object| match object {
            Object::Service(service) => Some(service),
            _ => None,
        })
    };
    tx.reserve_node_ports(services().flat_map(services::requested_node_ports));
    for wants_one in [true, false] {
        for service in services() {
            if services::requests(service) == wants_one {
                services::reallocate(tx, &service.meta.name)?;
            }
        }
    }
    for object in changed() {
        if let Object::Workload(workload) = object {
            identities::want(tx, workload)?;
        }
    }
    Ok(())
}

/// The size that the parser limits: that of the form in which users write objects. It takes a while to make, and
/// is little larger than that in which they are kept.
fn check_size(key: &ObjectKey, object: &Object) -> Result<(), Refusal> {
    if json_bytes(object) < MAX_OBJECT_BYTES / 4 {
        return Ok(());
    }
    valid::at_most(&format!("bytes of {key}"), json_bytes(&object.to_json()), MAX_OBJECT_BYTES)
}

/// Bytes of a value as JSON.
pub(crate) fn json_bytes(value: &impl serde::Serialize) -> usize {
    let mut counter = Counter(0);
    // Writing to a counter does not fail, and none of the types lacks a JSON form.
    let _ = serde_json::to_writer(&mut counter, value);
    counter.0
}

struct Counter(usize);

impl std::io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// In the form of a random UUID (RFC 9562, version 4); random because the envelope is.
fn uid(tx: &Transaction<'_>, key: &ObjectKey) -> String {
    let digest = Sha256::new().chain_update(tx.random.0).chain_update(key.to_string()).finalize();
    let mut hex: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    hex.replace_range(12..13, "4");
    hex.replace_range(16..17, "a");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// The precondition is the writer's, not the object's.
fn without_precondition(object: &Object) -> Object {
    let mut object = object.clone();
    object.meta_mut().resource_version = None;
    object
}
