//! What clients saw of registers in a replicated store, and whether a single store that never goes back could have
//! shown it. Pure: times are data.
//!
//! A register is an object that is overwritten; its resource version is the store's own claim of the order. The claim
//! is checked against what real time forces: whatever ended before something else began comes before it.

#![allow(dead_code)]

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Since the history began, by one clock for all clients.
pub type Time = Duration;

/// One write of one register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub register: String,
    /// No other write of this register has it.
    pub value: u64,
    pub called: Time,
    /// When it was acknowledged, and at which revision. None: it may have taken effect, then or later, or not.
    pub acknowledged: Option<(Time, u64)>,
}

/// One read of all registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    pub client: usize,
    pub called: Time,
    pub returned: Time,
    /// Of the state that it was answered from.
    pub revision: u64,
    /// Those that are there.
    pub registers: BTreeMap<String, Seen>,
}

/// One register, as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub value: u64,
    /// At which it was written last.
    pub revision: u64,
}

/// Why no single store could have shown this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// A write that was acknowledged before the read began is not in it.
    Missed { read: Read, register: String, acknowledged: u64 },
    /// A read that had ended before this one began has seen more.
    WentBack { read: Read, register: String, seen_before: u64 },
    /// The state of a read is older than what was acknowledged or read before it began.
    OldState { read: Read, known_before: u64 },
    /// What is shown of one register is not of the state whose revision the read names.
    Torn { read: Read, register: String, acknowledged: u64 },
    /// Nobody had begun to write this value when it was read.
    Unwritten { read: Read, register: String },
    /// Two values of one register at one revision.
    TwoValues { read: Read, register: String, other: u64 },
    /// A write was given a revision that was known before it began.
    OutOfOrder { write: Write, known_before: u64 },
}

/// What clients did and saw.
#[derive(Debug, Clone, Default)]
pub struct History {
    pub writes: Vec<Write>,
    pub reads: Vec<Read>,
}

/// What must not be seen to be undone.
#[derive(Clone, Default)]
struct Known<'a> {
    state: u64,
    acknowledged: BTreeMap<&'a str, u64>,
    seen: BTreeMap<&'a str, u64>,
}

/// In time's order. At the same instant beginnings come first: such two overlap.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    WriteBegins(usize),
    ReadBegins(usize),
    WriteEnds(usize),
    ReadEnds(usize),
}

impl History {
    /// Whether all of it can be.
    ///
    /// # Errors
    /// The first thing that can't.
    pub fn check(&self) -> Result<(), Box<Violation>> {
        let values = self.values();
        let mut revisions: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for write in &self.writes {
            if let Some((_, revision)) = write.acknowledged {
                revisions.entry(&write.register).or_default().push(revision);
            }
        }
        revisions.values_mut().for_each(|all| all.sort_unstable());
        let mut at_read: BTreeMap<usize, Known<'_>> = BTreeMap::new();
        let mut at_write: BTreeMap<usize, u64> = BTreeMap::new();
        let mut shown: BTreeMap<(&str, u64), u64> = BTreeMap::new();
        let mut known = Known::default();
        for (_, moment) in self.moments() {
            match moment {
                Moment::WriteBegins(n) => drop(at_write.insert(n, known.state)),
                Moment::ReadBegins(n) => drop(at_read.insert(n, known.clone())),
                Moment::WriteEnds(n) => {
                    let write = &self.writes[n];
                    let Some((_, revision)) = write.acknowledged else { continue };
                    let known_before = at_write[&n];
                    if revision <= known_before {
                        return Err(Box::new(Violation::OutOfOrder { write: write.clone(), known_before }));
                    }
                    raise(&mut known.acknowledged, &write.register, revision);
                    known.state = known.state.max(revision);
                }
                Moment::ReadEnds(n) => {
                    let read = &self.reads[n];
                    let before = at_read.remove(&n).unwrap_or_default();
                    judge(read, &before, &revisions, &values).map_err(Box::new)?;
                    for (register, seen) in &read.registers {
                        let first = *shown.entry((register, seen.revision)).or_insert(seen.value);
                        if first != seen.value {
                            let register = register.clone();
                            let violation =
                                Violation::TwoValues { read: read.clone(), register, other: first };
                            return Err(Box::new(violation));
                        }
                        raise(&mut known.seen, register, seen.revision);
                    }
                    known.state = known.state.max(read.revision);
                }
            }
        }
        Ok(())
    }

    fn moments(&self) -> Vec<(Time, Moment)> {
        let mut moments = Vec::new();
        for (n, write) in self.writes.iter().enumerate() {
            moments.push((write.called, Moment::WriteBegins(n)));
            moments.extend(write.acknowledged.map(|(at, _)| (at, Moment::WriteEnds(n))));
        }
        for (n, read) in self.reads.iter().enumerate() {
            moments.push((read.called, Moment::ReadBegins(n)));
            moments.push((read.returned, Moment::ReadEnds(n)));
        }
        moments.sort_unstable();
        moments
    }

    fn values(&self) -> BTreeMap<(&str, u64), &Write> {
        self.writes.iter().map(|write| ((write.register.as_str(), write.value), write)).collect()
    }
}

fn raise<'a>(of: &mut BTreeMap<&'a str, u64>, register: &'a str, to: u64) {
    let revision = of.entry(register).or_default();
    *revision = to.max(*revision);
}

fn judge(
    read: &Read,
    before: &Known<'_>,
    revisions: &BTreeMap<&str, Vec<u64>>,
    values: &BTreeMap<(&str, u64), &Write>,
) -> Result<(), Violation> {
    let shown = |register: &str| read.registers.get(register).map_or(0, |seen| seen.revision);
    let copy = || read.clone();
    for (register, acknowledged) in &before.acknowledged {
        if shown(register) < *acknowledged {
            let (register, acknowledged) = ((*register).to_owned(), *acknowledged);
            return Err(Violation::Missed { read: copy(), register, acknowledged });
        }
    }
    for (register, seen) in &before.seen {
        if shown(register) < *seen {
            let (register, seen_before) = ((*register).to_owned(), *seen);
            return Err(Violation::WentBack { read: copy(), register, seen_before });
        }
    }
    if read.revision < before.state {
        return Err(Violation::OldState { read: copy(), known_before: before.state });
    }
    for (register, all) in revisions {
        let of_state = all.partition_point(|revision| *revision <= read.revision);
        let newest = of_state.checked_sub(1).map_or(0, |last| all[last]);
        if shown(register) < newest {
            let register = (*register).to_owned();
            return Err(Violation::Torn { read: copy(), register, acknowledged: newest });
        }
    }
    for (register, seen) in &read.registers {
        let register = || register.clone();
        if seen.revision > read.revision {
            return Err(Violation::Torn { read: copy(), register: register(), acknowledged: seen.revision });
        }
        match values.get(&(register().as_str(), seen.value)) {
            Some(write) if write.called <= read.returned => match write.acknowledged {
                Some((_, revision)) if revision != seen.revision => {
                    return Err(Violation::Torn {
                        read: copy(),
                        register: register(),
                        acknowledged: revision,
                    });
                }
                _ => {}
            },
            _ => return Err(Violation::Unwritten { read: copy(), register: register() }),
        }
    }
    Ok(())
}

/// A history in the making, for many clients at once.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    history: Mutex<History>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { began: Instant::now(), history: Mutex::default() }
    }
}

impl Recorder {
    pub fn now(&self) -> Time {
        self.began.elapsed()
    }

    fn change<T>(&self, change: impl FnOnce(&mut History) -> T) -> T {
        change(&mut self.history.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Before it is sent: one whose end nobody sees may take effect all the same. Its number, for its end.
    pub fn begins(&self, register: &str, value: u64) -> usize {
        let write = Write { register: register.to_owned(), value, called: self.now(), acknowledged: None };
        self.change(|history| {
            history.writes.push(write);
            history.writes.len() - 1
        })
    }

    pub fn acknowledged(&self, number: usize, revision: u64) {
        let now = self.now();
        self.change(|history| history.writes[number].acknowledged = Some((now, revision)));
    }

    /// It ends now.
    pub fn read(&self, client: usize, called: Time, revision: u64, registers: BTreeMap<String, Seen>) {
        let read = Read { client, called, returned: self.now(), revision, registers };
        self.change(|history| history.reads.push(read));
    }

    /// Judges all there is, and says how much that was. Each of the clients has read so often at least.
    #[track_caller]
    pub fn holds(&self, clients: impl IntoIterator<Item = usize>, least: usize) {
        let history = self.change(|history| history.clone());
        let of = |client: usize| history.reads.iter().filter(|read| read.client == client).count();
        let counts: Vec<(usize, usize)> = clients.into_iter().map(|client| (client, of(client))).collect();
        println!("{} writes of registers, reads by client: {counts:?}", history.writes.len());
        assert!(counts.iter().all(|(_, count)| *count >= least), "hardly read: {counts:?}");
        if let Err(violation) = history.check() {
            panic!("{violation:#?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: u64, called: u64, acknowledged: Option<(u64, u64)>) -> Write {
        let acknowledged = acknowledged.map(|(at, revision)| (Time::from_millis(at), revision));
        Write { register: "a".to_owned(), value, called: Time::from_millis(called), acknowledged }
    }

    /// Of the one register, if it is there: value and revision.
    fn read(called: u64, returned: u64, revision: u64, seen: Option<(u64, u64)>) -> Read {
        let seen = seen.map(|(value, revision)| ("a".to_owned(), Seen { value, revision }));
        let (called, returned) = (Time::from_millis(called), Time::from_millis(returned));
        Read { client: 0, called, returned, revision, registers: seen.into_iter().collect() }
    }

    fn judged(writes: &[Write], reads: &[Read]) -> Result<(), &'static str> {
        let history = History { writes: writes.to_vec(), reads: reads.to_vec() };
        history.check().map_err(|violation| match *violation {
            Violation::Missed { .. } => "missed",
            Violation::WentBack { .. } => "went back",
            Violation::OldState { .. } => "old state",
            Violation::Torn { .. } => "torn",
            Violation::Unwritten { .. } => "unwritten",
            Violation::TwoValues { .. } => "two values",
            Violation::OutOfOrder { .. } => "out of order",
        })
    }

    #[test]
    fn a_read_sees_what_was_acknowledged_before_it_began_and_may_see_what_overlaps() {
        let writes = [write(1, 0, Some((10, 5))), write(2, 20, Some((30, 7)))];
        assert_eq!(judged(&writes, &[read(11, 19, 5, Some((1, 5)))]), Ok(()));
        assert_eq!(judged(&writes, &[read(11, 19, 5, None)]), Err("missed"));
        assert_eq!(judged(&writes, &[read(25, 40, 5, Some((1, 5)))]), Ok(()), "they overlap");
        assert_eq!(judged(&writes, &[read(25, 40, 7, Some((2, 7)))]), Ok(()), "they overlap");
        assert_eq!(judged(&writes, &[read(31, 40, 5, Some((1, 5)))]), Err("missed"));
        assert_eq!(judged(&writes, &[read(30, 40, 5, Some((1, 5)))]), Ok(()), "at the same instant");
    }

    #[test]
    fn no_read_goes_back_behind_one_that_had_ended() {
        let writes = [write(1, 0, Some((10, 5))), write(2, 20, None)];
        let (old, new) = (|a, b| read(a, b, 9, Some((1, 5))), |a, b| read(a, b, 9, Some((2, 9))));
        assert_eq!(judged(&writes, &[old(21, 22), new(23, 24)]), Ok(()));
        assert_eq!(judged(&writes, &[new(21, 22), old(23, 24)]), Err("went back"));
        assert_eq!(judged(&writes, &[new(21, 25), old(23, 26)]), Ok(()), "they overlap");
        let gone = read(23, 24, 9, None);
        assert_eq!(judged(&[write(2, 20, None)], &[new(21, 22), gone]), Err("went back"));
    }

    #[test]
    fn a_write_whose_end_nobody_saw_may_take_effect_late_or_never() {
        let writes = [write(1, 0, None), write(2, 10, Some((20, 5)))];
        assert_eq!(judged(&writes, &[read(21, 22, 5, Some((2, 5)))]), Ok(()));
        let late = [read(21, 22, 5, Some((2, 5))), read(23, 24, 8, Some((1, 8)))];
        assert_eq!(judged(&writes, &late), Ok(()));
    }

    #[test]
    fn nothing_is_read_that_nobody_had_begun_to_write() {
        let writes = [write(1, 20, Some((30, 5)))];
        assert_eq!(judged(&writes, &[read(10, 19, 5, Some((1, 5)))]), Err("unwritten"));
        assert_eq!(judged(&writes, &[read(21, 22, 5, Some((3, 5)))]), Err("unwritten"));
    }

    #[test]
    fn a_read_is_of_one_state() {
        let writes = [write(1, 0, Some((10, 5))), write(2, 20, Some((30, 7)))];
        assert_eq!(judged(&writes, &[read(25, 40, 8, Some((1, 5)))]), Err("torn"), "7 is not in 8");
        assert_eq!(judged(&writes, &[read(25, 40, 6, Some((2, 7)))]), Err("torn"), "7 is in 6");
        assert_eq!(judged(&writes, &[read(25, 40, 8, Some((2, 8)))]), Err("torn"), "8 was promised as 7");
        let reads = [read(12, 13, 6, Some((1, 5))), read(14, 15, 5, Some((1, 5)))];
        assert_eq!(judged(&writes, &reads), Err("old state"));
    }

    #[test]
    fn one_revision_has_one_value_and_later_writes_have_later_ones() {
        let writes = [write(1, 0, None), write(2, 0, None)];
        let reads = [read(1, 2, 9, Some((1, 4))), read(1, 2, 9, Some((2, 4)))];
        assert_eq!(judged(&writes, &reads), Err("two values"));
        let writes = [write(1, 0, Some((10, 5))), write(2, 20, Some((30, 5)))];
        assert_eq!(judged(&writes, &[]), Err("out of order"));
        let overlap = [write(1, 0, Some((30, 5))), write(2, 20, Some((40, 4)))];
        assert_eq!(judged(&overlap, &[]), Ok(()));
        assert_eq!(judged(&[write(1, 20, Some((30, 5)))], &[read(1, 2, 5, None)]), Err("torn"));
    }
}
