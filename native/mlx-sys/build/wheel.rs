//! Fetches a pinned wheel with pip and unpacks it into the cache.

use std::{
    env,
    ffi::OsString,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{cache, error::Result, fail, pins, platform::Platform};

/// Which part of the cache a wheel belongs to.
#[derive(Clone, Copy)]
pub enum Use {
    Build,
    Runtime,
}

/// The folder with the unpacked wheel of `package`, fetched first if need be.
pub fn unpacked(package: &str, target: Platform, kind: Use) -> Result<PathBuf> {
    let pin = pins::find(package, target)
        .ok_or_else(|| fail!("there is no pinned {package} wheel for this target"))?;
    let part = match kind {
        Use::Build => "build",
        Use::Runtime => "runtime",
    };
    let name = format!("{package}-{}-{}", pin.version, &pin.sha256[..8]);
    let folder = cache::root()?.join(part).join(name);
    cache::folder(&folder, |temporary| {
        let download = temporary.join("download");
        let wheel = download_wheel(pin, &download)?;
        python(&["-m", "zipfile", "-e"], &[&wheel, temporary])?
            .map_err(|message| fail!("cannot unpack {}: {message}", wheel.display()))?;
        fs::remove_dir_all(&download).map_err(|e| fail!("cannot remove {}: {e}", download.display()))
    })?;
    Ok(folder)
}

fn download_wheel(pin: &pins::Pin, folder: &Path) -> Result<PathBuf> {
    let write = |e: std::io::Error| fail!("cannot write {}: {e}", folder.display());
    fs::create_dir_all(folder).map_err(write)?;
    let requirements = folder.join("requirements.txt");
    let line = format!("{}=={} --hash=sha256:{}\n", pin.package, pin.version, pin.sha256);
    fs::write(&requirements, line).map_err(write)?;

    let pip = [
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
        "--platform",
        pin.tag,
        "--dest",
    ];
    let what = format!("{} {}", pin.package, pin.version);
    python(&pip, &[folder, Path::new("--requirement"), &requirements])?.map_err(|message| {
        if message.contains("No module named pip") {
            fail!("python3 has no pip, which fetches {what}: install python3-pip (or run `python3 -m ensurepip`)")
        } else if message.contains("DO NOT MATCH THE HASHES") {
            fail!("the downloaded {what} is not the pinned file (SHA-256 {}): refused\n{message}", pin.sha256)
        } else {
            fail!(
                "cannot download {what} with pip; connect to the network or a PyPI mirror (PIP_INDEX_URL), \
                 or put the wheel in a folder and set PIP_NO_INDEX=1 PIP_FIND_LINKS=<folder>\n{message}"
            )
        }
    })?;
    let wheels = fs::read_dir(folder).map_err(write)?.flatten().map(|entry| entry.path());
    wheels
        .into_iter()
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .ok_or_else(|| fail!("pip reported success but left no wheel of {what}"))
}

/// Runs Python; the inner error is what it printed.
fn python(args: &[&str], paths: &[&Path]) -> Result<std::result::Result<(), String>> {
    let program = env::var_os("PYTHON").unwrap_or_else(|| OsString::from("python3"));
    let output = Command::new(&program).args(args).args(paths).output().map_err(|e| {
        let name = program.display();
        if e.kind() == ErrorKind::NotFound {
            fail!(
                "{name} was not found; it fetches and unpacks MLX: install Python 3 with pip, or set PYTHON"
            )
        } else {
            fail!("cannot run {name}: {e}")
        }
    })?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let tail: Vec<&str> = message.lines().rev().take(6).collect();
    Ok(Err(tail.into_iter().rev().collect::<Vec<_>>().join("\n")))
}
