//! What can be said only about the whole tree: no cycle, limited depth and size, no key twice, no stray leaf.
//!
//! Afterwards every walk over the tree ends, and soon.

use std::collections::HashSet;

use super::limits::{MAX_DEPTH, MAX_EXPANDED};
use super::machine::Pickle;
use super::value::{Arena, Node, Value};
use crate::error::{Code, Error, Result};

/// Whether tensors may be below a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tensors {
    Allowed,
    Refused,
}

/// What is known about a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    No,
    /// On the way from the root to the present place: meeting it again closes a cycle.
    Open,
    Done {
        /// Containers inside one another below it, itself included.
        depth: u32,
        /// Values below it, shared ones counted as often as they are referred to.
        expanded: u64,
    },
}

/// Checks the tree below `root` and the attributes beside it. Each container is visited once.
///
/// # Errors
///
/// [`Code::PickleStructure`], [`Code::PickleLimit`], [`Code::NameDuplicate`].
pub(super) fn tree(pickle: &Pickle, root: Value) -> Result<()> {
    let mut seen = vec![Seen::No; pickle.arena.nodes.len()];
    graph(&pickle.arena, root, Tensors::Allowed, &mut seen)?;
    // Attributes are set by code and not part of the dictionary; a tensor there would be lost without a word.
    seen.fill(Seen::No);
    pickle.attributes.iter().try_for_each(|&a| graph(&pickle.arena, a, Tensors::Refused, &mut seen))
}

/// A container that the walk is in.
struct Frame {
    node: u32,
    /// How many of its values (keys and values, in turns, of a dictionary) were looked at.
    next: usize,
    depth: u32,
    expanded: u64,
}

fn graph(arena: &Arena, root: Value, tensors: Tensors, seen: &mut [Seen]) -> Result<()> {
    let mut open: Vec<Frame> = Vec::new();
    let mut value = Some(root);
    loop {
        // What the value just looked at adds to the container that it is in; `None` opens it.
        let mut finished = None;
        if let Some(v) = value {
            match v.container() {
                None => {
                    leaf(v, tensors)?;
                    finished = Some((0, 1));
                }
                Some(node) => match seen[node as usize] {
                    Seen::Open => return Err(structure("a container contains itself")),
                    Seen::Done { depth, expanded } => finished = Some((depth, expanded)),
                    Seen::No => {
                        if open.len() == MAX_DEPTH {
                            return Err(too_deep());
                        }
                        no_key_twice(arena, node)?;
                        seen[node as usize] = Seen::Open;
                        open.push(Frame { node, next: 0, depth: 1, expanded: 1 });
                    }
                },
            }
        }
        if let Some((depth, expanded)) = finished {
            if open.len() + depth as usize > MAX_DEPTH {
                return Err(too_deep());
            }
            let Some(outer) = open.last_mut() else { return Ok(()) };
            outer.depth = outer.depth.max(depth + 1);
            outer.expanded += expanded;
            if outer.expanded > MAX_EXPANDED {
                let message = format!("more than {MAX_EXPANDED} values once shared references are written out");
                return Err(Error::new(Code::PickleLimit, message));
            }
        }
        let Some(frame) = open.last_mut() else { return Ok(()) };
        value = nth(&arena.nodes[frame.node as usize], frame.next);
        frame.next += 1;
        if value.is_none() {
            let Some(Frame { node, depth, expanded, .. }) = open.pop() else { return Ok(()) };
            seen[node as usize] = Seen::Done { depth, expanded };
            // Hands the finished container to the one around it on the next turn.
            value = Some(Value::List(node));
        }
    }
}

/// The `n`th value of a container, keys and values of a dictionary in turns.
fn nth(node: &Node, n: usize) -> Option<Value> {
    match node {
        Node::Sequence(items) => items.get(n).copied(),
        Node::Mapping(entries) => entries.get(n / 2).map(|&(key, value)| if n.is_multiple_of(2) { key } else { value }),
    }
}

fn leaf(value: Value, tensors: Tensors) -> Result<()> {
    match value {
        Value::Storage(_) | Value::Global(_) => {
            Err(structure(format!("expected plain values and tensors, found {} by itself", value.kind())))
        }
        Value::Tensor(_) if tensors == Tensors::Refused => {
            Err(structure("an attribute of a dictionary or tensor holds a tensor"))
        }
        _ => Ok(()),
    }
}

/// Python keeps the last of two equal keys; a file that has both was not written by Python.
fn no_key_twice(arena: &Arena, node: u32) -> Result<()> {
    #[derive(PartialEq, Eq, Hash)]
    enum Plain<'a> {
        Name(&'a str),
        Number(i64),
    }
    let Node::Mapping(entries) = &arena.nodes[node as usize] else { return Ok(()) };
    if entries.len() < 2 {
        return Ok(());
    }
    let mut keys = HashSet::with_capacity(entries.len());
    for &(key, _) in entries {
        let plain = match key {
            Value::Str(span) => Plain::Name(arena.text(span)),
            Value::Int(i) => Plain::Number(i),
            Value::Bool(b) => Plain::Number(b.into()),
            // Other kinds lead to no tensor that anybody asks for by name.
            _ => continue,
        };
        if !keys.insert(plain) {
            let name = match key {
                Value::Str(span) => format!("{:?}", arena.text(span)),
                Value::Int(i) => i.to_string(),
                other => other.kind().to_owned(),
            };
            return Err(Error::new(Code::NameDuplicate, format!("a dictionary has the key {name} twice")));
        }
    }
    Ok(())
}

fn structure(message: impl Into<String>) -> Error {
    Error::new(Code::PickleStructure, message)
}

fn too_deep() -> Error {
    Error::new(Code::PickleLimit, format!("containers are nested more than {MAX_DEPTH} deep"))
}
