//! The workspace's test programs: built, and asked which tests they have.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::failure::Failure;
use crate::log::Log;
use crate::programs::Call;
use crate::project;

/// The folder of the crate whose tests boot VMs.
pub(crate) const E2E: &str = "crates/e2e";

/// A program that `cargo test` would run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TestProgram {
    /// The crate, by its folder's name: `host` for `banger-host`.
    pub(crate) of: String,
    /// The file of tests, or the library's or program's own name.
    pub(crate) name: String,
    pub(crate) executable: PathBuf,
}

/// Builds the test programs of these packages, or all of the workspace's.
pub(crate) fn build(packages: &[&str], log: &mut Log) -> Result<Vec<TestProgram>, Failure> {
    let mut call = Call::cargo().args(["test", "--no-run"]);
    if packages.is_empty() {
        call = call.args(["--workspace"]);
    }
    for package in packages {
        call = call.args(["--package", package]);
    }
    built(call, log)
}

/// Builds those that boot VMs. As a part of the workspace: by itself their crate asks for other features of what it depends
/// on, which would all be built once more.
pub(crate) fn build_e2e(log: &mut Log) -> Result<Vec<TestProgram>, Failure> {
    let folder = project::root().join(E2E);
    let cannot = |error: std::io::Error| {
        Failure::new(format!("cannot list {}", folder.join("tests").display())).cause(&error)
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder.join("tests")).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    let call = Call::cargo().args(["test", "--no-run", "--workspace"]);
    let call = call.args(names.iter().flat_map(|name| ["--test", name]));
    let mut programs = built(call, log)?;
    // Other crates may have tests of the same name.
    programs.retain(|program| Path::new(E2E).ends_with(&program.of));
    programs.sort_by_key(TestProgram::title);
    Ok(programs)
}

fn built(call: Call, log: &mut Log) -> Result<Vec<TestProgram>, Failure> {
    let call = call.args(["--message-format=json-render-diagnostics"]).in_folder(project::root());
    let mut programs = Vec::new();
    let end = call.listen(log, |line| {
        let told = parse(line);
        programs.extend(told.clone().flatten());
        told.is_none()
    })?;
    if end.is_good() { Ok(programs) } else { Err(call.failed(end)) }
}

/// A line of cargo's for programs, which may be about a test program; `None` for one that is for people.
fn parse(line: &str) -> Option<Option<TestProgram>> {
    let message: Value =
        line.starts_with('{').then(|| serde_json::from_str(line).ok()).flatten()?;
    let reason = message["reason"].as_str()?;
    let is_test = reason == "compiler-artifact" && message["profile"]["test"] == true;
    let executable = message["executable"].as_str().filter(|_| is_test);
    Some(executable.map(|executable| TestProgram {
        of: folder_of(&message["manifest_path"]),
        name: message["target"]["name"].as_str().unwrap_or_default().to_owned(),
        executable: executable.into(),
    }))
}

fn folder_of(manifest: &Value) -> String {
    let folder = Path::new(manifest.as_str().unwrap_or_default()).parent();
    let name = folder.and_then(Path::file_name).unwrap_or_default();
    name.to_string_lossy().into_owned()
}

impl TestProgram {
    /// `e2e/exec`.
    pub(crate) fn title(&self) -> String {
        format!("{}/{}", self.of, self.name)
    }

    /// The names of its tests that hold `filter`.
    pub(crate) fn tests(&self, filter: Option<&str>) -> Result<Vec<String>, Failure> {
        self.list(&[], filter)
    }

    /// Of these, those that are run where they are asked for only, with what they need: the reason in their `ignore`.
    pub(crate) fn elsewhere(&self, filter: Option<&str>) -> Result<Vec<(String, String)>, Failure> {
        let names = self.list(&["--ignored"], filter)?;
        if names.is_empty() {
            return Ok(Vec::new());
        }
        // Not asked to run them, it says of each why not.
        let said = Call::new(&self.executable).args(["--exact"]).args(&names).output()?;
        Ok(said.lines().filter_map(reason).collect())
    }

    fn list(&self, which: &[&str], filter: Option<&str>) -> Result<Vec<String>, Failure> {
        let call = Call::new(&self.executable).args(["--list", "--format", "terse"]);
        let listed = call.args(which).args(filter).output()?;
        let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
        Ok(names.map(str::to_owned).collect())
    }
}

/// `test NAME ... ignored, REASON`.
fn reason(line: &str) -> Option<(String, String)> {
    let (name, end) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    Some((name.to_owned(), end.trim_start_matches(", ").to_owned()))
}

/// What a line of a test program's output says of one test.
pub(crate) fn verdict(line: &str) -> Option<(&str, bool)> {
    let (name, end) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    // A test that should panic has that behind its name.
    let name = name.strip_suffix(" - should panic").unwrap_or(name);
    match end {
        "ok" => Some((name, true)),
        "FAILED" => Some((name, false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_is_told_from_what_else_cargo_builds() {
        let artifact = |test: bool, executable: &str| {
            format!(
                "{{\"reason\":\"compiler-artifact\",\"manifest_path\":\"/x/crates/e2e/Cargo.toml\",\
                 \"target\":{{\"name\":\"exec\"}},\"profile\":{{\"test\":{test}}},\"executable\":{executable}}}"
            )
        };
        let program = parse(&artifact(true, "\"/t/exec-1\"")).unwrap().unwrap();
        assert_eq!(program.title(), "e2e/exec");
        assert_eq!(program.executable, Path::new("/t/exec-1"));
        assert_eq!(parse(&artifact(false, "\"/t/exec\"")), Some(None));
        assert_eq!(parse(&artifact(true, "null")), Some(None));
        assert_eq!(parse("{\"reason\":\"build-finished\",\"success\":true}"), Some(None));
        assert_eq!(parse("   Compiling banger-e2e v0.1.0"), None);
        assert_eq!(parse("{ this is no message }"), None);
    }

    #[test]
    fn this_programs_own_tests_are_listed_and_filtered() {
        let own = TestProgram {
            of: "xtask".into(),
            name: "xtask".into(),
            executable: std::env::current_exe().unwrap(),
        };
        let filter = "this_programs_own_tests_are_listed_and_filtered";
        assert_eq!(own.tests(Some(filter)).unwrap(), [format!("test_programs::tests::{filter}")]);
        assert!(own.tests(None).unwrap().len() > 20);
        assert_eq!(own.elsewhere(None).unwrap(), []);
    }

    #[test]
    fn why_a_test_was_not_run_is_read_from_its_line() {
        let reason = |line: &str| super::reason(line).map(|(name, why)| format!("{name}|{why}"));
        assert_eq!(
            reason("test a::b ... ignored, needs the test host, before its reset").as_deref(),
            Some("a::b|needs the test host, before its reset")
        );
        assert_eq!(reason("test c ... ignored").as_deref(), Some("c|"));
        assert_eq!(reason("test d ... ok"), None);
    }

    #[test]
    fn a_verdict_is_read_from_a_tests_line_only() {
        assert_eq!(verdict("test a::b ... ok"), Some(("a::b", true)));
        assert_eq!(verdict("test c ... FAILED"), Some(("c", false)));
        assert_eq!(verdict("test d - should panic ... ok"), Some(("d", true)));
        assert_eq!(verdict("test e ... ignored, why"), None);
        assert_eq!(verdict("test result: ok. 1 passed"), None);
    }
}
