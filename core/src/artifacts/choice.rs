//! `session.json`: which model, sampler and seed a run folder belongs to, so that later stages need not be told.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Document, RunFolder, read_document, write_json};
use crate::Result;
use crate::manifest::PluginChoice;

/// `session.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionChoice {
    /// Always [`SessionChoice::FORMAT`].
    pub format: String,
    /// The model and its settings.
    pub model: PluginChoice,
    /// The sampler and its settings.
    pub sampler: PluginChoice,
    /// Seed of everything random.
    pub seed: u64,
}

impl Document for SessionChoice {
    const FORMAT: &'static str = "taq.session.v1";
    const KIND: &'static str = "session choice";
}

impl SessionChoice {
    /// A choice.
    pub fn new(model: PluginChoice, sampler: PluginChoice, seed: u64) -> Self {
        Self { format: Self::FORMAT.to_owned(), model, sampler, seed }
    }
}

impl RunFolder {
    /// What the run was made with.
    pub fn session(&self) -> PathBuf {
        self.root().join("session.json")
    }

    /// What the run was made with; `None` if that was never noted.
    ///
    /// # Errors
    /// [`crate::Error::Malformed`] if it cannot be understood, [`crate::Error::Io`] if it cannot be read.
    pub fn session_choice(&self) -> Result<Option<SessionChoice>> {
        if self.session().exists() { read_document(&self.session()).map(Some) } else { Ok(None) }
    }

    /// Notes what the run is made with.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if it cannot be written.
    pub fn keep_session_choice(&self, choice: &SessionChoice) -> Result<()> {
        write_json(&self.session(), choice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_kept_with_its_settings() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::create(dir.path()).unwrap();
        assert_eq!(run.session_choice().unwrap(), None);
        let mut model = PluginChoice::named("toy");
        model.settings.insert("source".into(), "./weights".into());
        let choice = SessionChoice::new(model, PluginChoice::named("euler"), u64::MAX);
        run.keep_session_choice(&choice).unwrap();
        assert_eq!(run.session_choice().unwrap(), Some(choice));
        std::fs::write(run.session(), "{\"format\": \"other\"}").unwrap();
        assert!(run.session_choice().unwrap_err().to_string().contains("taq.session.v1"));
    }
}
