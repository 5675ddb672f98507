//! Two pieces of work at once, where there is enough to do.

/// From so many entries on a second thread pays.
pub(crate) const ENTRIES_MIN: usize = 10_000;

/// Does both, `aside` on a thread of its own if there are many entries to do it for.
pub(crate) fn both<A: Send, B>(entries: usize, aside: impl FnOnce() -> A + Send, here: impl FnOnce() -> B) -> (A, B) {
    if entries < ENTRIES_MIN {
        return (aside(), here());
    }
    std::thread::scope(|scope| {
        let aside = scope.spawn(aside);
        let here = here();
        let aside = aside.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause));
        (aside, here)
    })
}
