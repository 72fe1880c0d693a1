//! States as bytes: what a snapshot and a backup hold.

use mesh_model::compile::compile;

pub(crate) fn snapshot(bytes: &[u8]) {
    let Ok(state) = mesh_store::decode(bytes) else { return };
    let written = mesh_store::encode(&state).expect("a state has a form as bytes");
    let again = mesh_store::decode(&written).expect("what it writes is a state");
    assert_eq!(again, state, "a state changes by being written and read");
    if let Some(input) = state.input() {
        let _ = compile(&input);
    }
}
