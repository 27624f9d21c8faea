//! An image from the quantized model of a finished run, by a program of one's own:
//!
//! ```sh
//! cargo run --release --example quantized_image -- runs/emoji-w4a8 "red heart" heart.png
//! ```

use std::path::Path;

use taq_core::Result;
use taq_core::manifest::{GenerateSettings, Prompts};
use taq_core::pipeline::{Session, picture};
use taq_core::registry::Registry;
use taq_plugins as _;

/// Paints a prompt with the run's rounded weights, on its integer kernels.
pub fn paint(run: &Path, prompt: &str, file: &Path) -> Result<()> {
    let session = Session::of_run(Registry::linked()?, run)?;
    let prompts = Some(Prompts::List(vec![prompt.to_owned()]));
    let settings = GenerateSettings { prompts, ..Default::default() };
    picture(&session, &settings, file, false, false)?;
    Ok(())
}

#[allow(dead_code)] // a test calls `paint`
fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [run, prompt, file] = &arguments[..] else {
        eprintln!("usage: quantized_image RUN PROMPT FILE.png");
        return std::process::ExitCode::from(2);
    };
    match paint(run.as_ref(), prompt, file.as_ref()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            std::process::ExitCode::FAILURE
        }
    }
}
