//! Which layers are meant on the command line or in a manifest.

use crate::registry::near;
use crate::{Error, LayerId, Result};

/// Selects every layer.
const ALL: &str = "all";
/// Layers named in an error.
const SHOWN: usize = 6;

/// The layers that are meant: each word is a layer, the beginning of several (`mm0`, `mm0.img`), or `all`; the
/// Python ancestor's names (`mm_00_img`) are understood.
///
/// # Errors
/// [`Error::Settings`] with the word, near names and examples.
pub fn choose_layers(known: &[LayerId], words: &[String]) -> Result<Vec<LayerId>> {
    let mut chosen = vec![false; known.len()];
    for word in words {
        let wanted = plain(word);
        let meant = |id: &LayerId| {
            let id = id.array_prefix();
            word == ALL
                || id.strip_prefix(&wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        };
        let mut any = false;
        for (chosen, id) in chosen.iter_mut().zip(known) {
            let meant = meant(id);
            (*chosen, any) = (*chosen || meant, any || meant);
        }
        if !any {
            return Err(unknown(known, word));
        }
    }
    Ok(known.iter().zip(chosen).filter(|(_, chosen)| *chosen).map(|(id, _)| id.clone()).collect())
}

/// `mm_00_img` as `mm0_img`, `mm0.img` as `mm0_img`.
fn plain(word: &str) -> String {
    let mut text = String::new();
    for part in word.split(['_', '.']) {
        match part.parse::<u64>() {
            Ok(number) if !text.is_empty() => text.push_str(&number.to_string()),
            _ => {
                if !text.is_empty() {
                    text.push('_');
                }
                text.push_str(part);
            }
        }
    }
    text
}

fn unknown(known: &[LayerId], word: &str) -> Error {
    let names: Vec<String> = known.iter().map(|id| id.as_str().to_owned()).collect();
    let meant =
        near(word, &names).first().map_or_else(|| ".".into(), |name| format!("; did you mean `{name}`?"));
    let mut shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        shown.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    let reason = format!(
        "there is no layer `{word}`{meant} Name layers, or beginnings such as mm0 or mm0.img, or `all`; there \
         are {shown}"
    );
    Error::settings("--layers", reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&str]) -> Vec<LayerId> {
        names.iter().map(|n| LayerId::from(*n)).collect()
    }

    #[test]
    fn layers_are_meant_by_id_by_beginning_and_by_old_names() {
        let known = ids(&["mm0.img.attn.q_proj", "mm0.txt.mlp.fc2", "mm1.img.mlp.fc2", "mm11.img.mlp.fc2"]);
        let chosen = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            choose_layers(&known, &words)
                .map(|c| c.iter().map(|id| id.as_str().to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(chosen(&["mm0"]).unwrap(), ["mm0.img.attn.q_proj", "mm0.txt.mlp.fc2"]);
        assert_eq!(chosen(&["mm1.img", "mm1.img.mlp.fc2"]).unwrap(), ["mm1.img.mlp.fc2"]);
        assert_eq!(chosen(&["mm_00_img"]).unwrap(), ["mm0.img.attn.q_proj"]);
        assert_eq!(chosen(&["mm_11_img"]).unwrap(), ["mm11.img.mlp.fc2"]);
        assert_eq!(chosen(&["mm0_txt_mlp_fc2"]).unwrap(), ["mm0.txt.mlp.fc2"]);
        assert_eq!(chosen(&["all"]).unwrap().len(), 4);
        let message = chosen(&["mm0", "mm0.txt.mlp.fc3"]).unwrap_err().to_string();
        for part in ["`mm0.txt.mlp.fc3`", "did you mean `mm0.txt.mlp.fc2`?", "mm0.img.attn.q_proj"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(chosen(&["mm"]).is_err() && chosen(&["mm0.im"]).is_err());
    }
}
