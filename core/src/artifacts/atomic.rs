//! Files that are either whole or absent.
//!
//! A file is written under a temporary name in its own folder, flushed to the disk, and renamed over the final
//! name. A process that is killed leaves the old file and a `.tmp-…` beside it, which [`sweep`] removes.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::{Error, Result};

/// How names of unfinished files begin.
pub const TEMPORARY_PREFIX: &str = ".tmp-";

/// Writes a file in one step: whoever opens `path` sees the old content or all that `write` wrote.
///
/// Missing parent folders are created. If `write` fails, its error is returned and the old file stays.
///
/// # Errors
/// [`Error::Io`] with `path` if the folder cannot be created or written, or the disk is full.
pub fn atomic_write(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder).map_err(Error::io("write", path))?;
    let mut temporary = temporary(folder).map_err(Error::io("write", path))?;
    write(temporary.as_file_mut())?;
    temporary.as_file().sync_all().map_err(Error::io("write", path))?;
    temporary.persist(path).map_err(|e| e.error).map_err(Error::io("write", path))?;
    Ok(())
}

/// [`atomic_write`] of bytes that are already there.
pub fn atomic_write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    atomic_write(path, |file| file.write_all(bytes).map_err(Error::io("write", path)))
}

/// A temporary file that gets the permissions of an ordinary new one (by default it would be the owner's only).
fn temporary(folder: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY_PREFIX);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

/// Removes what killed writers left in a folder and its subfolders; returns how many files. Links are not
/// followed. The caller makes sure that nobody is writing there.
pub fn sweep(folder: &Path) -> Result<usize> {
    let mut removed = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
            let entry = entry.map_err(Error::io("read", &folder))?;
            let kind = entry.file_type().map_err(Error::io("read", entry.path()))?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
                fs::remove_file(entry.path()).map_err(Error::io("remove", entry.path()))?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn creates_folders_and_replaces_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/file");
        atomic_write_bytes(&path, b"old").unwrap();
        atomic_write_bytes(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(path.parent().unwrap()), ["file"]);
    }

    #[test]
    fn a_failing_writer_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        atomic_write_bytes(&path, b"old").unwrap();
        let result = atomic_write(&path, |file| {
            file.write_all(b"half of the n").unwrap();
            Err(Error::Cancelled)
        });
        assert!(matches!(result, Err(Error::Cancelled)));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[test]
    fn the_old_file_is_readable_while_the_new_one_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        atomic_write_bytes(&path, b"old").unwrap();
        atomic_write(&path, |file| {
            file.write_all(b"new").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"old");
            let unfinished: Vec<String> =
                names(dir.path()).into_iter().filter(|n| n.starts_with(TEMPORARY_PREFIX)).collect();
            assert_eq!(unfinished.len(), 1);
            Ok(())
        })
        .unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_path_through_a_file_is_an_error_with_the_final_path() {
        let dir = tempfile::tempdir().unwrap();
        atomic_write_bytes(&dir.path().join("file"), b"").unwrap();
        let path = dir.path().join("file/below");
        match atomic_write_bytes(&path, b"x") {
            Err(Error::Io { action: "write", path: found, .. }) => assert_eq!(found, path),
            other => panic!("{other:?}"),
        }
    }

    #[cfg(unix)]
    #[test]
    fn new_files_are_as_readable_as_any_other() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("plain"), b"").unwrap();
        atomic_write_bytes(&dir.path().join("ours"), b"").unwrap();
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode("ours"), mode("plain"));
    }

    #[test]
    fn sweeping_removes_unfinished_files_only() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join(".tmp-x1"), b"").unwrap();
        fs::write(dir.path().join(".tmp-x2"), b"").unwrap();
        fs::write(deep.join("keep.npz"), b"").unwrap();
        assert_eq!(sweep(dir.path()).unwrap(), 2);
        assert_eq!(names(&deep), ["keep.npz"]);
        assert_eq!(names(dir.path()), ["a"]);
    }
}
