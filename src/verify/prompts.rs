//! What both sides are asked when there is no probe.

use crate::error::{Code, Error, Result};

/// Token rows to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompts {
    /// `rows` rows of `length` tokens, uniform over the vocabulary, from SplitMix64 with this seed.
    Seeded {
        /// Seed.
        seed: u64,
        /// Rows.
        rows: usize,
        /// Tokens in a row.
        length: usize,
    },
    /// These rows, of equal length.
    Tokens(Vec<Vec<u32>>),
}

impl Prompts {
    /// What is asked where nobody says.
    pub const DEFAULT: Prompts = Prompts::Seeded { seed: 0, rows: 2, length: 32 };

    /// The token ids `[B][T]`.
    ///
    /// # Errors
    ///
    /// [`Code::Usage`] for no tokens, rows of different length or an id beyond the
    /// vocabulary.
    pub fn ids(&self, vocab_size: usize) -> Result<Vec<Vec<u32>>> {
        let rows = match self {
            Prompts::Seeded { seed, rows, length } => {
                let mut state = *seed;
                (0..*rows)
                    .map(|_| {
                        (0..*length).map(|_| (split_mix_64(&mut state) % vocab_size.max(1) as u64) as u32).collect()
                    })
                    .collect()
            }
            Prompts::Tokens(rows) => rows.clone(),
        };
        let wrong = |message: String| Error::new(Code::Usage, message).field("--tokens");
        let length = rows.first().map_or(0, Vec::len);
        if length == 0 {
            return Err(wrong("expected at least one token, found none".into()));
        }
        if let Some(row) = rows.iter().find(|r| r.len() != length) {
            return Err(wrong(format!("expected rows of {length} tokens, found one of {}", row.len())));
        }
        if let Some(id) = rows.iter().flatten().find(|id| **id as usize >= vocab_size) {
            return Err(wrong(format!("expected ids below the vocabulary of {vocab_size}, found {id}")));
        }
        Ok(rows)
    }
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
fn split_mix_64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_mix_gives_the_published_sequence() {
        let mut state = 1234567;
        let got: Vec<u64> = (0..3).map(|_| split_mix_64(&mut state)).collect();
        assert_eq!(got, [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn bad_rows_are_refused() {
        for rows in [vec![], vec![vec![]], vec![vec![1, 2], vec![1]], vec![vec![9]]] {
            assert_eq!(Prompts::Tokens(rows).ids(9).unwrap_err().code(), Code::Usage);
        }
    }
}
