//! What is only told of: policies of each kind, and an endpoint (`tried` is audited as such).

use crate::case::Case;

pub const CASES: &[Case] = &[
    Case {
        object: "networkpolicy/shop/tried-out",
        yaml: "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy,
 metadata: {name: tried-out, namespace: shop, annotations: {isthmus.io/audit: 'true'}}, spec: {
 podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}}",
        asks: "
web   -> api tcp 8080  yes   -
batch -> api tcp 8080  audit default-deny-ingress
batch -> api udp 8080  audit default-deny-ingress
batch -> api echo      audit default-deny-ingress
out   -> api tcp 8080  audit default-deny-ingress
",
    },
    Case {
        // What is enforced is enforced beside it.
        object: "ciliumnetworkpolicy/shop/tried-out",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy,
 metadata: {name: tried-out, namespace: shop, annotations: {isthmus.io/audit: 'true'}}, spec: {
 endpointSelector: {matchLabels: {app: api}}, ingressDeny: [{fromEndpoints: [{matchLabels: {app: web}}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: enforced, namespace: shop}, spec: {
 podSelector: {matchLabels: {app: api}}, ingress: [{ports: [{port: 8080}]}]}}",
        asks: "
web   -> api tcp 8080  audit ingressDeny[0]
web   -> api tcp 9000  no    networkpolicy/shop/enforced#default-deny-ingress
batch -> api tcp 8080  yes   networkpolicy/shop/enforced#ingress[0]
batch -> api tcp 9000  no    networkpolicy/shop/enforced#default-deny-ingress
",
    },
    Case {
        object: "clusternetworkpolicy/tried-out",
        yaml: "
{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy,
 metadata: {name: tried-out, annotations: {isthmus.io/audit: 'true'}}, spec: {
 tier: Admin, priority: 10, subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: shop}}}, ingress: [
  {action: Deny, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: ops}}}]}]}}",
        asks: "
admin -> api tcp 8080  audit ingress[0]
web   -> api tcp 8080  yes   -
",
    },
    Case {
        object: "networkpolicy/shop/of-the-tried",
        yaml: "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: of-the-tried, namespace: shop}, spec: {
 podSelector: {matchLabels: {app: tried}}, policyTypes: [Ingress, Egress],
 ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}}
---
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: of-the-tried, namespace: shop}, spec: {
 endpointSelector: {matchLabels: {app: tried}}, ingressDeny: [{fromEndpoints: [{matchLabels: {app: db}}]}]}}",
        asks: "
web   -> tried tcp 8080  yes   ingress[0]
batch -> tried tcp 8080  audit default-deny-ingress
batch -> tried echo      audit default-deny-ingress
db    -> tried tcp 8080  audit ciliumnetworkpolicy/shop/of-the-tried#ingressDeny[0]
tried -> api   tcp 8080  audit default-deny-egress
tried -> out   tcp 8080  audit default-deny-egress
",
    },
    Case {
        // The node itself, where the host outside is denied.
        object: "ciliumclusterwidenetworkpolicy/node-tried-out",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy,
 metadata: {name: node-tried-out, annotations: {isthmus.io/audit: 'true'}}, spec: {
 nodeSelector: {matchLabels: {kubernetes.io/hostname: west-n2}}, ingress: [{fromEntities: [cluster]},
  {fromCIDR: [10.200.9.130/32, 'fd00:200::9:82/128']}]}}",
        asks: "
out  -> n2 tcp 9000 audit default-deny-ingress
out2 -> n2 tcp 9000 yes   -
",
    },
    Case {
        // A policy that is meant, of a node that is audited: by IPv4 its address is the gateway's.
        object: "ciliumclusterwidenetworkpolicy/of-the-node-tried",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: of-the-node-tried}, spec: {
 nodeSelector: {matchLabels: {isthmus.io/audit: 'true'}}, ingress: [{fromEntities: [cluster]},
  {fromCIDR: [10.200.9.130/32, 'fd00:200::9:82/128']}],
 ingressDeny: [{fromEndpoints: [{matchLabels: {app: batch}}]}]}}",
        asks: "
out   -> n1 tcp/6 9000 audit default-deny-ingress
out   -> n1 udp/6 9000 audit default-deny-ingress
out   -> n1 echo/6     audit default-deny-ingress
out2  -> n1 tcp/6 9000 yes   ingress[1]
api   -> n1 tcp/6 9000 yes   ingress[0]
batch -> n1 tcp/6 9000 audit ingressDeny[0]
",
    },
    Case {
        object: "ciliumclusterwidenetworkpolicy/node",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: node}, spec: {
 nodeSelector: {matchLabels: {kubernetes.io/hostname: west-n2}}, ingress: [{fromEntities: [cluster]},
  {fromCIDR: [10.200.9.130/32, 'fd00:200::9:82/128']}]}}",
        asks: "
out  -> n2 tcp 9000 no  default-deny-ingress
out2 -> n2 tcp 9000 yes ingress[1]
api  -> n2 tcp 9000 yes ingress[0]
web  -> n2 tcp 9000 yes ingress[0]
",
    },
];
