//! Places in the tree, and the keys that lead to them.

use std::fmt::Write as _;

use super::{Arena, Node, Tree, Value};
use crate::format::limits::NAME_BYTES;
use crate::format::pickle::tensor::TensorRef;

/// A place in the tree: what Python would call an object.
#[derive(Clone, Copy)]
pub struct Item<'a> {
    tree: &'a Tree,
    value: Value,
}

impl<'a> Item<'a> {
    pub(in crate::format::pickle) fn new(tree: &'a Tree, value: Value) -> Self {
        Item { tree, value }
    }

    /// What Python calls the type: `dict`, `list`, `str`, `tensor`, ...
    pub fn kind(self) -> &'static str {
        self.value.kind()
    }

    /// Whether it is `None`.
    pub fn is_none(self) -> bool {
        self.value == Value::None
    }

    /// A `bool`.
    pub fn as_bool(self) -> Option<bool> {
        if let Value::Bool(b) = self.value { Some(b) } else { None }
    }

    /// An `int` that fits.
    pub fn as_i64(self) -> Option<i64> {
        if let Value::Int(i) = self.value { Some(i) } else { None }
    }

    /// A `float`.
    pub fn as_f64(self) -> Option<f64> {
        if let Value::Float(x) = self.value { Some(x) } else { None }
    }

    /// A `str`. Constants such as `torch.float32` and devices are text, too.
    pub fn as_str(self) -> Option<&'a str> {
        if let Value::Str(span) = self.value { Some(self.tree.arena.text(span)) } else { None }
    }

    /// `bytes`.
    pub fn as_bytes(self) -> Option<&'a [u8]> {
        if let Value::Bytes(span) = self.value { Some(self.tree.arena.bytes(span)) } else { None }
    }

    /// A tensor.
    pub fn as_tensor(self) -> Option<&'a TensorRef> {
        if let Value::Tensor(n) = self.value { Some(&self.tree.tensors[n as usize]) } else { None }
    }

    /// The number of items or entries; 0 for what is no container.
    pub fn len(self) -> usize {
        self.value.container().map_or(0, |n| self.tree.arena.nodes[n as usize].len())
    }

    /// Whether there are no items and no entries.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The items of a list, tuple or set, in order; nothing for anything else.
    pub fn items(self) -> impl ExactSizeIterator<Item = Item<'a>> {
        self.tree.arena.items(self.value).iter().map(move |&v| Item::new(self.tree, v))
    }

    /// Keys and values of a dictionary, in order; nothing for anything else.
    pub fn entries(self) -> impl ExactSizeIterator<Item = (Item<'a>, Item<'a>)> {
        let tree = self.tree;
        tree.arena.entries(self.value).iter().map(move |&(k, v)| (Item::new(tree, k), Item::new(tree, v)))
    }

    /// The entry of a dictionary with the key `key`.
    pub fn get(self, key: &str) -> Option<Item<'a>> {
        self.entries().find(|(k, _)| k.as_str() == Some(key)).map(|(_, v)| v)
    }

    /// Every tensor at or below this place, in order, with the keys that lead from here to it.
    ///
    /// A tensor that is referred to twice comes twice. Containers are walked without recursion.
    pub fn tensors(self) -> Tensors<'a> {
        Tensors { tree: self.tree, start: Some(self.value), open: Vec::new(), path: Vec::new() }
    }
}

impl std::fmt::Debug for Item<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.value)
    }
}

/// One step from a container to what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key<'a> {
    /// A dictionary's key that is text.
    Name(&'a str),
    /// A dictionary's key that is a number.
    Number(i64),
    /// The place in a list, tuple or set, or of an entry whose key is neither text nor number.
    Index(usize),
}

/// The step to the entry `index` of a dictionary, whose key is `key`.
pub(in crate::format::pickle) fn key_of(arena: &Arena, key: Value, index: usize) -> Key<'_> {
    match key {
        Value::Str(span) => Key::Name(arena.text(span)),
        Value::Int(i) => Key::Number(i),
        _ => Key::Index(index),
    }
}

impl Key<'_> {
    /// As Python writes the step: `["model"]`, `[0]`.
    pub(in crate::format::pickle) fn subscript(&self) -> String {
        match self {
            Key::Name(name) => format!("[{name:?}]"),
            other => format!("[{other}]"),
        }
    }
}

impl std::fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Key::Name(name) => f.write_str(name),
            Key::Number(n) => write!(f, "{n}"),
            Key::Index(i) => write!(f, "{i}"),
        }
    }
}

/// A tensor's name: the keys that lead to it, joined by dots. What is longer than a name may be ([`NAME_BYTES`]) ends in
/// dots after a few bytes more.
pub fn dotted(path: &[Key<'_>]) -> String {
    let mut name = String::new();
    for (i, key) in path.iter().enumerate() {
        if i > 0 {
            name.push('.');
        }
        // Writing to a String never fails.
        let _ = write!(name, "{key}");
        if name.len() > NAME_BYTES {
            let end = (NAME_BYTES..=name.len()).find(|&i| name.is_char_boundary(i)).unwrap_or(name.len());
            name.truncate(end);
            name.push_str("...");
            break;
        }
    }
    name
}

/// Iterator over the tensors of a subtree; see [`Item::tensors`].
pub struct Tensors<'a> {
    tree: &'a Tree,
    /// The subtree's root, until it was looked at.
    start: Option<Value>,
    /// The containers on the way to the present place, each with the index of its next item.
    open: Vec<(u32, usize)>,
    /// The keys of the items that the walk is in: one for each open container, the last one's too.
    path: Vec<Key<'a>>,
}

impl<'a> Tensors<'a> {
    /// Steps to the next tensor; [`path`](Self::path) then leads to it.
    pub(in crate::format::pickle) fn advance(&mut self) -> Option<u32> {
        match self.start.take() {
            Some(Value::Tensor(n)) => return Some(n),
            Some(value) => self.open.extend(value.container().map(|node| (node, 0))),
            None => {}
        }
        loop {
            let inner = self.open.len().checked_sub(1)?;
            self.path.truncate(inner);
            let (node, next) = &mut self.open[inner];
            let step = self.tree.step(*node, *next);
            *next += 1;
            let Some((key, value)) = step else {
                self.open.pop();
                continue;
            };
            self.path.push(key);
            match value {
                Value::Tensor(n) => return Some(n),
                other => self.open.extend(other.container().map(|node| (node, 0))),
            }
        }
    }

    /// The keys that lead to the tensor that [`advance`](Self::advance) came to.
    pub(in crate::format::pickle) fn path(&self) -> &[Key<'a>] {
        &self.path
    }
}

impl<'a> Iterator for Tensors<'a> {
    type Item = (Vec<Key<'a>>, &'a TensorRef);

    fn next(&mut self) -> Option<Self::Item> {
        let n = self.advance()?;
        Some((self.path.clone(), &self.tree.tensors[n as usize]))
    }
}

impl Tree {
    fn step(&self, node: u32, index: usize) -> Option<(Key<'_>, Value)> {
        match &self.arena.nodes[node as usize] {
            Node::Sequence(items) => Some((Key::Index(index), *items.get(index)?)),
            Node::Mapping(entries) => {
                let &(key, value) = entries.get(index)?;
                Some((key_of(&self.arena, key, index), value))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `path=number` of every tensor.
    fn walk(nodes: Vec<Node>, root: Value) -> Vec<String> {
        let tree = Tree { arena: Arena { nodes, ..Arena::default() }, root, tensors: Vec::new() };
        let mut tensors = Item::new(&tree, root).tensors();
        let mut found = Vec::new();
        while let Some(n) = tensors.advance() {
            found.push(format!("{}={n}", dotted(tensors.path())));
        }
        assert_eq!(tensors.advance(), None, "it stays at its end");
        found
    }

    #[test]
    fn tensors_come_in_order_with_the_keys_that_lead_to_them() {
        let (t, list, dict) = (Value::Tensor, Value::List, Value::Dict);
        let nodes = vec![
            Node::Sequence(vec![Value::None, t(0), list(1), list(2), dict(3), t(4), list(2)]),
            Node::Sequence(vec![]),
            Node::Sequence(vec![list(1), t(1)]),
            Node::Mapping(vec![(Value::Int(7), t(2)), (Value::None, t(3)), (Value::Int(-1), list(1))]),
        ];
        assert_eq!(walk(nodes, list(0)), ["1=0", "3.1=1", "4.7=2", "4.1=3", "5=4", "6.1=1"]);
        assert_eq!(walk(vec![], t(5)), ["=5"], "the object itself is a tensor");
        assert!(walk(vec![], Value::None).is_empty());
        assert!(walk(vec![Node::Sequence(vec![])], list(0)).is_empty());
    }
}
