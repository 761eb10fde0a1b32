//! Makes the kernel and the images that the tests share, if they are not there: for a machine that has no archive to make
//! them from, they are brought along.
#![allow(clippy::print_stdout, reason = "says where they are")]

fn main() {
    println!("the tests' kernel and images are in {}", banger_e2e::template_home().display());
}
