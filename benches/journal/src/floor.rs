//! The floor: a plain file that grows, group commit, one write and one fdatasync for each group. Nothing else.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

/// A record and whom to tell.
type Append = (Vec<u8>, Sender<()>);

/// The writer's thread, and the way to it.
#[derive(Debug)]
pub(crate) struct Floor {
    queue: Option<Sender<Append>>,
    writer: Option<JoinHandle<io::Result<()>>>,
}

impl Floor {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file = File::create(path)?;
        let (queue, appends) = mpsc::channel();
        let writer = thread::spawn(move || write(&file, &appends));
        Ok(Self { queue: Some(queue), writer: Some(writer) })
    }

    /// A way to append from another thread.
    pub(crate) fn pusher(&self) -> impl FnMut(&[u8]) + use<> {
        let queue = self.queue.clone().expect("it is there until the end");
        let (done, acks) = mpsc::channel();
        move |record| {
            queue.send((record.to_vec(), done.clone())).expect("the floor's writer is alive");
            acks.recv().expect("the floor's writer is alive");
        }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            writer.join().expect("the floor's writer does not panic").expect("the floor's disk works");
        }
    }
}

fn write(mut file: &File, appends: &Receiver<Append>) -> io::Result<()> {
    let mut group = Vec::new();
    let mut waiting = Vec::new();
    while let Ok(first) = appends.recv() {
        for (record, done) in std::iter::once(first).chain(appends.try_iter()) {
            group.extend_from_slice(&u32::try_from(record.len()).expect("records are small").to_le_bytes());
            group.extend_from_slice(&record);
            waiting.push(done);
        }
        file.write_all(&group)?;
        file.sync_data()?;
        group.clear();
        for done in waiting.drain(..) {
            // A pusher that has gone does not wait.
            let _ = done.send(());
        }
    }
    Ok(())
}
