//! Fetching a model from the Hugging Face Hub.
//!
//! A small synchronous client of the Hub's documented HTTP interface. Files go to
//! `models--{owner}--{name}/snapshots/{commit}/` of the cache that huggingface_hub uses, and what that library
//! fetched before is found there. Environment variables are the same too: `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`,
//! `HF_TOKEN_PATH`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
//!
//! Every wait has a limit, an interrupted transfer goes on where it stopped, and two processes that want one file
//! take turns.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Component as PathPart, Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use taq_core::{Error, Result};
use tracing::{info, warn};

use super::{T5, discover};

/// Times a transfer is taken up again after the connection broke.
const RETRIES: usize = 4;

/// Bytes between two reads of the network.
const CHUNK: usize = 1 << 20;

/// A repository and a revision of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RepoId {
    /// `owner/name`.
    pub(super) id: String,
    /// Branch, tag or commit.
    pub(super) revision: String,
}

impl RepoId {
    /// `owner/name` or `owner/name@revision`; `None` for anything else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (owner, name) = id.split_once('/')?;
        let plain = |s: &str| {
            s.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        let good =
            plain(owner) && plain(name) && revision.split('/').all(plain) && !name.ends_with(".safetensors");
        good.then(|| Self { id: id.to_owned(), revision: revision.to_owned() })
    }
}

/// The Hub and the local cache of it.
pub(super) struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<String>,
    /// Use the cache and nothing else.
    offline: bool,
    /// Limit for connecting, for an answer to begin, and for silence within one.
    patience: Duration,
}

/// What the Hub says about a revision.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Clone, Deserialize)]
struct Sibling {
    #[serde(rename = "rfilename")]
    name: String,
    size: Option<u64>,
}

impl Hub {
    /// As the environment says.
    pub(super) fn from_env() -> Self {
        let var = |name: &str| env::var(name).ok().filter(|v| !v.is_empty());
        let home = env::home_dir().unwrap_or_default();
        let hf_home = var("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| var("XDG_CACHE_HOME").map(|c| Path::new(&c).join("huggingface")))
            .unwrap_or_else(|| home.join(".cache/huggingface"));
        let cache = var("HF_HUB_CACHE").or_else(|| var("HUGGINGFACE_HUB_CACHE"));
        let token_file = var("HF_TOKEN_PATH").map_or_else(|| hf_home.join("token"), PathBuf::from);
        let token = var("HF_TOKEN")
            .or_else(|| var("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| fs::read_to_string(token_file).ok())
            .map(|t| t.trim().to_owned())
            .filter(|t| !t.is_empty());
        let truthy = |v: String| matches!(v.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true");
        Self {
            endpoint: var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            cache: cache.map_or_else(|| hf_home.join("hub"), PathBuf::from),
            token,
            offline: var("HF_HUB_OFFLINE").is_some_and(truthy),
            patience: Duration::from_secs(20),
        }
    }

    /// The folder of a revision with all files that taq needs, fetched if they are not there.
    ///
    /// # Errors
    /// [`Error::Download`] if the Hub cannot be reached (and there is no earlier copy), refuses, or breaks off;
    /// [`Error::Io`] if the cache cannot be written.
    pub(super) fn snapshot(&self, repo: &RepoId, t5: T5) -> Result<PathBuf> {
        let earlier = self.cached(repo).filter(|folder| discover::folder(folder).is_ok());
        let failed = |reason: String| Error::Download { what: repo.id.clone(), reason };
        if self.offline {
            return earlier.ok_or_else(|| {
                let cache = self.cache.display();
                failed(format!("HF_HUB_OFFLINE is set, and `{cache}` holds no usable copy of it"))
            });
        }
        let listing = match (self.listing(repo), earlier) {
            (Ok(listing), _) => listing,
            (Err(reason), Some(folder)) => {
                warn!("{}: {reason}; using the copy in {}", repo.id, folder.display());
                return Ok(folder);
            }
            (Err(reason), None) => {
                return Err(failed(format!(
                    "{reason}; there is no file or folder of this name either, and no copy in `{}`",
                    self.cache.display()
                )));
            }
        };
        if !listing.sha.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(failed(format!("`{}` is not a commit", listing.sha.escape_debug())));
        }
        let wanted = wanted(&listing.siblings, t5).map_err(failed)?;
        let folder = self.folder(repo).join("snapshots").join(&listing.sha);
        for file in &wanted {
            let to = folder.join(&file.name);
            if !to.exists() {
                self.fetch(repo, &listing.sha, file, &to)?;
            }
        }
        let branch = self.folder(repo).join("refs").join(&repo.revision);
        create_parent(&branch)?;
        fs::write(&branch, &listing.sha).map_err(Error::io("write", &branch))?;
        Ok(folder)
    }

    fn folder(&self, repo: &RepoId) -> PathBuf {
        self.cache.join(format!("models--{}", repo.id.replace('/', "--")))
    }

    /// The folder of the revision as last seen.
    fn cached(&self, repo: &RepoId) -> Option<PathBuf> {
        let folder = self.folder(repo);
        let commit = fs::read_to_string(folder.join("refs").join(&repo.revision));
        let commit = commit.map_or_else(|_| repo.revision.clone(), |c| c.trim().to_owned());
        Some(folder.join("snapshots").join(commit)).filter(|f| f.is_dir())
    }

    fn agent(&self) -> ureq::Agent {
        let limit = Some(self.patience);
        ureq::Agent::config_builder()
            .user_agent(concat!("taq/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .timeout_resolve(limit)
            .timeout_connect(limit)
            .timeout_send_request(limit)
            .timeout_recv_response(limit)
            .timeout_per_read(limit)
            .build()
            .into()
    }

    /// The token goes to the Hub itself only: it is dropped where a redirect leads to another host.
    fn get(&self, url: &str) -> ureq::RequestBuilder<ureq::typestate::WithoutBody> {
        let request = self.agent().get(url);
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn listing(&self, repo: &RepoId) -> Result<Listing, String> {
        let revision = repo.revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}?blobs=true", self.endpoint, repo.id);
        let response =
            self.get(&url).call().map_err(|e| format!("{} cannot be reached ({e})", self.endpoint))?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(self.refusal(repo, status));
        }
        let text = response.into_body().into_with_config().limit(64 << 20).read_to_vec();
        let text = text.map_err(|e| format!("{} broke off ({e})", self.endpoint))?;
        serde_json::from_slice(&text)
            .map_err(|e| format!("{} gave an answer of another kind ({e})", self.endpoint))
    }

    /// What a status other than success means, and what to do.
    fn refusal(&self, repo: &RepoId, status: u16) -> String {
        let page = format!("{}/{}", self.endpoint, repo.id);
        match (status, &self.token) {
            (401 | 403, Some(_)) => format!(
                "the Hub refuses this token ({status}): accept the licence at {page} if it asks for one, and check that \
                 the token may read the repository"
            ),
            (401 | 403, None) => format!(
                "the Hub wants a token ({status}): the repository does not exist, is private, or is gated; for a gated \
                 one accept its licence at {page} and set HF_TOKEN"
            ),
            (404, _) => format!("the Hub has no such repository or revision (`{}`)", repo.revision),
            _ => format!("the Hub answered with status {status}"),
        }
    }

    /// Fetches one file to its place.
    fn fetch(&self, repo: &RepoId, commit: &str, file: &Sibling, to: &Path) -> Result<()> {
        create_parent(to)?;
        let partial = to.with_added_extension("incomplete");
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&partial);
        let mut out = open.map_err(Error::io("create", &partial))?;
        out.lock().map_err(Error::io("lock", &partial))?;
        if to.exists() {
            return Ok(()); // Another process fetched it while this one waited for the lock.
        }
        info!("fetching {} of {} ({})", file.name, repo.id, size(file.size));
        let url = format!("{}/{}/resolve/{commit}/{}", self.endpoint, repo.id, file.name);
        let failed = |reason| Error::Download { what: format!("{} of {}", file.name, repo.id), reason };
        for attempt in 0.. {
            match self.transfer(&url, &mut out, file.size) {
                Ok(()) => break,
                Err(Broken::Refused(status)) => return Err(failed(self.refusal(repo, status))),
                Err(Broken::Disk(e)) => return Err(Error::io("write", &partial)(e)),
                Err(Broken::Network(reason)) if attempt == RETRIES => return Err(failed(reason)),
                Err(Broken::Network(reason)) => {
                    warn!("{}: {reason}; going on", file.name);
                    std::thread::sleep(self.patience.min(Duration::from_secs(1 << attempt)));
                }
            }
        }
        fs::rename(&partial, to).map_err(Error::io("write", to))
    }

    /// Appends what is missing to `out`.
    fn transfer(&self, url: &str, out: &mut File, expected: Option<u64>) -> Result<(), Broken> {
        let network = |e: &dyn std::fmt::Display| Broken::Network(e.to_string());
        let mut have = out.seek(SeekFrom::End(0)).map_err(Broken::Disk)?;
        if expected.is_some_and(|size| have == size) {
            return Ok(());
        }
        if expected.is_some_and(|size| have > size) {
            out.set_len(0).map_err(Broken::Disk)?;
            have = 0;
        }
        let request = self.get(url);
        let request = if have > 0 { request.header("range", format!("bytes={have}-")) } else { request };
        let response = request.call().map_err(|e| network(&e))?;
        match response.status().as_u16() {
            206 => {}
            200 => {
                out.set_len(0).and_then(|()| out.seek(SeekFrom::Start(0))).map_err(Broken::Disk)?;
                have = 0;
            }
            status @ (408 | 416 | 429 | 500..) => {
                if status == 416 {
                    out.set_len(0).map_err(Broken::Disk)?;
                }
                return Err(Broken::Network(format!("status {status}")));
            }
            status => return Err(Broken::Refused(status)),
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(network(&e)),
            };
            out.write_all(&buffer[..read]).map_err(Broken::Disk)?;
            have += read as u64;
        }
        match expected {
            Some(size) if size != have => {
                Err(Broken::Network(format!("it ended after {have} of {size} bytes")))
            }
            _ => out.sync_all().map_err(Broken::Disk),
        }
    }
}

/// Why a transfer ended early.
enum Broken {
    /// Worth another attempt.
    Network(String),
    /// The Hub's answer, which another attempt would not change.
    Refused(u16),
    Disk(io::Error),
}

/// The files of a repository that taq needs. Of each component's weights one variant: half precision where there
/// is one, since it is half the transfer.
fn wanted(siblings: &[Sibling], t5: T5) -> Result<Vec<Sibling>, String> {
    let has = |name: &str| siblings.iter().any(|s| s.name == name);
    if !has("transformer/config.json") {
        return Err(
            "it is not in diffusers' layout (no `transformer/config.json`); for a single-file checkpoint, \
                    download the file and give its path"
                .into(),
        );
    }
    let weights = |folder: &str, stem: &str| {
        let fp16 = format!("{folder}/{stem}.fp16");
        let full = format!("{folder}/{stem}");
        // `x.fp16.safetensors`, `x.fp16-00001-of-00002.safetensors`, `x.safetensors.index.fp16.json`, …
        let indexes =
            [format!("{full}.safetensors.index.fp16.json"), format!("{fp16}.safetensors.index.json")];
        let half = has(&format!("{fp16}.safetensors")) || indexes.iter().any(|i| has(i));
        move |name: &str| {
            let of_half = indexes.iter().any(|i| i == name) || name.starts_with(&fp16);
            let is_weights = name.ends_with(".safetensors") || name.ends_with(".json");
            name.starts_with(&full) && is_weights && of_half == half
        }
    };
    let mut chosen: Vec<Box<dyn Fn(&str) -> bool>> = vec![
        Box::new(|name| name == "model_index.json" || name == "scheduler/scheduler_config.json"),
        Box::new(weights("transformer", "diffusion_pytorch_model")),
        Box::new(weights("vae", "diffusion_pytorch_model")),
        Box::new(weights("text_encoder", "model")),
        Box::new(weights("text_encoder_2", "model")),
    ];
    let mut folders = vec!["transformer", "vae", "text_encoder", "text_encoder_2"];
    let mut tokenizers = vec!["tokenizer/", "tokenizer_2/"];
    if t5 != T5::Off {
        chosen.push(Box::new(weights("text_encoder_3", "model")));
        folders.push("text_encoder_3");
        tokenizers.push("tokenizer_3/");
    }
    chosen.push(Box::new(move |name| folders.iter().any(|f| name.strip_prefix(f) == Some("/config.json"))));
    chosen.push(Box::new(move |name| tokenizers.iter().any(|t| name.starts_with(t))));
    let inside = |name: &str| Path::new(name).components().all(|c| matches!(c, PathPart::Normal(_)));
    let mut files: Vec<Sibling> =
        siblings.iter().filter(|s| inside(&s.name) && chosen.iter().any(|c| c(&s.name))).cloned().collect();
    // What is small comes first, so that a mistake shows before hours of transfer.
    files.sort_by_key(|s| (s.size.unwrap_or(u64::MAX), s.name.clone()));
    Ok(files)
}

fn create_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(Error::io("create", parent))
}

fn size(bytes: Option<u64>) -> String {
    match bytes {
        Some(b) if b >= 1 << 20 => format!("{} MiB", b >> 20),
        Some(b) => format!("{} KiB", b.div_ceil(1 << 10)),
        None => "size unknown".into(),
    }
}

#[cfg(test)]
mod tests;
