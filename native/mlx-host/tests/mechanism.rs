//! The mechanism: evaluation, layouts, gradients, errors.

use mlx_host::HostKernel;
use mlx_rs::{
    Array, Device, Dtype, Stream,
    error::Exception,
    transforms::{compile::compile, eval, grad},
};

fn cpu() {
    Device::set_default(&Device::cpu());
}

fn double() -> HostKernel {
    HostKernel::new("double", |inputs, outputs| {
        for (y, x) in outputs[0].f32().iter_mut().zip(inputs[0].f32()) {
            *y = 2.0 * x;
        }
    })
    .with_vjp(|vjp| Ok(vec![vjp.cotangents[0].multiply(Array::from_f32(2.0))?]))
}

fn run_double(x: &Array) -> Result<Array, Exception> {
    double().call_f32(&[x], x.shape())
}

#[test]
fn strided_and_broadcast_inputs_arrive_dense() {
    cpu();
    let x = Array::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]);
    let y = run_double(&x.t()).unwrap();
    assert_eq!(y.as_slice::<f32>(), &[2.0, 8.0, 4.0, 10.0, 6.0, 12.0]);
    let wide = mlx_rs::ops::broadcast_to(Array::from_f32(3.0), &[4]).unwrap();
    wide.eval().unwrap();
    assert_eq!(run_double(&wide).unwrap().as_slice::<f32>(), &[6.0; 4]);
}

#[test]
fn empty_and_scalar_arrays() {
    cpu();
    let empty = mlx_rs::ops::zeros::<f32>(&[0, 3]).unwrap();
    let y = run_double(&empty).unwrap();
    y.eval().unwrap();
    assert_eq!(y.shape(), &[0, 3]);
    assert_eq!(run_double(&Array::from_f32(4.0)).unwrap().item_exact::<f32>(), 8.0);
}

#[test]
fn kernels_chain_lazily_and_differentiate() {
    cpu();
    let f =
        |x: &Array| -> Result<Array, Exception> { run_double(&run_double(&x.square()?)?.add(x)?)?.sum(None) };
    let x = Array::from_slice(&[1.0f32, -3.0], &[2]);
    // The derivative of 2 (2 x^2 + x).
    assert_eq!(grad(f)(&x).unwrap().as_slice::<f32>(), &[10.0, -22.0]);
}

#[test]
fn several_outputs_and_types() {
    cpu();
    let split = HostKernel::new("split", |inputs, outputs| {
        let [sign, magnitude] = outputs else { panic!("two outputs") };
        for ((s, m), x) in sign.data::<i8>().iter_mut().zip(magnitude.f32()).zip(inputs[0].f32()) {
            *s = if *x < 0.0 { -1 } else { 1 };
            *m = x.abs();
        }
    });
    let x = Array::from_slice(&[1.5f32, -2.5], &[2]);
    let parts = split.call(&[&x], &[(&[2], Dtype::Int8), (&[2], Dtype::Float32)]).unwrap();
    eval(&parts).unwrap();
    assert_eq!(parts[0].as_slice::<i8>(), &[1, -1]);
    assert_eq!(parts[1].as_slice::<f32>(), &[1.5, 2.5]);
}

#[test]
fn panics_become_errors_and_evaluation_goes_on() {
    cpu();
    let bad = HostKernel::new("bad", |_, _| panic!("deliberate"));
    let x = Array::from_f32(1.0);
    let y = bad.call_f32(&[&x], &[]).unwrap();
    let error = y.eval().unwrap_err();
    assert!(error.what().contains("[bad] the kernel panicked: deliberate"), "{error}");
    assert_eq!(run_double(&x).unwrap().item_exact::<f32>(), 2.0);
}

#[test]
fn wrong_type_and_missing_gradient_are_errors() {
    cpu();
    let x = Array::from_slice(&[1i32, 2], &[2]);
    let error = run_double(&x).unwrap().eval().unwrap_err();
    assert!(error.what().contains("another element type"), "{error}");

    let plain = HostKernel::new("plain", |_, outputs| outputs[0].f32().fill(0.0));
    let f = |x: &Array| -> Result<Array, Exception> { plain.call_f32(&[x], x.shape())?.sum(None) };
    let error = grad(f)(&Array::from_slice(&[1.0f32], &[1])).unwrap_err();
    assert!(error.what().contains("[plain] has no gradient"), "{error}");
}

#[test]
fn gradients_of_wrong_shape_are_refused() {
    cpu();
    let kernel = || {
        HostKernel::new("odd", |_, outputs| outputs[0].f32().fill(0.0))
            .with_vjp(|vjp| Ok(vec![vjp.cotangents[0].sum(None)?]))
    };
    let f = |x: &Array| -> Result<Array, Exception> { kernel().call_f32(&[x], x.shape())?.sum(None) };
    let error = grad(f)(&Array::from_slice(&[1.0f32, 2.0], &[2])).unwrap_err();
    assert!(error.what().contains("another shape"), "{error}");
}

#[test]
fn compiled_functions_may_hold_kernels() {
    cpu();
    let f = |x: &Array| -> Result<Array, Exception> { run_double(x)?.add(x) };
    let mut compiled = compile(f, None);
    for value in [1.0f32, 2.0] {
        let x = Array::from_slice(&[value], &[1]);
        assert_eq!(compiled(&x).unwrap().as_slice::<f32>(), &[3.0 * value]);
    }
}

#[test]
fn long_chains_on_another_stream() {
    cpu();
    let stream = Stream::new_with_device(&Device::cpu());
    let kernel = double();
    let mut x = Array::from_f32(1.0);
    for _ in 0..60 {
        x = kernel.call_on(&[&x], &[(&[], Dtype::Float32)], &stream).unwrap().remove(0);
    }
    assert_eq!(x.item_exact::<f32>(), 2.0f32.powi(60));
}

#[test]
fn state_is_changed_in_place_unless_someone_else_holds_it() {
    cpu();
    let count = || {
        HostKernel::new("count", |inputs, outputs| {
            let [state, seen] = outputs else { panic!("two outputs") };
            seen.data::<i32>()[0] = state.f32()[0] as i32;
            state.f32().iter_mut().zip(inputs[0].f32()).for_each(|(s, x)| *s += x);
        })
    };
    let address = |a: &Array| a.as_slice::<f32>().as_ptr() as usize;
    let x = Array::from_slice(&[1.0f32; 4096], &[4096]);
    let step = |state: &Array| count().call_in_place(&[state], &[&x], &[(&[1], Dtype::Int32)]).unwrap();
    let mut state = Array::from_slice(&[5.0f32; 4096], &[4096]);
    let start = address(&state);
    for round in 0..3 {
        let parts = step(&state);
        state = parts[0].clone();
        eval(&parts).unwrap();
        assert_eq!((address(&state), parts[1].item_exact::<i32>()), (start, 5 + round));
    }
    assert_eq!(state.as_slice::<f32>(), &[8.0; 4096]);
    // Held: both have their own contents.
    let next = step(&state).remove(0);
    eval([&next]).unwrap();
    assert_eq!((state.as_slice::<f32>()[7], next.as_slice::<f32>()[7]), (8.0, 9.0));
    // Twice the same, and a view that is not dense.
    let both = HostKernel::new("both", |_, outputs| {
        outputs[0].f32().fill(1.0);
        outputs[1].f32()[0] = -1.0;
    });
    let grid = Array::from_slice(&[1.0f32, 2.0, 3.0, 4.0], &[2, 2]);
    let (a, b) = (grid.t(), grid.t());
    let parts = both.call_in_place(&[&a, &b], &[], &[]).unwrap();
    assert_eq!(parts[0].as_slice::<f32>(), &[1.0; 4]);
    assert_eq!(parts[1].as_slice::<f32>(), &[-1.0, 3.0, 2.0, 4.0]);
    assert_eq!(grid.as_slice::<f32>(), &[1.0, 2.0, 3.0, 4.0]);
}
