//! Milliseconds of each kernel against the same of MLX operations.
//!
//! `cargo run --release -p mlx-host --example bench [filter]` takes the best of several runs, on
//! an otherwise idle machine.
#![allow(clippy::print_stdout)]

use std::{env, time::Instant};

use mlx_host::{
    Mask, attention, gated_add, gelu_erf, gelu_tanh, group_norm_silu, layer_norm_modulate, linear,
    quick_gelu, rms_norm, silu,
};
use mlx_rs::{
    Array, Device,
    error::Exception,
    fast, ops, random,
    transforms::{eval, fallible_vjp},
};

type Outcome = Result<Array, Exception>;
type Function<'a> = &'a dyn Fn(&[Array]) -> Outcome;

fn normal(shape: &[i32]) -> Result<Array, Exception> {
    let x = random::normal::<f32>(shape, None, None, None)?;
    x.eval()?;
    Ok(x)
}

fn number(value: f32) -> Array {
    Array::from_f32(value)
}

/// Best time in milliseconds.
fn best(mut run: impl FnMut() -> Result<(), Exception>) -> Result<f64, Exception> {
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    for round in 0..50 {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64() * 1e3);
        if round >= 3 && begin.elapsed().as_secs_f64() > 1.5 {
            break;
        }
    }
    Ok(best)
}

fn compare(name: &str, inputs: &[Array], host: Function<'_>, plain: Function<'_>) -> Result<(), Exception> {
    if env::args().nth(1).is_some_and(|filter| !name.contains(&filter)) {
        return Ok(());
    }
    let cotangent = normal(host(inputs)?.shape())?;
    let forward = |f: Function<'_>| best(|| f(inputs)?.eval());
    let backward = |f: Function<'_>| {
        best(|| {
            let each = |x: &[Array]| Ok(vec![f(x)?]);
            let (_, gradients) = fallible_vjp(each, inputs, std::slice::from_ref(&cotangent))?;
            eval(&gradients)
        })
    };
    println!(
        "{name:44} {:9.2} {:9.2} {:9.2} {:9.2}",
        forward(host)?,
        forward(plain)?,
        backward(host)?,
        backward(plain)?
    );
    Ok(())
}

fn activations() -> Result<(), Exception> {
    for shape in [[16, 112, 768], [2, 1178, 6144]] {
        let x = [normal(&shape)?];
        let tanh = |a: &[Array]| {
            let cubed = a[0].square()?.multiply(&a[0])?.multiply(number(0.044_715))?;
            let u = cubed.add(&a[0])?.multiply(number(0.797_884_6))?;
            ops::tanh(&u)?.add(number(1.0))?.multiply(&a[0])?.multiply(number(0.5))
        };
        compare(&format!("gelu_tanh {shape:?}"), &x, &|a| gelu_tanh(&a[0]), &tanh)?;
        let erf = |a: &[Array]| {
            let e = ops::erf(&a[0].multiply(number(0.5f32.sqrt()))?)?;
            e.add(number(1.0))?.multiply(&a[0])?.multiply(number(0.5))
        };
        compare(&format!("gelu_erf {shape:?}"), &x, &|a| gelu_erf(&a[0]), &erf)?;
        let quick = |a: &[Array]| ops::sigmoid(a[0].multiply(number(1.702))?)?.multiply(&a[0]);
        compare(&format!("quick_gelu {shape:?}"), &x, &|a| quick_gelu(&a[0]), &quick)?;
        let plain = |a: &[Array]| ops::sigmoid(&a[0])?.multiply(&a[0]);
        compare(&format!("silu {shape:?}"), &x, &|a| silu(&a[0]), &plain)?;
    }
    Ok(())
}

fn norms() -> Result<(), Exception> {
    for [b, n, c] in [[16, 112, 192], [2, 1178, 1536]] {
        let inputs = [normal(&[b, n, c])?, normal(&[b, c])?, normal(&[b, c])?];
        let host = |a: &[Array]| layer_norm_modulate(&a[0], &a[1], &a[2], 1e-6);
        let plain = |a: &[Array]| {
            let scale = a[1].add(number(1.0))?.expand_dims(1)?;
            fast::layer_norm(&a[0], None, None, 1e-6)?.multiply(scale)?.add(a[2].expand_dims(1)?)
        };
        compare(&format!("layer_norm_modulate {:?}", [b, n, c]), &inputs, &host, &plain)?;

        let inputs = [normal(&[b, n, c])?, normal(&[b, c])?, normal(&[b, n, c])?];
        let host = |a: &[Array]| gated_add(&a[0], &a[1], &a[2]);
        let plain = |a: &[Array]| a[1].expand_dims(1)?.multiply(&a[2])?.add(&a[0]);
        compare(&format!("gated_add {:?}", [b, n, c]), &inputs, &host, &plain)?;

        let inputs = [normal(&[b, n, c / 64, 64])?, normal(&[64])?];
        let host = |a: &[Array]| rms_norm(&a[0], &a[1], 1e-6);
        let plain = |a: &[Array]| fast::rms_norm(&a[0], Some(&a[1]), 1e-6);
        compare(&format!("rms_norm {:?}", [b, n, c / 64, 64]), &inputs, &host, &plain)?;
    }
    Ok(())
}

fn attentions() -> Result<(), Exception> {
    for [b, h, n, d] in [[16, 3, 112, 64], [1, 24, 1024, 64], [2, 24, 1178, 64]] {
        let shape = [b, n, h * d];
        let inputs = [normal(&shape)?, normal(&shape)?, normal(&shape)?];
        let host = |a: &[Array]| attention(&a[0], &a[1], &a[2], h as usize, 0.125, Mask::None);
        let split = |x: &Array| x.reshape(&[b, n, h, d])?.transpose_axes(&[0, 2, 1, 3]);
        let plain = |a: &[Array]| {
            let (q, k, v) = (split(&a[0])?, split(&a[1])?, split(&a[2])?);
            let out = fast::scaled_dot_product_attention(q, k, v, 0.125, None, None)?;
            out.transpose_axes(&[0, 2, 1, 3])?.reshape(&shape)
        };
        compare(&format!("attention {:?}", [b, h, n, d]), &inputs, &host, &plain)?;
    }
    Ok(())
}

fn linears() -> Result<(), Exception> {
    for [m, k, n] in [[1792, 192, 192], [1024, 192, 768], [1178, 1536, 6144]] {
        let inputs = [normal(&[m, k])?, normal(&[n, k])?, normal(&[n])?];
        let host = |a: &[Array]| linear(&a[0], &a[1], Some(&a[2]));
        let plain = |a: &[Array]| ops::addmm(&a[2], &a[0], a[1].t(), None, None);
        compare(&format!("linear {:?}", [m, k, n]), &inputs, &host, &plain)?;
    }
    Ok(())
}

fn group_norms() -> Result<(), Exception> {
    for [size, c] in [[64, 512], [256, 128]] {
        let inputs = [normal(&[1, size, size, c])?, normal(&[c])?, normal(&[c])?];
        let host = |a: &[Array]| group_norm_silu(&a[0], 32, &a[1], &a[2], 1e-6, true);
        let plain = |a: &[Array]| {
            let x = a[0].reshape(&[1, size * size, 32, c / 32])?;
            let x = x.subtract(ops::mean_axes(&x, &[1, 3], true)?)?;
            let variance = ops::mean_axes(&x.square()?, &[1, 3], true)?.add(number(1e-6))?;
            let x = x.multiply(ops::rsqrt(&variance)?)?.reshape(&[1, size, size, c])?;
            let y = x.multiply(&a[1])?.add(&a[2])?;
            ops::sigmoid(&y)?.multiply(&y)
        };
        compare(&format!("group_norm_silu {:?}", [1, size, size, c]), &inputs, &host, &plain)?;
    }
    Ok(())
}

fn main() -> Result<(), Exception> {
    Device::set_default(&Device::cpu());
    println!("{:44} {:>9} {:>9} {:>9} {:>9}", "milliseconds", "host", "MLX", "vjp host", "vjp MLX");
    activations()?;
    norms()?;
    group_norms()?;
    linears()?;
    attentions()
}
