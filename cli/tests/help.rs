//! Help and usage.

mod common;

use common::taq;

const COMMANDS: [&str; 11] = [
    "run",
    "calibrate",
    "observe",
    "decide",
    "round",
    "generate",
    "plot",
    "report",
    "plugins",
    "schema",
    "doctor",
];

#[test]
fn help_names_every_command() {
    let call = taq(&["--help"]).exits(0);
    for command in COMMANDS {
        assert!(call.stdout.contains(&format!("\n  {command} ")), "{command}:\n{}", call.stdout);
    }
    assert!(call.stderr.is_empty(), "{}", call.stderr);
}

#[test]
fn every_command_has_help_with_examples() {
    for command in COMMANDS {
        let call = taq(&[command, "--help"]).exits(0);
        assert!(call.stdout.contains("Examples:"), "{command}:\n{}", call.stdout);
        assert!(call.stdout.contains(&format!("Usage: taq {command} ")), "{command}:\n{}", call.stdout);
    }
}

#[test]
fn stages_share_the_run_options() {
    for command in ["calibrate", "observe", "decide", "round", "generate"] {
        let help = taq(&[command, "--help"]).exits(0).stdout;
        for flag in ["--run", "--model", "--sampler", "--seed", "--force", "--device", "--quiet"] {
            assert!(help.contains(flag), "taq {command} lacks {flag}");
        }
    }
}

#[test]
fn long_help_says_what_a_stage_reads_and_writes() {
    for (command, text) in [
        ("calibrate", "samples/"),
        ("observe", "layer_statistics.json"),
        ("decide", "quant_config.json"),
        ("round", "quantized_weights/"),
        ("generate", "report.json"),
    ] {
        assert!(
            taq(&[command, "--help"]).exits(0).stdout.contains(text),
            "taq {command} --help lacks {text}"
        );
    }
}

#[test]
fn usage_errors_exit_with_2_and_suggest() {
    taq(&["calibrate", "--num-image", "3"]).exits(2).says("--num-images");
    taq(&["calibrat"]).exits(2).says("calibrate");
    taq(&["round", "--bits-w", "9"]).exits(2).says("2..=8");
    taq(&["round", "--rounder-config", "{\"iters\": }"]).exits(2).says("not a JSON object");
    taq(&["calibrate", "--image-size", "64x"]).exits(2).says("height x width");
    taq(&["calibrate", "--cfg-weight", "nan"]).exits(2).says("at least 0");
    taq(&[]).exits(2);
}

#[test]
fn version_is_the_package_version() {
    assert_eq!(taq(&["--version"]).exits(0).stdout, concat!("taq ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn completions_are_what_the_shell_reads() {
    use std::process::Command;
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = taq(&["completions", shell]).exits(0).stdout;
        for word in ["calibrate", "bits-w", "img2img"] {
            assert!(script.contains(word), "{shell} does not know {word}");
        }
    }
    taq(&["completions", "tcsh"]).exits(2).says("bash");
    let complete = "source <(\"$TAQ\" completions bash); COMP_WORDS=(taq ro); COMP_CWORD=1; _taq taq ro taq; \
                    echo ${COMPREPLY[@]}";
    let shell = Command::new("bash").args(["-c", complete]).env("TAQ", env!("CARGO_BIN_EXE_taq")).output();
    let Ok(output) = shell else {
        eprintln!("skipped: no bash");
        return;
    };
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "round", "{output:?}");
}

#[test]
fn manual_pages_are_printed_and_written() {
    let page = taq(&["man"]).exits(0).stdout;
    assert!(page.contains(".TH taq 1"), "{page:.300}");
    let folder = tempfile::tempdir().unwrap();
    taq(&["man", "--out", folder.path().to_str().unwrap()]).exits(0);
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert!(read("taq-round.1").contains("learned"));
    assert!(read("taq-plugins-new.1").contains(".TH taq-plugins-new 1"));
    let pages = std::fs::read_dir(folder.path()).unwrap().count();
    let helps = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/help")).unwrap().count();
    assert_eq!(pages, helps, "a page for every command that has a help text");
}
