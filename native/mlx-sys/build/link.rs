//! Links shared libraries so that every program finds them by absolute path.
//!
//! A build script cannot give an rpath to the programs of dependent packages.
//! It can decide what the linker records as the *name* of a needed library,
//! though: the SONAME (ELF) or install name (Mach-O) of the file it links
//! with. A name that contains a slash is opened as a path by the loader, so
//! programs, tests, examples and doctests all run without any variable set.
//!
//! The published libraries stay as they are. The linker sees a stand-in in
//! `OUT_DIR` with the same exports and the wanted name: on Linux an empty
//! library assembled from the list of exports, on macOS a renamed copy.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{backend::Mlx, cache, elf, error::Result, fail, mlx_c, platform::Platform};

/// Tells cargo to link the MLX library.
pub fn link_mlx(platform: &Platform, mlx: &Mlx, out: &Path) -> Result<()> {
    if platform.is_mac() {
        let copy = out.join("libtaq_mlx.dylib");
        fs::copy(&mlx.library, &copy).map_err(|e| fail!("cannot write {}: {e}", copy.display()))?;
        run(Command::new("install_name_tool").arg("-id").arg(recorded(&mlx.library)?).arg(&copy))?;
        announce("taq_mlx", out);
        return Ok(());
    }
    stand_in("taq_mlx", &mlx.library, out)
}

/// Links a stand-in named `lib<name>.so` for an ELF library.
pub fn stand_in(name: &str, library: &Path, out: &Path) -> Result<()> {
    let source = out.join(format!("{name}.s"));
    let mut text = String::from("\t.section .note.GNU-stack,\"\",%progbits\n");
    for (is_data, section) in [(false, ".text"), (true, ".data")] {
        text.push_str(&format!("\t{section}\n"));
        for symbol in elf::exports(library)?.iter().filter(|s| s.is_data == is_data) {
            let kind = if is_data { "object" } else { "function" };
            let name = &symbol.name;
            text.push_str(&format!(
                "\t.globl \"{name}\"\n\t.type \"{name}\", %{kind}\n\"{name}\":\n\t.zero 8\n\t.size \"{name}\", 8\n"
            ));
        }
    }
    fs::write(&source, text).map_err(|e| fail!("cannot write {}: {e}", source.display()))?;

    let mut soname = std::ffi::OsString::from("-Wl,-soname,");
    soname.push(recorded(library)?);
    let mut compile = mlx_c::quiet().get_compiler().to_command();
    compile
        .args(["-shared", "-nostdlib", "-x", "assembler"])
        .arg(&source)
        .arg(soname)
        .arg("-o")
        .arg(out.join(format!("lib{name}.so")));
    run(&mut compile)?;
    announce(name, out);
    Ok(())
}

fn announce(name: &str, folder: &Path) {
    println!("cargo::rustc-link-search=native={}", folder.display());
    println!("cargo::rustc-link-lib=dylib={name}");
}

/// What programs record: the path itself, or, with `TAQ_MLX_RUNTIME` set, the
/// path below that folder at which the cache's `runtime` folder will stand.
fn recorded(library: &Path) -> Result<PathBuf> {
    let Some(folder) = env::var_os("TAQ_MLX_RUNTIME").filter(|value| !value.is_empty()) else {
        return Ok(library.to_owned());
    };
    let below = library.strip_prefix(cache::root()?.join("runtime")).map_err(|_| {
        fail!("TAQ_MLX_RUNTIME works with the wheels that taq fetches, not with a TAQ_MLX path")
    })?;
    Ok(Path::new(&folder).join(below))
}

/// Runs a tool of the compiler's tool chain.
pub fn run(command: &mut Command) -> Result<()> {
    let output =
        command.output().map_err(|e| fail!("cannot run {}: {e}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(fail!(
        "{} failed: {}",
        command.get_program().display(),
        String::from_utf8_lossy(&output.stderr).trim_end()
    ))
}
