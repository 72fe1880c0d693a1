//! What a rotation of the root waits for, and what comes next. PURE: the whole answer is in the state and the clock,
//! so that any leader goes on where the last one stopped.

use crate::{Authority, Member, Phase, Rotation, State};

/// What is to be done about a rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// There is none.
    Idle,
    /// These have not confirmed the phase.
    Wait(Vec<Member>),
    /// Everybody has, or nobody else is waited for.
    EndPhase(Phase),
}

/// What is to be done about the rotation in a state.
pub fn next_step(state: &State, now_unix: u64) -> Next {
    let Some(rotation) = &state.authority.rotation else { return Next::Idle };
    let missing = missing(state, rotation);
    // A replica is always waited for: without a certificate that the others accept it could not come back.
    let essential = |member: &Member| matches!(member, Member::Replica(_));
    let enough = if missing.iter().any(essential) {
        false
    } else {
        missing.is_empty()
            || rotation.skip_unconfirmed
            || (rotation.phase == Phase::Reissuing
                && (rotation.retire_now || all_have_ended(&state.authority, rotation, now_unix)))
    };
    if enough { Next::EndPhase(rotation.phase) } else { Next::Wait(missing) }
}

/// Whoever has not confirmed the phase.
pub fn missing(state: &State, rotation: &Rotation) -> Vec<Member> {
    let replicas = state.replicas.keys().map(|id| Member::Replica(*id));
    let nodes = state.nodes.keys().cloned().map(Member::Node);
    let peers = state.peers.keys().cloned().map(Member::Peer);
    let concerned: Vec<Member> = match rotation.phase {
        Phase::Preparing => replicas.chain(nodes).chain(peers).collect(),
        Phase::Activating => replicas.collect(),
        Phase::Reissuing => replicas.chain(nodes).collect(),
    };
    let confirmed = |member: &Member| {
        let Some(told) = state.authority.confirmation(member) else { return false };
        let trusts = told.generation >= rotation.generation;
        match rotation.phase {
            Phase::Preparing => trusts,
            Phase::Activating | Phase::Reissuing => trusts && told.under == rotation.to,
        }
    };
    concerned.into_iter().filter(|member| !confirmed(member)).collect()
}

/// Whether every certificate that was signed before the phase has ended by now.
fn all_have_ended(authority: &Authority, rotation: &Rotation, now_unix: u64) -> bool {
    let longest = authority.longest_leaf_seconds();
    longest > 0 && now_unix >= rotation.since_unix.saturating_add(longest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Confirmation, IssuerRecord, fixtures::populated};

    const OLD: &str = "old";
    const NEW: &str = "new";

    /// Replica 1, node n1, peer east.
    fn rotating(phase: Phase) -> State {
        let mut state = populated();
        state.authority.rotation = Some(Rotation {
            number: 1,
            to: NEW.to_owned(),
            phase,
            since_unix: 1_000,
            generation: 7,
            skip_unconfirmed: false,
            retire_now: false,
        });
        state
    }

    fn confirm(state: &mut State, member: Member, generation: u64, under: &str) {
        let confirmation = Confirmation { generation, under: under.to_owned() };
        state.authority.set_confirmation(&member, Some(confirmation));
    }

    fn members() -> [Member; 3] {
        [Member::Replica(1), Member::Node("n1".into()), Member::Peer("east".into())]
    }

    #[test]
    fn nothing_is_done_without_a_rotation() {
        assert_eq!(next_step(&populated(), 0), Next::Idle);
    }

    #[test]
    fn preparing_waits_until_everybody_trusts_the_new_root() {
        let mut state = rotating(Phase::Preparing);
        for (at, member) in members().into_iter().enumerate() {
            assert_eq!(next_step(&state, 0), Next::Wait(members()[at..].to_vec()));
            confirm(&mut state, member.clone(), 6, OLD);
            assert_eq!(next_step(&state, 0), Next::Wait(members()[at..].to_vec()), "{member} is behind");
            confirm(&mut state, member, 7, OLD);
        }
        assert_eq!(next_step(&state, 0), Next::EndPhase(Phase::Preparing));
    }

    #[test]
    fn activating_waits_for_the_issuers_of_all_replicas() {
        let mut state = rotating(Phase::Activating);
        confirm(&mut state, Member::Replica(1), 7, OLD);
        assert_eq!(next_step(&state, 0), Next::Wait(vec![Member::Replica(1)]));
        confirm(&mut state, Member::Replica(1), 7, NEW);
        assert_eq!(next_step(&state, 0), Next::EndPhase(Phase::Activating));
    }

    #[test]
    fn the_old_root_goes_when_nothing_chains_to_it_or_everything_under_it_has_ended() {
        let mut state = rotating(Phase::Reissuing);
        confirm(&mut state, Member::Replica(1), 7, NEW);
        confirm(&mut state, Member::Node("n1".into()), 7, "");
        let wait = Next::Wait(vec![Member::Node("n1".into())]);
        assert_eq!(next_step(&state, 1_000), wait);
        state.authority.issuers.insert(
            1,
            IssuerRecord {
                serial: String::new(),
                root: NEW.to_owned(),
                not_before_unix: 0,
                not_after_unix: 0,
                leaf_seconds: 500,
            },
        );
        assert_eq!(next_step(&state, 1_499), wait);
        assert_eq!(next_step(&state, 1_500), Next::EndPhase(Phase::Reissuing));
        confirm(&mut state, Member::Node("n1".into()), 7, NEW);
        assert_eq!(next_step(&state, 1_000), Next::EndPhase(Phase::Reissuing));
    }

    #[test]
    fn haste_skips_nodes_and_peers_but_never_a_replica() {
        let mut state = rotating(Phase::Preparing);
        let hurry = |state: &mut State, phase, skip, retire| {
            let rotation = state.authority.rotation.as_mut().unwrap();
            (rotation.phase, rotation.skip_unconfirmed, rotation.retire_now) = (phase, skip, retire);
        };
        hurry(&mut state, Phase::Preparing, true, true);
        assert_eq!(next_step(&state, 0), Next::Wait(members().to_vec()));
        confirm(&mut state, Member::Replica(1), 7, NEW);
        assert_eq!(next_step(&state, 0), Next::EndPhase(Phase::Preparing));
        hurry(&mut state, Phase::Preparing, false, true);
        assert_eq!(
            next_step(&state, 0),
            Next::Wait(members()[1..].to_vec()),
            "retiring early skips no trust"
        );
        hurry(&mut state, Phase::Reissuing, false, true);
        assert_eq!(next_step(&state, 0), Next::EndPhase(Phase::Reissuing));
    }
}
