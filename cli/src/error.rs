//! What ends a command early, and how the user is told: one diagnostic on stderr and an exit code.

use std::fmt;
use std::io;

use miette::{Diagnostic, MietteHandlerOpts};
use taq_core::Error;

/// The command did what it was asked to do.
pub(crate) const SUCCESS: u8 = 0;
/// Something failed that is not the user's doing.
pub(crate) const FAILURE: u8 = 1;
/// The input was wrong: a flag, a manifest, a file, a name.
pub(crate) const BAD_INPUT: u8 = 2;
/// A defect of taq or of a plugin (`EX_SOFTWARE` of sysexits.h).
pub(crate) const DEFECT: u8 = 70;
/// Ctrl-C (128 + SIGINT).
pub(crate) const CANCELLED: u8 = 130;

/// Why a command ends early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A library refused or failed.
    Taq(Error),
    /// stdout could not be written.
    Output(io::Error),
    /// Cases of a policy, or checks of a library, that did not pass; what was wrong with them is on stdout.
    Checks { failed: usize, of: usize, what: &'static str },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Taq(error)
    }
}

impl Failure {
    /// The exit code of the process.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => SUCCESS,
            Self::Output(_) | Self::Checks { .. } => FAILURE,
            Self::Taq(Error::Cancelled) => CANCELLED,
            Self::Taq(error) if is_bad_input(error) => BAD_INPUT,
            Self::Taq(_) => FAILURE,
        }
    }

    /// The diagnostic as text, or `None` where nothing is to be said: the reader of a pipe has gone.
    pub(crate) fn render(&self) -> Option<String> {
        let report = match self {
            Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => return None,
            Self::Output(e) => Report {
                message: format!("cannot write to stdout: {e}"),
                code: "taq::io",
                help: None,
                severity: miette::Severity::Error,
            },
            Self::Checks { failed, of, what } => Report {
                message: format!("{failed} of {of} {what} failed"),
                code: if *what == "cases" { "taq::cases" } else { "taq::checks" },
                help: None,
                severity: miette::Severity::Error,
            },
            Self::Taq(error) => Report {
                message: error.to_string(),
                code: error.code(),
                help: help(error),
                severity: match error {
                    Error::Cancelled => miette::Severity::Warning,
                    _ => miette::Severity::Error,
                },
            },
        };
        Some(report.render())
    }
}

/// Whether the user can mend it by changing what was given to the command.
fn is_bad_input(error: &Error) -> bool {
    match error {
        Error::Io { action, source, .. } => {
            use io::ErrorKind as K;
            matches!(*action, "read" | "open")
                || matches!(
                    source.kind(),
                    K::NotFound
                        | K::PermissionDenied
                        | K::ReadOnlyFilesystem
                        | K::StorageFull
                        | K::QuotaExceeded
                        | K::FileTooLarge
                        | K::NotADirectory
                        | K::IsADirectory
                        | K::AlreadyExists
                )
        }
        Error::Malformed { .. }
        | Error::Weights { .. }
        | Error::UnknownPlugin { .. }
        | Error::Settings { .. }
        | Error::Shape { .. }
        // Of weights, samples or statistics: what taq computes from finite ones is finite.
        | Error::NotFinite { .. }
        | Error::StageMissing { .. }
        | Error::Stale { .. }
        | Error::Plan { .. }
        | Error::Wasm { .. }
        | Error::Native { .. }
        | Error::Unsupported { .. } => true,
        _ => false,
    }
}

/// The error's own help, or near names where serde lists what it would have known.
fn help(error: &Error) -> Option<String> {
    error.help().or_else(|| {
        let (Error::Malformed { reason, .. } | Error::Settings { reason, .. }) = error else { return None };
        near_field(reason)
    })
}

/// “did you mean” for serde's “unknown field `x`, expected one of `a`, `b`” (or “unknown variant …”).
fn near_field(reason: &str) -> Option<String> {
    let rest = &reason[reason.find("unknown field `").or_else(|| reason.find("unknown variant `"))?..];
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let found = quoted.next()?;
    let expected = rest.find("expected").map(|at| &rest[at..])?.lines().next()?;
    let known: Vec<String> = expected.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let near = taq_core::registry::near(found, &known);
    near.first().map(|name| format!("did you mean `{name}`?"))
}

/// One diagnostic, whatever library it came from.
#[derive(Debug)]
struct Report {
    message: String,
    code: &'static str,
    help: Option<String>,
    severity: miette::Severity,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Report {}

impl Diagnostic for Report {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.code))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(self.severity)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|h| Box::new(h) as _)
    }
}

impl Report {
    /// Wrapped to the terminal; unbroken lines, which tools can search, where stderr is a file or a pipe.
    fn render(&self) -> String {
        let options = MietteHandlerOpts::new().terminal_links(false);
        let options = match console::Term::stderr().size_checked() {
            Some((_, columns)) => options.width(usize::from(columns)),
            None => options.width(usize::MAX).wrap_lines(false),
        };
        let handler = options.build();
        struct Shown<'a>(&'a miette::MietteHandler, &'a Report);
        impl fmt::Display for Shown<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                miette::ReportHandler::debug(self.0, self.1, f)
            }
        }
        format!("{}\n", Shown(&handler, self).to_string().trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_say_whose_mistake_it_is() {
        let not_found = |action| {
            Failure::from(Error::io(action, "x")(io::Error::from(io::ErrorKind::NotFound))).exit_code()
        };
        assert_eq!(not_found("read"), BAD_INPUT);
        let full = Error::io("write", "x")(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(Failure::from(full).exit_code(), BAD_INPUT);
        let broken = Error::io("write", "x")(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(Failure::from(broken).exit_code(), FAILURE);
        assert_eq!(Failure::from(Error::settings("round", "no")).exit_code(), BAD_INPUT);
        assert_eq!(Failure::from(Error::Cancelled).exit_code(), CANCELLED);
        let pipe = Failure::Output(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((pipe.exit_code(), pipe.render()), (SUCCESS, None));
    }

    /// The table in docs/errors.md has the exit code of every error that can be made here.
    #[test]
    fn exit_codes_are_those_of_the_book() {
        use std::path::PathBuf;
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");
        let page = std::fs::read_to_string(page).unwrap();
        let io = |action, kind| Error::io(action, "x")(io::Error::from(kind));
        let (text, path) = (String::new, PathBuf::new);
        let errors = [
            io("read", io::ErrorKind::NotFound),
            io("write", io::ErrorKind::BrokenPipe),
            Error::malformed("plan", "x", "no"),
            Error::Weights { path: path(), issues: Vec::new() },
            Error::UnknownPlugin { kind: "rounder", name: text(), near: Vec::new(), known: Vec::new() },
            Error::DuplicatePlugin { kind: "rounder", name: text(), first: "a", second: "b" },
            Error::settings("round", "no"),
            Error::Plan { policy: text(), reason: text() },
            Error::Shape { what: text(), expected: text(), found: Vec::new() },
            Error::NotFinite { what: text() },
            Error::StageMissing { stage: "round", needs: text(), run: path(), first: "decide" },
            Error::Wasm { path: path(), reason: text() },
            Error::Native { path: path(), reason: text() },
            Error::Stale { path: path(), reason: text() },
            Error::Unsupported { what: text() },
            Error::Download { what: text(), reason: text() },
            Error::Cancelled,
        ];
        for error in errors {
            let code = error.code();
            let exit = Failure::from(error).exit_code().to_string();
            let row = page.lines().find_map(|line| line.strip_prefix(&format!("| `{code}` | "))).expect(code);
            let cell = row.split(" | ").next().unwrap_or_default();
            assert!(
                cell.split(" or ").any(|one| one == exit),
                "{code} exits with {exit}, the book says {cell}"
            );
        }
        for what in ["cases", "checks"] {
            let failed = Failure::Checks { failed: 1, of: 2, what };
            assert!(page.contains(&format!("| `taq::{what}` | {} |", failed.exit_code())));
        }
    }

    #[test]
    fn a_misspelt_field_gets_a_suggestion() {
        let reason = "TOML parse error at line 3, column 1\n  |\n3 | num_image = 2\n  | ^^^^^^^^^\n\
                      unknown field `num_image`, expected one of `recipe`, `num_images`, `num_steps`\n";
        assert_eq!(near_field(reason).as_deref(), Some("did you mean `num_images`?"));
        assert_eq!(near_field("invalid type: string"), None);
        assert_eq!(near_field("unknown field `q`, there are no fields"), None);
    }

    #[test]
    fn diagnostics_have_message_code_and_help() {
        let error = Error::UnknownPlugin {
            kind: "rounder",
            name: "adaruond".into(),
            near: vec!["adaround".into()],
            known: vec!["adaround".into(), "nearest".into()],
        };
        let text = Failure::from(error).render().unwrap_or_default();
        assert!(text.contains("taq::unknown_plugin"), "{text}");
        assert!(text.contains("did you mean `adaround`"), "{text}");
        assert!(text.contains("known: adaround, nearest"), "{text}");
    }
}
