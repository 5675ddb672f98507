//! Rules of the protocol that the simulation breaks on purpose, to show that it would notice.
//!
//! Most rules are broken from outside, in the simulated tables or by lying to the applier. These three are decisions of
//! the applier itself. They can be broken only with the feature `mutants`, and never in a build without debug assertions.

/// A rule that can be broken; see [`apply`](crate::apply).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// `STAGE`.
    Stage,
    /// `REUSE`.
    Reuse,
    /// `RETIRE`, for an entry that came back and went again while it waited.
    Retire,
}

#[cfg(all(feature = "mutants", debug_assertions))]
mod broken {
    use std::cell::Cell;

    use super::Rule;

    thread_local! {
        static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// Breaks a rule for all appliers of this thread; `None`: all rules hold again.
    pub fn break_rule(rule: Option<Rule>) {
        BROKEN.set(rule);
    }

    pub(crate) fn holds(rule: Rule) -> bool {
        BROKEN.get() != Some(rule)
    }
}

#[cfg(all(feature = "mutants", debug_assertions))]
pub use broken::break_rule;
#[cfg(all(feature = "mutants", debug_assertions))]
pub(crate) use broken::holds;

#[cfg(not(all(feature = "mutants", debug_assertions)))]
pub(crate) const fn holds(_: Rule) -> bool {
    true
}
