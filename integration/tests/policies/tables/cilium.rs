//! CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy: who, where to, and what goes before what.

use crate::case::Case;

pub const CASES: &[Case] = &[
    Case {
        object: "ciliumnetworkpolicy/shop/selectors",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: selectors, namespace: shop}, specs: [
 {endpointSelector: {matchLabels: {'k8s:app': api}}, ingress: [
   {fromEndpoints: [{matchLabels: {app: web}}]},
   {fromEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': ops, 'any:app': admin}}],
    toPorts: [{ports: [{port: '9000'}]}]}]},
 {endpointSelector: {matchExpressions: [{key: app, operator: In, values: [db]}]}, egress: [
   {toEndpoints: [{matchLabels: {app: api}}]}]}]}",
        asks: "
web   -> api tcp 8080   yes specs[0].ingress[0]
web   -> api echo       yes specs[0].ingress[0]
batch -> api tcp 8080   no  specs[0].default-deny-ingress
admin -> api tcp 9000   yes specs[0].ingress[1]
admin -> api tcp 8080   no  specs[0].default-deny-ingress
out   -> api tcp 8080   no  specs[0].default-deny-ingress
db    -> web tcp 8080   no  specs[1].default-deny-egress
db    -> out tcp 8080   no  specs[1].default-deny-egress
",
    },
    Case {
        object: "ciliumclusterwidenetworkpolicy/everywhere",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: everywhere}, spec: {
 endpointSelector: {matchLabels: {'k8s:io.kubernetes.pod.namespace': ops}}, ingress: [{fromEndpoints: [
   {matchLabels: {app: web}}]}]}}",
        asks: "
web   -> admin tcp 8080   yes ingress[0]
batch -> admin tcp 8080   no  default-deny-ingress
batch -> api   tcp 8080   yes -
",
    },
    Case {
        // A denial beats what the same and other policies of any language allow.
        object: "ciliumnetworkpolicy/shop/deny",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: deny, namespace: shop}, spec: {
 endpointSelector: {matchLabels: {app: api}}, ingress: [{fromEndpoints: [{}]}],
 ingressDeny: [{fromEndpoints: [{matchLabels: {app: batch}}]},
               {toPorts: [{ports: [{port: '9001', protocol: TCP}]}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: allow, namespace: shop}, spec: {
 podSelector: {matchLabels: {app: api}}, ingress: [{}]}}",
        asks: "
web   -> api tcp 8080   yes ingress[0]
batch -> api tcp 8080   no  ingressDeny[0]
batch -> api udp 8080   no  ingressDeny[0]
batch -> api echo       no  ingressDeny[0]
web   -> api tcp 9001   no  ingressDeny[1]
out   -> api tcp 9001   no  ingressDeny[1]
web   -> api udp 9001   yes ingress[0]
admin -> api tcp 8080   yes networkpolicy/shop/allow#ingress[0]
out   -> api tcp 8080   yes networkpolicy/shop/allow#ingress[0]
",
    },
    Case {
        object: "ciliumnetworkpolicy/shop/deny-out",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: deny-out, namespace: shop}, spec: {
 endpointSelector: {matchLabels: {app: web}}, egress: [{toEndpoints: [{}]}, {toEntities: [world]}],
 egressDeny: [{toEndpoints: [{matchLabels: {app: db}}], toPorts: [{ports: [{port: '9000', endPort: 9100, protocol: ANY}]}]},
              {toCIDRSet: [{cidr: 10.200.9.128/25}, {cidr: 'fd00:200::9:80/121', except: ['fd00:200::9:90/124']}]}]}}",
        asks: "
web -> api  tcp 9001   yes egress[0]
web -> db   tcp 8080   yes egress[0]
web -> db   tcp 9001   no  egressDeny[0]
web -> db   udp 9100   no  egressDeny[0]
web -> db   sctp 9002  no  egressDeny[0]
web -> db   echo       yes egress[0]
web -> out  tcp 8080   yes egress[1]
web -> out2 tcp 8080   no  egressDeny[1]
web -> admin tcp 8080  no  default-deny-egress
",
    },
    Case {
        object: "ciliumnetworkpolicy/shop/ports",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: ports, namespace: shop}, spec: {
 endpointSelector: {matchLabels: {tier: back}}, ingress: [
  {fromEndpoints: [{matchLabels: {app: web}}], toPorts: [
   {ports: [{port: '9000', endPort: 9001, protocol: TCP}, {port: http, protocol: TCP}, {port: '8443'}]}]},
  {fromEndpoints: [{matchLabels: {app: batch}}], toPorts: [{ports: [{port: '0', protocol: UDP}]}]}]}}",
        asks: "
web   -> api tcp 9000   yes ingress[0]
web   -> api tcp 9001   yes ingress[0]
web   -> api tcp 9002   no  default-deny-ingress
web   -> api udp 9000   no  default-deny-ingress
web   -> api tcp 8443   yes ingress[0]
web   -> api udp 8443   yes ingress[0]
web   -> api sctp 8443  yes ingress[0]
web   -> api tcp 8080   yes ingress[0]
web   -> db  tcp 8080   no  default-deny-ingress
web   -> db  tcp 9100   yes ingress[0]
web   -> api echo       no  default-deny-ingress
batch -> api udp 9002   yes ingress[1]
batch -> api tcp 9002   no  default-deny-ingress
",
    },
    Case {
        object: "ciliumnetworkpolicy/shop/icmp",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: icmp, namespace: shop}, spec: {
 endpointSelector: {matchLabels: {app: api}}, ingress: [
  {fromEndpoints: [{matchLabels: {app: web}}], icmps: [{fields: [{type: 8}, {family: IPv6, type: EchoRequest}]}]},
  {fromEndpoints: [{matchLabels: {app: batch}}], icmps: [{fields: [{family: IPv4, type: EchoRequest}]}]}]}}",
        asks: "
web   -> api echo     yes ingress[0]
web   -> api tcp 8080 no  default-deny-ingress
batch -> api echo/4   yes ingress[1]
batch -> api echo/6   no  default-deny-ingress
admin -> api echo     no  default-deny-ingress
",
    },
    Case {
        // What no type that is named means: a timestamp and an address mask (RFC 792, 950), a node information query and an
        // extended echo (RFC 4620, 8335).
        object: "ciliumnetworkpolicy/shop/icmp-types",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: icmp-types, namespace: shop}, specs: [
 {endpointSelector: {matchLabels: {app: api}}, ingress: [
  {fromEndpoints: [{matchLabels: {app: web}}], icmps: [{fields: [{type: 13}, {family: IPv6, type: 139}]}]}]},
 {endpointSelector: {matchLabels: {app: db}}, egress: [{toEntities: [all]}],
  egressDeny: [{toEndpoints: [{matchLabels: {app: batch}}], icmps: [{fields: [{type: 17}, {family: IPv6, type: 160}]}]}]}]}",
        asks: "
web   -> api   icmp/4 13  yes specs[0].ingress[0]
web   -> api   icmp/6 139 yes specs[0].ingress[0]
web   -> api   icmp/4 17  no  specs[0].default-deny-ingress
web   -> api   icmp/6 160 no  specs[0].default-deny-ingress
web   -> api   echo       no  specs[0].default-deny-ingress
batch -> api   icmp/4 13  no  specs[0].default-deny-ingress
batch -> api   icmp/6 139 no  specs[0].default-deny-ingress
db    -> batch icmp/4 17  no  specs[1].egressDeny[0]
db    -> batch icmp/6 160 no  specs[1].egressDeny[0]
db    -> batch icmp/4 13  yes specs[1].egress[0]
db    -> batch echo       yes specs[1].egress[0]
",
    },
    Case {
        object: "ciliumnetworkpolicy/shop/icmp-deny",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: icmp-deny, namespace: shop}, spec: {
 endpointSelector: {matchLabels: {app: web}}, egress: [{toEntities: [all]}],
 egressDeny: [{toEndpoints: [{matchLabels: {app: api}}], icmps: [{fields: [{type: 8}, {family: IPv6, type: 128}]}]}]}}",
        asks: "
web -> api echo     no  egressDeny[0]
web -> api tcp 8080 yes egress[0]
web -> db  echo     yes egress[0]
web -> out echo     yes egress[0]
",
    },
    Case {
        object: "ciliumnetworkpolicy/shop/not-by-default",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: not-by-default, namespace: shop}, spec: {
 endpointSelector: {matchLabels: {app: api}}, enableDefaultDeny: {ingress: false},
 ingress: [{fromEndpoints: [{matchLabels: {app: web}}]}],
 ingressDeny: [{fromEntities: [world], toPorts: [{ports: [{port: '9000', endPort: 9999, protocol: ANY}]}]}]}}",
        asks: "
web   -> api tcp 8080 yes ingress[0]
batch -> api tcp 8080 yes -
out   -> api tcp 8080 yes -
out   -> api tcp 9001 no  ingressDeny[0]
out   -> api udp 9001 no  ingressDeny[0]
",
    },
    Case {
        // With it switched on, a policy without entries denies; `[{}]` lets nobody in.
        object: "ciliumnetworkpolicy/shop/by-default",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: by-default, namespace: shop}, specs: [
 {endpointSelector: {matchLabels: {app: api}}, enableDefaultDeny: {ingress: true, egress: false},
  egress: [{toEndpoints: [{matchLabels: {app: web}}]}]},
 {endpointSelector: {matchLabels: {app: db}}, ingress: [{}]}]}",
        asks: "
web -> api tcp 8080 no  specs[0].default-deny-ingress
api -> web tcp 8080 yes specs[0].egress[0]
api -> batch tcp 8080 yes -
web -> db  tcp 8080 no  specs[1].default-deny-ingress
",
    },
    Case {
        object: "ciliumnetworkpolicy/shop/services",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: services, namespace: shop}, specs: [
 {endpointSelector: {matchLabels: {app: web}}, egress: [
  {toServices: [{k8sService: {serviceName: store}}]}, {toServices: [{k8sService: {serviceName: bank, namespace: shop}}]}]},
 {endpointSelector: {matchLabels: {app: batch}}, egress: [
  {toServices: [{k8sServiceSelector: {selector: {matchLabels: {line: sales}}, namespace: shop}}]}]}]}",
        asks: "
web   -> store@api tcp 80:8080 yes specs[0].egress[0]
web   -> api  tcp 8080 yes specs[0].egress[0]
web   -> db   tcp 8080 no  specs[0].default-deny-egress
web   -> out  tcp 8080 yes specs[0].egress[1]
web   -> out2 tcp 8080 no  specs[0].default-deny-egress
batch -> store@api tcp 80:8080 yes specs[1].egress[0]
batch -> out  tcp 8080 no  specs[1].default-deny-egress
",
    },
    Case {
        object: "ciliumnetworkpolicy/shop/blocks",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: blocks, namespace: shop}, specs: [
 {endpointSelector: {matchLabels: {app: web}}, egress: [
  {toCIDRSet: [{cidr: 10.200.9.0/24, except: [10.200.9.128/25]}, {cidr: 'fd00:200::9:0/120', except: ['fd00:200::9:80/121']}]},
  {toCIDR: [10.200.9.130/32, 'fd00:200::9:82'], toPorts: [{ports: [{port: '9000', protocol: TCP}]}]}]},
 {endpointSelector: {matchLabels: {app: api}}, ingress: [
  {fromCIDRSet: [{cidr: 10.200.0.0/16, except: [10.200.9.128/25]}, {cidr: 'fd00:200::/64', except: ['fd00:200::9:80/121']}]},
  {fromCIDR: [10.200.9.130, 'fd00:200::9:82/128'], toPorts: [{ports: [{port: '9000', protocol: TCP}]}]}]}]}",
        asks: "
web  -> out  tcp 8080 yes specs[0].egress[0]
web  -> out  echo     yes specs[0].egress[0]
web  -> out2 tcp 8080 no  specs[0].default-deny-egress
web  -> out2 echo     no  specs[0].default-deny-egress
web  -> out2 tcp 9000 yes specs[0].egress[1]
web  -> db   tcp 9000 no  specs[0].default-deny-egress
out  -> api  tcp 8080 yes specs[1].ingress[0]
out2 -> api  tcp 8080 no  specs[1].default-deny-ingress
out2 -> api  tcp 9000 yes specs[1].ingress[1]
batch -> api tcp 8080 no  specs[1].default-deny-ingress
",
    },
];
