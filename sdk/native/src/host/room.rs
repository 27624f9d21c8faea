//! One layer as a plugin sees it, with room for its integers.

use taq_policy::{LayerSpec, Role, Stream};

use super::{Guarded, UNWRITTEN, Written};
use crate::abi::{self, LayerInfo, Str};
use crate::view::Shape;
use crate::{Grid, RoundedLayer};

/// A layer's words, to be kept alive as long as what [`Self::info`] gives.
pub struct Words<'a> {
    layer: &'a LayerSpec,
}

impl<'a> Words<'a> {
    /// Those of a layer.
    pub fn of(layer: &'a LayerSpec) -> Self {
        Self { layer }
    }

    /// The layer as the ABI has it; valid while the layer stays where it is.
    pub fn info(&self) -> LayerInfo {
        let layer = self.layer;
        let stream = match layer.stream {
            Stream::Image => "image",
            Stream::Text => "text",
        };
        let role = match layer.role {
            Role::Q => "q",
            Role::K => "k",
            Role::V => "v",
            Role::O => "o",
            Role::Fc1 => "fc1",
            Role::Fc2 => "fc2",
        };
        LayerInfo {
            size: size_of::<LayerInfo>() as u32,
            post_gelu: layer.post_gelu.into(),
            id: Str::new(layer.id.as_str()),
            block: Str::new(layer.block.as_str()),
            stream: Str::new(stream),
            role: Str::new(role),
            in_features: layer.in_features as u64,
            out_features: layer.out_features as u64,
        }
    }
}

/// A layer to be rounded, and where rounding may start.
#[derive(Debug, Clone)]
pub struct LayerData {
    /// The layer.
    pub spec: LayerSpec,
    /// Row-major `[out_features, in_features]`.
    pub weight: Vec<f32>,
    /// The grid to round to.
    pub grid: Grid,
    /// Bits of the input, `[steps]`.
    pub input_bits: Vec<u8>,
    /// Step sizes of the input, `[steps]`.
    pub input_scale: Vec<f32>,
    /// Step sizes to start at, `[groups]`.
    pub start_scale: Vec<f32>,
    /// Zero points to start at, `[groups]`.
    pub start_zero_point: Vec<f32>,
}

/// A layer with room for its integers.
pub struct Room {
    data: Box<LayerData>,
    info: LayerInfo,
    matrix: Shape,
    groups: Shape,
    steps: Shape,
    weight_int: Guarded<i8>,
    scale: Guarded<f32>,
    zero_point: Guarded<f32>,
    learned: Guarded<f32>,
}

impl Room {
    /// Room for a layer.
    pub fn new(data: LayerData) -> Self {
        let data = Box::new(data);
        Self {
            info: Words::of(&data.spec).info(),
            matrix: Shape::matrix(data.spec.out_features, data.spec.in_features),
            groups: Shape::vector(data.grid.groups),
            steps: Shape::vector(data.input_scale.len()),
            // Integers below most grids, so that those that are not written are seen; of 8 bits every integer is one.
            weight_int: Guarded::filled(i8::MIN, data.weight.len()),
            scale: Guarded::filled(UNWRITTEN, data.grid.groups),
            zero_point: Guarded::filled(0.0, data.grid.groups),
            learned: Guarded::holding(&data.input_scale),
            data,
        }
    }

    /// The layer.
    pub fn data(&self) -> &LayerData {
        &self.data
    }

    /// As the ABI has it; valid while the room stays where it is.
    pub fn layer(&mut self) -> abi::Layer {
        abi::Layer {
            size: size_of::<abi::Layer>() as u32,
            reserved: 0,
            info: &self.info,
            grid: self.data.grid.to_abi(),
            weight: self.matrix.view(&self.data.weight),
            input_bits: self.steps.view(&self.data.input_bits),
            input_scale: self.steps.view(&self.data.input_scale),
            start_scale: self.groups.view(&self.data.start_scale),
            start_zero_point: self.groups.view(&self.data.start_zero_point),
            weight_int: self.matrix.room(self.weight_int.room()),
            scale: self.groups.room(self.scale.room()),
            zero_point: self.groups.room(self.zero_point.room()),
            learned_input_scale: self.steps.room(self.learned.room()),
        }
    }

    /// What was written.
    ///
    /// # Errors
    /// A sentence with what was left unwritten or written beyond its room, or cannot be integers on this grid.
    pub fn rounded(&self) -> Result<RoundedLayer, String> {
        for (what, intact) in [
            ("weight_int", self.weight_int.is_intact()),
            ("scale", self.scale.is_intact()),
            ("zero_point", self.zero_point.is_intact()),
            ("learned_input_scale", self.learned.is_intact()),
        ] {
            if !intact {
                return Err(format!("it wrote beyond the room of `{what}`"));
            }
        }
        let (grid, scale, zero) = (&self.data.grid, self.scale.values(), self.zero_point.values());
        if let Some(at) = scale.iter().position(|v| v.same(UNWRITTEN)) {
            return Err(format!("it did not write scale[{at}] of {}", scale.len()));
        }
        for (what, values) in [("scale", scale), ("learned_input_scale", self.learned.values())] {
            if let Some(at) = values.iter().position(|v| !v.is_finite() || *v <= 0.0) {
                let found = values[at];
                return Err(format!("{what}[{at}] is {found}, expected a finite number greater than 0"));
            }
        }
        if let Some(at) = zero.iter().position(|z| !z.is_finite() || grid.symmetric && *z != 0.0) {
            let expected = if grid.symmetric { "0 on a symmetric grid" } else { "a finite number" };
            return Err(format!("zero_point[{at}] is {}, expected {expected}", zero[at]));
        }
        let (low, high) = (grid.qmin(), grid.qmax());
        let integers = self.weight_int.values();
        if let Some(at) = integers.iter().position(|q| !(low..=high).contains(q)) {
            let (found, bits) = (integers[at], grid.bits);
            let reason =
                format!("weight_int[{at}] is {found}, expected {low} to {high} on a grid of {bits} bits");
            return Err(if found == i8::MIN { format!("{reason}; was it written?") } else { reason });
        }
        let learned = self.learned.values();
        Ok(RoundedLayer {
            weight_int: integers.to_vec(),
            scale: scale.to_vec(),
            zero_point: zero.to_vec(),
            input_scale: (learned != self.data.input_scale).then(|| learned.to_vec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(symmetric: bool) -> Room {
        Room::new(LayerData {
            spec: taq_policy::testing::layer("b.img.q", Role::Q, 2, 2),
            weight: vec![0.5, -0.5, 1.0, 0.0],
            grid: Grid { bits: 4, symmetric, group_len: 2, groups: 2 },
            input_bits: vec![8],
            input_scale: vec![0.1],
            start_scale: vec![0.1, 0.2],
            start_zero_point: vec![0.0; 2],
        })
    }

    #[test]
    fn an_answer_is_what_was_written() {
        let mut room = room(true);
        room.layer();
        room.weight_int.room().copy_from_slice(&[5, -5, 5, 0]);
        assert_eq!(room.rounded().unwrap_err(), "it did not write scale[0] of 2");
        room.scale.room().copy_from_slice(&[0.1, 0.2]);
        let rounded = room.rounded().unwrap();
        assert_eq!(
            (rounded.input_scale.clone(), rounded.values(&room.data.grid)),
            (None, vec![0.5, -0.5, 1.0, 0.0])
        );
        room.learned.room()[0] = 0.2;
        assert_eq!(room.rounded().unwrap().input_scale, Some(vec![0.2]));
    }

    #[test]
    fn what_cannot_be_is_named() {
        type Change = fn(&mut Room);
        let cases: [(Change, &str); 5] = [
            (|r| r.scale.room()[1] = f32::NAN, "scale[1] is NaN, expected a finite number greater than 0"),
            (|r| r.scale.room()[0] = 0.0, "scale[0] is 0, expected a finite number greater than 0"),
            (|r| r.zero_point.room()[1] = 1.0, "zero_point[1] is 1, expected 0 on a symmetric grid"),
            (|r| r.weight_int.room()[2] = 8, "weight_int[2] is 8, expected -8 to 7 on a grid of 4 bits"),
            (
                |r| r.learned.room()[0] = -1.0,
                "learned_input_scale[0] is -1, expected a finite number greater than 0",
            ),
        ];
        for (change, message) in cases {
            let mut room = room(true);
            room.scale.room().copy_from_slice(&[0.1, 0.2]);
            room.weight_int.room().fill(0);
            change(&mut room);
            assert_eq!(room.rounded().unwrap_err(), message);
        }
        let mut unwritten = room(false);
        unwritten.scale.room().fill(1.0);
        assert!(unwritten.rounded().unwrap_err().ends_with("; was it written?"));
    }
}
