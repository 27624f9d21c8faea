//! Code blocks and links of Markdown pages, and the shell that runs what stands there.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A fenced block of code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// What stands behind the fence: `sh`, `rust`, …; empty if nothing does.
    pub info: String,
    /// Line of the fence, counted from 1.
    pub line: usize,
    /// The text, each line with its end.
    pub text: String,
}

/// The fenced blocks of a page.
pub fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (at, line) in page.lines().enumerate() {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(info), None) => {
                open = Some(Block { info: info.trim().to_owned(), line: at + 1, text: String::new() });
            }
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block that nothing closes: {open:?}");
    blocks
}

/// Targets of the links and images of a page, outside its blocks of code.
pub fn links(page: &str) -> Vec<String> {
    let mut inside = false;
    let mut links = Vec::new();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            let targets = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
            links.extend(targets.map(|(target, _)| target.to_owned()));
        }
    }
    links
}

/// The anchor that GitHub and mdBook give to a heading.
pub fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// Anchors of all headings of a page.
pub fn anchors(page: &str) -> Vec<String> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside && line.starts_with('#') {
            found.push(anchor(line.trim_start_matches('#')));
        }
    }
    found
}

/// Runs a script in a folder as a shell does that stops at the first failure, with `taq` on its path; fails the test if it
/// does, and returns what it printed.
pub fn run(script: &str, taq: &str, folder: &Path) -> String {
    let Output { status, stdout, stderr } = shell(script, taq, folder);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(status.success(), "{script}\n{}\n{}", text(&stdout), text(&stderr));
    text(&stdout)
}

fn shell(script: &str, taq: &str, folder: &Path) -> Output {
    let bin = tempfile::tempdir().expect("a folder");
    let link = bin.path().join("taq");
    #[cfg(unix)]
    std::os::unix::fs::symlink(taq, &link).expect("a link");
    #[cfg(not(unix))]
    fs::copy(taq, &link).expect("a copy");
    assert!(fs::exists(&link).is_ok_and(|there| there));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let paths = [bin.path().to_owned()].into_iter().chain(std::env::split_paths(&path));
    Command::new("sh")
        .args(["-euc", script])
        .current_dir(folder)
        .env("PATH", std::env::join_paths(paths).expect("a path"))
        .stdin(Stdio::null())
        .output()
        .expect("sh starts")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_taken_apart() {
        let page = "# A *b* `taq c`\n[x](y.md#z) and ![i](j.png)\n```sh\ntaq [a](b)\n# no heading\n```\n## Why it's so\n";
        let block = Block { info: "sh".into(), line: 3, text: "taq [a](b)\n# no heading\n".into() };
        assert_eq!(blocks(page), [block]);
        assert_eq!(links(page), ["y.md#z", "j.png"]);
        assert_eq!(anchors(page), ["a-b-taq-c", "why-its-so"]);
    }
}
