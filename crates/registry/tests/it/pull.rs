//! Pulls that go well.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use banger_registry::{Compression, Digest, LayerState, Store, Trouble};

use crate::faulty::{Act, Faulty};
use crate::images::Images;
use crate::server::Server;
use crate::world::{Told, World, assert_whole, chain};

/// Where the killed pull of another process goes to, and comes from.
const CHILD_STORE: &str = "BANGER_TEST_STORE";
const CHILD_REGISTRY: &str = "BANGER_TEST_REGISTRY";

#[tokio::test]
async fn an_image_is_pulled_with_its_config() {
    let images = Images::get();
    let mut world = World::new();
    if let Some(folder) = std::env::var_os(CHILD_STORE) {
        world.store = Store::open(Path::new(&folder)).unwrap();
    }
    let (server, address) = match std::env::var(CHILD_REGISTRY) {
        Ok(address) => (None, address),
        Err(_) => {
            let server = Server::plain(&images.storage());
            let address = server.address().to_owned();
            (Some(server), address)
        }
    };
    let fetched = world.pull(&format!("{address}/small:1")).await.unwrap();
    assert_whole(&world.store, &fetched);
    let (digest, _) = images.manifest("small");
    assert_eq!((fetched.digest, fetched.manifest_digest), (digest, digest));
    assert_eq!(fetched.reference.as_ref().unwrap().short(), format!("{address}/small:1"));
    let config = &fetched.config;
    assert_eq!(
        (&config.entrypoint[..], &config.cmd[..]),
        (&["/init".into()][..], &["-v".into()][..])
    );
    assert!(config.env.contains(&"A=1".into()));
    assert_eq!(
        (&*config.user, &*config.working_dir, &*config.stop_signal),
        ("7:8", "/etc", "SIGINT")
    );
    assert_eq!(config.exposed_ports, ["80/tcp"]);
    assert_eq!(config.labels["who"], "test");
    let layers: Vec<Digest> = fetched.layers.iter().map(|layer| layer.digest).collect();
    assert_eq!(layers, images.layers("small"));
    assert!(fetched.layers.iter().all(|layer| layer.compression == Compression::Gzip));
    assert_eq!(
        fetched.layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>(),
        config.diff_ids
    );
    let told = world.told.lock().unwrap();
    let total_bytes = fetched.layers.iter().map(|layer| layer.size_bytes).sum();
    assert_eq!(told[0], Told::Resolved { layers: 3, total_bytes });
    let big = fetched.layers[1].digest;
    assert!(told.iter().any(|told| matches!(
        told,
        Told::Layer { digest, done_bytes, state: LayerState::Downloading } if *digest == big && *done_bytes > 1 << 20
    )));
    assert!(told.contains(&Told::Layer {
        digest: big,
        done_bytes: fetched.layers[1].size_bytes,
        state: LayerState::Done
    }));
    drop(server);
}

#[tokio::test]
async fn what_is_there_is_not_downloaded_again() {
    let images = Images::get();
    let server = Server::plain(&images.storage());
    let proxy = Faulty::before(server.address(), |_, _| Act::Forward).await;
    let world = World::new();
    let first = world.pull(&format!("{}/small:1", proxy.address)).await.unwrap();
    let asked = proxy.hits("/blobs/").len();
    assert_eq!(asked, 4, "a config and three layers");
    let again = world.pull(&format!("{}/small:1", proxy.address)).await.unwrap();
    assert_eq!(again.layers, first.layers);
    assert_eq!(proxy.hits("/blobs/").len(), asked);
    assert_eq!(world.ends(LayerState::Cached), 3);
    // By its digest it is had without asking anybody.
    let asked = proxy.hits("/").len();
    let name = format!("{}/small@{}", proxy.address, first.digest);
    assert_whole(&world.store, &world.pull(&name).await.unwrap());
    let asked_since = proxy.hits("/").split_off(asked);
    assert!(asked_since.is_empty(), "{asked_since:?}");
}

#[tokio::test]
async fn the_manifest_for_the_platform_is_pulled() {
    let images = Images::get();
    let server = Server::plain(&images.storage());
    let mut world = World::new();
    let name = format!("{}/multi:1", server.address());
    let amd64 = world.pull(&name).await.unwrap();
    assert_eq!(amd64.digest, images.manifest("multi").0);
    assert_eq!(amd64.manifest_digest, images.manifest("small").0);
    assert_whole(&world.store, &amd64);
    world.platform = "linux/arm64".parse().unwrap();
    assert_eq!(world.pull(&name).await.unwrap().manifest_digest, images.manifest("arm").0);
    world.platform = "linux/s390x".parse().unwrap();
    let error = world.pull(&name).await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::Input);
    assert!(
        chain(&error)
            .ends_with("it has nothing for linux/s390x; there is linux/amd64, linux/arm64"),
        "{}",
        chain(&error)
    );
    assert!(error.remedy().unwrap().contains("--platform"));
    // A single image says in its config what it is for.
    let error = world.pull(&format!("{}/small:1", server.address())).await.unwrap_err();
    assert!(
        chain(&error).ends_with("it is for linux/amd64, not for linux/s390x"),
        "{}",
        chain(&error)
    );
}

#[tokio::test]
async fn a_digest_names_an_image_and_nothing_else_is_taken_for_it() {
    let images = Images::get();
    let server = Server::plain(&images.storage());
    let (digest, _) = images.manifest("arm");
    let mut world = World::new();
    world.platform = "linux/arm64".parse().unwrap();
    let fetched = world.pull(&format!("{}/arm@{digest}", server.address())).await.unwrap();
    assert_eq!(fetched.digest, digest);
    let absent = Digest::of(b"absent");
    let error = world.pull(&format!("{}/arm@{absent}", server.address())).await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::NotFound);
    let proxy = Faulty::before(server.address(), |_, _| Act::Lie).await;
    let world = World::new();
    let error = world.pull(&format!("{}/arm@{digest}", proxy.address)).await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::Input);
    assert!(error.to_string().contains(&digest.to_string()), "{error}");
    assert_eq!(world.files("sha256"), 0);
}

#[tokio::test]
async fn a_name_that_is_not_there_is_told() {
    let images = Images::get();
    let server = Server::plain(&images.storage());
    let world = World::new();
    let name = format!("{}/small:none", server.address());
    let error = world.pull(&name).await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::NotFound);
    assert_eq!(
        chain(&error),
        format!(
            "cannot get the manifest of {name}: {} does not have it: manifest unknown",
            server.address()
        )
    );
    assert_eq!(error.remedy().as_deref(), Some("check the name and the tag"));
}

#[tokio::test]
async fn layers_may_be_plain_or_zstd_and_there_twice() {
    let images = Images::get();
    let server = Server::plain(&images.storage());
    let world = World::new();
    let plain = world.pull(&format!("{}/plain:1", server.address())).await.unwrap();
    assert_eq!(plain.layers.len(), 2);
    assert_eq!(plain.layers[0], plain.layers[1]);
    assert_eq!(plain.layers[0].compression, Compression::None);
    assert_eq!(plain.layers[0].digest, plain.layers[0].diff_id);
    let zstd = world.pull(&format!("{}/zstd:1", server.address())).await.unwrap();
    assert!(zstd.layers.iter().all(|layer| layer.compression == Compression::Zstd));
    assert_whole(&world.store, &zstd);
}

#[tokio::test]
async fn two_pulls_of_one_name_fetch_each_blob_once() {
    let images = Images::get();
    let server = Server::plain(&images.storage());
    let proxy = Faulty::before(server.address(), |_, _| Act::Forward).await;
    let world = World::new();
    let name = format!("{}/small:1", proxy.address);
    let (one, other) = tokio::join!(world.pull(&name), world.pull(&name));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!(one.layers, other.layers);
    for layer in images.layers("small") {
        assert_eq!(proxy.hits(&layer.to_string()).len(), 1);
    }
    assert_eq!(world.ends(LayerState::Cached) + world.ends(LayerState::Done), 6);
}

#[tokio::test]
async fn a_pull_that_is_given_up_is_gone_on_with() {
    let images = Images::get();
    let server = Server::plain(&images.storage());
    let big = images.layers("small")[1];
    let path = format!("/v2/small/blobs/{big}");
    let proxy = Faulty::before(server.address(), move |asked, before| {
        if asked == path && before == 0 { Act::Stall(3 << 20) } else { Act::Forward }
    })
    .await;
    let world = World::new();
    let name = format!("{}/small:1", proxy.address);
    let (come, mut came) = tokio::sync::mpsc::unbounded_channel();
    let watch = |progress: banger_registry::Progress<'_>| {
        if let banger_registry::Progress::Layer { digest, done_bytes, .. } = progress
            && digest == big
            && done_bytes > 2 << 20
        {
            come.send(()).unwrap();
        }
    };
    let puller = world.puller();
    let reference = name.parse().unwrap();
    tokio::select! {
        pulled = puller.pull(&reference, &world.platform, &world.store, &watch) => panic!("{pulled:?}"),
        Some(()) = came.recv() => {}
    }
    let fetched = world.pull(&name).await.unwrap();
    assert_whole(&world.store, &fetched);
    let hits = proxy.hits(&big.to_string());
    assert_eq!(hits.len(), 2);
    let range = hits[1].range.as_deref().unwrap();
    assert!(range.starts_with("bytes=") && range != "bytes=0-", "{range}");
    assert_eq!(world.files("partial"), 0);
}

#[tokio::test]
async fn a_killed_pull_leaves_partials_only_and_is_gone_on_with() {
    let images = Images::get();
    let server = Server::plain(&images.storage());
    let big = images.layers("small")[1];
    let path = format!("/v2/small/blobs/{big}");
    let proxy = Faulty::before(server.address(), move |asked, before| {
        if asked == path && before == 0 { Act::Stall(3 << 20) } else { Act::Forward }
    })
    .await;
    let world = World::new();
    let mut child = another_process(world.store.folder(), &proxy.address);
    let partial = world.store.folder().join("partial").join(big.hex());
    let grown = tokio::task::spawn_blocking({
        let partial = partial.clone();
        move || wait_for_size(&partial, 3 << 20, Duration::from_secs(30))
    });
    let grown = grown.await.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(grown, "nothing came to {}", partial.display());
    assert!(!world.store.path(big).exists());
    assert!(world.store.verify(|_| ()).unwrap().is_empty());
    // Its lease has ended with it; what it had is not lost.
    let fetched = world.pull(&format!("{}/small:1", proxy.address)).await.unwrap();
    assert_whole(&world.store, &fetched);
    assert_eq!(proxy.hits(&big.to_string())[1].range.as_deref(), Some("bytes=3145728-"));
    assert_eq!(world.files("partial"), 0);
}

/// The first test of this file, in a process of its own, with that store and that registry.
fn another_process(store: &Path, registry: &str) -> Child {
    #[expect(clippy::disallowed_methods, reason = "a process that the test kills")]
    Command::new("/usr/bin/setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "pull::an_image_is_pulled_with_its_config"])
        .env(CHILD_STORE, store)
        .env(CHILD_REGISTRY, registry)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Whether the file grows to this size in time.
fn wait_for_size(path: &Path, bytes: u64, deadline: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::inotify;
    let end = Instant::now() + deadline;
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    let events = inotify::WatchFlags::CREATE | inotify::WatchFlags::MODIFY;
    inotify::add_watch(&watch, path.parent().unwrap(), events).unwrap();
    loop {
        if path.metadata().is_ok_and(|found| found.len() >= bytes) {
            return true;
        }
        let Some(left) = end.checked_duration_since(Instant::now()) else { return false };
        let left = Timespec::try_from(left).unwrap();
        poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&left)).unwrap();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&watch, &mut buffer);
        while reader.next().is_ok() {}
    }
}

#[tokio::test]
async fn gc_during_a_pull_keeps_what_it_needs() {
    let images = Images::get();
    let server = Server::plain(&images.storage());
    let big = images.layers("small")[1];
    let path = format!("/v2/small/blobs/{big}");
    let proxy = Faulty::before(server.address(), move |asked, before| {
        // The others are whole by the time that it is repeated.
        if asked == path && before == 0 { Act::Cut(3 << 20) } else { Act::Forward }
    })
    .await;
    let world = World::new();
    let name = format!("{}/small:1", proxy.address);
    let collect = || world.store.gc(Duration::ZERO, false, || Ok([].into())).unwrap();
    let freed = std::sync::Mutex::new(Vec::new());
    let watch = |progress: banger_registry::Progress<'_>| {
        world.tell(progress);
        freed.lock().unwrap().push(collect());
    };
    let (puller, reference) = (world.puller(), name.parse().unwrap());
    let pulled = puller.pull(&reference, &world.platform, &world.store, &watch);
    let fetched = pulled.await.unwrap();
    assert!(world.notes().contains("next try"), "the pull went on after a gc");
    assert!(
        freed
            .lock()
            .unwrap()
            .iter()
            .all(|freed| freed.blobs.is_empty() && freed.partials.is_empty())
    );
    assert_whole(&world.store, &fetched);
    assert_eq!(collect().blobs, []);
    let (blobs, lease) = (fetched.blobs(), fetched.lease);
    lease.release().unwrap();
    assert_eq!(collect().blobs, blobs);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_before_it_is_downloaded() {
    let images = Images::get();
    let server = Server::plain(&images.storage());
    let mut world = World::new();
    world.settings.largest_blob_bytes = 1 << 20;
    let error = world.pull(&format!("{}/small:1", server.address())).await.unwrap_err();
    assert_eq!(error.trouble(), Trouble::Input);
    assert!(chain(&error).contains("layer 1 says it has"), "{}", chain(&error));
    world.settings.largest_blob_bytes = 1 << 30;
    world.settings.most_layers = 2;
    let error = world.pull(&format!("{}/small:1", server.address())).await.unwrap_err();
    assert!(chain(&error).contains("it has 3 layers, and 2 are allowed"), "{}", chain(&error));
    world.settings.largest_manifest_bytes = 100;
    let error = world.pull(&format!("{}/small:1", server.address())).await.unwrap_err();
    assert!(chain(&error).contains("sends more than 100 bytes"), "{}", chain(&error));
}
