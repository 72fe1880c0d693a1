//! The table itself.

use super::{Action, Role};

/// Whether a role may take an action. Everything that is not said here is refused.
pub fn allowed(role: Role, action: Action) -> bool {
    use Action as A;
    use Role as R;
    match action {
        A::Write | A::Read | A::CreateToken | A::JoinMesh => matches!(role, R::LocalRoot | R::Admin),
        // Replicas ask each other for the data planes and flows that each has.
        A::Status | A::Observe => matches!(role, R::LocalRoot | R::Admin | R::Replica),
        A::Raft => matches!(role, R::Replica),
        // The token is the proof; the certificate, if there is one, does not matter.
        A::Bootstrap | A::AcceptPeer => true,
        A::SignWorkload | A::RenewNode | A::ReportEndpoints | A::SubscribeAsNode => matches!(role, R::Node),
        A::SubscribeAsPeer => matches!(role, R::Peer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows in the order of `Role::ALL`, columns in that of `Action::ALL`: written out so that a change of
    /// the rules is a change of this picture.
    const TABLE: [(&str, &str); 8] = [
        //            Write Read Status Observe CreateToken JoinMesh Raft Bootstrap AcceptPeer Sign Renew Report AsNode AsPeer
        (
            "LocalRoot",
            "y    y    y      y       y           y        -    y         y          -    -     -      -      -",
        ),
        (
            "Replica",
            "  -    -    y      y       -           -        y    y         y          -    -     -      -      -",
        ),
        (
            "Node",
            "     -    -    -      -       -           -        -    y         y          y    y     y      y      -",
        ),
        (
            "Admin",
            "    y    y    y      y       y           y        -    y         y          -    -     -      -      -",
        ),
        (
            "Workload",
            " -    -    -      -       -           -        -    y         y          -    -     -      -      -",
        ),
        (
            "Peer",
            "     -    -    -      -       -           -        -    y         y          -    -     -      -      y",
        ),
        (
            "Stranger",
            " -    -    -      -       -           -        -    y         y          -    -     -      -      -",
        ),
        (
            "Anonymous",
            "-    -    -      -       -           -        -    y         y          -    -     -      -      -",
        ),
    ];

    #[test]
    fn every_role_may_do_what_its_row_says_and_nothing_else() {
        for (role, (name, row)) in Role::ALL.into_iter().zip(TABLE) {
            assert_eq!(format!("{role:?}"), name);
            let cells: Vec<&str> = row.split_whitespace().collect();
            assert_eq!(cells.len(), Action::ALL.len(), "{name}");
            for (action, cell) in Action::ALL.into_iter().zip(cells) {
                assert_eq!(allowed(role, action), cell == "y", "{role:?} {action:?}");
            }
        }
    }
}
