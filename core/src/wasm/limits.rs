//! What a policy may use.

/// Bytes of a module's file.
pub const MODULE_BYTES: usize = 8 << 20;
/// Bytes of a component's file: it may bring an interpreter along.
pub const COMPONENT_BYTES: usize = 64 << 20;
/// Functions of a module, or of a component's modules together.
pub const FUNCTIONS: u32 = 50_000;
/// Bytes of one function's body. Compilers take more than linear time for very long functions.
pub const FUNCTION_BYTES: usize = 512 << 10;
/// Variables times blocks of one function, a loop counting for five.
pub const FUNCTION_WEIGHT: u64 = 1_000_000;
/// Parameters of a function or block.
pub const PARAMETERS: usize = 50;
/// Results of a function or block.
pub const RESULTS: usize = 4;
/// Seconds to compile a module. It is the only limit in seconds, and it does not touch what a policy answers.
pub const COMPILE_SECONDS: u64 = 60;
/// Seconds to compile a component.
pub const COMPONENT_COMPILE_SECONDS: u64 = 180;
/// Instances of modules in one call, for components.
pub const INSTANCES: usize = 100;
/// Memories in one call, for components.
pub const MEMORIES: usize = 8;
/// Tables in one call.
pub const TABLES: usize = 8;
/// Handles of resources that a component has at one time.
pub const HANDLES: usize = 1000;
/// Units of fuel for calling a function of the host, over one unit for every byte that it copies.
pub const CALL_FUEL: u64 = 100;
/// Bytes of linear memory, of all memories together.
pub const MEMORY_BYTES: usize = 64 << 20;
/// Elements of all tables together.
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
/// Files of compiled policies that are kept.
pub const CACHE_FILES: usize = 64;
/// Bytes of compiled policies that are kept.
pub const CACHE_BYTES: u64 = 512 << 20;
