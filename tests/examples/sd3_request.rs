//! Writes a policy request of Stable Diffusion 3 Medium's size to standard output, for `taq policy bench`:
//!
//! ```sh
//! cargo run --release -p taq-tests --example sd3_request > request.json
//! taq policy bench multitier policies/multitier/multitier.wasm --request request.json
//! ```

use std::io;

use taq_core::testing::sd3_request;

fn main() -> io::Result<()> {
    serde_json::to_writer(io::stdout().lock(), &sd3_request(24, 1536, 50))?;
    Ok(())
}
