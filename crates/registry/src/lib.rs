//! Images from elsewhere: by name from a registry, from an OCI layout, or from what `docker save` writes, into a store of
//! blobs that are named by their digests. Nothing is unpacked here: what comes out is the image's config and the files
//! of its layers, verified in size and digest.
//!
//! All that comes from outside is checked against limits before it is kept. A download that was cut, by the network or
//! by `kill -9`, goes on where it was. Nothing is recorded here: who called records which blobs are needed, and tells
//! [`blobs::Store::gc`].

mod archive;
pub mod blobs;
mod client;
pub mod credentials;
mod digest;
mod docker_archive;
pub mod download;
mod error;
mod fetched;
mod layout;
pub mod local;
mod locks;
pub mod manifest;
mod programs;
pub mod pull;
pub mod reference;
pub mod settings;
mod transport;

#[cfg(test)]
mod hostile;

pub use blobs::{Blob, Damage, Freed, Lease, Store, StoreError};
pub use credentials::{CredentialError, Home};
pub use digest::{Digest, DigestError};
pub use error::{LocalError, RegistryError, RequestError, Trouble};
pub use fetched::{Compression, Fetched, Layer, LayerState, Progress, Watch};
pub use manifest::{ImageConfig, ManifestError, Platform};
pub use programs::HelperError;
pub use pull::Puller;
pub use reference::{Reference, ReferenceError};
pub use settings::{Limits, Proxies, Settings};
