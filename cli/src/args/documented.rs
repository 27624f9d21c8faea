//! Every command that a page of the repository shows can be parsed.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use clap::error::ErrorKind;

use super::Cli;

/// The commands of a script's lines that begin with `taq` (or run it by Cargo), as words.
fn commands(script: &str) -> Vec<Vec<String>> {
    script.replace("\\\n", " ").lines().flat_map(line_commands).collect()
}

fn line_commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    for word in words(line) {
        match (word.quoted, word.text.as_str()) {
            (false, "|" | "||" | "&&" | ";" | "(" | ")") => commands.push(Vec::new()),
            (false, text) if text.starts_with('#') => break,
            (_, _) => commands.last_mut().into_iter().for_each(|c| c.push(word.text.clone())),
        }
    }
    commands.into_iter().filter_map(|words| taq(&words)).collect()
}

/// The arguments of taq in a command, up to where its output goes.
fn taq(words: &[String]) -> Option<Vec<String>> {
    let cargo: Vec<String> = ["cargo", "run", "--release", "--"].map(str::to_owned).to_vec();
    let arguments = match words.first()?.as_str() {
        "taq" | "my-host" | "target/release/taq" => &words[1..],
        "cargo" if words.starts_with(&cargo) => &words[cargo.len()..],
        _ => return None,
    };
    let arguments = arguments.iter().take_while(|word| !word.starts_with('>')).cloned();
    Some([String::from("taq")].into_iter().chain(arguments).collect())
}

struct Word {
    text: String,
    quoted: bool,
}

/// A line's words as a shell splits them, quotes taken away.
fn words(line: &str) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    let (mut quote, mut inside) = (None, false);
    for c in line.chars() {
        match quote {
            Some(q) if c == q => quote = None,
            None if c.is_whitespace() => inside = false,
            _ => {
                if !inside {
                    words.push(Word { text: String::new(), quoted: false });
                    inside = true;
                }
                let Some(word) = words.last_mut() else { continue };
                match (quote, c) {
                    (None, '\'' | '"') => {
                        quote = Some(c);
                        word.quoted = true;
                    }
                    _ => word.text.push(c),
                }
            }
        }
    }
    words
}

/// What is wrong with a command, but for the folders of runs that nobody has here.
fn parse(command: &[String]) -> Result<(), clap::Error> {
    match Cli::try_parse_from(command) {
        Err(e) if e.kind() == ErrorKind::ValueValidation && e.to_string().contains("is no run folder") => {
            Ok(())
        }
        other => other.map(|_| ()),
    }
}

fn pages(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && !["target", "runs", "node_modules"].contains(&name.as_str()) {
                pages(&path, found);
            }
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

#[test]
fn every_command_in_the_documentation_parses() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    pages(&root, &mut found);
    let mut parsed = 0;
    for page in found {
        let text = fs::read_to_string(&page).unwrap();
        // Every second part lies between two fences; its first line says what it is.
        let fenced = text.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
        for (_, script) in fenced.filter(|(info, _)| info.starts_with("sh")) {
            for command in commands(script) {
                if let Err(e) = parse(&command) {
                    panic!("{} shows `{}`:\n{e}", page.display(), command.join(" "));
                }
                parsed += 1;
            }
        }
    }
    assert!(parsed > 70, "only {parsed} commands were found");
}

/// The examples in help texts are commands too.
#[test]
fn every_example_in_a_help_text_parses() {
    use clap::CommandFactory;
    fn examples(command: &clap::Command, parsed: &mut usize) {
        let help = command.get_after_help().map(|h| h.to_string()).unwrap_or_default();
        for line in help.lines().map(str::trim).filter(|line| line.starts_with("taq ")) {
            // What explains an example stands behind it, at least two blanks apart.
            let example = line.split("  ").next().unwrap_or(line);
            for command in commands(example) {
                if let Err(e) = parse(&command) {
                    panic!("the help shows `{example}`:\n{e}");
                }
                *parsed += 1;
            }
        }
        command.get_subcommands().for_each(|inner| examples(inner, parsed));
    }
    let mut parsed = 0;
    examples(&Cli::command(), &mut parsed);
    assert!(parsed > 50, "only {parsed} examples were found");
}

#[test]
fn lines_are_split_as_a_shell_does() {
    let line = "taq decide --policy-config '{\"a b\": 1}' > plan.json   # what for";
    assert_eq!(commands(line), [["taq", "decide", "--policy-config", "{\"a b\": 1}"]]);
    assert_eq!(commands("a && taq run x | tail; b"), [["taq", "run", "x"]]);
    assert_eq!(commands("cargo run --release -- run \\\n  p.toml"), [["taq", "run", "p.toml"]]);
}
