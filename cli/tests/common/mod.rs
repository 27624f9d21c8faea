//! Runs the `taq` binary.
#![allow(dead_code, reason = "every test file uses a part")]

use std::path::Path;
use std::process::{Command, Stdio};

/// What a call of `taq` left behind.
pub struct Call {
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Call {
    /// Checks the exit code and shows what was written if it is another.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Checks that stderr has a text.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "`{text}` is not in stderr:\n{}", self.stderr);
        self
    }
}

/// The command, in a clean environment, with its pipes captured.
pub fn command(arguments: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taq"));
    command
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_remove("TAQ_LOG")
        .env_remove("RUST_BACKTRACE");
    command
}

/// Calls `taq` in a folder.
pub fn taq_in(folder: &Path, arguments: &[&str]) -> Call {
    let output = command(arguments, folder).output().expect("taq starts");
    Call {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
    }
}

/// Calls `taq` where nothing is.
pub fn taq(arguments: &[&str]) -> Call {
    taq_in(&std::env::temp_dir(), arguments)
}
