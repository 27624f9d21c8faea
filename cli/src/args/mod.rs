//! What can stand on the command line. One file a subcommand: its flags, and how they become validated settings.

mod bench;
mod cache;
mod calibrate;
mod completions;
mod decide;
mod doctor;
mod export;
mod generate;
mod images;
mod import;
mod observe;
mod parse;
mod plot;
mod plugins;
mod policy;
mod profile;
mod report;
mod round;
mod run;
mod schema;
mod sensitivity;
mod session;

use std::path::PathBuf;

use clap::{ArgAction, Parser, Subcommand, ValueEnum};

pub(crate) use bench::BenchArgs;
pub(crate) use cache::CacheArgs;
pub(crate) use calibrate::CalibrateArgs;
pub(crate) use completions::{CompletionsArgs, ManArgs};
pub(crate) use decide::DecideArgs;
pub(crate) use doctor::DoctorArgs;
pub(crate) use export::ExportArgs;
pub(crate) use generate::GenerateArgs;
pub(crate) use images::ImageArgs;
pub(crate) use import::ImportArgs;
pub(crate) use observe::ObserveArgs;
pub(crate) use plot::PlotArgs;
pub(crate) use plugins::{Language, PluginsArgs, PluginsCommand, ProjectKind};
pub(crate) use policy::{PolicyArgs, PolicyCommand, PolicyRunArgs};
pub(crate) use profile::ProfileArgs;
pub(crate) use report::ReportArgs;
pub(crate) use round::RoundArgs;
pub(crate) use run::RunArgs;
pub(crate) use schema::SchemaArgs;
pub(crate) use sensitivity::SensitivityArgs;
pub(crate) use session::SessionArgs;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "taq",
    version,
    about = "Quantizes diffusion transformers after training, timestep by timestep.",
    long_about = "Quantizes diffusion transformers after training, timestep by timestep.\n\n\
                  A pipeline has five stages that share one run folder: calibrate, observe, decide, round, generate. \
                  `taq run` executes a manifest with all of them; each is also a command. A stage that was killed \
                  goes on where it stopped, and one whose inputs did not change is not computed again.",
    after_help = "Examples:\n  \
                  taq run pipelines/emoji-w4a8.toml      a whole pipeline\n  \
                  taq calibrate --num-images 16          the stages one by one, in ./run\n  \
                  taq plot --run runs/emoji-w4a8         figures of what it found\n  \
                  taq report --run runs/emoji-w4a8       all of it in one HTML file\n  \
                  taq plugins rounder                    what can be chosen\n  \
                  taq plugins show adaround              and its settings\n  \
                  taq plugin new mine --kind policy      begin a plugin of your own\n  \
                  taq doctor                             is this machine set up well?\n\n\
                  Exit codes: 0 done, 1 failed, 2 wrong input, 70 a defect of taq, 130 stopped by Ctrl-C.",
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: CommonArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every subcommand.
#[derive(Debug, Clone, clap::Args)]
#[command(next_display_order = 900)]
pub(crate) struct CommonArgs {
    /// Where MLX computes [default: the GPU if this build has one, else the CPU]
    #[arg(long, global = true, value_enum, value_name = "DEVICE", help_heading = "Common options")]
    pub(crate) device: Option<DeviceChoice>,

    /// Native library with plugins (docs/abi.md), loaded into this process; may be given several times. The folders of
    /// TAQ_PLUGINS are looked through too
    #[arg(long = "plugin", global = true, value_name = "LIBRARY", help_heading = "Common options")]
    pub(crate) libraries: Vec<PathBuf>,

    /// Say more on stderr; -vv says everything. TAQ_LOG takes filters such as `taq_core=trace`
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Common options")]
    pub(crate) verbose: u8,

    /// Say nothing on stderr but errors; no bars
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Common options")]
    pub(crate) quiet: bool,
}

/// A device of MLX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceChoice {
    /// The processor.
    Cpu,
    /// Apple's GPU, or an NVIDIA GPU in a CUDA build.
    Gpu,
}

/// The subcommands, in the order of a pipeline. Their help stands with their flags.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(RunArgs),
    Calibrate(CalibrateArgs),
    Observe(ObserveArgs),
    Profile(ProfileArgs),
    Sensitivity(SensitivityArgs),
    Decide(DecideArgs),
    Cache(CacheArgs),
    Round(RoundArgs),
    Generate(GenerateArgs),
    Bench(BenchArgs),
    Export(ExportArgs),
    Import(ImportArgs),
    Plot(PlotArgs),
    Report(ReportArgs),
    Plugins(PluginsArgs),
    Policy(PolicyArgs),
    Schema(SchemaArgs),
    Doctor(DoctorArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

#[cfg(test)]
mod documented;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(|h| h.to_string()).unwrap_or_default();
            assert!(help.contains("taq "), "`taq {}` has no example", command.get_name());
        }
    }

    /// The help of a command and those within it, by names such as `taq-plugins-new`.
    fn collect(command: &mut clap::Command, name: &str, into: &mut BTreeMap<String, String>) {
        into.insert(name.to_owned(), command.render_long_help().to_string());
        for inner in command.get_subcommands_mut() {
            let name = format!("{name}-{}", inner.get_name());
            collect(inner, &name, into);
        }
    }

    /// Every help text is the one in `cli/tests/help`, which somebody has read. `TAQ_BLESS=1` writes them anew: read what
    /// changed before you commit it.
    #[test]
    fn help_is_what_was_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help");
        let mut command = Cli::command().term_width(100);
        command.build();
        let mut helps = BTreeMap::new();
        collect(&mut command, "taq", &mut helps);
        if std::env::var_os("TAQ_BLESS").is_some() {
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder).unwrap();
            for (name, help) in &helps {
                fs::write(folder.join(format!("{name}.txt")), help).unwrap();
            }
        }
        let kept: BTreeMap<String, String> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| {
                (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap())
            })
            .collect();
        assert_eq!(
            kept.keys().collect::<Vec<_>>(),
            helps.keys().collect::<Vec<_>>(),
            "TAQ_BLESS=1 writes them anew"
        );
        for (name, help) in &helps {
            assert!(
                *help == kept[name],
                "the help of {name} changed; TAQ_BLESS=1 writes it anew. Now:\n{help}"
            );
            let wide = help.lines().find(|line| line.chars().count() > 100);
            assert_eq!(wide, None, "{name} does not fit into 100 columns");
        }
    }
}
