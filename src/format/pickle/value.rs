//! The pickled object as a tree of plain values, in an arena.
//!
//! Containers are numbered and refer to each other by number, so that no depth of nesting costs a recursion (not even
//! in `drop`) and a container that is referred to twice is stored once.

mod item;

use super::globals::Global;
use super::tensor::TensorRef;

pub(super) use item::key_of;
pub use item::{Item, Key, Tensors, dotted};

/// A value; containers, texts and tensors are numbers of places in the tree.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// Little-endian two's complement, longer than 8 bytes.
    BigInt(Span),
    Float(f64),
    Str(Span),
    Bytes(Span),
    List(u32),
    Tuple(u32),
    Set(u32),
    /// Like a set; can be a key.
    FrozenSet(u32),
    Dict(u32),
    Tensor(u32),
    /// Only while the pickle is being read: what a tensor is rebuilt from.
    Storage(u32),
    /// Only while the pickle is being read.
    Global(Global),
    /// A class or function that is not on the list: a number of its name.
    Foreign(u32),
    /// What such a one makes: the node that has it, its arguments and its state, which is no container of the tree.
    Object(u32),
}

impl Value {
    /// What Python calls the type.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool(_) => "bool",
            Value::Int(_) | Value::BigInt(_) => "int",
            Value::Float(_) => "float",
            Value::Str(_) => "str",
            Value::Bytes(_) => "bytes",
            Value::List(_) => "list",
            Value::Tuple(_) => "tuple",
            Value::Set(_) => "set",
            Value::FrozenSet(_) => "frozenset",
            Value::Dict(_) => "dict",
            Value::Tensor(_) => "tensor",
            Value::Storage(_) => "storage",
            Value::Global(g) => g.name(),
            Value::Foreign(_) => "a class or function that is not read",
            Value::Object(_) => "an object that is not read",
        }
    }

    /// Whether it is of code that is not read.
    pub(super) fn is_opaque(self) -> bool {
        matches!(self, Value::Foreign(_) | Value::Object(_))
    }

    /// The number of the container, if it is one.
    pub(super) fn container(self) -> Option<u32> {
        match self {
            Value::List(n) | Value::Tuple(n) | Value::Set(n) | Value::FrozenSet(n) | Value::Dict(n) => Some(n),
            _ => None,
        }
    }
}

/// A range of the tree's text or bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    start: u32,
    len: u32,
}

impl Span {
    pub(super) fn len(self) -> usize {
        self.len as usize
    }
}

/// The contents of a list, tuple or set, or of a dictionary in its order.
#[derive(Debug)]
pub(super) enum Node {
    Sequence(Vec<Value>),
    Mapping(Vec<(Value, Value)>),
}

impl Node {
    pub(super) fn len(&self) -> usize {
        match self {
            Node::Sequence(items) => items.len(),
            Node::Mapping(entries) => entries.len(),
        }
    }
}

/// Where the values live.
#[derive(Debug, Default)]
pub(super) struct Arena {
    pub(super) nodes: Vec<Node>,
    text: String,
    blob: Vec<u8>,
}

impl Arena {
    /// Keeps `text`; all texts together are shorter than the pickle, whose size is limited to far below 4 GiB.
    pub(super) fn keep_text(&mut self, text: &str) -> Span {
        let start = self.text.len() as u32;
        self.text.push_str(text);
        Span { start, len: text.len() as u32 }
    }

    /// Keeps `bytes`, likewise.
    pub(super) fn keep_bytes(&mut self, bytes: &[u8]) -> Span {
        let start = self.blob.len() as u32;
        self.blob.extend_from_slice(bytes);
        Span { start, len: bytes.len() as u32 }
    }

    pub(super) fn text(&self, span: Span) -> &str {
        &self.text[span.start as usize..][..span.len as usize]
    }

    pub(super) fn bytes(&self, span: Span) -> &[u8] {
        &self.blob[span.start as usize..][..span.len as usize]
    }

    /// The items of a list, tuple or set; empty for anything else.
    pub(super) fn items(&self, value: Value) -> &[Value] {
        match value.container().map(|n| &self.nodes[n as usize]) {
            Some(Node::Sequence(items)) => items,
            _ => &[],
        }
    }

    /// The entries of a dictionary; empty for anything else.
    pub(super) fn entries(&self, value: Value) -> &[(Value, Value)] {
        match value.container().map(|n| &self.nodes[n as usize]) {
            Some(Node::Mapping(entries)) => entries,
            _ => &[],
        }
    }
}

/// The finished tree: no cycle, limited depth and size, and every leaf a plain value or a tensor.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) arena: Arena,
    pub(super) root: Value,
    pub(super) tensors: Vec<TensorRef>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_small() {
        assert_eq!(size_of::<Value>(), 16, "limits.rs counts on it");
        assert_eq!(size_of::<Node>(), 32, "limits.rs counts on it");
    }
}
