//! Tokens that end an answer: those that files state, and those that llama.cpp knows without being told.

use super::SpecialTokens;

/// Tokens that end an answer, whatever their file says of them. Source: `special_eog_ids` in llama.cpp's
/// `llama-vocab.cpp`; models name only one such token in their keys.
pub(super) const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// Gives each of `stated`, in its order, the place that it has in GGUF: the first is the end of a sequence unless `special`
/// has one, the next two that llama.cpp does not know by their text end a turn and a message. The others are returned;
/// GGUF has no place for them.
pub(super) fn placed(tokens: &[String], stated: &[u32], special: &mut SpecialTokens) -> Vec<u32> {
    let mut more = Vec::new();
    for &id in stated {
        let known = [special.eos, special.end_of_turn, special.end_of_message].contains(&Some(id));
        let by_text = tokens.get(id as usize).is_some_and(|t| END_TEXTS.contains(&t.as_str()));
        match special {
            _ if known => {}
            SpecialTokens { eos: eos @ None, .. } => *eos = Some(id),
            _ if by_text => {}
            SpecialTokens { end_of_turn: end @ None, .. } | SpecialTokens { end_of_message: end @ None, .. } => {
                *end = Some(id);
            }
            _ if more.contains(&id) => {}
            _ => more.push(id),
        }
    }
    more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_a_place_or_is_told() {
        let tokens: Vec<String> = ["a", "b", "<|im_end|>", "c", "d", "e"].map(str::to_owned).into();
        let placed = |stated: &[u32], eos: Option<u32>| {
            let mut s = SpecialTokens { eos, ..SpecialTokens::default() };
            let more = placed(&tokens, stated, &mut s);
            (s.eos, s.end_of_turn, s.end_of_message, more)
        };
        assert_eq!(placed(&[], None), (None, None, None, vec![]));
        assert_eq!(placed(&[3], None), (Some(3), None, None, vec![]));
        assert_eq!(placed(&[2, 3], None), (Some(2), Some(3), None, vec![]));
        assert_eq!(placed(&[0, 2, 1, 0, 1], Some(5)), (Some(5), Some(0), Some(1), vec![]));
        assert_eq!(placed(&[0, 1, 3, 4, 4, 3], Some(2)), (Some(2), Some(0), Some(1), vec![3, 4]));
    }
}
