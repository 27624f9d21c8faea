//! What a file must be before it is compiled: looked up in its sections, without running anything.

mod component;
mod module;
mod sizes;

use super::limits::{COMPONENT_BYTES, MODULE_BYTES};
use super::text::shown;

/// What a file's sections say of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModuleFacts {
    /// Whether it is a component; otherwise it is a core module.
    pub component: bool,
    /// Bytes of the file.
    pub bytes: usize,
    /// Functions of its own; in a component, of all the modules inside.
    pub functions: u32,
    /// Pages of 64 KiB that its memory begins with; in a component, all memories together.
    pub memory_pages: u64,
    /// What it imports: `module.name`, or the name of an interface.
    pub imports: Vec<String>,
    /// Names of what it exports.
    pub exports: Vec<String>,
}

/// Which of the two formats of WebAssembly bytes are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Module,
    Component,
}

impl Format {
    /// By the header: four bytes that both have, two for the version, and two for the layer.
    pub(super) fn of(bytes: &[u8]) -> Result<Self, String> {
        if !bytes.starts_with(b"\0asm") {
            return Err("it is no WebAssembly: it does not begin with `\\0asm`".into());
        }
        match bytes.get(6..8) {
            Some([1, 0]) => Ok(Self::Component),
            // What else it may be, or that it ends here, is told by who reads modules.
            _ => Ok(Self::Module),
        }
    }
}

/// Whether these bytes may be compiled. The error is a sentence for the user.
pub(super) fn check(bytes: &[u8]) -> Result<ModuleFacts, String> {
    let format = Format::of(bytes)?;
    let most = match format {
        Format::Module => MODULE_BYTES,
        Format::Component => COMPONENT_BYTES,
    };
    if bytes.len() > most {
        return Err(format!("it is {} bytes long; at most {most} are taken", bytes.len()));
    }
    match format {
        Format::Module => module::check(bytes),
        Format::Component => component::check(bytes),
    }
}

fn malformed(error: wasmparser::BinaryReaderError) -> String {
    format!("it is truncated or damaged: {}", shown(error.to_string().as_bytes()))
}
