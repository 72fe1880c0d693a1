//! Entities. `db` runs beside the gateway, so that the other node is `n2` to it; `api` runs on that one, and knows `n1` as
//! the gateway. By IPv4 a pod beside the gateway sees its own node as the gateway: it is both.

use crate::case::Case;

pub const CASES: &[Case] = &[
    Case {
        object: "ciliumnetworkpolicy/shop/world",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: world, namespace: shop}, specs: [
 {endpointSelector: {matchLabels: {app: db}}, ingress: [{fromEntities: [world]}]},
 {endpointSelector: {matchLabels: {app: web}}, egress: [{toEntities: [world]}]},
 {endpointSelector: {matchLabels: {app: api}}, ingress: [{fromEntities: [world-ipv4]}]},
 {endpointSelector: {matchLabels: {app: batch}}, ingress: [{fromEntities: [world-ipv6]}]}]}",
        asks: "
out   -> db  tcp 8080   yes specs[0].ingress[0]
out   -> db  echo       yes specs[0].ingress[0]
api   -> db  tcp 8080   no  specs[0].default-deny-ingress
n2    -> db  tcp 8080   no  specs[0].default-deny-ingress
n1    -> db  tcp 8080   yes own-node
web   -> out tcp 8080   yes specs[1].egress[0]
web   -> admin tcp 8080 no  specs[1].default-deny-egress
web   -> n2  tcp 8080   no  specs[1].default-deny-egress
out   -> api tcp/4 8080 yes specs[2].ingress[0]
out   -> api tcp/6 8080 no  specs[2].default-deny-ingress
out   -> batch tcp/6 8080 yes specs[3].ingress[0]
out   -> batch tcp/4 8080 no  specs[3].default-deny-ingress
",
    },
    Case {
        object: "ciliumnetworkpolicy/shop/cluster",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: cluster, namespace: shop}, specs: [
 {endpointSelector: {matchLabels: {app: db}}, ingress: [{fromEntities: [cluster]}]},
 {endpointSelector: {matchLabels: {app: web}}, egress: [{toEntities: [cluster]}]}]}",
        asks: "
api   -> db  tcp 8080 yes specs[0].ingress[0]
admin -> db  tcp 8080 yes specs[0].ingress[0]
n2    -> db  tcp 8080 yes specs[0].ingress[0]
out   -> db  tcp 8080 no  specs[0].default-deny-ingress
web   -> api tcp 8080 yes specs[1].egress[0]
web   -> n2  tcp 8080 yes specs[1].egress[0]
web   -> out tcp 8080 no  specs[1].default-deny-egress
",
    },
    Case {
        object: "ciliumnetworkpolicy/shop/mesh",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: mesh, namespace: shop}, specs: [
 {endpointSelector: {matchLabels: {app: db}}, ingress: [{fromEntities: [mesh]}]},
 {endpointSelector: {matchLabels: {app: web}}, egress: [{toEntities: [mesh]}]}]}",
        asks: "
api   -> db  tcp 8080 yes specs[0].ingress[0]
admin -> db  tcp 8080 yes specs[0].ingress[0]
n2    -> db  tcp 8080 no  specs[0].default-deny-ingress
out   -> db  tcp 8080 no  specs[0].default-deny-ingress
web   -> admin tcp 8080 yes specs[1].egress[0]
web   -> n2  tcp 8080 no  specs[1].default-deny-egress
web   -> out tcp 8080 no  specs[1].default-deny-egress
",
    },
    Case {
        object: "ciliumnetworkpolicy/shop/remote-node",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: remote-node, namespace: shop}, specs: [
 {endpointSelector: {matchLabels: {app: db}}, ingress: [{fromEntities: [remote-node]}]},
 {endpointSelector: {matchLabels: {app: web}}, egress: [{toEntities: [remote-node]}]},
 {endpointSelector: {matchLabels: {app: tried}}, egressDeny: [{toEntities: [remote-node]}]}]}",
        asks: "
n2    -> db  tcp 8080 yes specs[0].ingress[0]
n2    -> db  echo     yes specs[0].ingress[0]
api   -> db  tcp 8080 no  specs[0].default-deny-ingress
out   -> db  tcp 8080 no  specs[0].default-deny-ingress
web   -> n2  tcp 8080 yes specs[1].egress[0]
web   -> n1  tcp 8080 yes own-node
web   -> api tcp 8080 no  specs[1].default-deny-egress
tried -> n2  tcp 8080 audit specs[2].egressDeny[0]
",
    },
    Case {
        // Its own node gets to a workload in any case, unless it is denied.
        object: "ciliumnetworkpolicy/shop/host",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: host, namespace: shop}, specs: [
 {endpointSelector: {matchLabels: {app: api}}, ingress: [{fromEntities: [host]}]},
 {endpointSelector: {matchLabels: {app: batch}}, ingressDeny: [{fromEntities: [host]}], egressDeny: [{toEntities: [host]}]},
 {endpointSelector: {matchLabels: {app: db}}, enableDefaultDeny: {ingress: false}, ingressDeny: [{fromEntities: [health]}]}]}",
        asks: "
n2    -> api   tcp 8080 yes own-node
web   -> api   tcp 8080 no  specs[0].default-deny-ingress
out   -> api   tcp 8080 no  specs[0].default-deny-ingress
n2    -> batch tcp 8080 no  specs[1].ingressDeny[0]
n2    -> batch echo     no  specs[1].ingressDeny[0]
web   -> batch tcp 8080 no  specs[1].default-deny-ingress
batch -> n2    tcp 8080 no  specs[1].egressDeny[0]
n1    -> db    tcp 8080 no  specs[2].ingressDeny[0]
n2    -> db    tcp 8080 yes -
",
    },
    Case {
        object: "ciliumnetworkpolicy/shop/all",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: all, namespace: shop}, specs: [
 {endpointSelector: {matchLabels: {app: api}}, ingress: [{fromEntities: [all], toPorts: [{ports: [{port: '8080'}]}]}]},
 {endpointSelector: {matchLabels: {app: db}}, ingressDeny: [{fromEntities: [all], toPorts: [{ports: [{port: '9000'}]}]}]}]}",
        asks: "
web   -> api tcp 8080 yes specs[0].ingress[0]
out   -> api tcp 8080 yes specs[0].ingress[0]
n1    -> api tcp 8080 yes specs[0].ingress[0]
out   -> api tcp 9000 no  specs[0].default-deny-ingress
web   -> db  tcp 9000 no  specs[1].ingressDeny[0]
out   -> db  tcp 9000 no  specs[1].ingressDeny[0]
n1    -> db  tcp 9000 no  specs[1].ingressDeny[0]
web   -> db  tcp 9001 no  specs[1].default-deny-ingress
",
    },
    Case {
        object: "ciliumnetworkpolicy/shop/unmanaged",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: unmanaged, namespace: shop}, specs: [
 {endpointSelector: {matchLabels: {app: db}}, ingress: [{fromEntities: [unmanaged]}]},
 {endpointSelector: {matchLabels: {app: web}}, egress: [{toEntities: [unmanaged]}]}]}",
        asks: "
stray -> db    tcp 8080 yes specs[0].ingress[0]
stray -> db    echo     yes specs[0].ingress[0]
api   -> db    tcp 8080 no  specs[0].default-deny-ingress
n2    -> db    tcp 8080 no  specs[0].default-deny-ingress
out   -> db    tcp 8080 no  specs[0].default-deny-ingress
web   -> stray tcp 8080 yes specs[1].egress[0]
web   -> api   tcp 8080 no  specs[1].default-deny-egress
web   -> n2    tcp 8080 no  specs[1].default-deny-egress
web   -> out   tcp 8080 no  specs[1].default-deny-egress
",
    },
    Case {
        object: "ciliumnetworkpolicy/shop/servers",
        yaml: "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: servers, namespace: shop}, specs: [
 {endpointSelector: {matchLabels: {app: web}}, egress: [{toEntities: [kube-apiserver]}]},
 {endpointSelector: {matchLabels: {app: batch}}, ingress: [{fromEntities: [kube-apiserver]}]},
 {endpointSelector: {matchLabels: {app: api}}, ingress: [{fromEntities: [ingress]}]},
 {endpointSelector: {matchLabels: {app: db}}, ingress: [{fromEntities: [init, none]}]}]}",
        asks: "
web   -> out2  tcp 8443 yes specs[0].egress[0]
web   -> out   tcp 8443 no  specs[0].default-deny-egress
out2  -> batch tcp 8080 yes specs[1].ingress[0]
out   -> batch tcp 8080 no  specs[1].default-deny-ingress
n1    -> api   tcp/4 8080 yes specs[2].ingress[0]
batch -> api   tcp 8080 no  specs[2].default-deny-ingress
batch -> db    tcp 8080 no  specs[3].default-deny-ingress
out   -> db    tcp 8080 no  specs[3].default-deny-ingress
",
    },
];
