//! Writes pickles opcode by opcode and archives header by header, right ones and wrong ones.

use std::path::Path;

use ptplus::error::{Code, Result};
use ptplus::format::pickle::{self, Checkpoint};

/// A pickle in the making; protocol 2 unless said otherwise.
#[derive(Clone)]
pub struct Pickle(pub Vec<u8>);

impl Pickle {
    pub fn new() -> Self {
        Pickle(vec![0x80, 2])
    }

    /// Raw opcodes with their arguments.
    pub fn op(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn text(self, text: &str) -> Self {
        self.op(b"X").op(&(text.len() as u32).to_le_bytes()).op(text.as_bytes())
    }

    pub fn int(self, i: i32) -> Self {
        self.op(b"J").op(&i.to_le_bytes())
    }

    pub fn global(self, module: &str, name: &str) -> Self {
        self.op(format!("c{module}\n{name}\n").as_bytes())
    }

    pub fn ints(self, items: &[i32]) -> Self {
        items.iter().fold(self.op(b"("), |p, &i| p.int(i)).op(b"t")
    }

    /// The storage `key` of `n` elements.
    pub fn storage(self, class: &str, key: &str, n: i32) -> Self {
        self.op(b"(").text("storage").global("torch", class).text(key).text("cpu").int(n).op(b"tQ")
    }

    pub fn no_hooks(self) -> Self {
        self.global("collections", "OrderedDict").op(b")R")
    }

    /// A view of storage "0", six F32.
    pub fn tensor(self, offset: i32, shape: &[i32], strides: &[i32]) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op(b"(")
            .storage("FloatStorage", "0", 6)
            .int(offset)
            .ints(shape)
            .ints(strides)
            .op(b"\x89")
            .no_hooks()
            .op(b"tR")
    }

    pub fn stop(self) -> Vec<u8> {
        self.op(b".").0
    }
}

/// `{"w": tensor}` with what `value` puts on the stack.
pub fn dict_of(value: impl FnOnce(Pickle) -> Pickle) -> Vec<u8> {
    value(Pickle::new().op(b"}").text("w")).op(b"s").stop()
}

/// A right state dict: `{"w": [2, 3]}`.
pub fn good_pickle() -> Vec<u8> {
    dict_of(|p| p.tensor(0, &[2, 3], &[3, 1]))
}

/// Six F32: 1 to 6.
pub fn elements() -> Vec<u8> {
    (1..=6).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

/// An entry as it is written twice, in its local header and in the directory; tests change either.
#[derive(Clone)]
pub struct Entry {
    pub data: Vec<u8>,
    pub local: Header,
    pub central: Header,
    /// Bytes between the data and the next entry.
    pub tail: Vec<u8>,
    pub local_signature: [u8; 4],
    pub local_extra: Vec<u8>,
    pub central_extra: Vec<u8>,
    pub comment: Vec<u8>,
    pub disk: u16,
    pub attributes: u32,
    /// Where the directory says that the local header is, instead of where it is.
    pub offset: Option<u32>,
}

#[derive(Clone)]
pub struct Header {
    pub name: Vec<u8>,
    pub flags: u16,
    pub method: u16,
    pub crc32: u32,
    pub packed: u32,
    pub len: u32,
}

impl Entry {
    pub fn new(name: &str, data: &[u8]) -> Self {
        let len = data.len() as u32;
        let crc32 = crc32fast::hash(data);
        let header = Header { name: name.into(), flags: 0, method: 0, crc32, packed: len, len };
        Entry {
            data: data.to_vec(),
            local: header.clone(),
            central: header,
            tail: Vec::new(),
            local_signature: *b"PK\x03\x04",
            local_extra: Vec::new(),
            central_extra: Vec::new(),
            comment: Vec::new(),
            disk: 0,
            attributes: 0,
            offset: None,
        }
    }
}

/// The end of an archive; `None` is what is right.
#[derive(Clone, Default)]
pub struct End {
    pub n_entries: Option<u16>,
    pub len: Option<u32>,
    pub start: Option<u32>,
    pub disk: u16,
    /// Bytes between the directory and the end record.
    pub before: Vec<u8>,
    pub comment: Vec<u8>,
    pub after: Vec<u8>,
}

/// An archive of `entries`, in this order.
pub fn zip(entries: &[Entry], end: &End) -> Vec<u8> {
    let mut out = Vec::new();
    let mut directory = Vec::new();
    for e in entries {
        let offset = e.offset.unwrap_or(out.len() as u32);
        out.extend(e.local_signature);
        out.extend([0, 0]);
        put_header(&mut out, &e.local);
        out.extend((e.local.name.len() as u16).to_le_bytes());
        out.extend((e.local_extra.len() as u16).to_le_bytes());
        out.extend(&e.local.name);
        out.extend(&e.local_extra);
        out.extend(&e.data);
        out.extend(&e.tail);
        directory.extend(b"PK\x01\x02\0\0\0\0");
        put_header(&mut directory, &e.central);
        for len in [e.central.name.len(), e.central_extra.len(), e.comment.len()] {
            directory.extend((len as u16).to_le_bytes());
        }
        directory.extend(e.disk.to_le_bytes());
        directory.extend([0, 0]);
        directory.extend(e.attributes.to_le_bytes());
        directory.extend(offset.to_le_bytes());
        directory.extend(&e.central.name);
        directory.extend(&e.central_extra);
        directory.extend(&e.comment);
    }
    let (start, len) = (out.len() as u32, directory.len() as u32);
    let n = end.n_entries.unwrap_or(entries.len() as u16);
    out.extend(directory);
    out.extend(&end.before);
    out.extend(b"PK\x05\x06");
    for field in [end.disk, end.disk, n, n] {
        out.extend(field.to_le_bytes());
    }
    out.extend(end.len.unwrap_or(len).to_le_bytes());
    out.extend(end.start.unwrap_or(start).to_le_bytes());
    out.extend((end.comment.len() as u16).to_le_bytes());
    out.extend(&end.comment);
    out.extend(&end.after);
    out
}

fn put_header(out: &mut Vec<u8>, h: &Header) {
    out.extend(h.flags.to_le_bytes());
    out.extend(h.method.to_le_bytes());
    out.extend([0; 4]); // time and date
    for field in [h.crc32, h.packed, h.len] {
        out.extend(field.to_le_bytes());
    }
}

/// The entries of a right checkpoint around `pickle`.
pub fn entries(pickle: &[u8]) -> Vec<Entry> {
    vec![
        Entry::new("a/data.pkl", pickle),
        Entry::new("a/byteorder", b"little"),
        Entry::new("a/data/0", &elements()),
        Entry::new("a/version", b"3\n"),
    ]
}

/// A right archive around `pickle`.
pub fn archive(pickle: &[u8]) -> Vec<u8> {
    zip(&entries(pickle), &End::default())
}

/// Reads a whole checkpoint, storages too.
pub fn read(file: Vec<u8>) -> Result<Checkpoint> {
    let checkpoint = pickle::read(Path::new("test.pt"), file.into())?;
    for (_, tensor) in checkpoint.tensors() {
        tensor.lazy()?;
    }
    Ok(checkpoint)
}

/// The code with which `file` is refused; panics with `name` where it is accepted.
pub fn code(name: &str, file: Vec<u8>) -> Code {
    match read(file) {
        Ok(checkpoint) => panic!("{name}: accepted with {} tensors", checkpoint.tensors().count()),
        Err(e) => {
            assert!(e.to_string().starts_with("test.pt: "), "{name}: the error does not name the file: {e}");
            e.code()
        }
    }
}

/// Name, type, shape and bytes of every tensor.
pub fn contents(checkpoint: &Checkpoint) -> Vec<(String, &'static str, Vec<usize>, Vec<u8>)> {
    let read = |(path, t): (Vec<pickle::Key<'_>>, &pickle::TensorRef)| {
        (pickle::dotted(&path), t.dtype().name(), t.shape.clone(), t.lazy().expect("it was read before").to_bytes())
    };
    checkpoint.tensors().map(read).collect()
}

/// Runs a table, reporting every row that fails.
pub fn check_codes(rows: Vec<(&str, Vec<u8>, Code)>) {
    let mut failures = Vec::new();
    for (name, file, expected) in rows {
        let found = std::panic::catch_unwind(|| code(name, file));
        match found {
            Ok(found) if found == expected => {}
            Ok(found) => failures.push(format!("{name}: expected {expected:?}, found {found:?}")),
            Err(_) => failures.push(format!("{name}: accepted, or panicked")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
