//! OCI layouts, as folders or in archives: `index.json` lists what there is, `blobs/sha256` holds it (OCI image
//! specification 1.1, "Image Layout").

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::{LocalError, RegistryError};
use crate::fetched::Fetched;
use crate::local::{Import, Parts, Source, shown};
use crate::manifest::{self, Descriptor, Document, Index, Listed, Manifest, ManifestError};
use crate::reference::Reference;

/// The file that says that it is a layout.
pub(crate) const MARK: &str = "oci-layout";
const INDEX: &str = "index.json";
/// A tag, or a whole name.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// A whole name: containerd's and Docker's.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// As in a registry: an index in an index is the most that is followed.
const DEEPEST_INDEX: usize = 2;

#[derive(Deserialize)]
struct Mark {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

pub(crate) fn import(import: Import<'_>, parts: &dyn Parts) -> Result<Fetched, RegistryError> {
    let limit = import.limits.largest_manifest_bytes;
    let read = |name| parts.read_part(name, limit).map_err(|cause| import.failed(cause));
    let mark: Mark = serde_json::from_slice(&read(MARK)?).map_err(|error| {
        import.failed(LocalError::Json { what: MARK.into(), why: shown(&error.to_string()) })
    })?;
    if mark.version != "1.0.0" {
        return Err(import.failed(LocalError::Version(shown(&mark.version))));
    }
    let index = match manifest::parse(&read(INDEX)?, import.limits) {
        Ok(Document::Index(index)) => index,
        Ok(Document::Manifest(_)) => {
            return Err(
                import.unusable(INDEX, ManifestError::MediaType(manifest::OCI_MANIFEST.into()))
            );
        }
        Err(cause) => return Err(import.unusable(INDEX, cause)),
    };
    let chosen = choose(&index, &import)?;
    let digest = chosen.descriptor.digest;
    let (manifest_digest, bytes, manifest) = follow(&import, parts, &chosen.descriptor)?;
    let config_bytes = blob(&import, parts, "the config", &manifest.config)?;
    let config = import.config(&config_bytes, manifest.layers.len())?;
    import.keep("the config", &config_bytes)?;
    let total_bytes = manifest.layers.iter().map(|layer| layer.size).sum();
    import.resolved(manifest_digest, manifest.layers.len(), total_bytes);
    let mut layers = Vec::new();
    for (index, (layer, diff_id)) in manifest.layers.iter().zip(&config.diff_ids).enumerate() {
        let what = format!("layer {index}");
        let (part, size) =
            parts.open_part(&path(layer.digest)).map_err(|cause| import.failed(cause))?;
        check_size(&import, &what, layer.size, size)?;
        let source = Source { index, what, part, size, expected: Some(layer.digest) };
        layers.push(import.layer(source, *diff_id)?);
    }
    Ok(Fetched {
        reference: reference(chosen),
        digest,
        manifest_digest,
        manifest: bytes,
        config,
        config_digest: manifest.config.digest,
        layers,
        lease: import.lease,
    })
}

fn path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The image that is meant: by its name or digest, else the only one, else the one for the platform.
fn choose<'a>(index: &'a Index, import: &Import<'_>) -> Result<&'a Listed, RegistryError> {
    let all = &index.manifests;
    let mut fitting: Vec<&Listed> = match import.name {
        Some(name) => all.iter().filter(|listed| is_called(listed, name)).collect(),
        None => all.iter().collect(),
    };
    let there = || {
        let mut there: Vec<String> = all.iter().map(called).collect();
        there.sort();
        there.dedup();
        there.truncate(50);
        there
    };
    // One image under several names is one image.
    fitting.sort_by_key(|listed| listed.descriptor.digest);
    fitting.dedup_by_key(|listed| listed.descriptor.digest);
    match fitting[..] {
        [] => {
            let wanted = import.name.map(shown);
            Err(import.failed(LocalError::NoImage { wanted, there: there() }))
        }
        [listed] => Ok(listed),
        [first, ..] => {
            let one_name = fitting.iter().all(|listed| names(listed) == names(first));
            if !one_name || fitting.iter().any(|listed| listed.platform.is_none()) {
                return Err(import.failed(LocalError::ManyImages { there: there() }));
            }
            let manifests = fitting.into_iter().cloned().collect();
            let chosen = Index { manifests }.choose(import.platform).map(|it| it.descriptor.digest);
            let chosen = chosen.map_err(|cause| import.unusable(INDEX, cause))?;
            let found = all.iter().find(|listed| {
                listed.descriptor.digest == chosen
                    && import.name.is_none_or(|name| is_called(listed, name))
            });
            Ok(found.expect("it was chosen from these"))
        }
    }
}

fn names(listed: &Listed) -> Vec<&str> {
    [IMAGE_NAME, REF_NAME]
        .iter()
        .filter_map(|key| listed.annotations.get(*key))
        .map(String::as_str)
        .collect()
}

fn called(listed: &Listed) -> String {
    names(listed).first().map_or_else(|| listed.descriptor.digest.to_string(), |name| shown(name))
}

fn is_called(listed: &Listed, wanted: &str) -> bool {
    let same = |name: &str| match (name.parse::<Reference>(), wanted.parse::<Reference>()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    };
    listed.descriptor.digest.to_string() == wanted
        || names(listed).iter().any(|name| *name == wanted || same(name))
}

/// A name that is more than a tag.
fn reference(listed: &Listed) -> Option<Reference> {
    let mut whole = names(listed).into_iter().filter(|name| name.contains([':', '/']));
    whole.find_map(|name| name.parse().ok())
}

/// From an index, or an index in it, to the manifest for the platform.
fn follow(
    import: &Import<'_>,
    parts: &dyn Parts,
    descriptor: &Descriptor,
) -> Result<(Digest, Vec<u8>, Manifest), RegistryError> {
    let mut descriptor = descriptor.clone();
    for _ in 0..=DEEPEST_INDEX {
        let bytes = blob(import, parts, "the manifest", &descriptor)?;
        import.keep("the manifest", &bytes)?;
        match manifest::parse(&bytes, import.limits) {
            Ok(Document::Manifest(manifest)) => return Ok((descriptor.digest, bytes, manifest)),
            Ok(Document::Index(index)) => {
                let chosen = index.choose(import.platform);
                descriptor =
                    chosen.map_err(|cause| import.unusable("the index", cause))?.descriptor.clone();
            }
            Err(cause) => return Err(import.unusable("the manifest", cause)),
        }
    }
    Err(import.unusable("the index", ManifestError::Nested))
}

/// A small blob, verified.
fn blob(
    import: &Import<'_>,
    parts: &dyn Parts,
    what: &str,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, RegistryError> {
    let limit = import.limits.largest_manifest_bytes;
    let bytes =
        parts.read_part(&path(descriptor.digest), limit).map_err(|cause| import.failed(cause))?;
    check_size(import, what, descriptor.size, bytes.len() as u64)?;
    let found = Digest::of(&bytes);
    if found == descriptor.digest {
        return Ok(bytes);
    }
    let (what, expected) = (what.to_owned(), descriptor.digest);
    Err(import.failed(LocalError::WrongDigest { what, expected, found }))
}

fn check_size(
    import: &Import<'_>,
    what: &str,
    expected: u64,
    found: u64,
) -> Result<(), RegistryError> {
    if found == expected {
        return Ok(());
    }
    Err(import.failed(LocalError::WrongSize { what: what.to_owned(), expected, found }))
}
