//! Right files damaged: at every place by a byte, cut at every place, and at random. Whatever becomes of them, no reader
//! panics, and what it accepts hangs together (`fuzz/entry.rs` says what that means for each format).

use crate::seeds;

#[path = "../../fuzz/entry.rs"]
pub mod entry;
use crate::pickle::assembler;

/// What may become of a byte: in a small file anything, in a larger one (the time grows with the square) each of its bits
/// turned, all of them, and two values that begin and end things in most formats.
fn changes(byte: u8, file_len: usize) -> impl Iterator<Item = u8> {
    let all = file_len < 120;
    (0..=255).filter(move |&new| {
        let one_bit = (new ^ byte).count_ones() == 1;
        new != byte && (all || one_bit || new == !byte || new == b'{' || new == b'.')
    })
}

#[test]
fn sampled_truncations_and_changed_bytes_of_ten_seeds_are_survived() {
    damage_at_every(17);
}

#[test]
#[ignore = "a minute"]
fn every_truncation_and_every_changed_byte_of_ten_seeds_is_survived() {
    damage_at_every(1);
}

/// Cuts and changes ten seeds of each format at every `step`th byte.
fn damage_at_every(step: usize) {
    for (target, read) in entry::TARGETS {
        let seeds = seeds::of(target);
        assert!(seeds.len() >= 10, "{target} has {} seeds", seeds.len());
        let (mut n_accepted, mut n_refused) = (0, 0);
        for (i, seed) in seeds.into_iter().enumerate() {
            assert!(read(&seed), "{target}: seed {i} is right");
            for len in (0..seed.len()).step_by(step) {
                read(&seed[..len]);
            }
            let mut file = seed.clone();
            for at in (0..seed.len()).step_by(step) {
                for new in changes(seed[at], seed.len()) {
                    file[at] = new;
                    *(if read(&file) { &mut n_accepted } else { &mut n_refused }) += 1;
                }
                file[at] = seed[at];
            }
        }
        assert!(n_accepted > 100 && n_refused > 100, "{target}: {n_accepted} accepted, {n_refused} refused");
    }
}

/// Writes the seeds as files, for coverage-guided fuzzing to start from: `PTPLUS_CORPUS=fuzz/corpus`.
#[test]
#[ignore = "writes files"]
fn seeds_are_written() {
    let root = std::env::var_os("PTPLUS_CORPUS").expect("PTPLUS_CORPUS names a folder");
    for (target, _) in entry::TARGETS {
        let folder = std::path::Path::new(&root).join(target);
        std::fs::create_dir_all(&folder).expect("a folder");
        for (i, seed) in seeds::of(target).into_iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{i:02}")), seed).expect("a file");
        }
    }
}

/// `PTPLUS_FUZZ_FILES` for each target (some thousand by default); `PTPLUS_FUZZ_SEED` for other files. Prints its figures.
#[test]
fn random_damage_is_survived() {
    let variable = |name: &str| std::env::var(name).ok().map(|v| v.parse::<u64>().expect("a number"));
    let n_files = variable("PTPLUS_FUZZ_FILES").unwrap_or(2_000);
    for (target, read) in entry::TARGETS {
        let mut mutator = Mutator::new(variable("PTPLUS_FUZZ_SEED").unwrap_or(1));
        let mut corpus = seeds::of(target);
        let mut n_accepted = 0_u64;
        for _ in 0..n_files {
            let file = mutator.damaged(&corpus);
            if read(&file) {
                n_accepted += 1;
                // What was accepted is a new start, so that damage adds up.
                if file.len() < 4096 && n_accepted.is_multiple_of(16) && corpus.len() < 512 {
                    corpus.push(file);
                }
            }
        }
        println!("{target}: {n_files} files, {n_accepted} accepted");
        assert!(n_accepted > 0, "{target}");
    }
}

/// Damages files; the same seed gives the same files.
pub struct Mutator(u64);

/// Values that lengths, counts and offsets are compared with.
const EDGES: [u64; 12] = [0, 1, 2, 31, 32, 33, 255, 1 << 16, u32::MAX as u64, i64::MAX as u64, 1 << 63, u64::MAX];

impl Mutator {
    pub fn new(seed: u64) -> Self {
        Mutator(seed)
    }

    /// splitmix64
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// A file of `corpus` with one to four faults.
    pub fn damaged(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let pick = self.below(corpus.len());
        let mut file = corpus[pick].clone();
        for _ in 0..=self.below(4) {
            self.damage(&mut file, corpus);
        }
        file
    }

    fn damage(&mut self, file: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(file.len());
        let end = (at + 1 + self.below(16)).min(file.len());
        match self.below(8) {
            0 | 1 if !file.is_empty() => file[at] ^= 1 << self.below(8),
            2 if !file.is_empty() => file[at] = self.next() as u8,
            3 => {
                let edge = EDGES[self.below(EDGES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][self.below(4)];
                let end = (at + width).min(file.len());
                file[at..end].copy_from_slice(&edge[..end - at]);
            }
            4 => drop(file.drain(at..end)),
            5 => {
                let again = file[at..end].to_vec();
                file.splice(at..at, again);
            }
            6 => file.truncate(at),
            _ => {
                let other = &corpus[self.below(corpus.len())];
                let from = self.below(other.len());
                let part = &other[from..(from + 1 + self.below(32)).min(other.len())];
                file.splice(at..end, part.iter().copied());
            }
        }
    }
}
