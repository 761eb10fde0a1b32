//! A git repository goes into a VM as it is, is worked on there, and comes back as a branch and as a patch; what has not come
//! back is not dropped unasked.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use banger_e2e::{SYSTEMD, World, in_world};

/// A `git` of the host's in a folder; it leaves no traces that nobody asked for.
#[track_caller]
fn git(world: &World, folder: &Path, args: &[&str]) -> String {
    let folder = folder.to_str().unwrap();
    let first = ["GIT_OPTIONAL_LOCKS=0", "git", "-C", folder, "-c", "protocol.file.allow=always"];
    world.program("env", &[&first[..], args].concat()).succeeds().text()
}

#[track_caller]
fn commit_all(world: &World, repo: &Path, message: &str) {
    git(world, repo, &["add", "--all"]);
    git(world, repo, &["commit", "--quiet", "-m", message]);
}

fn new_repo(world: &World, path: &Path) {
    fs::create_dir_all(path).unwrap();
    git(world, path, &["init", "--quiet", "--initial-branch=main"]);
    git(world, path, &["config", "user.name", "Some One"]);
    git(world, path, &["config", "user.email", "one@example.com"]);
}

/// With something of all that can be the matter.
fn repo(world: &World) -> PathBuf {
    let inner = world.home().join("inner");
    new_repo(world, &inner);
    fs::write(inner.join("value"), "1\n").unwrap();
    commit_all(world, &inner, "inner");

    let repo = world.home().join("project");
    new_repo(world, &repo);
    let files = [
        (
            "Makefile.sh",
            "#!/bin/sh\nset -e\ntest \"$(cat modified)\" = new\ntest -x Makefile.sh\ntest -L link\ntest ! -e untracked\ncat libs/inner/value\n",
        ),
        ("modified", "old\n"),
        ("staged", "old\n"),
        ("renamed from", "what is renamed\n"),
        (".gitignore", "*.o\n"),
    ];
    for (name, content) in files {
        fs::write(repo.join(name), content).unwrap();
    }
    fs::set_permissions(repo.join("Makefile.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(repo.join("binary"), [0_u8, 255, 1]).unwrap();
    symlink("modified", repo.join("link")).unwrap();
    git(world, &repo, &["submodule", "--quiet", "add", inner.to_str().unwrap(), "libs/inner"]);
    commit_all(world, &repo, "all");

    fs::write(repo.join("modified"), "new\n").unwrap();
    fs::write(repo.join("staged"), "new\n").unwrap();
    fs::write(repo.join("binary"), [7_u8, 0, 254]).unwrap();
    git(world, &repo, &["add", "staged"]);
    git(world, &repo, &["mv", "renamed from", "renamed to"]);
    fs::write(repo.join("libs/inner/value"), "2\n").unwrap();
    fs::write(repo.join("untracked"), "secret\n").unwrap();
    fs::write(repo.join("made.o"), "object\n").unwrap();
    repo
}

/// All that is in a folder: modes, times, contents.
fn all_of(folder: &Path) -> BTreeMap<PathBuf, (u32, SystemTime, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let data = path.symlink_metadata().unwrap();
        let content = if data.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        if data.is_dir() {
            found.extend(all_of(&path));
        }
        found.insert(path, (data.permissions().mode(), data.modified().unwrap(), content));
    }
    found
}

/// The paths that have changed since.
fn changed(before: &BTreeMap<PathBuf, (u32, SystemTime, Vec<u8>)>, folder: &Path) -> Vec<PathBuf> {
    let after = all_of(folder);
    let paths = before.keys().chain(after.keys().filter(|path| !before.contains_key(*path)));
    paths.filter(|path| before.get(*path) != after.get(*path)).cloned().collect()
}

#[test]
fn a_repository_is_worked_on_in_a_vm_and_comes_back_as_a_branch_and_as_a_patch() {
    in_world(|world| {
        let repo = repo(world);
        let project = repo.to_str().unwrap();
        let before = all_of(&repo);
        let listed = world.banger(["vm", "run", project, "--dry-run"]);
        listed.succeeds().prints("renamed to\n").prints("libs/inner/value\n");
        assert!(!listed.text().contains("untracked") && world.vms().is_empty());
        let nowhere = world.banger(["vm", "run", world.home().to_str().unwrap(), "--", "true"]);
        nowhere.exits(125).complains("is no git repository to work on");
        assert!(world.vms().is_empty());

        let run = world.banger([
            "vm",
            "run",
            project,
            "--name",
            "web",
            "--image",
            SYSTEMD,
            "--memory",
            "512M",
            "--",
            "./Makefile.sh",
        ]);
        run.succeeds().prints_only("2\n").complains("1 untracked file stays here");
        assert_eq!(changed(&before, &repo), Vec::<PathBuf>::new());
        let status = world.banger(["vm", "workspace", "status", "web", "--format", "json"]).json();
        assert_eq!(status["unexported"]["state"], "none", "{status}");
        let there = world.banger([
            "vm",
            "exec",
            "web",
            "--",
            "git",
            "status",
            "--porcelain=v2",
            "--branch",
        ]);
        let here = git(world, &repo, &["status", "--porcelain=v2", "--branch"]);
        let known: Vec<&str> = here.lines().filter(|line| !line.starts_with('?')).collect();
        there.succeeds().prints_only(&format!("{}\n", known.join("\n")));

        // Work is done: a commit, and something on top.
        let script = "set -e; echo there > 'made there'; git add 'made there'; git commit --quiet -m 'made there'; \
                      printf '\\0\\1' > binary; echo more > 'not added'; echo object > new.o; git rev-parse HEAD";
        let tip = world.banger(["vm", "exec", "web", "--", "sh", "-c", script]).succeeds().text();
        let refused = world.banger(["vm", "delete", "web"]);
        refused.exits(1).complains("work that nobody has exported: 1 commit and changes");
        world
            .banger(["vm", "workspace", "prepare", "web"])
            .exits(1)
            .complains("work that nobody has exported");

        world.banger(["vm", "workspace", "export", "web", "--branch", "from-web"]).succeeds();
        assert_eq!(git(world, &repo, &["rev-parse", "from-web"]), tip);
        assert_eq!(git(world, &repo, &["status", "--porcelain=v2", "--branch"]), here);
        let touched = changed(&before, &repo);
        let is_the_branch = |path: &&PathBuf| {
            let path = path.strip_prefix(&repo).unwrap().to_str().unwrap().to_owned();
            path.starts_with(".git/objects")
                || path == ".git/refs/heads"
                || path == ".git/refs/heads/from-web"
                || path.starts_with(".git/logs/refs/heads")
        };
        assert!(touched.iter().all(|path| is_the_branch(&path)), "{touched:?}");
        world
            .banger(["vm", "workspace", "export", "web", "--branch", "from-web"])
            .exits(1)
            .complains("has a branch");
        world
            .banger(["vm", "workspace", "export", "web", "--branch", "main", "--force"])
            .exits(1)
            .complains("is checked out");
        world.banger(["vm", "delete", "web"]).exits(1).complains("changes that are not committed");

        let patch = world.home().join("web.patch");
        let patch = patch.to_str().unwrap();
        let told = world
            .banger(["vm", "workspace", "export", "web", "-o", patch, "--format", "json"])
            .succeeds()
            .json();
        let clean = world.home().join("clean");
        git(
            world,
            &repo,
            &["worktree", "add", "--quiet", "--detach", clean.to_str().unwrap(), "main"],
        );
        git(world, &clean, &["apply", "--index", "--binary", patch]);
        assert_eq!(git(world, &clean, &["write-tree"]).trim(), told["tree"].as_str().unwrap());
        let diff = world.banger(["vm", "workspace", "diff", "web"]).succeeds().stdout.clone();
        assert_eq!(diff, fs::read(patch).unwrap());

        // Now all is known, and stays so when it is stopped and nobody can be asked.
        world.banger(["vm", "stop", "web"]).succeeds();
        assert_eq!(world.vm("web")["workspace"]["work"]["state"], "none");
        world.banger(["vm", "delete", "web"]).succeeds();
    });
}

#[test]
fn a_large_history_stays_at_home_and_the_host_that_moves_on_is_followed() {
    in_world(|world| {
        let repo = world.home().join("large");
        new_repo(world, &repo);
        // 40 commits of 1 MiB that no compression makes smaller: ten of them are history for the guest.
        let random = fs::File::open("/dev/urandom").unwrap();
        for number in 0..40 {
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut std::io::Read::take(&random, 1 << 20), &mut content)
                .unwrap();
            fs::write(repo.join("blob"), content).unwrap();
            fs::write(repo.join("number"), format!("{number}\n")).unwrap();
            commit_all(world, &repo, "more");
        }
        world.start(SYSTEMD, "web");
        let project = repo.to_str().unwrap();
        let prepared = world.banger(["vm", "workspace", "prepare", "web", project]);
        prepared.succeeds().prints_only("web: /root/repo\n");
        let counted =
            world.banger(["vm", "exec", "web", "--", "git", "rev-list", "--count", "HEAD"]);
        counted.succeeds().prints_only("10\n");
        let size = world.banger(["vm", "exec", "web", "--", "du", "-sm", ".git"]).succeeds().text();
        let size: u64 = size.split('\t').next().unwrap().parse().unwrap();
        assert!((10..14).contains(&size), "{size} MiB");

        world
            .banger([
                "vm",
                "exec",
                "web",
                "--",
                "sh",
                "-c",
                "echo '*.o' > .git/info/exclude; echo x > built.o",
            ])
            .succeeds();
        fs::write(repo.join("number"), "moved on\n").unwrap();
        git(world, &repo, &["commit", "--quiet", "--all", "-m", "moved on"]);
        world
            .banger(["vm", "exec", "web", "--", "cat", "number"])
            .prints("39")
            .complains("prepare web");
        let followed =
            world.banger(["vm", "exec", "--auto-prepare", "web", "--", "cat", "number", "built.o"]);
        followed.succeeds().prints_only("moved on\nx\n");

        // A guest that was not asked may have work.
        world.banger(["vm", "kill", "web"]).succeeds();
        world
            .banger(["vm", "delete", "web"])
            .exits(1)
            .complains("may have work that nobody has exported");
        for (answer, status) in [("n\n", 1), ("y\n", 0)] {
            let mut question = world.terminal(&["vm", "delete", "web"], 24, 80);
            question.shows("may have work that nobody has exported");
            question.shows("go on?");
            question.types(answer);
            assert_eq!(question.ends(), Some(status));
        }
        assert!(world.vms().is_empty());
    });
}
