//! Every truncation and every changed byte of small files that PyTorch wrote.

use std::path::Path;

use ptplus::error::ErrorKind;

use crate::pickle::assembler::*;

fn file(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pickle").join(name)).unwrap()
}

const ZIPS: [&str; 4] = [
    "torch-2.4.1/zip-protocol-2.pt",
    "torch-2.15.0/zip-protocol-5.pt",
    "torch-2.4.1/views.pt",
    "torch-2.15.0/training.pt",
];
const LEGACY: [&str; 3] =
    ["torch-2.4.1/legacy-protocol-2.pt", "torch-2.15.0/legacy-protocol-5.pt", "torch-2.4.1/views-legacy.pt"];

/// What may become of a byte: in a small file each of its bits turned, and two values that mean much in a pickle; in
/// a larger one (the test's time grows with the square) all bits turned, and the highest and lowest alone.
fn changes(byte: u8, file_len: usize) -> impl Iterator<Item = u8> {
    let small: &[u8] = &[1, 2, 4, 8, 16, 32, 64, 128, byte ^ b'.', byte ^ b'R'];
    let masks = if file_len < 2000 { small.to_vec() } else { vec![1, 128, 255] };
    masks.into_iter().filter(|&mask| mask != 0).map(move |mask| byte ^ mask)
}

#[test]
fn every_truncation_is_refused() {
    for name in ZIPS.into_iter().chain(LEGACY) {
        let whole = file(name);
        assert!(read(whole.clone()).is_ok());
        for len in 0..whole.len() {
            let e = read(whole[..len].to_vec()).err().unwrap_or_else(|| panic!("{name}: accepted with {len} bytes"));
            assert_eq!(e.kind(), ErrorKind::Corrupt, "{name} with {len} bytes: {e}");
        }
    }
}

#[test]
fn a_changed_byte_of_an_archive_is_refused_or_changes_no_tensor() {
    for name in ZIPS {
        let whole = file(name);
        let right = contents(&read(whole.clone()).unwrap());
        let mut n_accepted = 0;
        for at in 0..whole.len() {
            for byte in changes(whole[at], whole.len()) {
                let mut changed = whole.clone();
                changed[at] = byte;
                match read(changed) {
                    Ok(checkpoint) => {
                        n_accepted += 1;
                        assert!(contents(&checkpoint) == right, "{name}: byte {at} as {byte} changes the tensors");
                    }
                    Err(e) => assert_eq!(e.kind(), ErrorKind::Corrupt, "{name}, byte {at}: {e}"),
                }
            }
        }
        assert!(n_accepted > 0, "{name}: padding and time stamps are nobody's business");
    }
}

/// A legacy file has no checksum. Inside a storage only the tensors that lie there change; anywhere else the file is
/// refused, or what it now says is consistent: every tensor inside its storage.
#[test]
fn a_changed_byte_of_a_legacy_file_never_breaks_its_structure() {
    for name in LEGACY {
        let whole = file(name);
        let right = read(whole.clone()).unwrap();
        let structure = |c: &ptplus::format::pickle::Checkpoint| {
            contents(c).into_iter().map(|(name, dtype, shape, _)| (name, dtype, shape)).collect::<Vec<_>>()
        };
        let in_storage = |at: usize| {
            right.tensors().any(|(_, t)| {
                let first = t.file_offset() as usize - t.storage_offset * t.dtype().block_bytes();
                (first..first + t.storage_bytes().len()).contains(&at)
            })
        };
        for at in 0..whole.len() {
            for byte in changes(whole[at], whole.len()) {
                let mut changed = whole.clone();
                changed[at] = byte;
                match read(changed) {
                    Ok(found) if in_storage(at) => {
                        assert_eq!(structure(&found), structure(&right), "{name}: byte {at}");
                    }
                    Ok(found) => {
                        for (_, _, shape, bytes) in contents(&found) {
                            assert!(bytes.len() >= shape.iter().product::<usize>(), "{name}: byte {at}");
                        }
                    }
                    Err(e) => {
                        assert!(!in_storage(at), "{name}: byte {at} is data");
                        assert_eq!(e.kind(), ErrorKind::Corrupt, "{name}, byte {at}: {e}");
                    }
                }
            }
        }
    }
}
