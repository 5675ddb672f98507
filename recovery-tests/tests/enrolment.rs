//! Whose connections are balanced: everybody's in the cgroup, or those in enrolled network namespaces, and never those of exempt
//! cgroups. What is not balanced goes where it is dialled.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use loader::{Enrolment, Rules};
use nix::sched::{CloneFlags, unshare};
use recovery_tests::agent::{Agent, Settings, holdfast, run};
use recovery_tests::bare::Bare;
use recovery_tests::echo::EchoServer;
use recovery_tests::requirements::kernel_is_usable;
use recovery_tests::sandbox::Sandbox;
use recovery_tests::stamped::attempt_over;
use recovery_tests::worker::{Outcome, Worker};
use recovery_tests::world;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, connect, socket};
use rustix::process::{Uid, geteuid};
use storage_schema::map::Stamp;
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Backing, Protocol, Resource, Service, ServicePort, WorkloadStatus};

const PORT: u16 = 8080;

fn mesh() -> Vec<Resource> {
    let port = |protocol| ServicePort { port: 80, target_port: PORT, protocol, ..ServicePort::default() };
    let service = Service {
        ports: vec![port(Protocol::Tcp), port(Protocol::Udp)],
        ..world::service(0, world::vips(0).to_vec(), &[])
    };
    let backing = vec![Backing { service: service.name.clone(), ports: Vec::new() }];
    vec![Resource::Workload(world::workload(0, WorkloadStatus::Healthy, backing)), Resource::Service(service)]
}

/// The service's addresses.
fn vips() -> [SocketAddr; 2] {
    world::vips(0).map(|vip| SocketAddr::new(vip, 80))
}

fn started() -> Option<(Bare, Enrolment, EchoServer)> {
    if !kernel_is_usable() {
        return None;
    }
    let bare = Bare::start();
    let server = EchoServer::start(&[PORT]).expect("a free port in a new namespace");
    bare.push(mesh());
    let enrolment = bare.datapath().enrolment().expect("it is pinned");
    Some((bare, enrolment, server))
}

/// Whether the calling thread's connections and datagrams are balanced, which must be so for all of them.
fn is_managed(bare: &Bare) -> bool {
    let mut managed = Vec::new();
    for to in vips() {
        for kind in [SocketType::STREAM, SocketType::DGRAM] {
            let attempt = attempt_over(kind, bare.datapath(), to, false, None);
            assert_eq!(
                attempt.arrived.is_ok(),
                attempt.stamp.is_some(),
                "virtual addresses exist nowhere: {attempt:?}"
            );
            managed.push(attempt.stamp.is_some());
        }
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).expect("a free port");
        managed.push(socket.send_to(b"", to).is_ok());
    }
    managed.dedup();
    let [managed] = *managed else { panic!("some are balanced, some are not: {managed:?}") };
    managed
}

/// Cgroups below the sandbox's. Whatever is in there goes back into that, and they are removed.
struct Nested {
    above: PathBuf,
    cgroups: Vec<PathBuf>,
}

impl Nested {
    /// `a` and `a/b`.
    fn new(sandbox: &Sandbox) -> Self {
        let above = sandbox.cgroup().expect("a whole sandbox").to_owned();
        let cgroups = vec![above.join("a"), above.join("a/b")];
        let nested = Self { above, cgroups };
        nested.cgroups.iter().for_each(|path| fs::create_dir(path).expect("root makes cgroups"));
        nested
    }

    fn enter(cgroup: &Path) {
        fs::write(cgroup.join("cgroup.procs"), "0").expect("root moves its own process");
    }

    fn remove(&self) {
        Self::enter(&self.above);
        self.cgroups.iter().rev().for_each(|path| fs::remove_dir(path).expect("nobody is in there"));
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        Self::enter(&self.above);
        for path in self.cgroups.iter().rev().filter(|path| path.exists()) {
            let _ = fs::remove_dir(path);
        }
    }
}

#[test]
fn who_is_in_an_exempt_cgroup_dials_for_himself() {
    let Some((bare, mut enrolment, _server)) = started() else { return };
    assert!(is_managed(&bare), "by default everybody is");
    let nested = Nested::new(bare.sandbox());
    let [outer, inner] = [0, 1].map(|number| nested.cgroups[number].clone());
    let rules =
        |exempt: &[&PathBuf]| Rules { exempt: exempt.iter().map(|path| (*path).clone()).collect(), ..Rules::default() };

    // A socket that was balanced is not any more once its owner is exempt and connects it again.
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    connect(&socket, &vips()[0]).expect("it is balanced");
    let stamp = |socket: &UdpSocket| bare.datapath().stamp(socket).expect("it can be read").map(|stamp| stamp.outcome);
    assert_eq!(stamp(&socket), Some(Stamp::FORWARDED));

    for (exempt, expected) in [
        (vec![&outer], [true, false, false]),
        (vec![&inner], [true, true, false]),
        (vec![&outer, &inner], [true, false, false]),
        (vec![], [true, true, true]),
    ] {
        assert_eq!(enrolment.set(&rules(&exempt)).expect("they are cgroups"), Vec::<PathBuf>::new());
        for (cgroup, managed) in [&nested.above, &outer, &inner].into_iter().zip(expected) {
            Nested::enter(cgroup);
            assert_eq!(is_managed(&bare), managed, "in {} with {exempt:?} exempt", cgroup.display());
            if !managed {
                let _ = connect(&socket, &vips()[0]);
                assert_eq!(stamp(&socket), None, "connected by an exempt process");
            }
        }
    }
    // What is not there is told; what is no cgroup is refused, and changes nothing.
    nested.remove();
    assert_eq!(enrolment.set(&rules(&[&outer])).expect("it may come"), [outer]);
    enrolment.set(&rules(&[&PathBuf::from("/tmp")])).expect_err("no cgroup");
    assert!(is_managed(&bare));
}

#[test]
fn by_namespace_those_in_enrolled_ones_are_managed() {
    let Some((mut bare, mut enrolment, _server)) = started() else { return };
    let own = Path::new("/proc/thread-self/ns/net");
    enrolment.set(&Rules { by_namespace: true, ..Rules::default() }).expect("it can be set");
    assert!(!is_managed(&bare), "nobody is enrolled");
    let (cookie, is_new) = enrolment.enrol(own).expect("there is room");
    assert!(is_new && is_managed(&bare));
    assert_eq!(enrolment.enrol(own).expect("it is there"), (cookie, false));

    // It holds without an agent, and for the programs of another generation.
    bare.restart();
    bare.renew();
    assert!(is_managed(&bare));

    // Another namespace is nobody's, until it is enrolled; it is let go when it is gone, and no other.
    let other = thread::scope(|scope| {
        let other = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make namespaces");
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip runs");
            assert!(up.success());
            let _server = EchoServer::start(&[PORT]).expect("a free port in a new namespace");
            let to = vips()[0];
            let balanced = || attempt_over(SocketType::STREAM, bare.datapath(), to, false, None).stamp.is_some();
            assert!(!balanced());
            let (other, is_new) = enrolment.enrol(own).expect("there is room");
            assert!(is_new && balanced());
            let cookies: Vec<u64> = enrolment.namespaces().expect("readable").iter().map(|one| one.cookie).collect();
            assert_eq!(cookies.len(), 2);
            assert_eq!(enrolment.release_gone().expect("readable"), 0, "threads are in both: {cookies:?}");
            other
        });
        other.join().expect("see above")
    });
    assert_ne!(other, cookie);
    let deadline = Instant::now() + Duration::from_secs(20);
    while enrolment.release_gone().expect("readable") == 0 {
        assert!(Instant::now() < deadline, "a namespace that nobody is in is gone");
        thread::sleep(Duration::from_millis(50));
    }
    let [left] = *enrolment.namespaces().expect("readable") else { panic!("one is left") };
    assert_eq!(left.cookie, cookie);
    assert!(left.inode.is_some() && left.since_ns > 0);

    assert_eq!(enrolment.release(own).expect("it is there"), (cookie, true));
    assert_eq!(enrolment.release(own).expect("it is there"), (cookie, false));
    assert!(!is_managed(&bare));
    for wrong in ["/proc/thread-self/ns/mnt", "/dev/null", "/run/netns/nobody-has-made-this"] {
        let error = enrolment.enrol(Path::new(wrong)).expect_err("no network namespace").to_string();
        assert!(error.contains(wrong), "{error}");
    }
}

#[test]
fn root_enrols_a_namespace_by_a_call() {
    let Some((bare, mut enrolment, _server)) = started() else { return };
    let call = |to: &str| {
        let to: SocketAddr = to.parse().expect("an address");
        attempt_over(SocketType::STREAM, bare.datapath(), to, false, None).arrived.expect_err("nobody is there")
    };
    let rules = Rules { by_namespace: true, ..Rules::default() };
    enrolment.set(&rules).expect("it can be set");
    assert_ne!(call("0.0.0.2:929"), Errno::CONNREFUSED, "a destination as any: there is no way to it");
    assert!(!is_managed(&bare));

    enrolment.set(&Rules { by_call: true, ..rules }).expect("it can be set");
    for (enrol, leave) in [("0.0.0.2:929", "0.0.0.2:930"), ("[::2]:929", "0.0.0.2:930"), ("0.0.0.2:929", "[::2]:930")] {
        assert_eq!(call(enrol), Errno::CONNREFUSED, "answered at once");
        assert!(is_managed(&bare), "by {enrol}");
        assert_eq!(call(leave), Errno::CONNREFUSED);
        assert!(!is_managed(&bare), "by {leave}");
    }
    for other in ["0.0.0.3:929", "0.0.0.2:931", "[::3]:929"] {
        call(other);
        assert!(!is_managed(&bare), "{other} is no call");
    }
    thread::scope(|scope| {
        let somebody = scope.spawn(|| {
            let nobody = Uid::from_raw(65_534);
            // Of this thread alone; it ends as it is.
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("root may become anybody");
            assert_eq!(geteuid(), nobody);
            let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("anybody may make one");
            let address: SocketAddr = "0.0.0.2:929".parse().expect("an address");
            assert_ne!(connect(&socket, &address), Err(Errno::CONNREFUSED), "no call but root's");
        });
        somebody.join().expect("see above");
    });
    assert!(!is_managed(&bare));
}

#[test]
fn an_agent_manages_whom_it_is_told_to() {
    if !kernel_is_usable() {
        return;
    }
    let sandbox = Sandbox::enter();
    let _server = EchoServer::start(&[PORT]).expect("a free port in a new namespace");
    let exempt = sandbox.cgroup().expect("a whole sandbox").join("exempt");
    let flags = |managed: &str| vec![format!("--managed={managed}"), format!("--exempt-cgroup={}", exempt.display())];
    let settings = |managed: &str| Settings { flags: flags(managed), ..Settings::default() };
    let agent = Agent::start(&sandbox, &settings("namespace"));
    let origin = Origin { source: "enrolment".to_owned(), incarnation: 1, version: None };
    let transaction = Transaction::push(origin, mesh().into_iter().map(Delta::Upsert).collect());
    agent.apply(&transaction, api::Level::Applied).expect("a valid transaction");

    let command = |arguments: &[&str]| {
        let mut command = holdfast(&sandbox);
        command.arg("namespace").args(arguments);
        let output = run(command);
        (
            output.status.code(),
            String::from_utf8(output.stdout).expect("text") + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let own = format!("/proc/{}/task/{}/ns/net", std::process::id(), rustix::thread::gettid().as_raw_nonzero());
    let mut worker = Worker::start(&sandbox);
    let mut balanced = || {
        let outcomes = worker.probe(vips()[0], 1);
        match outcomes.first_key_value() {
            Some((Outcome::Reached(_), 1)) => true,
            Some((Outcome::Unreachable, 1)) => false,
            _ => panic!("{outcomes:?}"),
        }
    };
    assert!(!balanced(), "nobody is enrolled");
    assert_eq!(command(&["list"]), (Some(0), "no network namespace is enrolled\n".to_owned()));
    let (code, said) = command(&["enrol", &own]);
    assert!(code == Some(0) && said.contains("is enrolled (cookie "), "{code:?} {said}");
    assert!(balanced());
    let (code, said) = command(&["enrol", &own]);
    assert!(code == Some(0) && said.contains("is already enrolled"), "{code:?} {said}");
    let (code, said) = command(&["list", "-o", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((code, listed.as_array().map(Vec::len)), (Some(0), Some(1)), "{listed}");
    let (code, said) = command(&["enrol", "/run/netns/nobody-has-made-this"]);
    assert!(code != Some(0) && said.contains("/run/netns/nobody-has-made-this"), "{code:?} {said}");

    // A cgroup that comes later is exempt all the same; so is it behind a kill, while nobody is there.
    assert!(agent.log().contains("an exempt cgroup is not there"), "{}", agent.log());
    fs::create_dir(&exempt).expect("root makes cgroups");
    let mut inside = Command::new("/bin/sh");
    inside.args(["-c", r#"echo 0 > "$0" && exec "$@""#]).arg(exempt.join("cgroup.procs"));
    let mut exempted = Worker::start_by(inside);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !exempted.probe(vips()[0], 1).contains_key(&Outcome::Unreachable) {
        assert!(Instant::now() < deadline, "it is exempt soon");
        thread::sleep(Duration::from_millis(50));
    }
    agent.kill();
    assert!(balanced() && exempted.probe(vips()[0], 1).contains_key(&Outcome::Unreachable), "without an agent");

    let agent = Agent::start(&sandbox, &settings("namespace"));
    assert!(balanced(), "enrolled before");
    let (code, said) = command(&["release", &own]);
    assert!(code == Some(0) && said.contains("is released"), "{code:?} {said}");
    assert!(!balanced());
    agent.terminate();

    let agent = Agent::start(&sandbox, &settings("cgroup"));
    assert!(
        balanced() && exempted.probe(vips()[0], 1).contains_key(&Outcome::Unreachable),
        "everybody but who is exempt"
    );
    let (code, said) = command(&["enrol", &own]);
    assert!(code != Some(0) && said.contains("--managed namespace"), "{code:?} {said}");
    agent.terminate();
}
