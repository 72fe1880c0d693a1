//! `clustermesh join`: the only federation command.

use std::io::Read;

use clustermesh::token::{JoinToken, MAX_TOKEN, Purpose};
use xds_proto::isthmus::admin::v1::{JoinRequest, JoinResponse};

use super::{
    args::JoinArgs,
    client::{connect, within},
    failure::Failure,
    now_unix, out,
    server::Server,
};

/// Services named in the answer; the rest are counted.
const SHOWN: usize = 10;

pub(crate) async fn run(server: &Server, args: &JoinArgs) -> Result<(), Failure> {
    let text = match args.token.as_str() {
        "-" => from_stdin()?,
        text => text.to_owned(),
    };
    // A token that can't work is refused here, by a sentence that says why, before anybody is asked.
    let token = JoinToken::decode(&text).map_err(|e| Failure::failed(e.to_string()))?;
    token.check(Purpose::Peer, now_unix()).map_err(|e| Failure::failed(e.to_string()))?;
    let mut admin = connect(server).await?;
    let spinner = out::spinner(&format!("joining {}", token.cluster));
    let request = JoinRequest { token: text.trim().to_owned() };
    let answer = within(args.timeout, admin.join(request)).await;
    spinner.finish_and_clear();
    out::line(&joined(&answer?))
}

fn from_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(MAX_TOKEN as u64 + 1)
        .read_to_string(&mut text)
        .map_err(|e| Failure::failed(format!("cannot read the token from stdin: {e}")))?;
    Ok(text)
}

fn joined(answer: &JoinResponse) -> String {
    let mut text = format!(
        "joined {} (trust domain {}) at revision {}",
        answer.peer_cluster, answer.peer_trust_domain, answer.revision
    );
    match answer.imported_services.as_slice() {
        [] => text.push_str("; it exports no services yet"),
        [one] => text.push_str(&format!("; imported the service {one}")),
        many => {
            let shown: Vec<_> = many.iter().take(SHOWN).map(String::as_str).collect();
            text.push_str(&format!("; imported {} services: {}", many.len(), shown.join(", ")));
            if many.len() > SHOWN {
                text.push_str(", ...");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_says_what_was_imported() {
        let answer = |services: &[String]| {
            joined(&JoinResponse {
                peer_cluster: "east".into(),
                peer_trust_domain: "east.example".into(),
                revision: 7,
                imported_services: services.to_vec(),
            })
        };
        let start = "joined east (trust domain east.example) at revision 7; ";
        assert_eq!(answer(&[]), format!("{start}it exports no services yet"));
        assert_eq!(answer(&["shop/pay".into()]), format!("{start}imported the service shop/pay"));
        let many: Vec<String> = (0..12).map(|i| format!("shop/s{i}")).collect();
        assert!(answer(&many).ends_with("imported 12 services: shop/s0, shop/s1, shop/s2, shop/s3, shop/s4, shop/s5, shop/s6, shop/s7, shop/s8, shop/s9, ..."));
    }
}
