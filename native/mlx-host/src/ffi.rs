//! The C interface of `csrc/host_kernel.h`, and the callbacks that MLX makes into Rust.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    slice,
    sync::Arc,
};

use mlx_rs::{Array, Dtype, Stream, error::Exception};
use mlx_sys::{mlx_array_free, mlx_array_new, mlx_vector_array};

use crate::{
    kernel::{Inner, Vjp},
    view::{View, ViewMut},
};

#[repr(C)]
struct Tensor {
    data: *mut c_void,
    shape: *const i32,
    rank: usize,
    size: usize,
    dtype: i32,
}

#[repr(C)]
struct ErrorText {
    text: [c_char; 512],
}

impl ErrorText {
    fn set(&mut self, message: &str) {
        let message = if message.is_empty() { "unknown error" } else { message };
        let mut end = message.len().min(self.text.len() - 1);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        for (to, from) in self.text.iter_mut().zip(message[..end].bytes().filter(|&b| b != 0)) {
            *to = from as c_char;
        }
    }
}

#[repr(C)]
struct Functions {
    forward: unsafe extern "C" fn(*const c_void, *const Tensor, usize, *const Tensor, usize, *mut ErrorText),
    vjp: unsafe extern "C" fn(
        *const c_void,
        mlx_vector_array,
        mlx_vector_array,
        mlx_vector_array,
        *const c_int,
        usize,
        *mut mlx_vector_array,
        *mut ErrorText,
    ),
    release: unsafe extern "C" fn(*const c_void),
}

static FUNCTIONS: Functions = Functions { forward, vjp, release };

unsafe extern "C" {
    fn _exit(code: c_int) -> !;

    fn taq_host_call(
        functions: *const Functions,
        kernel: *const c_void,
        name: *const c_char,
        inputs: mlx_vector_array,
        in_place: usize,
        shapes: *const i32,
        ranks: *const usize,
        dtypes: *const i32,
        output_count: usize,
        stream: mlx_sys::mlx_stream,
        result: *mut mlx_vector_array,
        error: *mut ErrorText,
    );
}

/// Adds a node for `kernel` to the graph. The first `in_place` inputs are what the first outputs begin with; the caller
/// vouches that those have their shapes and types.
pub(crate) fn call(
    kernel: &Arc<Inner>,
    inputs: &[&Array],
    in_place: usize,
    outputs: &[(&[i32], Dtype)],
    stream: &Stream,
) -> Result<Vec<Array>, Exception> {
    let name =
        CString::new(kernel.name).map_err(|_| Exception::custom("a kernel's name holds a zero byte"))?;
    let shapes: Vec<i32> = outputs.iter().flat_map(|(shape, _)| shape.iter().copied()).collect();
    if shapes.iter().any(|&extent| extent < 0) {
        return Err(Exception::custom(format!("[{}] an output shape is negative", kernel.name)));
    }
    let ranks: Vec<usize> = outputs.iter().map(|(shape, _)| shape.len()).collect();
    let dtypes: Vec<i32> = outputs.iter().map(|(_, dtype)| u32::from(*dtype) as i32).collect();
    let inputs = VectorArray::of(inputs.iter().copied());
    let mut result = VectorArray::new();
    let mut error = ErrorText { text: [0; 512] };
    // SAFETY: every pointer is valid for the call, `ranks`, `dtypes` and `shapes` describe
    // `outputs.len()` outputs, and the reference made by `Arc::into_raw` is given back once,
    // through `release`.
    unsafe {
        taq_host_call(
            &FUNCTIONS,
            Arc::into_raw(Arc::clone(kernel)).cast(),
            name.as_ptr(),
            inputs.0,
            in_place,
            shapes.as_ptr(),
            ranks.as_ptr(),
            dtypes.as_ptr(),
            outputs.len(),
            stream.as_ptr(),
            &mut result.0,
            &mut error,
        );
    }
    if error.text[0] != 0 {
        // SAFETY: the C++ side ends the text with a zero byte.
        let text = unsafe { CStr::from_ptr(error.text.as_ptr()) };
        return Err(Exception::custom(format!("[{}] {}", kernel.name, text.to_string_lossy())));
    }
    // SAFETY: `result` is a live vector, set by the call.
    unsafe { arrays(result.0) }
}

/// Whether the stream belongs to the CPU.
pub(crate) fn is_cpu(stream: &Stream) -> bool {
    let mut kind = mlx_sys::mlx_device_type__MLX_GPU;
    // SAFETY: the stream is live; the device handle is owned and freed.
    unsafe {
        let mut device = mlx_sys::mlx_device_new();
        if mlx_sys::mlx_stream_get_device(&mut device, stream.as_ptr()) == 0 {
            mlx_sys::mlx_device_get_type(&mut kind, device);
        }
        mlx_sys::mlx_device_free(device);
    }
    kind == mlx_sys::mlx_device_type__MLX_CPU
}

/// An owned `mlx_vector_array`.
struct VectorArray(mlx_vector_array);

impl VectorArray {
    fn new() -> Self {
        // SAFETY: takes no arguments.
        Self(unsafe { mlx_sys::mlx_vector_array_new() })
    }

    fn of<'a>(arrays: impl Iterator<Item = &'a Array>) -> Self {
        let vector = Self::new();
        for array in arrays {
            // SAFETY: both handles are live; the vector takes a reference of its own.
            unsafe { mlx_sys::mlx_vector_array_append_value(vector.0, array.as_ptr()) };
        }
        vector
    }
}

impl Drop for VectorArray {
    fn drop(&mut self) {
        // SAFETY: the handle is owned and freed once.
        unsafe { mlx_sys::mlx_vector_array_free(self.0) };
    }
}

/// The arrays of a vector, as handles of their own.
///
/// # Safety
///
/// `vector` must be live.
unsafe fn arrays(vector: mlx_vector_array) -> Result<Vec<Array>, Exception> {
    // SAFETY: the caller vouches for `vector`.
    let count = unsafe { mlx_sys::mlx_vector_array_size(vector) };
    (0..count)
        .map(|index| {
            // SAFETY: `handle` is fresh and owned; `index` is below the vector's size.
            unsafe {
                let mut handle = mlx_array_new();
                if mlx_sys::mlx_vector_array_get(&mut handle, vector, index) == 0 {
                    Ok(Array::from_ptr(handle))
                } else {
                    mlx_array_free(handle);
                    Err(Exception::custom("cannot read an array from a vector"))
                }
            }
        })
        .collect()
}

/// Runs `body`, and turns an error or a panic into a text.
fn guarded(error: &mut ErrorText, name: &str, body: impl FnOnce() -> Result<(), String>) {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => {}
        Ok(Err(message)) => error.set(&format!("[{name}] {message}")),
        Err(panic) => {
            let message = panic
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("no message");
            error.set(&format!("[{name}] the kernel panicked: {message}"));
            // A panic payload whose own drop panics must not unwind into C++.
            std::mem::forget(panic);
        }
    }
}

/// Ends the process at once.
pub(crate) fn exit(code: u8) -> ! {
    // SAFETY: C's `_exit` runs nothing more of this process.
    unsafe { _exit(c_int::from(code)) }
}

unsafe extern "C" fn forward(
    kernel: *const c_void,
    inputs: *const Tensor,
    input_count: usize,
    outputs: *const Tensor,
    output_count: usize,
    error: *mut ErrorText,
) {
    // SAFETY: MLX's node holds a reference to the kernel; the C++ side passes valid pointers.
    let (kernel, error) = unsafe { (&*kernel.cast::<Inner>(), &mut *error) };
    guarded(error, kernel.name, || {
        // SAFETY: the counts are those of the arrays, which live through the call.
        let (inputs, outputs) = unsafe { (tensors(inputs, input_count), tensors(outputs, output_count)) };
        let inputs: Vec<View<'_>> = inputs
            .iter()
            .map(|t| {
                // SAFETY: MLX holds the buffer, dense and of this size, and nobody writes to it.
                unsafe { View::new(t.data.cast(), t.size, shape(t), t.dtype) }
            })
            .collect::<Result<_, _>>()?;
        let mut outputs: Vec<ViewMut<'_>> = outputs
            .iter()
            .map(|t| {
                // SAFETY: the node's own memory, for this kernel alone.
                unsafe { ViewMut::new(t.data.cast(), t.size, shape(t), t.dtype) }
            })
            .collect::<Result<_, _>>()?;
        (kernel.forward)(&inputs, &mut outputs);
        Ok(())
    });
}

unsafe extern "C" fn vjp(
    kernel: *const c_void,
    primals: mlx_vector_array,
    cotangents: mlx_vector_array,
    outputs: mlx_vector_array,
    wanted: *const c_int,
    wanted_count: usize,
    gradients: *mut mlx_vector_array,
    error: *mut ErrorText,
) {
    // SAFETY: MLX's node holds a reference to the kernel; the C++ side passes valid pointers.
    let (kernel, error) = unsafe { (&*kernel.cast::<Inner>(), &mut *error) };
    guarded(error, kernel.name, || {
        let text = |e: Exception| e.what().to_owned();
        let function = kernel.vjp.as_ref().ok_or("has no gradient")?;
        let wanted = if wanted_count == 0 {
            &[]
        } else {
            // SAFETY: the C++ side passes `wanted_count` indices.
            unsafe { slice::from_raw_parts(wanted, wanted_count) }
        };
        // SAFETY: the vectors live through the call.
        let problem = unsafe {
            Vjp {
                primals: arrays(primals).map_err(text)?,
                cotangents: arrays(cotangents).map_err(text)?,
                outputs: arrays(outputs).map_err(text)?,
                wanted: wanted.iter().map(|&index| index as usize).collect(),
            }
        };
        for gradient in function(&problem).map_err(text)? {
            // SAFETY: the result vector and the gradient are live; the vector takes a reference.
            unsafe { mlx_sys::mlx_vector_array_append_value(*gradients, gradient.as_ptr()) };
        }
        Ok(())
    });
}

unsafe extern "C" fn release(kernel: *const c_void) {
    let drop_it = || {
        // SAFETY: the pointer came from `Arc::into_raw` in `call` and is released once.
        drop(unsafe { Arc::from_raw(kernel.cast::<Inner>()) });
    };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(drop_it)) {
        std::mem::forget(panic);
    }
}

/// # Safety
///
/// `tensors` must point to `count` tensors that live as long as the result is used.
unsafe fn tensors<'a>(tensors: *const Tensor, count: usize) -> &'a [Tensor] {
    // SAFETY: the caller vouches for it; an empty list may come as a null pointer.
    if count == 0 { &[] } else { unsafe { slice::from_raw_parts(tensors, count) } }
}

fn shape(tensor: &Tensor) -> &[i32] {
    // SAFETY: the C++ side keeps `rank` extents alive beside the tensor.
    if tensor.rank == 0 { &[] } else { unsafe { slice::from_raw_parts(tensor.shape, tensor.rank) } }
}
