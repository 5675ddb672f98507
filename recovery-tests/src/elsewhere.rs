//! A second network namespace, joined to the sandbox's by a cable: what listens there is not in the clients' own.

use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use crate::sandbox::LOCAL_NET_V6;

/// The other namespace's addresses on the cable.
pub const ELSEWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 2))];

/// The other namespace. It is gone once this, and all sockets and threads in it, are.
#[derive(Debug)]
pub struct Elsewhere {
    namespace: File,
}

impl Elsewhere {
    /// Makes one beside the calling thread's namespace. `127.0.0.0/8` and [`LOCAL_NET_V6`] are each one's own.
    ///
    /// # Panics
    /// If the machine does not allow it; see [`crate::requirements`].
    pub fn new() -> Self {
        let make = || -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        };
        let made = thread::spawn(make).join().expect("it does not panic");
        let elsewhere = Self { namespace: made.expect("root may make namespaces") };
        let path = format!("/proc/{}/fd/{}", std::process::id(), elsewhere.namespace.as_raw_fd());
        let here = format!(
            "link add hf-here type veth peer name hf-there netns {path}\naddress add 10.77.0.1/24 dev hf-here\n\
             address add fd00:77::1/64 dev hf-here nodad\nlink set hf-here up\n"
        );
        let [v4, v6] = ELSEWHERE;
        let there = format!(
            "link set lo up\nroute replace local {LOCAL_NET_V6} dev lo\naddress add {v4}/24 dev hf-there\n\
             address add {v6}/64 dev hf-there nodad\nlink set hf-there up\n"
        );
        ip(&here).expect("`ip` lays a cable");
        elsewhere.run(|| ip(&there)).expect("`ip` sets up a new network namespace");
        elsewhere
    }

    /// Does something on a thread in there; threads that it starts are in there as well.
    ///
    /// # Panics
    /// If that does.
    pub fn run<T: Send>(&self, there: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.namespace, CloneFlags::CLONE_NEWNET).expect("root may enter namespaces");
                there()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Default for Elsewhere {
    fn default() -> Self {
        Self::new()
    }
}

fn ip(commands: &str) -> io::Result<()> {
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
    ip.stdin.take().expect("it is piped").write_all(commands.as_bytes())?;
    let status = ip.wait()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("ip ended with {status}"))) }
}
