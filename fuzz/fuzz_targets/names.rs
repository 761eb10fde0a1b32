//! Names that become names of devices, folders and files: whatever is accepted is what it was, and leads nowhere else.
#![no_main]

use std::path::{Component, Path};

use banger_host::{Installation, Mark, StateFile};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Some(mark) = Mark::parse(text) {
        assert_eq!(mark.to_string(), text);
        assert_eq!(text.len(), 15);
        assert!(!text.contains(['/', '.', '\0']));
    }
    if let Some(installation) = Installation::parse(text) {
        assert_eq!(installation.to_string(), text);
        assert_eq!(text.len(), 4);
    }
    if let Some(file) = StateFile::parse(text) {
        assert_eq!(file.as_str(), text);
        let below = file.below(Path::new("/state"));
        assert!(below.starts_with("/state/"));
        assert!(below.components().skip(1).all(|part| matches!(part, Component::Normal(_))));
        assert_eq!(StateFile::of(Path::new("/state"), &below), Some(file));
    }
});
