//! Tests of the real agent: started, killed, restarted, upgraded, while real connections run.
//!
//! * [`sandbox`]: a network namespace, a BPF file system, a cgroup and a directory that are nobody else's; gone afterwards.
//! * [`elsewhere`]: a second network namespace, for servers that are not to be in their clients' own.
//! * [`agent`]: the `holdfast` binary as a process, and what one can do to it.
//! * [`echo`], [`connection`], [`worker`]: servers, checked connections, and the process in the cgroup that opens them.
//! * [`world`]: random transactions that an agent must accept; [`crowd`]: very many services; [`moves`]: a mesh that moves
//!   as a whole. [`oracle`]: what must be true after them, worked out from
//!   the resources alone, without a line of the code under test.
//! * [`pinned`]: the kernel's tables and the journal, opened while no agent has them, and compared with the oracle.
//! * [`rig`]: all of it, put together for crash tests.
//! * [`bare`]: a datapath without an agent around it, and the test process among its clients.
//! * [`stamped`]: connections of the test process itself, with the stamps that the kernel program left on them.
//! * [`versions`]: what a source has pushed, held against the journal.
//! * [`seed`], [`requirements`]: how a test is replayed, and when it may be skipped.
//!
//! Architecture invariant: nothing in production code is there for this crate but the failpoints.

#![forbid(unsafe_code)]

pub mod agent;
pub mod bare;
pub mod connection;
pub mod crowd;
pub mod echo;
pub mod elsewhere;
pub mod moves;
pub mod oracle;
pub mod peer;
pub mod pinned;
pub mod requirements;
pub mod rig;
pub mod sandbox;
pub mod seed;
pub mod stamped;
pub mod versions;
pub mod worker;
pub mod world;
