//! The table itself.

use super::{Action, Role};

/// Whether a role may take an action. Everything that is not said here is refused.
pub fn allowed(role: Role, action: Action) -> bool {
    use Action as A;
    use Role as R;
    match action {
        A::Write | A::Read | A::Backup | A::CreateToken | A::JoinMesh | A::ManageReplicas => {
            matches!(role, R::LocalRoot | R::Admin)
        }
        A::InspectAuthority | A::RotateRoot | A::EndRegistration | A::ManageAdministrators => {
            matches!(role, R::LocalRoot | R::Admin)
        }
        // Replicas ask each other for the data planes and flows that each has.
        A::Status | A::Observe | A::ClientStatus => matches!(role, R::LocalRoot | R::Admin | R::Replica),
        A::Raft => matches!(role, R::Replica),
        // The token is the proof; the certificate, if there is one, does not matter.
        A::Bootstrap | A::AcceptPeer => true,
        A::SignWorkload | A::RenewNode | A::ReportEndpoints | A::SubscribeAsNode => matches!(role, R::Node),
        A::ReportTrust => matches!(role, R::Node),
        A::SubscribeAsPeer | A::ConfirmTrust => matches!(role, R::Peer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line for each action, in the order of `Action::ALL`; columns in that of `Role::ALL`. Written out, so that a
    /// change of the rules is a change of this picture.
    #[rustfmt::skip]
    const TABLE: [(&str, &str); 23] = [
        //                   LocalRoot Replica Node Admin Workload Peer Revoked Stranger Anonymous
        ("Write",            "y         -       -    y     -        -    -       -        -"),
        ("Read",             "y         -       -    y     -        -    -       -        -"),
        ("Backup",           "y         -       -    y     -        -    -       -        -"),
        ("Status",           "y         y       -    y     -        -    -       -        -"),
        ("Observe",          "y         y       -    y     -        -    -       -        -"),
        ("ClientStatus",     "y         y       -    y     -        -    -       -        -"),
        ("CreateToken",      "y         -       -    y     -        -    -       -        -"),
        ("JoinMesh",         "y         -       -    y     -        -    -       -        -"),
        ("ManageReplicas",   "y         -       -    y     -        -    -       -        -"),
        ("Raft",             "-         y       -    -     -        -    -       -        -"),
        ("Bootstrap",        "y         y       y    y     y        y    y       y        y"),
        ("AcceptPeer",       "y         y       y    y     y        y    y       y        y"),
        ("SignWorkload",     "-         -       y    -     -        -    -       -        -"),
        ("RenewNode",        "-         -       y    -     -        -    -       -        -"),
        ("ReportTrust",      "-         -       y    -     -        -    -       -        -"),
        ("ReportEndpoints",  "-         -       y    -     -        -    -       -        -"),
        ("SubscribeAsNode",  "-         -       y    -     -        -    -       -        -"),
        ("SubscribeAsPeer",  "-         -       -    -     -        y    -       -        -"),
        ("ConfirmTrust",     "-         -       -    -     -        y    -       -        -"),
        ("InspectAuthority", "y         -       -    y     -        -    -       -        -"),
        ("RotateRoot",       "y         -       -    y     -        -    -       -        -"),
        ("EndRegistration",  "y         -       -    y     -        -    -       -        -"),
        ("ManageAdministrators", "y     -       -    y     -        -    -       -        -"),
    ];

    #[test]
    fn every_cell_is_as_it_is_written_here() {
        assert_eq!(TABLE.len(), Action::ALL.len());
        for (action, (name, line)) in Action::ALL.into_iter().zip(TABLE) {
            assert_eq!(format!("{action:?}"), name);
            let cells: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(cells.len(), Role::ALL.len(), "{name}");
            for (role, cell) in Role::ALL.into_iter().zip(cells) {
                assert!(matches!(cell, "y" | "-"), "{name}: {cell}");
                assert_eq!(allowed(role, action), cell == "y", "{role:?} {action:?}");
            }
        }
    }
}
