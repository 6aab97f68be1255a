//! SentencePiece by scores: neighbours merge into the token with the highest score until none is left; what is no
//! token then becomes bytes. Source: `llm_tokenizer_spm_session` in llama.cpp's `llama-vocab.cpp`.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// Marks a space inside tokens.
pub(super) const SPACE: char = '\u{2581}';

/// A piece of the text between merges.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    /// Equal to `start` once the symbol was merged into its left neighbour.
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that are a token together.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len_bytes: usize,
}

impl Ord for Pair {
    /// The highest score first, of equals the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

/// Splits `text`, whose spaces are [`SPACE`] already, and appends the tokens to `out`.
pub(super) fn split(
    text: &str,
    ids: &HashMap<String, u32>,
    scores: &[f32],
    byte_tokens: &[u32; 256],
    out: &mut Vec<u32>,
) {
    let mut symbols: Vec<Symbol> = text
        .char_indices()
        .enumerate()
        .map(|(i, (start, c))| Symbol {
            start,
            end: start + c.len_utf8(),
            previous: i.checked_sub(1),
            next: (start + c.len_utf8() < text.len()).then_some(i + 1),
        })
        .collect();
    let pair = |symbols: &[Symbol], left: Option<usize>, right: Option<usize>| {
        let (left, right) = (left?, right?);
        let merged = &text[symbols[left].start..symbols[right].end];
        let score = scores[*ids.get(merged)? as usize];
        Some(Pair { score, left, right, len_bytes: merged.len() })
    };
    let mut queue: BinaryHeap<Pair> = (1..symbols.len()).filter_map(|i| pair(&symbols, Some(i - 1), Some(i))).collect();
    while let Some(p) = queue.pop() {
        let (left, right) = (symbols[p.left], symbols[p.right]);
        let gone = left.start == left.end || right.start == right.end;
        // Either grew since the pair was found.
        if gone || left.end - left.start + right.end - right.start != p.len_bytes {
            continue;
        }
        symbols[p.left].end = right.end;
        symbols[p.left].next = right.next;
        symbols[p.right].end = right.start;
        if let Some(next) = right.next {
            symbols[next].previous = Some(p.left);
        }
        queue.extend(pair(&symbols, left.previous, Some(p.left)));
        queue.extend(pair(&symbols, Some(p.left), right.next));
    }
    for symbol in symbols.iter().filter(|s| s.start < s.end) {
        let piece = &text[symbol.start..symbol.end];
        match ids.get(piece) {
            Some(&id) => out.push(id),
            None => out.extend(piece.bytes().map(|b| byte_tokens[usize::from(b)])),
        }
    }
}
