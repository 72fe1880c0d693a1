//! Certificates of administrators: each has a number, and is known until it ends.

use super::{Done, authority, tokens, transaction::Transaction, valid};
use crate::{
    AdministratorRecord, Granted, Refusal, Withdrawal,
    limits::{MAX_ADMINISTRATOR_NAME, MAX_ADMINISTRATOR_SECONDS, MAX_ADMINISTRATORS},
};

/// Characters of who asked that are remembered.
const MAX_ASKED_BY: usize = 300;

pub(super) fn admit(
    tx: &mut Transaction<'_>,
    name: &str,
    asked_by: &str,
    seconds: u64,
) -> Result<Done, Refusal> {
    check_name(name)?;
    if seconds == 0 || seconds > MAX_ADMINISTRATOR_SECONDS {
        let problem = format!("is not 1 to {MAX_ADMINISTRATOR_SECONDS} (30 days)");
        return Err(Refusal::invalid("administrator.seconds", seconds, problem));
    }
    forget(tx);
    let count = tx.state().authority.administrators.len() + 1;
    valid::at_most("certificates of administrators", count, MAX_ADMINISTRATORS)?;
    // Of the same row as the registrations of nodes: a number in a serial stands for one thing only.
    let number = tx.state().cursors.registration + 1;
    tx.cursors().registration = number;
    let issued_unix = tx.now_unix();
    let record = AdministratorRecord {
        name: name.to_owned(),
        asked_by: asked_by.chars().take(MAX_ASKED_BY).collect(),
        issued_unix,
        until_unix: issued_unix.saturating_add(seconds),
        withdrawn: None,
    };
    tx.set_administrator(number, Some(record));
    Ok(Granted::Administrator(number).into())
}

pub(super) fn withdraw(
    tx: &mut Transaction<'_>,
    name: &str,
    by: &str,
    tokens_of: &str,
) -> Result<Done, Refusal> {
    let now = tx.now_unix();
    let theirs: Vec<(u64, AdministratorRecord)> = tx
        .state()
        .authority
        .administrators
        .iter()
        .filter(|(_, record)| record.admits(name, now))
        .map(|(number, record)| (*number, record.clone()))
        .collect();
    if theirs.is_empty() {
        return Err(Refusal::Unknown {
            what: "administrator with a valid certificate".to_owned(),
            name: name.chars().take(MAX_ADMINISTRATOR_NAME + 1).collect(),
        });
    }
    let by: String = by.chars().take(MAX_ASKED_BY).collect();
    for (number, record) in theirs {
        let withdrawn = Some(Withdrawal { by: by.clone(), at_unix: now });
        tx.set_administrator(number, Some(AdministratorRecord { withdrawn, ..record }));
    }
    // Nodes serve their flows to administrators by themselves.
    tx.change_authority(|authority, cluster| authority::publish(authority, cluster));
    // A token is a way back in, for a week.
    tokens::revoke_of(tx, tokens_of);
    Ok(Done::default())
}

/// Those whose certificates have ended.
pub(super) fn forget(tx: &mut Transaction<'_>) {
    let now = tx.now_unix();
    let administrators = &tx.state().authority.administrators;
    let over: Vec<u64> =
        administrators.iter().filter(|(_, record)| record.until_unix <= now).map(|(n, _)| *n).collect();
    if over.is_empty() {
        return;
    }
    for number in over {
        tx.set_administrator(number, None);
    }
    tx.change_authority(|authority, cluster| authority::publish(authority, cluster));
}

/// What fits into a SPIFFE ID as one segment (SPIFFE ID specification, section 2.2).
fn check_name(name: &str) -> Result<(), Refusal> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if name.len() <= MAX_ADMINISTRATOR_NAME
        && name.bytes().all(fits)
        && name.bytes().any(|b| b.is_ascii_alphanumeric())
    {
        return Ok(());
    }
    let shown: String = name.chars().take(MAX_ADMINISTRATOR_NAME + 1).collect();
    let problem = "is not 1 to 63 of a-z, A-Z, 0-9, '.', '-' and '_', with a letter or digit among them";
    Err(Refusal::invalid("administrator.name", shown, problem))
}

#[cfg(test)]
mod tests {
    use crate::{
        AuthorityCommand, Command, Granted, TokenPurpose, TokenRecord, decode, encode,
        fixtures::{NOON, Store, ip, token},
        limits::MAX_ADMINISTRATORS,
    };

    fn admit(name: &str, seconds: u64) -> Command {
        let (name, asked_by) = (name.to_owned(), "the local administrator".to_owned());
        Command::Authority(AuthorityCommand::AdmitAdministrator { name, asked_by, seconds })
    }

    fn withdraw(name: &str) -> Command {
        let (name, by) = (name.to_owned(), "administrator ada".to_owned());
        let tokens_of = format!("administrator {name}");
        Command::Authority(AuthorityCommand::WithdrawAdministrator { name, by, tokens_of })
    }

    #[test]
    fn the_unused_tokens_of_an_administrator_go_with_the_certificates() {
        let mut store = Store::initialised();
        store.run(admit("kim", 3600)).unwrap();
        let made = |id: &str, asked_by: &str| {
            let token = TokenRecord { asked_by: asked_by.to_owned(), ..token(TokenPurpose::Replica) };
            Command::CreateToken { id: id.to_owned(), token }
        };
        for (id, asked_by) in
            [("used", "administrator kim"), ("open", "administrator kim"), ("lees", "administrator lee")]
        {
            store.run(made(id, asked_by)).unwrap();
        }
        let (token, secret_sha256) = ("used".to_owned(), "ab".repeat(32));
        store
            .run(Command::AdmitReplica { token, secret_sha256, address: "10.0.0.7:9443".to_owned() })
            .unwrap();
        store.run(withdraw("kim")).unwrap();
        assert_eq!(store.state.tokens.keys().map(String::as_str).collect::<Vec<_>>(), ["lees", "used"]);
    }

    #[test]
    fn each_certificate_has_a_number_that_no_node_has_and_a_record_of_who_asked() {
        let mut store = Store::initialised();
        store
            .run(Command::RegisterNode { name: "n1".into(), address: ip("10.0.0.11"), address6: None })
            .unwrap();
        let before = store.state.revision;
        let applied = store.run(admit("kim", 3600)).unwrap();
        assert_eq!((applied.granted, applied.revision), (Granted::Administrator(2), before + 1));
        let record = store.state.authority.administrators[&2].clone();
        assert_eq!(record.asked_by, "the local administrator");
        assert_eq!(record.until_unix, record.issued_unix + 3600);
        store
            .run(Command::RegisterNode { name: "n2".into(), address: ip("10.0.0.12"), address6: None })
            .unwrap();
        assert_eq!(store.state.nodes["n2"].registration, 3);
        let again = decode(&encode(&store.state).unwrap()).unwrap();
        assert_eq!(again.authority, store.state.authority, "a snapshot keeps it");
    }

    #[test]
    fn what_is_withdrawn_admits_no_more_and_is_remembered_until_it_would_have_ended() {
        let mut store = Store::initialised();
        for name in ["kim", "kim", "lee"] {
            store.run(admit(name, 3600)).unwrap();
        }
        store.run(withdraw("kim")).unwrap();
        let admits = |store: &Store, number: u64, name: &str| {
            store.state.authority.administrators[&number].admits(name, store.now_unix_ms / 1000)
        };
        assert!(!admits(&store, 1, "kim") && !admits(&store, 2, "kim") && admits(&store, 3, "lee"));
        assert!(!admits(&store, 3, "kim"), "the number of another administrator");
        let told = |store: &Store| store.state.cluster.as_ref().unwrap().trust.revoked.clone();
        assert_eq!(told(&store), [1, 2].into(), "agents serve flows to administrators by themselves");
        let withdrawn = store.state.authority.administrators[&1].withdrawn.clone().unwrap();
        assert_eq!(withdrawn.by, "administrator ada");
        assert!(
            store.refused(withdraw("kim")).to_string().contains("\"kim\""),
            "there is nothing left of it"
        );
        store.now_unix_ms = (NOON + 3600) * 1000 + store.now_unix_ms % 1000;
        store.now_unix_ms += 3_600_000;
        store.run(Command::Authority(AuthorityCommand::ForgetRevoked)).unwrap();
        assert!(store.state.authority.administrators.is_empty() && told(&store).is_empty());
        assert_eq!(
            store.run(admit("kim", 1)).unwrap().granted,
            Granted::Administrator(4),
            "never the same again"
        );
    }

    #[test]
    fn names_that_are_no_segment_and_lives_without_bounds_are_refused() {
        let mut store = Store::initialised();
        let long = "x".repeat(64);
        for name in ["", ".", "..", "a/b", "kim@west", "kim lee", "k\u{e9}m", "a\nb", &long] {
            assert!(store.refused(admit(name, 60)).to_string().contains("administrator.name"), "{name:?}");
        }
        for seconds in [0, 30 * 24 * 3600 + 1, u64::MAX] {
            assert!(store.refused(admit("kim", seconds)).to_string().contains("administrator.seconds"));
        }
        assert!(store.state.authority.administrators.is_empty() && store.state.cursors.registration == 0);
    }

    #[test]
    fn there_are_so_many_at_most_and_those_that_ended_make_room() {
        let mut store = Store::initialised();
        for _ in 0..MAX_ADMINISTRATORS {
            store.run(admit("ci", 60)).unwrap();
        }
        assert!(store.refused(admit("ci", 60)).to_string().contains("1000"));
        store.now_unix_ms += 61_000 + 3_600_000;
        store.run(admit("ci", 60)).unwrap();
        assert_eq!(store.state.authority.administrators.len(), 1);
    }
}
