//! The libraries that the loader of glibc loads with a program, found where it looks: RPATH, LD_LIBRARY_PATH, RUNPATH,
//! its cache, the system's folders.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use super::{ASKED, Looked, Reached};
use crate::error::{Error, Result};
use crate::format::elf::{self, Machine, Object};
use crate::format::{ld_cache, mmap::map_file};

/// Libraries of a program; large ones have some hundred.
const MAX_OBJECTS: usize = 512;
/// Folders of a search path that are looked into; programs state a few.
const MAX_FOLDERS: usize = 64;

/// The program and all libraries that come with it.
pub(super) struct Loaded {
    /// The program first, then in the order in which they are loaded.
    pub objects: Vec<Looked>,
    pub not_found: Vec<String>,
}

/// Follows what is needed, and what that needs.
pub(super) fn loaded(program: &Path, object: &Object) -> Result<Loaded> {
    let cache = std::fs::read("/etc/ld.so.cache").unwrap_or_default();
    let real = program.canonicalize().map_err(|e| Error::io(program, "cannot find its folder", e))?;
    let first =
        Looked { path: program.to_owned(), reached: Reached::Itself, through: Vec::new(), object: object.clone() };
    let mut seen = BTreeSet::from([real.clone()]);
    let mut names = BTreeSet::new();
    let mut out = Loaded { objects: Vec::new(), not_found: Vec::new() };
    // Each with the folders that it hands on to its libraries.
    let mut waiting = VecDeque::from([(first, real, Vec::new())]);
    while let Some((looked, real, inherited)) = waiting.pop_front() {
        let origin = real.parent().unwrap_or(Path::new("/")).to_owned();
        let own = &looked.object;
        // A file with the newer kind of path ignores the older one, its own and that of whoever needs it.
        let mut handed_on: Vec<PathBuf> = expanded(&own.rpath, &origin);
        handed_on.extend(inherited);
        handed_on.truncate(MAX_FOLDERS);
        let older = if own.runpath.is_empty() { handed_on.clone() } else { Vec::new() };
        let stated = older.into_iter().chain(from_environment()).chain(expanded(&own.runpath, &origin));
        let folders: Vec<PathBuf> = stated.collect();
        for name in &own.needed {
            if seen.len() >= MAX_OBJECTS || is_of_c(name) || !names.insert(name.clone()) {
                continue;
            }
            let Some((path, object)) = find(name, &folders, &cache, own.machine, &origin) else {
                out.not_found.push(name.clone());
                continue;
            };
            let real = path.canonicalize().unwrap_or_else(|_| path.clone());
            if seen.insert(real.clone()) {
                let through = [&looked.through[..], std::slice::from_ref(name)].concat();
                waiting.push_back((
                    Looked { path, reached: Reached::Needed, through, object },
                    real,
                    handed_on.clone(),
                ));
            }
        }
        out.objects.push(looked);
    }
    Ok(out)
}

/// The C library and the loader: nothing in them is ever llama.cpp's, and what they do for others is asked of those.
fn is_of_c(name: &str) -> bool {
    const OF_C: [&str; 8] =
        ["libc.so", "libc.musl", "ld-linux", "ld-musl", "ld64.so", "libm.so", "libpthread.so", "libdl.so"];
    OF_C.iter().any(|known| name.starts_with(known))
}

fn from_environment() -> Vec<PathBuf> {
    let value = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let value = value.to_string_lossy();
    value.split([':', ';']).filter(|p| !p.is_empty()).map(PathBuf::from).collect()
}

/// The folders of search paths, with the loader's variables in them replaced.
fn expanded(paths: &[String], origin: &Path) -> Vec<PathBuf> {
    let origin = origin.to_string_lossy();
    let lib = if cfg!(target_pointer_width = "64") { "lib64" } else { "lib" };
    let variables = [
        ("${ORIGIN}", &*origin),
        ("$ORIGIN", &*origin),
        ("${LIB}", lib),
        ("$LIB", lib),
        ("${PLATFORM}", std::env::consts::ARCH),
    ];
    let expand = |p: &str| variables.iter().fold(p.to_owned(), |text, (name, value)| text.replace(name, value));
    let folders = paths.iter().flat_map(|p| p.split(':')).filter(|p| !p.is_empty());
    folders.take(MAX_FOLDERS).map(|p| PathBuf::from(expand(p))).collect()
}

/// Where libraries of the system lie when its cache does not say, Debian's folders included.
fn system_folders(machine: Machine) -> Vec<PathBuf> {
    let triplet = match machine.name() {
        "x86-64" => "x86_64-linux-gnu",
        "x86" => "i386-linux-gnu",
        "arm" => "arm-linux-gnueabihf",
        "riscv" => "riscv64-linux-gnu",
        "ppc64" => "powerpc64le-linux-gnu",
        "s390x" => "s390x-linux-gnu",
        "loongarch" => "loongarch64-linux-gnu",
        _ => "aarch64-linux-gnu",
    };
    let plain = ["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(PathBuf::from);
    plain.into_iter().chain(["/lib", "/usr/lib"].map(|p| Path::new(p).join(triplet))).collect()
}

/// The first file of this name that is for the same processor: the loader skips others too.
fn find(name: &str, folders: &[PathBuf], cache: &[u8], machine: Machine, origin: &Path) -> Option<(PathBuf, Object)> {
    let open = |path: PathBuf| {
        let object = path.is_file().then(|| elf::read(&map_file(&path).ok()?, &ASKED).ok()).flatten()?;
        (object.machine == machine).then_some((path, object))
    };
    if name.contains('/') {
        let path = name.replace("${ORIGIN}", &origin.to_string_lossy()).replace("$ORIGIN", &origin.to_string_lossy());
        return open(PathBuf::from(path));
    }
    let stated = folders.iter().map(|f| f.join(name));
    let known = ld_cache::paths(cache, name).into_iter();
    stated.chain(known).chain(system_folders(machine).into_iter().map(|f| f.join(name))).find_map(open)
}
