//! `banger bench image`

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use banger_api::client::Client;
use banger_api::daemon::DaemonInfo;
use banger_api::image::{Prune, PullImage};
use banger_api::operation::{Event, StageTime};
use banger_api::{Code, ImageName, Problem, Size};
use http::Method;
use serde::Serialize;

use super::figures::{Figures, Samples};
use crate::commands::DONE;
use crate::commands::targets::artifact_path;
use crate::context::{Context, folders};
use crate::failure::Failure;
use crate::programs;

/// Compare the pull of an image with skopeo, umoci and mke2fs, run by run in turns
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each round pulls the image with nothing of it in the cache, and lets `skopeo copy`, `umoci unpack` and
`mke2fs -d` make a filesystem of it in a folder that is removed afterwards. Needs root, for umoci, and
these three programs. Removes the layers in the cache that no pull works with.

Examples:
  sudo banger bench image 127.0.0.1:5000/app:1
  sudo banger bench image 127.0.0.1:5000/app:1 -n 5 --format json"
)]
pub(crate) struct Args {
    /// An image of a registry, best one on this host
    #[arg(value_name = "REFERENCE")]
    reference: String,
    /// How many rounds
    #[arg(short = 'n', long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Where the programs work; the folder of banger's cache if not given
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    rounds: u32,
    skopeo: Option<Figures>,
    umoci: Option<Figures>,
    mke2fs: Option<Figures>,
    programs: Option<Figures>,
    /// By stage.
    fetch: Option<Figures>,
    unpack: Option<Figures>,
    write: Option<Figures>,
    digest: Option<Figures>,
    banger: Option<Figures>,
    /// p50 by p50.
    ratio: Option<f64>,
    /// The most memory that the daemon had at once while it pulled (VmHWM).
    peak_memory_bytes: Size,
    image_bytes: Size,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let Args { reference, rounds, folder } = args;
    let client = context.client().await?;
    let folder = folder.map_or_else(|| folders().map(|ours| ours.cache), Ok)?.join("bench-image");
    let name = ImageName::parse("bench-image").expect("it is an image name");
    let info: DaemonInfo = client.get("/v1/daemon").await?;
    let mut theirs: [Samples; 4] = Default::default();
    let mut ours: [Samples; 5] = Default::default();
    let (mut peak, mut image_bytes) = (0, 0);
    for round in 1..=rounds {
        let times = by_programs(&reference, &folder)?;
        let total: Duration = times.iter().sum();
        theirs
            .iter_mut()
            .zip(times.into_iter().chain([total]))
            .for_each(|(all, one)| all.push(one));

        forget(&client, &name).await?;
        reset_peak(info.pid)?;
        let begun = Instant::now();
        let (stages, size) = pull(&client, &reference, &name).await?;
        let took = begun.elapsed();
        peak = peak.max(peak_of(info.pid)?);
        image_bytes = size;
        let stage = |name: &str| {
            let found = stages.iter().filter(|stage| stage.name == name);
            Duration::from_micros(found.map(|stage| stage.microseconds).sum())
        };
        let times = ["fetch", "unpack", "write", "digest"].map(stage);
        ours.iter_mut().zip(times.into_iter().chain([took])).for_each(|(all, one)| all.push(one));
        context.hint(&format!(
            "round {round}: programs {} ms, banger {} ms",
            total.as_millis(),
            took.as_millis()
        ));
    }
    forget(&client, &name).await?;
    let [skopeo, umoci, mke2fs, by_programs] = theirs.map(|samples| samples.figures());
    let [fetch, unpack, write, digest, banger] = ours.map(|samples| samples.figures());
    let report = Report {
        rounds,
        skopeo,
        umoci,
        mke2fs,
        programs: by_programs,
        fetch,
        unpack,
        write,
        digest,
        banger,
        ratio: banger.zip(by_programs).map(|(ours, theirs)| ours.p50_ms / theirs.p50_ms),
        peak_memory_bytes: Size::bytes(peak),
        image_bytes: Size::bytes(image_bytes),
    };
    context.print(&report, || human(&report))?;
    Ok(DONE)
}

/// How long each program took.
fn by_programs(reference: &str, folder: &Path) -> Result<[Duration; 3], Problem> {
    remove(folder)?;
    fs::create_dir_all(folder).map_err(|e| internal("make the bench's folder", &e))?;
    let text = |name: &str| folder.join(name).display().to_string();
    let (layout, bundle, image) = (text("layout"), text("bundle"), text("image.ext4"));
    let (from, to) = (format!("docker://{reference}"), format!("oci:{layout}:image"));
    let skopeo = timed("skopeo", &["copy", "--quiet", "--src-tls-verify=false", &from, &to])?;
    let umoci = timed("umoci", &["unpack", "--image", &format!("{layout}:image"), &bundle])?;
    let root = format!("{bundle}/rootfs");
    let used = programs::run("du", &["-s", "--block-size=1M", &root])?;
    let used: u64 = used.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(1024);
    let size = format!("{}M", used * 5 / 4 + 128);
    let mke2fs =
        timed("mke2fs", &["-q", "-F", "-t", "ext4", "-i", "8192", "-d", &root, &image, &size])?;
    remove(folder)?;
    Ok([skopeo, umoci, mke2fs])
}

fn timed(program: &str, args: &[&str]) -> Result<Duration, Problem> {
    let begun = Instant::now();
    programs::run(program, args)?;
    Ok(begun.elapsed())
}

fn remove(folder: &Path) -> Result<(), Problem> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(internal("remove the bench's folder", &error))
        }
        _ => Ok(()),
    }
}

/// Nothing of the image is here any more.
async fn forget(client: &Client, name: &ImageName) -> Result<(), Problem> {
    let path = artifact_path("images", name.as_str());
    match client.json::<serde_json::Value>(Method::DELETE, &path, None::<&()>).await {
        Err(problem) if problem.code != Code::NotFound => return Err(problem),
        _ => {}
    }
    let request = Prune { dry_run: false };
    let mut events = client.events(Method::POST, "/v1/cache/prune", Some(&request)).await?;
    while let Some(event) = events.next().await? {
        if let Event::Failed { problem } = event {
            return Err(problem);
        }
    }
    Ok(())
}

/// How long each stage took, and how large the image is.
async fn pull(
    client: &Client,
    reference: &str,
    name: &ImageName,
) -> Result<(Vec<StageTime>, u64), Problem> {
    let request =
        PullImage { reference: reference.to_owned(), name: Some(name.clone()), platform: None };
    let mut events = client.events(Method::POST, "/v1/images/pull", Some(&request)).await?;
    while let Some(event) = events.next().await? {
        match event {
            Event::Done { result, stages } => {
                return Ok((stages, result["size_bytes"].as_u64().unwrap_or_default()));
            }
            Event::Failed { problem } => return Err(problem),
            _ => {}
        }
    }
    Err(Problem::new(Code::Daemon, "the daemon ended before the image was there"))
}

/// proc_pid_clear_refs(5): 5 resets the peak of the resident set to what it is now.
fn reset_peak(pid: u32) -> Result<(), Problem> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
        .map_err(|e| internal("reset the peak of the daemon's memory", &e))
}

fn peak_of(pid: u32) -> Result<u64, Problem> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .map_err(|e| internal("read the daemon's memory", &e))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    let kib: u64 = line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_default();
    Ok(kib * 1024)
}

fn internal(act: &str, cause: &(dyn std::error::Error + 'static)) -> Problem {
    Problem::new(Code::Internal, format!("cannot {act}")).cause(cause)
}

fn human(report: &Report) -> String {
    let lines = [
        ("skopeo copy", report.skopeo),
        ("umoci unpack", report.umoci),
        ("mke2fs -d", report.mke2fs),
        ("the three", report.programs),
        ("fetch", report.fetch),
        ("unpack", report.unpack),
        ("write", report.write),
        ("digest", report.digest),
        ("banger", report.banger),
    ];
    let mut text = String::new();
    for (name, figures) in lines {
        let shown = figures.map_or("-".to_owned(), |figures| figures.to_string());
        text += &format!("{name:15}  {shown}\n");
    }
    let ratio = report.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.3}"));
    text += &format!("{:15}  {ratio} (p50 by p50)\n", "ratio");
    text += &format!("{:15}  {} at most\n", "daemon's memory", report.peak_memory_bytes);
    text += &format!("{:15}  {}\n", "image", report.image_bytes);
    text
}
