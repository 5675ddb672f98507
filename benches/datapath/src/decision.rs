//! Nanoseconds in `connect4`.
//!
//! Datagram sockets are connected, which costs no packet, each to a service drawn in a fixed order; each is a new socket, so that
//! the stamp's allocation counts. The kernel's statistics include what reading the clock twice costs: the first row shows how much
//! that is, with sockets whose protocol the program looks at and leaves alone.

use std::fs;
use std::iter;
use std::net::SocketAddr;

use loader::{ProgramFigures, count_run_time};
use recovery_tests::bare::Bare;
use rustix::net::{AddressFamily, Protocol, SocketType, connect, ipproto, socket};
use storage_schema::resource::{Affinity, Policy};

use crate::{Options, count, figures, median, mesh};

pub(crate) fn run(options: &Options, bare: &Bare) {
    let _statistics = count_run_time().expect("root may count");
    println!("nanoseconds in connect4 ({} rounds of {} connected UDP sockets, medians)", options.rounds, options.calls);
    println!("  services | policy               |     ns");
    let row = |services: u32, name: &str, ns: f64| println!("  {services:>8} | {name:<20} | {ns:>6.0}");
    let nobody = |_| SocketAddr::from(([127, 0, 0, 9], 9));
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").expect("this network namespace is the bench's own");
    row(0, "not TCP, not UDP", measure(options, bare, ipproto::ICMP, 1, nobody));
    row(0, "not a service", measure(options, bare, ipproto::UDP, 1, nobody));

    let small = mesh::SMALL;
    let affinity = Some(Affinity { timeout_seconds: 600 });
    for (name, policy, affinity) in [
        ("random", Policy::Random, None),
        ("weighted", Policy::Weighted, None),
        ("maglev", Policy::Maglev, None),
        ("random, affinity", Policy::Random, affinity),
    ] {
        bare.push(mesh::services(0..small, policy, affinity));
        row(small, name, measure(options, bare, ipproto::UDP, small, mesh::vip));
    }
    bare.push(mesh::services(0..small, Policy::Random, None));
    let mut pushed = small;
    for services in [1_000, 10_000, options.services] {
        if services > options.services || services < pushed {
            continue;
        }
        while pushed < services {
            let next = services.min(pushed + mesh::TOGETHER);
            bare.push(mesh::services(pushed..next, Policy::Random, None));
            pushed = next;
        }
        row(services, "random", measure(options, bare, ipproto::UDP, services, mesh::vip));
    }
}

fn measure(options: &Options, bare: &Bare, protocol: Protocol, services: u32, to: impl Fn(u32) -> SocketAddr) -> f64 {
    let round = || {
        let before = Counted::now(bare);
        for call in 0..options.calls {
            let socket = socket(AddressFamily::INET, SocketType::DGRAM, Some(protocol)).expect("a socket can be made");
            // All services, in an order that no cache foresees (Knuth's multiplicative hash).
            let number = call.wrapping_mul(2_654_435_761) % services;
            connect(&socket, &to(number)).expect("a datagram socket connects at once");
        }
        let (runs, ns) = Counted::now(bare).since(&before)?;
        (runs == u64::from(options.calls)).then(|| count(ns) / count(runs))
    };
    // A round in which a table grew was counted by the programs of two generations.
    let rounds: Vec<f64> = iter::repeat_with(round).take(10 * options.rounds).flatten().take(options.rounds).collect();
    assert_eq!(rounds.len(), options.rounds, "tables grow once, and nobody else connects here");
    median(rounds)
}

/// What the program at `connect4` has counted, in which generation.
struct Counted {
    generation: u64,
    program: ProgramFigures,
}

impl Counted {
    fn now(bare: &Bare) -> Self {
        let (generation, figures) = figures(bare);
        let program = figures.into_iter().find(|program| program.hook == "connect4").expect("there is one");
        Self { generation, program }
    }

    /// Runs and nanoseconds since then; `None` if that was another generation.
    fn since(&self, before: &Self) -> Option<(u64, u64)> {
        let (now, then) = (&self.program, &before.program);
        (self.generation == before.generation).then(|| (now.runs - then.runs, now.run_ns - then.run_ns))
    }
}
