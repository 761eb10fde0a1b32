//! Real repositories, taken along by the host's git, unpacked by the system's tar, and brought back.

#![expect(clippy::unwrap_used, reason = "where a test unwraps, it claims")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use banger_api::Code;
use banger_workspace::{Branch, Choice, Plan, Repo, guest, receive};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    /// A repository with 14 commits, the last with a tag.
    fn repo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        git(&path, &["init", "--quiet", "--initial-branch=main"]);
        git(&path, &["config", "user.name", "Some One"]);
        git(&path, &["config", "user.email", "one@example.com"]);
        for number in 0..14 {
            fs::write(path.join("count"), number.to_string()).unwrap();
            git(&path, &["add", "count"]);
            git(&path, &["commit", "--quiet", "-m", &format!("number {number}")]);
        }
        git(&path, &["tag", "-a", "v1", "-m", "one"]);
        path
    }

    /// What a guest would get.
    fn carry(&self, plan: &Plan) -> PathBuf {
        let (tar, guest) = (self.path("carried.tar"), self.path("guest"));
        plan.send(fs::File::create(&tar).unwrap()).unwrap();
        fs::create_dir_all(&guest).unwrap();
        run(&guest, "tar", &["-xf", tar.to_str().unwrap()]);
        guest
    }
}

fn run(folder: &Path, program: &str, args: &[&str]) -> String {
    let told = run_for(folder, program, args, b"");
    String::from_utf8(told).unwrap()
}

fn run_for(folder: &Path, program: &str, args: &[&str], stdin: &[u8]) -> Vec<u8> {
    use std::io::Write;
    #[expect(clippy::disallowed_methods, reason = "the one place where these tests start programs")]
    let mut command = std::process::Command::new(program);
    command.args(args).current_dir(folder).env("LC_ALL", "C").env("GIT_OPTIONAL_LOCKS", "0");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    output.stdout
}

fn git(folder: &Path, args: &[&str]) -> String {
    let words = [&["-c", "protocol.file.allow=always"], args].concat();
    run(folder, "git", &words)
}

/// Every file below, with its mode, its time and its content.
fn all_of(folder: &Path) -> All {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let data = path.symlink_metadata().unwrap();
        let content = match data.is_file() {
            true => fs::read(&path).unwrap(),
            false => Vec::new(),
        };
        if data.is_dir() {
            found.extend(all_of(&path));
        }
        found.insert(path, (data.permissions().mode(), data.modified().unwrap(), content));
    }
    found
}

type All = BTreeMap<PathBuf, (u32, std::time::SystemTime, Vec<u8>)>;

fn same(before: &All, after: &All) {
    let differs = |path: &&PathBuf| before.get(*path) != after.get(*path);
    let all: Vec<_> = before.keys().chain(after.keys()).filter(differs).collect();
    assert!(all.is_empty(), "{all:?}");
}

fn status(folder: &Path) -> String {
    git(folder, &["status", "--porcelain=v2", "--branch", "--untracked-files=all", "--no-renames"])
}

fn plan(path: &Path) -> Plan {
    Plan::of(&Repo::open(path).unwrap(), &Choice::default()).unwrap()
}

/// Everything that can be the matter with a working tree.
fn make_a_mess(repo: &Path) {
    for (name, content) in [
        ("modified", "old\n"),
        ("staged", "old\n"),
        ("both", "old\n"),
        ("deleted", "x"),
        ("removed", "x"),
        ("renamed from", "a rather long content that git knows again\n"),
        ("run.sh", "#!/bin/sh\n"),
        ("replaced/inner", "x"),
        (".gitignore", "ignored\n*.o\n"),
        ("odd \"name\"\tü\n.txt", "x"),
    ] {
        fs::create_dir_all(repo.join(name).parent().unwrap()).unwrap();
        fs::write(repo.join(name), content).unwrap();
    }
    fs::write(repo.join("binary"), [0_u8, 255, 10, 13, 0]).unwrap();
    symlink("modified", repo.join("link")).unwrap();
    git(repo, &["add", "--all"]);
    git(repo, &["commit", "--quiet", "-m", "the files"]);

    fs::write(repo.join("modified"), "new\n").unwrap();
    fs::write(repo.join("staged"), "new\n").unwrap();
    fs::write(repo.join("both"), "staged\n").unwrap();
    fs::write(repo.join("added"), "added\n").unwrap();
    git(repo, &["add", "staged", "both", "added"]);
    git(repo, &["mv", "renamed from", "renamed to"]);
    git(repo, &["rm", "--quiet", "removed"]);
    fs::write(repo.join("both"), "and more\n").unwrap();
    fs::remove_file(repo.join("deleted")).unwrap();
    fs::write(repo.join("binary"), [1_u8, 0, 254]).unwrap();
    fs::set_permissions(repo.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(repo.join("untracked"), "secret\n").unwrap();
    fs::write(repo.join("ignored"), "ignored\n").unwrap();
    fs::write(repo.join("x.o"), "ignored\n").unwrap();
    // A folder that became a link to elsewhere, with a file of the same name there.
    fs::remove_dir_all(repo.join("replaced")).unwrap();
    fs::create_dir(repo.with_extension("elsewhere")).unwrap();
    fs::write(repo.with_extension("elsewhere").join("inner"), "not ours").unwrap();
    symlink(repo.with_extension("elsewhere"), repo.join("replaced")).unwrap();
}

#[test]
fn what_git_says_of_a_working_tree_it_says_of_the_copy_and_the_original_is_untouched() {
    let place = Place::new();
    let repo = place.repo("repo");
    git(&repo, &["remote", "add", "origin", "https://me:secret@example.com/r.git"]);
    make_a_mess(&repo);
    let before = all_of(&repo);

    let plan = plan(&repo);
    let guest = place.carry(&plan);
    same(&before, &all_of(&repo));
    // The link in a tracked folder's place is untracked, and so is the secret: both stay here.
    let expected: String = status(&repo)
        .lines()
        .filter(|line| !line.starts_with('?'))
        .map(|l| format!("{l}\n"))
        .collect();
    assert_eq!(status(&guest), expected);
    assert_eq!(plan.left_out, 2);
    for absent in ["untracked", "ignored", "x.o", "replaced"] {
        assert!(guest.join(absent).symlink_metadata().is_err(), "{absent}");
    }
    assert_eq!(fs::read_to_string(guest.join("both")).unwrap(), "and more\n");
    assert_eq!(git(&guest, &["show", ":both"]), "staged\n");
    assert_eq!(fs::read_link(guest.join("link")).unwrap(), Path::new("modified"));

    git(&guest, &["fsck", "--strict"]);
    assert_eq!(git(&guest, &["rev-list", "--count", "HEAD"]), "10\n");
    assert_eq!(git(&guest, &["rev-parse", "HEAD"]), git(&repo, &["rev-parse", "HEAD"]));
    assert_eq!(git(&guest, &["describe"]), git(&repo, &["describe"]));
    assert_eq!(git(&guest, &["remote", "get-url", "origin"]), "https://example.com/r.git\n");
    assert_eq!(git(&guest, &["config", "user.email"]), "one@example.com\n");

    let choice = Choice { untracked: true, ..Choice::default() };
    let plan = Plan::of(&Repo::open(&repo).unwrap(), &choice).unwrap();
    let with: Vec<&[u8]> = plan.files.iter().map(|file| file.path.as_slice()).collect();
    assert!(with.contains(&&b"untracked"[..]) && !with.contains(&&b"x.o"[..]));
}

#[test]
fn a_new_branch_begins_where_it_is_told_and_with_from_the_tree_is_clean() {
    let place = Place::new();
    let repo = place.repo("repo");
    make_a_mess(&repo);
    let choose = |branch: &str, from: Option<&str>| {
        let choice = Choice {
            branch: Some(branch.to_owned()),
            from: from.map(str::to_owned),
            untracked: false,
        };
        Plan::of(&Repo::open(&repo).unwrap(), &choice)
    };
    let guest = place.carry(&choose("topic/a", Some("HEAD~3")).unwrap());
    assert_eq!(git(&guest, &["symbolic-ref", "HEAD"]), "refs/heads/topic/a\n");
    assert_eq!(git(&guest, &["rev-parse", "HEAD"]), git(&repo, &["rev-parse", "HEAD~3"]));
    assert_eq!(git(&guest, &["status", "--porcelain"]), "");
    fs::remove_dir_all(&guest).unwrap();
    let guest = place.carry(&choose("topic/b", None).unwrap());
    assert!(git(&guest, &["status", "--porcelain"]).contains("MM both\n"));

    for (branch, from, code) in [
        ("-x", None, Code::Invalid),
        ("a..b", None, Code::Invalid),
        ("a", Some("none"), Code::NotFound),
        ("a", Some("--all"), Code::NotFound),
    ] {
        assert_eq!(choose(branch, from).unwrap_err().code, code, "{branch} {from:?}");
    }
}

#[test]
fn submodules_worktrees_and_sparse_checkouts_come_as_they_are() {
    let place = Place::new();
    let inner = place.repo("inner");
    let repo = place.repo("repo");
    git(&repo, &["submodule", "--quiet", "add", inner.to_str().unwrap(), "libs/inner"]);
    git(&repo, &["commit", "--quiet", "-m", "a submodule"]);
    fs::write(repo.join("libs/inner/count"), "changed\n").unwrap();
    fs::write(repo.join("libs/inner/private"), "secret\n").unwrap();
    let guest = place.carry(&plan(&repo));
    assert_eq!(fs::read_to_string(guest.join("libs/inner/count")).unwrap(), "changed\n");
    assert!(!guest.join("libs/inner/private").exists());
    assert_eq!(git(&guest.join("libs/inner"), &["status", "--porcelain"]), " M count\n");
    assert_eq!(git(&guest, &["submodule", "status"]), git(&repo, &["submodule", "status"]));
    fs::remove_dir_all(&guest).unwrap();

    git(&inner, &["worktree", "add", "--quiet", "../tree", "-b", "side"]);
    fs::write(place.path("tree/count"), "of the worktree\n").unwrap();
    let guest = place.carry(&plan(&place.path("tree")));
    assert_eq!(git(&guest, &["symbolic-ref", "--short", "HEAD"]), "side\n");
    assert_eq!(git(&guest, &["status", "--porcelain"]), " M count\n");
    fs::remove_dir_all(&guest).unwrap();

    fs::create_dir(inner.join("far")).unwrap();
    fs::write(inner.join("far/away"), "x").unwrap();
    git(&inner, &["add", "far"]);
    git(&inner, &["commit", "--quiet", "-m", "far"]);
    git(&inner, &["sparse-checkout", "set", "near"]);
    let guest = place.carry(&plan(&inner));
    assert!(!guest.join("far").exists());
    assert_eq!(git(&guest, &["status", "--porcelain"]), "");
}

#[test]
fn what_a_filter_keeps_as_a_pointer_goes_as_a_pointer_and_no_program_of_the_repository_runs() {
    let place = Place::new();
    let repo = place.repo("repo");
    let trap = place.path("trap");
    let program = place.path("program");
    // It would say that it ran, and then do what a filter does.
    fs::write(
        &program,
        format!("#!/bin/sh\necho ran >> {}\nsed s/large/pointer/\n", trap.display()),
    )
    .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let program = program.to_str().unwrap();
    fs::write(repo.join(".gitattributes"), "*.big filter=lfs\n").unwrap();
    fs::write(repo.join("a.big"), "large\n").unwrap();
    fs::write(repo.join("b.big"), "large\n").unwrap();
    // What is as new as the index, git reads again to be sure.
    run(&repo, "touch", &["--date=2020-01-01", "a.big"]);
    git(&repo, &["config", "filter.lfs.clean", program]);
    git(&repo, &["add", "--all"]);
    git(&repo, &["commit", "--quiet", "-m", "large ones"]);
    fs::write(repo.join("b.big"), "large and changed\n").unwrap();
    for key in [
        "core.fsmonitor",
        "diff.external",
        "core.pager",
        "core.sshCommand",
        "core.alternateRefsCommand",
    ] {
        git(&repo, &["config", key, program]);
    }
    for hook in ["post-index-change", "reference-transaction", "pre-commit"] {
        fs::create_dir_all(repo.join(".git/hooks")).unwrap();
        fs::copy(program, repo.join(".git/hooks").join(hook)).unwrap();
    }
    fs::remove_file(&trap).unwrap();
    let guest = place.carry(&plan(&repo));
    assert_eq!(fs::read_to_string(guest.join("a.big")).unwrap(), "pointer\n");
    assert_eq!(fs::read_to_string(guest.join("b.big")).unwrap(), "large and changed\n");
    let tip = commit_in(&guest, "more", "more");
    bring(&place, &repo, &guest, "brought", &tip, false).unwrap();
    assert!(!trap.exists(), "{}", fs::read_to_string(&trap).unwrap());
}

#[test]
fn what_is_no_repository_to_work_on_is_refused_by_its_name() {
    let place = Place::new();
    let (empty, bare) = (place.path("empty"), place.path("bare.git"));
    fs::create_dir(&empty).unwrap();
    run(&empty, "git", &["init", "--quiet", "--bare", bare.to_str().unwrap()]);
    let unborn = place.path("unborn");
    run(&empty, "git", &["init", "--quiet", unborn.to_str().unwrap()]);
    let file = place.path("file");
    fs::write(&file, "").unwrap();
    // Its working tree would be all that is above it.
    let spread = place.repo("spread");
    git(&spread, &["config", "core.worktree", "../.."]);
    for path in [&empty, &bare, &unborn, &file, &spread, &spread.join(".git"), &place.path("none")]
    {
        let problem = Repo::open(path).unwrap_err();
        assert!(matches!(problem.code, Code::Invalid | Code::NotFound), "{problem}");
        assert!(problem.message.contains(path.to_str().unwrap()), "{problem}");
    }
}

fn commit_in(guest: &Path, name: &str, content: &str) -> String {
    fs::write(guest.join(name), content).unwrap();
    git(guest, &["add", "--", name]);
    git(guest, &["commit", "--quiet", "-m", name]);
    git(guest, &["rev-parse", "HEAD"]).trim().to_owned()
}

fn ask(guest: &Path, words: &[String], stdin: &str) -> Vec<u8> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    run_for(guest, words[0], &words[1..], stdin.as_bytes())
}

fn bring(
    place: &Place,
    repo: &Path,
    guest: &Path,
    name: &str,
    tip: &str,
    replace: bool,
) -> Result<(), banger_api::Problem> {
    let repo = Repo::open(repo).unwrap();
    let known = [repo.head().to_owned()];
    let packed = ask(guest, &guest::pack(guest.to_str().unwrap()), &guest::pack_stdin(tip, &known));
    let file = place.path(&format!("{name}.pack"));
    fs::write(&file, packed).unwrap();
    receive(&repo, &file, Branch { name, tip, replace })
}

#[test]
fn commits_come_back_as_a_branch_and_nothing_else_changes() {
    let place = Place::new();
    let repo = place.repo("repo");
    make_a_mess(&repo);
    let guest = place.carry(&plan(&repo));
    let tip = commit_in(&guest, "made there", "x");
    let seen = status(&repo);
    bring(&place, &repo, &guest, "from-vm", &tip, false).unwrap();
    assert_eq!(git(&repo, &["rev-parse", "from-vm"]).trim(), tip);
    assert_eq!(status(&repo), seen);
    git(&repo, &["fsck", "--strict", "--connectivity-only"]);

    let again = bring(&place, &repo, &guest, "from-vm", &tip, false).unwrap_err();
    assert_eq!(again.code, Code::Conflict);
    let next = commit_in(&guest, "made later", "y");
    bring(&place, &repo, &guest, "from-vm", &next, true).unwrap();
    assert_eq!(git(&repo, &["rev-parse", "from-vm"]).trim(), next);
    let checked_out = bring(&place, &repo, &guest, "main", &next, true).unwrap_err();
    assert!(checked_out.message.contains("checked out"), "{checked_out}");
}

#[test]
fn a_pack_that_git_distrusts_or_that_lacks_something_leaves_the_repository_as_it_was() {
    let place = Place::new();
    let repo = place.repo("repo");
    let guest = place.carry(&plan(&repo));
    let blob = git(&guest, &["rev-parse", "HEAD:count"]).trim().to_owned();
    // git itself writes no tree with a `.git` in it, and fsck refuses one.
    let tree = format!("100644 blob {blob}\t.git\n");
    let tree = String::from_utf8(run_for(&guest, "git", &["mktree"], tree.as_bytes())).unwrap();
    let evil = git(&guest, &["commit-tree", "-p", "HEAD", "-m", "evil", tree.trim()]);
    let before = all_of(&repo);
    let refused = bring(&place, &repo, &guest, "evil", evil.trim(), false).unwrap_err();
    assert_eq!(refused.code, Code::Guest);
    assert!(refused.to_string().contains("hasDotgit"), "{refused}");

    // The commit comes without its parent.
    let first = commit_in(&guest, "a", "a");
    let tip = commit_in(&guest, "b", "b");
    let stdin = format!("{tip}\n^{first}\n");
    let packed = ask(&guest, &guest::pack(guest.to_str().unwrap()), &stdin);
    fs::write(place.path("half.pack"), packed).unwrap();
    let branch = Branch { name: "half", tip: &tip, replace: false };
    let opened = Repo::open(&repo).unwrap();
    receive(&opened, &place.path("half.pack"), branch).unwrap_err();
    fs::write(place.path("none.pack"), b"no pack").unwrap();
    receive(&opened, &place.path("none.pack"), branch).unwrap_err();
    same(&before, &all_of(&repo));
}

#[test]
fn the_state_of_a_guest_counts_what_nobody_knows_and_leaves_no_trace() {
    let place = Place::new();
    let repo = place.repo("repo");
    make_a_mess(&repo);
    let guest = place.carry(&plan(&repo));
    let mut known = banger_api::workspace::Repo {
        path: String::new(),
        base: Repo::open(&repo).unwrap().head().to_owned(),
        branch: None,
        known_commits: vec![Repo::open(&repo).unwrap().head().to_owned()],
        known_trees: Vec::new(),
    };
    let top = guest.to_str().unwrap();
    let state = |known: &banger_api::workspace::Repo| {
        let told = ask(&guest, &guest::ask_state(top, known), "");
        guest::read_state(&told).unwrap().unwrap()
    };
    let as_it_came = state(&known);
    known.known_trees.push(as_it_came.tree.clone());
    let index = fs::read(guest.join(".git/index")).unwrap();
    assert_eq!(guest::work(&known, &state(&known)).to_string(), "none");
    fs::write(guest.join("new file"), "x").unwrap();
    assert_eq!(guest::work(&known, &state(&known)).to_string(), "changes that are not committed");
    assert_eq!(index, fs::read(guest.join(".git/index")).unwrap());
    assert!(
        fs::read_dir(guest.join(".git"))
            .unwrap()
            .all(|entry| { !entry.unwrap().file_name().to_string_lossy().starts_with("banger") })
    );
    let patch = ask(&guest, &guest::patch(top, &known.base, &state(&known).tree), "");
    git(&repo, &["worktree", "add", "--quiet", "--detach", "../clean", "HEAD"]);
    run_for(&place.path("clean"), "git", &["apply", "--index", "--binary"], &patch);
    let applied = git(&place.path("clean"), &["write-tree"]);
    assert_eq!(applied.trim(), state(&known).tree);
    let named = guest::read_changes(&ask(
        &guest,
        &guest::changes(top, &as_it_came.tree, &state(&known).tree),
        "",
    ));
    assert_eq!(named, [('A', "new file".to_owned())]);

    // On another branch, and in the stash.
    git(&guest, &["stash", "--quiet", "--include-untracked"]);
    assert_eq!(guest::work(&known, &state(&known)).to_string().split(' ').nth(1), Some("commits"));
    git(&guest, &["stash", "drop", "--quiet"]);
    assert_eq!(guest::work(&known, &state(&known)).to_string(), "none");
    git(&guest, &["switch", "--quiet", "-c", "side"]);
    commit_in(&guest, "aside", "x");
    git(&guest, &["switch", "--quiet", "main"]);
    assert_eq!(guest::work(&known, &state(&known)).to_string(), "1 commit");
}
