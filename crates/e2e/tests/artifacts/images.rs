//! Images out and in: exported, imported again, built of a Dockerfile, registered; each boots.

use std::fs::{self, File};
use std::path::Path;

use banger_e2e::{World, busybox_tar, in_world, run, write_layout};
use serde_json::json;

fn json_of(world: &World, args: &[&str]) -> serde_json::Value {
    world.banger_with(&[args, &["--format", "json"]].concat(), b"").succeeds().json()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_image_that_is_exported_and_imported_runs_as_before_and_exports_the_same_layer() {
    in_world(|world| {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        drop(busybox_tar(folder.path(), "busybox.tar"));
        let root = path("busybox.root");
        fs::write(root.join("hello"), "hello\n").unwrap();
        let config = json!({ "Entrypoint": ["/bin/cat"], "Cmd": ["/hello"], "Env": ["A=b"] });
        write_layout(&path("layout"), &[&root], &config);
        let layout = path("layout");
        world.banger(["image", "import", text(&layout), "--name", "app"]).succeeds();

        let archive = path("app.tar");
        let exported = json_of(world, &["image", "export", "app", text(&archive)]);
        world.banger(["image", "import", text(&archive), "--name", "again"]).succeeds();
        world.banger(["vm", "run", "--rm", "--image", "again"]).succeeds().prints_only("hello\n");
        let shown = json_of(world, &["image", "show", "again"]);
        assert_eq!(shown["config"]["env"], json!(["A=b"]));

        // A file that is there stays, unless it is to be replaced.
        let refused = world.banger(["image", "export", "again", text(&archive)]);
        refused.exits(1);
        assert!(refused.errors().contains("--force"), "{refused}");
        let again = ["image", "export", "again", text(&archive), "--force", "--uncompressed"];
        let again = json_of(world, &again);
        assert_eq!(again["diff_id"], exported["diff_id"]);
        assert_ne!(again["manifest"], exported["manifest"]);
        let inspected =
            world.program("skopeo", &["inspect", &format!("oci-archive:{}", text(&archive))]);
        inspected.succeeds();
        assert!(inspected.text().contains(again["diff_id"].as_str().unwrap()), "{inspected}");
        world.banger(["image", "export", "absent", text(&path("absent.tar"))]).exits(1);
        assert!(!path("absent.tar").exists());
    });
}

#[test]
fn a_dockerfile_is_built_by_the_users_builder_and_its_image_runs() {
    in_world(|world| {
        let folder = tempfile::tempdir().unwrap();
        drop(busybox_tar(folder.path(), "busybox.tar"));
        let file = folder.path().join("Dockerfile");
        fs::write(
            &file,
            "FROM scratch AS base\nADD busybox.tar /\nARG WHO=nobody\nENV WHO=$WHO PATH=/bin\n\
             CMD [\"/bin/sh\", \"-c\", \"echo $WHO\"]\nFROM base\nCOPY no-such-file /\n",
        )
        .unwrap();
        let context = text(folder.path());
        let build = ["image", "build", "-f", text(&file), context, "--name", "app"];
        let good = [&build[..], &["--target", "base", "--build-arg", "WHO=me"]].concat();
        world.banger_with(&good, b"").succeeds();
        world.banger(["vm", "run", "--rm", "--image", "app"]).succeeds().prints_only("me\n");

        // Its name is taken now; and what the builder says of a mistake is told.
        world.banger_with(&good, b"").exits(1);
        let failed = world.banger_with(&[&build[..], &["--replace"]].concat(), b"");
        failed.exits(1);
        assert!(failed.errors().contains("no-such-file"), "{failed}");
        world.banger(["vm", "run", "--rm", "--image", "app"]).succeeds().prints_only("me\n");
        let left: Vec<_> = fs::read_dir(world.home().join("state/images"))
            .unwrap()
            .map(|file| file.unwrap().file_name())
            .filter(|name| name.to_string_lossy().starts_with('.'))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        let excluded = world.banger(["image", "build", "-f", "Dockerfile", "--debian", "bookworm"]);
        excluded.exits(2);
    });
}

#[test]
fn an_own_file_system_is_registered_and_a_damaged_one_is_not() {
    in_world(|world| {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        drop(busybox_tar(folder.path(), "busybox.tar"));
        let image = path("own.ext4");
        File::create(&image).unwrap().set_len(128 << 20).unwrap();
        run("mke2fs", &["-q", "-F", "-t", "ext4", "-d", text(&path("busybox.root")), text(&image)]);
        world.banger(["image", "register", "--rootfs", text(&image), "--name", "own"]).succeeds();
        // The copy is banger's own.
        fs::remove_file(&image).unwrap();
        world
            .banger(["vm", "run", "--rm", "--image", "own", "--", "uname"])
            .succeeds()
            .prints_only("Linux\n");
        fs::write(&image, vec![0; 1 << 20]).unwrap();
        let refused =
            world.banger(["image", "register", "--rootfs", text(&image), "--name", "bad"]);
        refused.exits(1);
        assert!(refused.errors().contains("not an ext4"), "{refused}");
        world.banger(["image", "show", "bad"]).exits(1);
        let recipe = world.banger(["image", "build", "--recipe", "kitchen"]);
        recipe.exits(1);
        assert!(recipe.errors().contains("development"), "{recipe}");
    });
}
