//! Where random tests get their randomness from, and how one that failed is run again.

use std::env;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// The seed of one test run. If the test panics, dropping it prints the command that runs the test again.
#[derive(Debug)]
pub struct Seed {
    value: u64,
    binary: &'static str,
    test: String,
}

impl Seed {
    /// The seed for the test `test` in `tests/<binary>.rs`: what `HOLDFAST_SEED` says, a number or `random`. Without it, a test
    /// has a seed of its own, the same in each run: what a change broke shows with the change, and long runs look further.
    pub fn from_environment(binary: &'static str, test: impl Into<String>) -> Self {
        let test = test.into();
        let value = match env::var("HOLDFAST_SEED").as_deref() {
            Err(_) => test.bytes().fold(0, |hash: u32, byte| hash.wrapping_mul(31).wrapping_add(byte.into())).into(),
            Ok("random") => rand::random::<u32>().into(),
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("HOLDFAST_SEED is `{text}`, not a number or `random`")),
        };
        Self { value, binary, test }
    }

    /// The seed of the `n`-th run of a test that is run many times.
    #[must_use]
    pub fn nth(&self, n: u64) -> Self {
        Self { value: self.value.wrapping_add(n), binary: self.binary, test: self.test.clone() }
    }

    /// Its number.
    pub const fn value(&self) -> u64 {
        self.value
    }

    /// A generator; different `stream`s of one seed are independent.
    pub fn generator(&self, stream: u64) -> ChaCha8Rng {
        let mut generator = ChaCha8Rng::seed_from_u64(self.value);
        generator.set_stream(stream);
        generator
    }

    /// The command that runs the test with this seed.
    pub fn replay_command(&self) -> String {
        let Self { value, binary, test } = self;
        format!(
            "HOLDFAST_SEED={value} cargo nextest run --workspace --features agent/failpoints -E 'binary(={binary}) & test(={test})'"
        )
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to run this again: {}", self.replay_command());
        }
    }
}

/// A number from the environment that makes a test longer; `default` if it is not set.
pub fn count_from_environment(variable: &str, default: u64) -> u64 {
    env::var(variable)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is `{text}`, not a number")))
}
