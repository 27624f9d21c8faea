//! Finds the first NaN or infinity in anything that serde can serialize.
//!
//! JSON has no such numbers and serde_json writes `null` in their place, which reads back as something else.
//! This serializer produces nothing and stops at the first one, with the path that leads to it.

use std::fmt::{self, Display};

use serde::{Serialize, ser};

/// The path of the first number in `value` that is NaN or infinite, such as `sigma_map.3`.
pub(super) fn first_non_finite<T: Serialize + ?Sized>(value: &T) -> Option<String> {
    let mut walk = Walk::default();
    match value.serialize(&mut walk) {
        Err(Stop::NonFinite) => Some(walk.path.join(".")),
        // Whatever else is wrong with the value is for the real serializer to say.
        _ => None,
    }
}

#[derive(Debug)]
enum Stop {
    NonFinite,
    Other,
}

impl Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a finite number")
    }
}

impl std::error::Error for Stop {}

impl ser::Error for Stop {
    fn custom<T: Display>(_: T) -> Self {
        Self::Other
    }
}

#[derive(Default)]
struct Walk {
    path: Vec<String>,
}

type Walked = Result<(), Stop>;

impl Walk {
    fn float(&mut self, finite: bool) -> Walked {
        if finite { Ok(()) } else { Err(Stop::NonFinite) }
    }

    /// Visits a child. On an error the path stays as it is: it leads there.
    fn child<T: Serialize + ?Sized>(&mut self, name: impl Into<String>, value: &T) -> Walked {
        self.path.push(name.into());
        value.serialize(&mut *self)?;
        self.path.pop();
        Ok(())
    }
}

/// The elements of a sequence or the entries of a map, counted or named.
struct Children<'a> {
    walk: &'a mut Walk,
    index: usize,
    key: String,
    /// Path elements to leave at the end: the variant of an enum.
    leave: usize,
}

impl<'a> Children<'a> {
    fn of(walk: &'a mut Walk) -> Self {
        Self { walk, index: 0, key: String::new(), leave: 0 }
    }

    fn of_variant(walk: &'a mut Walk, variant: &str) -> Self {
        walk.path.push(variant.to_owned());
        Self { leave: 1, ..Self::of(walk) }
    }

    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Walked {
        self.index += 1;
        self.walk.child((self.index - 1).to_string(), value)
    }

    fn end(self) -> Walked {
        let length = self.walk.path.len() - self.leave;
        self.walk.path.truncate(length);
        Ok(())
    }
}

macro_rules! ignore {
    ($($method:ident: $type:ty),*) => {
        $(fn $method(self, _: $type) -> Walked {
            Ok(())
        })*
    };
}

impl<'a> ser::Serializer for &'a mut Walk {
    type Ok = ();
    type Error = Stop;
    type SerializeSeq = Children<'a>;
    type SerializeTuple = Children<'a>;
    type SerializeTupleStruct = Children<'a>;
    type SerializeTupleVariant = Children<'a>;
    type SerializeMap = Children<'a>;
    type SerializeStruct = Children<'a>;
    type SerializeStructVariant = Children<'a>;

    ignore!(
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_i128: i128, serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64,
        serialize_u128: u128, serialize_char: char, serialize_str: &str, serialize_bytes: &[u8],
        serialize_unit_struct: &'static str
    );

    fn serialize_f32(self, value: f32) -> Walked {
        self.float(value.is_finite())
    }

    fn serialize_f64(self, value: f64) -> Walked {
        self.float(value.is_finite())
    }

    fn serialize_none(self) -> Walked {
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Walked {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Walked {
        Ok(())
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Walked {
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Walked {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Walked {
        self.child(variant, value)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Children<'a>, Stop> {
        Ok(Children::of(self))
    }

    fn serialize_tuple(self, _: usize) -> Result<Children<'a>, Stop> {
        Ok(Children::of(self))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Children<'a>, Stop> {
        Ok(Children::of(self))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Children<'a>, Stop> {
        Ok(Children::of_variant(self, variant))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Children<'a>, Stop> {
        Ok(Children::of(self))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Children<'a>, Stop> {
        Ok(Children::of(self))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Children<'a>, Stop> {
        Ok(Children::of_variant(self, variant))
    }
}

macro_rules! elements {
    ($($trait:ident::$method:ident),*) => {
        $(impl ser::$trait for Children<'_> {
            type Ok = ();
            type Error = Stop;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Walked {
                self.element(value)
            }

            fn end(self) -> Walked {
                Children::end(self)
            }
        })*
    };
}

macro_rules! fields {
    ($($trait:ident),*) => {
        $(impl ser::$trait for Children<'_> {
            type Ok = ();
            type Error = Stop;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Walked {
                self.walk.child(name, value)
            }

            fn end(self) -> Walked {
                Children::end(self)
            }
        })*
    };
}

elements!(
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field
);
fields!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for Children<'_> {
    type Ok = ();
    type Error = Stop;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Walked {
        // Keys become strings in JSON; serde_json knows how, whatever their type.
        self.key = match serde_json::to_value(key) {
            Ok(serde_json::Value::String(text)) => text,
            Ok(other) => other.to_string(),
            Err(_) => "?".to_owned(),
        };
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Walked {
        let key = std::mem::take(&mut self.key);
        self.walk.child(key, value)
    }

    fn end(self) -> Walked {
        Children::end(self)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Serialize)]
    enum Kind {
        Unit,
        One(f32),
        Two(f32, f32),
        Named { x: f64 },
    }

    #[derive(Serialize)]
    struct Doc {
        name: &'static str,
        some: Option<f32>,
        list: Vec<f32>,
        map: BTreeMap<usize, (f32, Kind)>,
    }

    fn doc() -> Doc {
        let map = BTreeMap::from([
            (1, (0.0, Kind::Unit)),
            (2, (0.0, Kind::Two(1.0, 2.0))),
            (3, (0.0, Kind::Named { x: 1.0 })),
            (4, (0.0, Kind::One(1.0))),
        ]);
        Doc { name: "NaN", some: None, list: vec![1.0, f32::MAX], map }
    }

    #[test]
    fn finite_values_pass() {
        assert_eq!(first_non_finite(&doc()), None);
    }

    #[test]
    fn the_path_leads_to_the_number() {
        let with = |change: fn(&mut Doc)| {
            let mut doc = doc();
            change(&mut doc);
            first_non_finite(&doc).unwrap()
        };
        assert_eq!(with(|d| d.some = Some(f32::NAN)), "some");
        assert_eq!(with(|d| d.list[1] = f32::INFINITY), "list.1");
        assert_eq!(with(|d| d.map.get_mut(&4).unwrap().0 = f32::NAN), "map.4.0");
        assert_eq!(with(|d| d.map.get_mut(&2).unwrap().1 = Kind::Two(0.0, f32::NAN)), "map.2.1.Two.1");
        assert_eq!(with(|d| d.map.get_mut(&3).unwrap().1 = Kind::Named { x: f64::NAN }), "map.3.1.Named.x");
        assert_eq!(with(|d| d.map.get_mut(&4).unwrap().1 = Kind::One(f32::NAN)), "map.4.1.One");
    }
}
