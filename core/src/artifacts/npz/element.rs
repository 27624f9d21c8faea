//! The element types of npz arrays.

/// An element type that npz files hold: f32, f64, i8, i32, i64, u8, u64 or bool.
pub trait Element: Copy + ndarray_npy::WritableElement + sealed::Sealed + 'static {
    /// Name of the type, such as `f32`.
    const DTYPE: &'static str;
    /// numpy's name of it, such as `<f4`.
    const DESCR: &'static str;
    /// Appends the elements that `bytes` (a whole number of them, little-endian) stand for; an error is the
    /// byte that stands for none.
    #[doc(hidden)]
    fn decode(bytes: &[u8], out: &mut Vec<Self>) -> Result<(), u8>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! number {
    ($($type:ident $descr:literal),*) => {
        $(impl sealed::Sealed for $type {}
        impl Element for $type {
            const DTYPE: &'static str = stringify!($type);
            const DESCR: &'static str = $descr;

            fn decode(bytes: &[u8], out: &mut Vec<Self>) -> Result<(), u8> {
                let (whole, _) = bytes.as_chunks::<{ size_of::<$type>() }>();
                out.extend(whole.iter().map(|b| <$type>::from_le_bytes(*b)));
                Ok(())
            }
        })*
    };
}

number!(f32 "<f4", f64 "<f8", i8 "|i1", i32 "<i4", i64 "<i8", u8 "|u1", u64 "<u8");

impl sealed::Sealed for bool {}
impl Element for bool {
    const DTYPE: &'static str = "bool";
    const DESCR: &'static str = "|b1";

    fn decode(bytes: &[u8], out: &mut Vec<Self>) -> Result<(), u8> {
        for &byte in bytes {
            out.push(match byte {
                0 => false,
                1 => true,
                other => return Err(other),
            });
        }
        Ok(())
    }
}

/// The name of a numpy type for people: `f32` for `<f4`, and what is not known as it is.
pub(super) fn dtype_name(descr: &str) -> String {
    let known = [
        (f32::DESCR, f32::DTYPE),
        (f64::DESCR, f64::DTYPE),
        (i8::DESCR, i8::DTYPE),
        (i32::DESCR, i32::DTYPE),
        (i64::DESCR, i64::DTYPE),
        (u8::DESCR, u8::DTYPE),
        (u64::DESCR, u64::DTYPE),
        (bool::DESCR, bool::DTYPE),
        ("<f2", "f16"),
        ("<i2", "i16"),
        ("<u4", "u32"),
        ("|O", "Python objects"),
    ];
    match known.iter().find(|(d, _)| *d == descr) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("dtype {descr}"),
    }
}
