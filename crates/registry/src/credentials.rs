//! The user's names and passwords for registries, from where Docker and podman keep them.
//!
//! Formats: Docker's `config.json` (docker-login(1)) and podman's `auth.json` (containers-auth.json(5)), which adds keys
//! with a path: `host/namespace/repository`. Nothing is written, and no secret gets into an error or a log.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use crate::programs::{self, HelperError};
use crate::reference::DEFAULT_HOST;

/// More than any such file has.
const LARGEST_FILE: u64 = 1 << 20;
/// Docker's key for its own registry.
const DOCKER_SERVER: &str = "https://index.docker.io/v1/";
const DOCKER_HOSTS: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
/// What a helper says instead of a name when the secret is a token (docker-credential-helpers).
const TOKEN_USER: &str = "<token>";

/// Where the user keeps credentials. Given, not looked up: the daemon may be a service.
#[derive(Debug, Clone)]
pub struct Home {
    /// `HOME`
    pub folder: Option<PathBuf>,
    /// `DOCKER_CONFIG`, else `.docker` in the home folder.
    pub docker_config: Option<PathBuf>,
    /// `REGISTRY_AUTH_FILE`
    pub registry_auth_file: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`
    pub runtime_folder: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`, else `.config` in the home folder.
    pub config_folder: Option<PathBuf>,
    /// `PATH`, where credential helpers are looked for.
    pub path: OsString,
    /// A helper is killed after this time; it may ask the user for a password.
    pub helper_deadline: Duration,
}

impl Home {
    /// From the variables of an environment.
    pub fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let folder = |name| {
            variable(name).map(PathBuf::from).filter(|folder: &PathBuf| folder.is_absolute())
        };
        Self {
            folder: folder("HOME"),
            docker_config: folder("DOCKER_CONFIG"),
            registry_auth_file: folder("REGISTRY_AUTH_FILE"),
            runtime_folder: folder("XDG_RUNTIME_DIR"),
            config_folder: folder("XDG_CONFIG_HOME"),
            path: variable("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()),
            helper_deadline: Duration::from_secs(60),
        }
    }

    /// The files, the one that counts most first.
    fn files(&self) -> Vec<PathBuf> {
        let at_home = |name| self.folder.as_ref().map(|home| home.join(name));
        let containers = |folder: PathBuf| folder.join("containers/auth.json");
        let files = [
            self.registry_auth_file.clone(),
            self.docker_config.clone().or(at_home(".docker")).map(|it| it.join("config.json")),
            self.runtime_folder.clone().map(containers),
            self.config_folder.clone().or(at_home(".config")).map(containers),
        ];
        files.into_iter().flatten().collect()
    }
}

/// Text that is not shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    Anonymous,
    Password {
        user: String,
        password: Secret,
    },
    /// OAuth2's refresh token, which `docker login` gets from some registries.
    IdentityToken(Secret),
}

#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    // serde's own words quote the file.
    #[error("{path} is not JSON of the right form, at line {line}, column {column}")]
    Json { path: PathBuf, line: usize, column: usize },
    #[error("the entry for {key} in {path} is not base64 of NAME:PASSWORD")]
    Auth { path: PathBuf, key: String },
    #[error(
        "{path} names a credential helper that cannot be: letters, figures, `-`, `_` and `.` only"
    )]
    HelperName { path: PathBuf },
    #[error("the credential helper {helper} that {path} names did not help")]
    Helper {
        path: PathBuf,
        helper: String,
        #[source]
        cause: HelperError,
    },
    #[error("what the credential helper {helper} answers is not of the right form")]
    HelperAnswer { helper: String },
}

/// What was found, and what went wrong on the way: a broken file or helper matters only when the registry wants more.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) credentials: Credentials,
    pub(crate) troubles: Vec<Arc<CredentialError>>,
}

/// The user's credentials for what is at this path of this registry.
pub(crate) async fn find(home: &Home, host: &str, path: &str) -> Found {
    let mut troubles = Vec::new();
    for file in home.files() {
        match look_in(home, &file, host, path, &mut troubles).await {
            Ok(Some(credentials)) => return Found { credentials, troubles },
            Ok(None) => {}
            Err(trouble) => troubles.push(Arc::new(trouble)),
        }
    }
    Found { credentials: Credentials::Anonymous, troubles }
}

#[derive(Deserialize)]
struct AuthFile {
    auths: Option<BTreeMap<String, Option<Entry>>>,
    #[serde(rename = "credHelpers")]
    cred_helpers: Option<BTreeMap<String, Option<String>>>,
    #[serde(rename = "credsStore")]
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

async fn look_in(
    home: &Home,
    file: &Path,
    host: &str,
    path: &str,
    troubles: &mut Vec<Arc<CredentialError>>,
) -> Result<Option<Credentials>, CredentialError> {
    let Some(config) = read(file)? else { return Ok(None) };
    let helpers = config.cred_helpers.unwrap_or_default();
    let store = config.creds_store.filter(|name| !name.is_empty());
    let own = best(&helpers, host, path).and_then(|(key, name)| Some((key, name.clone()?)));
    let helper = match own {
        Some((key, name)) => Some((name, key.to_owned())),
        None => store.map(|name| (name, host.to_owned())),
    };
    if let Some((helper, key)) = helper {
        let server = if is_docker(&normal(&key)) { DOCKER_SERVER } else { &key };
        match ask_helper(home, file, &helper, server).await {
            Ok(Some(credentials)) => return Ok(Some(credentials)),
            Ok(None) => {}
            // The file itself may know more.
            Err(trouble) => troubles.push(Arc::new(trouble)),
        }
    }
    let auths = config.auths.unwrap_or_default();
    match best(&auths, host, path) {
        Some((key, Some(entry))) => read_entry(entry).ok_or_else(|| CredentialError::Auth {
            path: file.to_owned(),
            key: key.chars().take(200).collect(),
        }),
        _ => Ok(None),
    }
}

fn read(path: &Path) -> Result<Option<AuthFile>, CredentialError> {
    let failed = |cause| CredentialError::Read { path: path.to_owned(), cause };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(cause)
            if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(None);
        }
        Err(cause) => return Err(failed(cause)),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is not a file")));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE).read_to_end(&mut bytes).map_err(failed)?;
    // An empty file is what a container runtime mounts where there is none.
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let config = serde_json::from_slice(&bytes).map_err(|error| CredentialError::Json {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
    })?;
    Ok(Some(config))
}

/// The entry whose key says most: the whole path, then each folder above, then the host.
fn best<'a, T>(
    entries: &'a BTreeMap<String, T>,
    host: &str,
    path: &str,
) -> Option<(&'a str, &'a T)> {
    let mut wanted = format!("{host}/{path}");
    loop {
        let found = entries.iter().find(|(key, _)| same_place(&normal(key), &wanted));
        if let Some((key, value)) = found {
            return Some((key, value));
        }
        let parent = wanted.rfind('/')?;
        wanted.truncate(parent);
    }
}

/// A key without what may be around it: `https://ghcr.io/v1/` is `ghcr.io`.
fn normal(key: &str) -> String {
    let key = key.strip_prefix("https://").or(key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    key.strip_suffix("/v1").or(key.strip_suffix("/v2")).unwrap_or(key).to_owned()
}

fn is_docker(host: &str) -> bool {
    DOCKER_HOSTS.contains(&host)
}

fn same_place(key: &str, wanted: &str) -> bool {
    let split = |text: &str| match text.split_once('/') {
        Some((host, path)) => (host.to_owned(), path.to_owned()),
        None => (text.to_owned(), String::new()),
    };
    let ((key_host, key_path), (host, path)) = (split(key), split(wanted));
    key_path == path && (key_host == host || (host == DEFAULT_HOST && is_docker(&key_host)))
}

/// `Some(None)` when the entry is there and says nothing, as Docker leaves it beside a store; `None` when it is broken.
fn read_entry(entry: &Entry) -> Option<Option<Credentials>> {
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if let Some(token) = filled(&entry.identitytoken) {
        return Some(Some(Credentials::IdentityToken(Secret(token))));
    }
    if let Some(auth) = filled(&entry.auth) {
        let engine = GeneralPurpose::new(
            &base64::alphabet::STANDARD,
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
        );
        let pair = String::from_utf8(engine.decode(auth.trim()).ok()?).ok()?;
        let (user, password) = pair.split_once(':')?;
        let password = Secret(password.trim_end_matches('\0').to_owned());
        return Some(Some(Credentials::Password { user: user.to_owned(), password }));
    }
    Some(filled(&entry.username).map(|user| {
        let password = Secret(entry.password.clone().unwrap_or_default());
        Credentials::Password { user, password }
    }))
}

async fn ask_helper(
    home: &Home,
    file: &Path,
    helper: &str,
    server: &str,
) -> Result<Option<Credentials>, CredentialError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if helper.is_empty() || helper.len() > 100 || !helper.bytes().all(is_good) {
        return Err(CredentialError::HelperName { path: file.to_owned() });
    }
    let answer = programs::get_credentials(
        helper,
        server,
        &home.path,
        home.folder.as_deref(),
        home.helper_deadline,
    )
    .await
    .map_err(|cause| CredentialError::Helper {
        path: file.to_owned(),
        helper: helper.to_owned(),
        cause,
    })?;
    let Some(answer) = answer else { return Ok(None) };
    let Answer { username, secret } = serde_json::from_slice(&answer)
        .map_err(|_| CredentialError::HelperAnswer { helper: helper.to_owned() })?;
    Ok(if username == TOKEN_USER {
        Some(Credentials::IdentityToken(Secret(secret)))
    } else if username.is_empty() {
        None
    } else {
        Some(Credentials::Password { user: username, password: Secret(secret) })
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// `u:p`
    const AUTH: &str = "dTpw";

    fn home(folder: &Path) -> Home {
        let mut home = Home::from_environment(|name| (name == "HOME").then(|| folder.into()));
        home.path = folder.join("bin").into();
        home.helper_deadline = Duration::from_secs(10);
        home
    }

    fn write(folder: &Path, name: &str, text: &str) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn helper(folder: &Path, name: &str, script: &str) {
        let name = format!("bin/docker-credential-{name}");
        write(folder, &name, &format!("#!/bin/sh\n{script}\n"));
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn user(found: &Found) -> &str {
        match &found.credentials {
            Credentials::Password { user, .. } => user,
            Credentials::IdentityToken(_) => "<token>",
            Credentials::Anonymous => "",
        }
    }

    #[tokio::test]
    async fn the_key_that_says_most_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let entry = |user: &str| format!("{{\"username\": \"{user}\", \"password\": \"p\"}}");
        let auths = [
            ("a.example", "host"),
            ("a.example/team", "team"),
            ("a.example/team/app", "app"),
            ("https://b.example/v1/", "url"),
            ("https://index.docker.io/v1/", "docker"),
            ("127.0.0.1:5000", "port"),
        ];
        let auths = auths.map(|(key, name)| format!("\"{key}\": {}", entry(name))).join(",");
        write(folder.path(), ".docker/config.json", &format!("{{\"auths\": {{{auths}}}}}"));
        for (host, path, expected) in [
            ("a.example", "x", "host"),
            ("a.example", "team/x", "team"),
            ("a.example", "team/app", "app"),
            ("a.example", "teamwork/app", "host"),
            ("b.example", "x", "url"),
            ("docker.io", "library/alpine", "docker"),
            ("127.0.0.1:5000", "x", "port"),
            ("127.0.0.1:5001", "x", ""),
        ] {
            let found = find(&home(folder.path()), host, path).await;
            assert_eq!(user(&found), expected, "{host}/{path}");
            assert!(found.troubles.is_empty());
        }
    }

    #[tokio::test]
    async fn files_are_looked_in_by_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut home = home(folder.path());
        home.runtime_folder = Some(folder.path().join("run"));
        home.registry_auth_file = Some(folder.path().join("named.json"));
        let name = |user: &str| {
            format!("{{\"auths\": {{\"h.x\": {{\"username\": \"{user}\", \"password\": \"p\"}}}}}}")
        };
        for (file, user_name) in [
            (".config/containers/auth.json", "config"),
            ("run/containers/auth.json", "run"),
            (".docker/config.json", "docker"),
            ("named.json", "named"),
        ] {
            write(folder.path(), file, &name(user_name));
            assert_eq!(user(&find(&home, "h.x", "a").await), user_name);
        }
    }

    #[tokio::test]
    async fn passwords_and_tokens_are_read_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        write(
            folder.path(),
            ".docker/config.json",
            &format!(
                "{{\"auths\": {{\"a.x\": {{\"auth\": \"{AUTH}\"}}, \"t.x\": {{\"auth\": \"\", \"identitytoken\": \"tok\"}}, \"e.x\": {{}}, \"bad.x\": {{\"auth\": \"SECRET!\"}}}}}}"
            ),
        );
        let home = home(folder.path());
        let found = find(&home, "a.x", "b").await.credentials;
        assert_eq!(found, Credentials::Password { user: "u".into(), password: Secret("p".into()) });
        assert!(format!("{found:?}").contains("(secret)"));
        let found = find(&home, "t.x", "b").await.credentials;
        assert_eq!(found, Credentials::IdentityToken(Secret("tok".into())));
        assert_eq!(find(&home, "e.x", "b").await.credentials, Credentials::Anonymous);
        let found = find(&home, "bad.x", "b").await;
        assert_eq!(found.credentials, Credentials::Anonymous);
        let trouble = format!("{} {:?}", found.troubles[0], found.troubles[0]);
        assert!(trouble.contains("bad.x") && !trouble.contains("SECRET"), "{trouble}");
    }

    #[tokio::test]
    async fn a_broken_file_is_told_without_its_content() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), ".docker/config.json", "{\"auths\": {\"a.x\": \"SECRET\"}}");
        write(
            folder.path(),
            ".config/containers/auth.json",
            &format!("{{\"auths\": {{\"a.x\": {{\"auth\": \"{AUTH}\"}}}}}}"),
        );
        let found = find(&home(folder.path()), "a.x", "b").await;
        assert_eq!(user(&found), "u", "the next file is looked in");
        let trouble = format!("{} {:?}", found.troubles[0], found.troubles[0]);
        assert!(trouble.contains("line 1") && !trouble.contains("SECRET"), "{trouble}");
    }

    #[tokio::test]
    async fn helpers_are_asked_with_the_servers_name() {
        let folder = tempfile::tempdir().unwrap();
        let answer =
            "printf '{\"ServerURL\":\"x\",\"Username\":\"%s\",\"Secret\":\"s\"}' \"$1-$(cat)\"";
        helper(folder.path(), "one", answer);
        helper(folder.path(), "store", "echo '{\"Username\":\"<token>\",\"Secret\":\"s\"}'");
        write(
            folder.path(),
            ".docker/config.json",
            "{\"credHelpers\": {\"a.x\": \"one\", \"docker.io\": \"one\"}, \"credsStore\": \"store\"}",
        );
        let mut home = home(folder.path());
        home.path.push(":/usr/bin:/bin");
        assert_eq!(user(&find(&home, "a.x", "b").await), "get-a.x");
        let docker = find(&home, "docker.io", "library/a").await;
        assert_eq!(user(&docker), "get-https://index.docker.io/v1/");
        assert_eq!(user(&find(&home, "other.x", "b").await), "<token>");
    }

    #[tokio::test]
    async fn a_helper_that_does_not_help_is_told_without_secrets() {
        let folder = tempfile::tempdir().unwrap();
        helper(folder.path(), "none", "echo credentials not found in native keychain; exit 1");
        helper(folder.path(), "fails", "echo '{\"Secret\":\"SECRET\"}'; exit 3");
        helper(folder.path(), "speaks", "echo locked >&2; exit 3");
        helper(folder.path(), "nonsense", "echo SECRET");
        helper(folder.path(), "hangs", "exec sleep 600");
        let mut home = home(folder.path());
        home.path.push(":/usr/bin:/bin");
        home.helper_deadline = Duration::from_millis(300);
        for (name, expected) in [
            ("none", ""),
            ("absent", "there is no docker-credential-absent in PATH"),
            ("fails", "exit status: 3: it did not say why"),
            ("speaks", "exit status: 3: locked"),
            ("nonsense", "not of the right form"),
            ("hangs", "was killed"),
            ("../x", "letters, figures"),
        ] {
            write(folder.path(), ".docker/config.json", &format!("{{\"credsStore\": \"{name}\"}}"));
            if name != "hangs" {
                home.helper_deadline = Duration::from_secs(10);
            } else {
                home.helper_deadline = Duration::from_millis(300);
            }
            let found = find(&home, "a.x", "b").await;
            assert_eq!(found.credentials, Credentials::Anonymous);
            let told: Vec<String> = found.troubles.iter().map(|trouble| chain(trouble)).collect();
            assert_eq!(told.is_empty(), expected.is_empty(), "{name}: {told:?}");
            assert!(told.concat().contains(expected), "{name}: {told:?}");
            assert!(!format!("{:?}", found.troubles).contains("SECRET"), "{name}");
        }
    }

    fn chain(error: &CredentialError) -> String {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            text += &format!(": {error}");
            cause = error.source();
        }
        text
    }
}
