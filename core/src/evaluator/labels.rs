//! What the classes are called, and which prompts name them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `labels.json`: the classes of an evaluator, and the captions that name each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Labels {
    /// Names of the classes, in the order of the logits.
    classes: Vec<String>,
    /// Captions by class. A caption may name several classes: a “whale” is right in either shape.
    captions: BTreeMap<String, Vec<String>>,
}

impl Labels {
    /// Classes with their captions, in the order of the logits.
    pub fn new(classes: impl IntoIterator<Item = (String, Vec<String>)>) -> Self {
        let captions: Vec<_> = classes.into_iter().collect();
        Self {
            classes: captions.iter().map(|(class, _)| class.clone()).collect(),
            captions: captions.into_iter().collect(),
        }
    }

    /// Names of the classes, in the order of the logits.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The classes that a prompt names, as places among [`Self::classes`], rising; empty if it is nobody's caption.
    /// Case and space around it do not count.
    pub fn classes_of(&self, prompt: &str) -> Vec<usize> {
        let prompt = prompt.trim().to_lowercase();
        let names = |class: &String| {
            self.captions.get(class).is_some_and(|all| all.iter().any(|c| c.trim().to_lowercase() == prompt))
        };
        (0..self.classes.len()).filter(|&at| names(&self.classes[at])).collect()
    }

    /// Why the document makes no sense.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.classes.is_empty() {
            return Err("there are no classes".into());
        }
        let mut sorted: Vec<&String> = self.classes.iter().collect();
        sorted.sort();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("the class `{}` appears twice", pair[0]));
        }
        match self.captions.keys().find(|class| sorted.binary_search(class).is_err()) {
            Some(stranger) => Err(format!("`{stranger}` has captions, but is no class")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_prompt_names_every_class_with_such_a_caption() {
        let labels = labels(
            r#"{"classes": ["whale", "spouting whale", "pig"],
                "captions": {"whale": ["Whale", "sea giant"], "spouting whale": ["whale"]}}"#,
        );
        labels.check().unwrap();
        assert_eq!(labels.classes_of(" whale\n"), [0, 1]);
        assert_eq!(labels.classes_of("SEA giant"), [0]);
        assert!(labels.classes_of("pig").is_empty(), "a class without captions");
        assert!(labels.classes_of("").is_empty());
        let all = [("a".to_owned(), vec!["x".to_owned()]), ("b".to_owned(), vec![])];
        assert_eq!(Labels::new(all).classes_of("x"), [0]);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, reason) in [
            (r#"{"classes": [], "captions": {}}"#, "there are no classes"),
            (r#"{"classes": ["b", "a", "b"], "captions": {}}"#, "the class `b` appears twice"),
            (r#"{"classes": ["a"], "captions": {"c": []}}"#, "`c` has captions, but is no class"),
        ] {
            assert_eq!(labels(text).check().unwrap_err(), reason);
        }
    }
}
