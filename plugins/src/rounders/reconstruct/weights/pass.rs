//! One step of AdaRound's optimiser on a whole weight: V, its moments, and the soft weight of the new V.
//!
//! On the CPU it is one pass over memory ([`super::kernel`]), elsewhere a compiled graph ([`super::graph`]).

use mlx_host::on_cpu;
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::transforms::compile::compile;
use taq_core::Result;

use super::super::adam::Adam;
use super::{graph, kernel};

/// What an iteration applies to all layers.
#[derive(Debug, Clone, Copy)]
pub(in crate::rounders) struct Step {
    /// From 1.
    pub(in crate::rounders) iteration: usize,
    /// Learning rate.
    pub(in crate::rounders) lr: f32,
    /// Regulariser's weight, 0 during the warm-up.
    pub(in crate::rounders) lambda: f32,
    /// Regulariser's exponent.
    pub(in crate::rounders) beta: f32,
}

/// What stays the same: arrays are `[groups, weights of a group]`, or `[groups, 1]`.
#[derive(Clone)]
pub(super) struct Frame {
    /// ⌊W/s⌋ + z, i16. Where it is below qmin or not below qmax, both neighbours are clamped to the same point, and
    /// there is nothing to learn.
    pub(super) base: Array,
    /// Step sizes and zero points, f32.
    pub(super) scale: Array,
    pub(super) zero: Array,
    /// The grid's range.
    pub(super) low: f32,
    pub(super) high: f32,
}

/// What changes, `[groups, weights of a group]`.
#[derive(Clone)]
pub(super) struct State {
    pub(super) v: Array,
    /// Adam's mean of gradients and of their squares.
    pub(super) first: Array,
    pub(super) second: Array,
    /// Soft weights of this V.
    pub(super) soft: Array,
}

/// The numbers of one step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    pub(super) adam: Adam,
    /// One over the typical size of the loss' gradient with respect to h.
    pub(super) gain: f32,
    pub(super) lambda: f32,
    pub(super) beta: f32,
}

type Compiled = Box<dyn FnMut(&[Array]) -> Result<Vec<Array>, Exception>>;

/// The step, ready for use on this thread's device.
pub(super) enum Pass {
    Kernel,
    Graph(Compiled),
}

impl Pass {
    pub(super) fn new() -> Self {
        if on_cpu() {
            return Self::Kernel;
        }
        let mut compiled = compile(graph::step, None);
        Self::Graph(Box::new(move |arrays: &[Array]| compiled(arrays)))
    }

    /// The state after a step with this gradient with respect to the soft weights, `[groups, weights of a group]`.
    pub(super) fn run(
        &mut self,
        frame: &Frame,
        state: &State,
        gradient: &Array,
        numbers: Numbers,
    ) -> Result<State> {
        let next = match self {
            Self::Kernel => kernel::step(frame, state, gradient, numbers)?,
            Self::Graph(compiled) => compiled(&graph::arguments(frame, state, gradient, numbers)?)?,
        };
        let [v, first, second, soft] = next.try_into().unwrap_or_else(|_| unreachable!("four outputs"));
        Ok(State { v, first, second, soft })
    }
}
