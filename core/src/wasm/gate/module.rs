//! What a core module must be.

use wasmparser::{CompositeInnerType, ExternalKind, FuncType, Parser, Payload, TypeRef, ValType};

use super::sizes::Sizes;
use super::{ModuleFacts, malformed};
use crate::wasm::text::shown;

/// The export that names the ABI.
const MARKER: &str = "taq_policy_abi_v1";

/// Functions the host offers in the module `taq`, with their parameters.
const IMPORTS: [(&str, usize); 3] = [("read_request", 1), ("write_response", 2), ("log", 3)];

/// What the gate gathers from the sections.
#[derive(Default)]
struct Module {
    sizes: Sizes,
    imports: Vec<String>,
    types: Vec<Option<FuncType>>,
    /// Type of every function, imported ones first.
    functions: Vec<u32>,
    exports: Vec<(String, ExternalKind, u32)>,
}

/// As [`super::check`].
pub(super) fn check(bytes: &[u8]) -> Result<ModuleFacts, String> {
    let mut module = Module::default();
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(malformed)?;
        module.sizes.take(&payload)?;
        module.take(payload)?;
    }
    module.check_exports()?;
    Ok(ModuleFacts {
        component: false,
        bytes: bytes.len(),
        functions: module.sizes.functions,
        memory_pages: module.sizes.memory_pages,
        imports: module.imports,
        exports: module.exports.iter().map(|(name, ..)| shown(name.as_bytes())).collect(),
    })
}

impl Module {
    fn take(&mut self, payload: Payload<'_>) -> Result<(), String> {
        match payload {
            Payload::TypeSection(section) => {
                for group in section {
                    for sub in group.map_err(malformed)?.into_types() {
                        self.types.push(match sub.composite_type.inner {
                            CompositeInnerType::Func(function) => Some(function),
                            _ => None,
                        });
                    }
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import.map_err(malformed)?;
                    self.import(import.module, import.name, import.ty)?;
                }
            }
            Payload::FunctionSection(section) => {
                for function in section {
                    self.functions.push(function.map_err(malformed)?);
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export.map_err(malformed)?;
                    self.exports.push((export.name.to_owned(), export.kind, export.index));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn import(&mut self, module: &str, name: &str, ty: TypeRef) -> Result<(), String> {
        let full = format!("`{}.{}`", shown(module.as_bytes()), shown(name.as_bytes()));
        if module.starts_with("wasi") {
            return Err(format!(
                "it imports {full}: policies have no WASI; build it without a standard library that wants one"
            ));
        }
        let known = IMPORTS.iter().find(|(known, _)| module == "taq" && *known == name);
        let Some(&(_, parameters)) = known else {
            let offered: Vec<String> = IMPORTS.iter().map(|(name, _)| format!("`taq.{name}`")).collect();
            return Err(format!("it imports {full}; offered are {}", offered.join(", ")));
        };
        let TypeRef::Func(index) = ty else {
            return Err(format!("it imports {full}, which is a function, as another kind"));
        };
        self.functions.push(index);
        self.imports.push(format!("taq.{name}"));
        if !self.has_signature(index, parameters, 0) {
            return Err(format!(
                "it imports {full} with another signature; expected {}",
                signature(parameters, 0)
            ));
        }
        Ok(())
    }

    fn has_signature(&self, index: u32, parameters: usize, results: usize) -> bool {
        let all = |types: &[ValType], n: usize| types.len() == n && types.iter().all(|t| *t == ValType::I32);
        match self.types.get(index as usize) {
            Some(Some(function)) => all(function.params(), parameters) && all(function.results(), results),
            _ => false,
        }
    }

    fn check_exports(&self) -> Result<(), String> {
        let find =
            |name: &str| self.exports.iter().find(|(n, ..)| n == name).map(|&(_, kind, at)| (kind, at));
        if find(MARKER).is_none() {
            let other = self.exports.iter().find_map(|(n, ..)| n.strip_prefix("taq_policy_abi_v"));
            return Err(match other {
                Some(version) => format!(
                    "it speaks version {} of the policy ABI; this version of taq speaks 1",
                    shown(version.as_bytes())
                ),
                None => format!("it is no policy of taq: the export `{MARKER}` is missing"),
            });
        }
        match find("memory") {
            Some((ExternalKind::Memory, _)) => {}
            Some(_) => return Err("its export `memory` is no memory".into()),
            None => return Err("the export `memory` is missing".into()),
        }
        for (name, parameters, results) in [(MARKER, 0, 0), ("describe", 0, 1), ("assign", 1, 1)] {
            let Some((kind, at)) = find(name) else {
                return Err(format!("the export `{name}` is missing"));
            };
            let function = self.functions.get(at as usize).filter(|_| kind == ExternalKind::Func);
            if !function.is_some_and(|&ty| self.has_signature(ty, parameters, results)) {
                return Err(format!(
                    "its export `{name}` has another signature; expected {}",
                    signature(parameters, results)
                ));
            }
        }
        Ok(())
    }
}

/// `(i32, i32) -> i32`.
fn signature(parameters: usize, results: usize) -> String {
    let parameters = vec!["i32"; parameters].join(", ");
    let result = if results == 0 { "nothing" } else { "i32" };
    format!("({parameters}) -> {result}")
}
