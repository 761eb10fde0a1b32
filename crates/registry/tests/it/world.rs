//! What most tests need: a store, a user without credentials, a way to pull, and what was told meanwhile.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use banger_registry::{
    Digest, Fetched, Home, LayerState, Platform, Progress, Proxies, Puller, RegistryError,
    Settings, Store,
};

pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) settings: Settings,
    pub(crate) home: Home,
    pub(crate) proxies: Proxies,
    pub(crate) platform: Platform,
    pub(crate) told: Mutex<Vec<Told>>,
}

/// A progress of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    Resolved { layers: usize, total_bytes: u64 },
    Layer { digest: Digest, done_bytes: u64, state: LayerState },
    Note(String),
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let home = Home::from_environment(|name| (name == "HOME").then(|| folder.path().into()));
        let settings = Settings {
            stall_timeout_ms: 5_000,
            connect_timeout_ms: 5_000,
            retry_pause_ms: 1,
            ..Settings::default()
        };
        Self {
            folder,
            store,
            settings,
            home,
            proxies: Proxies::default(),
            platform: "linux/amd64".parse().unwrap(),
            told: Mutex::default(),
        }
    }

    pub(crate) fn puller(&self) -> Puller {
        Puller::new(self.settings.clone(), self.home.clone(), &self.proxies).unwrap()
    }

    pub(crate) async fn pull(&self, name: &str) -> Result<Fetched, RegistryError> {
        let watch = |progress: Progress<'_>| self.tell(progress);
        let (puller, reference) = (self.puller(), name.parse().unwrap());
        let pulled = puller.pull(&reference, &self.platform, &self.store, &watch);
        let Ok(pulled) = tokio::time::timeout(Duration::from_secs(60), pulled).await else {
            panic!("the pull of {name} does not end; told: {:?}", self.told.lock().unwrap());
        };
        pulled
    }

    pub(crate) fn tell(&self, progress: Progress<'_>) {
        let told = match progress {
            Progress::Resolved { layers, total_bytes, .. } => {
                Told::Resolved { layers, total_bytes }
            }
            Progress::Layer { digest, done_bytes, state, .. } => {
                Told::Layer { digest, done_bytes, state }
            }
            Progress::Note(text) => Told::Note(text.to_owned()),
        };
        self.told.lock().unwrap().push(told);
    }

    pub(crate) fn notes(&self) -> String {
        let told = self.told.lock().unwrap();
        let notes = told.iter().filter_map(|told| match told {
            Told::Note(text) => Some(text.as_str()),
            _ => None,
        });
        notes.collect::<Vec<_>>().join("\n")
    }

    /// The state that each layer ended in.
    pub(crate) fn ends(&self, state: LayerState) -> usize {
        let told = self.told.lock().unwrap();
        told.iter()
            .filter(|it| matches!(it, Told::Layer { state: other, .. } if *other == state))
            .count()
    }

    pub(crate) fn files(&self, folder: &str) -> usize {
        std::fs::read_dir(self.store.folder().join(folder)).unwrap().count()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Every blob of it is in the store and is what it says.
#[track_caller]
pub(crate) fn assert_whole(store: &Store, fetched: &Fetched) {
    for digest in fetched.blobs() {
        let bytes = std::fs::read(store.path(digest)).unwrap();
        assert_eq!(Digest::of(&bytes), digest);
    }
    assert_eq!(Digest::of(&fetched.manifest), fetched.manifest_digest);
    for layer in &fetched.layers {
        assert_eq!(layer.path, store.path(layer.digest));
        assert_eq!(std::fs::metadata(&layer.path).unwrap().len(), layer.size_bytes);
    }
}

/// An error with its causes, as people see it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
