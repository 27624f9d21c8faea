//! `taq bench`: its table, on the terminal and as Markdown.

use taq_core::artifacts::atomic_write_bytes;
use taq_core::metrics::Interval;
use taq_core::pipeline::{self, BenchEntry, BenchReport};

use super::Host;
use super::stages::reading;
use crate::args::BenchArgs;
use crate::error::Failure;
use crate::output::{Table, bytes, print, terminal_width};

/// `taq bench`.
pub(crate) fn bench(host: Host, args: &BenchArgs) -> Result<(), Failure> {
    let settings = args.settings();
    let (session, _nowhere) = reading(host, &args.session)?;
    let out = args.out.clone().unwrap_or_else(|| args.session.run.join("bench"));
    let report = pipeline::bench(&session, &settings, &out);
    session.cx.progress.end();
    let report = report?;
    let columns = columns(&report);
    let markdown = out.join("bench.md");
    atomic_write_bytes(&markdown, page(&report, &columns).as_bytes())?;
    print(&format!("{}\n{}\nResults: {}\n", table(&report, &columns), about(&report), out.display()))
}

/// A heading and what stands below it for each model.
type Column = (&'static str, Vec<String>);

/// Columns with a figure for at least one model.
fn columns(report: &BenchReport) -> Vec<Column> {
    let entries = &report.entries;
    let column = |heading, cell: &dyn Fn(&BenchEntry) -> Option<String>| -> Column {
        (heading, entries.iter().map(|e| cell(e).unwrap_or_default()).collect())
    };
    let mut all = vec![
        column("model", &|e| Some(e.name.clone())),
        column("bits", &|e| Some(format!("{} / {}", bits(e.weight_bits?), bits(e.activation_bits?)))),
        column("weights", &|e| Some(bytes(e.weight_bytes))),
        column("s/image", &|e| Some(format!("{:.3} ± {:.3}", e.latency.mean, e.latency.std))),
        column("p50", &|e| Some(format!("{:.3}", e.latency.p50))),
        column("p95", &|e| Some(format!("{:.3}", e.latency.p95))),
        column("min–max", &|e| Some(format!("{:.3}–{:.3}", e.latency.min, e.latency.max))),
        column("RSS", &|e| Some(bytes(e.memory.peak_rss as u64))),
        column("MLX", &|e| Some(bytes(e.memory.peak_device as u64))),
        column("FID", &|e| Some(format!("{:.3}", e.distances.as_ref()?.frechet))),
        column("KID × 1000", &|e| {
            let kernel = e.distances.as_ref()?.kernel;
            let std = kernel.std.map_or_else(String::new, |s| format!(" ± {:.2}", 1000.0 * s));
            Some(format!("{:.2}{std}", 1000.0 * kernel.mean))
        }),
        column("IS", &|e| {
            let score = e.inception_score?;
            Some(format!("{:.2}{}", score.mean, score.std.map_or_else(String::new, |s| format!(" ± {s:.2}"))))
        }),
        column("prompts right", &|e| {
            let accuracy = e.prompt_accuracy.as_ref()?;
            let right = (accuracy.accuracy? * accuracy.judged as f64).round();
            Some(format!("{right} of {}", accuracy.judged))
        }),
        column("PSNR, pooled", &|e| {
            let paired = e.paired.as_ref()?;
            let value = paired.pooled_psnr.map_or_else(|| "equal".to_owned(), |v| format!("{v:.2} dB"));
            Some(value + &range(paired.intervals.pooled_psnr, 1.0, 2))
        }),
        column("SSIM", &|e| Some(format!("{:.4}", e.paired.as_ref()?.ssim))),
        column("latent error", &|e| {
            let paired = e.paired.as_ref()?;
            let interval = range(paired.intervals.latent_error, 100.0, 1);
            Some(format!("{:.1} %{interval}", 100.0 * paired.latent_error))
        }),
    ];
    all.retain(|(_, cells)| cells.iter().any(|cell| !cell.is_empty()));
    all
}

fn bits(bits: f64) -> String {
    if bits.fract() == 0.0 { bits.to_string() } else { format!("{bits:.2}") }
}

fn range(interval: Option<Interval>, unit: f64, digits: usize) -> String {
    let text = |i: Interval| format!(" ({:.digits$}–{:.digits$})", unit * i.low, unit * i.high);
    interval.map_or_else(String::new, text)
}

/// A column of the page is a row here: models are few, figures many.
fn table(report: &BenchReport, columns: &[Column]) -> String {
    let Some(((_, names), figures)) = columns.split_first() else { return String::new() };
    let headings: Vec<&str> = std::iter::once("").chain(names.iter().map(String::as_str)).collect();
    let mut table = (1..=report.entries.len()).fold(Table::new(&headings), Table::right);
    for (heading, cells) in figures {
        table.row(std::iter::once((*heading).to_owned()).chain(cells.iter().cloned()));
    }
    table.render(terminal_width())
}

fn page(report: &BenchReport, columns: &[Column]) -> String {
    // What comes from outside, the path of a run, must not end a cell.
    let cell = |text: &str| text.replace('\\', "\\\\").replace('|', "\\|");
    let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut page = format!("# {}\n\n{}\n", report.model, about(report));
    page += &row(columns.iter().map(|(heading, _)| (*heading).to_owned()).collect());
    page +=
        &row(columns.iter().enumerate().map(|(at, _)| if at == 0 { "---" } else { "---:" }.into()).collect());
    for at in 0..report.entries.len() {
        page += &row(columns.iter().map(|(_, cells)| cell(&cells[at])).collect());
    }
    page
}

/// What the figures depend on.
fn about(report: &BenchReport) -> String {
    let images = report.entries.first().map_or(0, |e| e.images);
    let (height, width) = report.image_size;
    let mut text = format!(
        "{images} images of {width} × {height} pixels, {} steps, guidance {}, batches of {}, in {} on the {}.\n",
        report.num_steps, report.cfg_weight, report.batch_size, report.dtype, report.device
    );
    if let Some(reference) = &report.reference {
        text += &format!("Reference: {reference}. ");
    }
    if report.entries.iter().any(|e| e.distances.is_some()) {
        let of = report.entries.iter().find_map(|e| e.distances.as_ref()).map_or(0, |d| d.reference_images);
        text += &format!(
            "FID and KID are of {images} images against {of}: compare them only with those of as many images and the \
             same features."
        );
    }
    if report.reference.is_some() {
        text.push('\n');
    }
    text
}
