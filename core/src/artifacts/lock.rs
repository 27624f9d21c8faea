//! One writer a run folder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::Path;

use crate::{Error, Result};

/// Name of the lock file inside the folder. It stays there; only the lock on it counts.
pub const LOCK_FILE: &str = ".lock";

/// An advisory lock on a folder. The system releases it when the value is dropped or the process ends, however
/// it ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes the lock, or says who has it. On a filesystem without locks there is a warning and no lock.
    ///
    /// # Errors
    /// [`Error::Io`] with `WouldBlock` if another process (or another lock in this one) has it; [`Error::Io`] if
    /// the folder cannot be written.
    pub fn take(folder: &Path) -> Result<Self> {
        let path = folder.join(LOCK_FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("write", folder))?;
        match file.try_lock() {
            Ok(()) => {
                // Who has the lock is for people to read; failing to say so is not a reason to stop.
                let noted = file
                    .set_len(0)
                    .and_then(|()| file.rewind())
                    .and_then(|()| write!(file, "{}", std::process::id()));
                if let Err(e) = noted {
                    tracing::debug!("cannot note the process id in `{}`: {e}", path.display());
                }
            }
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let who = match holder.trim().parse::<u32>() {
                    Ok(id) => format!("process {id}"),
                    Err(_) => "another process".to_owned(),
                };
                let reason =
                    format!("{who} is writing to it; wait until it has ended, or choose another folder");
                return Err(Error::io("lock", folder)(std::io::Error::new(ErrorKind::WouldBlock, reason)));
            }
            Err(TryLockError::Error(e)) => {
                tracing::warn!(
                    "`{}` cannot be locked ({e}): take care that one process writes to it",
                    folder.display()
                );
            }
        }
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_taker_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = FolderLock::take(dir.path()).unwrap();
        let error = FolderLock::take(dir.path()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "cannot lock `{}`: process {} is writing to it; wait until it has ended, or choose another folder",
                dir.path().display(),
                std::process::id()
            )
        );
        drop(first);
        FolderLock::take(dir.path()).unwrap();
    }
}
