//! ClusterNetworkPolicy: what an administrator says before and behind everybody else.

use crate::case::Case;

pub const CASES: &[Case] = &[
    Case {
        object: "clusternetworkpolicy/first",
        yaml: "
{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: first}, spec: {
 tier: Admin, priority: 10, subject: {pods: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}, podSelector: {matchLabels: {app: api}}}},
 ingress: [
  {name: no-jobs, action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: batch}}}}],
   protocols: [{tcp: {destinationPort: {range: {start: 9000, end: 9001}}}}, {udp: {destinationPort: {number: 9000}}}]},
  {action: Pass, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: ops}}}], protocols: [{destinationNamedPort: http}]},
  {action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 8080}}}, {tcp: {destinationPort: {number: 9000}}}]}]}}
---
{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: later}, spec: {
 tier: Admin, priority: 20, subject: {namespaces: {}}, ingress: [
  {action: Accept, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: batch}}}}],
   protocols: [{tcp: {destinationPort: {range: {start: 9000, end: 9002}}}}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: nobody, namespace: shop}, spec: {
 podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress]}}
---
{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: last}, spec: {
 tier: Baseline, priority: 5, subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: shop}}}, ingress: [
  {action: Accept, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}]},
  {action: Deny, from: [{namespaces: {}}]}]}}",
        asks: "
web   -> api tcp 8080 yes ingress[2]
web   -> api tcp 9000 yes ingress[2]
batch -> api tcp 8080 yes ingress[2]
batch -> api tcp 9000 no  ingress[0]
batch -> api tcp 9001 no  ingress[0]
batch -> api udp 9000 no  ingress[0]
batch -> api tcp 9002 yes clusternetworkpolicy/later#ingress[0]
admin -> api tcp 8080 no  networkpolicy/shop/nobody#default-deny-ingress
admin -> api tcp 9000 yes ingress[2]
web   -> api tcp 9001 no  networkpolicy/shop/nobody#default-deny-ingress
web   -> db  tcp 8080 yes clusternetworkpolicy/last#ingress[0]
admin -> db  tcp 8080 no  clusternetworkpolicy/last#ingress[1]
batch -> db  tcp 9002 yes clusternetworkpolicy/later#ingress[0]
out   -> db  tcp 8080 yes -
n2    -> api tcp 8080 yes own-node
",
    },
    Case {
        object: "clusternetworkpolicy/outside",
        yaml: "
{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: outside}, spec: {
 tier: Admin, priority: 0, subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: shop}}}, egress: [
  {action: Accept, to: [{networks: [10.200.9.1/32, 'fd00:200::9:1/128']}], protocols: [{tcp: {destinationPort: {number: 8080}}}]},
  {action: Pass, to: [{networks: [10.200.9.1/32, 'fd00:200::9:1/128']}], protocols: [{tcp: {destinationPort: {number: 9000}}}]},
  {action: Deny, to: [{networks: [10.200.9.0/24, 'fd00:200::9:0/120']}]},
  {action: Deny, to: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: db}}}}], protocols: [{udp: {}}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: out, namespace: shop}, spec: {
 podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [
  {to: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}]}, {to: [{podSelector: {}}]}]}}",
        asks: "
web   -> out  tcp 8080 yes egress[0]
web   -> out  tcp 9000 yes networkpolicy/shop/out#egress[0]
web   -> out  tcp 9001 no  egress[2]
web   -> out2 tcp 8080 no  egress[2]
web   -> out2 echo     no  egress[2]
web   -> db   udp 8080 no  egress[3]
web   -> db   tcp 8080 yes networkpolicy/shop/out#egress[1]
batch -> out  tcp 9000 yes -
batch -> out2 tcp 9000 no  egress[2]
admin -> out2 tcp 9000 yes -
",
    },
];
