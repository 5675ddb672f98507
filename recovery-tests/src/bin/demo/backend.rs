//! The HTTP backend of one workload: a process of its own, in the cgroup.
//!
//! It answers every request with a line of JSON that names its workload, and the answers of the services that this
//! workload calls, through their virtual addresses. A request to switch to `echo` makes the connection a long-lived one
//! that sends everything back.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use recovery_tests::connection::{BACKEND_HEADER, UPGRADE_PROTOCOL, header, read_head};
use recovery_tests::sandbox::Sandbox;
use serde::{Deserialize, Serialize};

/// Set in the environment of a backend to its [`Role`], as JSON.
const ROLE: &str = "HOLDFAST_DEMO_BACKEND";

const TIMEOUT: Duration = Duration::from_secs(5);

/// What a backend is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Role {
    /// The workload's name.
    pub(crate) workload: String,
    /// Where it listens.
    pub(crate) listen: Vec<SocketAddr>,
    /// The services that it calls for each request: their names, and their virtual addresses.
    pub(crate) calls: BTreeMap<String, Vec<SocketAddr>>,
}

/// What a backend answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Who answered.
    pub(crate) workload: String,
    /// What the services it called answered.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) calls: BTreeMap<String, Self>,
}

/// A running backend. It is killed on drop.
#[derive(Debug)]
pub(crate) struct Backend(Child);

impl Backend {
    /// Starts one and waits until it listens.
    pub(crate) fn start(sandbox: &Sandbox, role: &Role) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("a process knows its binary")?;
        let mut command = sandbox.command_in_cgroup(own);
        command.env(ROLE, serde_json::to_string(role)?).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut backend = Self(command.spawn().with_context(|| format!("cannot start {}", role.workload))?);
        let mut ready = [0];
        let mut output = backend.0.stdout.take().expect("it is piped");
        output.read_exact(&mut ready).with_context(|| format!("{} does not listen", role.workload))?;
        Ok(backend)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Becomes a backend if this process was started as one.
pub(crate) fn run_if_asked() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let served = serde_json::from_str(&role).map_err(io::Error::other).and_then(serve);
    if let Err(error) = served {
        eprintln!("backend: {error}");
    }
    std::process::exit(1);
}

fn serve(role: Role) -> io::Result<()> {
    let listeners = role.listen.iter().map(TcpListener::bind).collect::<io::Result<Vec<_>>>()?;
    let role = Arc::new(role);
    let threads: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            let role = Arc::clone(&role);
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let role = Arc::clone(&role);
                    thread::spawn(move || {
                        // A client that goes away is its own business.
                        let _ = answer(stream, &role);
                    });
                }
            })
        })
        .collect();
    io::stdout().write_all(b".")?;
    io::stdout().flush()?;
    for thread in threads {
        thread.join().map_err(|_| io::Error::other("a listener has panicked"))?;
    }
    Ok(())
}

fn answer(mut stream: TcpStream, role: &Role) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let head = read_head(&mut stream)?;
    let address = stream.local_addr()?;
    if header(&head, "upgrade") == Some(UPGRADE_PROTOCOL) {
        write!(
            stream,
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE_PROTOCOL}\r\n\
             {BACKEND_HEADER}: {address}\r\n\r\n"
        )?;
        let mut buffer = vec![0; 16 << 10];
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                length => stream.write_all(&buffer[..length])?,
            }
        }
    }
    let called = role.calls.iter().map(|(service, vips)| {
        let vip = vips.iter().find(|vip| vip.is_ipv4() == address.is_ipv4());
        let vip = vip.ok_or_else(|| io::Error::other(format!("{service} has no such address")))?;
        Ok((service.clone(), call(*vip)?))
    });
    let (status, body) = match called.collect::<io::Result<BTreeMap<_, _>>>() {
        Ok(calls) => {
            let answer = Answer { workload: role.workload.clone(), calls };
            ("200 OK", serde_json::to_string(&answer).map_err(io::Error::other)?)
        }
        Err(error) => ("502 Bad Gateway", error.to_string()),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\
         {BACKEND_HEADER}: {address}\r\n\r\n{body}\n",
        body.len() + 1
    )
}

/// Asks another service, through its virtual address.
fn call(vip: SocketAddr) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&vip, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {vip}\r\nConnection: close\r\n\r\n")?;
    read_head(&mut stream)?;
    let mut body = String::new();
    stream.read_to_string(&mut body)?;
    serde_json::from_str(&body).map_err(|_| io::Error::other(format!("{vip}: {}", body.trim())))
}
