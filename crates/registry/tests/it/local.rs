//! Imports from folders and archives that real programs wrote.

use std::fs;
use std::path::{Path, PathBuf};

use banger_registry::{
    Compression, Digest, Fetched, LayerState, Limits, RegistryError, Trouble, local,
};

use crate::images::{Images, skopeo};
use crate::world::{World, assert_whole, chain};

fn import(world: &World, path: &Path, name: Option<&str>) -> Result<Fetched, RegistryError> {
    let watch = |progress: banger_registry::Progress<'_>| world.tell(progress);
    local::import(path, name, &world.platform, &world.store, &Limits::default(), &watch)
}

/// One image of the layout in another form.
fn copy(images: &Images, tag: &str, form: &str, to: &Path, name: &str) -> PathBuf {
    skopeo(&[
        "copy",
        &format!("oci:{}:{tag}", images.layout().display()),
        &format!("{form}:{}:{name}", to.display()),
    ]);
    to.to_owned()
}

#[test]
fn a_layout_gives_what_the_registry_gives() {
    let images = Images::get();
    let world = World::new();
    assert!(local::is_image(&images.layout()).unwrap());
    let fetched = import(&world, &images.layout(), Some("small")).unwrap();
    assert_whole(&world.store, &fetched);
    assert_eq!(fetched.digest, images.manifest("small").0);
    assert_eq!(
        fetched.layers.iter().map(|it| it.digest).collect::<Vec<_>>(),
        images.layers("small")
    );
    assert_eq!(fetched.config.entrypoint, ["/init"]);
    assert_eq!(fetched.reference, None, "a tag alone is no name");
    import(&world, &images.layout(), Some("small")).unwrap();
    assert_eq!(world.ends(LayerState::Cached), 3);
    let multi = import(&world, &images.layout(), Some("multi")).unwrap();
    assert_eq!(multi.manifest_digest, images.manifest("small").0);
    assert_eq!(multi.digest, images.manifest("multi").0);
}

#[test]
fn which_image_is_said_by_its_name_or_digest() {
    let images = Images::get();
    let world = World::new();
    let error = import(&world, &images.layout(), None).unwrap_err();
    assert!(chain(&error).ends_with("it has several images"), "{}", chain(&error));
    assert_eq!(error.remedy().as_deref(), Some("name one of these: arm, multi, plain, small"));
    let error = import(&world, &images.layout(), Some("none")).unwrap_err();
    assert_eq!(error.trouble(), Trouble::NotFound);
    assert!(chain(&error).ends_with("it has no image of the name \"none\""), "{}", chain(&error));
    let digest = images.manifest("plain").0;
    let plain = import(&world, &images.layout(), Some(&digest.to_string())).unwrap();
    assert_eq!(plain.digest, digest);
    assert_eq!(plain.layers[0].compression, Compression::None);
}

#[test]
fn an_archive_of_a_layout_is_imported() {
    let images = Images::get();
    let world = World::new();
    let archive = world.path().join("image.tar");
    copy(&images, "small", "oci-archive", &archive, "app.example/small:1");
    assert!(local::is_image(&archive).unwrap());
    let fetched = import(&world, &archive, None).unwrap();
    assert_whole(&world.store, &fetched);
    assert_eq!(fetched.manifest_digest, images.manifest("small").0);
    assert_eq!(fetched.reference.unwrap().short(), "app.example/small:1");
}

#[test]
fn an_image_has_the_name_that_docker_gave_it() {
    let images = Images::get();
    let world = World::new();
    let layout = world.path().join("layout");
    fs::create_dir(&layout).unwrap();
    std::os::unix::fs::symlink(images.layout().join("blobs"), layout.join("blobs")).unwrap();
    fs::copy(images.layout().join("oci-layout"), layout.join("oci-layout")).unwrap();
    let mut index: serde_json::Value =
        serde_json::from_slice(&fs::read(images.layout().join("index.json")).unwrap()).unwrap();
    for (number, entry) in index["manifests"].as_array_mut().unwrap().iter_mut().enumerate() {
        entry["annotations"] = serde_json::json!({
            "io.containerd.image.name": format!("docker.io/library/app:{number}"),
            "org.opencontainers.image.ref.name": number.to_string(),
        });
    }
    fs::write(layout.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    for name in ["app:0", "docker.io/library/app:0", "0"] {
        let fetched = import(&world, &layout, Some(name)).unwrap();
        assert_eq!(fetched.reference.unwrap().short(), "app:0");
    }
}

#[test]
fn what_docker_saves_is_imported() {
    let images = Images::get();
    let world = World::new();
    let archive = world.path().join("image.tar");
    copy(&images, "small", "docker-archive", &archive, "app.example/small:1");
    assert!(local::is_image(&archive).unwrap());
    let fetched = import(&world, &archive, None).unwrap();
    assert_whole(&world.store, &fetched);
    assert_eq!(fetched.reference.as_ref().unwrap().short(), "app.example/small:1");
    assert_eq!(fetched.config.entrypoint, ["/init"]);
    assert_eq!(fetched.layers.len(), 3);
    for layer in &fetched.layers {
        assert_eq!((layer.compression, layer.digest), (Compression::None, layer.diff_id));
    }
    let again = import(&world, &archive, Some("app.example/small:1")).unwrap();
    assert_eq!(again.manifest_digest, fetched.manifest_digest);
    assert_eq!(world.ends(LayerState::Cached), 3);
    let error = import(&world, &archive, Some("app.example/small:2")).unwrap_err();
    assert_eq!(error.remedy().as_deref(), Some("name one of these: app.example/small:1"));
}

/// As Docker wrote before version 25: a folder for each layer, and a link where a layer is there again.
fn old_archive(path: &Path, change: impl FnOnce(&mut serde_json::Value)) -> Digest {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    builder.append_data(&mut header, "a", &b"a"[..]).unwrap();
    let layer = builder.into_inner().unwrap();
    let diff_id = Digest::of(&layer);
    let config = serde_json::json!({
        "os": "linux", "architecture": "amd64", "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id, diff_id]},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let name = format!("{}.json", Digest::of(&config).hex());
    let mut manifest = serde_json::json!([
        {"Config": name, "RepoTags": null, "Layers": ["one/layer.tar", "two/layer.tar"]},
    ]);
    change(&mut manifest);
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let mut archive = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, content) in
        [("one/layer.tar", &layer), (&*name, &config), ("manifest.json", &manifest)]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, &content[..]).unwrap();
    }
    for (name, target) in [("two/layer.tar", "../one/layer.tar"), ("out/layer.tar", "/etc/passwd")]
    {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        archive.append_link(&mut header, name, target).unwrap();
    }
    archive.finish().unwrap();
    diff_id
}

#[test]
fn what_docker_saved_long_ago_is_imported_and_no_link_leads_out() {
    let world = World::new();
    let path = world.path().join("old.tar");
    let diff_id = old_archive(&path, |_| ());
    let fetched = import(&world, &path, None).unwrap();
    assert_whole(&world.store, &fetched);
    assert_eq!(fetched.layers.iter().map(|it| it.digest).collect::<Vec<_>>(), [diff_id, diff_id]);
    assert_eq!(fetched.config.cmd, ["sh"]);
    assert_eq!(fetched.reference, None);
    for (layer, reason) in [
        ("out/layer.tar", "leads out of it, or is a link"),
        ("../../etc/passwd", "leads out of it, or is a link"),
        ("/etc/passwd", "leads out of it, or is a link"),
        ("none/layer.tar", "none/layer.tar is not in it"),
        ("manifest.json", "has the digest"),
    ] {
        old_archive(&path, |manifest| manifest[0]["Layers"][1] = layer.into());
        let error = import(&world, &path, None).unwrap_err();
        assert!(chain(&error).contains(reason), "{layer}: {}", chain(&error));
    }
    old_archive(&path, |manifest| {
        manifest[0]["Layers"].as_array_mut().unwrap().pop();
    });
    let error = import(&world, &path, None).unwrap_err();
    assert!(
        chain(&error).contains("its config lists 2 layers and its manifest 1"),
        "{}",
        chain(&error)
    );
    old_archive(&path, |manifest| {
        let image = manifest[0].clone();
        manifest.as_array_mut().unwrap().push(image);
    });
    let error = import(&world, &path, None).unwrap_err();
    assert!(chain(&error).contains("it has several images"), "{}", chain(&error));
}

#[test]
fn damage_in_a_layout_is_found() {
    let images = Images::get();
    let world = World::new();
    let archive = world.path().join("image.tar");
    copy(&images, "small", "oci-archive", &archive, "small");
    let unpacked = world.path().join("layout");
    fs::create_dir(&unpacked).unwrap();
    tar::Archive::new(fs::File::open(&archive).unwrap()).unpack(&unpacked).unwrap();
    let (_, manifest) = images.manifest("small");
    let config: Digest = serde_json::from_value(manifest["config"]["digest"].clone()).unwrap();
    for digest in [config, images.layers("small")[0]] {
        let path = unpacked.join("blobs/sha256").join(digest.hex());
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[5] ^= 1;
        fs::write(&path, &bad).unwrap();
        let error = import(&world, &unpacked, None).unwrap_err();
        assert_eq!(error.trouble(), Trouble::Input);
        assert!(
            chain(&error).contains(&format!("and {digest} was announced")),
            "{}",
            chain(&error)
        );
        fs::write(&path, &good[1..]).unwrap();
        let error = import(&world, &unpacked, None).unwrap_err();
        assert!(chain(&error).contains("were announced"), "{}", chain(&error));
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let error = import(&world, &unpacked, None).unwrap_err();
        assert!(chain(&error).contains("it is not a file"), "{}", chain(&error));
        fs::remove_file(&path).unwrap();
        let error = import(&world, &unpacked, None).unwrap_err();
        assert!(chain(&error).contains("is not in it"), "{}", chain(&error));
        fs::write(&path, good).unwrap();
    }
    assert_eq!(world.files("partial"), 0);
    import(&world, &unpacked, None).unwrap();
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_copied() {
    let world = World::new();
    let layout = world.path().join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\": \"1.0.0\"}").unwrap();
    let add = |kind: &str, value: &serde_json::Value| {
        let bytes = serde_json::to_vec(value).unwrap();
        let digest = Digest::of(&bytes);
        fs::write(layout.join("blobs/sha256").join(digest.hex()), &bytes).unwrap();
        let kind = format!("application/vnd.oci.image.{kind}.v1+json");
        serde_json::json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    };
    // A hole of 15 TiB, which takes nothing.
    let (digest, size_bytes) = (Digest::of(b"hole"), 15_u64 << 40);
    let hole = fs::File::create(layout.join("blobs/sha256").join(digest.hex())).unwrap();
    hole.set_len(size_bytes).unwrap();
    let config = add(
        "config",
        &serde_json::json!({
            "os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [digest]},
        }),
    );
    let layer = serde_json::json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size_bytes,
    });
    let manifest = add(
        "manifest",
        &serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]}),
    );
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    let limits = Limits { largest_blob_bytes: u64::MAX, ..Limits::default() };
    let imported = local::import(&layout, None, &world.platform, &world.store, &limits, &|_| ());
    let error = imported.unwrap_err();
    assert_eq!(error.trouble(), Trouble::NoSpace);
    assert!(
        error.to_string().starts_with(&format!("{size_bytes} bytes are to be kept")),
        "{error}"
    );
    assert_eq!(world.files("partial"), 0);
}

#[test]
fn what_is_no_image_is_told() {
    let world = World::new();
    let folder = world.path().join("folder");
    fs::create_dir(&folder).unwrap();
    assert!(!local::is_image(&folder).unwrap());
    let error = import(&world, &folder, None).unwrap_err();
    assert!(chain(&error).contains("oci-layout is not in it"), "{}", chain(&error));
    let rootfs = world.path().join("rootfs.tar");
    let mut builder = tar::Builder::new(fs::File::create(&rootfs).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_size(2);
    builder.append_data(&mut header, "manifest.json", &b"{}"[..]).unwrap();
    builder.finish().unwrap();
    assert!(!local::is_image(&rootfs).unwrap(), "any file may have that name");
    let packed = world.path().join("packed.tar.gz");
    fs::write(&packed, [0x1f, 0x8b, 8, 0, 0, 0, 0, 0]).unwrap();
    assert!(!local::is_image(&packed).unwrap());
    let error = import(&world, &packed, None).unwrap_err();
    assert!(chain(&error).contains("it is compressed with gzip"), "{}", chain(&error));
    assert_eq!(error.remedy().as_deref(), Some("`gunzip` does that"));
    assert_eq!(
        local::is_image(&world.path().join("none")).unwrap_err().trouble(),
        Trouble::NotFound
    );
}
