//! The story that the demo tells and that the integration test asserts: one list of steps, each with its proof.

mod control_plane_only;
mod full;
mod world;

use std::time::{Duration, Instant};

use anyhow::Result;
pub use control_plane_only::{Loopback, steps as control_plane_only};
pub use full::steps as full;
pub use world::{PodOf, World, add_pods};

/// One step: it either proves its title or says why not.
#[derive(Debug, Clone, Copy)]
pub struct Step<W> {
    /// A sentence, in the present tense.
    pub title: &'static str,
    /// Whether the later steps make sense when this one has failed.
    pub vital: bool,
    /// Does it, and returns the lines that prove it.
    pub run: fn(&mut W, &dyn Narrator) -> Result<Vec<String>>,
}

/// How a step ended.
#[derive(Debug)]
pub enum Outcome {
    /// What proved it.
    Proved(Vec<String>),
    /// Why it failed.
    Failed(String),
    /// A vital step before it failed.
    NotRun,
}

/// A step that has ended.
#[derive(Debug)]
pub struct Told {
    /// The step's title.
    pub title: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

impl Told {
    /// Did it prove what it says?
    pub fn proved(&self) -> bool {
        matches!(self.outcome, Outcome::Proved(_))
    }
}

/// Who is told how the story goes.
pub trait Narrator: Sync {
    /// A step begins; `number` counts from 1.
    fn begins(&self, number: usize, of: usize, title: &str);
    /// What a slow step is doing.
    fn progress(&self, doing: &str);
    /// A step has ended.
    fn ended(&self, told: &Told);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Narrator for Silent {
    fn begins(&self, _: usize, _: usize, _: &str) {}
    fn progress(&self, _: &str) {}
    fn ended(&self, _: &Told) {}
}

/// On standard output, so that a failed test shows how far the story came.
#[derive(Debug, Clone, Copy)]
pub struct Printed;

impl Narrator for Printed {
    fn begins(&self, number: usize, of: usize, title: &str) {
        println!("[{number}/{of}] {title}");
    }
    fn progress(&self, doing: &str) {
        println!("    {doing}");
    }
    fn ended(&self, told: &Told) {
        println!("    {:?} {:?}", told.outcome, told.took);
    }
}

/// Runs the steps in order. A failed step that is not vital does not keep the later ones from running.
pub fn tell<W>(steps: &[Step<W>], world: &mut W, narrator: &dyn Narrator) -> Vec<Told> {
    let mut told = Vec::with_capacity(steps.len());
    let mut over = false;
    for (at, step) in steps.iter().enumerate() {
        narrator.begins(at + 1, steps.len(), step.title);
        let start = Instant::now();
        let outcome = if over {
            Outcome::NotRun
        } else {
            match (step.run)(world, narrator) {
                Ok(proof) => Outcome::Proved(proof),
                Err(error) => {
                    over = step.vital;
                    Outcome::Failed(format!("{error:#}"))
                }
            }
        };
        let one = Told { title: step.title, outcome, took: start.elapsed() };
        narrator.ended(&one);
        told.push(one);
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine(_: &mut (), _: &dyn Narrator) -> Result<Vec<String>> {
        Ok(vec!["proof".into()])
    }

    fn broken(_: &mut (), _: &dyn Narrator) -> Result<Vec<String>> {
        anyhow::bail!("broken")
    }

    #[test]
    fn nothing_runs_after_a_vital_step_has_failed_and_everything_after_another_one() {
        let steps = |vital| {
            [
                Step { title: "a", vital, run: broken as fn(&mut (), &dyn Narrator) -> _ },
                Step { title: "b", vital: false, run: fine },
            ]
        };
        let told = tell(&steps(true), &mut (), &Silent);
        assert!(matches!(told[1].outcome, Outcome::NotRun));
        let told = tell(&steps(false), &mut (), &Silent);
        assert!(!told[0].proved() && told[1].proved());
    }
}
