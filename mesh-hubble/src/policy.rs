//! Which policy decided, from the provenance that a rule carries.

use xds_proto::hubble::flow::Policy;

/// The label of a policy that says which of its rules it was.
pub(crate) const RULE_LABEL: &str = "isthmus.io/rule";

/// Kinds as provenance spells them, and as objects do.
const KINDS: [(&str, &str); 4] = [
    ("networkpolicy", "NetworkPolicy"),
    ("ciliumnetworkpolicy", "CiliumNetworkPolicy"),
    ("ciliumclusterwidenetworkpolicy", "CiliumClusterwideNetworkPolicy"),
    ("clusternetworkpolicy", "ClusterNetworkPolicy"),
];

/// `networkpolicy/shop/pay#ingress[0]`: kind, namespace and name, and the rule as a label. A text of another form becomes
/// the name. `None`: no policy had a say.
pub fn policy(provenance: &str) -> Option<Policy> {
    if provenance.is_empty() {
        return None;
    }
    let (object, rule) = provenance.split_once('#').map_or((provenance, None), |(o, r)| (o, Some(r)));
    let labels: Vec<String> = rule.map(|rule| format!("{RULE_LABEL}={rule}")).into_iter().collect();
    let parts: Vec<&str> = object.split('/').collect();
    let (kind, namespace, name) = match parts.as_slice() {
        [kind, namespace, name] => (*kind, *namespace, *name),
        [kind, name] => (*kind, "", *name),
        _ => return Some(Policy { name: object.to_owned(), labels, ..Policy::default() }),
    };
    let kind = KINDS.iter().find(|(ours, _)| *ours == kind).map_or(kind, |(_, theirs)| *theirs);
    Some(Policy {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        labels,
        revision: 0,
        kind: kind.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provenance_is_taken_apart_into_object_and_rule() {
        let of = |text: &str| {
            let policy = policy(text).unwrap();
            (policy.kind, policy.namespace, policy.name, policy.labels)
        };
        let rule = |text: &str| vec![format!("isthmus.io/rule={text}")];
        assert_eq!(
            of("networkpolicy/shop/pay#ingress[0]"),
            ("NetworkPolicy".into(), "shop".into(), "pay".into(), rule("ingress[0]"))
        );
        assert_eq!(
            of("ciliumclusterwidenetworkpolicy/all#specs[1].egress[0]"),
            (
                "CiliumClusterwideNetworkPolicy".into(),
                String::new(),
                "all".into(),
                rule("specs[1].egress[0]")
            )
        );
        assert_eq!(of("newpolicy/shop/x").0, "newpolicy");
        assert_eq!(of("something else"), (String::new(), String::new(), "something else".into(), vec![]));
        assert_eq!(policy(""), None);
    }
}
