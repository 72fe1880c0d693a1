//! Keys that sign JWT-SVIDs: each replica has its own, in memory only. The state tells everybody their public halves.
//!
//! A process makes its first key when somebody wants a token, or when it starts in a cluster where somebody has, and another
//! one every [`LIFE`]. A new one is told first and signs after [`SETTLE`], so that whoever verifies has heard of it; the one
//! before is told until none of its tokens can be valid. (Where nobody wants tokens nothing is written, so that an upgrade of
//! one replica after the other leaves nothing in the log that those before can't read.)

use std::sync::{Mutex, MutexGuard, PoisonError};

use mesh_model::identity::SpiffeId;
use mesh_store::{Authority, JwtKeyRecord};
use mesh_tls::jwt::{JwtError, JwtKey};

/// Seconds after which another key is made.
const LIFE: u64 = 12 * 3600;
/// Seconds for which a key is told before it signs, unless there is no other.
const SETTLE: u64 = 60;

/// Why no token is signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The first key is not in the state yet.
    #[error("this replica has no key for tokens yet; try again")]
    NoKey,
    /// What is asked for is refused.
    #[error(transparent)]
    Token(#[from] JwtError),
}

/// The keys of one process, oldest first.
#[derive(Debug, Default)]
pub struct JwtKeys(Mutex<Vec<Held>>);

#[derive(Debug)]
struct Held {
    key: JwtKey,
    /// The state has it, or had it.
    told: bool,
}

impl JwtKeys {
    /// The point to tell the state of, if it is time for another key. `wanted`: somebody waits for a token.
    ///
    /// # Errors
    /// No randomness.
    pub fn due(
        &self,
        authority: &Authority,
        replica: u64,
        now_unix: u64,
        wanted: bool,
    ) -> Result<Option<Vec<u8>>, mesh_tls::Error> {
        let mut held = self.lock();
        for one in held.iter_mut() {
            one.told |= record(authority, replica, &one.key).is_some();
        }
        // Those that the state has forgotten are of no use.
        held.retain(|one| !one.told || record(authority, replica, &one.key).is_some());
        if let Some(untold) = held.iter().find(|one| !one.told) {
            return Ok(Some(untold.key.public().point().to_vec()));
        }
        if held.is_empty() && authority.jwt_keys.is_empty() && !wanted {
            return Ok(None);
        }
        let newest = held.iter().filter_map(|one| record(authority, replica, &one.key));
        if newest.map(|key| key.since_unix).max().is_some_and(|since| now_unix < since.saturating_add(LIFE)) {
            return Ok(None);
        }
        let key = JwtKey::generate()?;
        let point = key.public().point().to_vec();
        held.push(Held { key, told: false });
        Ok(Some(point))
    }

    /// A token, and when it ends.
    ///
    /// # Errors
    /// There is no key yet, or what is asked for is refused.
    pub fn sign(
        &self,
        authority: &Authority,
        replica: u64,
        id: &SpiffeId,
        audiences: &[String],
        ttl_seconds: u64,
        now_unix: u64,
    ) -> Result<(String, u64), SignError> {
        let held = self.lock();
        let mut known: Vec<(u64, &JwtKey)> = held
            .iter()
            .filter_map(|one| Some((record(authority, replica, &one.key)?.since_unix, &one.key)))
            .collect();
        known.sort_by_key(|(since, _)| *since);
        let settled = known.iter().rev().find(|(since, _)| since.saturating_add(SETTLE) <= now_unix);
        let (_, key) = settled.or(known.first()).ok_or(SignError::NoKey)?;
        Ok(key.sign(id, audiences, ttl_seconds, now_unix)?)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn record<'a>(authority: &'a Authority, replica: u64, key: &JwtKey) -> Option<&'a JwtKeyRecord> {
    authority.jwt_keys.iter().find(|known| known.replica == replica && known.point == key.public().point())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_tls::jwt::{JwtPublicKey, verify};

    const NOW: u64 = 1_790_000_000;

    fn tell(authority: &mut Authority, point: Vec<u8>, since_unix: u64) {
        let until_unix = since_unix + 24 * 3600;
        authority.jwt_keys.push(JwtKeyRecord { replica: 1, point, since_unix, until_unix });
    }

    fn signed_by(keys: &JwtKeys, authority: &Authority, now: u64) -> Vec<u8> {
        let id = SpiffeId::parse("spiffe://west.example/ns/shop/sa/pay").unwrap();
        let (token, end) = keys.sign(authority, 1, &id, &["bank".to_owned()], 0, now).unwrap();
        assert_eq!(end, now + 300);
        let by = |record: &&JwtKeyRecord| {
            let public = JwtPublicKey::from_point(&record.point).unwrap();
            verify(&token, "bank", now, |_| Some(vec![public])).is_ok()
        };
        authority.jwt_keys.iter().find(by).unwrap().point.clone()
    }

    #[test]
    fn a_key_is_told_before_it_signs_and_verified_with_after_it_has() {
        let (keys, mut authority) = (JwtKeys::default(), Authority::default());
        let id = SpiffeId::parse("spiffe://west.example/ns/shop/sa/pay").unwrap();
        assert_eq!(keys.due(&authority, 1, NOW, false).unwrap(), None, "nobody wants a token");
        let first = keys.due(&authority, 1, NOW, true).unwrap().unwrap();
        assert_eq!(
            keys.due(&authority, 1, NOW, false).unwrap().as_ref(),
            Some(&first),
            "until it is written"
        );
        let unready = keys.sign(&authority, 1, &id, &["bank".to_owned()], 0, NOW);
        assert!(matches!(unready, Err(SignError::NoKey)));
        tell(&mut authority, first.clone(), NOW);
        assert_eq!(keys.due(&authority, 1, NOW, true).unwrap(), None);
        assert_eq!(signed_by(&keys, &authority, NOW), first, "there is no other");

        let later = NOW + LIFE;
        assert_eq!(keys.due(&authority, 1, later - 1, true).unwrap(), None);
        let second = keys.due(&authority, 1, later, false).unwrap().unwrap();
        assert_ne!(second, first);
        tell(&mut authority, second.clone(), later);
        assert_eq!(signed_by(&keys, &authority, later + SETTLE - 1), first);
        assert_eq!(signed_by(&keys, &authority, later + SETTLE), second);
        // The state forgets the first.
        authority.jwt_keys.remove(0);
        assert_eq!(keys.due(&authority, 1, later, false).unwrap(), None);
        assert_eq!(signed_by(&keys, &authority, later), second);
        assert_eq!(keys.lock().len(), 1);
        // A process that starts has none of those, and does not take another's for its own.
        assert!(JwtKeys::default().due(&authority, 1, later, false).unwrap().is_some());
        assert!(keys.due(&authority, 2, later, false).unwrap().is_some());
    }
}
