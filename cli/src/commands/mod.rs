//! What the subcommands do. One file each; the five stages share one.

mod bench;
mod completions;
mod differences;
mod doctor;
mod export;
mod import;
mod libraries;
mod plot;
mod plugins;
mod policy;
mod profile;
mod report;
mod schema;
mod scores;
mod sensitivity;
mod stages;

use mlx_rs::{Device, DeviceType};
use taq_core::Error;
use taq_core::registry::Registry;

use crate::args::{Cli, Command, DeviceChoice};
use crate::error::Failure;
use crate::terminal::Terminal;

pub(crate) use plugins::new_plugin_examples;

/// What every command is handed.
pub(crate) struct Host {
    /// The plugins of this program.
    pub(crate) registry: Registry,
    /// stderr.
    pub(crate) terminal: Terminal,
    /// Whether only errors are said.
    pub(crate) quiet: bool,
}

/// Executes the command.
pub(crate) fn execute(cli: Cli, terminal: Terminal) -> Result<(), Failure> {
    let mut registry = Registry::linked()?;
    libraries::load(&mut registry, &cli.common.libraries)?;
    let host = Host { registry, terminal, quiet: cli.common.quiet };
    if let Some(device) = cli.common.device {
        choose_device(device)?;
    }
    match cli.command {
        Command::Run(args) => stages::run(host, &args),
        Command::Calibrate(args) => stages::calibrate(host, &args),
        Command::Observe(args) => stages::observe(host, &args),
        Command::Profile(args) => stages::profile(host, &args),
        Command::Sensitivity(args) => stages::sensitivity(host, &args),
        Command::Decide(args) => stages::decide(host, &args),
        Command::Cache(args) => stages::cache(host, &args),
        Command::Round(args) => stages::round(host, &args),
        Command::Generate(args) => stages::generate(host, &args),
        Command::Bench(args) => bench::bench(host, &args),
        Command::Export(args) => export::export(host, &args),
        Command::Import(args) => import::import(host, &args),
        Command::Plot(args) => plot::plot(&args),
        Command::Report(args) => report::report(&args),
        Command::Plugins(args) => plugins::plugins(&host.registry, &args),
        Command::Policy(args) => policy::policy(host, &args),
        Command::Schema(args) => schema::schema(&args),
        Command::Doctor(args) => doctor::doctor(&host, &args),
        Command::Completions(args) => completions::completions(&args),
        Command::Man(args) => completions::man(&args),
    }
}

/// Makes MLX compute there by default.
fn choose_device(device: DeviceChoice) -> Result<(), Error> {
    match device {
        DeviceChoice::Cpu => Device::set_default(&Device::new(DeviceType::Cpu, 0)),
        DeviceChoice::Gpu if mlx_sys::build_info::BACKEND == "cpu" => {
            return Err(Error::Unsupported {
                what:
                    "--device gpu: this build of taq has MLX for the CPU only; build it with TAQ_MLX=cuda12, \
                       cuda13 or metal, or leave --device away"
                        .into(),
            });
        }
        DeviceChoice::Gpu => Device::set_default(&Device::new(DeviceType::Gpu, 0)),
    }
    Ok(())
}
