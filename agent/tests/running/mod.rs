//! A place for an agent to run in, and the binary to run there.

#![allow(dead_code, reason = "each test crate uses its own part")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use expect_test::Expect;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A service, as a manifest.
pub(crate) const SERVICE: &str = "\
kind: Service
name: shop/cart
vips: [10.96.0.1]
ports:
- {port: 80, targetPort: 8080}
";

/// A workload that backs it; it ends in its list of services.
pub(crate) const WORKLOAD: &str = "\
kind: Workload
uid: cart-1
addresses: [127.1.1.1]
services:
- service: shop/cart
";

/// The path of a manifest in `examples/`.
pub(crate) fn example(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name).display().to_string()
}

/// A directory of its own, with a state directory and a socket in it.
pub(crate) struct Place {
    directory: TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// Itself, if it succeeded.
    pub(crate) fn succeeded(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("holdfast.sock")
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    /// What was printed, without this place's own name and without version-dependent process numbers.
    pub(crate) fn normal(&self, text: &str) -> String {
        text.replace(self.directory.path().to_str().unwrap(), "DIR")
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        self.run_with_stdin(arguments, "")
    }

    pub(crate) fn run_with_stdin(&self, arguments: &[&str], stdin: &str) -> Run {
        let mut command = self.command(&[]);
        finish(command.args(arguments), stdin)
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.run(&["status", "-o", "json"]).succeeded().stdout).unwrap()
    }

    /// Starts an agent and waits until it is ready.
    pub(crate) fn start(&self) -> Agent {
        self.start_with(&[], &[])
    }

    pub(crate) fn start_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Agent {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let child = self
            .agent_command(arguments, environment)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let agent = Agent { child };
        let ready = self.run(&["status", "--wait"]);
        assert_eq!(ready.code, 0, "{ready:?}\n{}", fs::read_to_string(self.path("log")).unwrap_or_default());
        agent
    }

    /// Runs an agent that is expected to end by itself.
    pub(crate) fn run_agent(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Run {
        finish(&mut self.agent_command(arguments, environment), "")
    }

    fn agent_command(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
        let state = self.path("state");
        let mut command = self.command(environment);
        command.args(["agent", "--datapath", "memory", "--state-dir", state.to_str().unwrap()]).args(arguments);
        command
    }

    pub(crate) fn command(&self, environment: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command.env_clear().env("HOLDFAST_SOCKET", self.socket()).envs(environment.iter().copied());
        // Errors only: what the agent says about its own errors is what the tests look at.
        if !environment.iter().any(|(name, _)| *name == "HOLDFAST_LOG") {
            command.env("HOLDFAST_LOG", "error");
        }
        command
    }
}

fn finish(command: &mut Command, stdin: &str) -> Run {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that reads nothing may be gone by now, which is no failure of the test.
    drop(child.stdin.take().unwrap().write_all(stdin.as_bytes()));
    let (mut stdout, mut stderr) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    let status = child.wait().unwrap();
    Run { code: status.code().unwrap_or(-1), stdout, stderr }
}

/// A running agent; killed when dropped.
pub(crate) struct Agent {
    child: Child,
}

impl Agent {
    pub(crate) fn terminate(&mut self) -> i32 {
        self.signal(Signal::TERM)
    }

    pub(crate) fn interrupt(&mut self) -> i32 {
        self.signal(Signal::INT)
    }

    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
    }

    pub(crate) fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// Waits until it ends by itself; -1 if by a signal.
    #[cfg(feature = "failpoints")]
    pub(crate) fn wait(&mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap_or(-1)
    }

    fn signal(&mut self, signal: Signal) -> i32 {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// Checks a command's whole outcome: code, standard output, standard error.
pub(crate) fn check(place: &Place, run: &Run, expected: &Expect) {
    expected.assert_eq(&format!("exit {}\n{}{}", run.code, place.normal(&run.stdout), place.normal(&run.stderr)));
}
