//! Servers: they say who they are and then send back whatever comes.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use crate::sandbox::Sandbox;

/// A server that is reached at every local address: each connection is told the address that it has come to, as one
/// byte of length and the address in text. So one server plays any number of backends.
#[derive(Debug)]
pub struct EchoServer {
    listeners: Vec<TcpListener>,
    threads: Vec<JoinHandle<()>>,
    accepted: Arc<AtomicU64>,
}

impl EchoServer {
    /// Listens on these ports, at all addresses of both families, in the calling thread's network namespace.
    pub fn start(ports: &[u16]) -> io::Result<Self> {
        let mut server = Self { listeners: Vec::new(), threads: Vec::new(), accepted: Arc::default() };
        for port in ports {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port))?;
            let (accepting, accepted) = (listener.try_clone()?, Arc::clone(&server.accepted));
            server.listeners.push(listener);
            server.threads.push(thread::spawn(move || accept(&accepting, &accepted)));
        }
        Ok(server)
    }

    /// Connections that have been accepted so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        for listener in &self.listeners {
            // Ends the accepting thread's wait.
            let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            // A panic there has been reported by its own message.
            let _ = thread.join();
        }
    }
}

/// Servers of datagrams, one for each address of each backend: they answer with the address that they are at, as text.
#[derive(Debug)]
pub struct DatagramServers {
    sockets: Vec<UdpSocket>,
    threads: Vec<JoinHandle<()>>,
}

impl DatagramServers {
    /// Answers at a port of the first so many backends, in the sandbox, which is given their addresses: a datagram's answer must
    /// come from one.
    pub fn start(sandbox: &Sandbox, backends: u16, port: u16) -> io::Result<Self> {
        let addresses: Vec<String> =
            (0..backends).map(|number| format!("{}/128 nodad", backend_addresses(number)[1])).collect();
        sandbox.add_addresses(addresses.iter().map(String::as_str))?;
        let mut servers = Self { sockets: Vec::new(), threads: Vec::new() };
        for address in (0..backends).flat_map(backend_addresses) {
            let socket = UdpSocket::bind((address, port))?;
            let identity = socket.local_addr()?.to_string();
            let answering = socket.try_clone()?;
            servers.sockets.push(socket);
            servers.threads.push(thread::spawn(move || {
                while let Ok((_, from)) = answering.recv_from(&mut []) {
                    // A client that does not listen any more is its own business.
                    let _ = answering.send_to(identity.as_bytes(), from);
                }
            }));
        }
        Ok(servers)
    }

    /// The server at an address.
    ///
    /// # Panics
    /// If there is none.
    pub fn at(&self, address: SocketAddr) -> &UdpSocket {
        let at = |socket: &&UdpSocket| socket.local_addr().is_ok_and(|local| local == address);
        self.sockets.iter().find(at).unwrap_or_else(|| panic!("nobody answers at {address}"))
    }
}

impl Drop for DatagramServers {
    fn drop(&mut self) {
        for socket in &self.sockets {
            // Says that the socket is not connected, and ends the thread's wait nevertheless.
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            // A panic there has been reported by its own message.
            let _ = thread.join();
        }
    }
}

/// The address that a client reads first: whom it has reached.
pub fn read_identity(stream: &mut impl Read) -> io::Result<SocketAddr> {
    let mut length = [0];
    stream.read_exact(&mut length)?;
    let mut text = vec![0; length[0].into()];
    stream.read_exact(&mut text)?;
    let text = str::from_utf8(&text).map_err(io::Error::other)?;
    text.parse().map_err(|_| io::Error::other(format!("`{text}` is not an address")))
}

fn accept(listener: &TcpListener, accepted: &AtomicU64) {
    while let Ok((stream, _)) = listener.accept() {
        accepted.fetch_add(1, Ordering::Relaxed);
        thread::spawn(move || {
            // A client that goes away is its own business; what was lost on the way, the client counts.
            let _ = serve(stream);
        });
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let identity = plain(stream.local_addr()?).to_string();
    let length = u8::try_from(identity.len()).expect("an address is short");
    stream.write_all(&[&[length], identity.as_bytes()].concat())?;
    let mut buffer = vec![0; 16 << 10];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

/// An address without the IPv6 clothes that a dual-stack socket sees IPv4 in.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The loopback address `127.1.<high>.<low>` and its counterpart in [`crate::sandbox::LOCAL_NET_V6`]: as many backends
/// as a test wants.
pub fn backend_addresses(number: u16) -> [IpAddr; 2] {
    let [high, low] = (number + 1).to_be_bytes();
    [Ipv4Addr::new(127, 1, high, low).into(), Ipv6Addr::new(0xfd00, 0xa, 0, 0, 0, 0, 0, number + 1).into()]
}
