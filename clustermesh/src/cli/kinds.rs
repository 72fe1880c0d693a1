//! `KIND [NAME...]`, `KIND/NAME...`, `KIND,KIND` and `all`.

use mesh_model::resource::Kind;

use super::failure::Failure;

/// One thing to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    /// `None`: all of that kind.
    pub(crate) name: Option<String>,
}

/// Reads the positional arguments of `get`, `describe` and `delete`.
pub(crate) fn parse(words: &[String]) -> Result<Vec<Target>, Failure> {
    let Some((first, rest)) = words.split_first() else {
        return Err(Failure::usage("name a kind, for instance 'clustermesh get services'"));
    };
    let slashed = words.iter().filter(|w| w.contains('/')).count();
    if slashed > 0 {
        if slashed < words.len() {
            return Err(Failure::usage("do not mix KIND/NAME with other forms; write KIND/NAME for each"));
        }
        return words.iter().map(|word| slash(word)).collect();
    }
    let kinds = kinds(first)?;
    if rest.is_empty() {
        return Ok(kinds.into_iter().map(|kind| Target { kind, name: None }).collect());
    }
    match kinds.as_slice() {
        [kind] => rest.iter().map(|name| Ok(Target { kind: *kind, name: Some(checked(name)?) })).collect(),
        _ => Err(Failure::usage("a name needs one kind before it, for instance 'service pay'")),
    }
}

fn slash(word: &str) -> Result<Target, Failure> {
    let (kind, name) = word.split_once('/').unwrap_or((word, ""));
    Ok(Target { kind: one_kind(kind)?, name: Some(checked(name)?) })
}

fn kinds(text: &str) -> Result<Vec<Kind>, Failure> {
    let mut kinds = Vec::new();
    for word in text.split(',').filter(|w| !w.is_empty()) {
        // As kubectl: what is of the whole cluster is not among all that a namespace has.
        let more = match word.eq_ignore_ascii_case("all") {
            true => Kind::ALL.into_iter().filter(|kind| !kind.is_cluster_scoped()).collect(),
            false => vec![one_kind(word)?],
        };
        for kind in more {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
    }
    if kinds.is_empty() { Err(unknown(text)) } else { Ok(kinds) }
}

/// kubectl's names, with its groups (`httproutes.gateway.networking.k8s.io`) and, for people who think in
/// pods, `po`.
fn one_kind(word: &str) -> Result<Kind, Failure> {
    let plain = word.split_once('.').map_or(word, |(kind, _group)| kind);
    match plain.to_ascii_lowercase().as_str() {
        "po" | "pod" | "pods" => Ok(Kind::Workload),
        _ => Kind::from_user(plain).ok_or_else(|| unknown(word)),
    }
}

fn unknown(text: &str) -> Failure {
    Failure::usage(format!(
        "there is no kind {text:?}; use workload (wl), service (svc), endpointslice (eps), \
         networkpolicy (netpol), httproute, serviceexport (svcexport), sidecar, ciliumnetworkpolicy (cnp), \
         ciliumclusterwidenetworkpolicy (ccnp), clusternetworkpolicy, namespace (ns) or all"
    ))
}

/// Names are DNS subdomains; anything else can't exist and is mostly a typing error.
fn checked(name: &str) -> Result<String, Failure> {
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    if name.is_empty() || name.len() > 253 || !name.bytes().all(fine) {
        return Err(Failure::usage(format!("{name:?} is no name of an object (a-z, 0-9, '-' and '.')")));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn target(kind: Kind, name: Option<&str>) -> Target {
        Target { kind, name: name.map(str::to_owned) }
    }

    #[test]
    fn every_form_of_kubectl_is_read() {
        let service = |name| target(Kind::Service, name);
        assert_eq!(parse(&words("svc")).unwrap(), [service(None)]);
        assert_eq!(
            parse(&words("Services pay cards")).unwrap(),
            [service(Some("pay")), service(Some("cards"))]
        );
        assert_eq!(
            parse(&words("svc/pay netpol/x")).unwrap(),
            [service(Some("pay")), target(Kind::NetworkPolicy, Some("x"))]
        );
        assert_eq!(parse(&words("svc,po,svc")).unwrap(), [service(None), target(Kind::Workload, None)]);
        let all = parse(&words("all")).unwrap();
        assert!(all.contains(&target(Kind::HttpRoute, None)), "{all:?}");
        for whole in [Kind::Namespace, Kind::CiliumClusterwideNetworkPolicy, Kind::ClusterNetworkPolicy] {
            assert!(!all.contains(&target(whole, None)), "{whole:?} is of the whole cluster");
        }
        assert_eq!(all.len(), Kind::ALL.len() - 3);
        assert_eq!(
            parse(&words("httproutes.gateway.networking.k8s.io")).unwrap(),
            [target(Kind::HttpRoute, None)]
        );
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for line in
            ["", "deploy", "svc,netpol x", "svc/", "/x", "svc pay/x", "svc/a b", "svc Pay", "svc/a/b", ","]
        {
            let failure = parse(&words(line)).unwrap_err();
            assert_eq!(failure.code, crate::cli::failure::USAGE, "{line}: {failure:?}");
        }
        assert!(parse(&words("deploy")).unwrap_err().sentence.contains("\"deploy\""));
    }
}
