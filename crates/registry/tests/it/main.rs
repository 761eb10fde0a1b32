//! Pulls and imports with real programs on the other side: Debian's docker-registry on loopback, images made with umoci
//! and brought there with skopeo. Only what must fail on demand is a fake: a proxy before the registry ([`faulty`]).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod auth;
mod faults;
mod faulty;
mod images;
mod local;
mod pull;
mod server;
mod world;
