//! The compiler that remembers: of a new state it compiles what changed.

use std::sync::Arc;

use super::{Input, MeshModel, ModelDiff, compile, diff};

/// Compiles one state after the other. Equal to [`compile`] at every step, whatever came before.
#[derive(Debug, Default)]
pub struct Compiler {
    last: Option<Arc<MeshModel>>,
}

impl Compiler {
    /// The mesh of this state, and what is different from the state before. The first time everything is.
    pub fn compile(&mut self, input: Input) -> (Arc<MeshModel>, ModelDiff) {
        let model = Arc::new(compile(&input));
        let changes = match &self.last {
            Some(last) => diff(last, &model),
            None => diff::all(&model),
        };
        self.last = Some(model.clone());
        (model, changes)
    }
}
