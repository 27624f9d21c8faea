//! The five stages and `taq run`, which executes several of them.

use std::path::Path;
use std::sync::Arc;

use taq_core::artifacts::{LOCK_FILE, RunFolder, SessionChoice, read_document};
use taq_core::pipeline::{self, Outcome, Report, Sensitivities, Session};
use taq_core::{Context, Error, Result};

use super::{Host, differences, plot, profile, report, scores, sensitivity};
use crate::args::{
    CacheArgs, CalibrateArgs, DecideArgs, GenerateArgs, ObserveArgs, ProfileArgs, RoundArgs, RunArgs,
    SensitivityArgs, SessionArgs,
};
use crate::error::Failure;
use crate::interrupt;
use crate::output::{Table, bytes, print, seconds, terminal_width};
use crate::progress::Reporter;
use crate::results::scores::Scores;

/// `taq calibrate`.
pub(crate) fn calibrate(host: Host, args: &CalibrateArgs) -> Result<(), Failure> {
    let settings = args.settings();
    if args.dry_run {
        let folder = tempfile::tempdir().map_err(Error::io("create", std::env::temp_dir()))?;
        let choice = args.session.choice(&host.registry)?;
        let session = open(host, &choice, RunFolder::create(folder.path())?, false)?;
        let size = pipeline::calibration_size(&session, &settings)?;
        return print(&format!(
            "{} images, {} npz files, {} (PNG files apart) would be written to {}\n",
            size.images,
            size.files,
            bytes(size.bytes),
            args.session.run.display()
        ));
    }
    let root = &args.session.run;
    no_traces(root, || stage(host, &args.session, |session| pipeline::calibrate(session, &settings)))
}

/// `taq observe`.
pub(crate) fn observe(host: Host, args: &ObserveArgs) -> Result<(), Failure> {
    let settings = args.settings(&host.registry)?;
    needs_run(&args.session, "observe", "calibration samples")?;
    stage(host, &args.session, |session| pipeline::observe(session, &settings))
}

/// `taq profile`.
pub(crate) fn profile(host: Host, args: &ProfileArgs) -> Result<(), Failure> {
    needs_run(&args.session, "profile", "calibration samples")?;
    let mut layers = Vec::new();
    stage(host, &args.session, |session| {
        let outcome = pipeline::profile(session, args.num_samples)?;
        layers = pipeline::profile_summary(session)?;
        Ok(outcome)
    })?;
    print(&format!("\n{}", profile::table(&layers).render(terminal_width())))
}

/// `taq sensitivity`.
pub(crate) fn sensitivity(host: Host, args: &SensitivityArgs) -> Result<(), Failure> {
    needs_run(&args.session, "sensitivity", "calibration samples and statistics")?;
    stage(host, &args.session, |session| pipeline::sensitivity(session, &args.settings()))?;
    let document: Sensitivities = read_document(&RunFolder::open(&args.session.run)?.sensitivities())?;
    print(&format!("\n{}", sensitivity::table(&document).render(terminal_width())))
}

/// `taq decide`.
pub(crate) fn decide(host: Host, args: &DecideArgs) -> Result<(), Failure> {
    let settings = args.settings(&host.registry)?;
    needs_run(&args.session, "decide", "statistics")?;
    stage(host, &args.session, |session| pipeline::decide(session, &settings))
}

/// `taq cache`.
pub(crate) fn cache(host: Host, args: &CacheArgs) -> Result<(), Failure> {
    needs_run(&args.session, "cache", "calibration samples")?;
    stage(host, &args.session, |session| pipeline::cache(session, &args.settings()))
}

/// `taq round`.
pub(crate) fn round(host: Host, args: &RoundArgs) -> Result<(), Failure> {
    let settings = args.settings(&host.registry)?;
    needs_run(&args.session, "round", "calibration samples and a plan")?;
    stage(host, &args.session, |session| pipeline::round(session, &settings))?;
    if args.plots { plot::after_round(&args.session.run) } else { Ok(()) }
}

/// `taq generate`.
pub(crate) fn generate(host: Host, args: &GenerateArgs) -> Result<(), Failure> {
    let settings = args.settings();
    if !args.full_precision {
        needs_run(&args.session, "generate", "a plan")?;
    }
    if let Some(file) = &args.output_image {
        return picture(host, args, file);
    }
    let root = &args.session.run;
    no_traces(root, || stage(host, &args.session, |session| pipeline::generate(session, &settings)))?;
    print(&scores(root)?)?;
    if args.diff_stats {
        let report: Report = read_document(&RunFolder::open(root)?.report_json())?;
        print(&format!("\n{}", differences::table(&report.variants).render(terminal_width())))?;
    }
    Ok(())
}

/// `taq generate --output-image`: reads the run folder if there is one, and never writes to it.
fn picture(host: Host, args: &GenerateArgs, file: &Path) -> Result<(), Failure> {
    let (session, _nowhere) = reading(host, &args.session)?;
    let compared = args.compare || args.diff_stats;
    let painted = pipeline::picture(&session, &args.settings(), file, compared, args.compare);
    session.cx.progress.end();
    let painted = painted?;
    for file in &painted.files {
        print(&format!("{}\n", file.display()))?;
    }
    if compared && !painted.scores.is_empty() {
        print(&format!("\n{}", differences::table(&painted.scores).render(terminal_width())))?;
    }
    Ok(())
}

/// A session that reads the run folder and leaves it as it is; without one, an empty folder that goes with what is returned
/// beside the session.
pub(super) fn reading(host: Host, args: &SessionArgs) -> Result<(Session, Option<tempfile::TempDir>)> {
    let choice = args.choice(&host.registry)?;
    if args.run.is_dir() {
        return Ok((open(host, &choice, RunFolder::open(&args.run)?, false)?, None));
    }
    let nowhere = tempfile::tempdir().map_err(Error::io("create", std::env::temp_dir()))?;
    let run = RunFolder::create(nowhere.path())?;
    Ok((open(host, &choice, run, false)?, Some(nowhere)))
}

/// `taq run`.
pub(crate) fn run(mut host: Host, args: &RunArgs) -> Result<(), Failure> {
    let manifest = args.pipeline(&mut host.registry)?;
    let root = &manifest.output;
    let choice = SessionChoice::new(manifest.model.clone(), manifest.sampler.clone(), manifest.seed);
    no_traces(root, || {
        let session = open(host, &choice, RunFolder::create(root)?, args.force)?;
        let done = |o: &Outcome| tracing::info!("{}: {} in {}", o.stage, state(o), seconds(o.seconds));
        let outcomes = kept(&session, &choice, || pipeline::run(&session, &manifest, done))?;
        table(&outcomes, root)
    })?;
    if manifest.generate.is_some() {
        print(&scores(root)?)?;
    }
    if args.plots {
        plot::after_run(root)?;
    }
    if args.report { report::after_run(root) } else { Ok(()) }
}

fn state(outcome: &Outcome) -> &'static str {
    if outcome.reused { "reused" } else { "done" }
}

/// How well each variant did, from the report that `generate` wrote: the figures, and below them their intervals.
fn scores(root: &Path) -> Result<String> {
    let report: Report = read_document(&RunFolder::open(root)?.report_json())?;
    let table = |scores: Scores| format!("\n{}", scores::table(&scores).render(terminal_width()));
    Ok(Scores::of(&report).map(table).unwrap_or_default())
}

/// A stage that reads what others wrote does not create the folder.
pub(super) fn needs_run(args: &SessionArgs, stage: &'static str, needs: &str) -> Result<()> {
    if args.run.is_dir() {
        return Ok(());
    }
    Err(Error::StageMissing { stage, needs: needs.to_owned(), run: args.run.clone(), first: "calibrate" })
}

/// Runs a stage in the run folder and tells what it did.
pub(super) fn stage(
    host: Host,
    args: &SessionArgs,
    work: impl FnOnce(&Session) -> Result<Outcome>,
) -> Result<(), Failure> {
    let choice = args.choice(&host.registry)?;
    let session = open(host, &choice, RunFolder::create(&args.run)?, args.force)?;
    let outcome = kept(&session, &choice, || work(&session))?;
    table(&[outcome], &args.run)
}

pub(super) fn open(host: Host, choice: &SessionChoice, run: RunFolder, force: bool) -> Result<Session> {
    let cx = context(&host, choice.seed)?;
    Session::open(host.registry, &choice.model, &choice.sampler, run, cx, force)
}

/// Does the work and notes in the run folder what it was done with: at the start in a new folder, so that a killed
/// run knows it too; in an older one when the work has not been refused.
fn kept<T>(session: &Session, choice: &SessionChoice, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let old = session.run.session_choice()?;
    if old.is_none() {
        session.run.keep_session_choice(choice)?;
    }
    let result = work();
    session.cx.progress.end();
    if result.is_ok() && old.is_some_and(|old| old != *choice) {
        session.run.keep_session_choice(choice)?;
    }
    result
}

fn context(host: &Host, seed: u64) -> Result<Context> {
    let progress: Arc<Reporter> = Reporter::new(host.terminal.clone(), host.quiet);
    Ok(Context { seed, progress, cancel: interrupt::listen(&host.terminal)? })
}

/// Does the work; if it is refused before there is a result, takes a new run folder away again.
pub(super) fn no_traces(root: &Path, work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    const OURS: [&str; 2] = [LOCK_FILE, "session.json"];
    let existed = root.exists();
    let result = work();
    let only_ours = || {
        let mut all = std::fs::read_dir(root).ok()?;
        Some(all.all(|e| e.is_ok_and(|e| OURS.iter().any(|ours| e.file_name() == *ours))))
    };
    if result.is_err() && !existed && only_ours() == Some(true) {
        // What cannot be removed stays; the failure itself is what the user needs to hear of.
        for name in OURS {
            let _ = std::fs::remove_file(root.join(name));
        }
        let _ = std::fs::remove_dir(root);
    }
    result
}

/// What the stages did, as a table on stdout, and where the results lie.
fn table(outcomes: &[Outcome], root: &Path) -> Result<(), Failure> {
    let mut table = Table::new(&["STAGE", "", "TIME", "PEAK MEMORY", "WHAT"]).right(2).right(3);
    for o in outcomes {
        table.row([
            o.stage.as_str(),
            state(o),
            &seconds(o.seconds),
            &bytes(o.peak_memory_bytes as u64),
            &o.summary,
        ]);
    }
    print(&format!("{}\nResults: {}\n", table.render(terminal_width()), root.display()))
}
