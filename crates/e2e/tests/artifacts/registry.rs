//! Images of a registry: pulled, booted, and what they say about their programs honoured.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_e2e::{Registry, SYSTEMD, World, busybox_tar, in_world, run};
use serde_json::json;

/// A folder with a static busybox and its applets, as an image's layer.
fn busybox_root(folder: &Path) -> PathBuf {
    drop(busybox_tar(folder, "busybox.tar"));
    folder.join("busybox.root")
}

/// Nothing in it but one static program.
fn scratch_root(folder: &Path) -> PathBuf {
    let root = folder.join("scratch.root");
    fs::create_dir(&root).unwrap();
    fs::copy(busybox_root(folder).join("bin/busybox"), root.join("uname")).unwrap();
    root
}

fn json_of(world: &World, args: &[&str]) -> serde_json::Value {
    world.banger_with(&[args, &["--format", "json"]].concat(), b"").succeeds().json()
}

/// The file of an image.
fn file_of(world: &World, image: &str) -> PathBuf {
    let shown = json_of(world, &["image", "show", image]);
    let digest = shown["digest"].as_str().unwrap();
    world.home().join(format!("state/images/{digest}.ext4"))
}

#[test]
fn an_image_of_a_registry_runs_as_it_says() {
    in_world(|world| {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::start();
        let root = busybox_root(folder.path());
        let second = folder.path().join("second");
        fs::create_dir_all(second.join("srv")).unwrap();
        fs::write(second.join("srv/hello"), "hello from a layer\n").unwrap();
        let config = json!({
            "Entrypoint": ["/bin/sh", "-c", "cat hello; echo $COLOUR; id -u; echo \"$@\"", "-"],
            "Cmd": ["one", "two"], "Env": ["PATH=/bin", "COLOUR=blue"], "WorkingDir": "/srv",
            "User": "user", "ExposedPorts": { "80/tcp": {} },
        });
        let reference = registry.push("app:1", &[&root, &second], &config);

        let pulled = world.banger(["image", "pull", &reference]);
        pulled.succeeds();
        assert!(pulled.text().contains(&reference), "{pulled}");
        let shown = json_of(world, &["image", "show", &reference]);
        assert_eq!(shown["config"]["cmd"], json!(["one", "two"]));
        assert_eq!(shown["config"]["exposed_ports"], json!(["80/tcp"]));
        assert!(shown["manifest"].as_str().unwrap().starts_with("sha256:"));

        // Without a command: the image's program.
        world
            .banger(["vm", "run", "--rm", "--image", &reference])
            .succeeds()
            .prints_only("hello from a layer\nblue\n1000\none two\n");
        // With one: that, as the image's user, in its folder, with its environment.
        world
            .banger([
                "vm",
                "run",
                "--rm",
                "--image",
                &reference,
                "--",
                "sh",
                "-c",
                "pwd; id -u; echo $COLOUR",
            ])
            .succeeds()
            .prints_only("/srv\n1000\nblue\n");
        // And the user's word counts more than the image's.
        let own = ["vm", "run", "--rm", "--image", &reference, "-u", "root", "-w", "/", "--"];
        world
            .banger_with(&[&own[..], &["sh", "-c", "pwd; id -u"]].concat(), b"")
            .succeeds()
            .prints_only("/\n0\n");

        // A second pull fetches nothing; what the tag stands for now is what a pull brings.
        let again = world.banger(["image", "pull", &reference]);
        again.succeeds();
        assert!(again.errors().contains("up to date"), "{again}");
        fs::write(second.join("srv/hello"), "hello again\n").unwrap();
        registry.push("app:1", &[&root, &second], &config);
        world.banger(["image", "pull", &reference]).succeeds();
        world
            .banger(["vm", "run", "--rm", "--image", &reference, "--", "cat", "hello"])
            .succeeds()
            .prints_only("hello again\n");

        // The tag that everybody means is the one without a tag.
        let latest = registry.push("app", &[&root, &second], &config);
        world.banger(["image", "pull", &latest]).succeeds();
        world.banger(["vm", "run", "--rm", "--image", &latest, "--", "true"]).succeeds();
        world.banger(["image", "show", &latest]).exits(1);
        world.banger(["image", "delete", &format!("{latest}:latest")]).succeeds();

        // The layers go from the cache, and images stay whole.
        let would = json_of(world, &["cache", "prune", "--dry-run"]);
        assert!(would["freed_bytes"].as_u64().unwrap() > 0, "{would}");
        world.banger(["cache", "prune", "-f"]).succeeds();
        let left = json_of(world, &["cache", "prune", "--dry-run"]);
        assert_eq!(left["removed"], json!([]));
        let image = file_of(world, &reference);
        world.banger(["doctor", "--deep"]).succeeds().prints("all as they were made");
        world.banger(["vm", "run", "--rm", "--image", &reference, "--", "true"]).succeeds();
        // A byte that has changed is found by whoever looks for it.
        let mut bytes = fs::read(&image).unwrap();
        bytes[1 << 20] ^= 1;
        fs::write(&image, bytes).unwrap();
        let found = world.banger(["doctor", "--deep"]);
        assert!(
            found.exits(1).text().contains(&format!("image {reference} is not what")),
            "{found}"
        );
    });
}

#[test]
fn an_image_of_one_static_program_runs_and_its_vm_lives_as_long_as_it() {
    in_world(|world| {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::start();
        let root = scratch_root(folder.path());
        let image =
            registry.push("scratch:1", &[&root], &json!({ "Entrypoint": ["/uname", "-s"] }));
        // Pulled because it is missing.
        world.banger(["vm", "run", "--rm", "--image", &image]).succeeds().prints_only("Linux\n");
        world.banger(["vm", "run", "--rm", "--image", &image, "--", "sh"]).exits(127);

        // Detached, the VM is the program's: it stops when that ends, and its log has what was said.
        world.banger(["vm", "run", "-d", "--image", &image, "--name", "once"]).succeeds();
        world.wait_for_state("once", "stopped", Duration::from_secs(60));
        let log = world.banger(["vm", "logs", "once"]);
        log.succeeds();
        assert!(log.text().contains("Linux") && log.text().contains("status 0"), "{log}");
        // A name that the image lacks ends the start, and is named.
        let image = registry.push("broken:1", &[&root], &json!({ "Entrypoint": ["/no-such"] }));
        let failed = world.banger(["vm", "run", "-d", "--image", &image, "--name", "broken"]);
        failed.exits(125);
        assert!(failed.errors().contains("/no-such"), "{failed}");
    });
}

/// The default image's root, mounted while `work` goes on.
fn with_system_root<T>(world: &World, at: &Path, work: impl FnOnce(&Path) -> T) -> T {
    let image = file_of(world, SYSTEMD);
    fs::create_dir(at).unwrap();
    let root = at.to_str().unwrap();
    run("mount", &["-o", "loop,ro,noload", image.to_str().unwrap(), root]);
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(at)));
    run("umount", &[root]);
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// What the tree in a folder of the host holds.
fn tree_here(world: &World, root: &Path) -> Vec<String> {
    lines(&world.program("python3", &["-c", TREE, root.to_str().unwrap()]).succeeds().text())
}

fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

const TREE: &str = include_str!("oddities/tree.py");
const LAYERS: &str = include_str!("oddities/layers.py");

#[test]
fn a_system_boots_to_its_init_with_every_oddity_of_its_layers_as_umoci_unpacks_them() {
    in_world(|world| {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let text = |name: &str| at(name).to_str().unwrap().to_owned();
        let registry = Registry::start();
        run("sh", &["-c", "cd \"$1\" && exec python3 -c \"$2\"", "-", &text("."), LAYERS]);
        let (lower, upper) = (at("lower.tar"), at("upper.tar"));
        let reference = with_system_root(world, &at("root"), |root| {
            registry.push("debian:1", &[root, &lower, &upper], &json!({}))
        });
        world.banger(["image", "pull", &reference, "--name", "system"]).succeeds();
        let in_guest = |options: &[&str], command: &[&str], stdin: &str| {
            let run = ["vm", "run", "--rm", "--image", "system", "--memory", "512M"];
            world.banger_with(&[&run[..], options, &["--"], command].concat(), stdin.as_bytes())
        };
        in_guest(&["--wait", "init"], &["systemctl", "is-system-running"], "")
            .succeeds()
            .prints_only("running\n");
        let inside = in_guest(&["--init", "none"], &["python3", "-", "/odd"], TREE);
        let inside = lines(&inside.succeeds().text());

        let (layout, bundle) = (text("layout"), text("bundle"));
        let from = format!("docker://{reference}");
        run(
            "skopeo",
            &["copy", "--quiet", "--src-tls-verify=false", &from, &format!("oci:{layout}:image")],
        );
        run("umoci", &["unpack", "--image", &format!("{layout}:image"), &bundle]);
        let unpacked = tree_here(world, &at("bundle/rootfs/odd"));
        assert!(unpacked.len() > 60, "{unpacked:#?}");
        assert_eq!(inside, unpacked);

        let refused = in_guest(&["--init", "sbin/init"], &["true"], "");
        assert!(refused.exits(125).errors().contains("absolute path"), "{refused}");
    });
}

#[test]
fn what_cannot_be_pulled_is_refused_with_the_reason_and_leaves_no_image() {
    in_world(|world| {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::start();
        let root = busybox_root(folder.path());
        symlink("../../outside", root.join("escape")).unwrap();
        let good = registry.push("good:1", &[&root], &json!({}));
        let absent = registry.reference("good:2");
        let refused = world.banger(["image", "pull", &absent]);
        refused.exits(1);
        assert!(refused.errors().contains("good:2"), "{refused}");

        // A blob that the registry has spoiled.
        let manifest = world.program(
            "skopeo",
            &["inspect", "--raw", "--tls-verify=false", &format!("docker://{good}")],
        );
        let manifest: serde_json::Value =
            serde_json::from_slice(&manifest.succeeds().stdout).unwrap();
        let digest = manifest["layers"][0]["digest"].as_str().unwrap();
        let hex = digest.strip_prefix("sha256:").unwrap();
        let blob = registry.storage().join(&hex[..2]).join(hex).join("data");
        let mut bytes = fs::read(&blob).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&blob, &bytes).unwrap();
        let refused = world.banger(["image", "pull", &good]);
        refused.exits(1);
        assert!(refused.errors().contains(digest), "{refused}");
        bytes[middle] ^= 1;
        fs::write(&blob, &bytes).unwrap();
        world.banger(["image", "pull", &good]).succeeds();

        // A name that is another's, and a reference that is none.
        let taken = world.banger(["image", "pull", &good, "--name", "busybox"]);
        taken.exits(1);
        assert!(taken.errors().contains("already an image busybox"), "{taken}");
        world.banger(["image", "pull", "Not/A:Reference:at all"]).exits(1);
        world.banger(["image", "pull", &good, "--platform", "plan9"]).exits(1);
    });
}

#[test]
fn a_daemon_killed_while_it_pulls_leaves_no_image_and_the_next_pull_goes_on() {
    in_world(|world| {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::start();
        let root = busybox_root(folder.path());
        // Larger than what is fetched in an instant, and of no use to compress.
        let noise: Vec<u8> = (0..96_u32 << 20)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0])
            .collect();
        fs::write(root.join("noise"), noise).unwrap();
        let reference = registry.push("large:1", &[&root], &json!({}));
        let pull = world.background(&["image", "pull", &reference, "--name", "large"]);
        let partial = world.home().join("cache/blobs/partial");
        banger_e2e::wait_until("the layer is being fetched", Duration::from_secs(60), || {
            let files = fs::read_dir(&partial).into_iter().flatten().flatten();
            let whole = world.home().join("cache/blobs/sha256");
            let done = fs::read_dir(whole).into_iter().flatten().flatten();
            files.map(|file| file.metadata().map_or(0, |data| data.len())).any(|length| length > 0)
                || done
                    .map(|file| file.metadata().map_or(0, |data| data.len()))
                    .any(|l| l > 1 << 20)
        });
        world.kill_daemon();
        pull.end().exits(1);
        world.banger(["image", "show", "large"]).exits(1);
        let images = fs::read_dir(world.home().join("state/images")).unwrap().flatten();
        let hidden: Vec<_> = images
            .map(|file| file.file_name())
            .filter(|name| name.to_string_lossy().starts_with('.'))
            .collect();
        assert!(hidden.is_empty(), "{hidden:?}");
        // Two at once do the work once.
        let both =
            [(); 2].map(|()| world.background(&["image", "pull", &reference, "--name", "large"]));
        for pull in both {
            pull.end().succeeds();
        }
        world
            .banger(["vm", "run", "--rm", "--image", "large", "--", "test", "-s", "/noise"])
            .succeeds();
    });
}
