//! What a kernel sees of an array: dense row-major data with a shape.
#![allow(unsafe_code)]

use std::{marker::PhantomData, ptr::NonNull, slice};

use mlx_rs::Dtype;

/// An element type of views.
pub trait Element: sealed::Sealed + Copy + Send + Sync + 'static {
    /// The matching MLX type.
    const DTYPE: Dtype;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($ty:ty => $dtype:ident),*) => {$(
        impl sealed::Sealed for $ty {}
        impl Element for $ty {
            const DTYPE: Dtype = Dtype::$dtype;
        }
    )*};
}

elements!(f32 => Float32, i8 => Int8, u8 => Uint8, i16 => Int16, i32 => Int32, u32 => Uint32);

/// An input of a kernel.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: NonNull<u8>,
    size: usize,
    shape: &'a [i32],
    dtype: Dtype,
}

// SAFETY: a view is a shared borrow of plain numbers.
unsafe impl Send for View<'_> {}
// SAFETY: as above.
unsafe impl Sync for View<'_> {}

impl<'a> View<'a> {
    /// # Safety
    ///
    /// `data` must be null (for `size` 0) or point to `size` initialised elements of the type
    /// that nobody writes to during `'a`.
    pub(crate) unsafe fn new(
        data: *mut u8,
        size: usize,
        shape: &'a [i32],
        dtype: i32,
    ) -> Result<Self, String> {
        let dtype = dtype_of(dtype)?;
        let data = NonNull::new(data).unwrap_or(NonNull::<u64>::dangling().cast());
        Ok(Self { data, size, shape, dtype })
    }

    /// The extents, outermost first.
    pub fn shape(&self) -> &'a [i32] {
        self.shape
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The elements in row-major order.
    ///
    /// # Panics
    ///
    /// If `T` is not the element type. Inside a kernel this becomes an MLX error.
    pub fn data<T: Element>(&self) -> &'a [T] {
        assert_eq!(self.dtype, T::DTYPE, "an input has another element type");
        // SAFETY: by the contract of `new`, and the type has just been checked.
        unsafe { slice::from_raw_parts(self.data.cast().as_ptr(), self.size) }
    }

    /// [`View::data`] as `f32`.
    pub fn f32(&self) -> &'a [f32] {
        self.data()
    }
}

/// An output of a kernel. Its contents are arbitrary until the kernel writes them, except for those that
/// [`crate::HostKernel::call_in_place`] works on.
pub struct ViewMut<'a> {
    data: NonNull<u8>,
    size: usize,
    shape: &'a [i32],
    dtype: Dtype,
    exclusive: PhantomData<&'a mut [u8]>,
}

// SAFETY: a mutable view is an exclusive borrow of plain numbers.
unsafe impl Send for ViewMut<'_> {}

impl<'a> ViewMut<'a> {
    /// # Safety
    ///
    /// `data` must be null (for `size` 0) or point to `size` elements of the type that nobody
    /// else reads or writes during `'a`. The memory comes from MLX's allocator, whose contents
    /// are unknown to the compiler rather than undefined; every bit pattern is valid.
    pub(crate) unsafe fn new(
        data: *mut u8,
        size: usize,
        shape: &'a [i32],
        dtype: i32,
    ) -> Result<Self, String> {
        let dtype = dtype_of(dtype)?;
        let data = NonNull::new(data).unwrap_or(NonNull::<u64>::dangling().cast());
        Ok(Self { data, size, shape, dtype, exclusive: PhantomData })
    }

    /// The extents, outermost first.
    pub fn shape(&self) -> &'a [i32] {
        self.shape
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The elements in row-major order, for writing.
    ///
    /// # Panics
    ///
    /// If `T` is not the element type. Inside a kernel this becomes an MLX error.
    pub fn data<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(self.dtype, T::DTYPE, "an output has another element type");
        // SAFETY: by the contract of `new`, and the type has just been checked.
        unsafe { slice::from_raw_parts_mut(self.data.cast().as_ptr(), self.size) }
    }

    /// [`ViewMut::data`] as `f32`.
    pub fn f32(&mut self) -> &mut [f32] {
        self.data()
    }
}

fn dtype_of(code: i32) -> Result<Dtype, String> {
    u32::try_from(code)
        .ok()
        .and_then(|code| Dtype::try_from(code).ok())
        .ok_or_else(|| format!("unknown element type {code}"))
}
