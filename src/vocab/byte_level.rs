//! How byte-level vocabularies spell bytes: printable Latin-1 stands for itself, the characters from U+0100 onwards for the
//! other bytes in their order. Source: `bytes_to_unicode` in GPT-2's `encoder.py`.

/// The character that stands for `byte` in tokens.
pub fn character_of(byte: u8) -> char {
    if is_own(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|b| !is_own(*b)).count() as u32;
    char::from_u32(0x100 + rank).expect("below U+0144")
}

/// The byte that a character of a token stands for.
pub fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        n @ 0..=0xff => Some(n as u8).filter(|b| is_own(*b)),
        n => (0..=u8::MAX).filter(|b| !is_own(*b)).nth(n as usize - 0x100),
    }
}

fn is_own(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_a_character_of_its_own() {
        for byte in 0..=u8::MAX {
            assert_eq!(byte_of(character_of(byte)), Some(byte));
        }
        assert_eq!((character_of(b' '), character_of(b'\n'), character_of(b'a')), ('\u{120}', '\u{10a}', 'a'));
        assert_eq!((byte_of(' '), byte_of('\u{144}'), byte_of('\u{2581}')), (None, None, None));
    }
}
