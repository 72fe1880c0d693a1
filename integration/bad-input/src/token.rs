//! Join tokens.

use clustermesh::token::{JoinToken, Purpose};

pub(crate) fn token(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(token) = JoinToken::decode(&text) else { return };
    let written = token.encode().expect("what was read can be written");
    assert_eq!(JoinToken::decode(&written).as_ref(), Ok(&token), "a token changes by being written and read");
    let _ = token.check(Purpose::Node, 1_800_000_000);
}
