//! The stamp, read from the file: what a library is, before any code of it runs.

use object::read::{File, Object, ObjectKind, ObjectSection};
use object::{Architecture, BinaryFormat};
use taq_plugin::abi::{ABI_MAJOR, ABI_MINOR, FLAG_DEBUG, FLAG_UNWIND, MAGIC, STAMP_SYMBOL, Stamp};

use crate::wasm::shown;

/// What a library's stamp says, for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct StampFacts {
    /// Version of the ABI that it was built for.
    pub abi: String,
    /// SDK and its version.
    pub sdk: String,
    /// Compiler.
    pub compiler: String,
    /// Target.
    pub target: String,
    /// Whether its panics can be caught; libraries in C have none.
    pub unwinds: bool,
    /// Whether it was built without optimisation.
    pub debug: bool,
}

impl StampFacts {
    pub(super) fn of(stamp: &Stamp) -> Self {
        let text = |bytes: &[u8]| shown(bytes.split(|b| *b == 0).next().unwrap_or_default());
        Self {
            abi: format!("{}.{}", stamp.abi_major, stamp.abi_minor),
            sdk: text(&stamp.sdk),
            compiler: text(&stamp.compiler),
            target: text(&stamp.target),
            unwinds: stamp.flags & FLAG_UNWIND != 0,
            debug: stamp.flags & FLAG_DEBUG != 0,
        }
    }
}

/// Format and architecture of this program's libraries.
fn own() -> (BinaryFormat, &'static str) {
    let format = match () {
        () if cfg!(windows) => BinaryFormat::Pe,
        () if cfg!(target_vendor = "apple") => BinaryFormat::MachO,
        () => BinaryFormat::Elf,
    };
    (format, std::env::consts::ARCH)
}

fn architecture(architecture: Architecture) -> String {
    match architecture {
        Architecture::X86_64 => "x86_64".into(),
        Architecture::I386 => "x86".into(),
        Architecture::Aarch64 => "aarch64".into(),
        Architecture::Arm => "arm".into(),
        Architecture::Riscv64 => "riscv64".into(),
        other => format!("{other:?}").to_lowercase(),
    }
}

fn format_name(format: BinaryFormat) -> &'static str {
    match format {
        BinaryFormat::Elf => "ELF",
        BinaryFormat::MachO => "Mach-O",
        BinaryFormat::Pe => "PE",
        _ => "another format",
    }
}

/// The stamp of a library, checked. The error is a sentence for the user.
pub(super) fn read(bytes: &[u8]) -> Result<Stamp, String> {
    let head = shown(&bytes[..bytes.len().min(8)]);
    if bytes.starts_with(b"\0asm") {
        return Err("it is a WASM module, not a native library; `--policy` takes it".into());
    }
    let file = File::parse(bytes).map_err(|e| match bytes {
        [0xca, 0xfe, 0xba, 0xbe | 0xbf, ..] => {
            "it is a universal Mach-O file; `lipo -thin` makes one for this architecture".to_owned()
        }
        _ => {
            format!("it is no shared library ({}); it begins with `{head}`", shown(e.to_string().as_bytes()))
        }
    })?;
    let found = (file.format(), architecture(file.architecture()));
    let expected = own();
    if (found.0, found.1.as_str()) != expected {
        return Err(format!(
            "it is {} for {}; this program takes {} for {}",
            format_name(found.0),
            found.1,
            format_name(expected.0),
            expected.1
        ));
    }
    if file.kind() != ObjectKind::Dynamic {
        let kind = format!("{:?}", file.kind()).to_lowercase();
        return Err(format!("it is no shared library but of the kind “{kind}”"));
    }
    let symbols = file.exports().map_err(|e| format!("its symbols cannot be read: {e}"))?;
    let named = |name: &[u8]| name.strip_prefix(b"_").unwrap_or(name) == STAMP_SYMBOL.as_bytes();
    let Some(address) = symbols.iter().find(|s| named(s.name())).map(|s| s.address()) else {
        return Err(format!("it is no plugin of taq: it has no symbol {STAMP_SYMBOL}"));
    };
    let data = file.sections().find_map(|s| s.data_range(address, size_of::<Stamp>() as u64).ok().flatten());
    let data = data.and_then(|d| <&[u8; size_of::<Stamp>()]>::try_from(d).ok());
    let stamp = data.map(parse).ok_or_else(|| {
        format!("its {STAMP_SYMBOL} is not {} bytes of constant data in the file", size_of::<Stamp>())
    })?;
    check(&stamp).map(|()| stamp)
}

fn parse(bytes: &[u8; size_of::<Stamp>()]) -> Stamp {
    fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
        std::array::from_fn(|i| bytes[at + i])
    }
    Stamp {
        magic: part(bytes, 0),
        size: u32::from_ne_bytes(part(bytes, 8)),
        abi_major: u16::from_ne_bytes(part(bytes, 12)),
        abi_minor: u16::from_ne_bytes(part(bytes, 14)),
        flags: u32::from_ne_bytes(part(bytes, 16)),
        reserved: u32::from_ne_bytes(part(bytes, 20)),
        compiler: part(bytes, 24),
        sdk: part(bytes, 88),
        target: part(bytes, 120),
    }
}

fn check(stamp: &Stamp) -> Result<(), String> {
    if stamp.magic != MAGIC {
        let (found, expected) = (shown(&stamp.magic), shown(&MAGIC));
        return Err(format!("its stamp begins with `{found}`, expected `{expected}`"));
    }
    if stamp.abi_major != ABI_MAJOR || stamp.abi_minor > ABI_MINOR {
        let StampFacts { abi, sdk, compiler, .. } = StampFacts::of(stamp);
        return Err(format!(
            "it is built for plugin ABI {abi} (with {sdk}, {compiler}); this program supports {ABI_MAJOR}.0 to \
             {ABI_MAJOR}.{ABI_MINOR}"
        ));
    }
    let expected = size_of::<Stamp>();
    if stamp.size as usize != expected {
        return Err(format!("its stamp says that it has {} bytes, expected {expected}", stamp.size));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp() -> Stamp {
        taq_plugin::export::stamp(true, false)
    }

    #[test]
    fn bytes_are_read_as_they_lie_in_memory() {
        let stamp = stamp();
        // SAFETY: a structure without padding, whose size is that of the array.
        let bytes: [u8; size_of::<Stamp>()] = unsafe { std::mem::transmute(stamp) };
        assert_eq!(parse(&bytes), stamp);
        check(&stamp).unwrap();
        let facts = StampFacts::of(&stamp);
        assert_eq!((facts.abi.as_str(), facts.unwinds, facts.debug), ("1.0", true, false));
        assert!(facts.compiler.starts_with("rustc ") && facts.sdk.starts_with("taq-plugin "), "{facts:?}");
    }

    #[test]
    fn a_mismatch_names_both_sides() {
        let newer = check(&Stamp { abi_major: 2, abi_minor: 3, ..stamp() }).unwrap_err();
        assert!(newer.contains("plugin ABI 2.3 (with taq-plugin ") && newer.ends_with("supports 1.0 to 1.0"));
        assert!(check(&Stamp { abi_minor: 1, ..stamp() }).unwrap_err().contains("plugin ABI 1.1"));
        let size = check(&Stamp { size: 180, ..stamp() }).unwrap_err();
        assert_eq!(size, "its stamp says that it has 180 bytes, expected 184");
        let magic = check(&Stamp { magic: *b"TAQ\0\x1b[1m", ..stamp() }).unwrap_err();
        assert_eq!(magic, "its stamp begins with `TAQ\\u{0}\\u{1b}[1m`, expected `TAQPLUGN`");
    }

    #[test]
    fn what_is_no_library_of_this_machine_is_refused() {
        assert!(read(b"").unwrap_err().starts_with("it is no shared library"));
        assert!(read(b"#!/bin/sh\necho").unwrap_err().contains("it begins with `#!/bin/s`"));
        assert!(read(b"\0asm\x01\0\0\0").unwrap_err().contains("`--policy`"));
        assert!(read(b"\xca\xfe\xba\xbe\0\0\0\x02").unwrap_err().contains("lipo"));
    }
}
