//! A [`Vocabulary`] as GGUF keys, as llama.cpp's converter writes them.

use super::{Algorithm, Vocabulary};
use crate::format::gguf::{Array, Metadata, Value};

/// Key of the tokenizer's kind.
pub const MODEL: &str = "tokenizer.ggml.model";

/// Key of llama.cpp's name for the pattern that splits text.
pub const PRE: &str = "tokenizer.ggml.pre";

/// The kind of a file without a vocabulary; llama.cpp then runs on token ids alone.
pub const NO_MODEL: &str = "none";

/// Adds the keys.
pub fn put(v: &Vocabulary, m: &mut Metadata) {
    let (model, pre) = match &v.algorithm {
        Algorithm::Bpe { pre, .. } => ("gpt2", pre.as_str()),
        Algorithm::SentencePiece { .. } => ("llama", "default"),
    };
    m.insert(MODEL, model);
    m.insert(PRE, pre);
    m.insert("tokenizer.ggml.tokens", Array::from_strs(&v.tokens));
    if let Algorithm::SentencePiece { scores, .. } = &v.algorithm {
        m.insert("tokenizer.ggml.scores", Array::from_f32(scores));
    }
    let kinds: Vec<i32> = v.kinds.iter().map(|k| *k as i32).collect();
    m.insert("tokenizer.ggml.token_type", Array::from_i32(&kinds));
    match &v.algorithm {
        Algorithm::Bpe { merges, .. } => m.insert("tokenizer.ggml.merges", Array::from_strs(merges)),
        Algorithm::SentencePiece { add_space_prefix, .. } => {
            m.insert("tokenizer.ggml.add_space_prefix", *add_space_prefix);
        }
    }
    for (name, id) in [
        ("bos", v.special.bos),
        ("eos", v.special.eos),
        ("unknown", v.special.unknown),
        ("padding", v.special.padding),
        ("eot", v.special.end_of_turn),
        ("eom", v.special.end_of_message),
    ] {
        if let Some(id) = id {
            m.insert(format!("tokenizer.ggml.{name}_token_id"), Value::U32(id));
        }
    }
    for (name, stated) in [("bos", v.add_bos), ("eos", v.add_eos)] {
        if let Some(stated) = stated {
            m.insert(format!("tokenizer.ggml.add_{name}_token"), stated);
        }
    }
    if let Some(template) = &v.chat_template {
        m.insert("tokenizer.chat_template", template.as_str());
    }
}
