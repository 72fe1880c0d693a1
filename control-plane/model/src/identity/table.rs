//! The dictionary of identities: one number per (trust domain, namespace, service account, labels).

use std::{collections::BTreeSet, sync::Arc};

use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::TrustDomain;
use crate::resource::Labels;

/// A 24-bit number that stands for an [`IdentityKey`] in the kernel of this cluster's nodes.
pub type IdentityNumber = u32;

/// Numbers below this are reserved: 0 is "unknown", 1 host, 2 world, 3 remote node, 4 health.
pub const FIRST_IDENTITY: IdentityNumber = 256;
/// Numbers are 24 bits wide.
pub const MAX_IDENTITY: IdentityNumber = (1 << 24) - 1;

/// What makes two workloads the same to policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct IdentityKey {
    pub trust_domain: TrustDomain,
    pub namespace: String,
    pub service_account: String,
    /// The policy-relevant labels of the workload.
    pub labels: Labels,
}

/// Allocated by `apply`, so that no two replicas differ. A clone shares what neither of the two changes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct IdentityTable {
    numbers: OrdMap<IdentityNumber, Arc<IdentityKey>>,
    /// The next number to try; wraps at [`MAX_IDENTITY`], so that a released number is reused as late as possible:
    /// until then no packet in flight and no map entry can be taken for another workload's.
    next: IdentityNumber,
    by_key: OrdMap<Arc<IdentityKey>, IdentityNumber>,
}

/// What a snapshot holds: a list, because JSON has no maps with number keys.
#[derive(Serialize, Deserialize)]
struct Stored {
    numbers: Vec<(IdentityNumber, Arc<IdentityKey>)>,
    next: IdentityNumber,
}

/// A list that is no table. What stands for two identities would be judged as either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
enum NoTable {
    #[error("identities.numbers: {0} stands for two identities")]
    Number(IdentityNumber),
    #[error("identities.numbers: {0} stands for an identity that has another number, too")]
    Key(IdentityNumber),
    #[error("identities.numbers: {0} is not {FIRST_IDENTITY} to {MAX_IDENTITY}")]
    OutOfRange(IdentityNumber),
}

impl TryFrom<Stored> for IdentityTable {
    type Error = NoTable;

    fn try_from(stored: Stored) -> Result<Self, NoTable> {
        let mut table = Self { next: stored.next, ..Self::default() };
        for (number, key) in stored.numbers {
            if number != in_range(number) {
                return Err(NoTable::OutOfRange(number));
            }
            if table.by_key.insert(key.clone(), number).is_some() {
                return Err(NoTable::Key(number));
            }
            if table.numbers.insert(number, key).is_some() {
                return Err(NoTable::Number(number));
            }
        }
        Ok(table)
    }
}

impl From<IdentityTable> for Stored {
    fn from(table: IdentityTable) -> Self {
        Self { numbers: table.numbers.into_iter().collect(), next: table.next }
    }
}

/// All numbers are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("all {} identity numbers are in use; delete workloads or use fewer distinct label sets", MAX_IDENTITY - FIRST_IDENTITY + 1)]
pub struct Full;

impl IdentityTable {
    /// The number of this key; a new one if it has none yet. A pure function of the table and the key.
    ///
    /// # Errors
    /// [`Full`], and the table is unchanged.
    pub fn number_for(&mut self, key: &IdentityKey) -> Result<IdentityNumber, Full> {
        if let Some(number) = self.lookup(key) {
            return Ok(number);
        }
        if self.numbers.len() > (MAX_IDENTITY - FIRST_IDENTITY) as usize {
            return Err(Full);
        }
        let mut number = in_range(self.next);
        while self.numbers.contains_key(&number) {
            number = in_range(number + 1);
        }
        self.next = in_range(number + 1);
        let key = Arc::new(key.clone());
        self.numbers.insert(number, key.clone());
        self.by_key.insert(key, number);
        Ok(number)
    }

    /// The number of this key, if it has one.
    pub fn lookup(&self, key: &IdentityKey) -> Option<IdentityNumber> {
        self.by_key.get(key).copied()
    }

    /// What a number stands for.
    pub fn get(&self, number: IdentityNumber) -> Option<&IdentityKey> {
        self.numbers.get(&number).map(Arc::as_ref)
    }

    /// Every identity, by number.
    pub fn iter(&self) -> impl Iterator<Item = (IdentityNumber, &IdentityKey)> {
        self.numbers.iter().map(|(number, key)| (*number, key.as_ref()))
    }

    /// Keys whose number is not the same in both tables, in no particular order. Costs what the two do not share.
    pub fn renumbered(&self, other: &Self) -> Vec<Arc<IdentityKey>> {
        use imbl::ordmap::DiffItem;
        let differing = self.numbers.diff(&other.numbers).flat_map(|item| match item {
            DiffItem::Add(_, key) | DiffItem::Remove(_, key) => [Some(key), None],
            DiffItem::Update { old, new } => [Some(old.1), Some(new.1)],
        });
        differing.flatten().cloned().collect()
    }

    #[allow(missing_docs)]
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    #[allow(missing_docs)]
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Releases one identity and returns its number.
    pub fn release(&mut self, key: &IdentityKey) -> Option<IdentityNumber> {
        let number = self.by_key.remove(key)?;
        self.numbers.remove(&number);
        Some(number)
    }

    /// Releases every identity that is not in use, and returns their numbers in ascending order.
    pub fn retain(&mut self, in_use: &BTreeSet<IdentityKey>) -> Vec<IdentityNumber> {
        let gone: Vec<IdentityNumber> = self
            .numbers
            .iter()
            .filter(|(_, key)| !in_use.contains(key.as_ref()))
            .map(|(number, _)| *number)
            .collect();
        for number in &gone {
            if let Some(key) = self.numbers.remove(number) {
                self.by_key.remove(&key);
            }
        }
        gone
    }
}

fn in_range(number: IdentityNumber) -> IdentityNumber {
    if (FIRST_IDENTITY..=MAX_IDENTITY).contains(&number) { number } else { FIRST_IDENTITY }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> IdentityKey {
        IdentityKey {
            trust_domain: TrustDomain::parse("west.example").unwrap(),
            namespace: "shop".to_owned(),
            service_account: name.to_owned(),
            labels: Labels::new(),
        }
    }

    #[test]
    fn a_list_in_which_a_number_or_an_identity_stands_twice_is_no_table() {
        let read = |numbers: &[(IdentityNumber, &str)]| {
            let numbers = numbers.iter().map(|(number, name)| (*number, Arc::new(key(name)))).collect();
            IdentityTable::try_from(Stored { numbers, next: 300 })
        };
        assert!(read(&[(256, "a"), (257, "b")]).is_ok());
        assert_eq!(read(&[(256, "a"), (256, "b")]), Err(NoTable::Number(256)));
        assert_eq!(read(&[(256, "a"), (257, "a")]), Err(NoTable::Key(257)));
        assert_eq!(read(&[(2, "a")]), Err(NoTable::OutOfRange(2)), "the whole world's");
    }

    #[test]
    fn equal_keys_share_a_number_and_others_do_not() {
        let mut table = IdentityTable::default();
        let a = table.number_for(&key("a")).unwrap();
        let b = table.number_for(&key("b")).unwrap();
        assert_eq!((a, b), (FIRST_IDENTITY, FIRST_IDENTITY + 1));
        assert_eq!(table.number_for(&key("a")), Ok(a));
        assert_eq!(table.get(b), Some(&key("b")));
    }

    #[test]
    fn a_released_number_is_not_reused_at_once() {
        let mut table = IdentityTable::default();
        let a = table.number_for(&key("a")).unwrap();
        table.number_for(&key("b")).unwrap();
        assert_eq!(table.retain(&BTreeSet::from([key("b")])), vec![a]);
        assert_eq!(table.lookup(&key("a")), None);
        assert_eq!(table.number_for(&key("c")), Ok(FIRST_IDENTITY + 2));
    }

    #[test]
    fn a_table_survives_a_snapshot_and_goes_on_as_before() {
        let mut table = IdentityTable::default();
        table.number_for(&key("a")).unwrap();
        let text = serde_json::to_string(&table).unwrap();
        let mut restored: IdentityTable = serde_json::from_str(&text).unwrap();
        assert_eq!(restored, table);
        assert_eq!(restored.number_for(&key("b")), table.number_for(&key("b")));
    }

    #[test]
    fn numbers_wrap_around_and_skip_those_in_use() {
        let mut table = IdentityTable { next: MAX_IDENTITY, ..IdentityTable::default() };
        assert_eq!(table.number_for(&key("a")), Ok(MAX_IDENTITY));
        assert_eq!(table.number_for(&key("b")), Ok(FIRST_IDENTITY));
    }
}
