//! The opcode machine: one pickle to an arena of plain values.
//!
//! It knows a stack, a memo by index and the constructors of [`super::globals`]; it executes nothing. What refers to
//! storages or needs the whole tree (bounds of tensors, cycles, depth) is checked afterwards, in [`super::check`].

use super::globals::{Global, Meaning, resolve};
use super::limits::*;
use super::opcode::Op;
use super::value::{Arena, Node, Span, Value};
use crate::error::{Code, Error, Result};
use crate::format::limits::NAME_BYTES;
use crate::tensor::DType;

/// What a pickle holds, storages not yet resolved.
#[derive(Debug, Default)]
pub(super) struct Pickle {
    pub(super) arena: Arena,
    pub(super) storages: Vec<DeclaredStorage>,
    pub(super) tensors: Vec<DeclaredTensor>,
    /// Attributes set on an `OrderedDict` (`_metadata` of a state dict): plain values beside the tree.
    pub(super) attributes: Vec<Value>,
    /// How many bytes of the input the pickle takes, `STOP` included.
    pub(super) len_bytes: usize,
}

/// A storage as the pickle refers to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DeclaredStorage {
    pub(super) key: String,
    pub(super) dtype: DType,
    pub(super) n_elements: u64,
    /// Where in the file the pickle refers to it first.
    pub(super) declared_at: u64,
}

/// A tensor as the pickle rebuilds it; not yet compared with its storage.
#[derive(Debug)]
pub(super) struct DeclaredTensor {
    pub(super) storage: u32,
    pub(super) storage_offset: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
    /// Where in the file the pickle rebuilds it.
    pub(super) declared_at: u64,
}

/// Reads the pickle that starts at `input[0]`, which is at `file_offset` in its file.
///
/// Errors: [`Code::PickleTruncated`], [`Code::PickleLimit`], [`Code::PickleOpcode`], [`Code::PickleGlobal`],
/// [`Code::PickleStructure`], [`Code::PickleTensor`], [`Code::PickleUnsupported`].
pub(super) fn run(input: &[u8], file_offset: u64) -> Result<(Pickle, Value)> {
    let mut m = Machine {
        input: &input[..input.len().min(MAX_PICKLE_BYTES)],
        cut: input.len() > MAX_PICKLE_BYTES,
        pos: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        out: Pickle::default(),
        storages_by_key: Default::default(),
        n_contained: 0,
        op_offset: file_offset,
    };
    for _ in 0..MAX_OPCODES {
        m.op_offset = file_offset + m.pos as u64;
        let step = m.step().map_err(|e| e.at(m.op_offset))?;
        if let Some(root) = step {
            m.out.len_bytes = m.pos;
            return Ok((m.out, root));
        }
    }
    Err(Error::new(Code::PickleLimit, format!("more than {MAX_OPCODES} opcodes")).at(m.op_offset))
}

struct Machine<'a> {
    input: &'a [u8],
    /// Whether the file goes on where `input` ends.
    cut: bool,
    pos: usize,
    stack: Vec<Value>,
    /// Heights of the stack at each open `MARK`.
    marks: Vec<usize>,
    memo: Vec<Option<Value>>,
    out: Pickle,
    storages_by_key: std::collections::HashMap<String, u32>,
    n_contained: usize,
    op_offset: u64,
}

fn structure(message: impl Into<String>) -> Error {
    Error::new(Code::PickleStructure, message)
}

fn over(what: &str, limit: usize) -> Error {
    Error::new(Code::PickleLimit, format!("more than {limit} {what}"))
}

impl<'a> Machine<'a> {
    /// Executes one opcode; the root when it was `STOP`.
    fn step(&mut self) -> Result<Option<Value>> {
        let byte = self.take(1)?[0];
        let Some(op) = Op::from_byte(byte) else {
            return Err(Error::new(Code::PickleOpcode, format!("unknown opcode 0x{byte:02x}")));
        };
        if (self.pos == 1) != (op == Op::Proto) {
            return Err(Error::new(
                Code::PickleOpcode,
                format!("expected the opcode PROTO first and nowhere else, found {}", op.name()),
            ));
        }
        match op {
            Op::Proto => {
                let protocol = self.take(1)?[0];
                if !(2..=5).contains(&protocol) {
                    return Err(Error::new(Code::PickleOpcode, format!("expected protocol 2 to 5, found {protocol}")));
                }
            }
            // The length is advice on how much to read ahead; it must not promise more than there is.
            Op::Frame => {
                let len = self.length(8)?;
                if len > self.input.len() - self.pos {
                    return Err(self.truncated(len));
                }
            }
            Op::Stop => return self.stop().map(Some),

            Op::None => self.push(Value::None)?,
            Op::NewTrue => self.push(Value::Bool(true))?,
            Op::NewFalse => self.push(Value::Bool(false))?,
            Op::BinInt => {
                let i = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(i.into()))?;
            }
            Op::BinInt1 => {
                let [i] = self.array()?;
                self.push(Value::Int(i.into()))?;
            }
            Op::BinInt2 => {
                let i = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(i.into()))?;
            }
            Op::Long1 => self.long(1)?,
            Op::Long4 => self.long(4)?,
            Op::BinFloat => {
                let x = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(x))?;
            }

            Op::ShortBinUnicode => self.text(1)?,
            Op::BinUnicode => self.text(4)?,
            Op::BinUnicode8 => self.text(8)?,
            Op::ShortBinBytes => self.bytes(1)?,
            Op::BinBytes => self.bytes(4)?,
            Op::BinBytes8 | Op::ByteArray8 => self.bytes(8)?,
            Op::ShortBinString => self.python2_string(1)?,
            Op::BinString => self.python2_string(4)?,

            Op::EmptyTuple => {
                let v = self.sequence(Vec::new()).map(Value::Tuple)?;
                self.push(v)?;
            }
            Op::Tuple1 => self.tuple(1)?,
            Op::Tuple2 => self.tuple(2)?,
            Op::Tuple3 => self.tuple(3)?,
            Op::Tuple => {
                let items = self.pop_mark()?;
                let v = self.sequence(items).map(Value::Tuple)?;
                self.push(v)?;
            }
            Op::EmptyList => {
                let v = self.sequence(Vec::new()).map(Value::List)?;
                self.push(v)?;
            }
            Op::List => {
                let items = self.pop_mark()?;
                let v = self.sequence(items).map(Value::List)?;
                self.push(v)?;
            }
            Op::Append => {
                let item = self.pop()?;
                self.extend(op, vec![item])?;
            }
            Op::Appends | Op::AddItems => {
                let items = self.pop_mark()?;
                self.extend(op, items)?;
            }
            Op::EmptySet => {
                let v = self.sequence(Vec::new()).map(Value::Set)?;
                self.push(v)?;
            }
            Op::FrozenSet => {
                let items = self.pop_mark()?;
                let v = self.sequence(items).map(Value::Set)?;
                self.push(v)?;
            }
            Op::EmptyDict => {
                let v = self.mapping(Vec::new())?;
                self.push(v)?;
            }
            Op::Dict => {
                let items = self.pop_mark()?;
                let v = pairs(&items).and_then(|entries| self.mapping(entries))?;
                self.push(v)?;
            }
            Op::SetItem => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.insert(&[key, value])?;
            }
            Op::SetItems => {
                let items = self.pop_mark()?;
                self.insert(&items)?;
            }

            Op::Mark => {
                if self.marks.len() == MAX_MARKS {
                    return Err(over("marks open", MAX_MARKS));
                }
                self.marks.push(self.stack.len());
            }
            Op::PopMark => drop(self.pop_mark()?),
            Op::Pop => drop(self.pop()?),
            Op::Dup => {
                let top = self.top()?;
                self.push(top)?;
            }

            Op::BinPut => {
                let [i] = self.array()?;
                self.put(i.into())?;
            }
            Op::LongBinPut => {
                let i = self.length(4)?;
                self.put(i)?;
            }
            Op::Memoize => self.put(self.memo.len())?,
            Op::BinGet => {
                let [i] = self.array()?;
                self.get(i.into())?;
            }
            Op::LongBinGet => {
                let i = self.length(4)?;
                self.get(i)?;
            }

            Op::Global => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            Op::StackGlobal => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Str(module), Value::Str(name)) = (module, name) else {
                    return Err(structure(format!("expected two texts, found {} and {}", module.kind(), name.kind())));
                };
                let (module, name) = (self.short_text(module)?, self.short_text(name)?);
                self.global(&module, &name)?;
            }
            Op::Reduce => self.reduce()?,
            Op::Build => self.build()?,
            Op::BinPersId => self.persistent()?,

            // Text forms of protocols 0 and 1, objects of classes, registered extensions and buffers outside the file.
            Op::Float | Op::Int | Op::Long | Op::String | Op::Unicode | Op::PersId | Op::Get | Op::Put => {
                return Err(refused(op, "belongs to protocols 0 and 1"));
            }
            Op::Inst | Op::Obj | Op::NewObj | Op::NewObjEx => return Err(refused(op, "makes an object of a class")),
            Op::Ext1 | Op::Ext2 | Op::Ext4 => return Err(refused(op, "names code by a number")),
            Op::NextBuffer | Op::ReadOnlyBuffer => return Err(refused(op, "needs a buffer outside the file")),
        }
        Ok(None)
    }

    fn stop(&mut self) -> Result<Value> {
        let root = self.pop()?;
        if !self.stack.is_empty() || !self.marks.is_empty() {
            return Err(structure(format!("{} values are left at STOP", self.stack.len())));
        }
        Ok(root)
    }

    // Input

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let bytes = self.pos.checked_add(len).and_then(|end| self.input.get(self.pos..end));
        let bytes = bytes.ok_or_else(|| self.truncated(len))?;
        self.pos += len;
        Ok(bytes)
    }

    fn truncated(&self, want: usize) -> Error {
        if self.cut {
            return Error::new(Code::PickleLimit, format!("a pickle of more than {MAX_PICKLE_BYTES} bytes"));
        }
        let left = self.input.len() - self.pos;
        Error::new(Code::PickleTruncated, format!("expected {want} more bytes, found {left}"))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// An unsigned little-endian number of `width` bytes. One that no memory holds is longer than what is left.
    fn length(&mut self, width: usize) -> Result<usize> {
        let mut le = [0; 8];
        le[..width].copy_from_slice(self.take(width)?);
        Ok(usize::try_from(u64::from_le_bytes(le)).unwrap_or(usize::MAX))
    }

    fn counted(&mut self, width: usize) -> Result<&'a [u8]> {
        let len = self.length(width)?;
        self.take(len)
    }

    /// Text up to the end of the line.
    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.input[self.pos..];
        let window = &rest[..rest.len().min(MAX_GLOBAL_BYTES + 1)];
        let Some(len) = window.iter().position(|&b| b == b'\n') else {
            return Err(if window.len() > MAX_GLOBAL_BYTES {
                over("bytes in the name of a global", MAX_GLOBAL_BYTES)
            } else {
                self.truncated(window.len() + 1)
            });
        };
        self.pos += len + 1;
        utf8(&window[..len])
    }

    // Stack and memo

    fn push(&mut self, value: Value) -> Result<()> {
        if self.stack.len() == MAX_STACK {
            return Err(over("values on the stack", MAX_STACK));
        }
        self.stack.push(value);
        Ok(())
    }

    /// The lowest height that the stack may be popped to: a `MARK` is an item of its own.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Value> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn top(&self) -> Result<Value> {
        match self.stack.get(self.floor()..) {
            Some([.., top]) => Ok(*top),
            _ => Err(structure("the stack is empty")),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Value>> {
        let height = self.marks.pop().ok_or_else(|| structure("no MARK is open"))?;
        Ok(self.stack.drain(height..).collect())
    }

    fn put(&mut self, index: usize) -> Result<()> {
        let top = self.top()?;
        if index >= MAX_MEMO {
            return Err(over("memo entries", MAX_MEMO));
        }
        if index >= self.memo.len() {
            self.memo.resize(index + 1, None);
        }
        self.memo[index] = Some(top);
        Ok(())
    }

    fn get(&mut self, index: usize) -> Result<()> {
        match self.memo.get(index) {
            Some(&Some(value)) => self.push(value),
            _ => Err(structure(format!("memo entry {index} was never set"))),
        }
    }

    // Plain values

    fn long(&mut self, width: usize) -> Result<()> {
        let bytes = self.counted(width)?;
        if bytes.len() > MAX_BIG_INT_BYTES {
            return Err(over("bytes in a number", MAX_BIG_INT_BYTES));
        }
        let value = if bytes.len() <= 8 {
            let sign = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
            let mut le = [sign; 8];
            le[..bytes.len()].copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(le))
        } else {
            Value::BigInt(self.out.arena.keep_bytes(bytes))
        };
        self.push(value)
    }

    fn text(&mut self, width: usize) -> Result<()> {
        let text = utf8(self.counted(width)?)?;
        let span = self.out.arena.keep_text(text);
        self.push(Value::Str(span))
    }

    fn bytes(&mut self, width: usize) -> Result<()> {
        let bytes = self.counted(width)?;
        let span = self.out.arena.keep_bytes(bytes);
        self.push(Value::Bytes(span))
    }

    /// A text that becomes part of another one: a name, and as short as one.
    fn short_text(&self, span: Span) -> Result<String> {
        let text = self.out.arena.text(span);
        if text.len() > MAX_GLOBAL_BYTES {
            return Err(over("bytes in the name of a global", MAX_GLOBAL_BYTES));
        }
        Ok(text.to_owned())
    }

    /// A `str` of Python 2, which did not tell text from bytes.
    fn python2_string(&mut self, width: usize) -> Result<()> {
        let bytes = self.counted(width)?;
        let value = match std::str::from_utf8(bytes) {
            Ok(text) => Value::Str(self.out.arena.keep_text(text)),
            Err(_) => Value::Bytes(self.out.arena.keep_bytes(bytes)),
        };
        self.push(value)
    }

    // Containers

    fn sequence(&mut self, items: Vec<Value>) -> Result<u32> {
        self.node(Node::Sequence(items))
    }

    fn mapping(&mut self, entries: Vec<(Value, Value)>) -> Result<Value> {
        self.node(Node::Mapping(entries)).map(Value::Dict)
    }

    fn node(&mut self, node: Node) -> Result<u32> {
        let nodes = &mut self.out.arena.nodes;
        if nodes.len() == MAX_CONTAINERS {
            return Err(over("containers", MAX_CONTAINERS));
        }
        let len = node.len();
        nodes.push(node);
        let number = nodes.len() as u32 - 1;
        self.count_contained(len)?;
        Ok(number)
    }

    /// Counts values put into containers: what the memo holds can be put into many.
    fn count_contained(&mut self, n: usize) -> Result<()> {
        self.may_contain(n)?;
        self.n_contained += n;
        Ok(())
    }

    /// Whether `n` more fit, asked before they are copied.
    fn may_contain(&self, n: usize) -> Result<()> {
        if n > MAX_CONTAINED - self.n_contained { Err(over("values in containers", MAX_CONTAINED)) } else { Ok(()) }
    }

    fn tuple(&mut self, len: usize) -> Result<()> {
        let at = self.stack.len().checked_sub(len).filter(|&at| at >= self.floor());
        let at = at.ok_or_else(|| structure(format!("expected {len} values on the stack")))?;
        let items = self.stack.drain(at..).collect();
        let v = self.sequence(items).map(Value::Tuple)?;
        self.push(v)
    }

    fn extend(&mut self, op: Op, new: Vec<Value>) -> Result<()> {
        self.count_contained(new.len())?;
        let wants_set = op == Op::AddItems;
        match self.top()? {
            Value::List(n) if !wants_set => self.append_to(n, new),
            Value::Set(n) if wants_set => self.append_to(n, new),
            other => return Err(structure(format!("{} on {}", op.name(), other.kind()))),
        }
        Ok(())
    }

    fn append_to(&mut self, node: u32, new: Vec<Value>) {
        match &mut self.out.arena.nodes[node as usize] {
            Node::Sequence(items) => items.extend(new),
            Node::Mapping(_) => unreachable!("lists and sets are sequences"),
        }
    }

    fn insert(&mut self, flat: &[Value]) -> Result<()> {
        self.count_contained(flat.len())?;
        let new = pairs(flat)?;
        match self.top()? {
            Value::Dict(n) => match &mut self.out.arena.nodes[n as usize] {
                Node::Mapping(entries) => entries.extend(new),
                Node::Sequence(_) => unreachable!("dictionaries are mappings"),
            },
            other => return Err(structure(format!("expected a dict to insert into, found {}", other.kind()))),
        }
        Ok(())
    }

    // Globals

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        let value = match resolve(module, name) {
            Meaning::Global(global) => Value::Global(global),
            Meaning::Constant => Value::Str(self.out.arena.keep_text(&format!("{module}.{name}"))),
            Meaning::UnreadStorage => {
                let message = format!("elements of {module}.{name} are of no type that ptplus reads");
                return Err(Error::new(Code::PickleUnsupported, message));
            }
            Meaning::Unknown => {
                let message = format!("{module}.{name} is not on the list of what a state dict needs");
                return Err(Error::new(Code::PickleGlobal, message));
            }
        };
        self.push(value)
    }

    fn reduce(&mut self) -> Result<()> {
        let (args, callee) = (self.pop()?, self.pop()?);
        let Value::Global(callee) = callee else {
            return Err(structure(format!("REDUCE of {}", callee.kind())));
        };
        let Value::Tuple(_) = args else {
            return Err(structure(format!(
                "expected a tuple of arguments for {}, found {}",
                callee.name(),
                args.kind()
            )));
        };
        let args = self.out.arena.items(args);
        if args.len() > MAX_ARGUMENTS {
            return Err(over(&format!("arguments for {}", callee.name()), MAX_ARGUMENTS));
        }
        let args = args.to_vec();
        let value = self.construct(callee, &args)?;
        self.push(value)
    }

    fn construct(&mut self, callee: Global, args: &[Value]) -> Result<Value> {
        let wrong = || structure(format!("{} does not take the arguments ({})", callee.name(), kinds(args)));
        match (callee, args) {
            (Global::OrderedDict, []) => self.mapping(Vec::new()),
            // Python 2 wrote a list of [key, value] lists.
            (Global::OrderedDict, &[list @ Value::List(_)]) => {
                let pairs = self.out.arena.items(list);
                self.may_contain(pairs.len())?;
                let mut entries = Vec::with_capacity(pairs.len());
                for &pair in pairs {
                    let &[key, value] = self.out.arena.items(pair) else { return Err(wrong()) };
                    entries.push(entry(key, value)?);
                }
                self.mapping(entries)
            }
            (Global::Set, []) => self.sequence(Vec::new()).map(Value::Set),
            (Global::Set, &[list @ Value::List(_)]) => {
                let items = self.out.arena.items(list);
                self.may_contain(items.len())?;
                let items = items.to_vec();
                self.sequence(items).map(Value::Set)
            }
            (Global::Size, &[tuple @ Value::Tuple(_)]) => Ok(tuple),
            (Global::Device, &[name @ Value::Str(_)]) => Ok(name),
            (Global::Device, &[Value::Str(name), Value::Int(index)]) => {
                let text = format!("{}:{index}", self.short_text(name)?);
                Ok(Value::Str(self.out.arena.keep_text(&text)))
            }
            (Global::RebuildTensor, _) => self.tensor(args),
            (Global::RebuildParameter, &[tensor @ Value::Tensor(_), Value::Bool(_), hooks]) => {
                self.no_hooks(hooks)?;
                Ok(tensor)
            }
            _ => Err(wrong()),
        }
    }

    /// `_rebuild_tensor_v2(storage, storage_offset, size, stride, requires_grad, backward_hooks, metadata=None)`
    fn tensor(&mut self, args: &[Value]) -> Result<Value> {
        let (args, metadata) = args.split_at(args.len().min(6));
        let &[Value::Storage(storage), Value::Int(offset), size, stride, Value::Bool(_), hooks] = args else {
            return Err(structure(format!("_rebuild_tensor_v2 does not take the arguments ({})", kinds(args))));
        };
        self.no_hooks(hooks)?;
        // The metadata says that the stored numbers are to be conjugated or negated: never written for plain tensors.
        match metadata {
            [] | [Value::None] => {}
            [dict @ Value::Dict(_)] if self.out.arena.entries(*dict).is_empty() => {}
            _ => {
                return Err(Error::new(
                    Code::PickleTensor,
                    "the tensor's metadata asks for more than its storage holds",
                ));
            }
        }
        let (shape, strides) = (self.extents("size", size)?, self.extents("stride", stride)?);
        if shape.len() != strides.len() {
            let message = format!("{} sizes, but {} strides", shape.len(), strides.len());
            return Err(Error::new(Code::PickleTensor, message));
        }
        let storage_offset = u64::try_from(offset)
            .map_err(|_| Error::new(Code::PickleTensor, format!("the storage offset {offset} is negative")))?;
        if self.out.tensors.len() == MAX_TENSORS {
            return Err(over("tensors", MAX_TENSORS));
        }
        let declared_at = self.op_offset;
        self.out.tensors.push(DeclaredTensor { storage, storage_offset, shape, strides, declared_at });
        Ok(Value::Tensor(self.out.tensors.len() as u32 - 1))
    }

    fn extents(&self, what: &str, tuple: Value) -> Result<Vec<usize>> {
        let Value::Tuple(_) = tuple else {
            return Err(structure(format!("expected a tuple as {what}, found {}", tuple.kind())));
        };
        let items = self.out.arena.items(tuple);
        if items.len() > MAX_DIMS {
            return Err(over("dimensions", MAX_DIMS));
        }
        let extent = |v: &Value| match *v {
            Value::Int(i) => {
                usize::try_from(i).map_err(|_| Error::new(Code::PickleTensor, format!("a {what} of {i} is negative")))
            }
            other => Err(structure(format!("expected numbers as {what}, found {}", other.kind()))),
        };
        items.iter().map(extent).collect()
    }

    fn no_hooks(&self, hooks: Value) -> Result<()> {
        match hooks {
            Value::None => Ok(()),
            Value::Dict(_) if self.out.arena.entries(hooks).is_empty() => Ok(()),
            _ => Err(structure("a tensor has backward hooks")),
        }
    }

    /// State of an `OrderedDict`: attributes such as the `_metadata` of a state dict.
    fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        match (self.top()?, state) {
            (Value::Dict(_), Value::Dict(_)) => {
                self.out.attributes.push(state);
                Ok(())
            }
            (object, state) => Err(structure(format!("BUILD of {} with {}", object.kind(), state.kind()))),
        }
    }

    /// `('storage', torch.FloatStorage, key, location, n_elements)`; legacy files add a sixth item, `None`.
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let Value::Tuple(_) = id else {
            return Err(structure(format!("expected a tuple as persistent id, found {}", id.kind())));
        };
        let arena = &self.out.arena;
        let items = arena.items(id);
        let (&[Value::Str(tag), Value::Global(Global::Storage(dtype)), Value::Str(key), Value::Str(_), Value::Int(n)]
        | &[
            Value::Str(tag),
            Value::Global(Global::Storage(dtype)),
            Value::Str(key),
            Value::Str(_),
            Value::Int(n),
            Value::None,
        ]) = items
        else {
            return Err(structure(format!("a persistent id of ({}) is not that of a storage", kinds(items))));
        };
        let (tag, key) = (arena.text(tag), arena.text(key));
        if key.len() > NAME_BYTES {
            return Err(over("bytes in the key of a storage", NAME_BYTES));
        }
        if tag != "storage" {
            return Err(structure("a persistent id is not that of a storage"));
        }
        let n_elements = u64::try_from(n)
            .map_err(|_| Error::new(Code::PickleStorage, format!("storage {key:?} has {n} elements")))?;
        let value = match self.storages_by_key.get(key) {
            Some(&known) => {
                let first = &self.out.storages[known as usize];
                if (first.dtype, first.n_elements) != (dtype, n_elements) {
                    let message = format!("storage {key:?} has two types or sizes");
                    return Err(Error::new(Code::PickleStorage, message));
                }
                Value::Storage(known)
            }
            None => {
                if self.out.storages.len() == MAX_TENSORS {
                    return Err(over("storages", MAX_TENSORS));
                }
                let number = self.out.storages.len() as u32;
                let (key, declared_at) = (key.to_owned(), self.op_offset);
                self.storages_by_key.insert(key.clone(), number);
                self.out.storages.push(DeclaredStorage { key, dtype, n_elements, declared_at });
                Value::Storage(number)
            }
        };
        self.push(value)
    }
}

fn refused(op: Op, why: &str) -> Error {
    Error::new(Code::PickleOpcode, format!("the opcode {} {why}", op.name()))
}

/// Kinds of arguments, for a message; what a message says is short whatever the file says.
fn kinds(values: &[Value]) -> String {
    values.iter().take(MAX_ARGUMENTS).map(|v| v.kind()).collect::<Vec<_>>().join(", ")
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|e| structure(format!("a text is not UTF-8 after {} bytes", e.valid_up_to())))
}

/// Keys and values that lie in turns.
fn pairs(flat: &[Value]) -> Result<Vec<(Value, Value)>> {
    let (pairs, rest) = flat.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(structure("a key has no value"));
    }
    pairs.iter().map(|&[key, value]| entry(key, value)).collect()
}

/// A dictionary's entry, whose key must be of a kind that Python can hash.
fn entry(key: Value, value: Value) -> Result<(Value, Value)> {
    match key {
        Value::List(_) | Value::Set(_) | Value::Dict(_) | Value::Tensor(_) | Value::Storage(_) | Value::Global(_) => {
            Err(structure(format!("a {} cannot be a key", key.kind())))
        }
        Value::Str(span) | Value::Bytes(span) if span.len() > MAX_KEY_BYTES => {
            Err(over("bytes in the key of a dict", MAX_KEY_BYTES))
        }
        _ => Ok((key, value)),
    }
}
