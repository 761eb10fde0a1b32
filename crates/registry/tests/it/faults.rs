//! Registries and networks that fail.

use std::time::{Duration, Instant};

use banger_registry::{Digest, Trouble};

use crate::faulty::{Act, Faulty};
use crate::images::Images;
use crate::server::Server;
use crate::world::{World, assert_whole, chain};

/// A registry with a proxy before it that treats the big layer by the rule, the first times that it is asked for.
struct Scene {
    _server: Server,
    proxy: Faulty,
    world: World,
    name: String,
    big: Digest,
}

impl Scene {
    async fn new(acts: &'static [Act]) -> Self {
        let images = Images::get();
        let server = Server::plain(&images.storage());
        let big = images.layers("small")[1];
        let path = format!("/v2/small/blobs/{big}");
        let proxy = Faulty::before(server.address(), move |asked, before| {
            let act = acts.get(before).or(acts.last().filter(|act| **act != Act::Forward));
            if asked == path { act.copied().unwrap_or(Act::Forward) } else { Act::Forward }
        })
        .await;
        let name = format!("{}/small:1", proxy.address);
        Self { _server: server, proxy, world: World::new(), name, big }
    }

    fn ranges(&self) -> Vec<String> {
        let hits = self.proxy.hits(&self.big.to_string());
        hits.into_iter().map(|hit| hit.range.unwrap_or_else(|| "all".into())).collect()
    }

    fn partial_bytes(&self) -> Option<u64> {
        let path = self.world.store.folder().join("partial").join(self.big.hex());
        path.metadata().ok().map(|found| found.len())
    }
}

#[tokio::test]
async fn a_transfer_that_is_cut_goes_on_where_it_was() {
    let scene =
        Scene::new(&[Act::Cut(1 << 20), Act::End(2 << 20), Act::Cut(65_536), Act::Forward]).await;
    let fetched = scene.world.pull(&scene.name).await.unwrap();
    assert_whole(&scene.world.store, &fetched);
    assert_eq!(scene.ranges(), ["all", "bytes=1048576-", "bytes=3145728-", "bytes=3211264-"]);
}

#[tokio::test]
async fn a_transfer_that_always_ends_is_given_up_and_can_be_gone_on_with() {
    let mut scene = Scene::new(&[Act::Cut(1000)]).await;
    scene.world.settings.retries = 2;
    let error = scene.world.pull(&scene.name).await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::Network);
    assert_eq!(scene.ranges(), ["all", "bytes=1000-", "bytes=2000-"]);
    assert_eq!(scene.partial_bytes(), Some(3000));
}

#[tokio::test]
async fn a_transfer_that_stalls_is_repeated_and_in_the_end_given_up() {
    let mut scene = Scene::new(&[Act::Stall(1 << 20), Act::Forward]).await;
    scene.world.settings.stall_timeout_ms = 300;
    let fetched = scene.world.pull(&scene.name).await.unwrap();
    assert_whole(&scene.world.store, &fetched);
    assert_eq!(scene.ranges(), ["all", "bytes=1048576-"]);
    assert!(scene.world.notes().contains("sent nothing for 0.3 s"), "{}", scene.world.notes());

    let mut scene = Scene::new(&[Act::Stall(0)]).await;
    scene.world.settings.stall_timeout_ms = 100;
    scene.world.settings.retries = 1;
    let error = scene.world.pull(&scene.name).await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::Timeout);
    assert_eq!(scene.ranges().len(), 2);
}

#[tokio::test]
async fn a_server_that_knows_no_parts_is_asked_for_all() {
    let scene = Scene::new(&[Act::Cut(1 << 20), Act::IgnoreRange, Act::Forward]).await;
    assert_whole(&scene.world.store, &scene.world.pull(&scene.name).await.unwrap());
    assert_eq!(scene.ranges(), ["all", "bytes=1048576-"]);

    let scene = Scene::new(&[Act::Cut(1 << 20), Act::Status(416, None), Act::Forward]).await;
    assert_whole(&scene.world.store, &scene.world.pull(&scene.name).await.unwrap());
    assert_eq!(scene.ranges(), ["all", "bytes=1048576-", "all"]);
}

#[tokio::test]
async fn content_of_another_digest_is_refused_with_both_digests_and_not_kept() {
    let scene = Scene::new(&[Act::Lie]).await;
    let error = scene.world.pull(&scene.name).await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::Input);
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("layer 1 of {} has the digest sha256:", scene.name)),
        "{text}"
    );
    assert!(text.contains(&format!("and {} was announced", scene.big)), "{text}");
    assert_eq!(scene.ranges(), ["all"], "a lie is not asked for twice");
    assert_eq!(scene.partial_bytes(), None);
    assert!(!scene.world.store.path(scene.big).exists());
}

#[tokio::test]
async fn a_spoilt_partial_is_downloaded_anew() {
    let scene = Scene::new(&[Act::Forward]).await;
    let partial = scene.world.store.folder().join("partial").join(scene.big.hex());
    std::fs::write(partial, vec![0; 1 << 20]).unwrap();
    assert_whole(&scene.world.store, &scene.world.pull(&scene.name).await.unwrap());
    assert_eq!(scene.ranges(), ["bytes=1048576-", "all"]);
}

#[tokio::test]
async fn more_than_was_announced_is_stopped_at_once() {
    let scene = Scene::new(&[Act::More]).await;
    let error = scene.world.pull(&scene.name).await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::Input);
    assert!(error.to_string().contains("bytes or more"), "{error}");
    assert_eq!(scene.ranges(), ["all"]);
    assert_eq!(scene.partial_bytes(), None);
}

#[tokio::test]
async fn a_server_in_trouble_is_asked_again_and_one_that_says_no_is_not() {
    let scene = Scene::new(&[Act::Status(500, None), Act::Status(503, None), Act::Forward]).await;
    assert_whole(&scene.world.store, &scene.world.pull(&scene.name).await.unwrap());
    assert_eq!(scene.ranges().len(), 3);
    for (status, trouble) in
        [(404, Trouble::NotFound), (403, Trouble::Denied), (400, Trouble::Network)]
    {
        let acts: &'static [Act] = match status {
            404 => &[Act::Status(404, None)],
            403 => &[Act::Status(403, None)],
            _ => &[Act::Status(400, None)],
        };
        let scene = Scene::new(acts).await;
        assert_eq!(scene.world.pull(&scene.name).await.unwrap_err().trouble(), trouble);
        assert_eq!(scene.ranges().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_server_that_asks_for_a_pause_gets_it() {
    let scene = Scene::new(&[Act::Status(429, Some(("retry-after", "1"))), Act::Forward]).await;
    let begin = Instant::now();
    assert_whole(&scene.world.store, &scene.world.pull(&scene.name).await.unwrap());
    assert!(begin.elapsed() >= Duration::from_secs(1));
    assert!(scene.world.notes().contains("next try in 1 s"), "{}", scene.world.notes());

    let mut scene = Scene::new(&[Act::Status(429, None)]).await;
    scene.world.settings.retries = 1;
    let error = scene.world.pull(&scene.name).await.unwrap_err();
    assert!(chain(&error).contains("status 429"), "{}", chain(&error));
    assert!(error.remedy().unwrap().contains("logged in"));
}

#[tokio::test]
async fn nobody_there_is_told_at_once() {
    let world = World::new();
    let error = world.pull("127.0.0.1:1/small:1").await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::Network);
    assert!(chain(&error).contains("cannot talk with 127.0.0.1:1"), "{}", chain(&error));
    assert_eq!(world.notes(), "", "it was not repeated");
}

#[tokio::test]
async fn mirrors_are_asked_first_and_the_registry_when_they_do_not_help() {
    let images = Images::get();
    let server = Server::plain(&images.storage());
    let absent = Faulty::before(server.address(), |_, _| Act::Status(404, None)).await;
    let big = images.layers("small")[1].to_string();
    let spoils = Faulty::before(server.address(), move |path, _| {
        if path.ends_with(&big) { Act::Lie } else { Act::Forward }
    })
    .await;
    let registry = Faulty::before(server.address(), |_, _| Act::Forward).await;
    let mut world = World::new();
    let mirrors = ["127.0.0.1:1", &absent.address, &spoils.address];
    let mirrors = mirrors.map(|address| format!("http://{address}")).to_vec();
    world.settings.mirrors.insert(registry.address.clone(), mirrors);
    let fetched = world.pull(&format!("{}/small:1", registry.address)).await.unwrap();
    assert_whole(&world.store, &fetched);
    assert_eq!(absent.hits("/").len(), 1);
    assert_eq!(spoils.hits("/manifests/").len(), 1);
    assert_eq!(registry.hits("/manifests/").len(), 0);
    assert_eq!(registry.hits("/blobs/").len(), 1, "only what the mirror spoilt");
    let notes = world.notes();
    for told in ["127.0.0.1:1 does not help", &absent.address, "has the digest"] {
        assert!(notes.contains(told), "{told}: {notes}");
    }
}

#[tokio::test]
async fn when_nobody_has_it_the_registrys_own_words_are_told() {
    let images = Images::get();
    let server = Server::plain(&images.storage());
    let mut world = World::new();
    world.settings.mirrors.insert(server.address().to_owned(), vec!["http://127.0.0.1:1".into()]);
    let error = world.pull(&format!("{}/small:none", server.address())).await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::NotFound);
    assert!(chain(&error).contains("manifest unknown"), "{}", chain(&error));
}

#[tokio::test]
async fn a_proxy_is_used_but_not_for_this_machine() {
    let images = Images::get();
    let server = Server::plain(&images.storage());
    let proxy = Faulty::before(server.address(), |_, _| Act::Forward).await;
    let mut world = World::new();
    world.proxies.http = Some("http://127.0.0.1:1".into());
    world.proxies.https = Some("http://127.0.0.1:1".into());
    world.pull(&format!("{}/small:1", proxy.address)).await.unwrap();
    let world = World { proxies: world.proxies.clone(), ..World::new() };
    // Nobody listens there, so that nothing leaves this machine.
    let error = world.pull("registry.example/small:1").await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::Network);
    assert!(chain(&error).contains("Connection refused"), "{}", chain(&error));
}
