//! Sizes that modules and components are held to.

use wasmparser::{CompositeInnerType, FunctionBody, Operator, Payload};

use super::malformed;
use crate::wasm::limits::{
    FUNCTION_BYTES, FUNCTION_WEIGHT, FUNCTIONS, MEMORY_BYTES, PARAMETERS, RESULTS, TABLE_ELEMENTS,
};

const PAGE: u64 = 64 << 10;

/// What was counted so far. The modules inside a component count together.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    pub functions: u32,
    pub memory_pages: u64,
    table_elements: u64,
}

impl Sizes {
    /// Looks at one section, and refuses what is too large.
    pub(super) fn take(&mut self, payload: &Payload<'_>) -> Result<(), String> {
        match payload {
            Payload::TypeSection(section) => {
                for group in section.clone() {
                    for sub in group.map_err(malformed)?.into_types() {
                        if let CompositeInnerType::Func(f) = sub.composite_type.inner
                            && (f.params().len() > PARAMETERS || f.results().len() > RESULTS)
                        {
                            return Err(format!(
                                "it has a function or a block of {} parameters and {} results; at most {PARAMETERS} \
                                 and {RESULTS} are compiled",
                                f.params().len(),
                                f.results().len()
                            ));
                        }
                    }
                }
            }
            Payload::FunctionSection(section) => {
                self.functions = self.functions.saturating_add(section.count());
                if self.functions > FUNCTIONS {
                    return Err(format!(
                        "it has {} functions; at most {FUNCTIONS} are taken",
                        self.functions
                    ));
                }
            }
            Payload::MemorySection(section) => {
                for memory in section.clone() {
                    let memory = memory.map_err(malformed)?;
                    if memory.memory64 || memory.shared || memory.page_size_log2.is_some() {
                        return Err("its memory is 64-bit, shared or of other pages; policies have a plain 32-bit one".into());
                    }
                    self.memory_pages = self.memory_pages.saturating_add(memory.initial);
                    if self.memory_pages.saturating_mul(PAGE) > MEMORY_BYTES as u64 {
                        return Err(format!(
                            "it begins with {} pages of memory; at most {} (64 MiB) are given",
                            self.memory_pages,
                            MEMORY_BYTES as u64 / PAGE
                        ));
                    }
                }
            }
            Payload::TableSection(section) => {
                for table in section.clone() {
                    let initial = table.map_err(malformed)?.ty.initial;
                    self.table_elements = self.table_elements.saturating_add(initial);
                    if self.table_elements > TABLE_ELEMENTS as u64 {
                        return Err(format!(
                            "it begins with a table of {} elements; at most {TABLE_ELEMENTS} are given",
                            self.table_elements
                        ));
                    }
                }
            }
            Payload::CodeSectionEntry(body) => {
                let length = body.range().len();
                if length > FUNCTION_BYTES {
                    return Err(format!(
                        "one of its functions is {length} bytes long; at most {FUNCTION_BYTES} are compiled"
                    ));
                }
                let weight = weight(body).map_err(malformed)?;
                if weight > FUNCTION_WEIGHT {
                    return Err(format!(
                        "one of its functions has too many variables for its blocks and loops (their product is \
                         {weight}); at most {FUNCTION_WEIGHT} is compiled"
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Variables times blocks, a loop for five. The compiler may keep a value for each variable at the beginning of each
/// block, and takes more than linear time over them: a few kilobytes could fill the machine's memory.
fn weight(body: &FunctionBody<'_>) -> Result<u64, wasmparser::BinaryReaderError> {
    let mut variables = 0;
    for group in body.get_locals_reader()? {
        variables += u64::from(group?.0);
    }
    let mut blocks = 0;
    let mut operators = body.get_operators_reader()?;
    while !operators.eof() {
        blocks += match operators.read()? {
            Operator::Loop { .. } => 5,
            Operator::Block { .. } | Operator::If { .. } => 1,
            _ => 0,
        };
    }
    Ok(variables.saturating_mul(blocks))
}
