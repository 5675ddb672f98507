//! Connections: taken, found out who is at the other end, counted, and handed to the server.
//!
//! A handshake is done on a task of its own, within a time and within a number for each address, so that nobody who has
//! shown no certificate yet is in anybody's way. A connection that says nothing after it was made is closed in time too; one
//! that went away without a word is found by HTTP/2's pings.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use super::peer::{Caller, Origin, Peer};
use super::rule::Rule;
use super::tls::{self, Certificates};
use crate::layers::{Clients, ConnectionPlace, Observer};
use crate::socket::{Socket, SocketFile};

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes at a time, and of one address.
const HANDSHAKES_MAX: usize = 256;
const HANDSHAKES_PER_ADDRESS_MAX: usize = 32;
/// How long a connection may take for its first bytes, HTTP/2's preface.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
const PREFACE_BYTES: usize = 24;
/// Connections that wait for the server to take them.
const ACCEPTED_MAX: usize = 16;
/// A pause after the system refused a connection, as for want of descriptors.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// How connections over TCP are secured.
#[derive(Clone, Debug)]
pub enum Security {
    /// Both ends show certificates.
    Mutual(Arc<Certificates>),
    /// Not at all: anybody on this machine may do everything. For loopback addresses only.
    InsecureLoopback,
}

/// Why the agent cannot listen on TCP.
#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    /// Without TLS only a loopback address will do.
    #[error("{address} is not a loopback address, and without TLS nothing else is listened on")]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// The system refused.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A listening TCP socket.
#[derive(Debug)]
pub struct Tcp {
    listener: TcpListener,
    security: Security,
}

impl Tcp {
    /// Listens at `address`.
    pub fn bind(address: SocketAddr, security: Security) -> Result<Self, TcpError> {
        if matches!(security, Security::InsecureLoopback) && !address.ip().is_loopback() {
            return Err(TcpError::NotLoopback { address });
        }
        let listener = TcpListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        Ok(Self { listener: listener.map_err(|source| TcpError::Listen { address, source })?, security })
    }

    /// Where it listens; with port 0 the system has chosen one.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Where the server listens.
#[derive(Debug)]
pub struct Listeners {
    /// The unix socket.
    pub socket: Socket,
    /// TCP as well.
    pub tcp: Option<Tcp>,
}

impl From<Socket> for Listeners {
    fn from(socket: Socket) -> Self {
        Self { socket, tcp: None }
    }
}

/// What the listeners have in common.
pub(crate) struct Gate {
    pub(crate) rules: Vec<Rule>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) observer: Arc<dyn Observer>,
    own_uid: u32,
    handshakes: Mutex<HashMap<IpAddr, usize>>,
}

impl Gate {
    pub(crate) fn new(rules: Vec<Rule>, clients: Arc<Clients>, observer: Arc<dyn Observer>) -> Self {
        let own_uid = rustix::process::geteuid().as_raw();
        Self { rules, clients, observer, own_uid, handshakes: Mutex::default() }
    }

    /// Counts a connection, or closes it.
    fn admit(&self, origin: Origin, io: Io) -> Option<Connection> {
        let caller = Caller::new(&origin, &self.rules, self.own_uid);
        let Some((client, place)) = self.clients.connect(&caller.name) else {
            self.observer.connection_refused("limit");
            tracing::warn!(client = caller.name, "too many connections: one is closed");
            return None;
        };
        let preface = Some(Preface { missing: PREFACE_BYTES, timeout: Box::pin(tokio::time::sleep(PREFACE_TIMEOUT)) });
        Some(Connection { io, peer: Peer::new(origin, caller, client), preface, _place: place })
    }

    /// A place for one more handshake.
    fn handshake(self: &Arc<Self>, address: IpAddr) -> Option<Handshake> {
        let mut handshakes = self.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = handshakes.values().sum();
        let own = handshakes.entry(address).or_default();
        if all >= HANDSHAKES_MAX || *own >= HANDSHAKES_PER_ADDRESS_MAX {
            return None;
        }
        *own += 1;
        Some(Handshake { gate: Arc::clone(self), address })
    }
}

/// A handshake that is being done.
struct Handshake {
    gate: Arc<Gate>,
    address: IpAddr,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut handshakes = self.gate.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = handshakes.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                handshakes.remove(&self.address);
            }
        }
    }
}

/// Connections as they come. Dropping it stops listening.
pub(crate) struct Incoming {
    accepted: mpsc::Receiver<Connection>,
    _tasks: JoinSet<()>,
    _gate: Arc<Gate>,
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.accepted.poll_recv(context).map(|connection| connection.map(Ok))
    }
}

/// Begins to take connections. The socket's file goes when what is returned with them is dropped.
pub(crate) fn incoming(listeners: Listeners, gate: Gate) -> io::Result<(Incoming, SocketFile)> {
    let Listeners { socket, tcp } = listeners;
    let (listener, file) = socket.into_parts();
    let listener = UnixListener::from_std(listener)?;
    let gate = Arc::new(gate);
    let (sender, accepted) = mpsc::channel(ACCEPTED_MAX);
    let mut tasks = JoinSet::new();
    tasks.spawn(accept_unix(listener, Arc::clone(&gate), sender.clone()));
    if let Some(Tcp { listener, security }) = tcp {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        if let Security::Mutual(certificates) = &security {
            let (certificates, gate) = (Arc::clone(certificates), Arc::clone(&gate));
            tasks.spawn(async move { certificates.keep_up_to_date(&*gate.observer).await });
        }
        tasks.spawn(accept_tcp(listener, security, Arc::clone(&gate), sender));
    }
    Ok((Incoming { accepted, _tasks: tasks, _gate: gate }, file))
}

async fn accept_unix(listener: UnixListener, gate: Arc<Gate>, accepted: mpsc::Sender<Connection>) {
    loop {
        let peer = match listener.accept().await {
            Ok((stream, _)) => stream.peer_cred().map(|peer| (stream, peer)),
            Err(error) => Err(error),
        };
        let (stream, peer) = match peer {
            Ok(peer) => peer,
            Err(error) => {
                refused(&error).await;
                continue;
            }
        };
        let origin = Origin::Unix { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() };
        if let Some(connection) = gate.admit(origin, Io::Unix(stream))
            && accepted.send(connection).await.is_err()
        {
            return;
        }
    }
}

async fn accept_tcp(
    listener: tokio::net::TcpListener,
    security: Security,
    gate: Arc<Gate>,
    accepted: mpsc::Sender<Connection>,
) {
    // Those that are being done end with this task.
    let mut handshakes = JoinSet::new();
    loop {
        while handshakes.try_join_next().is_some() {}
        let (stream, address) = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                refused(&error).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, %address, "a connection went away at once");
            continue;
        }
        match &security {
            Security::InsecureLoopback => {
                if let Some(connection) = gate.admit(Origin::Loopback { address }, Io::Tcp(stream))
                    && accepted.send(connection).await.is_err()
                {
                    return;
                }
            }
            Security::Mutual(certificates) => match gate.handshake(address.ip()) {
                Some(place) => {
                    let acceptor = TlsAcceptor::from(certificates.current());
                    handshakes.spawn(shake_hands(place, acceptor, stream, address, accepted.clone()));
                }
                None => gate.observer.connection_refused("handshakes"),
            },
        }
    }
}

async fn shake_hands(
    place: Handshake,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
    accepted: mpsc::Sender<Connection>,
) {
    let gate = Arc::clone(&place.gate);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            gate.observer.connection_refused("tls");
            tracing::info!(%address, %error, "a TLS handshake failed");
            return;
        }
        Err(_) => {
            gate.observer.connection_refused("handshake_timeout");
            tracing::info!(%address, "a TLS handshake took too long");
            return;
        }
    };
    drop(place);
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let (dns, uris) = certificate.map(tls::names).unwrap_or_default();
    if let Some(connection) = gate.admit(Origin::Tls { address, dns, uris }, Io::Tls(Box::new(stream))) {
        drop(accepted.send(connection).await);
    }
}

async fn refused(error: &io::Error) {
    tracing::warn!(%error, "cannot take a connection");
    tokio::time::sleep(REFUSED_PAUSE).await;
}

/// A connection whose other end is known.
pub(crate) struct Connection {
    io: Io,
    peer: Peer,
    preface: Option<Preface>,
    _place: ConnectionPlace,
}

/// What is still to come before a connection is believed to be one.
struct Preface {
    missing: usize,
    timeout: Pin<Box<Sleep>>,
}

enum Io {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(preface) = &mut self.preface
            && preface.timeout.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        ready!(match &mut self.io {
            Io::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Io::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Io::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        })?;
        let read = buffer.filled().len() - before;
        if let Some(preface) = &mut self.preface {
            preface.missing = preface.missing.saturating_sub(read);
            if preface.missing == 0 {
                self.preface = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Io::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Io::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Unix(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
            Io::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(context, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Unix(stream) => stream.is_write_vectored(),
            Io::Tcp(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Unix(stream) => Pin::new(stream).poll_flush(context),
            Io::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Io::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Io::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
