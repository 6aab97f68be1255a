//! `/etc/ld.so.cache`: where the loader of glibc finds libraries that no search path names.

use std::path::PathBuf;

/// How the current format begins. Older files have it behind a table of their own.
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
/// Bytes before the entries: magic, two counts, flags, an offset, three unused words.
const HEADER_LEN: usize = 48;
/// Flags, key, value, version, capabilities.
const ENTRY_LEN: usize = 24;
/// Entries looked at; a desktop has some thousand.
const MAX_ENTRIES: usize = 1 << 17;

/// Paths of the library called `name`, for whichever processors, in the order of the cache. A file that is broken or of
/// another byte order names none.
pub fn paths(cache: &[u8], name: &str) -> Vec<PathBuf> {
    // Strings count from the header of this format.
    let Some(start) = memchr::memmem::find(cache, MAGIC) else { return Vec::new() };
    let cache = &cache[start..];
    let number = |at: usize| Some(u32::from_ne_bytes(cache.get(at..at.checked_add(4)?)?.try_into().ok()?) as usize);
    let text = |at: usize| {
        let rest = cache.get(at..)?;
        std::str::from_utf8(&rest[..memchr::memchr(0, rest)?]).ok()
    };
    let is_it =
        |at: usize| cache.get(at..).is_some_and(|t| t.starts_with(name.as_bytes()) && t.get(name.len()) == Some(&0));
    let n = number(MAGIC.len()).unwrap_or(0).min(MAX_ENTRIES);
    let entries = cache.get(HEADER_LEN..).unwrap_or_default().chunks_exact(ENTRY_LEN).take(n);
    let entry = |i: usize| {
        let at = HEADER_LEN + i * ENTRY_LEN;
        number(at + 4).filter(|key| is_it(*key)).and_then(|_| text(number(at + 8)?)).map(PathBuf::from)
    };
    (0..entries.len()).filter_map(entry).filter(|p| p.is_absolute()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(entries: &[(&str, &str)]) -> Vec<u8> {
        let (mut table, mut strings) = (Vec::new(), Vec::new());
        let strings_at = HEADER_LEN + entries.len() * ENTRY_LEN;
        for (key, value) in entries {
            let mut add = |text: &str| {
                let at = (strings_at + strings.len()) as u32;
                strings.extend([text.as_bytes(), b"\0"].concat());
                at.to_ne_bytes()
            };
            table.extend([0x303_u32.to_ne_bytes(), add(key), add(value)].concat());
            table.extend([0; 12]);
        }
        let counts = [(entries.len() as u32).to_ne_bytes(), (strings.len() as u32).to_ne_bytes()].concat();
        [MAGIC, &counts, &[0; 20], &table, &strings].concat()
    }

    #[test]
    fn a_library_is_found_by_its_whole_name() {
        let file = cache(&[("libx.so.1", "/a/libx.so.1"), ("liby.so", "/b/liby.so"), ("libx.so.1", "/c/libx.so.1")]);
        let both = ["/a/libx.so.1", "/c/libx.so.1"].map(PathBuf::from);
        assert_eq!(paths(&file, "libx.so.1"), both);
        assert!(paths(&file, "libx.so").is_empty());
        let older = [b"ld.so-1.7.0\0\0\0\0\0", &file[..]].concat();
        assert_eq!(paths(&older, "libx.so.1"), both);
    }

    #[test]
    fn broken_caches_name_nothing_or_less() {
        let file = cache(&[("libx.so.1", "/a/libx.so.1"), ("libx.so.1", "relative")]);
        assert_eq!(paths(&file, "libx.so.1"), [PathBuf::from("/a/libx.so.1")]);
        for len in 0..file.len() {
            let _ = paths(&file[..len], "libx.so.1");
        }
        for i in 0..file.len() {
            let mut spoilt = file.clone();
            spoilt[i] ^= 0xFF;
            let _ = paths(&spoilt, "libx.so.1");
        }
    }

    #[test]
    fn the_cache_of_this_machine_knows_the_c_library() {
        let Ok(file) = std::fs::read("/etc/ld.so.cache") else { return };
        assert!(paths(&file, "libc.so.6").iter().all(|p| p.ends_with("libc.so.6")));
    }
}
