"""Reads what `taq export --format packed` writes. numpy alone is enough; torch and diffusers are optional.

    import load
    weights = load.load_transformer(".")            # every tensor of diffusers' SD3Transformer2DModel, as numpy arrays
    transformer = load.diffusers_transformer(".")   # that model itself, with torch and diffusers

    python load.py .                                # what is in the folder

A packed layer M has no `M.weight`, but in transformer/quantized.safetensors

    M.weight_packed       u8   [out, ceil(in * bits / 8)]   integers of `bits` bits in two's complement, one row after the
                                                            other; in a row a stream of bits, the lowest first
    M.weight_scale        f32  [out, groups]                the step size of every group of in / groups columns; [1, 1] if the
                                                            whole weight has one
    M.weight_zero_point   f32  [out, groups]                absent on symmetric grids, where it is 0
    M.column_multiplier   f32  [in]                         absent where it is 1

and the weight is ((integer - zero point) * scale) / multiplier, each step in f32. `bits` and shape are in
transformer/config.json under "quantization_config". `M.bias` is the one to use with inputs in full precision. What taq
computes with quantized inputs is in transformer/inputs.safetensors and transformer/plan.json.
"""

import json
import os
import struct
import sys

import numpy as np

TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "U8": "u1", "I8": "i1", "I32": "<i4", "I64": "<i8"}


def read_safetensors(path):
    """All tensors of a file by name. bf16, which numpy does not have, becomes f32."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = np.frombuffer(file.read(), dtype=np.uint8)
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        if entry["dtype"] == "BF16":
            values = (data[start:end].view("<u2").astype("<u4") << 16).view("<f4")
        else:
            values = data[start:end].view(TYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def unpack(packed, bits, columns):
    """Integers, i16 [rows, columns], of packed rows, u8 [rows, bytes]."""
    stream = np.unpackbits(packed, axis=1, bitorder="little")[:, : columns * bits]
    stream = stream.reshape(len(packed), columns, bits)
    integers = np.zeros((len(packed), columns), dtype=np.int16)
    for bit in range(bits):
        integers |= stream[:, :, bit].astype(np.int16) << bit
    sign = 1 << (bits - 1)
    return (integers ^ sign) - sign


def dequantize(tensors, module, bits, shape):
    """The weight of a packed layer, f32 [out, in]."""
    scale = tensors[module + ".weight_scale"]
    zero = tensors.get(module + ".weight_zero_point", np.zeros_like(scale))
    integers = unpack(tensors[module + ".weight_packed"], bits, shape[1]).astype(np.float32)
    groups = integers.reshape(shape[0], scale.shape[1], -1)
    weight = ((groups - zero[:, :, None]) * scale[:, :, None]).reshape(shape)
    multiplier = tensors.get(module + ".column_multiplier")
    return weight if multiplier is None else weight / multiplier


def load_transformer(folder):
    """Every tensor of the transformer by diffusers' names; weights that were packed as f32."""
    folder = os.path.join(folder, "transformer")
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        layers = json.load(file)["quantization_config"]["layers"]
    tensors = read_safetensors(os.path.join(folder, "quantized.safetensors"))
    parts = ("weight_packed", "weight_scale", "weight_zero_point", "column_multiplier")
    weights = {name: values for name, values in tensors.items() if name.rsplit(".", 1)[-1] not in parts}
    for module, layer in layers.items():
        weights[module + ".weight"] = dequantize(tensors, module, layer["grid"]["bits"], layer["shape"])
    return weights


def diffusers_transformer(folder, dtype=None):
    """diffusers' SD3Transformer2DModel with these weights, in torch's `dtype` (default: float32)."""
    import torch
    from diffusers import SD3Transformer2DModel

    with open(os.path.join(folder, "transformer", "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    del config["quantization_config"]
    model = SD3Transformer2DModel.from_config(config)
    weights = load_transformer(folder)
    model.load_state_dict({name: torch.from_numpy(values.copy()) for name, values in weights.items()})
    return model.to(dtype or torch.float32)


if __name__ == "__main__":
    for name, values in sorted(load_transformer(sys.argv[1] if len(sys.argv) > 1 else ".").items()):
        print(name, values.dtype, list(values.shape))
