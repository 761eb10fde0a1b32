//! Images and kernels: fetched, built, exported, pruned. One program, so that the slow ones run beside the others; it needs
//! an archive that apt reaches, and programs that the test host has not.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod building;
mod images;
mod kernels;
mod registry;
