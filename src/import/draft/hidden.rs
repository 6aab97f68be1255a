//! Parts of an adapter in objects of a checkpoint, which are never built.

use super::Draft;
use crate::error::{Code, Error, Result};
use crate::format::pickle::{Object, Objects};
use crate::import::mapping::{Mapped, Mapping, Reader};
use crate::import::rules::{self, Meaning};

impl Draft {
    /// # Errors
    ///
    /// [`Code::PickleUnsupported`] for an object that stands where a part of an adapter does, or has one in it: without it
    /// the adapter would be another. Those of the layout file.
    pub(super) fn refuse_hidden_parts(&self, objects: &Objects, mapping: Option<&Mapping>) -> Result<()> {
        let mut layout = Reader::of(mapping);
        for object in &objects.listed {
            let own = (&object.name, object.is_numbers);
            for (name, is_numbers) in std::iter::once(own).chain(object.tensors.iter().map(|name| (name, true))) {
                let is_part = match layout.read(name)? {
                    Some(Mapped::Ignored(_)) => false,
                    Some(Mapped::Part { .. } | Mapped::Gate { .. }) => true,
                    None => match rules::read(name) {
                        Meaning::Part { .. } => true,
                        Meaning::Scale { .. } => is_numbers,
                        Meaning::Unknown { looks_like_adapter } => looks_like_adapter && is_numbers,
                        Meaning::Ignored(_) => false,
                    },
                };
                if is_part {
                    return Err(self.in_object(object, name));
                }
            }
        }
        Ok(())
    }

    /// The refusal of what lies in an object, with the lines of Python that make plain tensors of it.
    pub(super) fn in_object(&self, object: &Object, name: &str) -> Error {
        let file = self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy();
        let message = format!(
            "expected plain tensors in dictionaries, found an object of {}, which ptplus does not build: that would run code of the file",
            object.class
        );
        let place = &object.subscripts;
        let state = if object.is_numbers && object.tensors.is_empty() {
            // It is the tensor, or one of its kin.
            let outer = place.rfind('[').map_or("", |at| &place[..at]);
            format!("{{k: torch.as_tensor(v) for k, v in checkpoint{outer}.items()}}")
        } else if object.is_mapping {
            format!("dict(checkpoint{place})")
        } else if object.class.ends_with("Namespace") {
            format!("vars(checkpoint{place})")
        } else {
            format!("checkpoint{place}.state_dict()")
        };
        let error = Error::new(Code::PickleUnsupported, message).file(&self.path);
        let error = if name.is_empty() { error } else { error.field(name) };
        error.hints([
            "save the tensors alone, in Python, if you trust the file (this runs what is in it):".to_owned(),
            format!("checkpoint = torch.load({file:?}, map_location=\"cpu\", weights_only=False)"),
            format!("torch.save({state}, \"state_dict.pt\")"),
        ])
    }
}
