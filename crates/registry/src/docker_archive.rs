//! What `docker save` wrote before it wrote OCI layouts, and what podman and skopeo write as `docker-archive`:
//! `manifest.json` names for each image the files of its config and its layers (Docker image specification 1.2). There is
//! no manifest in the registry's sense; an OCI manifest that says the same is made, so that an image from here is kept as
//! all others are.

use serde::{Deserialize, Serialize};

use crate::archive::Archive;
use crate::digest::Digest;
use crate::error::{LocalError, RegistryError};
use crate::fetched::{Compression, Fetched, Layer};
use crate::local::{Import, Parts, Source, shown};
use crate::manifest::{self, ManifestError};
use crate::reference::Reference;
use crate::settings::Limits;

pub(crate) const MANIFEST: &str = "manifest.json";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// Whether its `manifest.json` is Docker's.
pub(crate) fn is_one(archive: &Archive, limits: &Limits) -> bool {
    let bytes = archive.read_part(MANIFEST, limits.largest_manifest_bytes);
    bytes.is_ok_and(|bytes| serde_json::from_slice::<Vec<Saved>>(&bytes).is_ok())
}

pub(crate) fn import(import: Import<'_>, archive: &Archive) -> Result<Fetched, RegistryError> {
    let limit = import.limits.largest_manifest_bytes;
    let read = |name: &str| archive.read_part(name, limit).map_err(|cause| import.failed(cause));
    let images: Vec<Saved> = serde_json::from_slice(&read(MANIFEST)?).map_err(|error| {
        import.failed(LocalError::Json { what: MANIFEST.into(), why: shown(&error.to_string()) })
    })?;
    let image = choose(&images, &import)?;
    let names = image.layers.as_deref().unwrap_or_default();
    if names.len() > import.limits.most_layers {
        let (count, limit) = (names.len(), import.limits.most_layers);
        return Err(import.unusable(MANIFEST, ManifestError::ManyLayers { count, limit }));
    }
    let config_bytes = read(&image.config)?;
    if let Some(expected) = announced(&image.config) {
        let found = Digest::of(&config_bytes);
        if found != expected {
            let what = "the config".to_owned();
            return Err(import.failed(LocalError::WrongDigest { what, expected, found }));
        }
    }
    let config = import.config(&config_bytes, names.len())?;
    let config_digest = import.keep("the config", &config_bytes)?;
    let mut sources = Vec::new();
    for (index, (name, diff_id)) in names.iter().zip(&config.diff_ids).enumerate() {
        let open = || archive.open_part(name).map_err(|cause| import.failed(cause));
        let (mut first, what) = (Vec::new(), format!("layer {index}"));
        std::io::Read::read_to_end(&mut std::io::Read::take(open()?.0, 4), &mut first)
            .map_err(|cause| import.failed(LocalError::Read { what: what.clone(), cause }))?;
        let (part, size) = open()?;
        // A layer that is not compressed is named by what is in it.
        let expected = (Compression::of(&first) == Compression::None).then_some(*diff_id);
        sources.push((Source { index, what, part, size, expected }, *diff_id));
    }
    let total_bytes = sources.iter().map(|(source, _)| source.size).sum();
    import.resolved(config_digest, names.len(), total_bytes);
    let mut layers = Vec::new();
    for (source, diff_id) in sources {
        layers.push(import.layer(source, diff_id)?);
    }
    let manifest = manifest_of(config_digest, config_bytes.len() as u64, &layers);
    let manifest_digest = import.keep("the manifest", &manifest)?;
    let tags = image.repo_tags.as_deref().unwrap_or_default();
    let mut references: Vec<Reference> = tags.iter().filter_map(|tag| tag.parse().ok()).collect();
    let wanted = import.name.and_then(|name| name.parse::<Reference>().ok());
    let place = references.iter().position(|reference| Some(reference) == wanted.as_ref());
    let reference =
        (!references.is_empty()).then(|| references.swap_remove(place.unwrap_or_default()));
    Ok(Fetched {
        reference,
        digest: manifest_digest,
        manifest_digest,
        manifest,
        config,
        config_digest,
        layers,
        lease: import.lease,
    })
}

/// The digest that a config's name holds: `HEX.json`, `blobs/sha256/HEX`.
fn announced(name: &str) -> Option<Digest> {
    let stem = name.strip_suffix(".json").unwrap_or(name);
    Digest::from_hex(stem.rsplit('/').next()?)
}

fn choose<'a>(images: &'a [Saved], import: &Import<'_>) -> Result<&'a Saved, RegistryError> {
    let fitting: Vec<&Saved> = match import.name {
        Some(name) => images.iter().filter(|image| is_called(image, name)).collect(),
        None => images.iter().collect(),
    };
    let called = |image: &Saved| match image.repo_tags.as_deref() {
        Some([first, ..]) => shown(first),
        _ => announced(&image.config).map_or(shown(&image.config), |digest| digest.to_string()),
    };
    let there = || images.iter().map(called).take(50).collect();
    match fitting[..] {
        [image] => Ok(image),
        [] => {
            let wanted = import.name.map(shown);
            Err(import.failed(LocalError::NoImage { wanted, there: there() }))
        }
        _ => Err(import.failed(LocalError::ManyImages { there: there() })),
    }
}

fn is_called(image: &Saved, wanted: &str) -> bool {
    let by_digest = announced(&image.config).is_some_and(|digest| digest.to_string() == wanted);
    let wanted_reference = wanted.parse::<Reference>().ok();
    let by_name = |tag: &String| {
        tag == wanted || (wanted_reference.is_some() && tag.parse().ok() == wanted_reference)
    };
    by_digest || image.repo_tags.iter().flatten().any(by_name)
}

/// An OCI manifest, the same for the same image.
fn manifest_of(config: Digest, size: u64, layers: &[Layer]) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Written {
        schema_version: u32,
        media_type: &'static str,
        config: Pointer,
        layers: Vec<Pointer>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Pointer {
        media_type: String,
        digest: Digest,
        size: u64,
    }
    let layers = layers.iter().map(|layer| {
        let suffix = match layer.compression {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        };
        let media_type = format!("{}{suffix}", manifest::OCI_LAYER);
        Pointer { media_type, digest: layer.digest, size: layer.size_bytes }
    });
    let written = Written {
        schema_version: 2,
        media_type: manifest::OCI_MANIFEST,
        config: Pointer { media_type: manifest::OCI_CONFIG.into(), digest: config, size },
        layers: layers.collect(),
    };
    serde_json::to_vec(&written).expect("it has text and numbers only")
}
