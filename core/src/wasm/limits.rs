//! What a policy may use.

/// Bytes of a module's file.
pub const MODULE_BYTES: usize = 8 << 20;
/// Functions of a module.
pub const FUNCTIONS: u32 = 50_000;
/// Bytes of one function's body. Compilers take more than linear time for very long functions.
pub const FUNCTION_BYTES: usize = 512 << 10;
/// Seconds to compile a module. It is the only limit in seconds, and it does not touch what a policy answers.
pub const COMPILE_SECONDS: u64 = 60;
/// Bytes of linear memory.
pub const MEMORY_BYTES: usize = 64 << 20;
/// Elements of a table.
pub const TABLE_ELEMENTS: usize = 100_000;
/// Bytes of stack.
pub const STACK_BYTES: usize = 512 << 10;
/// Units of fuel for one call, about one an instruction: some seconds.
pub const FUEL: u64 = 5_000_000_000;
/// Units of fuel for trying settings and for a description.
pub const SHORT_FUEL: u64 = 200_000_000;
/// Bytes of a response.
pub const RESPONSE_BYTES: usize = 8 << 20;
/// Lines that one call may write to the log.
pub const LOG_LINES: usize = 100;
/// Characters of a module's text that reach a message or the log.
pub const TEXT_CHARACTERS: usize = 500;
