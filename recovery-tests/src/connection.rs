//! Connections that notice when something is wrong with them.
//!
//! A checked connection sends numbered frames of random length and content to a server that sends everything back, and
//! compares what comes back byte by byte: nothing may be reset, lost, out of order or altered.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::echo::read_identity;

/// No answer for so long counts as lost: nothing on a loopback device takes that long.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest payload of a frame.
const PAYLOAD_BYTES_MAX: usize = 8 << 10;

/// Before each payload: the frame's number (8 bytes), the payload's length and its CRC32C (4 bytes each), little-endian.
const HEADER_BYTES: usize = 16;

/// What has happened on one or more checked connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// How many connections there are.
    pub connections: u64,
    /// Frames that came back as they were sent.
    pub frames: u64,
    /// Their bytes, counted once.
    pub bytes: u64,
    /// The fewest frames on one connection.
    pub frames_min: u64,
    /// Connections that were reset or aborted.
    pub resets: u64,
    /// Bytes that did not come back.
    pub lost_bytes: u64,
    /// Bytes that came back as others.
    pub altered_bytes: u64,
    /// What went wrong, in words.
    pub problems: Vec<String>,
}

impl Traffic {
    /// Adds up several connections.
    pub fn sum(all: impl IntoIterator<Item = Self>) -> Self {
        all.into_iter()
            .reduce(|one, other| Self {
                connections: one.connections + other.connections,
                frames: one.frames + other.frames,
                bytes: one.bytes + other.bytes,
                frames_min: one.frames_min.min(other.frames_min),
                resets: one.resets + other.resets,
                lost_bytes: one.lost_bytes + other.lost_bytes,
                altered_bytes: one.altered_bytes + other.altered_bytes,
                problems: [one.problems, other.problems].concat(),
            })
            .unwrap_or_default()
    }

    /// Whether nothing was reset, lost or altered.
    pub const fn is_intact(&self) -> bool {
        self.resets == 0 && self.lost_bytes == 0 && self.altered_bytes == 0 && self.problems.is_empty()
    }
}

/// How a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Greeting {
    /// The server says who it is, as [`crate::echo`]'s do.
    None,
    /// As an HTTP/1.1 request to switch protocols (RFC 9110, 7.8); the header [`BACKEND_HEADER`] of the answer says who it
    /// is.
    HttpUpgrade,
}

/// The protocol that is switched to.
pub const UPGRADE_PROTOCOL: &str = "echo";

/// The header in which an HTTP backend tells its own address.
pub const BACKEND_HEADER: &str = "x-backend";

/// A long-lived connection on a thread of its own.
#[derive(Debug)]
pub struct CheckedConnection {
    peer: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    traffic: Mutex<Traffic>,
}

impl CheckedConnection {
    /// Connects and begins to exchange frames, with a pause between two of them.
    pub fn open(to: SocketAddr, greeting: Greeting, seed: u64, pause: Duration) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&to, STALL_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(STALL_TIMEOUT))?;
        stream.set_write_timeout(Some(STALL_TIMEOUT))?;
        let peer = match greeting {
            Greeting::None => read_identity(&mut stream)?,
            Greeting::HttpUpgrade => upgrade(&mut stream, to)?,
        };
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            traffic: Mutex::new(Traffic { connections: 1, ..Traffic::default() }),
        });
        let exchanging = Arc::clone(&shared);
        let thread = thread::spawn(move || exchanging.exchange(stream, peer, seed, pause));
        Ok(Self { peer, shared, thread: Some(thread) })
    }

    /// Whom it has reached.
    pub const fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// What has happened so far.
    pub fn traffic(&self) -> Traffic {
        self.shared.traffic().clone()
    }

    /// Ends it, after the frame that is on its way, and checks that the other end has nothing more to say.
    pub fn finish(mut self) -> Traffic {
        self.stop();
        self.traffic()
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a connection's thread does not panic");
        }
    }
}

impl Drop for CheckedConnection {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exchange(&self, mut stream: TcpStream, peer: SocketAddr, seed: u64, pause: Duration) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        for number in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let frame = frame(number, &mut random);
            if !self.exchange_one(&mut stream, peer, number, &frame) {
                return;
            }
            thread::sleep(pause);
        }
        self.close(stream, peer);
    }

    /// Sends a frame and takes it back: whether one can go on.
    fn exchange_one(&self, stream: &mut TcpStream, peer: SocketAddr, number: u64, frame: &[u8]) -> bool {
        if let Err(error) = stream.write_all(frame) {
            self.broken(peer, number, frame.len(), &error);
            return false;
        }
        let mut back = vec![0; frame.len()];
        let mut length = 0;
        while length < back.len() {
            match stream.read(&mut back[length..]) {
                Ok(0) => {
                    self.broken(peer, number, frame.len() - length, &io::ErrorKind::UnexpectedEof.into());
                    return false;
                }
                Ok(more) => length += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.broken(peer, number, frame.len() - length, &error);
                    return false;
                }
            }
        }
        let altered = frame.iter().zip(&back).filter(|(sent, received)| sent != received).count();
        let mut traffic = self.traffic();
        if altered > 0 {
            traffic.altered_bytes += altered as u64;
            traffic.problems.push(format!("{peer}: frame {number}: {}", describe_altered(number, &back)));
            return false;
        }
        traffic.frames += 1;
        traffic.frames_min = traffic.frames;
        traffic.bytes += frame.len() as u64;
        true
    }

    fn close(&self, mut stream: TcpStream, peer: SocketAddr) {
        let mut rest = Vec::new();
        let ended = stream.shutdown(Shutdown::Write).and_then(|()| stream.read_to_end(&mut rest));
        let mut traffic = self.traffic();
        match ended {
            Ok(0) => {}
            Ok(bytes) => {
                traffic.altered_bytes += bytes as u64;
                traffic.problems.push(format!("{peer}: {bytes} bytes came that were never sent"));
            }
            Err(error) => {
                drop(traffic);
                self.broken(peer, u64::MAX, 0, &error);
            }
        }
    }

    fn broken(&self, peer: SocketAddr, number: u64, lost: usize, error: &io::Error) {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        let mut traffic = self.traffic();
        traffic.resets += u64::from(matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset));
        traffic.lost_bytes += lost as u64;
        traffic.problems.push(format!("{peer}: frame {number}: {lost} bytes lost: {error}"));
    }
}

fn upgrade(stream: &mut TcpStream, to: SocketAddr) -> io::Result<SocketAddr> {
    write!(stream, "GET /echo HTTP/1.1\r\nHost: {to}\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE_PROTOCOL}\r\n\r\n")?;
    let head = read_head(stream)?;
    let backend = header(&head, BACKEND_HEADER).and_then(|value| value.parse().ok());
    match backend {
        Some(backend) if head.starts_with("HTTP/1.1 101 ") => Ok(backend),
        _ => Err(io::Error::other(format!("the server does not switch protocols: {head}"))),
    }
}

/// The lines of an HTTP message before its body, which is left unread.
pub fn read_head(stream: &mut impl Read) -> io::Result<String> {
    const BYTES_MAX: usize = 16 << 10;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
        if head.len() > BYTES_MAX {
            return Err(io::Error::other("a message head without end"));
        }
    }
    String::from_utf8(head).map_err(io::Error::other)
}

/// The value of a header in a message head.
pub fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().skip(1).find_map(|line| {
        let (own, value) = line.split_once(':')?;
        own.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

fn frame(number: u64, random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut payload = vec![0; random.random_range(0..=PAYLOAD_BYTES_MAX)];
    random.fill_bytes(&mut payload);
    let length = u32::try_from(payload.len()).expect("a payload is short");
    let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
    frame.extend_from_slice(&number.to_le_bytes());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
    frame.append(&mut payload);
    frame
}

/// Whether what came back is another frame or a damaged one.
fn describe_altered(number: u64, back: &[u8]) -> String {
    let (header, payload) = back.split_at(HEADER_BYTES);
    let word = |from: usize| u32::from_le_bytes([header[from], header[from + 1], header[from + 2], header[from + 3]]);
    let came = u64::from(word(0)) | u64::from(word(4)) << 32;
    match (came == number, crc32c::crc32c(payload) == word(12)) {
        (false, true) => format!("frame {came} came back, whole: out of order"),
        (_, false) => "it came back with other contents".to_owned(),
        (true, true) => "it came back with another header".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::{CheckedConnection, Greeting, Traffic};
    use std::io::{Read, Write};
    use std::time::Duration;

    /// A connection to a server that echoes one frame's beginning faithfully and then does `harm`.
    fn harmed(harm: impl FnOnce(std::net::TcpStream, Vec<u8>) + Send + 'static) -> Traffic {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let identity = address.to_string();
            stream.write_all(&[&[u8::try_from(identity.len()).unwrap()], identity.as_bytes()].concat()).unwrap();
            let mut header = vec![0; 16];
            stream.read_exact(&mut header).unwrap();
            let length = u32::from_le_bytes(header[8..12].try_into().unwrap());
            let mut frame = vec![0; length as usize];
            stream.read_exact(&mut frame).unwrap();
            harm(stream, [header, frame].concat());
        });
        let connection = CheckedConnection::open(address, Greeting::None, 7, Duration::ZERO).unwrap();
        assert_eq!(connection.peer(), address);
        server.join().unwrap();
        while connection.traffic().is_intact() {
            std::thread::sleep(Duration::from_millis(1));
        }
        connection.finish()
    }

    #[test]
    fn an_altered_byte_is_found() {
        let traffic = harmed(|mut stream, mut frame| {
            *frame.last_mut().unwrap() ^= 1;
            stream.write_all(&frame).unwrap();
        });
        assert_eq!((traffic.altered_bytes, traffic.lost_bytes, traffic.resets), (1, 0, 0), "{traffic:?}");
    }

    #[test]
    fn a_lost_byte_is_found() {
        let traffic = harmed(|mut stream, frame| stream.write_all(&frame[1..]).unwrap());
        assert!(!traffic.is_intact() && traffic.lost_bytes >= 1, "{traffic:?}");
    }

    #[test]
    fn a_reset_is_found() {
        let traffic = harmed(|stream, _| {
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        });
        assert_eq!(traffic.resets, 1, "{traffic:?}");
    }
}
