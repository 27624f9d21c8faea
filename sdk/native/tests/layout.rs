//! `include/taq_plugin.h` and `abi` lay out the same bytes: a C program says where every field is.

use std::fmt::Write as _;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::Command;

use taq_plugin::abi::{self, *};

/// A compiler, and what makes it C or C++.
fn compiled(folder: &Path, source: &str, language: &str) -> PathBuf {
    let (name, compiler, standard) = match language {
        "c++" => ("layout.cpp", std::env::var("CXX").unwrap_or("c++".into()), "-std=c++11"),
        _ => ("layout.c", std::env::var("CC").unwrap_or("cc".into()), "-std=c99"),
    };
    std::fs::write(folder.join(name), source).unwrap();
    let program = folder.join(language.replace('+', "p"));
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    let output = Command::new(&compiler)
        .args([standard, "-Wall", "-Wextra", "-Werror", "-pedantic", "-I"])
        .arg(include)
        .arg("-o")
        .arg(&program)
        .arg(folder.join(name))
        .output()
        .unwrap_or_else(|e| panic!("{compiler}: {e}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

/// Rust's side, and the C expressions that should print the same.
#[derive(Default)]
struct Lines {
    expected: String,
    program: String,
}

impl Lines {
    fn number(&mut self, name: &str, value: usize, c: &str) {
        let _ = writeln!(self.expected, "{name} {value}");
        let _ = writeln!(self.program, "    printf(\"{name} %lu\\n\", (unsigned long)({c}));");
    }
}

macro_rules! structure {
    ($lines:ident, $c:ident = $rust:ident { $($field:ident $(as $c_field:ident)?),* $(,)? }) => {
        $lines.number(stringify!($c), size_of::<$rust>(), concat!("sizeof(", stringify!($c), ")"));
        $({
            // Every field of the Rust structure stands here, or this does not compile.
            #[allow(unused_variables)]
            let field = stringify!($field);
            $(let field = stringify!($c_field);)?
            let name = concat!(stringify!($c), ".");
            $lines.number(
                &format!("{name}{field}"),
                offset_of!($rust, $field),
                &format!("offsetof({}, {field})", stringify!($c)),
            );
        })*
        #[allow(dead_code)]
        fn $c(whole: $rust) {
            let $rust { $($field: _),* } = whole;
        }
    };
}

#[test]
#[cfg_attr(miri, ignore = "it runs a compiler")]
#[allow(non_snake_case, reason = "functions named as the structures of C")]
fn the_header_has_the_layout_of_the_crate() {
    let mut lines = Lines::default();
    structure!(
        lines,
        TaqStamp = Stamp { magic, size, abi_major, abi_minor, flags, reserved, compiler, sdk, target }
    );
    structure!(lines, TaqStr = Str { ptr, len });
    structure!(lines, TaqBuf = Buf { ptr, len, release, private as private_data });
    structure!(lines, TaqTensor = Tensor { data, dtype, ndim, shape, strides });
    structure!(lines, TaqTensorMut = TensorMut { data, dtype, ndim, shape, strides });
    structure!(lines, TaqHostApi = HostApi { size, abi_minor, ctx, log, progress, cancelled });
    structure!(
        lines,
        TaqLayerInfo = LayerInfo { size, post_gelu, id, block, stream, role, in_features, out_features }
    );
    structure!(lines, TaqGrid = Grid { bits, symmetric, qmin, qmax, group_len, groups });
    structure!(
        lines,
        TaqLayer = Layer {
            size,
            reserved,
            info,
            grid,
            weight,
            input_bits,
            input_scale,
            start_scale,
            start_zero_point,
            weight_int,
            scale,
            zero_point,
            learned_input_scale,
        }
    );
    structure!(
        lines,
        TaqRoundLayerArgs = RoundLayerArgs { size, reserved, seed, host, layer, inputs, targets, steps }
    );
    structure!(lines, TaqLayerValues = LayerValues { weight, input_scale });
    structure!(lines, TaqLayerGradients = LayerGradients { weight, input_scale });
    structure!(lines, TaqBatch = Batch { rows, n_rows, drop, drop_seed, input_scales, reserved });
    structure!(
        lines,
        TaqReconstruction =
            Reconstruction { size, reserved, ctx, rows, steps, inputs, loss_and_gradients, held_out_loss }
    );
    structure!(
        lines,
        TaqRoundBlockArgs =
            RoundBlockArgs { size, reserved, seed, host, block, layers, n_layers, reconstruction }
    );
    structure!(
        lines,
        TaqRounderTable = RounderTable { size, reserved, create, round_layer, round_block, destroy }
    );
    structure!(lines, TaqObserveArgs = ObserveArgs { size, sigma, step, host, layer, values, min, max });
    structure!(lines, TaqRangeArgs = RangeArgs { size, reserved, min, max, low, high });
    structure!(lines, TaqObserverTable = ObserverTable { size, reserved, create, observe, finish, destroy });
    structure!(lines, TaqAssignArgs = AssignArgs { size, reserved, host, request });
    structure!(lines, TaqPolicyTable = PolicyTable { size, reserved, create, assign, destroy });
    structure!(lines, TaqItem = Item { kind, reserved, name, describe, table });
    structure!(lines, TaqDecl = Decl { size, reserved, name, version, items, n_items });
    for (name, value) in [
        ("TAQ_ABI_MAJOR", u32::from(ABI_MAJOR)),
        ("TAQ_ABI_MINOR", u32::from(ABI_MINOR)),
        ("TAQ_OK", abi::OK as u32),
        ("TAQ_INVALID", abi::INVALID as u32),
        ("TAQ_UNSUPPORTED", abi::UNSUPPORTED as u32),
        ("TAQ_PANICKED", abi::PANICKED as u32),
        ("TAQ_CANCELLED", abi::CANCELLED as u32),
        ("TAQ_FAILED", abi::FAILED as u32),
        ("TAQ_F32", abi::F32),
        ("TAQ_I8", abi::I8),
        ("TAQ_U8", abi::U8),
        ("TAQ_U32", abi::U32),
        ("TAQ_OBSERVER", KIND_OBSERVER),
        ("TAQ_ROUNDER", KIND_ROUNDER),
        ("TAQ_POLICY", KIND_POLICY),
        ("TAQ_ERROR", LOG_ERROR),
        ("TAQ_WARN", LOG_WARN),
        ("TAQ_INFO", LOG_INFO),
        ("TAQ_DEBUG", LOG_DEBUG),
        ("TAQ_TRACE", LOG_TRACE),
        ("TAQ_FLAG_UNWIND", FLAG_UNWIND),
        ("TAQ_FLAG_DEBUG", FLAG_DEBUG),
    ] {
        lines.number(name, value as usize, name);
    }
    for language in ["c", "c++"] {
        let source = format!(
            "#include <stdio.h>\n#include \"taq_plugin.h\"\n\nint main(void) {{\n{}    return 0;\n}}\n",
            lines.program
        );
        let folder = tempfile::tempdir().unwrap();
        let output = Command::new(compiled(folder.path(), &source, language)).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), lines.expected, "{language}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "it runs a compiler")]
fn the_header_s_stamp_is_the_crate_s_but_for_the_words() {
    let source = "#include <stdio.h>\n#include \"taq_plugin.h\"\nTAQ_DEFINE_STAMP;\nint main(void) {\n    \
                  fwrite(&TAQ_PLUGIN_STAMP, 1, sizeof TAQ_PLUGIN_STAMP, stdout);\n    return 0;\n}\n";
    let folder = tempfile::tempdir().unwrap();
    let bytes = Command::new(compiled(folder.path(), source, "c")).output().unwrap().stdout;
    assert_eq!(bytes.len(), size_of::<Stamp>());
    let ours = taq_plugin::export::stamp(false, false);
    let numbers = [&ours.magic[..], &ours.size.to_ne_bytes(), &ours.abi_major.to_ne_bytes()].concat();
    assert_eq!(bytes[..14], numbers);
    assert!(bytes[24..].starts_with(b"C\0") && bytes[88..].starts_with(b"taq_plugin.h 1.0\0"));
}
