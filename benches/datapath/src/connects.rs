//! TCP connections a second, with programs and without any.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use recovery_tests::bare::Bare;
use rustix::net::sockopt::set_socket_linger;
use storage_schema::resource::Policy;

use crate::{Options, median, mesh};

/// What came of a round.
#[derive(Clone, Copy, Debug)]
struct Round {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

pub(crate) fn run(options: &Options, bare: &Bare) {
    bare.push(mesh::services(0..1, Policy::Random, None));
    // One listener for all three: what is compared is dialling.
    let listener = TcpListener::bind(("0.0.0.0", mesh::PORT)).expect("a free port in a new namespace");
    thread::spawn(move || while listener.accept().is_ok() {});
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        without.push(bare.outside(|| round(options.calls, mesh::backend(0, 0))));
        with.push(round(options.calls, mesh::vip(0)));
    }
    let of = |rounds: &[Round], figure: fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
    println!("TCP connections over loopback ({} rounds of {}, medians)", options.rounds, options.calls);
    println!("                              |  per second |  p50 us |  p99 us");
    for (name, rounds) in [("no program, the backend", &without), ("through a virtual address", &with)] {
        let (per_second, p50, p99) =
            (of(rounds, |round| round.per_second), of(rounds, |round| round.p50_us), of(rounds, |round| round.p99_us));
        println!("  {name:<27} | {per_second:>11.0} | {p50:>7.1} | {p99:>7.1}");
    }
    let ratios = with.iter().zip(&without).map(|(with, without)| with.per_second / without.per_second);
    println!("  ratio of connections a second, median of the rounds': {:.3}", median(ratios.collect()));
}

fn round(calls: u32, to: SocketAddr) -> Round {
    let mut times: Vec<Duration> = Vec::new();
    let begun = Instant::now();
    for _ in 0..calls {
        let dialled = Instant::now();
        let stream = TcpStream::connect(to).expect("somebody listens");
        times.push(dialled.elapsed());
        // No connection waits for the end of its time: ports would run out.
        set_socket_linger(&stream, Some(Duration::ZERO)).expect("an open socket");
    }
    let per_second = f64::from(calls) / begun.elapsed().as_secs_f64();
    times.sort_unstable();
    let quantile = |hundredths: usize| times[times.len() * hundredths / 100].as_secs_f64() * 1e6;
    Round { per_second, p50_us: quantile(50), p99_us: quantile(99) }
}
