//! The canonical layout: `layers.{i}.memory`, `.feature.weight`, `.feature.bias`, `.normalizer`, all `[H', ...]`.

use std::path::Path;

use super::assemble::{self, Pieces};
use super::ledger::{Entry, Fate, Ledger};
use super::source::{CONFIG_FILE, TensorSource};
use super::stated::Stated;
use super::{Imported, Origin};
use crate::adapter::{Adapter, Role, RowOrder};
use crate::base::BaseModel;
use crate::error::{Code, Error, Result};
use crate::finding::Finding;

/// `layers.{i}.{role}`, with a plain decimal layer number.
fn parse_name(name: &str) -> Option<(usize, Role)> {
    let (number, role) = name.strip_prefix("layers.")?.split_once('.')?;
    let layer: usize = number.parse().ok()?;
    (layer.to_string() == number).then_some((layer, Role::parse(role)?))
}

pub(super) fn import(path: &Path, source: TensorSource, base: Option<&BaseModel>) -> Result<Imported> {
    let Some((config_path, config)) = source.config else {
        return Err(Error::new(
            Code::ConventionOpen,
            format!("expected {CONFIG_FILE} beside the tensors, found none: the conventions are stated nowhere"),
        )
        .file(path));
    };
    let config_digest_text = crate::digest::sorted_compact_json(&config);
    let stated = Stated::from_json(config).map_err(|e| e.file(&config_path))?;
    let mut findings = Vec::new();
    let mut pieces = Pieces::new();
    let mut ledger = Ledger::default();
    for t in source.tensors {
        let fate = match parse_name(&t.name) {
            Some((layer, role)) => {
                pieces.insert((layer, role), t.tensor.clone());
                Fate::Consumed { layer, role }
            }
            None => {
                findings.push(Finding::new(
                    Code::AdapterLeftOver,
                    &t.name,
                    "only tensors of the canonical layout",
                    "a tensor that belongs to no part of the adapter",
                ));
                Fate::LeftOver
            }
        };
        ledger.entries.push(Entry {
            name: t.name,
            dtype: t.tensor.stored_dtype(),
            shape: t.tensor.shape().to_vec(),
            tensor: t.tensor,
            fate,
        });
    }
    if pieces.is_empty() {
        return Err(Error::new(
            Code::AdapterKind,
            "expected tensors of a Prefix-Tuning+ adapter (layers.{i}.memory), found none",
        )
        .file(path));
    }
    let layers = assemble::layers(pieces, &mut findings);
    let config = assemble::config(stated, &layers, base).map_err(|e| e.file(&config_path))?;
    assemble::check_stated_layers(
        config.layers_to_transform.as_ref(),
        config.geometry.n_layers,
        &layers,
        &mut findings,
    );
    Ok(Imported {
        adapter: Adapter { config, layers },
        ledger,
        findings,
        origin: Origin {
            path: path.to_owned(),
            files: source.files,
            layout: "canonical safetensors",
            gguf_architecture: None,
            row_order: RowOrder::Neox,
            recorded_dtypes: Default::default(),
            recorded_source_sha256: None,
            config_digest_text,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_names_are_canonical() {
        assert_eq!(parse_name("layers.0.memory"), Some((0, Role::Memory)));
        assert_eq!(parse_name("layers.12.feature.weight"), Some((12, Role::FeatureWeight)));
        for name in [
            "layers.00.memory",
            "layers.+1.memory",
            "layers.1.memory.",
            "layers.1",
            "memory",
            "model.layers.1.memory",
            "layers.99999999999999999999.memory",
        ] {
            assert_eq!(parse_name(name), None, "{name}");
        }
    }
}
