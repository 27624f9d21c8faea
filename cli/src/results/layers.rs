//! Layers by name: their order in figures, and groups of them.

use taq_core::LayerId;

/// Sorts ids as people would: numbers by value, projections in the order of the forward pass.
pub(crate) fn sort(ids: &mut [LayerId]) {
    ids.sort_by_cached_key(order);
}

fn order(id: &LayerId) -> Vec<(String, u64)> {
    const FORWARD: [&str; 6] = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"];
    let part = |part: &str| match FORWARD.iter().position(|name| *name == part) {
        Some(place) => (String::new(), place as u64),
        None => {
            let name = part.trim_end_matches(|c: char| c.is_ascii_digit());
            (name.to_owned(), part[name.len()..].parse().unwrap_or(0))
        }
    };
    id.as_str().split('.').map(part).collect()
}

/// What a layer belongs to, where its id says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Image,
    Text,
}

/// The stream of a layer.
pub(crate) fn stream(id: &LayerId) -> Option<Stream> {
    id.as_str().split('.').find_map(|part| match part {
        "img" | "image" => Some(Stream::Image),
        "txt" | "text" => Some(Stream::Text),
        _ => None,
    })
}

/// A layer's id in the name of a file.
pub(crate) fn file_part(id: &str) -> String {
    id.replace(['.', '/', '\\'], "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&str]) -> Vec<LayerId> {
        names.iter().map(|n| LayerId::from(*n)).collect()
    }

    #[test]
    fn blocks_are_in_the_order_of_their_numbers() {
        let mut found = ids(&[
            "mm10.img.attn.q_proj",
            "mm2.img.mlp.fc1",
            "mm2.img.attn.o_proj",
            "mm2.txt.attn.q_proj",
            "mm2.img.attn.v_proj",
            "mm2.img.attn.q_proj",
        ]);
        sort(&mut found);
        let expected = ids(&[
            "mm2.img.attn.q_proj",
            "mm2.img.attn.v_proj",
            "mm2.img.attn.o_proj",
            "mm2.img.mlp.fc1",
            "mm2.txt.attn.q_proj",
            "mm10.img.attn.q_proj",
        ]);
        assert_eq!(found, expected);
    }

    #[test]
    fn streams_are_read_from_ids() {
        assert_eq!(stream(&"mm0.img.attn.q_proj".into()), Some(Stream::Image));
        assert_eq!(stream(&"mm0.txt.mlp.fc1".into()), Some(Stream::Text));
        assert_eq!(stream(&"uni3.mlp.fc1".into()), None);
    }
}
