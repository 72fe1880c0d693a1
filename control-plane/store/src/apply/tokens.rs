//! Tokens are made once, used once, and forgotten a while after they expired.

use super::{Done, transaction::Transaction, valid};
use crate::{
    Refusal, TokenPurpose, TokenRecord,
    limits::{MAX_TOKENS, TOKEN_GRACE_SECONDS},
};

pub(super) fn create(tx: &mut Transaction<'_>, id: &str, token: &TokenRecord) -> Result<Done, Refusal> {
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if id.is_empty() || id.len() > 64 || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(Refusal::invalid(
            "token.id",
            id.chars().take(80).collect::<String>(),
            "is not 1 to 64 letters and digits",
        ));
    }
    if token.secret_sha256.len() != 64 || !hex(&token.secret_sha256) {
        return Err(Refusal::invalid("token.secretSHA256", "(hidden)", "is not 64 hexadecimal digits"));
    }
    if token.used_by.is_some() {
        return Err(Refusal::invalid("token.usedBy", id, "is set although the token is new"));
    }
    if let TokenPurpose::Node(Some(node)) = &token.purpose {
        valid::domain("token.node", node)?;
    }
    if token.expires_unix <= tx.now_unix() {
        return Err(Refusal::invalid("token.expires", token.expires_unix, "is in the past"));
    }
    if tx.state().tokens.contains_key(id) {
        return Err(Refusal::invalid("token.id", id, "exists already"));
    }
    forget_old(tx);
    valid::at_most("tokens", tx.state().tokens.len() + 1, MAX_TOKENS)?;
    tx.set_token(id, Some(token.clone()));
    Ok(Done::default())
}

pub(super) fn revoke(tx: &mut Transaction<'_>, id: &str) -> Result<Done, Refusal> {
    let id = id.chars().take(64).collect::<String>();
    let Some(token) = tx.state().tokens.get(&id) else {
        return Err(Refusal::Unknown { what: "token".to_owned(), name: id });
    };
    if let Some(by) = &token.used_by {
        return Err(Refusal::TokenSpent { by: by.clone(), id });
    }
    tx.set_token(&id, None);
    Ok(Done::default())
}

/// Those of whoever is so called that nobody has used.
pub(super) fn revoke_of(tx: &mut Transaction<'_>, asked_by: &str) {
    let open = |token: &TokenRecord| token.used_by.is_none() && token.asked_by == asked_by;
    let theirs: Vec<String> =
        tx.state().tokens.iter().filter(|(_, token)| open(token)).map(|(id, _)| id.clone()).collect();
    for id in theirs {
        tx.set_token(&id, None);
    }
}

pub(super) fn redeem(
    tx: &mut Transaction<'_>,
    id: &str,
    secret_sha256: &str,
    purpose: &TokenPurpose,
    bearer: &str,
) -> Result<Done, Refusal> {
    let id = id.chars().take(64).collect::<String>();
    // The secret is checked first: whoever does not know it learns nothing about the token.
    let Some(token) = tx.state().tokens.get(&id).filter(|token| token.secret_sha256 == secret_sha256) else {
        return Err(Refusal::TokenUnknown { id });
    };
    if let Some(by) = &token.used_by {
        return Err(Refusal::TokenUsed { by: by.clone(), id });
    }
    let now = tx.now_unix();
    if token.expires_unix <= now {
        return Err(Refusal::TokenExpired { seconds_ago: now - token.expires_unix, id });
    }
    if !token.purpose.admits(purpose) {
        return Err(Refusal::TokenPurpose {
            made_for: token.purpose.to_string(),
            wanted: purpose.to_string(),
            id,
        });
    }
    let used = TokenRecord { used_by: Some(bearer.chars().take(300).collect()), ..token.clone() };
    tx.set_token(&id, Some(used));
    Ok(Done::default())
}

fn forget_old(tx: &mut Transaction<'_>) {
    let now = tx.now_unix();
    let old: Vec<String> = tx
        .state()
        .tokens
        .iter()
        .filter(|(_, token)| token.expires_unix.saturating_add(TOKEN_GRACE_SECONDS) < now)
        .map(|(id, _)| id.clone())
        .collect();
    for id in old {
        tx.set_token(&id, None);
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        Command, Refusal, TokenPurpose,
        fixtures::{Store, token},
    };

    #[test]
    fn a_token_that_is_withdrawn_admits_nobody_and_one_that_was_used_can_not_be() {
        let mut store = Store::initialised();
        let create =
            |id: &str| Command::CreateToken { id: id.to_owned(), token: token(TokenPurpose::Node(None)) };
        let redeem = |id: &str| Command::UseToken {
            id: id.to_owned(),
            secret_sha256: "ab".repeat(32),
            purpose: TokenPurpose::Node(Some("n1".to_owned())),
            bearer: "node n1".to_owned(),
        };
        let revoke = |id: &str| Command::RevokeToken { id: id.to_owned() };
        store.run(create("t1")).expect("created");
        store.run(create("t2")).expect("created");
        store.run(revoke("t1")).expect("withdrawn");
        assert!(matches!(store.refused(redeem("t1")), Refusal::TokenUnknown { .. }));
        assert!(matches!(store.refused(revoke("t1")), Refusal::Unknown { .. }));
        store.run(redeem("t2")).expect("the other one is good");
        let refusal = store.refused(revoke("t2")).to_string();
        assert!(refusal.contains("used by \"node n1\""), "{refusal}");
        assert!(store.state.tokens.contains_key("t2"), "who was admitted with what is remembered");
    }
}
