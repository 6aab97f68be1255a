//! The opcode machine: one pickle to an arena of plain values.
//!
//! It knows a stack, a memo by index and the constructors of [`super::globals`]; it executes nothing. What refers to
//! storages or needs the whole tree (bounds of tensors, cycles, depth) is checked afterwards, in [`super::check`].

mod input;
mod rebuild;

use input::Input;

use super::Container;
use super::limits::*;
use super::opcode::Op;
use super::value::{Arena, Node, Span, Value};
use crate::error::{Code, Error, Result};
use crate::tensor::DType;

/// What a pickle holds, storages not yet resolved.
#[derive(Debug, Default)]
pub(super) struct Pickle {
    pub(super) arena: Arena,
    pub(super) storages: Vec<DeclaredStorage>,
    pub(super) tensors: Vec<DeclaredTensor>,
    /// Attributes set on an `OrderedDict` (`_metadata` of a state dict) or on a tensor: plain values beside the tree.
    pub(super) attributes: Vec<Value>,
    /// Names of classes and functions that are not on the list.
    pub(super) foreign: Vec<String>,
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
    /// The storage's, unless that counts bytes.
    pub(super) dtype: DType,
    /// In elements.
    pub(super) storage_offset: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
    /// Where in the file the pickle rebuilds it.
    pub(super) declared_at: u64,
}

/// Reads the pickle that starts at `input[0]`, which is at `file_offset` in its file.
///
/// # Errors
///
/// [`Code::PickleTruncated`], [`Code::PickleLimit`], [`Code::PickleOpcode`], [`Code::PickleGlobal`],
/// [`Code::PickleStructure`], [`Code::PickleTensor`], [`Code::PickleUnsupported`].
pub(super) fn run(input: &[u8], file_offset: u64, container: Container) -> Result<(Pickle, Value)> {
    let mut m = Machine {
        input: Input::new(input),
        container,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        out: Pickle::default(),
        storages_by_key: Default::default(),
        foreign_by_name: Default::default(),
        n_contained: 0,
        n_encoded: 0,
        op_offset: file_offset,
    };
    for _ in 0..MAX_OPCODES {
        m.op_offset = file_offset + m.input.pos() as u64;
        let step = m.step().map_err(|e| e.at(m.op_offset))?;
        if let Some(root) = step {
            m.out.len_bytes = m.input.pos();
            return Ok((m.out, root));
        }
    }
    Err(Error::new(Code::PickleLimit, format!("more than {MAX_OPCODES} opcodes")).at(m.op_offset))
}

struct Machine<'a> {
    input: Input<'a>,
    container: Container,
    stack: Vec<Value>,
    /// Heights of the stack at each open `MARK`.
    marks: Vec<usize>,
    memo: Vec<Option<Value>>,
    out: Pickle,
    storages_by_key: std::collections::HashMap<String, u32>,
    foreign_by_name: std::collections::HashMap<String, u32>,
    n_contained: usize,
    /// Bytes that came of texts, which the memo may hold and name often.
    n_encoded: usize,
    op_offset: u64,
}

fn structure(message: impl Into<String>) -> Error {
    Error::new(Code::PickleStructure, message)
}

fn over(what: &str, limit: usize) -> Error {
    Error::new(Code::PickleLimit, format!("more than {limit} {what}"))
}

impl Machine<'_> {
    /// Executes one opcode; the root when it was `STOP`.
    fn step(&mut self) -> Result<Option<Value>> {
        let byte = self.input.take(1)?[0];
        let Some(op) = Op::from_byte(byte) else {
            return Err(Error::new(Code::PickleOpcode, format!("unknown opcode 0x{byte:02x}")));
        };
        if (self.input.pos() == 1) != (op == Op::Proto) {
            return Err(Error::new(
                Code::PickleOpcode,
                format!("expected the opcode PROTO first and nowhere else, found {}", op.name()),
            ));
        }
        match op {
            Op::Proto => {
                let protocol = self.input.take(1)?[0];
                if !(2..=5).contains(&protocol) {
                    return Err(Error::new(Code::PickleOpcode, format!("expected protocol 2 to 5, found {protocol}")));
                }
            }
            Op::Frame => {
                let len = self.input.length(8)?;
                self.input.start_frame(len)?;
            }
            Op::Stop => return self.stop().map(Some),

            Op::None => self.push(Value::None)?,
            Op::NewTrue => self.push(Value::Bool(true))?,
            Op::NewFalse => self.push(Value::Bool(false))?,
            Op::BinInt => {
                let i = i32::from_le_bytes(self.input.array()?);
                self.push(Value::Int(i.into()))?;
            }
            Op::BinInt1 => {
                let [i] = self.input.array()?;
                self.push(Value::Int(i.into()))?;
            }
            Op::BinInt2 => {
                let i = u16::from_le_bytes(self.input.array()?);
                self.push(Value::Int(i.into()))?;
            }
            Op::Long1 => self.long(1)?,
            Op::Long4 => self.long(4)?,
            Op::BinFloat => {
                let x = f64::from_be_bytes(self.input.array()?);
                self.push(Value::Float(x))?;
            }

            // A `str` of Python 2 is text, too; Python 3 decodes it as UTF-8 when it reads a checkpoint.
            Op::ShortBinUnicode | Op::ShortBinString => self.text(1)?,
            Op::BinUnicode | Op::BinString => self.text(4)?,
            Op::BinUnicode8 => self.text(8)?,
            Op::ShortBinBytes => self.bytes(1)?,
            Op::BinBytes => self.bytes(4)?,
            Op::BinBytes8 | Op::ByteArray8 => self.bytes(8)?,

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
                let v = self.sequence(items).map(Value::FrozenSet)?;
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
                let [i] = self.input.array()?;
                self.put(i.into())?;
            }
            Op::LongBinPut => {
                let i = self.input.length(4)?;
                self.put(i)?;
            }
            Op::Memoize => self.put(self.memo.len())?,
            Op::BinGet => {
                let [i] = self.input.array()?;
                self.get(i.into())?;
            }
            Op::LongBinGet => {
                let i = self.input.length(4)?;
                self.get(i)?;
            }

            Op::Global => {
                let (module, name) = (self.input.line()?, self.input.line()?);
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

            Op::NewObj => self.new_object(op, false)?,
            Op::NewObjEx => self.new_object(op, true)?,

            // Text forms of protocols 0 and 1, registered extensions and buffers outside the file.
            Op::Float | Op::Int | Op::Long | Op::String | Op::Unicode | Op::PersId | Op::Get | Op::Put => {
                return Err(refused(op, "belongs to protocols 0 and 1"));
            }
            Op::Inst | Op::Obj => return Err(refused(op, "makes an object of a class")),
            Op::Ext1 | Op::Ext2 | Op::Ext4 => return Err(refused(op, "names code by a number")),
            Op::NextBuffer | Op::ReadOnlyBuffer => return Err(refused(op, "needs a buffer outside the file")),
        }
        Ok(None)
    }

    fn stop(&mut self) -> Result<Value> {
        let root = self.pop()?;
        if self.input.in_frame() {
            return Err(structure("STOP inside a frame"));
        }
        if !self.stack.is_empty() || !self.marks.is_empty() {
            return Err(structure(format!("{} values are left at STOP", self.stack.len())));
        }
        Ok(root)
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
        let bytes = self.input.counted(width)?;
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
        let text = utf8(self.input.counted(width)?)?;
        let span = self.out.arena.keep_text(text);
        self.push(Value::Str(span))
    }

    fn bytes(&mut self, width: usize) -> Result<()> {
        let bytes = self.input.counted(width)?;
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
            Value::Object(n) => self.append_to(n, new),
            other => return Err(structure(format!("{} on {}", op.name(), other.kind()))),
        }
        Ok(())
    }

    fn append_to(&mut self, node: u32, new: Vec<Value>) {
        match &mut self.out.arena.nodes[node as usize] {
            Node::Sequence(items) => items.extend(new),
            Node::Mapping(_) => unreachable!("lists, sets and objects are sequences"),
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
            Value::Object(n) => self.append_to(n, flat.to_vec()),
            other => return Err(structure(format!("expected a dict to insert into, found {}", other.kind()))),
        }
        Ok(())
    }
}

fn refused(op: Op, why: &str) -> Error {
    Error::new(Code::PickleOpcode, format!("the opcode {} {why}", op.name()))
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
