//! A datapath without an agent around it, with the calling process among its clients.

use applier::tables::{KernelTables, View};
use applier::{Options, Pipeline, Target};
use decision::Verdict;
use journal::Journal;
use loader::Datapath;
use storage_schema::map::{Capacities, Stamp};
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::Resource;
use tokio::runtime::Runtime;

use crate::sandbox::Sandbox;
use crate::stamped::Enrolled;

const CAPACITIES: Capacities = Capacities { frontends: 64, services: 64, backends: 64, endpoints: 50_000 };

/// Journal, applier and what is in the kernel.
#[derive(Debug)]
pub struct Bare {
    pipeline: Option<Pipeline>,
    journal: Journal,
    datapath: Datapath,
    runtime: Runtime,
    options: loader::Options,
    capacities: Capacities,
    enrolled: Enrolled,
    sandbox: Sandbox,
}

impl Bare {
    /// Begins with empty tables, in a sandbox of its own.
    ///
    /// # Panics
    /// As its other functions do: if something fails.
    pub fn start() -> Self {
        Self::with(CAPACITIES)
    }

    /// The same, with tables of a size.
    ///
    /// # Panics
    /// Likewise.
    pub fn with(capacities: Capacities) -> Self {
        let sandbox = Sandbox::enter();
        let options =
            loader::Options { pin_root: sandbox.pin_root(), cgroup: sandbox.cgroup().expect("entered").to_owned() };
        let journal = Journal::open(journal::Config::new(sandbox.state_dir())).expect("an empty directory");
        let pipeline = start(&journal, &options, capacities);
        let datapath = Datapath::open(options.clone()).expect("a pin root");
        let enrolled = Enrolled::in_cgroup_of(&sandbox);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let pipeline = Some(pipeline);
        Self { pipeline, journal, datapath, runtime, options, capacities, enrolled, sandbox }
    }

    /// Pushes resources in one transaction, and waits until it is visible.
    pub fn push(&self, resources: Vec<Resource>) {
        let origin = Origin { source: "bare".to_owned(), incarnation: 1, version: None };
        let transaction = Transaction::push(origin, resources.into_iter().map(Delta::Upsert).collect());
        self.block_on(async |pipeline| {
            let pending = pipeline.push(transaction, None).await.expect("a valid transaction");
            pending.durable().await.expect("a writable disk");
            pipeline.wait_applied(pending.lsn()).await.expect("a running applier");
        });
    }

    /// Stops following the journal and begins again, as an agent does that is restarted.
    pub fn restart(&mut self) {
        drop(self.pipeline.take());
        self.pipeline = Some(start(&self.journal, &self.options, self.capacities));
        self.block_on(async |pipeline| pipeline.loaded().await.expect("a usable kernel"));
    }

    /// Switches to a new generation.
    pub fn renew(&self) {
        let renewed = self.block_on(async |pipeline| pipeline.renew().await.expect("a usable kernel"));
        renewed.expect("tables in the kernel have generations");
    }

    /// Does something with the calling process outside the cgroup: no program runs for it.
    pub fn outside<T>(&self, work: impl FnOnce() -> T) -> T {
        self.enrolled.outside(work)
    }

    /// Its sandbox.
    pub const fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Reads stamps.
    pub const fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// Makes the decision of a stamp again, on the kernel's own tables, which must show its epoch.
    pub fn decide_again(&self, stamp: &Stamp) -> Verdict {
        let generations = self.datapath.complete_generations().expect("pins");
        let generation = generations.first().expect("one is attached");
        let control = generation.control().expect("it can be read").expect("it is of this ABI");
        assert_eq!(control.active_epoch, stamp.epoch, "the state stood still");
        let tables = KernelTables::open(generation, generation.capacities().expect("pins")).expect("a generation");
        decision::decide_again(&View(&tables), stamp)
    }

    fn block_on<T>(&self, ask: impl AsyncFnOnce(&Pipeline) -> T) -> T {
        let pipeline = self.pipeline.as_ref().expect("it is only gone while it is restarted");
        self.runtime.block_on(ask(pipeline))
    }
}

fn start(journal: &Journal, options: &loader::Options, capacities: Capacities) -> Pipeline {
    let options = Options::new(Target::Kernel(options.clone()), capacities);
    Pipeline::start(journal.clone(), options).expect("a usable kernel")
}
