//! Kernels in Rust as nodes of MLX's graph.

use std::sync::Arc;

use mlx_rs::{Array, Dtype, Stream, error::Exception};

use crate::{
    ffi,
    view::{View, ViewMut},
};

type Forward = dyn Fn(&[View<'_>], &mut [ViewMut<'_>]) + Send + Sync;
type Gradient = dyn Fn(&Vjp) -> Result<Vec<Array>, Exception> + Send + Sync;

/// What the graph's nodes share of a kernel.
pub(crate) struct Inner {
    pub(crate) name: &'static str,
    pub(crate) forward: Box<Forward>,
    pub(crate) vjp: Option<Box<Gradient>>,
}

/// A function on dense arrays that runs inside MLX's lazy graph, on the CPU.
///
/// A call adds a node. When MLX evaluates it, the kernel gets dense row-major inputs and fills
/// the outputs, on the thread of the node's stream; it may use rayon. A panic becomes an error of
/// the evaluation.
///
/// ```
/// use mlx_host::HostKernel;
/// use mlx_rs::{Array, Dtype, transforms::grad};
///
/// let halve = || {
///     HostKernel::new("halve", |inputs, outputs| {
///         for (y, x) in outputs[0].f32().iter_mut().zip(inputs[0].f32()) {
///             *y = 0.5 * x;
///         }
///     })
///     .with_vjp(|vjp| Ok(vec![vjp.cotangents[0].multiply(Array::from_f32(0.5))?]))
/// };
/// let f = |x: &Array| -> Result<Array, mlx_rs::error::Exception> {
///     halve().call(&[x], &[(x.shape(), Dtype::Float32)])?[0].sum(None)
/// };
/// let x = Array::from_slice(&[1.0f32, 2.0], &[2]);
/// # mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
/// assert_eq!(f(&x)?.item_exact::<f32>(), 1.5);
/// assert_eq!(grad(f)(&x)?.sum(None)?.item_exact::<f32>(), 1.0);
/// # Ok::<(), mlx_rs::error::Exception>(())
/// ```
#[derive(Clone)]
pub struct HostKernel(Arc<Inner>);

/// What a kernel's gradient function works with.
///
/// The arrays are part of the graph being differentiated: gradients are built from them with MLX
/// operations or further kernels, not computed at once.
pub struct Vjp {
    /// The inputs of the call.
    pub primals: Vec<Array>,
    /// The gradients that arrive at the outputs, one per output.
    pub cotangents: Vec<Array>,
    /// The outputs of the call.
    pub outputs: Vec<Array>,
    /// Which inputs a gradient is asked for: what to return, in this order.
    pub wanted: Vec<usize>,
}

impl Vjp {
    /// Whether a gradient is asked for input `index`.
    pub fn wants(&self, index: usize) -> bool {
        self.wanted.contains(&index)
    }

    /// Picks the wanted gradients out of those of all inputs.
    ///
    /// # Errors
    ///
    /// If there is no gradient for a wanted input.
    pub fn pick(&self, all: &[Array]) -> Result<Vec<Array>, Exception> {
        let missing = |index| Exception::custom(format!("no gradient for input {index}"));
        self.wanted.iter().map(|&index| all.get(index).cloned().ok_or_else(|| missing(index))).collect()
    }
}

impl HostKernel {
    /// A kernel without a gradient. `name` appears in errors and in graph dumps.
    pub fn new(
        name: &'static str,
        forward: impl Fn(&[View<'_>], &mut [ViewMut<'_>]) + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner { name, forward: Box::new(forward), vjp: None }))
    }

    /// Adds a gradient: a function that returns one array per entry of [`Vjp::wanted`], each of
    /// the shape of its input. Call it before the first [`HostKernel::call`].
    ///
    /// # Panics
    ///
    /// If the kernel has been called or cloned before.
    #[must_use]
    pub fn with_vjp(
        mut self,
        vjp: impl Fn(&Vjp) -> Result<Vec<Array>, Exception> + Send + Sync + 'static,
    ) -> Self {
        let inner = Arc::get_mut(&mut self.0).expect("with_vjp comes before the first call");
        inner.vjp = Some(Box::new(vjp));
        self
    }

    /// Calls the kernel on the default stream; returns one array per entry of `outputs`, each a
    /// shape and an element type.
    ///
    /// # Errors
    ///
    /// If MLX refuses the node. What goes wrong inside the kernel is reported by the evaluation,
    /// as is a stream that is not the CPU's.
    pub fn call(&self, inputs: &[&Array], outputs: &[(&[i32], Dtype)]) -> Result<Vec<Array>, Exception> {
        self.call_on(inputs, outputs, &Stream::thread_local_or_default())
    }

    /// [`HostKernel::call`] on a stream of choice.
    ///
    /// # Errors
    ///
    /// As for [`HostKernel::call`].
    pub fn call_on(
        &self,
        inputs: &[&Array],
        outputs: &[(&[i32], Dtype)],
        stream: &Stream,
    ) -> Result<Vec<Array>, Exception> {
        ffi::call(&self.0, inputs, 0, outputs, stream)
    }

    /// Calls a kernel that changes arrays: its first outputs hold the contents of `state` when it begins, and what it leaves
    /// there are the first arrays of the result; then come the other `outputs`. It does not see `state` among its inputs.
    ///
    /// The arrays given keep their contents. Memory is copied only for those that someone still holds when the node is
    /// evaluated, so a loop that replaces its state by the result works in place.
    ///
    /// ```
    /// # use mlx_host::HostKernel;
    /// # use mlx_rs::Array;
    /// let add = HostKernel::new("add", |inputs, outputs| {
    ///     outputs[0].f32().iter_mut().zip(inputs[0].f32()).for_each(|(sum, x)| *sum += x);
    /// });
    /// # mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
    /// let (mut sum, x) = (Array::from_f32(1.0), Array::from_f32(2.0));
    /// for _ in 0..3 {
    ///     sum = add.call_in_place(&[&sum], &[&x], &[])?.remove(0);
    /// }
    /// assert_eq!(sum.item_exact::<f32>(), 7.0);
    /// # Ok::<(), mlx_rs::error::Exception>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`HostKernel::call`].
    pub fn call_in_place(
        &self,
        state: &[&Array],
        inputs: &[&Array],
        outputs: &[(&[i32], Dtype)],
    ) -> Result<Vec<Array>, Exception> {
        let all: Vec<&Array> = state.iter().chain(inputs).copied().collect();
        let own = state.iter().map(|a| (a.shape(), a.dtype()));
        let outputs: Vec<(&[i32], Dtype)> = own.chain(outputs.iter().copied()).collect();
        ffi::call(&self.0, &all, state.len(), &outputs, &Stream::thread_local_or_default())
    }

    /// [`HostKernel::call`] for a kernel with one `f32` output.
    ///
    /// # Errors
    ///
    /// As for [`HostKernel::call`].
    pub fn call_f32(&self, inputs: &[&Array], shape: &[i32]) -> Result<Array, Exception> {
        let mut outputs = self.call(inputs, &[(shape, Dtype::Float32)])?;
        outputs.pop().ok_or_else(|| Exception::custom("the node has no output"))
    }
}
