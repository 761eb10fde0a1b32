//! Names, passwords, tokens and certificates.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use banger_registry::Trouble;
use base64::Engine as _;

use crate::faulty::{Act, Faulty};
use crate::images::{Images, run};
use crate::server::Server;
use crate::world::{World, assert_whole, chain};

fn login(world: &World, host: &str, password: &str) {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("tester:{password}"));
    world.write(
        ".docker/config.json",
        &format!("{{\"auths\": {{\"{host}\": {{\"auth\": \"{pair}\"}}}}}}"),
    );
}

#[tokio::test]
async fn a_password_opens_and_a_wrong_or_none_does_not() {
    let images = Images::get();
    let server = Server::with_password(&images.storage());
    let world = World::new();
    let name = format!("{}/small:1", server.address());
    let error = world.pull(&name).await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::Denied);
    assert!(chain(&error).contains("wants credentials, or does not have it"), "{}", chain(&error));
    let remedy = error.remedy().unwrap();
    assert!(remedy.contains(&format!("docker login {}", server.address())), "{remedy}");

    login(&world, server.address(), "wrong-SECRET");
    let error = world.pull(&name).await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::Denied);
    assert!(chain(&error).contains("refuses the credentials"), "{}", chain(&error));
    assert!(!format!("{} {error:?}", chain(&error)).contains("SECRET"));

    login(&world, server.address(), "sesame");
    assert_whole(&world.store, &world.pull(&name).await.unwrap());
}

#[tokio::test]
async fn credentials_go_to_their_own_registry_only() {
    let images = Images::get();
    let server = Server::with_password(&images.storage());
    let elsewhere = Faulty::before(server.address(), |_, _| Act::Forward).await;
    // The registry sends for its blobs to another place, as those in clouds do.
    let to: &'static str =
        Box::leak(format!("http://{}/stolen", elsewhere.address).into_boxed_str());
    let redirects = Faulty::before(server.address(), move |path, _| {
        if path.contains("/blobs/") {
            Act::Status(307, Some(("location", to)))
        } else {
            Act::Forward
        }
    })
    .await;
    let world = World::new();
    login(&world, &redirects.address, "sesame");
    world.pull(&format!("{}/small:1", redirects.address)).await.unwrap_err();
    assert!(redirects.hits("/blobs/").iter().any(|hit| hit.authorization.is_some()));
    let stolen = elsewhere.hits("/stolen");
    assert!(!stolen.is_empty());
    assert!(stolen.iter().all(|hit| hit.authorization.is_none()), "{stolen:?}");
}

#[tokio::test]
async fn a_credential_helper_is_asked() {
    let images = Images::get();
    let server = Server::with_password(&images.storage());
    let mut world = World::new();
    let bin = world.path().join("bin");
    world.home.path = format!("{}:/usr/bin:/bin", bin.display()).into();
    let helper = |script: &str| {
        world.write("bin/docker-credential-test", &format!("#!/bin/sh\n{script}\n"));
        let path = bin.join("docker-credential-test");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let config = format!("{{\"credHelpers\": {{\"{}\": \"test\"}}}}", server.address());
    world.write(".docker/config.json", &config);
    let name = format!("{}/small:1", server.address());
    helper("echo the key ring is locked; exit 1");
    let error = world.pull(&name).await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::Denied);
    assert!(chain(&error).ends_with("exit status: 1: the key ring is locked"), "{}", chain(&error));
    helper("cat >/dev/null; echo '{\"Username\":\"tester\",\"Secret\":\"sesame\"}'");
    assert_whole(&world.store, &world.pull(&name).await.unwrap());
}

/// An authority, and a certificate for 127.0.0.1 that it signed.
struct Certificates {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

fn certificates(folder: &Path) -> Certificates {
    let path = |name: &str| folder.join(name);
    let text = |name: &str| path(name).display().to_string();
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    run(
        "openssl",
        "openssl",
        &[
            &["req", "-x509"][..],
            &key,
            &["-keyout", &text("ca.key"), "-out", &text("ca.pem"), "-subj", "/CN=test authority"],
        ]
        .concat(),
    );
    run(
        "openssl",
        "openssl",
        &[
            &["req", "-x509", "-CA", &text("ca.pem"), "-CAkey", &text("ca.key")][..],
            &key,
            &["-keyout", &text("key.pem"), "-out", &text("cert.pem"), "-subj", "/CN=test"],
            &[
                "-addext",
                "subjectAltName=IP:127.0.0.1",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ],
        ]
        .concat(),
    );
    Certificates { authority: path("ca.pem"), certificate: path("cert.pem"), key: path("key.pem") }
}

#[tokio::test]
async fn an_authority_of_ones_own_is_believed_when_it_is_named() {
    let images = Images::get();
    let mut world = World::new();
    let made = certificates(world.path());
    let server = Server::with_tls(&images.storage(), &made.certificate, &made.key);
    let name = format!("{}/small:1", server.address());
    let error = world.pull(&name).await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::Network);
    assert!(error.remedy().unwrap().contains("ca_files"), "{}", chain(&error));
    world.settings.ca_files = vec![made.authority];
    assert_whole(&world.store, &world.pull(&name).await.unwrap());
}

#[tokio::test]
async fn a_registry_that_is_called_insecure_is_asked_in_plain_http() {
    let images = Images::get();
    let mut world = World::new();
    let made = certificates(world.path());
    let server = Server::with_tls(&images.storage(), &made.certificate, &made.key);
    world.settings.ca_files = vec![made.authority];
    world.settings.insecure = vec![server.address().to_owned()];
    let error = world.pull(&format!("{}/small:1", server.address())).await.unwrap_err();
    assert!(chain(&error).contains("answers with status 400"), "{}", chain(&error));
}

#[tokio::test]
async fn an_identity_token_is_not_sent_on_to_another_host() {
    let images = Images::get();
    let world = World::new();
    let made = certificates(world.path());
    let elsewhere = Faulty::before("127.0.0.1:1", |_, _| Act::Status(404, None)).await;
    let to: &'static str =
        Box::leak(format!("http://{}/stolen", elsewhere.address).into_boxed_str());
    let tokens =
        Faulty::before("127.0.0.1:1", move |_, _| Act::Status(307, Some(("location", to)))).await;
    let realm = format!("http://{}/token", tokens.address);
    let server = Server::with_tokens(&images.storage(), &realm, &made.certificate);
    world.write(
        ".docker/config.json",
        &format!("{{\"auths\": {{\"{}\": {{\"identitytoken\": \"idt\"}}}}}}", server.address()),
    );
    let error = world.pull(&format!("{}/small:1", server.address())).await.unwrap_err();
    assert!(chain(&error).contains("answers with status 307"), "{}", chain(&error));
    assert_eq!(tokens.hits("/token").len(), 1);
    assert!(elsewhere.hits("/").is_empty());
}

#[tokio::test]
async fn a_token_is_got_where_the_registry_says() {
    let images = Images::get();
    let world = World::new();
    let made = certificates(world.path());
    // Its tokens are not signed, so the registry refuses them; what matters is how they are asked for and given.
    let tokens = tokens().await;
    let realm = format!("http://{tokens}/token");
    let server = Server::with_tokens(&images.storage(), &realm, &made.certificate);
    let proxy = Faulty::before(server.address(), |_, _| Act::Forward).await;
    let name = format!("{}/small:1", proxy.address);
    let error = world.pull(&name).await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::Denied);
    let asked = |world: &World| {
        let hits = proxy.hits("/manifests/");
        assert!(world.files("sha256") == 0);
        hits.last().unwrap().authorization.clone().unwrap()
    };
    assert_eq!(
        asked(&world),
        "Bearer GET./token?service=test&scope=repository%3Asmall%3Apull.none.none"
    );
    login(&world, &proxy.address, "sesame");
    world.pull(&name).await.unwrap_err();
    let basic = base64::engine::general_purpose::STANDARD.encode("tester:sesame");
    assert!(asked(&world).contains(&format!(".Basic {basic}.")), "{}", asked(&world));
    world.write(
        ".docker/config.json",
        &format!("{{\"auths\": {{\"{}\": {{\"identitytoken\": \"idt\"}}}}}}", proxy.address),
    );
    world.pull(&name).await.unwrap_err();
    let said = asked(&world);
    assert!(said.starts_with("Bearer POST./token.none."), "{said}");
    assert!(
        said.contains("grant_type=refresh_token") && said.ends_with("refresh_token=idt"),
        "{said}"
    );
}

/// Somebody who gives tokens in which he says how he was asked: METHOD.URI.AUTHORIZATION.BODY.
async fn tokens() -> String {
    use http_body_util::{BodyExt as _, Full};
    use hyper::body::{Bytes, Incoming};
    use hyper::{Request, Response};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answer = async |request: Request<Incoming>| {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body =
            if body.is_empty() { "none".into() } else { String::from_utf8(body.to_vec()).unwrap() };
        let authorization =
            parts.headers.get("authorization").map_or("none", |value| value.to_str().unwrap());
        let token = format!("{}.{}.{authorization}.{body}", parts.method, parts.uri);
        let text = serde_json::json!({"token": token}).to_string();
        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(text))))
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(answer);
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service),
            );
        }
    });
    address
}
