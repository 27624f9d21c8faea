#!/usr/bin/env python3
"""Writes an SD3 of any size with random weights, for measuring time and memory where the trained weights are not at hand.

    python3 models/random_sd3.py OUT                     two blocks of SD3-Medium's size, images of 512 pixels
    taq calibrate --model OUT --run run --num-images 8 --steps 8 && taq observe --run run && taq decide --run run
    taq round --run run --blocks mm0 --batch-size 16 --iters 100

Text encoders and VAE are the embedded model's. Needs numpy.
"""

import argparse
import json
import shutil
import struct
from pathlib import Path

import numpy as np

EMBEDDED = Path(__file__).resolve().parent / "emoji-sd3"


def tensors(config):
    """Names and shapes as in diffusers' SD3Transformer2DModel."""
    width = config["attention_head_dim"] * config["num_attention_heads"]
    patch, channels = config["patch_size"], config["in_channels"]

    def linear(name, inputs, outputs):
        yield f"{name}.weight", (outputs, inputs)
        yield f"{name}.bias", (outputs,)

    yield "pos_embed.proj.weight", (width, channels, patch, patch)
    yield "pos_embed.proj.bias", (width,)
    yield "pos_embed.pos_embed", (1, config["pos_embed_max_size"] ** 2, width)
    yield from linear("context_embedder", config["joint_attention_dim"], width)
    yield from linear("norm_out.linear", width, 2 * width)
    yield from linear("proj_out", width, patch * patch * channels)
    for part, inputs in ("timestep", 256), ("text", config["pooled_projection_dim"]):
        yield from linear(f"time_text_embed.{part}_embedder.linear_1", inputs, width)
        yield from linear(f"time_text_embed.{part}_embedder.linear_2", width, width)
    for index in range(config["num_layers"]):
        block, last = f"transformer_blocks.{index}", index == config["num_layers"] - 1
        attention = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"]
        for name in attention + ([] if last else ["to_add_out"]):
            yield from linear(f"{block}.attn.{name}", width, width)
        for stream in ["ff"] + ([] if last else ["ff_context"]):
            yield from linear(f"{block}.{stream}.net.0.proj", width, 4 * width)
            yield from linear(f"{block}.{stream}.net.2", 4 * width, width)
        yield from linear(f"{block}.norm1.linear", width, 6 * width)
        yield from linear(f"{block}.norm1_context.linear", width, (2 if last else 6) * width)


def write_safetensors(path, named_shapes, seed=0):
    """Half-precision normal numbers of the size of a trained model's."""
    rng, header, at = np.random.default_rng(seed), {}, 0
    named_shapes = list(named_shapes)
    for name, shape in named_shapes:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, shape in named_shapes:
            size = 0.7 / np.sqrt(shape[-1]) if name.endswith("weight") else 0.02
            out.write((rng.standard_normal(shape, dtype=np.float32) * size).astype(np.float16).tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write, in diffusers' layout")
    parser.add_argument("--layers", type=int, default=2, help="blocks; the last one's text stream ends at attention [2]")
    parser.add_argument("--heads", type=int, default=24, help="attention heads of 64 channels [24]")
    parser.add_argument("--image-size", type=int, default=512, help="pixels [512]")
    args = parser.parse_args()

    for part in "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae":
        shutil.copytree(EMBEDDED / part, args.out / part, dirs_exist_ok=True)
    shutil.copy(EMBEDDED / "model_index.json", args.out)
    config = json.loads((EMBEDDED / "transformer" / "config.json").read_text())
    side = args.image_size // 8
    config |= {
        "num_layers": args.layers,
        "num_attention_heads": args.heads,
        "caption_projection_dim": 64 * args.heads,
        "sample_size": side,
        "pos_embed_max_size": side // 2 + side // 2 % 2,
    }
    folder = args.out / "transformer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", tensors(config))


if __name__ == "__main__":
    main()
