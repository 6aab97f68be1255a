//! Small files that ask for much: each is refused within 2 s and 256 MiB, or read within them.

use ptplus::error::Code;
use ptplus::import::{self, Options};

use crate::case::{alone, in_a_process_of_its_own, measured};
use crate::pickle::assembler::*;

/// `prefix`, `body` until there are `n_bytes`, `suffix`.
struct Recipe {
    prefix: Vec<u8>,
    body: Vec<u8>,
    n_bytes: usize,
    suffix: Vec<u8>,
}

impl Recipe {
    fn pickle(&self) -> Vec<u8> {
        let mut p = Vec::with_capacity(self.n_bytes + self.prefix.len() + self.body.len() + self.suffix.len() + 2);
        p.extend([0x80, 2]);
        p.extend(&self.prefix);
        if self.n_bytes > p.len() {
            p.extend(self.body.repeat((self.n_bytes - p.len()).div_ceil(self.body.len())));
        }
        p.extend(&self.suffix);
        p
    }
}

fn repeated(prefix: &[u8], body: &[u8], n_bytes: usize, suffix: &[u8]) -> Recipe {
    Recipe { prefix: prefix.to_vec(), body: body.to_vec(), n_bytes, suffix: suffix.to_vec() }
}

fn once(parts: &[Vec<u8>]) -> Recipe {
    repeated(&parts.concat(), b"", 0, b".")
}

/// `n` times `N` in a tuple, in memo 0 and off the stack.
fn big_tuple(n: usize) -> Vec<u8> {
    [b"(".to_vec(), b"N".repeat(n), b"tq\x000".to_vec()].concat()
}

/// The same in a list.
fn big_list(n: usize) -> Vec<u8> {
    [b"](".to_vec(), b"N".repeat(n), b"eq\x000".to_vec()].concat()
}

/// A text of `n` bytes in memo 1 and off the stack.
fn big_text(n: usize) -> Vec<u8> {
    [b"X".to_vec(), (n as u32).to_le_bytes().to_vec(), b"a".repeat(n), b"q\x010".to_vec()].concat()
}

/// A list of `n` tensors, each one element 2^21 times.
fn repeating(n: usize) -> Vec<u8> {
    let tensor = Pickle(Vec::new()).tensor(0, &[1 << 21], &[0]).0;
    [b"](".to_vec(), tensor.repeat(n), b"e".to_vec()].concat()
}

const MB: usize = 1_000_000;

/// Name, bomb, and the code it is refused with; what is merely large is accepted.
type Row = (&'static str, Recipe, Option<Code>);

fn containers() -> Vec<Row> {
    let limit = Some(Code::PickleLimit);
    let batch = [&b"("[..], &b"N".repeat(1000), b"e"].concat();
    let doubling = |levels| once(&[b"]q\x000".to_vec(), b"](h\0h\0eq\x000".repeat(levels), b"h\0".to_vec()]);
    let levels = once(&[b"]".repeat(900_000), b"a".repeat(899_999)]);
    let keys = [b"(".to_vec(), big_text(512)].concat();
    vec![
        ("lists", repeated(b"", b"]", 5 * MB, b"."), limit),
        ("tuples, popped", repeated(b"", b")0", 8 * MB, b"N."), limit),
        ("values on the stack", repeated(b"", b"N", 5 * MB, b"."), limit),
        ("opcodes", repeated(b"", b"N0", 9 * MB, b"N."), limit),
        ("marks", repeated(b"", b"(", 5 * MB, b"."), limit),
        ("one long list", repeated(b"]", &batch, 5 * MB, b"."), limit),
        ("a list just short enough", repeated(b"]", &batch, 3_900_000, b"."), None),
        ("lists of one", repeated(b"", b"]Na", 5 * MB, b"."), limit),
        ("dictionaries of one", repeated(b"N", b"}K\x01Ns", 20 * MB, b"."), limit),
        ("memo", repeated(b"N", b"\x94", 5 * MB, b"."), limit),
        ("the memo's end", repeated(b"N", b"r\x3f\x42\x0f\0", 25 * MB, b"."), limit),
        ("a pickle of 40 MB", repeated(b"", &big_text(MB), 40 * MB, b"N."), limit),
        ("a pickle of 30 MB", repeated(b"", &big_text(MB), 30 * MB, b"N."), None),
        ("levels", levels, limit),
        ("levels of tuples", once(&[b"N".to_vec(), b"\x85".repeat(900_000)]), limit),
        ("doubling 30 times", doubling(30), limit),
        ("doubling 500 times", doubling(500), limit),
        ("long keys", repeated(&big_text(513), b"}h\x01Ns0", 5 * MB, b"N."), limit),
        ("many keys of 512 bytes", repeated(&keys, b"}(h\x01NNNu", 4_500_000, b"t."), None),
        ("states", repeated(b"}q\x010", b"h\x01h\x01b0", 20 * MB, b"N."), limit),
    ]
}

fn calls() -> Vec<Row> {
    let (limit, wrong) = (Some(Code::PickleLimit), Some(Code::PickleStructure));
    let then = |value: Vec<u8>, global: &[u8]| [&value[..], global, b"q\x020"].concat();
    let device = then(big_text(MB), b"ctorch\ndevice\n");
    let set = then(big_list(900_000), b"cbuiltins\nset\n");
    let pairs = then(big_list(900_000), b"ccollections\nOrderedDict\n");
    let arguments = then(big_tuple(900_000), b"ctorch\nSize\n");
    let spelled_out = Pickle::new().tensor(0, &[6], &[1]).op(b"0").0[2..].to_vec();
    let ones = Pickle::new().storage("FloatStorage", "0", 6).int(0).ints(&[1; 16]).ints(&[1; 16]).0[2..].to_vec();
    let shared = [&b"ctorch._utils\n_rebuild_tensor_v2\nq\x020("[..], &ones, b"\x89}tq\x030"].concat();
    // 60,000 tensors whose names would have 6 kB each.
    let long_names = [b"}(".to_vec(), [&b"X\xfa\0\0\0"[..], &[b'k'; 250], b"}("].concat().repeat(25)].concat();
    let name = |i: usize| Pickle(Vec::new()).text(&i.to_string()).op(b"h\x05").0;
    let deep: Vec<u8> = (0..60_000).flat_map(name).chain(b"u".repeat(26)).collect();
    let long_names = [&spelled_out[..spelled_out.len() - 1], b"q\x050", &long_names, &deep].concat();
    let in_memo = [&spelled_out[..spelled_out.len() - 1], b"q\x050]("].concat();
    vec![
        ("devices of a long name", repeated(&device, b"h\x02h\x01K\x01\x86R0", 20 * MB, b"N."), limit),
        ("globals of a long name", repeated(&big_text(MB), b"h\x01h\x01\x93", 20 * MB, b"N."), limit),
        ("sets of a long list", repeated(&set, b"h\x02h\0\x85R0", 20 * MB, b"N."), limit),
        ("dictionaries of a long list", repeated(&pairs, b"h\x02h\0\x85R0", 20 * MB, b"N."), wrong),
        ("a call with a long tuple", repeated(&arguments, b"h\x02h\0R0", 20 * MB, b"N."), limit),
        ("a long tuple as a persistent id", repeated(&arguments, b"h\0Q0", 20 * MB, b"N."), wrong),
        ("tensors of 16 dimensions", repeated(&shared, b"h\x02h\x03R0", 25 * MB, b"N."), limit),
        ("60,000 tensors spelled out", repeated(b"", &spelled_out, 18 * MB, b"N."), None),
        ("41 memories that repeat 8 MiB", once(&[repeating(41)]), Some(Code::PickleLimit)),
        ("40 memories that repeat 8 MiB", once(&[repeating(40)]), None),
        ("60,000 tensors with long names", once(&[long_names]), Some(Code::NameInvalid)),
        ("one tensor a million times", repeated(&in_memo, b"h\x05", 2 * MB, b"e."), limit),
    ]
}

/// One small map for the heads of a memory that one element makes: repeated for each, it would be more than there is
/// memory, or numbers.
fn check_shared_parts() -> Vec<String> {
    let mut failures = Vec::new();
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("c.pt");
    for (heads, weight) in [(1 << 24, [1, 1, 4096]), (1 << 24, [1, 1 << 30, 0]), (4096, [1, 1024, 4096])] {
        let of_one = |p: Pickle, name: &str, shape: &[i32]| p.text(name).tensor(0, shape, &[0; 3]).op(b"s");
        let memory = of_one(Pickle::new().op(b"}"), "layers.0.prefix_memory", &[heads, 1, 1]);
        std::fs::write(&path, archive(&of_one(memory, "layers.0.phi.weight", &weight).stop())).expect("a file");
        let stated = format!(
            r#"{{"feature_map":"elu","query_tap":"post_rope","query_scale":1,"memory_scale":1,"memory_sharing":"per_head","num_layers":1,"num_attention_heads":4096,"num_key_value_heads":1,"head_dim":{}}}"#,
            weight[2].max(1)
        );
        std::fs::write(dir.path().join("adapter_config.json"), stated).expect("a file");
        let cost = measured(|| import::read(&path, &Options::default(), None).map(drop));
        if cost.is_too_much() || !matches!(&cost.result, Err(e) if e.code() == Code::AdapterShape) {
            failures.push(format!("shared parts, {weight:?}: {:?}: {cost}", cost.result));
        }
    }
    failures
}

fn check(rows: Vec<Row>) -> Vec<String> {
    let mut failures = Vec::new();
    for (name, bomb, expected) in rows {
        let file = archive(&bomb.pickle());
        let cost = measured(|| read(file).err().map(|e| e.code()));
        let found = cost.result;
        if std::env::var_os("PTPLUS_SHOW").is_some() {
            println!("{name}: {found:?}, {cost}");
        }
        if found != expected || cost.is_too_much() {
            failures.push(format!("{name}: expected {expected:?}, found {found:?}: {cost}"));
        }
    }
    failures
}

#[test]
fn bombs_are_refused_within_memory_and_work() {
    in_a_process_of_its_own("pickle::bombs::measured_bombs");
}

#[test]
#[ignore = "what the test above runs"]
fn measured_bombs() {
    let _turn = alone();
    let failures = [check(containers()), check(calls()), check_shared_parts()].concat();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
