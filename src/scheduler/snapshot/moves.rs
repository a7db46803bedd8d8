//! The last comings and goings of pods, so that who has counted once need not count again.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::pod::PodInfo;

/// Moves that are kept for each node, and at least and at most in all. Who is further behind
/// counts everything anew, which is little in a small cluster; and what is kept holds pods
/// that may be long gone.
const MOVES_PER_NODE: usize = 4;
const MOVES_MIN: usize = 64;
const MOVES_MAX: usize = 4_096;

/// A pod that came to a node (1) or left it (-1).
#[derive(Debug)]
pub struct Move {
    pub pod: Arc<PodInfo>,
    /// The node's position.
    pub at: usize,
    pub by: i64,
}

#[derive(Debug, Default)]
pub struct Moves {
    held: VecDeque<Move>,
    /// How many there were before those that are held.
    forgotten: u64,
}

impl Moves {
    /// How many there were in all.
    pub fn count(&self) -> u64 {
        self.forgotten + self.held.len() as u64
    }

    /// Those after the first `seen`; None where some of them are forgotten.
    pub fn after(&self, seen: u64) -> Option<impl Iterator<Item = &Move>> {
        let skipped = usize::try_from(seen.checked_sub(self.forgotten)?).ok()?;
        Some(self.held.range(skipped.min(self.held.len())..))
    }

    pub(super) fn push(&mut self, step: Move, nodes: usize) {
        let most = (nodes * MOVES_PER_NODE).clamp(MOVES_MIN, MOVES_MAX);
        while self.held.len() >= most {
            self.held.pop_front();
            self.forgotten += 1;
        }
        self.held.push_back(step);
    }

    /// Positions have changed: nobody can go on from here.
    pub(super) fn clear(&mut self) {
        self.forgotten = self.count() + 1;
        self.held.clear();
    }
}
