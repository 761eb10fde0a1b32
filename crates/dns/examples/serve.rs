//! A DNS server for trying by hand and for measuring: `web.vm` and 999 others, on the address that is given; and with a
//! resolv.conf as the second argument, one for guests on 127/8.
//!
//! `cargo run --release -p banger-dns --example serve -- 127.0.0.1:42070 [/etc/resolv.conf]`

use std::error::Error;
use std::net::Ipv4Addr;

use banger_dns::{Guests, Names, Sockets, Subnet, serve_authoritative, serve_guests};
use tokio_util::sync::CancellationToken;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or("which address?")?.parse()?;
    let names = Names::new("vm")?;
    names.set_subnets(vec![Subnet::new(Ipv4Addr::new(10, 213, 0, 0), 22)?]);
    names.set("web", Ipv4Addr::new(10, 213, 0, 2))?;
    for number in 1..1000 {
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 213, 0, 2).to_bits() + number);
        names.set(&format!("vm{number}"), address)?;
    }
    let (sockets, stop) = (Sockets::bind(address)?, CancellationToken::new());
    match arguments.next() {
        None => serve_authoritative(sockets, names, stop).await?,
        Some(resolv_conf) => {
            let mut settings = Guests::new(vec![Subnet::new(Ipv4Addr::LOCALHOST, 8)?]);
            settings.resolv_conf = resolv_conf.into();
            serve_guests(sockets, names, settings, stop).await?;
        }
    }
    Ok(())
}
