//! Rules of the protocol that are broken on purpose: the checker must notice each.
//!
//! [`Mutant::EpochBeforePayload`] and [`Mutant::NoNever`] are noticed by `ORDER` alone, which looks at the stores: no reader
//! sees a version that is being staged, in whatever order, as long as all other rules hold. Readers notice the others, or
//! the check of what is left over does.

#[cfg(debug_assertions)]
use applier::mutants::Rule;

/// A broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// The epoch is flipped before what it shows is staged.
    FlipBeforeStage,
    /// Index entries are made after the flip that shows their cells.
    IndexAfterFlip,
    /// Which record the epoch stands for is written after the flip.
    HeadAfterFlip,
    /// A version gets its epoch before its payload.
    EpochBeforePayload,
    /// A version is written over while it still has its old epoch.
    NoNever,
    /// What a dead applier had staged stays.
    NoScrub,
    /// What a refused transaction had staged stays.
    NoUnstage,
    /// A cell is given back, and its index entry stays.
    IndexEntryKept,
    /// A grace period is over at once: programs that began before it still run.
    NoGrace,
    /// A grace period is believed to cover the epochs that were flipped to while it ran.
    QuiesceTooMuch,
    /// After a restart, programs that began before it are believed to be gone.
    RestartQuiesces,
    /// The applier itself ignores one of its rules.
    #[cfg(debug_assertions)]
    Ignored(Rule),
}

impl Mutant {
    pub(crate) const ALL: &[Self] = &[
        Self::FlipBeforeStage,
        Self::IndexAfterFlip,
        Self::HeadAfterFlip,
        Self::EpochBeforePayload,
        Self::NoNever,
        Self::NoScrub,
        Self::NoUnstage,
        Self::IndexEntryKept,
        Self::NoGrace,
        Self::QuiesceTooMuch,
        Self::RestartQuiesces,
        #[cfg(debug_assertions)]
        Self::Ignored(Rule::Stage),
        #[cfg(debug_assertions)]
        Self::Ignored(Rule::Reuse),
        #[cfg(debug_assertions)]
        Self::Ignored(Rule::Retire),
    ];

    /// Breaks the applier's own rule, if it is one of those, while `test` runs.
    #[cfg_attr(not(debug_assertions), expect(clippy::unused_self, reason = "a release build breaks no rule"))]
    pub(crate) fn during<R>(self, test: impl FnOnce() -> R) -> R {
        #[cfg(debug_assertions)]
        if let Self::Ignored(rule) = self {
            applier::mutants::break_rule(Some(rule));
            let result = test();
            applier::mutants::break_rule(None);
            return result;
        }
        test()
    }
}
