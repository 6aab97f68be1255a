//! What the globals on the allow-list do: `REDUCE`, `BUILD` and `BINPERSID`, checked argument by argument.

use super::{DeclaredStorage, DeclaredTensor, Machine, entry, over, refused, structure};
use crate::error::{Code, Error, Result};
use crate::format::limits::NAME_BYTES;
use crate::format::names::shorten;
use crate::format::pickle::Container;
use crate::format::pickle::globals::{Global, Meaning, dtype_of, resolve};
use crate::format::pickle::limits::*;
use crate::format::pickle::opcode::Op;
use crate::format::pickle::value::Value;
use crate::tensor::DType;

impl Machine<'_> {
    pub(super) fn global(&mut self, module: &str, name: &str) -> Result<()> {
        let value = match resolve(module, name) {
            Meaning::Global(global) => Value::Global(global),
            Meaning::Constant => Value::Str(self.out.arena.keep_text(&format!("{module}.{name}"))),
            Meaning::UnreadStorage => {
                let message = format!("elements of {module}.{name} are of no type that ptplus reads");
                return Err(Error::new(Code::PickleUnsupported, message));
            }
            Meaning::Foreign => self.foreign(format!("{module}.{name}"))?,
            Meaning::Refused => {
                let message = format!("{module}.{name} is no name of what a checkpoint may hold");
                return Err(Error::new(Code::PickleGlobal, message));
            }
        };
        self.push(value)
    }

    /// The number of a name that is not on the list.
    fn foreign(&mut self, name: String) -> Result<Value> {
        if let Some(&known) = self.foreign_by_name.get(&name) {
            return Ok(Value::Foreign(known));
        }
        if self.out.foreign.len() == MAX_FOREIGN {
            return Err(over("names of classes and functions", MAX_FOREIGN));
        }
        let number = self.out.foreign.len() as u32;
        self.out.foreign.push(name.clone());
        self.foreign_by_name.insert(name, number);
        Ok(Value::Foreign(number))
    }

    pub(super) fn reduce(&mut self) -> Result<()> {
        let (args, callee) = (self.pop()?, self.pop()?);
        let value = self.call(callee, args)?;
        self.push(value)
    }

    /// `class.__new__(class, *args)`, with keyword arguments or without.
    pub(super) fn new_object(&mut self, op: Op, has_keywords: bool) -> Result<()> {
        let keywords = if has_keywords { Some(self.pop()?) } else { None };
        let (args, class) = (self.pop()?, self.pop()?);
        let value = match (class, keywords) {
            (Value::Foreign(_) | Value::Global(Global::Parameter), None) => self.call(class, args)?,
            (Value::Foreign(_), Some(keywords)) => self.object(vec![class, args, keywords])?,
            _ => return Err(refused(op, &format!("makes an object of {}", class.kind()))),
        };
        self.push(value)
    }

    /// What calling `callee` stands for; nothing is called.
    fn call(&mut self, callee: Value, args: Value) -> Result<Value> {
        let Value::Tuple(_) = args else {
            return Err(structure(format!(
                "expected a tuple of arguments for {}, found {}",
                callee.kind(),
                args.kind()
            )));
        };
        let callee = match callee {
            Value::Global(callee) => callee,
            _ if callee.is_opaque() => return self.object(vec![callee, args]),
            other => return Err(structure(format!("REDUCE of {}", other.kind()))),
        };
        let items = self.out.arena.items(args);
        if items.len() > MAX_ARGUMENTS {
            return Err(over(&format!("arguments for {}", callee.name()), MAX_ARGUMENTS));
        }
        let items = items.to_vec();
        match self.construct(callee, &items) {
            // A tensor of a class that is not read, and the like.
            Err(e) if e.code() == Code::PickleStructure && items.iter().any(|v| v.is_opaque()) => {
                self.object(vec![Value::Global(callee), args])
            }
            made => made,
        }
    }

    /// What is not read, with everything that belongs to it.
    fn object(&mut self, parts: Vec<Value>) -> Result<Value> {
        self.sequence(parts).map(Value::Object)
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
            (Global::DefaultDict, [] | [_]) => self.mapping(Vec::new()),
            (Global::DefaultDict, &[_, dict @ Value::Dict(_)]) => {
                let entries = self.out.arena.entries(dict);
                self.may_contain(entries.len())?;
                let entries = entries.to_vec();
                self.mapping(entries)
            }
            (Global::Encode, &[Value::Str(text), Value::Str(codec)]) => {
                self.n_encoded += text.len();
                if self.n_encoded > MAX_PICKLE_BYTES {
                    return Err(over("bytes of texts", MAX_PICKLE_BYTES));
                }
                let arena = &mut self.out.arena;
                if !matches!(arena.text(codec), "latin1" | "latin-1") {
                    return Err(wrong());
                }
                let bytes = arena.text(text).chars().map(|c| u8::try_from(u32::from(c)));
                let bytes = bytes.collect::<Result<Vec<u8>, _>>().map_err(|_| wrong())?;
                Ok(Value::Bytes(arena.keep_bytes(&bytes)))
            }
            (Global::Set | Global::FrozenSet, [] | [Value::List(_)]) => {
                let items = args.first().map_or(&[][..], |list| self.out.arena.items(*list));
                self.may_contain(items.len())?;
                let items = items.to_vec();
                self.sequence(items).map(if callee == Global::Set { Value::Set } else { Value::FrozenSet })
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
            (Global::Parameter, &[tensor @ Value::Tensor(_)] | &[tensor @ Value::Tensor(_), Value::Bool(_)]) => {
                Ok(tensor)
            }
            (Global::RebuildTypedTensor, _) => self.typed_tensor(args),
            (Global::RebuildParameterWithState, &[tensor @ Value::Tensor(_), Value::Bool(_), hooks, state]) => {
                self.no_hooks(hooks)?;
                self.attributes(state)?;
                Ok(tensor)
            }
            // (function, class, its arguments, attributes)
            (
                Global::RebuildFromType,
                &[Value::Global(function), Value::Global(Global::Tensor), inner @ Value::Tuple(_), state],
            ) => {
                self.attributes(state)?;
                let inner = self.out.arena.items(inner);
                if inner.len() > MAX_ARGUMENTS {
                    return Err(wrong());
                }
                let inner = inner.to_vec();
                match function {
                    Global::RebuildTensor => self.tensor(&inner),
                    Global::RebuildTypedTensor => self.typed_tensor(&inner),
                    _ => Err(wrong()),
                }
            }
            _ => Err(wrong()),
        }
    }

    /// What was set on a tensor in Python, a dictionary, or one beside another for slots: plain values that are no part of
    /// it.
    fn attributes(&mut self, state: Value) -> Result<()> {
        match state {
            Value::Dict(_) => self.out.attributes.push(state),
            Value::Tuple(_) => {
                let parts = self.out.arena.items(state);
                if parts.len() != 2 || !parts.iter().all(|p| matches!(p, Value::None | Value::Dict(_))) {
                    return Err(structure("a tensor has a state that is no dictionary of attributes"));
                }
                self.out.attributes.push(state);
            }
            other => return Err(structure(format!("expected a dictionary of attributes, found {}", other.kind()))),
        }
        Ok(())
    }

    /// `_rebuild_tensor_v3(storage, storage_offset, size, stride, requires_grad, backward_hooks, dtype, metadata=None)`,
    /// of which the storage counts bytes.
    fn typed_tensor(&mut self, args: &[Value]) -> Result<Value> {
        let [rest @ .., Value::Str(name)] = args.get(..7).unwrap_or_default() else {
            return Err(structure(format!("_rebuild_tensor_v3 does not take the arguments ({})", kinds(args))));
        };
        let name = self.out.arena.text(*name);
        let Some(dtype) = dtype_of(name) else {
            let message = format!("elements of {} are of no type that ptplus reads", shorten(name));
            return Err(Error::new(Code::PickleUnsupported, message));
        };
        self.view(&[rest, &args[7..]].concat(), Some(dtype))
    }

    /// `_rebuild_tensor_v2(storage, storage_offset, size, stride, requires_grad, backward_hooks, metadata=None)`
    fn tensor(&mut self, args: &[Value]) -> Result<Value> {
        self.view(args, None)
    }

    /// A tensor of the storage's type, or of `dtype` where the storage counts bytes.
    fn view(&mut self, args: &[Value], dtype: Option<DType>) -> Result<Value> {
        let (args, metadata) = args.split_at(args.len().min(6));
        let &[Value::Storage(storage), Value::Int(offset), size, stride, Value::Bool(trained), hooks] = args else {
            return Err(structure(format!("a tensor is not rebuilt from the arguments ({})", kinds(args))));
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
        let stored = self.out.storages[storage as usize].dtype;
        if dtype.is_some() && stored != DType::U8 {
            return Err(structure(format!("expected a storage of bytes, found one of {stored}")));
        }
        let dtype = dtype.unwrap_or(stored);
        if trained && dtype.is_countable() {
            return Err(Error::new(Code::PickleTensor, format!("a tensor of {dtype} cannot require a gradient")));
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
        self.out.tensors.push(DeclaredTensor { storage, dtype, storage_offset, shape, strides, declared_at });
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

    /// State of an `OrderedDict`: attributes such as the `_metadata` of a state dict. Of an object: a part of it.
    pub(super) fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        match (self.top()?, state) {
            (Value::Object(object), state) => {
                self.count_contained(1)?;
                self.append_to(object, vec![state]);
                Ok(())
            }
            (Value::Dict(_), Value::Dict(_)) => {
                self.out.attributes.push(state);
                Ok(())
            }
            (object, state) => Err(structure(format!("BUILD of {} with {}", object.kind(), state.kind()))),
        }
    }

    /// `('storage', torch.FloatStorage, key, location, n_elements)`; in legacy files a sixth item says of what
    /// other storage this one is a view, in every version since 0.4: `None`.
    pub(super) fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let Value::Tuple(_) = id else {
            return Err(structure(format!("expected a tuple as persistent id, found {}", id.kind())));
        };
        let arena = &self.out.arena;
        let items = arena.items(id);
        let wrong = || structure(format!("a persistent id of ({}) is not that of a storage", kinds(items)));
        let items = match (self.container, items) {
            (Container::Zip, items) => items,
            (Container::Legacy, [items @ .., Value::None]) => items,
            (Container::Legacy, _) => return Err(wrong()),
        };
        let &[Value::Str(tag), Value::Global(Global::Storage(dtype)), Value::Str(key), Value::Str(_), Value::Int(n)] =
            items
        else {
            return Err(wrong());
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

/// Kinds of arguments, for a message; what a message says is short whatever the file says.
fn kinds(values: &[Value]) -> String {
    values.iter().take(MAX_ARGUMENTS).map(|v| v.kind()).collect::<Vec<_>>().join(", ")
}
