//! `networking.k8s.io/v1` NetworkPolicy, every field.

use crate::case::Case;

pub const CASES: &[Case] = &[
    Case {
        object: "networkpolicy/shop/labels",
        yaml: "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: labels, namespace: shop}, spec: {
 podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}}",
        asks: "
web   -> api tcp 8080   yes ingress[0]
web   -> api udp 8080   yes ingress[0]
web   -> api echo       yes ingress[0]
web   -> api sctp 8080  yes ingress[0]
batch -> api tcp 8080   no  default-deny-ingress
batch -> api udp 8080   no  default-deny-ingress
batch -> api echo       no  default-deny-ingress
batch -> api sctp 8080  no  default-deny-ingress
admin -> api tcp 8080   no  default-deny-ingress
out   -> api tcp 8080   no  default-deny-ingress
n1    -> api tcp 8080   no  default-deny-ingress
n2    -> api tcp 8080   yes own-node
batch -> db  tcp 8080   yes -
api   -> web tcp 8080   yes -
",
    },
    Case {
        object: "networkpolicy/shop/expressions",
        yaml: "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: expressions, namespace: shop}, spec: {
 podSelector: {matchExpressions: [{key: tier, operator: Exists}, {key: app, operator: NotIn, values: [db]}]},
 ingress: [{from: [{podSelector: {matchExpressions: [{key: role, operator: DoesNotExist}]}}]},
           {from: [{podSelector: {matchExpressions: [{key: role, operator: In, values: [job]}]}}], ports: [{port: 9000}]}]}}",
        asks: "
web   -> api tcp 8080   yes ingress[0]
batch -> api tcp 9000   yes ingress[1]
batch -> api tcp 8080   no  default-deny-ingress
admin -> api tcp 8080   no  default-deny-ingress
batch -> db  tcp 8080   yes -
",
    },
    Case {
        object: "networkpolicy/shop/namespaces",
        yaml: "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: namespaces, namespace: shop}, spec: {
 podSelector: {matchLabels: {app: api}}, ingress: [
  {from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ops}}}], ports: [{port: 8080}]},
  {from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}, podSelector: {matchLabels: {app: batch}}}],
   ports: [{port: 9000}]},
  {from: [{namespaceSelector: {}}], ports: [{port: 9001}]}]}}",
        asks: "
admin -> api tcp 8080   yes ingress[0]
web   -> api tcp 8080   no  default-deny-ingress
batch -> api tcp 9000   yes ingress[1]
web   -> api tcp 9000   no  default-deny-ingress
admin -> api tcp 9000   no  default-deny-ingress
web   -> api tcp 9001   yes ingress[2]
admin -> api tcp 9001   yes ingress[2]
out   -> api tcp 9001   no  default-deny-ingress
",
    },
    Case {
        object: "networkpolicy/shop/blocks",
        yaml: "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: blocks, namespace: shop}, spec: {
 podSelector: {matchLabels: {app: api}}, ingress: [
  {from: [{ipBlock: {cidr: 10.200.9.0/24, except: [10.200.9.128/25]}},
          {ipBlock: {cidr: 'fd00:200::9:0/120', except: ['fd00:200::9:80/121']}}], ports: [{port: 8080}]},
  {from: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: 9000}]}]}}",
        asks: "
out  -> api tcp 8080   yes ingress[0]
out2 -> api tcp 8080   no  default-deny-ingress
out2 -> api tcp/4 9000 yes ingress[1]
out2 -> api tcp/6 9000 no  default-deny-ingress
web  -> api tcp 8080   no  default-deny-ingress
web  -> api tcp 9000   no  default-deny-ingress
",
    },
    Case {
        object: "networkpolicy/shop/ports",
        yaml: "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: ports, namespace: shop}, spec: {
 podSelector: {matchLabels: {tier: back}}, ingress: [
  {from: [{podSelector: {matchLabels: {app: web}}}], ports: [
   {port: 9000, endPort: 9001}, {port: 8443, protocol: UDP}, {port: 9002, protocol: SCTP}, {port: http},
   {port: said, protocol: UDP}]},
  {from: [{podSelector: {matchLabels: {app: batch}}}], ports: [{protocol: UDP}]}]}}",
        asks: "
web   -> api tcp 9000   yes ingress[0]
web   -> api tcp 9001   yes ingress[0]
web   -> api tcp 9002   no  default-deny-ingress
web   -> api udp 9001   no  default-deny-ingress
web   -> api udp 8443   yes ingress[0]
web   -> api tcp 8443   no  default-deny-ingress
web   -> api sctp 9002  yes ingress[0]
web   -> api sctp 9001  no  default-deny-ingress
web   -> api tcp 8080   yes ingress[0]
web   -> db  tcp 8080   no  default-deny-ingress
web   -> db  tcp 9100   yes ingress[0]
web   -> api tcp 9100   no  default-deny-ingress
web   -> api udp 9000   yes ingress[0]
web   -> db  udp 9000   no  default-deny-ingress
web   -> api echo       no  default-deny-ingress
batch -> api udp 9100   yes ingress[1]
batch -> api tcp 9100   no  default-deny-ingress
",
    },
    Case {
        object: "networkpolicy/shop/nobody",
        yaml: "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: nobody, namespace: shop}, spec: {
 podSelector: {}, policyTypes: [Ingress]}}",
        asks: "
web   -> api   tcp 8080   no  default-deny-ingress
api   -> web   udp 8080   no  default-deny-ingress
web   -> admin tcp 8080   yes -
web   -> out   tcp 8080   yes -
",
    },
    Case {
        object: "networkpolicy/shop/anybody",
        yaml: "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: anybody, namespace: shop}, spec: {
 podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress], ingress: [{ports: [{port: 8080}]}]}}",
        asks: "
web   -> api tcp 8080   yes ingress[0]
admin -> api tcp 8080   yes ingress[0]
out   -> api tcp 8080   yes ingress[0]
n1    -> api tcp 8080   yes ingress[0]
web   -> api tcp 9000   no  default-deny-ingress
",
    },
    Case {
        object: "networkpolicy/shop/out",
        yaml: "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: out, namespace: shop}, spec: {
 podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [
  {to: [{podSelector: {matchLabels: {tier: back}}}], ports: [{port: http}, {port: 9001, endPort: 9002}]},
  {to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ops}}, podSelector: {}}]},
  {to: [{ipBlock: {cidr: 10.200.9.0/24, except: [10.200.9.130/32]}},
        {ipBlock: {cidr: 'fd00:200::9:0/120', except: ['fd00:200::9:82/128']}}]}]}}",
        asks: "
web   -> api   tcp 8080   yes egress[0]
web   -> db    tcp 9100   yes egress[0]
web   -> db    tcp 8080   no  default-deny-egress
web   -> api   tcp 9001   yes egress[0]
web   -> api   tcp 9002   yes egress[0]
web   -> api   udp 9002   no  default-deny-egress
web   -> batch tcp 8080   no  default-deny-egress
web   -> admin tcp 9000   yes egress[1]
web   -> admin echo       yes egress[1]
web   -> out   tcp 8080   yes egress[2]
web   -> out2  tcp 8080   no  default-deny-egress
web   -> n1    tcp 8080   yes own-node
web   -> n2    tcp 8080   no  default-deny-egress
batch -> out2  tcp 8080   yes -
batch -> web   tcp 8080   yes -
",
    },
    Case {
        object: "networkpolicy/shop/both",
        yaml: "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: both, namespace: shop}, spec: {
 podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress, Egress],
 ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}], egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]}}",
        asks: "
web   -> api tcp 8080   yes ingress[0]
batch -> api tcp 8080   no  default-deny-ingress
api   -> db  tcp 8080   yes egress[0]
api   -> web tcp 8080   no  default-deny-egress
",
    },
    Case {
        // What any of several allows is allowed.
        object: "networkpolicy/shop/one",
        yaml: "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: one, namespace: shop}, spec: {
 podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: two, namespace: shop}, spec: {
 podSelector: {matchLabels: {tier: back}}, ingress: [{from: [{podSelector: {matchLabels: {app: batch}}}]}]}}",
        asks: "
web   -> api tcp 8080   yes ingress[0]
batch -> api tcp 8080   yes networkpolicy/shop/two#ingress[0]
batch -> db  tcp 8080   yes networkpolicy/shop/two#ingress[0]
web   -> db  tcp 8080   no  networkpolicy/shop/two#default-deny-ingress
",
    },
];
