//! Objects of classes that are not read: where they stand in the tree, and which tensors are hidden in them.
//!
//! They are no part of the tree, and may refer to each other in circles: each place is walked once, without recursion.

use super::limits::MAX_HIDDEN_BYTES;
use super::machine::Pickle;
use super::value::{Arena, Key, Node, Value, dotted, key_of};
use crate::error::{Code, Error, Result};

/// An object of a class that is not read, or the class itself, in a place of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// The keys that lead to it, joined by dots; empty for what was saved by itself.
    pub name: String,
    /// The same as Python writes it: `["model"][0]`.
    pub subscripts: String,
    /// The class, or the function that makes it.
    pub class: String,
    /// Whether it has entries, as a dictionary of a class of somebody's.
    pub is_mapping: bool,
    /// Names of the tensors in it.
    pub tensors: Vec<String>,
    /// Whether it is numbers itself: a NumPy array, a sparse tensor, a tensor of another class.
    pub is_numbers: bool,
}

/// What is known of all objects. Of those that hold no numbers there can be very many.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    /// How many there are.
    pub n: usize,
    /// Some of their classes, each once.
    pub classes: Vec<String>,
    /// Those that hold numbers, and the first others.
    pub listed: Vec<Object>,
}

impl Objects {
    /// Adds those of another shard.
    pub fn extend(&mut self, others: &Objects) {
        self.n += others.n;
        for class in &others.classes {
            if self.classes.len() < SHOWN && !self.classes.contains(class) {
                self.classes.push(class.clone());
            }
        }
        self.listed.extend(others.listed.iter().cloned());
    }
}

/// Classes and objects that are listed though they hold no numbers.
const SHOWN: usize = 64;

/// Every object below `root`.
///
/// # Errors
///
/// [`Code::PickleLimit`]; [`Code::PickleUnsupported`] for numbers in an attribute, which would be lost without a word.
pub(super) fn of(pickle: &Pickle, root: Value) -> Result<Objects> {
    let mut seen = vec![false; pickle.arena.nodes.len()];
    let mut bytes_left = MAX_HIDDEN_BYTES;
    let out = below(pickle, root, &mut seen, &mut bytes_left)?;
    for &attributes in &pickle.attributes {
        let found = below(pickle, attributes, &mut seen, &mut bytes_left)?;
        if let Some(object) = found.listed.iter().find(|o| o.holds_numbers()) {
            let message =
                format!("an attribute of a dictionary or tensor is an object of {} with tensors", object.class);
            return Err(Error::new(Code::PickleUnsupported, message));
        }
    }
    Ok(out)
}

impl Object {
    /// Whether it is or has numbers, which could be an adapter's.
    pub fn holds_numbers(&self) -> bool {
        self.is_numbers || !self.tensors.is_empty()
    }
}

fn below(pickle: &Pickle, root: Value, seen: &mut [bool], bytes_left: &mut usize) -> Result<Objects> {
    let mut out = Objects::default();
    let mut path = Vec::new();
    // The tree was checked: it ends, and soon. What is shared in it is looked at once.
    let mut open: Vec<(u32, usize)> = Vec::new();
    let mut next = Some(root);
    loop {
        match next.take() {
            Some(v) if v.is_opaque() => {
                let object = look_into(pickle, v, &path, seen, bytes_left)?;
                out.n += 1;
                if out.classes.len() < SHOWN && !out.classes.contains(&object.class) {
                    out.classes.push(object.class.clone());
                }
                if object.holds_numbers() || out.listed.len() < SHOWN {
                    out.listed.push(object);
                }
            }
            Some(v) => {
                open.extend(v.container().filter(|&n| !std::mem::replace(&mut seen[n as usize], true)).map(|n| (n, 0)))
            }
            None => {}
        }
        let Some(inner) = open.len().checked_sub(1) else { return Ok(out) };
        path.truncate(inner);
        let (node, i) = &mut open[inner];
        match child(&pickle.arena, *node, *i) {
            Some((key, value)) => {
                *i += 1;
                path.push(key);
                next = Some(value);
            }
            None => drop(open.pop()),
        }
    }
}

/// An object and everything in it. Numbers of its parts (arguments, state) are no keys of anybody's.
fn look_into<'a>(
    pickle: &'a Pickle,
    value: Value,
    place: &[Key<'a>],
    seen: &mut [bool],
    bytes_left: &mut usize,
) -> Result<Object> {
    let class = class_of(pickle, value);
    let mut object = Object {
        name: dotted(place),
        subscripts: place.iter().map(Key::subscript).collect(),
        is_numbers: is_numbers(&class),
        is_mapping: has_entries(&pickle.arena, value),
        class,
        tensors: Vec::new(),
    };
    let mut path = place.to_vec();
    // Each with the length of the path to it.
    let mut open: Vec<(u32, usize, usize)> = Vec::new();
    let mut next = Some(value);
    loop {
        match next.take() {
            Some(Value::Tensor(_)) => {
                let name = dotted(&path);
                *bytes_left = bytes_left.checked_sub(name.len() + size_of::<String>()).ok_or_else(|| {
                    let message = format!("the names of tensors in objects take more than {MAX_HIDDEN_BYTES} bytes");
                    Error::new(Code::PickleLimit, message)
                })?;
                object.tensors.push(name);
            }
            Some(Value::Storage(_)) => object.is_numbers = true,
            Some(v @ Value::Foreign(_)) => object.is_numbers |= is_numbers(&class_of(pickle, v)),
            Some(v) => {
                let node = if let Value::Object(n) = v { Some(n) } else { v.container() };
                let new = node.filter(|&n| !std::mem::replace(&mut seen[n as usize], true));
                open.extend(new.map(|n| (n, 0, path.len())));
            }
            None => {}
        }
        let Some((node, i, depth)) = open.last_mut() else { return Ok(object) };
        path.truncate(*depth);
        match child(&pickle.arena, *node, *i) {
            Some((key, value)) => {
                *i += 1;
                // Of a sequence the number says nothing here, and in a name it would count layers.
                path.extend((!matches!(key, Key::Index(_))).then_some(key));
                next = Some(value);
            }
            None => drop(open.pop()),
        }
    }
}

/// Beside the class and its arguments, entries come in turns of key and value.
fn has_entries(arena: &Arena, value: Value) -> bool {
    let Value::Object(n) = value else { return false };
    matches!(&arena.nodes[n as usize], Node::Sequence(parts) if parts.len() > 3 && matches!(parts[2], Value::Str(_)))
}

/// Arrays are rebuilt by functions of these names, and tensors of all kinds from storages.
fn is_numbers(class: &str) -> bool {
    (class.starts_with("numpy.") && (class.ends_with("_reconstruct") || class.ends_with("_frombuffer")))
        || class.starts_with("jax.")
        || class.starts_with("jaxlib.")
        || class.starts_with("tensorflow.")
}

/// The name of what makes the object: the first part of its node, down to a name.
fn class_of(pickle: &Pickle, value: Value) -> String {
    let mut value = value;
    // What makes it is older than it, so this ends.
    loop {
        match value {
            Value::Foreign(n) => return pickle.foreign[n as usize].clone(),
            Value::Global(global) => return global.name().to_owned(),
            Value::Object(n) => match &pickle.arena.nodes[n as usize] {
                Node::Sequence(parts) => match parts.first() {
                    Some(&first) => value = first,
                    None => return "an unknown class".to_owned(),
                },
                Node::Mapping(_) => return "an unknown class".to_owned(),
            },
            other => return other.kind().to_owned(),
        }
    }
}

fn child(arena: &Arena, node: u32, i: usize) -> Option<(Key<'_>, Value)> {
    match &arena.nodes[node as usize] {
        Node::Sequence(items) => Some((Key::Index(i), *items.get(i)?)),
        Node::Mapping(entries) => entries.get(i).map(|&(key, value)| (key_of(arena, key, i), value)),
    }
}
