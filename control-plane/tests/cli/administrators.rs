//! An administrator who comes from another machine: with a certificate, by the mesh door, until it is withdrawn.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use mesh_tls::{
    ALPN_H2, Identity, PeerPolicy, TrustBundles, certified, client_config, grpc, peer_spiffe_id, pem,
    shared_bundles, shared_identity,
};
use tonic::{Code, transport::Channel};
use xds_proto::isthmus::admin::v1::{WatchRequest, admin_client::AdminClient};

use crate::process::{PATIENCE, Replica, Typed, WEST, apply, three, until};

/// What is typed on a machine that has the folder and no socket.
async fn from_afar(by: &Replica, to: &Replica, credentials: &Path, line: &str) -> Typed {
    let flags = format!("--socket /nonexistent/admin.sock --server https://{}", to.address());
    by.types(&format!("{flags} --credentials {} {line}", credentials.display())).await
}

/// A connection as the command line makes it.
async fn connect(to: &Replica, credentials: &Path) -> Channel {
    let read = |name: &str| fs::read_to_string(credentials.join(name)).unwrap();
    let chain = pem::read_certificates(&read("tls.crt")).unwrap();
    let domain = peer_spiffe_id(&chain).unwrap().trust_domain().clone();
    let key = pem::read_private_key(&read("tls.key")).unwrap();
    let mut bundles = TrustBundles::new();
    bundles.insert(domain.clone(), pem::read_certificates(&read("ca.crt")).unwrap()).unwrap();
    let identity = shared_identity(Some(certified(Identity { chain, key }).unwrap()));
    let policy = PeerPolicy::Replicas(domain);
    let tls = client_config(Some(identity), shared_bundles(bundles), policy, &[ALPN_H2]).unwrap();
    grpc::connect(&to.address(), tls, "replica.isthmus").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_administrator_works_from_afar_at_any_replica_until_the_certificate_is_withdrawn() {
    let all = three(&[]).await;
    let (kim, lee) = (all[0].path("kim"), all[0].path("lee"));
    let typed = all[0].types(&format!("admin create kim --ttl 1h --out {}", kim.display())).await.ends(0);
    assert!(typed.out.starts_with("administrator/kim created: certificate 1, until "), "{typed:#?}");
    assert!(typed.err.contains(&format!("--server {}", all[0].address())), "{typed:#?}");
    assert_eq!(fs::metadata(kim.join("tls.key")).unwrap().permissions().mode() & 0o777, 0o600);
    let again = all[0].types(&format!("admin create kim --out {}", kim.display())).await.ends(1);
    again.complains(&["tls.key", "--force"]);

    // At every replica, reading and writing; who it was is in the log.
    apply(&all[0].socket(), "there").await.unwrap();
    for replica in &all {
        // A linearizable read: this replica has the certificate's record from then on.
        replica.types("admin list").await.ends(0);
        let listed = from_afar(&all[0], replica, &kim, "get svc -n shop -o name").await.ends(0);
        assert_eq!(listed.out, "service/there\n");
    }
    from_afar(&all[0], &all[1], &kim, "delete svc there -n shop").await.ends(0);
    assert!(all[1].said().contains("caller=administrator kim"), "{}", all[1].said());
    assert!(all[0].said().contains("signed an administrator's certificate"));

    // One administrator makes another, and that is written down.
    let create = format!("admin create lee --out {}", lee.display());
    from_afar(&all[0], &all[1], &kim, &create).await.ends(0);
    let rows = all[2].types("admin list").await.ends(0).rows("NAME");
    let askers: Vec<_> = rows.iter().map(|row| (row["NAME"].as_str(), row["ASKED-BY"].as_str())).collect();
    assert_eq!(askers, [("kim", "the local administrator"), ("lee", "administrator kim")]);

    // Withdrawn: at once at the door that was asked, on a connection that stands, and its open streams end.
    let mut standing = AdminClient::new(connect(&all[1], &kim).await);
    let watch = WatchRequest { kind: "all".to_owned(), ..Default::default() };
    let mut watching = standing.watch(watch.clone()).await.unwrap().into_inner();
    let revoked = from_afar(&all[0], &all[1], &lee, "admin revoke kim").await.ends(0);
    assert_eq!(revoked.out, "administrator/kim revoked: 1 certificate\n");
    assert!(revoked.err.contains("for lee"), "what kim had made for others is named: {revoked:#?}");
    let end = async {
        loop {
            match watching.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended without a word"),
                Err(status) => return status,
            }
        }
    };
    let end = tokio::time::timeout(PATIENCE, end).await.unwrap();
    assert_eq!(end.code(), Code::PermissionDenied, "{end}");
    let refused = standing.watch(watch).await.unwrap_err();
    assert!(refused.message().contains("administrator kim, whose certificate was withdrawn"), "{refused}");
    for replica in &all {
        let typed = loop {
            // Another replica may hear of it a moment later.
            let typed = from_afar(&all[0], replica, &kim, "status").await;
            if typed.code != 0 {
                break typed;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        typed.ends(1).complains(&["administrator kim", "was withdrawn"]);
        from_afar(&all[0], replica, &lee, "status").await.ends(0);
    }
    all[0].types("admin revoke kim").await.ends(3).complains(&["kim", "admin list"]);
    let states: Vec<_> =
        all[2].types("admin list").await.rows("NAME").iter().map(|r| r["STATE"].clone()).collect();
    assert_eq!(states, ["withdrawn by administrator lee", "good"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_administrator_lacks_is_said_before_anything_is_asked() {
    let west = Replica::first_start(&WEST, None);
    until(&west.socket(), "it leads", |status| status.leader == 1).await;
    let door = west.address();
    west.types(&format!("--server {door} status"))
        .await
        .ends(64)
        .complains(&["--credentials", "admin create"]);
    let nowhere = west.path("nobody");
    from_afar(&west, &west, &nowhere, "status").await.ends(1).complains(&["nobody/tls.crt"]);
    for (line, code, words) in [
        ("admin create kim/../lee", 1, "administrator.name"),
        ("admin create kim --ttl 31d", 1, "30 days"),
        ("admin create kim --ttl 1ms", 64, "--ttl"),
    ] {
        west.types(&format!("{line} --out {}", nowhere.display())).await.ends(code).complains(&[words]);
    }
    assert!(!nowhere.exists(), "nothing is left behind where nothing was signed");
    // A certificate whose time is over is not shown to anybody.
    let short = west.path("short");
    west.types(&format!("admin create kim --ttl 1s --out {}", short.display())).await.ends(0);
    loop {
        let typed = from_afar(&west, &west, &short, "status").await;
        // The replica may refuse it a moment before the command does without asking.
        if typed.err.contains("admin create") {
            break typed.ends(1).complains(&["ended"]);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
