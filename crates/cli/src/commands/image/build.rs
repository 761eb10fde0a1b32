//! `banger image build`

use std::path::{Path, PathBuf};

use banger_api::ImageName;
use banger_api::image::{BuildDockerfile, BuildImage, BuildRecipe, Builder, Image, Recipe};
use banger_api::{Code, Problem};
use clap::ArgGroup;
use http::Method;
use serde::Serialize;

use crate::commands::{DONE, absolute};
use crate::context::Context;
use crate::failure::Failure;
use crate::{operation, render};

/// Build an image on this host: of a distribution, a recipe, or a Dockerfile
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Distributions and recipes are made by mmdebstrap from the host's own apt sources. The recipe `development` is a machine to \
work on: systemd, sshd, git, compilers, Go, Node.js, Python and Ruby, in about 1.7 GiB. A Dockerfile is built by your own buildah, podman \
or docker, the first of these that there is.

Examples:
  banger image build --debian bookworm
  banger image build --debian bookworm --include git,curl --name debian:tools
  banger image build --recipe development
  banger image build --recipe ./ours.toml --name ours
  banger image build -f Dockerfile --name app:1 --build-arg VERSION=2")]
#[command(group = ArgGroup::new("what").required(true).args(["debian", "recipe", "file"]))]
pub(crate) struct Args {
    /// The Debian release
    #[arg(long, value_name = "RELEASE")]
    debian: Option<String>,
    /// Packages on top of the base, separated by commas; the usual tools for development if not given
    #[arg(long, value_name = "PACKAGES", value_delimiter = ',', requires = "debian")]
    include: Vec<String>,
    /// A recipe: `development`, or a TOML file with `[recipe]`, `name`, `debian` and `include`
    #[arg(long, value_name = "NAME|FILE")]
    recipe: Option<String>,
    /// A Dockerfile
    #[arg(short, long, value_name = "DOCKERFILE", requires = "name")]
    file: Option<PathBuf>,
    /// The folder that the Dockerfile copies from; the current one if not given
    #[arg(value_name = "CONTEXT", requires = "file")]
    context: Option<PathBuf>,
    /// A value for an ARG of the Dockerfile
    #[arg(long, value_name = "NAME=VALUE", requires = "file")]
    build_arg: Vec<String>,
    /// The stage of the Dockerfile to end with; its last if not given
    #[arg(long, value_name = "STAGE", requires = "file")]
    target: Option<String>,
    /// The builder to take
    #[arg(long, value_name = "BUILDER", requires = "file")]
    with: Option<With>,
    /// What to call it; debian:RELEASE or what the recipe says if not given
    #[arg(long, value_parser = ImageName::parse)]
    name: Option<ImageName>,
    /// Replace an image of that name
    #[arg(long)]
    replace: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum With {
    Buildah,
    Podman,
    Docker,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let Args { debian, include, recipe, file, build_arg, target, with, name, replace, .. } = args;
    if let (Some(file), Some(name)) = (file, name.clone()) {
        let request = BuildDockerfile {
            name,
            file: absolute(&file)?,
            context: absolute(args.context.as_deref().unwrap_or(Path::new(".")))?,
            build_args: build_arg,
            target,
            with: with.map(|with| match with {
                With::Buildah => Builder::Buildah,
                With::Podman => Builder::Podman,
                With::Docker => Builder::Docker,
            }),
            replace,
        };
        return build(context, "/v1/images/dockerfile", &request).await;
    }
    if let Some(recipe) = recipe {
        let request = BuildRecipe { name, recipe: read_recipe(recipe)?, replace };
        return build(context, "/v1/images/recipe", &request).await;
    }
    let debian = debian.expect("one of the three is required");
    build(context, "/v1/images/build", &BuildImage { name, debian, include, replace }).await
}

async fn build(context: &Context, path: &str, request: &impl Serialize) -> Result<u8, Failure> {
    let client = context.client().await?;
    let building = async {
        let image: Image =
            operation::follow(context, &client, None, Method::POST, path, Some(request)).await?;
        Ok(image)
    };
    let image = operation::unless_interrupted(context, building).await?;
    render::outcome(context, &image, "built")?;
    Ok(DONE)
}

/// A file by its slash or its ending; else a name that the daemon knows.
fn read_recipe(recipe: String) -> Result<Recipe, Problem> {
    if !recipe.contains('/') && !recipe.ends_with(".toml") {
        return Ok(Recipe::Named(recipe));
    }
    let text = std::fs::read_to_string(&recipe).map_err(|error| {
        Problem::new(Code::NotFound, format!("cannot read the recipe {recipe}")).cause(&error)
    })?;
    Ok(Recipe::Text(text))
}
