//! What both kinds of services are shown and say alike. Pure.

use ::http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{config::Text, policy::authz::ExtAuthz};

/// Names that no service changes: they frame or direct the message.
const FRAMING: [HeaderName; 5] =
    [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION, header::UPGRADE];

pub(super) fn any(texts: &[Text], name: &str) -> bool {
    texts.iter().any(|text| text.matches(name))
}

/// Whether the service is shown a header.
pub(super) fn is_shown(authz: &ExtAuthz, name: &str) -> bool {
    authz.allowed_headers.as_ref().is_none_or(|allowed| any(allowed, name))
        && !any(&authz.disallowed_headers, name)
}

/// Values of a name as one.
pub(super) fn joined(headers: &HeaderMap, name: &HeaderName) -> Vec<u8> {
    let values: Vec<_> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    values.join(&b","[..])
}

/// With what is no UTF-8 written as `!`, as in Envoy.
pub(super) fn clean(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace(char::REPLACEMENT_CHARACTER, "!")
}

/// A header that the service wants.
///
/// # Errors
/// It is none, or one that frames or directs the message.
pub(super) fn header(name: &str, value: &[u8]) -> Result<(HeaderName, HeaderValue), String> {
    let parsed: HeaderName = name.parse().map_err(|_| format!("{name:?} is no header name"))?;
    if FRAMING.contains(&parsed) {
        return Err(format!("{name:?} frames or directs the message"));
    }
    let value = HeaderValue::from_bytes(value).map_err(|_| format!("the value of {name:?} is none"))?;
    Ok((parsed, value))
}

/// A path and query with parameters set and removed; `None` if nothing changes.
pub(super) fn query(path_and_query: &str, set: &[(String, String)], remove: &[String]) -> Option<String> {
    if set.is_empty() && remove.is_empty() {
        return None;
    }
    let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
    let concerned = |pair: &&str| {
        let name = pair.split_once('=').map_or(*pair, |(name, _)| name);
        set.iter().any(|(key, _)| key == name) || remove.iter().any(|key| key == name)
    };
    let kept = query.split('&').filter(|pair| !pair.is_empty() && !concerned(pair)).map(str::to_owned);
    let pairs: Vec<_> = kept.chain(set.iter().map(|(key, value)| format!("{key}={value}"))).collect();
    Some(if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_set_and_removed_and_the_others_stay() {
        let set = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let after = |path: &str, pairs, remove: &[&str]| {
            let remove: Vec<String> = remove.iter().map(|name| (*name).to_owned()).collect();
            query(path, &set(pairs), &remove)
        };
        assert_eq!(after("/a?x=1&y=2", &[("x", "3")], &[]).as_deref(), Some("/a?y=2&x=3"));
        assert_eq!(after("/a?x=1", &[], &["x"]).as_deref(), Some("/a"));
        assert_eq!(after("/a", &[("x", "3")], &["y"]).as_deref(), Some("/a?x=3"));
        assert_eq!(after("/a?x=1", &[], &[]), None);
    }

    #[test]
    fn what_frames_a_message_is_not_for_others_to_set() {
        assert!(header("x-a", b"1").is_ok());
        for name in ["content-length", "Transfer-Encoding", "host", ":path", "a b"] {
            assert!(header(name, b"1").is_err(), "{name}");
        }
        assert!(header("x-a", b"a\r\nb: c").is_err());
    }
}
