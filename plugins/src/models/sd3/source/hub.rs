//! Fetching a model from the Hugging Face Hub, through `hf-hub`.
//!
//! hf-hub keeps the cache (shared with Python's huggingface_hub), locks files in work and goes on with what was
//! broken off. Here stands the rest: which files, what the environment says, what to do when something fails.

mod wanted;

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;
use taq_core::{Error, Result};
use tracing::{info, warn};

use self::wanted::{Sibling, wanted};
use super::{T5, discover};

/// Times a transfer is taken up again after it broke off.
const RETRIES: u32 = 4;

/// Times to ask whether another process is done with a file: an hour or so.
const LOCK_RETRIES: u32 = 150;

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

    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.clone(), RepoType::Model, revision.to_owned())
    }
}

/// The Hub and the local cache of it.
pub(super) struct Hub {
    endpoint: String,
    cache: Cache,
    token: Option<String>,
    /// Use the cache and nothing else.
    offline: bool,
    /// How long the Hub may take to say what a repository holds.
    patience: Duration,
}

/// What the Hub says about a revision.
#[derive(Deserialize)]
struct Listing {
    /// The commit.
    sha: String,
    siblings: Vec<Sibling>,
}

impl Hub {
    /// As the environment says, in the variables that Python's huggingface_hub reads.
    pub(super) fn from_env() -> Self {
        Self::from_vars(|name| env::var(name).ok())
    }

    fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let var = |name: &str| var(name).filter(|v| !v.is_empty());
        let hf_home = var("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| var("XDG_CACHE_HOME").map(|c| Path::new(&c).join("huggingface")))
            .unwrap_or_else(|| env::home_dir().unwrap_or_default().join(".cache/huggingface"));
        let cache = var("HF_HUB_CACHE").or_else(|| var("HUGGINGFACE_HUB_CACHE"));
        let token_file = var("HF_TOKEN_PATH").map_or_else(|| hf_home.join("token"), PathBuf::from);
        let token = var("HF_TOKEN")
            .or_else(|| var("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| fs::read_to_string(token_file).ok())
            .map(|t| t.trim().to_owned())
            .filter(|t| !t.is_empty());
        let truthy = |v: String| matches!(v.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true");
        Self {
            endpoint: var("HF_ENDPOINT")
                .map_or_else(|| "https://huggingface.co".into(), |e| e.trim_end_matches('/').to_owned()),
            cache: Cache::new(cache.map_or_else(|| hf_home.join("hub"), PathBuf::from)),
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
        let failed = |reason| Error::Download { what: repo.id.clone(), reason };
        let cache = self.cache.path().display();
        let earlier = self.earlier(repo);
        if self.offline {
            let reason = || format!("HF_HUB_OFFLINE is set, and `{cache}` holds no usable copy of it");
            return earlier.ok_or_else(|| failed(reason()));
        }
        let api = ApiBuilder::from_cache(self.cache.clone())
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_user_agent("taq", env!("CARGO_PKG_VERSION"))
            .with_progress(false)
            .build()
            .map_err(|e| failed(e.to_string()))?;
        let listing = match (self.listing(&api, repo), earlier) {
            (Ok(listing), _) => listing,
            (Err(reason), Some(folder)) => {
                warn!("{}: {reason}; using the copy in {}", repo.id, folder.display());
                return Ok(folder);
            }
            (Err(reason), None) => {
                return Err(failed(format!(
                    "{reason}; there is no file or folder of this name either, and no copy in `{cache}`"
                )));
            }
        };
        for file in wanted(&listing.siblings, t5).map_err(failed)? {
            self.fetch(&api, repo, &listing.sha, &file)?;
        }
        self.cache
            .repo(repo.at(&repo.revision))
            .create_ref(&listing.sha)
            .map_err(Error::io("write", self.cache.path()))?;
        Ok(self.cache.repo(repo.at(&listing.sha)).pointer_path(&listing.sha))
    }

    /// The folder of the revision as last seen, if a model is in it.
    fn earlier(&self, repo: &RepoId) -> Option<PathBuf> {
        let cached = self.cache.repo(repo.at(&repo.revision));
        let folder = match cached.get("transformer") {
            Some(transformer) => transformer.parent()?.to_owned(),
            None => cached.pointer_path(&repo.revision),
        };
        discover::folder(&folder).is_ok().then_some(folder)
    }

    fn listing(&self, api: &Api, repo: &RepoId) -> Result<Listing, String> {
        let request = api.repo(repo.at(&repo.revision)).info_request().query("blobs", "true");
        let answer = request.config().timeout_global(Some(self.patience)).build().call();
        let mut answer = answer.map_err(|e| self.explain(&Box::new(e).into(), repo).0)?;
        let listing: Listing = answer
            .body_mut()
            .read_json()
            .map_err(|e| format!("{} gave no list of its files ({e})", self.endpoint))?;
        match listing.sha.bytes().all(|b| b.is_ascii_hexdigit()) {
            true => Ok(listing),
            false => Err(format!("`{}` is not a commit", listing.sha.escape_debug())),
        }
    }

    /// Fetches one file into the cache, if it is not there. By commit, so that all files are of one state of the
    /// repository, whatever happens to the branch meanwhile.
    fn fetch(&self, api: &Api, repo: &RepoId, commit: &str, file: &Sibling) -> Result<()> {
        let name = &file.name;
        let remote = api.repo(repo.at(commit));
        let cached = self.cache.repo(repo.at(commit));
        let to = cached.pointer_path(commit).join(name);
        let mut attempt = 0;
        while !to.exists() {
            if attempt == 0 {
                info!(bytes = file.size, "fetching {name} of {}", repo.id);
            }
            let (reason, retries) = match remote.download(name) {
                // hf-hub itself does not compare the length.
                Ok(_) if file.size.is_none_or(|size| fs::metadata(&to).is_ok_and(|m| m.len() == size)) => {
                    break;
                }
                Ok(_) => {
                    let _ = fs::remove_file(&to);
                    ("its length is not what the Hub says".to_owned(), RETRIES)
                }
                Err(e) => {
                    if is_of_no_use(&e)
                        && let Ok(metadata) = api.metadata(&remote.url(name))
                    {
                        let _ = fs::remove_file(cached.blob_path(metadata.etag()).with_extension("part"));
                    }
                    self.explain(&e, repo)
                }
            };
            if attempt >= retries {
                return Err(Error::Download { what: format!("{name} of {}", repo.id), reason });
            }
            // Not hf-hub's own retries: they append the file from its start if no byte came before the failure.
            warn!("{name}: {reason}; trying again");
            sleep(self.patience.min(Duration::from_secs(1 << attempt.min(10))));
            attempt += 1;
        }
        Ok(())
    }

    /// What an error means and what to do, and how often to try again.
    fn explain(&self, error: &ApiError, repo: &RepoId) -> (String, u32) {
        use ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        let page = format!("{}/{}", self.endpoint, repo.id);
        let error = match error {
            ApiError::RequestError(error) => &**error,
            ApiError::LockAcquisition(lock) => {
                return (format!("another process is at it (it holds `{}`)", lock.display()), LOCK_RETRIES);
            }
            ApiError::IoError(e)
                if matches!(
                    e.kind(),
                    PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull
                ) =>
            {
                return (format!("`{}` cannot be written ({e})", self.cache.path().display()), 0);
            }
            other => return (format!("broken off ({other}); the same command goes on from here"), RETRIES),
        };
        match (error, &self.token) {
            (ureq::Error::StatusCode(status @ (401 | 403)), Some(_)) => (
                format!(
                    "the Hub refuses this token ({status}): accept the licence at {page} if it asks for one, and \
                     check that the token may read the repository"
                ),
                0,
            ),
            (ureq::Error::StatusCode(status @ (401 | 403)), None) => (
                format!(
                    "the Hub wants a token ({status}): the repository does not exist, is private, or is gated; for \
                     a gated one accept its licence at {page} and set HF_TOKEN"
                ),
                0,
            ),
            (ureq::Error::StatusCode(404), _) => {
                (format!("the Hub has no such repository, revision or file (`{}`)", repo.revision), 0)
            }
            (ureq::Error::StatusCode(status), _) => {
                (format!("the Hub answered with status {status}"), RETRIES)
            }
            _ => (format!("{} cannot be reached ({error})", self.endpoint), RETRIES),
        }
    }
}

/// Whether an earlier transfer left something that cannot be gone on with: all bytes already, or too many.
fn is_of_no_use(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(e) => matches!(**e, ureq::Error::StatusCode(416)),
        other => matches!(other, ApiError::InvalidResume),
    }
}

#[cfg(test)]
mod tests;
