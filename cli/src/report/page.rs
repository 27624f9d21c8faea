//! The page: the template with its styles and its script.

use askama::Template;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use super::compare::Comparison;
use super::data::RunData;
use super::run::RunView;

/// The script, in the order in which its parts need each other.
const SCRIPT: &str = concat!(
    include_str!("assets/vendor/uPlot.iife.min.js"),
    "\n(() => {\n\"use strict\";\n",
    include_str!("assets/theme.js"),
    include_str!("assets/charts.js"),
    include_str!("assets/heatmap.js"),
    include_str!("assets/slider.js"),
    include_str!("assets/layer.js"),
    include_str!("assets/main.js"),
    "})();\n"
);
const STYLE: &str =
    concat!(include_str!("assets/vendor/uPlot.min.css"), "\n", include_str!("assets/report.css"));

/// What the template shows. Everything in it is escaped but `style`, `script` and `data`, the last of which is JSON
/// without a character that HTML knows.
#[derive(Template)]
#[template(path = "report/page.html")]
pub(super) struct Page {
    title: String,
    version: &'static str,
    style: &'static str,
    script: &'static str,
    /// `'sha256-…'` of the script, for the content security policy.
    script_hash: String,
    comparison: Option<Comparison>,
    runs: Vec<RunView>,
    data: Vec<RunData>,
}

impl Page {
    pub(super) fn new(mut runs: Vec<RunView>) -> Self {
        let data = runs.iter_mut().map(|run| std::mem::take(&mut run.data)).collect();
        let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
        Self {
            title: format!("taq report: {}", names.join(", ")),
            version: env!("CARGO_PKG_VERSION"),
            style: STYLE,
            script: SCRIPT,
            script_hash: format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(SCRIPT))),
            comparison: (runs.len() > 1).then(|| Comparison::of(&runs)),
            runs,
            data,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is vendored is what its README says.
    #[test]
    fn vendored_files_have_their_hashes() {
        let readme = include_str!("assets/vendor/README.md");
        for (name, file) in [
            ("uPlot.iife.min.js", include_str!("assets/vendor/uPlot.iife.min.js")),
            ("uPlot.min.css", include_str!("assets/vendor/uPlot.min.css")),
        ] {
            let hash: String = Sha256::digest(file).iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(readme.contains(&format!("| `{name}` | `{hash}` |")), "{name}: {hash}");
        }
    }

    /// The script and the styles stand in the page as they are, so they must not end their elements.
    #[test]
    fn assets_do_not_end_their_elements() {
        assert!(!SCRIPT.to_lowercase().contains("</script") && !SCRIPT.contains("<!--"));
        assert!(!STYLE.to_lowercase().contains("</style"));
        for text in [SCRIPT, STYLE] {
            assert!(!text.contains("@import") && !text.contains("url(") && !text.contains("fetch("));
        }
    }
}
