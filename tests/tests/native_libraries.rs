//! Native libraries that are not what they should be: one clear sentence, exit code 2, and a host that goes on.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, str};

use serde_json::Value;
use taq_core::native::Library;
use taq_core::registry::{Kind, Registry};
use taq_plugins as _;
use taq_tests::native;
use taq_tests::taq::{command, fail, folded, succeed};

const HOST: &str = env!("CARGO_BIN_EXE_taq-host");

/// What `taq plugins` says of a library that it does not take.
#[track_caller]
fn refused(library: &Path, expected: &[&str]) {
    let library = library.to_str().unwrap();
    let (code, said) = fail(HOST, &["plugins", "--plugin", library]);
    assert_eq!(code, 2, "{library}: {said}");
    for part in expected {
        assert!(folded(&said).contains(part), "{library} should say “{part}”:\n{said}");
    }
    assert!(!said.contains("panicked") && !said.contains('\x1b') && said.len() < 2000, "{said}");
}

/// A copy of a library with some bytes of it changed.
fn patched(library: &Path, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = fs::read(library).unwrap();
    change(&mut bytes);
    let path = library.with_file_name(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn what_is_no_library_is_refused_before_any_code_of_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    refused(&folder.path().join("missing.so"), &["cannot read", "missing.so"]);
    refused(folder.path(), &["it is no regular file"]);
    refused(&file("empty.so", b""), &["it is no shared library"]);
    refused(
        &file("text.so", b"#!/bin/sh\necho hello\n"),
        &["it is no shared library", "begins with `#!/bin/s`"],
    );
    refused(&file("module.so", b"\0asm\x01\0\0\0"), &["it is a WASM module", "`--policy` takes it"]);
    let good = native::c(folder.path(), &["TELLS_OF_LOADING"]);
    let half = patched(&good, "half.so", |bytes| bytes.truncate(bytes.len() / 2));
    refused(&half, &["half.so"]);
    refused(Path::new(HOST), &["it is no plugin of taq", "TAQ_PLUGIN_STAMP"]);
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        // The machine in an ELF header: 183 is aarch64. An object file is of type 1.
        let other = patched(&good, "other.so", |bytes| bytes[18..20].copy_from_slice(&[183, 0]));
        refused(&other, &["it is ELF for aarch64; this program takes ELF for x86_64"]);
        let object = patched(&good, "object.so", |bytes| bytes[16] = 1);
        refused(&object, &["it is no shared library but of the kind “relocatable”"]);
    }
    // Initialisers run where a library is loaded, and with a stamp that does not fit it is not.
    let ran = "CODE OF THE LIBRARY RAN";
    let run = |library: &Path| {
        let arguments = ["plugins", "--plugin", library.to_str().unwrap()];
        String::from_utf8(command(HOST, &arguments).output().unwrap().stderr).unwrap()
    };
    assert!(run(&good).contains(ran), "{}", run(&good));
    for stamp in ["NO_STAMP", "BAD_MAGIC", "NEWER_MAJOR", "NEWER_MINOR", "STAMP_SIZE"] {
        let library = native::c(folder.path(), &[stamp, "TELLS_OF_LOADING"]);
        assert!(!run(&library).contains(ran), "{stamp}");
    }
}

#[test]
fn what_a_library_says_of_itself_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let cases: &[(&str, &[&str])] = &[
        ("NO_STAMP", &["it is no plugin of taq: it has no symbol TAQ_PLUGIN_STAMP"]),
        ("BAD_MAGIC", &["its stamp begins with `TAQPLUG\\u{0}`, expected `TAQPLUGN`"]),
        (
            "NEWER_MAJOR",
            &["it is built for plugin ABI 2.0 (with sdk 2.0, C); this program supports 1.0 to 1.0"],
        ),
        (
            "NEWER_MINOR",
            &["it is built for plugin ABI 1.7 (with sdk 1.7, C); this program supports 1.0 to 1.0"],
        ),
        ("STAMP_SIZE", &["its stamp says that it has 64 bytes, expected 184"]),
        ("STAMP_SHORT", &["plugin `"]),
        ("NO_ENTRY", &["it has no function taq_plugin_entry_v1"]),
        ("UNRESOLVED", &["it cannot be loaded", "there_is_no_such_function_anywhere"]),
        ("ENTRY_FAILS", &["it declares nothing: not on a Sunday"]),
        ("ENTRY_NULL", &["it declares nothing: it does not say why"]),
        ("DECL_WILD", &["its declaration points nowhere (0xdeadbeef000)"]),
        ("DECL_SIZE", &["its declaration says that it has 16 bytes, expected 56"]),
        ("NO_ITEMS", &["it declares 0 plugins, expected 1 to 256"]),
        ("MANY_ITEMS", &["it declares 1099511627776 plugins"]),
        ("ITEMS_WILD", &["its list of 2 plugins points nowhere"]),
        ("NAME_NULL", &["plugin 0 of its list: its name is null"]),
        ("NAME_DANGLING", &["plugin 0 of its list: its name points nowhere (0x8)"]),
        ("NAME_WILD", &["plugin 0 of its list: its name points nowhere (0xdeadbeef000)"]),
        ("NAME_HUGE", &["its name has 4611686018427387904 bytes"]),
        ("NAME_EMPTY", &["its name is ``, expected 1 to 64 letters"]),
        ("NAME_ODD", &["its name is `a/b\\u{1b}[1m`"]),
        ("NAME_NO_UTF8", &["its name is no UTF-8 (at byte 2)"]),
        ("DUPLICATE", &["it declares two rounders named `c-nearest`"]),
        ("NOT_JSON", &["`c-nearest`: its description is not one: expected value at line 1 column 1"]),
        (
            "OTHER_FORMAT",
            &["the format of its description is `taq.plugin_info.v9`, expected `taq.plugin_info.v1`"],
        ),
        ("UNKNOWN_KIND", &["`c-nearest`: its kind is 9, expected 1 to 3"]),
        ("TABLE_NULL", &["`c-nearest`: its table of a rounder is null"]),
        ("TABLE_WILD", &["its table of a rounder points nowhere (0xdeadbeef000)"]),
        ("TABLE_SIZE", &["its table of a rounder says that it has 32 bytes, expected 40"]),
        ("FUNCTION_NULL", &["`c-nearest`: its function `create` is null"]),
        ("FUNCTION_WILD", &["its function `create` points nowhere (0xdeadbeef000)"]),
        ("NO_ROUND", &["it has neither `round_layer` nor `round_block`"]),
        ("TWO_ROUNDS", &["it has both `round_layer` and `round_block`, expected one"]),
    ];
    for (switch, expected) in cases {
        refused(&native::c(folder.path(), &[switch]), expected);
    }
    // One process survives all of them, and still takes one that is right.
    let mut registry = Registry::linked().unwrap();
    for (switch, _) in cases {
        let name = switch.replace('_', "");
        let path = folder.path().join(format!("lib{name}{}", std::env::consts::DLL_SUFFIX));
        assert_eq!(registry.load(&path).err().map(|e| e.code()), Some("taq::native"), "{switch}");
    }
    registry.load(&native::c(folder.path(), &[])).unwrap();
    registry.rounder("c-nearest", &Value::Null).unwrap();
}

#[test]
fn libraries_are_listed_and_described() {
    let folder = tempfile::tempdir().unwrap();
    let (c, rust) = (native::c(folder.path(), &[]), native::rust("taq_test_plugins"));
    let (c, rust) = (c.to_str().unwrap(), rust.to_str().unwrap());
    let listed = succeed(HOST, &["plugins", "--plugin", c, "--plugin", rust, "--json"]);
    let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
    let find = |kind: &str, name: &str| {
        let found = listed.iter().find(|p| p["kind"] == kind && p["name"] == name);
        found.unwrap_or_else(|| panic!("no {kind} {name}"))
    };
    assert_eq!(find("rounder", "c-nearest")["summary"], "Rounds to nearest, in C.");
    assert!(find("observer", "c-minmax")["origin"].as_str().unwrap().starts_with("in-c 1.2.3, blake3 "));
    assert_eq!(find("rounder", "descent")["settings"]["properties"]["iters"]["default"], 20);
    find("policy", "eight-late");
    // `--plugin` stands anywhere, and so do the other flags of both.
    let shown = succeed(HOST, &["plugins", "show", "descent", "--plugin", rust]);
    assert!(shown.contains("from taq-test-plugins ") && shown.contains("iters"), "{shown}");
    assert_eq!(succeed(HOST, &["plugins", "--plugin", rust, "show", "descent"]), shown);
    assert_eq!(succeed(HOST, &["--plugin", rust, "plugins", "show", "descent"]), shown);
    let schema = succeed(HOST, &["plugins", "show", "descent", "--json", "--plugin", rust]);
    assert_eq!(succeed(HOST, &["plugins", "--json", "--plugin", rust, "show", "descent"]), schema);
    let (code, said) = fail(HOST, &["plugins", "rounder", "show", "nearest"]);
    assert!(code == 2 && said.contains("leave it out before a command"), "{said}");
    // The list has the beginning of the hash.
    let hash = find("rounder", "c-nearest")["origin"].as_str().unwrap().rsplit(' ').next().unwrap();
    assert_eq!(hash.len(), 64);
    let table = succeed(HOST, &["plugins", "--plugin", c]);
    assert!(table.contains(&hash[..12]) && !table.contains(&hash[..13]), "{table}");
    // A folder of libraries; what is of no use there is told, and does not stand in the way.
    fs::write(folder.path().join(format!("notes{}", std::env::consts::DLL_SUFFIX)), "no library").unwrap();
    fs::write(folder.path().join("readme.txt"), "no library either").unwrap();
    let output = command(HOST, &["plugins", "rounder"]).env("TAQ_PLUGINS", folder.path()).output().unwrap();
    let (stdout, stderr) = (str::from_utf8(&output.stdout).unwrap(), str::from_utf8(&output.stderr).unwrap());
    assert!(output.status.success() && stdout.contains("c-nearest"), "{stdout}{stderr}");
    assert!(folded(stderr).contains("it is no shared library") && !stderr.contains("readme"), "{stderr}");
    let missing = command(HOST, &["plugins"]).env("TAQ_PLUGINS", "/no/such/folder").output().unwrap();
    assert_eq!(missing.status.code(), Some(2));
}

#[test]
fn names_that_are_taken_are_told_apart_by_library() {
    let folder = tempfile::tempdir().unwrap();
    let compile = |switches: &[&str]| native::c(folder.path(), switches);
    let mut registry = Registry::linked().unwrap();
    // What is linked in keeps its name.
    let built_in = registry.find(Kind::Rounder, "adaround").unwrap().origin;
    registry.load(&compile(&["BUILT_IN_NAME"])).unwrap();
    assert_eq!(registry.find(Kind::Rounder, "adaround").unwrap().origin, built_in);
    assert!(
        registry.find(Kind::Rounder, "in-c::adaround").unwrap().origin.starts_with("in-c 1.2.3, blake3 ")
    );
    // Of two libraries, both are named in full; a third does not get the name either.
    registry.load(&compile(&["LIBRARY_NAME=\"first\""])).unwrap();
    assert!(registry.find(Kind::Rounder, "c-nearest").unwrap().origin.starts_with("first "));
    registry.load(&compile(&["LIBRARY_NAME=\"second\""])).unwrap();
    for name in ["first::c-nearest", "second::c-nearest", "first::c-minmax"] {
        let kind = if name.ends_with("nearest") { Kind::Rounder } else { Kind::Observer };
        let plugin = registry.find(kind, name).unwrap();
        assert!(plugin.origin.starts_with(&name[..5]) && plugin.name == name, "{name}: {}", plugin.origin);
    }
    registry.load(&compile(&["LIBRARY_NAME=\"third\""])).unwrap();
    let error = registry.rounder("c-nearest", &Value::Null).err().unwrap();
    assert_eq!(error.to_string(), "there is no rounder named `c-nearest`; did you mean `first::c-nearest`?");
    registry.rounder("third::c-nearest", &Value::Null).unwrap();
    // The same file again is the same library; another one that calls itself so is refused.
    assert_eq!(registry.libraries().len(), 4);
    registry.load(&compile(&["LIBRARY_NAME=\"third\""])).unwrap();
    assert_eq!(registry.libraries().len(), 4);
    let again = registry.load(&compile(&["LIBRARY_NAME=\"third\"", "NO_REASON"])).err().unwrap().to_string();
    assert!(again.contains("another library of this name") && again.contains("has a "), "{again}");
}

#[test]
fn a_stamp_says_what_made_a_library() {
    let facts = Library::load(&native::rust("taq_test_plugins")).unwrap().facts().clone();
    assert!(facts.compiler.starts_with("rustc 1.") && facts.sdk.starts_with("taq-plugin "), "{facts:?}");
    assert!(facts.unwinds && facts.target.contains(std::env::consts::ARCH), "{facts:?}");
    let folder = tempfile::tempdir().unwrap();
    let facts = Library::load(&native::c(folder.path(), &[])).unwrap().facts().clone();
    assert_eq!((facts.abi.as_str(), facts.sdk.as_str()), ("1.0", "taq_plugin.h 1.0"));
}

#[test]
fn libraries_in_rust_and_in_c_pass_the_conformance_suites() {
    let folder = tempfile::tempdir().unwrap();
    let c = native::c(folder.path(), &[]);
    let said = succeed(HOST, &["plugins", "check", c.to_str().unwrap()]);
    assert!(said.contains("in-c 1.2.3, plugin ABI 1.0") && said.contains("rounder `c-nearest`"), "{said}");
    let signround = native::rust("signround");
    let config = r#"{"sign-round": {"iters": 20}}"#;
    succeed(HOST, &["plugins", "check", signround.to_str().unwrap(), "--config", config]);
    let library = Library::load(&native::rust("taq_test_plugins")).unwrap();
    for name in ["plain", "descent", "centred", "eight-late"] {
        let item = library.items().iter().find(|i| i.name() == name).unwrap();
        let report = item.check("{}", &mut |_| {});
        assert!(report.passed(), "{name}:\n{report}");
    }
    // And the suites see what is wrong.
    for (name, check) in [
        ("panics-in-create", "no instance today"),
        ("panics-in-round", "cannot round"),
        ("says-nan", "scale[1] is NaN"),
        ("too-few", "the plugin returned"),
        ("stops-unasked", "without being asked to stop"),
    ] {
        let item = library.items().iter().find(|i| i.name() == name).unwrap();
        let report = item.check("{}", &mut |_| {});
        assert!(!report.passed() && report.to_string().contains(check), "{name}:\n{report}");
    }
    for (switch, check) in [
        ("WRITES_BEYOND", "it wrote beyond the room of `weight_int`"),
        ("WRITES_NOTHING", "it did not write scale[0]"),
        ("STATUS_77", "it returned 77, expected 0 to 5"),
        ("RANGE_NAN", "`finish` left NaN in `low and high`"),
    ] {
        let library = native::c(folder.path(), &[switch]);
        let output = command(HOST, &["plugins", "check", library.to_str().unwrap()]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{switch}: {said}");
        assert!(said.contains("FAILED") && said.contains(check), "{switch}: {said}");
    }
}

/// Calls of a library that never return: the check says which, and ends.
#[test]
fn a_check_that_does_not_end_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    for (switch, expected) in [
        ("STUCK", "rounder `c-nearest`, “shapes: grids of every kind”: not done after 2 s"),
        ("STUCK_IN_ENTRY", "it is being loaded: not done after 2 s"),
    ] {
        let library = native::c(folder.path(), &[switch]);
        let started = Instant::now();
        let (code, said) = fail(HOST, &["plugins", "check", library.to_str().unwrap(), "--timeout", "2"]);
        assert_eq!(code, 2, "{said}");
        assert!(folded(&said).contains(expected) && said.contains("taq::native"), "{said}");
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    }
    let good = native::c(folder.path(), &[]);
    let (code, said) = fail(HOST, &["plugins", "check", good.to_str().unwrap(), "--timeout", "0"]);
    assert!(code == 2 && said.contains("--timeout"), "{said}");
}

/// What the page of the ABI shows is what the code reads, and its numbers are those of the code.
#[test]
fn the_abi_page_is_right() {
    let page = fs::read_to_string(taq_tests::paths::repository().join("docs/abi.md")).unwrap();
    let info = page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let info: taq_plugin::PluginInfo = serde_json::from_str(info).unwrap();
    assert_eq!(info.format, taq_plugin::INFO_FORMAT);
    let numbers = [
        ("The constant `TAQ_PLUGIN_STAMP`, %d bytes", size_of::<taq_plugin::abi::Stamp>()),
        ("| 4 | `size` | %d |", size_of::<taq_plugin::abi::Stamp>()),
        ("Of it %d KiB are read", taq_plugin::view::MESSAGE_BYTES >> 10),
        ("and %d characters shown", taq_core::wasm::limits::TEXT_CHARACTERS),
        ("A plan has at most %d MiB", taq_core::wasm::limits::RESPONSE_BYTES >> 20),
    ];
    for (text, number) in numbers {
        assert!(
            page.contains(&text.replace("%d", &number.to_string())),
            "the page does not say “{text}”, {number}"
        );
    }
    let rows = taq_core::native::LAYER_ROWS;
    assert!(page.contains(&format!("about {},{:03} rows", rows / 1000, rows % 1000)));
    for (status, name) in
        ["OK", "INVALID", "UNSUPPORTED", "PANICKED", "CANCELLED", "FAILED"].iter().enumerate()
    {
        assert!(page.contains(&format!("| {status} | `TAQ_{name}` |")), "{name}");
    }
}

/// The header and the fixture under the address sanitizer and that of undefined behaviour: the plugin is linked into a
/// program that plays the host.
#[test]
fn the_c_plugin_has_no_finding_under_sanitizers() {
    let folder = tempfile::tempdir().unwrap();
    let root = taq_tests::paths::repository();
    let program = folder.path().join("host");
    let compiled = Command::new(std::env::var("CC").unwrap_or("cc".into()))
        .args(["-std=c11", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
        .args(["-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(root.join("sdk/native/include"))
        .arg("-o")
        .arg(&program)
        .args([root.join("tests/fixtures/native/host.c"), root.join("tests/fixtures/native/plugin.c")])
        .arg("-lm")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&compiled.stderr).into_owned();
    if said.contains("cannot find") && said.contains("asan") {
        eprintln!("skipped: this compiler comes without sanitizers");
        return;
    }
    assert!(compiled.status.success(), "{said}");
    let output = Command::new(&program).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "c-nearest, c-minmax: fine\n");
}
