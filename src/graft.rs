//! The graft: a shared object that adds adapters to llama.cpp's own graph, in programs that know nothing of them.
//!
//! `csrc/ptplus_graft.c`, compiled by `build.rs` for the machine that this program runs on, and carried inside it.

/// The shared object, to be written to a file and named in `LD_PRELOAD`. `None` where the build found no C compiler, and
/// on systems other than Linux.
pub fn library() -> Option<&'static [u8]> {
    #[cfg(ptplus_graft)]
    return Some(include_bytes!(concat!(env!("OUT_DIR"), "/libptplus_graft.so")));
    #[cfg(not(ptplus_graft))]
    None
}

#[cfg(all(test, ptplus_graft))]
mod tests {
    #[test]
    fn the_library_is_an_object_of_this_machine_that_defines_what_it_wraps() {
        let library = super::library().unwrap();
        let wrapped = "ggml_mul_mat";
        let found = crate::format::elf::read(library, &[wrapped]).unwrap();
        assert_eq!(found.symbols[0].definition, Some(crate::format::elf::Definition::Own));
        let of_c = |name: &String| ["libc.so", "libdl.so", "ld-linux"].iter().any(|known| name.starts_with(known));
        assert!(found.needed.iter().all(of_c), "{:?}", found.needed);
    }
}
