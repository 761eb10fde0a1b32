//! What the guest's git is asked about a workspace, and what its answers mean. The answers are the guest's: they are read as
//! texts with a bound, and trusted for nothing but what is shown.

use banger_api::workspace::{Repo, Work};
use banger_api::{Code, Problem};

/// Where the guest's git stands, without a trace in its index: the tree is made by a copy of it, on the same filesystem.
/// Commits are counted that no branch of a remote has, and none of those given after the path.
const STATE: &str = r#"set -eu
command -v git >/dev/null 2>&1 || { echo no-git; exit 0; }
export LC_ALL=C GIT_OPTIONAL_LOCKS=0
g() { git -c safe.directory='*' -c core.fsmonitor=false -c core.hooksPath=/dev/null -c advice.addEmbeddedRepo=false "$@"; }
cd -- "$1"
shift
dir=$(g rev-parse --absolute-git-dir)
index=$dir/banger-index-$$
trap 'rm -f -- "$index" "$index.lock"' EXIT
[ ! -e "$dir/index" ] || cp -- "$dir/index" "$index"
GIT_INDEX_FILE=$index g add --all >&2
tree=$(GIT_INDEX_FILE=$index g write-tree)
echo "head $(g rev-parse --verify 'HEAD^{commit}')"
echo "branch $(g symbolic-ref --quiet --short HEAD || :)"
echo "tree $tree"
echo "head-tree $(g rev-parse --verify 'HEAD^{tree}')"
echo "commits $(g rev-list --count --ignore-missing HEAD --branches --tags $(g rev-parse --quiet --verify refs/stash || :) --not --remotes "$@")"
"#;

/// After a tar has come: makes the index know the files, so that the first `git status` need not read them all.
const REFRESH: &str = r#"command -v git >/dev/null 2>&1 || exit 0
for repo; do git -c safe.directory='*' -C "$repo" update-index -q --refresh >/dev/null 2>&1; done
exit 0
"#;

/// Takes a workspace away but for what git ignores, which a build made and the next can use. Submodules come first.
const CLEAR: &str = r#"set -eu
top=$1
if ! command -v git >/dev/null 2>&1 || ! git -c safe.directory='*' -C "$top" rev-parse --git-dir >/dev/null 2>&1; then
    rm -rf -- "$top"
    exit 0
fi
for repo; do
    [ -e "$repo/.git" ] || continue
    cd -- "$repo"
    git -c safe.directory='*' ls-files -z | xargs -0 -r rm -f -- 2>/dev/null || :
    git -c safe.directory='*' clean -ffdq
done
for repo; do rm -rf -- "$repo/.git"; done
"#;

/// Whether there is something at a path: says `there` or nothing.
const THERE: &str = r#"[ ! -e "$1" ] || [ -z "$(ls -A -- "$1")" ] || echo there"#;

const GIT: [&str; 9] = [
    "git",
    "-c",
    "safe.directory=*",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "core.quotePath=true",
    "--no-pager",
    "-C",
];

/// Where a repository in a guest stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The commit that is checked out.
    pub head: String,
    pub branch: Option<String>,
    /// What is in the working tree, ignored files left out.
    pub tree: String,
    /// What is in the commit.
    pub head_tree: String,
    /// On any branch or tag, or stashed, and not known.
    pub commits: u64,
}

/// The folder of a repository of a workspace at `top`.
#[must_use]
pub fn folder(top: &str, repo: &Repo) -> String {
    below(top, &repo.path)
}

fn below(top: &str, path: &str) -> String {
    if path.is_empty() { top.to_owned() } else { format!("{top}/{path}") }
}

/// The command that tells a repository's [`State`].
#[must_use]
pub fn ask_state(top: &str, repo: &Repo) -> Vec<String> {
    let mut words = script(STATE, [folder(top, repo)]);
    words.extend(repo.known_commits.iter().cloned());
    words
}

#[must_use]
pub fn refresh(folders: Vec<String>) -> Vec<String> {
    script(REFRESH, folders)
}

/// The command that takes a workspace away: its top, then all folders with a `.git`, which begin with the top.
#[must_use]
pub fn clear(folders: Vec<String>) -> Vec<String> {
    script(CLEAR, folders)
}

/// The command that says `there` when there is something at a path.
#[must_use]
pub fn ask_whether_there(path: &str) -> Vec<String> {
    script(THERE, [path.to_owned()])
}

/// The command that writes a patch from a commit or tree to another.
#[must_use]
pub fn patch(folder: &str, from: &str, to: &str) -> Vec<String> {
    let words = [
        "diff-tree",
        "-r",
        "-p",
        "--binary",
        "--full-index",
        "--no-renames",
        "--no-color",
        "--no-ext-diff",
        "--no-textconv",
        "--src-prefix=a/",
        "--dst-prefix=b/",
        "--submodule=short",
        from,
        to,
    ];
    git(folder, &words)
}

/// The command that names what differs: see [`read_changes`].
#[must_use]
pub fn changes(folder: &str, from: &str, to: &str) -> Vec<String> {
    git(folder, &["diff-tree", "-r", "--no-renames", "--name-status", "-z", from, to])
}

/// The command that writes a pack of what `head` has and `base` has not; its stdin is [`pack_stdin`].
#[must_use]
pub fn pack(folder: &str) -> Vec<String> {
    git(folder, &["pack-objects", "--revs", "--stdout", "--quiet", "--delta-base-offset"])
}

#[must_use]
pub fn pack_stdin(head: &str, known: &[String]) -> String {
    let known: String = known.iter().map(|commit| format!("^{commit}\n")).collect();
    format!("{head}\n{known}")
}

fn git(folder: &str, words: &[&str]) -> Vec<String> {
    GIT.iter().copied().chain([folder]).chain(words.iter().copied()).map(str::to_owned).collect()
}

fn script(text: &str, args: impl IntoIterator<Item = String>) -> Vec<String> {
    ["sh", "-c", text, "sh"].into_iter().map(str::to_owned).chain(args).collect()
}

/// What [`ask_state`] said; nothing when the guest has no git.
///
/// # Errors
/// When it is nothing that the script says.
pub fn read_state(told: &[u8]) -> Result<Option<State>, Problem> {
    let told = String::from_utf8_lossy(told);
    if told.trim() == "no-git" {
        return Ok(None);
    }
    let field = |name: &str| {
        told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned)
    };
    let oid = |name: &str| field(name).filter(|text| is_oid(text));
    let state = || {
        Some(State {
            head: oid("head")?,
            branch: field("branch").filter(|name| !name.is_empty()),
            tree: oid("tree")?,
            head_tree: oid("head-tree")?,
            commits: field("commits")?.parse().ok()?,
        })
    };
    let unread = || Problem::new(Code::Guest, "the guest's git says what nobody understands");
    state().map(Some).ok_or_else(unread)
}

fn is_oid(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What of a repository nobody has exported.
#[must_use]
pub fn work(repo: &Repo, state: &State) -> Work {
    if repo.known_trees.is_empty() {
        return Work::Unknown;
    }
    // What is committed is among the commits.
    let changed = state.tree != state.head_tree && !repo.known_trees.contains(&state.tree);
    match (state.commits, changed) {
        (0, false) => Work::None,
        (commits, changed) => Work::Some { commits, changed },
    }
}

/// What [`changes`] said: a letter as git has it (A, D, M, T) and a path.
#[must_use]
pub fn read_changes(told: &[u8]) -> Vec<(char, String)> {
    let words: Vec<_> = told.split(|&byte| byte == 0).map(String::from_utf8_lossy).collect();
    let pairs = words.chunks_exact(2);
    pairs.filter_map(|pair| Some((pair[0].chars().next()?, pair[1].clone().into_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repo(trees: &[&str]) -> Repo {
        Repo {
            path: String::new(),
            base: "b".repeat(40),
            branch: None,
            known_commits: vec!["b".repeat(40)],
            known_trees: trees.iter().map(|&tree| tree.to_owned()).collect(),
        }
    }

    fn state(tree: &str, head_tree: &str, commits: u64) -> State {
        let [tree, head_tree] = [tree, head_tree].map(str::to_owned);
        State { head: "c".repeat(40), branch: None, tree, head_tree, commits }
    }

    #[test]
    fn work_is_what_neither_a_known_commit_nor_a_known_tree_has() {
        let known = repo(&["dirty as it came"]);
        assert_eq!(work(&known, &state("dirty as it came", "base", 0)), Work::None);
        assert_eq!(work(&known, &state("base", "base", 0)), Work::None);
        let changed = Work::Some { commits: 0, changed: true };
        assert_eq!(work(&known, &state("new", "base", 0)), changed);
        let committed = Work::Some { commits: 2, changed: false };
        assert_eq!(work(&known, &state("new", "new", 2)), committed);
        let elsewhere = Work::Some { commits: 1, changed: false };
        assert_eq!(work(&known, &state("dirty as it came", "base", 1)), elsewhere);
        assert_eq!(work(&repo(&[]), &state("base", "base", 0)), Work::Unknown);
    }

    #[test]
    fn what_is_no_state_is_refused_and_no_git_is_an_answer() {
        assert_eq!(read_state(b"no-git\n").unwrap(), None);
        let oid = "0123456789abcdef0123456789abcdef01234567";
        let told = format!("head {oid}\nbranch \ntree {oid}\nhead-tree {oid}\ncommits 3\n");
        let state = read_state(told.as_bytes()).unwrap().unwrap();
        assert_eq!((state.branch, state.commits), (None, 3));
        for broken in
            ["", "head x\n", &told.replace("commits 3", "commits -1"), &told.replace(oid, "--all")]
        {
            assert!(read_state(broken.as_bytes()).is_err(), "{broken}");
        }
    }

    #[test]
    fn changes_are_letters_and_paths_also_odd_ones() {
        let told = b"M\0a b\0A\0new\nline\0D\0\xff\0";
        let changes = read_changes(told);
        assert_eq!(changes[0], ('M', "a b".to_owned()));
        assert_eq!(changes[1], ('A', "new\nline".to_owned()));
        assert_eq!(changes[2], ('D', "\u{fffd}".to_owned()));
    }
}
