//! Generates the Rust declarations of mlx-c with bindgen.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{error::Result, fail, mlx_c, platform::Platform, wheel};

/// Half-precision names, which mlx-c declares on some targets only; `src/half.rs` supplies them.
const HALF: [&str; 4] = [
    "mlx_array_item_float16",
    "mlx_array_item_bfloat16",
    "mlx_array_data_float16",
    "mlx_array_data_bfloat16",
];

/// Writes `OUT_DIR/bindings.rs`.
pub fn generate(platform: &Platform, mlx_c: &Path, out: &Path) -> Result<()> {
    if env::var_os("LIBCLANG_PATH").is_none() {
        let wheel = wheel::unpacked("libclang", *platform, wheel::Use::Build)?;
        let native = find_native(&wheel)
            .ok_or_else(|| fail!("the libclang wheel in {} holds no library", wheel.display()))?;
        // SAFETY: the build script has no other thread at this point.
        unsafe { env::set_var("LIBCLANG_PATH", native) };
    }

    let mut builder = bindgen::Builder::default()
        .formatter(bindgen::Formatter::None)
        .generate_comments(false)
        .clang_arg(format!("-I{}", mlx_c.display()))
        .blocklist_type("b?float16_t")
        .blocklist_function("malloc|realloc");
    for name in HALF {
        builder = builder.blocklist_function(name);
    }
    for argument in system_headers(*platform) {
        builder = builder.clang_arg(argument);
    }
    for header in headers(&mlx_c.join("mlx/c"))? {
        builder = builder.header(header.to_string_lossy());
    }
    let bindings = builder.generate().map_err(|e| fail!("bindgen cannot read the mlx-c headers: {e}"))?;
    let file = out.join("bindings.rs");
    bindings.write_to_file(&file).map_err(|e| fail!("cannot write {}: {e}", file.display()))
}

/// The folder of the wheel that holds the library itself.
fn find_native(wheel: &Path) -> Option<PathBuf> {
    let data = fs::read_dir(wheel).ok()?.flatten().map(|entry| entry.path());
    data.flat_map(|folder| [folder.join("clang/native"), folder.join("platlib/clang/native")])
        .chain([wheel.join("clang/native")])
        .find(|folder| folder.is_dir())
}

/// The wheel has no headers of its own: the compiler's serve.
fn system_headers(platform: Platform) -> Vec<String> {
    let ask = |command: &mut Command| {
        let output = command.output().ok().filter(|output| output.status.success())?;
        let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (!text.is_empty()).then_some(text)
    };
    let compiler = mlx_c::quiet().get_compiler();
    if platform.is_mac() {
        let sdk = ask(Command::new("xcrun").arg("--show-sdk-path")).map(|path| format!("-isysroot{path}"));
        let builtin =
            ask(compiler.to_command().arg("-print-resource-dir")).map(|path| format!("-I{path}/include"));
        return sdk.into_iter().chain(builtin).collect();
    }
    ask(compiler.to_command().arg("-print-file-name=include"))
        .map(|path| format!("-I{path}"))
        .into_iter()
        .collect()
}

fn headers(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| fail!("cannot read {}: {e}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "h"))
        .collect();
    files.sort();
    Ok(files)
}
