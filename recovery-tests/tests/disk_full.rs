//! A full disk: pushes are refused with the reason, everything else goes on, and once there is room again so do pushes,
//! without a restart.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use api::Level;
use recovery_tests::agent::{Agent, Settings};
use recovery_tests::echo::EchoServer;
use recovery_tests::requirements::kernel_is_usable;
use recovery_tests::sandbox::Sandbox;
use recovery_tests::worker::{Outcome, Worker};
use recovery_tests::world;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Kind, ResourceKey};

/// Room for the first segment (64 MiB), the next one that is prepared, and the store.
const SMALL_DISK: &std::ffi::CStr = c"size=160m,mode=700";
const LARGE_DISK: &std::ffi::CStr = c"size=1g,mode=700";
/// What one transaction takes of it: 16,000 names of 500 bytes.
const NAMES: usize = 16_000;
const NAME_BYTES: usize = 500;
/// More than the small disk holds.
const TRANSACTIONS_MAX: u64 = 40;

#[test]
fn a_full_disk_refuses_pushes_and_nothing_else() {
    if !kernel_is_usable() {
        return;
    }
    let sandbox = Sandbox::enter();
    let disk = Disk::mount(sandbox.state_dir());
    let _server = EchoServer::start(&world::BACKEND_PORTS).expect("free ports in a new namespace");
    let mut worker = Worker::start(&sandbox);
    let agent = Agent::start(&sandbox, &Settings::default());
    let foundation = agent.apply(&world::foundation("test"), Level::Applied).expect("there is room");

    let push = |version| agent.apply(&large(version), Level::Durable);
    let (refused, error) = (1..=TRANSACTIONS_MAX)
        .find_map(|version| push(version).err().map(|error| (version, error)))
        .expect("the disk is smaller than that");
    assert!(error.to_string().contains("No space left on device"), "{error}");

    let status = agent.status();
    assert_eq!(status.durable_lsn.0, foundation.lsn.0 + refused - 1, "what was acknowledged is there");
    assert_eq!(status.applied_lsn, status.durable_lsn);
    let blocked = status.blocked_reason.expect("status says why");
    assert!(blocked.contains("No space left on device"), "{blocked}");
    assert!(!agent.resources().is_empty(), "reads go on");
    let destination = world::destinations().next().expect("there is one");
    let outcomes = worker.probe(destination, 20);
    assert_eq!(outcomes.values().sum::<u32>(), 20, "{outcomes:?}");
    assert!(outcomes.keys().all(|outcome| matches!(outcome, Outcome::Reached(_))), "connections go on: {outcomes:?}");

    mount_remount(&disk.0, MountFlags::empty(), LARGE_DISK).expect("root may remount");
    let deadline = Instant::now() + Duration::from_secs(30);
    let receipt = loop {
        match push(refused) {
            Ok(receipt) => break receipt,
            Err(error) => assert!(Instant::now() < deadline, "there is room again: {error}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(receipt.lsn, status.durable_lsn.next(), "the log goes on where it was");
    assert!(!receipt.duplicate, "the refused push was not half taken");
    assert_eq!(agent.wait_applied(receipt.lsn).blocked_reason, None);
    agent.kill();
    let mut agent = Agent::spawn(&sandbox, &Settings::default());
    assert_eq!(agent.wait_ready().expect("the journal is whole").durable_lsn, receipt.lsn);
    agent.kill();
}

/// A disk of its own for the state directory, unmounted on drop so that the sandbox can remove the directory.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir(&at).expect("a new directory");
        mount("disk", &at, "tmpfs", MountFlags::empty(), SMALL_DISK).expect("root may mount");
        Self(at)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: an agent that has just been killed may still have it open.
        if let Err(errno) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("cannot unmount {}: {errno}", self.0.display());
        }
    }
}

/// A large transaction that changes nothing: removals of what is not there.
fn large(version: u64) -> Transaction {
    let removal = |number| Delta::Remove(ResourceKey::new(Kind::Workload, format!("{version}-{number:0>NAME_BYTES$}")));
    let origin = Origin { source: "large".to_owned(), incarnation: 1, version: Some(version) };
    Transaction::push(origin, (0..NAMES).map(removal).collect())
}
