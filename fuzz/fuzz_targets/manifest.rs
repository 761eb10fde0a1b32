//! Manifests, indexes and configs from a registry: understood within the bounds, or refused.
#![no_main]

use banger_registry::manifest::{Document, parse};
use banger_registry::{ImageConfig, Limits, Platform};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    match parse(bytes, &limits) {
        Ok(Document::Manifest(manifest)) => assert!(manifest.layers.len() <= limits.most_layers),
        Ok(Document::Index(index)) => drop(index.choose(&Platform::host())),
        Err(refused) => assert!(!refused.to_string().is_empty()),
    }
    if let Ok(config) = ImageConfig::parse(bytes, &limits) {
        assert!(config.diff_ids.len() <= limits.most_layers);
    }
});
