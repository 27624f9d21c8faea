//! Against a small HTTP server of our own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A Hub with one repository, `somebody/tiny`.
#[derive(Clone)]
struct FakeHub {
    files: Arc<BTreeMap<String, Vec<u8>>>,
    /// What was asked for, with the `authorization` and `range` headers.
    seen: Arc<Mutex<Vec<String>>>,
    /// Answers of this many bytes only, to weights that are asked for from their start.
    cut: Option<usize>,
    address: String,
}

impl FakeHub {
    fn start(files: &[(&str, &[u8])], cut: Option<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Self {
            files: Arc::new(files.iter().map(|(k, v)| ((*k).to_owned(), v.to_vec())).collect()),
            seen: Arc::default(),
            cut,
            address: format!("http://{}", listener.local_addr().unwrap()),
        };
        let server = hub.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                thread::spawn(move || server.answer(stream));
            }
        });
        hub
    }

    fn answer(&self, stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_owned());
        }
        let url = head.first()?.split(' ').nth(1)?.to_owned();
        let header = |name: &str| {
            let found = head.iter().find(|h| h.to_ascii_lowercase().starts_with(&format!("{name}:")));
            found.map(|h| h.split_once(':').unwrap().1.trim().to_owned())
        };
        self.seen.lock().unwrap().push(format!("{url} {:?} {:?}", header("authorization"), header("range")));
        let send = |status: &str, extra: &str, declared: usize, body: &[u8]| {
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {declared}\r\nconnection: close\r\n{extra}\r\n"
            );
            (&stream).write_all(head.as_bytes()).and_then(|()| (&stream).write_all(body)).ok()
        };
        if url.starts_with("/api/models/somebody/gated/") || url.starts_with("/somebody/listed/") {
            return send("401 Unauthorized", "", 0, b"");
        }
        let list = |siblings: Vec<serde_json::Value>| {
            let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
            send("200 OK", "", body.len(), body.as_bytes())
        };
        let one = |name: &str| list(vec![serde_json::json!({"rfilename": name})]);
        if url.starts_with("/api/models/somebody/listed/") {
            return one("transformer/config.json");
        }
        if url.starts_with("/api/models/somebody/single/") {
            return one("sd3_medium.safetensors");
        }
        if url.starts_with("/api/models/somebody/tiny/revision/main") {
            let sized = |(k, v): (&String, &Vec<u8>)| serde_json::json!({"rfilename": k, "size": v.len()});
            return list(self.files.iter().map(sized).collect());
        }
        let asked = url.strip_prefix(&format!("/somebody/tiny/resolve/{COMMIT}/"));
        let here = asked.or_else(|| url.strip_prefix("/small/")).or_else(|| url.strip_prefix("/large/"));
        let Some((name, body)) = here.and_then(|name| self.files.get_key_value(name)) else {
            return send("404 Not Found", "", 0, b"");
        };
        let etag = blake3::hash(body).to_hex();
        let of = format!("x-repo-commit: {COMMIT}\r\netag: \"{etag}\"\r\n");
        if asked.is_some() {
            // As the Hub does: small files lie elsewhere on the same host, large ones on another.
            let place = match name.ends_with(".safetensors") {
                true => format!("{}/large/{name}", self.address.replace("127.0.0.1", "localhost")),
                false => format!("/small/{name}"),
            };
            return send("302 Found", &format!("{of}location: {place}\r\n"), 0, b"");
        }
        let range = header("range")?;
        let (from, to) = range.trim_start_matches("bytes=").split_once('-')?;
        let from: usize = from.parse().ok()?;
        let to = to.parse().unwrap_or(body.len() - 1);
        if from >= body.len() {
            return send("416 Range Not Satisfiable", "", 0, b"");
        }
        let part = &body[from..=to];
        let extra = format!("{of}content-range: bytes {from}-{to}/{}\r\n", body.len());
        let cut = self.cut.filter(|_| from == 0 && name.ends_with(".safetensors")).unwrap_or(part.len());
        send("206 Partial Content", &extra, part.len(), &part[..cut.min(part.len())])
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn hub(endpoint: &str, cache: &Path) -> Hub {
    Hub {
        endpoint: endpoint.to_owned(),
        cache: Cache::new(cache.to_owned()),
        token: Some("hf_secret".into()),
        offline: false,
        patience: Duration::from_millis(500),
    }
}

fn repo(id: &str) -> RepoId {
    RepoId::parse(id).unwrap()
}

const FILES: &[(&str, &[u8])] = &[
    ("README.md", b"unneeded"),
    ("transformer/config.json", b"{}"),
    ("transformer/diffusion_pytorch_model.safetensors", b"0123456789abcdefghijklmnopqrstuvwxyz"),
    ("vae/config.json", b"{}"),
    ("vae/diffusion_pytorch_model.safetensors", b"full precision"),
    ("vae/diffusion_pytorch_model.fp16.safetensors", b"half"),
    ("text_encoder/model.safetensors", b"l"),
    ("text_encoder_3/model-00001-of-00002.safetensors", b"full"),
    ("text_encoder_3/model.safetensors.index.json", b"full"),
    ("text_encoder_3/model.fp16-00001-of-00002.safetensors", b"half"),
    ("text_encoder_3/model.safetensors.index.fp16.json", b"half"),
    ("tokenizer/vocab.json", b"{}"),
    ("tokenizer/../../escape.json", b"{}"),
    ("tokenizer_3/tokenizer.json", b"{}"),
    ("model_index.json", b"{}"),
];

fn listed(t5: T5) -> Vec<String> {
    let siblings: Vec<_> =
        FILES.iter().map(|(name, _)| Sibling { name: (*name).to_owned(), size: None }).collect();
    wanted(&siblings, t5).unwrap().into_iter().map(|s| s.name).collect()
}

#[test]
fn only_the_files_that_are_needed_in_half_precision_where_possible() {
    let with_t5 = [
        "model_index.json",
        "text_encoder/model.safetensors",
        "text_encoder_3/model.fp16-00001-of-00002.safetensors",
        "text_encoder_3/model.safetensors.index.fp16.json",
        "tokenizer/vocab.json",
        "tokenizer_3/tokenizer.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ];
    assert_eq!(listed(T5::Auto), with_t5);
    let without: Vec<_> = with_t5.iter().filter(|f| !f.contains("_3/")).collect();
    assert_eq!(listed(T5::Off).iter().collect::<Vec<_>>(), without);
    let single = [Sibling { name: "sd3_medium.safetensors".into(), size: None }];
    assert!(wanted(&single, T5::Auto).unwrap_err().contains("diffusers' layout"));
}

#[test]
fn repository_ids() {
    assert_eq!(repo("a/b.c-d_e"), RepoId { id: "a/b.c-d_e".into(), revision: "main".into() });
    assert_eq!(repo("a/b@refs/pr/1").revision, "refs/pr/1");
    for bad in
        ["a", "a/b/c", "./b", "../b", "/b", "a/", "a/..", "a/b@", "a/b@../x", "a b/c", "a/x.safetensors"]
    {
        assert_eq!(RepoId::parse(bad), None, "{bad}");
    }
}

#[test]
fn a_repository_is_fetched_once() {
    let temp = tempfile::tempdir().unwrap();
    let server = FakeHub::start(FILES, None);
    let folder = hub(&server.address, temp.path()).snapshot(&repo("somebody/tiny"), T5::Off).unwrap();
    assert!(folder.ends_with(format!("models--somebody--tiny/snapshots/{COMMIT}")));
    assert_eq!(fs::read(folder.join("vae/diffusion_pytorch_model.fp16.safetensors")).unwrap(), b"half");
    assert!(!folder.join("README.md").exists() && !folder.join("text_encoder_3").exists());
    let count = server.seen().len();
    assert!(server.seen()[0].contains("hf_secret"));

    let again = hub(&server.address, temp.path()).snapshot(&repo("somebody/tiny"), T5::Off).unwrap();
    assert_eq!(again, folder);
    assert_eq!(server.seen().len(), count + 1, "the second time only the listing is asked for");
}

#[test]
fn a_broken_transfer_goes_on_where_it_stopped() {
    let temp = tempfile::tempdir().unwrap();
    let server = FakeHub::start(FILES, Some(10));
    let folder = hub(&server.address, temp.path()).snapshot(&repo("somebody/tiny"), T5::Off).unwrap();
    let name = "transformer/diffusion_pytorch_model.safetensors";
    let whole = FILES.iter().find(|(n, _)| *n == name).unwrap().1;
    assert_eq!(fs::read(folder.join(name)).unwrap(), whole);
    assert!(server.seen().iter().any(|s| s.contains(name) && s.contains("bytes=10-")), "{:?}", server.seen());
}

#[test]
fn what_an_earlier_transfer_left_is_used_or_thrown_away() {
    let name = "transformer/diffusion_pytorch_model.safetensors";
    let whole = FILES.iter().find(|(n, _)| *n == name).unwrap().1;
    // A piece; everything, but not yet in its place; too much.
    for left in [&whole[..5], whole, &[whole, b"more"].concat()] {
        let temp = tempfile::tempdir().unwrap();
        let server = FakeHub::start(FILES, None);
        let blobs = temp.path().join("models--somebody--tiny/blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{}.part", blake3::hash(whole))), left).unwrap();
        let folder = hub(&server.address, temp.path()).snapshot(&repo("somebody/tiny"), T5::Off).unwrap();
        assert_eq!(fs::read(folder.join(name)).unwrap(), whole);
    }
}

#[test]
fn a_file_of_another_length_is_not_taken() {
    let temp = tempfile::tempdir().unwrap();
    let server = FakeHub::start(FILES, None);
    let hub = hub(&server.address, temp.path());
    let file = Sibling { name: "model_index.json".into(), size: Some(7) };
    let api =
        ApiBuilder::from_cache(hub.cache.clone()).with_endpoint(server.address.clone()).build().unwrap();
    let error = hub.fetch(&api, &repo("somebody/tiny"), COMMIT, &file).unwrap_err().to_string();
    assert!(error.contains("model_index.json of somebody/tiny") && error.contains("length"), "{error}");
    assert!(
        !temp.path().join(format!("models--somebody--tiny/snapshots/{COMMIT}/model_index.json")).exists()
    );
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let hub = hub("http://127.0.0.1:1", Path::new("/full"));
    let full = ApiError::IoError(ErrorKind::StorageFull.into());
    let (reason, retries) = hub.explain(&full, &repo("a/b"));
    assert!(reason.contains("`/full` cannot be written"), "{reason}");
    assert_eq!(retries, 0);
}

#[test]
fn another_process_with_the_file_is_waited_for() {
    let hub = hub("http://127.0.0.1:1", Path::new("/cache"));
    let (reason, retries) = hub.explain(&ApiError::LockAcquisition("/cache/x.lock".into()), &repo("a/b"));
    assert!(reason.contains("another process") && reason.contains("/cache/x.lock"), "{reason}");
    assert!(retries > RETRIES);
}

#[test]
fn the_environment_says_where_and_who() {
    let temp = tempfile::tempdir().unwrap();
    let home = temp.path().to_str().unwrap();
    fs::write(temp.path().join("token"), "of the cache\n").unwrap();
    fs::write(temp.path().join("other"), "of a file\n").unwrap();
    let other = format!("{home}/other");
    let hub = |vars: &[(&str, &str)]| {
        let all = [("HF_HOME", home)].iter().chain(vars).rev().copied().collect::<Vec<_>>();
        Hub::from_vars(|name| all.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    };
    let token = |vars: &[(&str, &str)]| hub(vars).token.unwrap();
    assert_eq!(token(&[]), "of the cache");
    assert_eq!(token(&[("HF_TOKEN_PATH", &other)]), "of a file");
    assert_eq!(token(&[("HF_TOKEN_PATH", &other), ("HUGGING_FACE_HUB_TOKEN", "old")]), "old");
    assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "old"), ("HF_TOKEN", " new ")]), "new");
    let cache = |vars: &[(&str, &str)]| hub(vars).cache.path().clone();
    assert_eq!(cache(&[]), temp.path().join("hub"));
    assert_eq!(cache(&[("HUGGINGFACE_HUB_CACHE", "/old")]), Path::new("/old"));
    assert_eq!(cache(&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")]), Path::new("/new"));
    assert!(cache(&[("HF_HOME", "")]).ends_with(".cache/huggingface/hub"));
    assert_eq!(hub(&[]).endpoint, "https://huggingface.co");
    assert_eq!(hub(&[("HF_ENDPOINT", "http://mirror/")]).endpoint, "http://mirror");
    assert!(hub(&[("HF_HUB_OFFLINE", "YES")]).offline && !hub(&[("HF_HUB_OFFLINE", "0")]).offline);
}

#[test]
fn an_unreachable_hub_fails_soon_and_says_why() {
    let temp = tempfile::tempdir().unwrap();
    // Nobody listens; and somebody listens who never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    for address in [closed, silent.local_addr().unwrap()] {
        let start = Instant::now();
        let error =
            hub(&format!("http://{address}"), temp.path()).snapshot(&repo("a/b"), T5::Auto).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(error.code(), "taq::download");
        let text = error.to_string();
        assert!(text.contains("cannot fetch a/b") && text.contains("cannot be reached"), "{text}");
        assert!(text.contains("no file or folder of this name"), "{text}");
        assert!(!text.contains("hf_secret"), "{text}");
    }
}

#[test]
fn offline_an_earlier_copy_serves() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join(format!("models--a--b/snapshots/{COMMIT}"));
    for part in ["transformer", "vae"] {
        fs::create_dir_all(folder.join(part)).unwrap();
        fs::write(folder.join(part).join("diffusion_pytorch_model.safetensors"), "").unwrap();
    }
    fs::create_dir_all(temp.path().join("models--a--b/refs")).unwrap();
    fs::write(temp.path().join("models--a--b/refs/main"), COMMIT).unwrap();
    let mut hub = hub("http://127.0.0.1:1", temp.path());
    assert_eq!(hub.snapshot(&repo("a/b"), T5::Auto).unwrap(), folder);
    hub.offline = true;
    assert_eq!(hub.snapshot(&repo("a/b"), T5::Auto).unwrap(), folder);
    assert!(hub.snapshot(&repo("a/other"), T5::Auto).unwrap_err().to_string().contains("HF_HUB_OFFLINE"));
}

#[test]
fn refusals_say_what_to_do() {
    let temp = tempfile::tempdir().unwrap();
    let server = FakeHub::start(FILES, None);
    let mut hub = hub(&server.address, temp.path());
    let reason = |hub: &Hub, id: &str| hub.snapshot(&repo(id), T5::Auto).unwrap_err().to_string();
    assert!(reason(&hub, "somebody/gated").contains("accept the licence"));
    assert!(reason(&hub, "somebody/nothing").contains("no such repository"));
    hub.token = None;
    assert!(reason(&hub, "somebody/gated").contains("HF_TOKEN"));
    // The list of a gated repository is public, its files are not.
    assert!(reason(&hub, "somebody/listed").contains("set HF_TOKEN"));
    let single = reason(&hub, "somebody/single");
    assert!(single.contains("diffusers' layout") && single.contains("give its path"), "{single}");
}
