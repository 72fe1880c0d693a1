//! `clustermesh token list|revoke`

use clap::Args;
use serde_json::{Value, json};
use xds_proto::isthmus::admin::v1::{
    ListTokensRequest, RevokeTokenRequest, Token, tokens_client::TokensClient,
};

use super::{
    args::{ListArgs, StatusOutput},
    client::{REQUEST_TIMEOUT, channel, within},
    failure::{Failure, NOT_FOUND},
    now_unix,
    out::{self, Paint, Tone},
    render::{
        self,
        age::{timestamp, until},
        table::{Cell, Table},
    },
    server::Server,
};

#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    /// The token's id, as 'clustermesh token list' shows it; repeatable.
    #[arg(required = true, value_name = "ID")]
    pub(crate) ids: Vec<String>,
}

/// All that are remembered.
async fn all(server: &Server) -> Result<Vec<Token>, Failure> {
    let mut client = TokensClient::new(channel(server).await?);
    Ok(within(REQUEST_TIMEOUT, client.list(ListTokensRequest {})).await?.tokens)
}

pub(crate) async fn list(server: &Server, args: &ListArgs) -> Result<(), Failure> {
    let (tokens, now) = (all(server).await?, now_unix());
    match args.output {
        StatusOutput::Table if tokens.is_empty() => {
            out::remark("no token was made, or all are forgotten");
            Ok(())
        }
        StatusOutput::Table => out::print(&table(&tokens, now).render(!args.no_headers, Paint::for_stdout())),
        StatusOutput::Json => out::print(&render::json(&value(&tokens, now))),
        StatusOutput::Yaml => out::print(&render::yaml(&value(&tokens, now))?),
    }
}

/// Each by itself: one that is not there does not keep the others.
pub(crate) async fn revoke(server: &Server, args: &RevokeArgs) -> Result<(), Failure> {
    let mut client = TokensClient::new(channel(server).await?);
    let mut missing = None;
    for id in &args.ids {
        match within(REQUEST_TIMEOUT, client.revoke(RevokeTokenRequest { id: id.clone() })).await {
            Ok(_) => out::line(&format!("token/{id} revoked"))?,
            Err(failure) if failure.code == NOT_FOUND => missing = Some(failure),
            Err(failure) => return Err(failure),
        }
    }
    missing.map_or(Ok(()), Err)
}

/// How many tokens let any node in, now.
pub(super) async fn for_any_node(server: &Server) -> Result<usize, Failure> {
    let now = now_unix();
    let open = |token: &&Token| {
        token.purpose == "node" && token.node.is_empty() && state(token, now) == State::Unused
    };
    Ok(all(server).await?.iter().filter(open).count())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unused,
    Used,
    Expired,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            State::Unused => "unused",
            State::Used => "used",
            State::Expired => "expired",
        }
    }
}

fn state(token: &Token, now: u64) -> State {
    match (token.used_by.is_empty(), token.expires_unix > now) {
        (false, _) => State::Used,
        (true, true) => State::Unused,
        (true, false) => State::Expired,
    }
}

/// Whom it lets in.
fn admits(token: &Token) -> String {
    match (token.purpose.as_str(), token.node.as_str(), token.learner) {
        ("node", "", _) => "any node".to_owned(),
        ("node", node, _) => format!("node {node}"),
        ("peer", ..) => "a peer cluster".to_owned(),
        ("replica", _, true) => "a learner".to_owned(),
        ("replica", _, false) => "a replica".to_owned(),
        (other, ..) => other.to_owned(),
    }
}

fn table(tokens: &[Token], now: u64) -> Table {
    let mut table = Table::new(["ID", "ADMITS", "STATE", "ENDS", "USED-BY"]);
    for token in tokens {
        let state = state(token, now);
        // What still opens a door is what to look at.
        let tone = if state == State::Unused { Tone::Warning } else { Tone::Faint };
        table.row(vec![
            token.id.as_str().into(),
            admits(token).into(),
            Cell::toned(state.as_str(), tone),
            until(token.expires_unix, now).into(),
            token.used_by.as_str().into(),
        ]);
    }
    table
}

fn value(tokens: &[Token], now: u64) -> Value {
    let one = |token: &Token| {
        json!({
            "id": token.id, "purpose": token.purpose, "node": token.node, "learner": token.learner,
            "state": state(token, now).as_str(), "expiresUnix": token.expires_unix,
            "expires": timestamp(token.expires_unix), "usedBy": token.used_by,
        })
    };
    json!({ "tokens": tokens.iter().map(one).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: &str, purpose: &str, node: &str, used_by: &str, expires_unix: u64) -> Token {
        Token {
            id: id.into(),
            purpose: purpose.into(),
            node: node.into(),
            learner: false,
            expires_unix,
            used_by: used_by.into(),
        }
    }

    #[test]
    fn a_token_is_a_row_that_says_whom_it_lets_in_and_whether_it_still_does() {
        let learner = Token { learner: true, ..token("d", "replica", "", "", 3_700) };
        let all = [
            token("a", "node", "", "", 400),
            token("b", "node", "n1", "node n1", 3_700),
            token("c", "peer", "", "", 50),
            learner,
        ];
        assert_eq!(
            table(&all, 100).render(true, Paint::PLAIN),
            "ID   ADMITS           STATE     ENDS              USED-BY\n\
             a    any node         unused    5m                <none>\n\
             b    node n1          used      60m               node n1\n\
             c    a peer cluster   expired   expired 50s ago   <none>\n\
             d    a learner        unused    60m               <none>\n"
        );
        assert_eq!(value(&all, 100)["tokens"][1]["usedBy"], "node n1");
        assert_eq!(value(&all, 100)["tokens"][2]["state"], "expired");
    }
}
