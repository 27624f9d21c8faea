//! stderr, shared by bars, logs and messages so that they do not write over each other.

use std::io::{self, IsTerminal, Write};

use indicatif::{MultiProgress, ProgressDrawTarget};
use tracing_subscriber::fmt::MakeWriter;

/// stderr with its bars.
#[derive(Clone)]
pub(crate) struct Terminal {
    bars: MultiProgress,
    draws: bool,
}

impl Terminal {
    /// stderr; bars are drawn where it is a terminal and `quiet` is not set.
    pub(crate) fn stderr(quiet: bool) -> Self {
        let draws = !quiet && io::stderr().is_terminal();
        let target = if draws { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bars: MultiProgress::with_draw_target(target), draws }
    }

    /// Whether bars are drawn.
    pub(crate) fn draws(&self) -> bool {
        self.draws
    }

    /// The bars.
    pub(crate) fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// Writes a text above the bars. A stderr that is closed or full is no reason to stop.
    pub(crate) fn write(&self, text: &str) {
        self.bars.suspend(|| {
            let _ = io::stderr().lock().write_all(text.as_bytes());
        });
    }
}

impl<'a> MakeWriter<'a> for Terminal {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { terminal: self.clone(), text: Vec::new() }
    }
}

/// One event of the log, written whole when it is complete.
pub(crate) struct Line {
    terminal: Terminal,
    text: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.terminal.write(&String::from_utf8_lossy(&self.text));
    }
}
