//! The runner against PyTorch's stored answers.
#![cfg(feature = "runner")]

mod common;

use common::{Collect, MODELS, Probe, adapter, max_difference, model};
use ptplus::base::BaseModel;
use ptplus::runner::{Device, Lane, StreamOptions, stream};

/// Adapted lane first, plain base second.
fn run(base: &BaseModel, adapter: &ptplus::adapter::Adapter, probe: &Probe) -> Collect {
    let mut sink = Collect::default();
    let options = StreamOptions { positions: probe.positions(), device: Device::cpu() };
    let lanes = [Lane { adapters: vec![(adapter, 1.0)] }, Lane::default()];
    stream(base, &probe.input_ids(), &lanes, &options, &mut sink).unwrap();
    sink
}

#[test]
fn every_fixture_gives_pytorchs_logits_queries_and_terms_from_both_dialects() {
    let mut failures = Vec::new();
    for name in MODELS {
        let folder = model(name);
        let probe = Probe::open(&folder.join("probe.safetensors"));
        let adapter = adapter(&folder.join("adapter"));
        for file in ["base", "base.gguf"] {
            let base = BaseModel::open(&folder.join(file)).unwrap();
            let found = run(&base, &adapter, &probe);
            let mut check = |what: String, found: &[f32], limit: f64| {
                let difference = max_difference(found, &probe.get(&what).unwrap().1);
                println!("{name}/{file} {what}: {difference:.1e}");
                if difference > limit {
                    failures.push(format!("{name}/{file} {what}: {difference:.1e} > {limit:.0e}"));
                }
            };
            check("logits".into(), &found.logits[0], 2e-4);
            check("base_logits".into(), &found.logits[1], 2e-4);
            assert_eq!(found.layers.len(), adapter.layers.len(), "only adapted layers of the adapted lane");
            for ((_, layer), (q, term)) in &found.layers {
                check(format!("q.{layer}"), q, 1e-4);
                check(format!("term.{layer}"), term, 1e-4);
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
