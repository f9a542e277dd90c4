//! What an agent remembers: a ring of steps, the oldest of which are forgotten.

use fewbits_train::random::Random;
use std::collections::VecDeque;

/// Numbers that describe where the agent is.
pub const STATE: usize = 10;

/// A step. The state that it led to is that of the next one in the ring.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Where the agent was.
    pub state: [f32; STATE],
    /// What it did.
    pub action: f32,
    /// What came of it.
    pub reward: f32,
    /// Whether it was the last of its episode. The one behind it only stands for the state that it led to.
    pub done: bool,
}

/// The ring.
#[derive(Debug)]
pub struct Replay {
    steps: VecDeque<Step>,
    most: usize,
    /// Whether the oldest one only stands for a state.
    stands_in: bool,
}

impl Replay {
    /// Remembers `most` steps.
    pub fn new(most: usize) -> Self {
        Replay { steps: VecDeque::with_capacity(most), most, stands_in: false }
    }

    /// Adds a step.
    pub fn push(&mut self, step: Step) {
        if self.steps.len() == self.most {
            self.stands_in = self.steps.pop_front().is_some_and(|step| step.done);
        }
        self.steps.push_back(step);
    }

    /// `count` steps with the states that they led to, different ones if there are enough. What only stands for a state is
    /// drawn again. Empty if there are not two real steps.
    pub fn sample(&self, count: usize, random: &mut Random) -> Vec<(Step, [f32; STATE])> {
        let candidates = self.steps.len().saturating_sub(1);
        let real = |&i: &usize| if i == 0 { !self.stands_in } else { !self.steps[i - 1].done };
        if (0..candidates).filter(real).take(2).count() < 2 {
            return vec![];
        }
        let mut drawn = vec![false; candidates];
        let mut indices: Vec<usize> = Vec::with_capacity(count);
        while indices.len() < count {
            let i = random.below(candidates);
            if candidates < count || !std::mem::replace(&mut drawn[i], true) {
                indices.push(i);
            }
        }
        let mut step = |mut i: usize| {
            while !real(&i) {
                i = random.below(candidates);
            }
            (self.steps[i], self.steps[i + 1].state)
        };
        indices.into_iter().map(&mut step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn step(n: usize, done: bool) -> Step {
        Step { state: [n as f32; STATE], action: 0.0, reward: n as f32, done }
    }

    #[test]
    fn draws_what_it_remembers_with_what_came_next_and_no_stand_ins() {
        (203..207).for_each(draws_from_the_last_fifty_of);
    }

    fn draws_from_the_last_fifty_of(pushed: usize) {
        let mut replay = Replay::new(50);
        // Episodes of three steps and a stand-in.
        (0..pushed).for_each(|n| replay.push(step(n, n % 4 == 2)));
        let mut random = Random::new(1);
        let mut counts = BTreeMap::new();
        for _ in 0..1000 {
            let drawn = replay.sample(16, &mut random);
            assert_eq!(drawn.len(), 16);
            for (step, next) in drawn {
                assert_eq!(next[0], step.reward + 1.0);
                *counts.entry(step.reward as usize).or_insert(0) += 1;
            }
        }
        // The last one has no next.
        let expected: Vec<usize> = (pushed - 50..pushed - 1).filter(|n| n % 4 != 3).collect();
        assert_eq!(counts.keys().copied().collect::<Vec<_>>(), expected);
        let mean = 16_000 / expected.len();
        assert!(counts.values().all(|&count| (mean * 4 / 5..mean * 5 / 4).contains(&count)), "{counts:?}");
    }

    #[test]
    fn a_short_memory_repeats_itself() {
        let mut replay = Replay::new(50);
        let mut random = Random::new(1);
        (0..2).for_each(|n| replay.push(step(n, false)));
        assert_eq!(replay.sample(4, &mut random), []);
        replay.push(step(2, true));
        assert_eq!(replay.sample(4, &mut random).len(), 4);
    }
}
